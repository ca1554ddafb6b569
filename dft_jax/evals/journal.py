"""The completions in an evaluation's folder: rows that are appended, and read back checked."""

import json
import math
from pathlib import Path
from typing import Any

from dft_jax.evals.planning import Key, Plan
from dft_jax.evals.saved import is_number
from dft_jax.runtime import errors, files
from dft_jax.sampling.sampler import Completion

JOURNAL_NAME = "journal.jsonl"
PREDICTIONS_NAME = "predictions.jsonl"

# Of a row, in the order in which they are written.
FIELDS: dict[str, type] = {
    "benchmark": str,
    "id": str,
    "sample": int,
    "temperature": float,
    "prompt": str,
    "completion": str,
    "tokens": int,
    "truncated": bool,
    "entropy": float,
}
_ENTROPY_DIGITS = 4  # beyond that it depends on how completions were batched


def completions(plan: Plan, out: Path) -> dict[Key, dict[str, Any]]:
    """The completions that the folder holds, those of the plan and others.

    The half line of a killed run, at the end of a file, is taken off.

    Raises:
      UserError: a line that is no completion, or a problem that had another prompt.
    """
    done: dict[Key, dict[str, Any]] = {}
    for name in (PREDICTIONS_NAME, JOURNAL_NAME):
        file = out / name
        if not file.exists():
            continue
        lines = file.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                row = _checked(json.loads(line))
            except (TypeError, ValueError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    files.write_text(file, b"".join(lines[:-1]).decode())
                    continue
                remedy = "remove the line, to have it sampled again"
                what = f"{file}:{number}: not a completion ({error})"
                raise errors.UserError(f"{what}; {remedy}") from error
            prompt = plan.prompts.get((row["benchmark"], row["id"]))
            if prompt not in (None, row["prompt"]):
                what = f"{file}:{number}: {row['benchmark']} {row['id']!r} has another prompt now"
                raise errors.UserError(f"{what}; give another folder")
            done[row["benchmark"], row["temperature"], row["id"], row["sample"]] = row
    return done


def _checked(row: Any) -> dict[str, Any]:
    """The row; ValueError for one that lacks a field, or has one of another type."""
    if not isinstance(row, dict):
        row = {}
    for name, kind in FIELDS.items():
        value = row.get(name)
        is_wrong = isinstance(value, bool) and kind is not bool  # true is an int to Python
        if not isinstance(value, kind) or is_wrong:
            raise ValueError(f"field {name!r} is missing or of another type")
        if kind in (int, float) and not is_number(value):
            raise ValueError(f"field {name!r} is not finite, or beyond all lengths")
    for name in ("sample", "tokens", "temperature"):
        if row[name] < 0:
            raise ValueError(f"field {name!r} is below 0")
    return row


def row_of(plan: Plan, key: Key, completion: Completion) -> dict[str, Any]:
    """A completion as its line says it.

    Raises:
      UserError: the model's logits were not finite.
    """
    name, temperature, problem, sample = key
    if not math.isfinite(completion.entropy):
        what = f"{name} {problem!r}: the model's logits are not finite (NaN or infinite)"
        remedy = "its weights are damaged, or too large for --compute_dtype; try float32"
        raise errors.UserError(f"{what}; {remedy}")
    ids = list(completion.ids)
    if not completion.is_cut:
        ids.pop()  # the stop
    return {
        "benchmark": name,
        "id": problem,
        "sample": sample,
        "temperature": temperature,
        "prompt": plan.prompts[name, problem],
        "completion": plan.decode(ids),
        "tokens": len(completion.ids),
        "truncated": completion.is_cut,
        "entropy": round(completion.entropy, _ENTROPY_DIGITS),
    }
