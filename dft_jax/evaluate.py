"""Samples a model on benchmarks and grades it; or grades completions of any other engine; or reads
held-out text.

python -m dft_jax.evaluate --model=FOLDER_OR_RUN --benchmarks=math500,aime24 \\
    --prompt=qwen-boxed --out=scores
python -m dft_jax.evaluate --grade=predictions.jsonl --benchmark_data=FOLDER --out=scores
python -m dft_jax.evaluate --model=FOLDER_OR_RUN --heldout=test.jsonl --rows=gsm8k --out=scores

--model is a Hugging Face folder, a hub id, or a run directory, of which the newest checkpoint is
taken. An evaluation that was killed goes on with the same command.

Each line of predictions.jsonl is one completion:

    {"benchmark": "aime24", "id": "60", "sample": 0, "completion": "… \\boxed{204}"}

and may have "reference" (the right answer; else that of the benchmark), "temperature", "truncated"
(true where the length limit cut it) and "tokens" (its length). An id is what `evals/benchmarks.py`
says: a field of the benchmark's rows, or the number of the row, from 0.
"""

from dft_jax.commands.evaluate import main
from dft_jax.runtime import errors

if __name__ == "__main__":
    errors.exit_on_user_error(main)()
