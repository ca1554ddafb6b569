"""Completions of a model for whoever wants to look: of a prompt, of a file of prompts, or a chat.

python -m dft_jax.generate --model=FOLDER_OR_RUN                       # in a terminal: a chat
python -m dft_jax.generate --model=FOLDER_OR_RUN --prompt='What is 17 * 23?' --n=3
python -m dft_jax.generate --model=FOLDER_OR_RUN --image=card.png --prompt='Which number is it?'
python -m dft_jax.generate --model=FOLDER_OR_RUN --file=prompts.jsonl --json > completions.jsonl

--model is a Hugging Face folder, a hub id, a PEFT adapter, or a run directory, of which the newest
checkpoint is taken. Completions are written while they are made; with --json each is a line of
JSON, in the order of the prompts. A prompt is put as the model was trained, or under its chat
template (--template=auto); --template=raw leaves it as it is.

A line of prompts.jsonl has `prompt`, a text, or `messages`, a conversation that ends with the
user's message, and may have an `id`. A file with another ending than .jsonl, .json or .parquet is
one prompt.

Each completion follows from --seed, its prompt and its number alone, as in `dft.sample`.
"""

from dft_jax.commands.generate import FLAGS as FLAGS, main
from dft_jax.runtime import errors

if __name__ == "__main__":
    errors.exit_on_user_error(main)()
