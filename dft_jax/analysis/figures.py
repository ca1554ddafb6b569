"""What analyses draw with: matplotlib and its colours, the histogram of p, coloured tokens."""

import dataclasses
import html
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dft_jax.data.templates import Example
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import labels
from dft_jax.training import metrics

# The first is for the base, or whatever the others are compared with.
COLOURS = ("#7f7f7f", "#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")
N_BINS = len(metrics.P_BIN_EDGES) - 1
# Changes of p at which their colour becomes stronger.
CHANGE_EDGES = (0.02, 0.1, 0.3)
_HEADING = "Probability of each trained token"
_STYLE = (
    """
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1a1a; --grey: #6b6b6b;"""
    """ --unlikely: #e8743b;
  --fell: #e8743b; --rose: #3b8be8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #f2f2f2; --grey: #9a9a9a; --unlikely: #b5461a;
    --fell: #b5461a; --rose: #1a5fb5; }
}
body { background: var(--page); color: var(--text); font: 15px/1.7 system-ui, sans-serif;"""
    """ margin: 2em; }
th { text-align: left; vertical-align: top; padding-right: 1em; min-width: 6em; }
td { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;"""
    """ padding-bottom: 1em; }
.plain { color: var(--grey); }
.legend span { padding: 0.2em 0.5em; }
"""
)


@dataclasses.dataclass(frozen=True)
class TokenValues:
    """p and entropy, in nats, of trained tokens under one model, in the order of the data."""

    p_T: Float[np.ndarray, " T"]
    entropy_T: Float[np.ndarray, " T"]

    def part(self, start: int, end: int) -> "TokenValues":
        """The values of some of the tokens."""
        return TokenValues(self.p_T[start:end], self.entropy_T[start:end])


def pyplot() -> Any:
    """matplotlib without a display, imported where a picture is drawn: it is slow to import."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bin_labels() -> list[str]:
    """`0–0.0001`, … for `metrics.P_BIN_EDGES`."""
    labels = []
    for low, high in itertools.pairwise(metrics.P_BIN_EDGES):
        labels.append(f"{low:g}–{high:g}")
    return labels


def bin_of(p_T: Float[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """The number of each token's bin, as `metrics.token_sums` counts.

    Edge i opens bin i, and p = 1 is in the last.
    """
    inner_edges = np.array(metrics.P_BIN_EDGES[1:-1], np.float32)
    return np.searchsorted(inner_edges, p_T, side="right")


def plot_histogram(shares_of: dict[str, list[float]], file: Path | io.BytesIO) -> None:
    """Share of the target tokens in each bin of p, on a logarithmic axis as the paper draws it.

    Args:
      shares_of: by model, a share for each bin.
    """
    plt = pyplot()
    bins = bin_labels()
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    # The bars of one bin stand side by side, around its middle.
    width = 0.8 / len(shares_of)
    for number, (name, shares) in enumerate(shares_of.items()):
        offset = (number - (len(shares_of) - 1) / 2) * width
        places = np.arange(len(shares)) + offset
        percent = 100 * np.array(shares)
        colour = COLOURS[number % len(COLOURS)]
        axis.bar(places, percent, width * 0.92, color=colour, label=labels.plain(name))
    axis.set_xticks(range(len(bins)), bins, rotation=40, ha="right", fontsize=8)
    axis.set(yscale="log", ylabel="target tokens, %", xlabel="probability of the target token")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def targets(example: Example) -> Bool[np.ndarray, " L"]:
    """Which tokens of an example are trained: the first is never a target."""
    return example.trained & (np.arange(len(example.ids)) > 0)


def token_text(id_: int, tokenizer: Any) -> str:
    """The text of a token; a piece of a character, which has none, is shown as ⟨its name⟩."""
    # Decoded twice in a row, less once: tokenizers in SentencePiece's manner drop the space before
    # a first word.
    once = tokenizer.decode([id_])
    twice = tokenizer.decode([id_, id_])
    text = twice[len(once) :]
    if not text or "\ufffd" in text:
        return f"⟨{tokenizer.convert_ids_to_tokens(id_)}⟩"
    return text


def token_page(
    models: dict[str, TokenValues], examples: list[Example], tokenizer: Tokenizer
) -> str:
    """HTML of the first examples, their trained tokens coloured by p and by its change.

    Of each the prompt is shown once, then a row for each model with the tokens coloured by p, then
    a row for each model but the first, coloured by how far p moved from the first one's. The scale
    of p has a step for each of the paper's bins, evenly in OKLab, down to the page's own colour at
    p near 1.

    Args:
      models: the values of every trained token; the first model is the one before the change.
    """
    legend = []
    for i, label in enumerate(bin_labels()):
        legend.append(f'<span class="b{i}">{label}</span>')
    lines = [
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_HEADING}</title>',
        f"<style>{_STYLE}",
        *_colours(),
        f"</style>\n<h1>{_HEADING}</h1>",
        f'<p class="legend">p: {"".join(legend)} <span class="plain">not trained</span></p>',
    ]
    if len(models) > 1:
        moves = []
        for name, label in _change_labels():
            moves.append(f'<span class="{name}">{label}</span>')
        lines.append(f'<p class="legend">change of p: {"".join(moves)}</p>')
    start = 0
    for number, example in enumerate(examples):
        end = start + int(targets(example).sum())
        parts = {name: values.part(start, end) for name, values in models.items()}
        lines.append(f"<h2>Example {number}</h2>\n<table>")
        lines += _example_rows(parts, example, tokenizer)
        lines.append("</table>")
        start = end
    return "\n".join(lines) + "\n"


def _colours() -> list[str]:
    """The style of each bin of p, and of each step of a change both ways."""
    lines = []
    for i in range(N_BINS):
        share = 100 - 100 * i / (N_BINS - 1)
        lines.append(_colour_rule(f"b{i}", "unlikely", share))
    for i in range(1, len(CHANGE_EDGES) + 1):
        share = 100 * i / len(CHANGE_EDGES)
        lines.append(_colour_rule(f"f{i}", "fell", share))
        lines.append(_colour_rule(f"r{i}", "rose", share))
    return lines


def _colour_rule(name: str, colour: str, share: float) -> str:
    """So many percent of a colour, the rest of the page's own."""
    mixed = f"color-mix(in oklab, var(--{colour}) {share:.0f}%, var(--page))"
    return f".{name} {{ background: {mixed}; }}"


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
    if change > 0:
        return f"r{passed}"
    return f"f{passed}"


