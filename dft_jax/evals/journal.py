"""The completions in an evaluation's folder: rows that are appended, and read back checked."""

import json
import math
from pathlib import Path
from typing import Any

from dft_jax.evals.planning import Key, Plan
from dft_jax.evals.saved import is_number
from dft_jax.runtime import errors, files
from dft_jax.sampling.sampler import Completion, Request, Watch
from dft_jax.sampling.texts import n_until_stop, until_stop

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
IMAGES = "images"  # of a row whose problem shows some: SHA-256 of each, in order
_ENTROPY_DIGITS = 4  # beyond that it depends on how completions were batched


def completions(plan: Plan, out: Path) -> dict[Key, dict[str, Any]]:
    """The completions that the folder holds, those of the plan and others.

    The half line of a killed run, at the end of a file, is taken off; so is a whole one without its
    newline, which the next would be joined to.

    Raises:
      UserError: a line that is no completion, or a problem that had another prompt.
    """
    done: dict[Key, dict[str, Any]] = {}
    for name in (PREDICTIONS_NAME, JOURNAL_NAME):
        file = out / name
        if not file.exists():
            continue
        lines = file.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
            files.write_text(file, b"".join(lines).decode())
        for number, line in enumerate(lines, start=1):
            try:
                row = _checked(json.loads(line))
            except (TypeError, ValueError) as error:
                remedy = "remove the line, to have it sampled again"
                what = f"{file}:{number}: not a completion ({error})"
                raise errors.UserError(f"{what}; {remedy}") from error
            prompt = plan.prompts.get((row["benchmark"], row["id"]))
            what = f"{file}:{number}: {row['benchmark']} {row['id']!r}"
            if prompt not in (None, row["prompt"]):
                raise errors.UserError(f"{what} has another prompt now; give another folder")
            shown = plan.shown(row["benchmark"], row["id"])
            if prompt is not None and row.get(IMAGES, []) != shown:
                raise errors.UserError(f"{what} shows other images now; give another folder")
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
    shown = row.get(IMAGES, [])
    if not isinstance(shown, list) or not all(isinstance(one, str) for one in shown):
        raise ValueError(f"field {IMAGES!r} is no list of SHA-256")
    for name in ("sample", "tokens", "temperature"):
        if row[name] < 0:
            raise ValueError(f"field {name!r} is below 0")
    return row


def watch(plan: Plan, key_of: dict[Request, Key]) -> Watch | None:
    """Ends completions at the stop texts of their benchmarks."""
    if not plan.stop_texts:
        return None

    def n_tokens(request: Request, ids: tuple[int, ...]) -> int:
        benchmark = key_of[request][0]
        return n_until_stop(ids, plan.decode, plan.stop_texts.get(benchmark, ()))

    return n_tokens


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
    whole = plan.decode(ids)
    text = until_stop(whole, plan.stop_texts.get(name, ()))
    row = {
        "benchmark": name,
        "id": problem,
        "sample": sample,
        "temperature": temperature,
        "prompt": plan.prompts[name, problem],
        "completion": text,
        "tokens": len(completion.ids),
        # What a text ended is whole, as what a token ended.
        "truncated": completion.is_cut and text == whole,
        "entropy": round(completion.entropy, _ENTROPY_DIGITS),
    }
    shown = plan.shown(name, problem)
    if shown:
        row[IMAGES] = shown
    return row


def as_sampled(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that sampling wrote; one that was graded has more."""
    kept = {name: row[name] for name in FIELDS}
    if row.get(IMAGES):
        kept[IMAGES] = row[IMAGES]
    return kept
