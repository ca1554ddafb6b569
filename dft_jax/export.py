"""A run as a Hugging Face folder that `transformers` loads: sharded safetensors, config and
tokenizer.

python -m dft_jax.export --workdir=runs/tiny --out=runs/tiny/export
"""

from dft_jax.commands.export import main
from dft_jax.runtime import errors

if __name__ == "__main__":
    errors.exit_on_user_error(main)()
