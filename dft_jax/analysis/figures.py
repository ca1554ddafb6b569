"""What analyses draw: the histogram of p, and a page of coloured tokens."""

import html
import itertools
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dft_jax import metrics
from dft_jax.analysis.compare import COLOURS
from dft_jax.data.chat import Example

N_BINS = len(metrics.P_BIN_EDGES) - 1
_HEADING = "Probability of each trained token"
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1a1a; --grey: #6b6b6b; --unlikely: #e8743b; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #f2f2f2; --grey: #9a9a9a; --unlikely: #b5461a; }
}
body { background: var(--page); color: var(--text); font: 15px/1.7 system-ui, sans-serif; margin: 2em; }
th { text-align: left; vertical-align: top; padding-right: 1em; }
td { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding-bottom: 1em; }
.plain { color: var(--grey); }
.legend span { padding: 0.2em 0.5em; }
"""


def pyplot():
    """matplotlib without a display, imported where a picture is drawn: it is slow to import."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bin_labels() -> list[str]:
    """`0–0.0001`, … for `metrics.P_BIN_EDGES`."""
    return [f"{low:g}–{high:g}" for low, high in zip(metrics.P_BIN_EDGES[:-1], metrics.P_BIN_EDGES[1:], strict=True)]


def bin_of(p_T: np.ndarray) -> np.ndarray:
    """The number of each token's bin, as `metrics.token_sums` counts: edge i opens bin i, and p = 1 is in the last."""
    return np.searchsorted(np.float32(metrics.P_BIN_EDGES[1:-1]), p_T, side="right")


def plot_histogram(shares_of: dict[str, list[float]], file: Path | BinaryIO) -> None:
    """Share of the target tokens in each of the paper's bins of p; logarithmic, as the paper draws it."""
    plt = pyplot()
    labels = bin_labels()
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.8 / len(shares_of)
    for number, (name, shares) in enumerate(shares_of.items()):
        x = [i + (number - (len(shares_of) - 1) / 2) * width for i in range(len(shares))]
        colour = COLOURS[number % len(COLOURS)]
        axis.bar(x, [100 * share for share in shares], width * 0.92, color=colour, label=name)
    axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axis.set(yscale="log", ylabel="target tokens, %", xlabel="probability of the target token")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def targets(example: Example) -> np.ndarray:
    """Which tokens of an example are trained: the first is never a target."""
    return example.trained & (np.arange(len(example.ids)) > 0)


def token_text(id_: int, tokenizer) -> str:
    """The text of a token; a piece of a character, which has none, is shown as ⟨its name in the vocabulary⟩."""
    # Decoded twice in a row, less once: tokenizers in SentencePiece's manner drop the space before a first word.
    once, twice = (tokenizer.decode([id_] * n) for n in (1, 2))
    text = twice[len(once) :]
    return f"⟨{tokenizer.convert_ids_to_tokens(id_)}⟩" if not text or "\ufffd" in text else text


def token_page(models: dict[str, tuple[np.ndarray, np.ndarray]], examples: list[Example], tokenizer) -> str:
    """HTML of the first examples: a row for each model, trained tokens coloured by p, the others grey.

    A model has p and entropy of every trained token, in the order of the data; the first is the one before the change.
    The scale has a step for each of the paper's bins, evenly in OKLab, down to the page's own colour at p near 1.
    """
    shares = [100 - 100 * i / (N_BINS - 1) for i in range(N_BINS)]
    steps = [
        f".b{i} {{ background: color-mix(in oklab, var(--unlikely) {share:.0f}%, var(--page)); }}"
        for i, share in enumerate(shares)
    ]
    legend = "".join(f'<span class="b{i}">{label}</span>' for i, label in enumerate(bin_labels()))
    lines = [
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_HEADING}</title>',
        f"<style>{_STYLE}",
        *steps,
        f"</style>\n<h1>{_HEADING}</h1>",
        f'<p class="legend">p: {legend} <span class="plain">not trained</span></p>',
    ]
    start = 0
    for number, example in enumerate(examples):
        end = start + int(targets(example).sum())
        lines.append(f"<h2>Example {number}</h2>\n<table>")
        before = next(iter(models.values()))[0][start:end]
        for name, (p_T, entropy_T) in models.items():
            changes = [f"{p:.3g}" for p in p_T[start:end]]
            if name != next(iter(models)):
                changes = [f"{p:.3g} to {after}" for p, after in zip(before, changes, strict=True)]
            titles = [
                f"p {change}, entropy {e:.3g} nats" for change, e in zip(changes, entropy_T[start:end], strict=True)
            ]
            lines.append(f"<tr><th>{html.escape(name)}<td>{_cell(example, p_T[start:end], titles, tokenizer)}")
        lines.append("</table>")
        start = end
    return "\n".join(lines) + "\n"


def _cell(example: Example, p_T: np.ndarray, titles: list[str], tokenizer) -> str:
    """One example under one model, of whose trained tokens `p_T` and `titles` are."""
    coloured = zip(bin_of(p_T), titles, strict=True)
    spans = []
    for is_target, run in itertools.groupby(zip(example.ids.tolist(), targets(example), strict=True), lambda x: x[1]):
        ids = [id_ for id_, _ in run]
        if is_target:
            for id_, (step, title) in zip(ids, coloured, strict=False):
                spans.append(f'<span class="b{step}" title="{title}">{_shown(token_text(id_, tokenizer))}</span>')
        else:
            spans.append(f'<span class="plain">{_shown(tokenizer.decode(ids))}</span>')
    return "".join(spans)


def _shown(text: str) -> str:
    return html.escape(text).replace("\n", "↵\n")
