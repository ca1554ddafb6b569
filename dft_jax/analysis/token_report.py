"""What is written of the trained tokens of some demonstrations under several models."""

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.analysis import figures, reading
from dft_jax.analysis.token_scores import (
    CHANGED_COLUMNS,
    Scores,
    changed,
    summarise,
)
from dft_jax.analysis.trained_tokens import tokens
from dft_jax.data.examples import Examples
from dft_jax.evals.report import aligned
from dft_jax.lm.language_model import LM
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import errors, files
from dft_jax.runtime.options import Config
from dft_jax.training import metrics

# Token types that are printed each way.
_TOP = 10
_SUMMARY_COLUMNS = (
    "tokens",
    "nll",
    "mean_p",
    "entropy",
    "share_of_p_below_0.01",
    "share_of_p_above_0.95",
    "sft_gradient",
    "dft_gradient",
)


def read_for_all(path: str, models: Mapping[str, LM], config: Config) -> Examples:
    """The examples of a data path, refused where they are not the same tokens to every model."""
    first, *others = models
    examples = reading.read(path, models[first], config)
    for name in others:
        if reading.read(path, models[name], config).report["sha256"] != examples.report["sha256"]:
            what = f"--models: {first} and {name} have different tokenizers or chat templates"
            remedy = "give models that share one"
            raise errors.UserError(f"{what}: {path} is other tokens to each; {remedy}")
    return examples


def write(
    scores: Mapping[str, Scores],
    examples: Examples,
    tokenizer: Tokenizer,
    about: dict[str, Any],
    out: Path,
    *,
    min_count: int,
    n_examples: int,
) -> None:
    """Prints the tables and writes the files.

    Args:
      about: what summary.json says besides.
      min_count: occurrences of a token type that is listed as changed.
      n_examples: examples shown in tokens.html.
    """
    (first, before), *others = scores.items()
    found = tokens(examples)
    arrays: dict[str, Any] = {
        "token": found.id_T,
        "position": found.position_T,
        "example": found.example_T,
    }
    # What each file has of each model.
    summaries: dict[str, dict[str, Any]] = {}
    shares: dict[str, list[float]] = {}
    shown: dict[str, figures.TokenValues] = {}
    for name, under in scores.items():
        arrays[f"p_{name}"] = under.p_T
        arrays[f"entropy_{name}"] = under.entropy_T
        arrays[f"gradient_{name}"] = under.gradient_T
        summaries[name] = summarise(under)
        shares[name] = summaries[name]["p_histogram"]
        shown[name] = figures.TokenValues(under.p_T, under.entropy_T)
    # Decoding is slow, and a token type is asked for once for each model.
    text_of = functools.cache(lambda id_: figures.token_text(id_, tokenizer))
    rows_of: dict[str, list[dict[str, Any]]] = {}
    every_row: list[dict[str, Any]] = []
    for name, after in others:
        rows = changed(name, found.id_T, before, after, text_of)
        rows_of[name] = [row for row in rows if row["count"] >= min_count]
        every_row += rows_of[name]

    # The files, each whole or not at all; then what is printed.
    _save(out / "tokens.npz", lambda handle: np.savez_compressed(handle, **arrays))
    summary = about | {"p_bin_edges": metrics.P_BIN_EDGES, "models": summaries}
    files.write_json(out / "summary.json", summary)
    files.write_csv(every_row, out / "changed.csv", CHANGED_COLUMNS)
    _save(out / "histogram.png", lambda handle: figures.plot_histogram(shares, handle))
    page = figures.token_page(shown, examples.examples[:n_examples], tokenizer)
    files.write_text(out / "tokens.html", page)
    print(_summary_table(summaries))
    for name, rows in rows_of.items():
        print(f"\n{name} against {first}\n{_changes_table(rows)}")
    print(f"\n{out}: tokens.npz, summary.json, changed.csv, histogram.png, tokens.html")


def _save(file: Path, save: Callable[[io.BytesIO], None]) -> None:
    content = io.BytesIO()
    save(content)
    files.write_atomically(file, content.getvalue())


def _summary_table(summaries: dict[str, dict[str, Any]]) -> str:
    """A line for each model."""
    lines = [["model", *_SUMMARY_COLUMNS]]
    for name, values in summaries.items():
        line = [name]
        for column in _SUMMARY_COLUMNS:
            line.append(f"{values[column]:.6g}")
        lines.append(line)
    return aligned(lines)


def _changes_table(rows: list[dict[str, Any]]) -> str:
    """The token types that fell most, then those that rose most; `rows` are as from `changed`."""
    fallen = [row for row in rows if row["change"] < 0]
    risen = [row for row in rows if row["change"] > 0]
    # The rows rise, so the highest rise is the last.
    risen.reverse()
    lines = [["", "token", "count", "p before", "p after", "change", "fell below 0.01"]]
    for row in fallen[:_TOP]:
        lines.append(_change_line("fell", row))
    for row in risen[:_TOP]:
        lines.append(_change_line("rose", row))
    return aligned(lines)


def _change_line(word: str, row: dict[str, Any]) -> list[str]:
    return [
        word,
        repr(row["token"]),
        str(row["count"]),
        f"{row['p_before']:.4f}",
        f"{row['p_after']:.4f}",
        f"{row['change']:+.4f}",
        f"{row['fell_below_0.01']:.1%}",
    ]