def _example_rows(
    models: dict[str, TokenValues], example: Example, tokenizer: Tokenizer
) -> list[str]:
    """The rows of one example's table: its prompt, each model, each change."""
    # Later turns of a user stay where they are: only what stands before the first answer.
    n_prompt = int(np.flatnonzero(targets(example))[0])
    prompt = _shown(_read_text(example, 0, n_prompt, tokenizer))
    lines = [f'<tr><th>prompt<td><span class="plain">{prompt}</span>']
    (first, before), *others = models.items()
    for name, values in models.items():
        titles = []
        triples = zip(before.p_T, values.p_T, values.entropy_T, strict=True)
        for p_before, p, entropy in triples:
            moved = f"{p:.3g}"
            if name != first:
                moved = f"{p_before:.3g} to {p:.3g}"
            titles.append(f"p {moved}, entropy {entropy:.3g} nats")
        classes = [f"b{number}" for number in bin_of(values.p_T)]
        cell = _cell(example, n_prompt, classes, titles, tokenizer)
        lines.append(f"<tr><th>{html.escape(name)}<td>{cell}")
    for name, values in others:
        titles = []
        classes = []
        for p_before, p in zip(before.p_T, values.p_T, strict=True):
            change = p - p_before
            titles.append(f"p {p_before:.3g} to {p:.3g}, {change:+.3g}")
            classes.append(change_class(float(change)))
        heading = f"{html.escape(name)}<br>against {html.escape(first)}"
        cell = _cell(example, n_prompt, classes, titles, tokenizer)
        lines.append(f"<tr><th>{heading}<td>{cell}")
    return lines


def _cell(
    example: Example, n_prompt: int, classes: list[str], titles: list[str], tokenizer: Tokenizer
) -> str:
    """One example after its prompt.

    `classes` and `titles` are those of its trained tokens; the others are grey, and decoded
    together, so that characters of several tokens are whole.
    """
    styles = iter(zip(classes, titles, strict=True))
    is_target_L = targets(example)
    places = range(n_prompt, len(example.ids))
    spans = []
    for is_target, run in itertools.groupby(places, lambda place: bool(is_target_L[place])):
        first, *others = run
        end = first + 1 + len(others)
        if not is_target:
            text = _read_text(example, first, end, tokenizer)
            spans.append(f'<span class="plain">{_shown(text)}</span>')
            continue
        for id_ in example.ids[first:end].tolist():
            name, title = next(styles)
            text = _shown(token_text(id_, tokenizer))
            spans.append(f'<span class="{name}" title="{title}">{text}</span>')
    return "".join(spans)


def _read_text(example: Example, start: int, end: int, tokenizer: Tokenizer) -> str:
    """The text of tokens that are not trained, each image's as one of them."""
    ids_L = example.ids[start:end]
    is_image_L = ids_L == example.image_token
    # Between two images stand the tokens that end the one and begin the other.
    is_further_L = is_image_L & np.concatenate([[False], is_image_L[:-1]])
    return tokenizer.decode(ids_L[~is_further_L].tolist())


def _shown(text: str) -> str:
    """Text for HTML, its line breaks visible."""
    return html.escape(text).replace("\n", "↵\n")
