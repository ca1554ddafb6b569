"""What analyses draw: the histogram of p, and a page of coloured tokens."""

import html
import itertools
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dft_jax.analysis.comparison import COLOURS
from dft_jax.data.templates import Example
from dft_jax.training import metrics

N_BINS = len(metrics.P_BIN_EDGES) - 1
CHANGE_EDGES = (0.02, 0.1, 0.3)  # of p, where the colour of a change becomes stronger
_HEADING = "Probability of each trained token"
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1a1a; --grey: #6b6b6b; --unlikely: #e8743b;
  --fell: #e8743b; --rose: #3b8be8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #f2f2f2; --grey: #9a9a9a; --unlikely: #b5461a;
    --fell: #b5461a; --rose: #1a5fb5; }
}
body { background: var(--page); color: var(--text); font: 15px/1.7 system-ui, sans-serif; margin: 2em; }
th { text-align: left; vertical-align: top; padding-right: 1em; min-width: 6em; }
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
    return [
        f"{low:g}–{high:g}"
        for low, high in zip(metrics.P_BIN_EDGES[:-1], metrics.P_BIN_EDGES[1:], strict=True)
    ]


def bin_of(p_T: np.ndarray) -> np.ndarray:
    """The number of each token's bin, as `metrics.token_sums` counts: edge i opens bin i, and p = 1
    is in the last.
    """
    return np.searchsorted(np.float32(metrics.P_BIN_EDGES[1:-1]), p_T, side="right")


def plot_histogram(shares_of: dict[str, list[float]], file: Path | BinaryIO) -> None:
    """Share of the target tokens in each of the paper's bins of p; logarithmic, as the paper draws
    it.
    """
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
    """The text of a token; a piece of a character, which has none, is shown as ⟨its name in the
    vocabulary⟩.
    """
    # Decoded twice in a row, less once: tokenizers in SentencePiece's manner drop the space before
    # a first word.
    once, twice = (tokenizer.decode([id_] * n) for n in (1, 2))
    text = twice[len(once) :]
    return f"⟨{tokenizer.convert_ids_to_tokens(id_)}⟩" if not text or "\ufffd" in text else text


def token_page(
    models: dict[str, tuple[np.ndarray, np.ndarray]], examples: list[Example], tokenizer
) -> str:
    """HTML of the first examples: the prompt once, then a row for each model with the trained
    tokens coloured by p; after those, a row for each model but the first, coloured by how far p
    moved from the first one's.

    A model has p and entropy of every trained token, in the order of the data; the first is the one
    before the change. The scale of p has a step for each of the paper's bins, evenly in OKLab, down
    to the page's own colour at p near 1.
    """
    legend = "".join(f'<span class="b{i}">{label}</span>' for i, label in enumerate(bin_labels()))
    lines = [
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_HEADING}</title>',
        f"<style>{_STYLE}",
        *_colours(),
        f"</style>\n<h1>{_HEADING}</h1>",
        f'<p class="legend">p: {legend} <span class="plain">not trained</span></p>',
    ]
    if len(models) > 1:
        moves = "".join(f'<span class="{name}">{label}</span>' for name, label in _change_labels())
        lines.append(f'<p class="legend">change of p: {moves}</p>')
    start = 0
    for number, example in enumerate(examples):
        end = start + int(targets(example).sum())
        of_example = {}
        for name, (p_T, entropy_T) in models.items():
            of_example[name] = (p_T[start:end], entropy_T[start:end])
        lines.append(f"<h2>Example {number}</h2>\n<table>")
        lines += _example_rows(of_example, example, tokenizer)
        lines.append("</table>")
        start = end
    return "\n".join(lines) + "\n"


def _colours() -> list[str]:
    """The style of each bin of p, and of each step of a change, both ways from the page's own
    colour.
    """
    lines = []
    for i in range(N_BINS):
        share = 100 - 100 * i / (N_BINS - 1)
        lines.append(
            f".b{i} {{ background: color-mix(in oklab, var(--unlikely) {share:.0f}%, var(--page)); }}"
        )
    for i in range(1, len(CHANGE_EDGES) + 1):
        share = 100 * i / len(CHANGE_EDGES)
        for name, colour in (("f", "fell"), ("r", "rose")):
            lines.append(
                f".{name}{i} {{ background: color-mix(in oklab, var(--{colour}) {share:.0f}%, var(--page)); }}"
            )
    return lines


def _change_labels() -> list[tuple[str, str]]:
    """Class and words of each step of a change, from the deepest fall to the highest rise."""
    labels = []
    for i in range(len(CHANGE_EDGES), 0, -1):
        labels.append((f"f{i}", f"below -{CHANGE_EDGES[i - 1]:g}"))
    labels.append(("same", f"within {CHANGE_EDGES[0]:g}"))
    for i in range(1, len(CHANGE_EDGES) + 1):
        labels.append((f"r{i}", f"above +{CHANGE_EDGES[i - 1]:g}"))
    return labels


def change_class(change: float) -> str:
    """The class of a change of p: `same`, or `f` or `r` and the number of edges that it passed."""
    passed = sum(abs(change) > edge for edge in CHANGE_EDGES)
    if passed == 0:
        return "same"
    return f"{'r' if change > 0 else 'f'}{passed}"


def _example_rows(
    models: dict[str, tuple[np.ndarray, np.ndarray]], example: Example, tokenizer
) -> list[str]:
    """The rows of one example's table: its prompt, each model, each change."""
    n_prompt = int(np.flatnonzero(targets(example))[0])
    prompt = _shown(tokenizer.decode(example.ids[:n_prompt].tolist()))
    lines = [f'<tr><th>prompt<td><span class="plain">{prompt}</span>']
    (first, (before_T, _)), *others = models.items()
    for name, (p_T, entropy_T) in models.items():
        titles = []
        for before, p, entropy in zip(before_T, p_T, entropy_T, strict=True):
            moved = f"{p:.3g}" if name == first else f"{before:.3g} to {p:.3g}"
            titles.append(f"p {moved}, entropy {entropy:.3g} nats")
        classes = [f"b{step}" for step in bin_of(p_T)]
        lines.append(
            f"<tr><th>{html.escape(name)}<td>{_cell(example, n_prompt, classes, titles, tokenizer)}"
        )
    for name, (p_T, _) in others:
        titles = [f"p {a:.3g} to {b:.3g}, {b - a:+.3g}" for a, b in zip(before_T, p_T, strict=True)]
        classes = [change_class(float(change)) for change in p_T - before_T]
        heading = f"{html.escape(name)}<br>against {html.escape(first)}"
        lines.append(f"<tr><th>{heading}<td>{_cell(example, n_prompt, classes, titles, tokenizer)}")
    return lines


def _cell(example: Example, n_prompt: int, classes: list[str], titles: list[str], tokenizer) -> str:
    """One example after its prompt; `classes` and `titles` are those of its trained tokens, the
    others are grey.
    """
    of_trained = zip(classes, titles, strict=True)
    after_prompt = list(zip(example.ids.tolist(), targets(example), strict=True))[n_prompt:]
    spans = []
    for is_target, run in itertools.groupby(after_prompt, lambda pair: pair[1]):
        ids = [id_ for id_, _ in run]
        if is_target:
            for id_, (name, title) in zip(ids, of_trained, strict=False):
                spans.append(
                    f'<span class="{name}" title="{title}">{_shown(token_text(id_, tokenizer))}</span>'
                )
        else:
            spans.append(f'<span class="plain">{_shown(tokenizer.decode(ids))}</span>')
    return "".join(spans)


def _shown(text: str) -> str:
    return html.escape(text).replace("\n", "↵\n")
