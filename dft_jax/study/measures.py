"""What a model makes of held-out text: token by token, and at other temperatures, from one pass.

Dividing the logits by a temperature T sharpens or flattens every distribution without learning
anything. So the nll at the temperature that suits a model best says what it knows, and its nll at
the temperature where its entropy is another model's compares the two as if neither had been
sharpened. Both come from a grid of 1/T, β, at each of which nll and mean entropy are known together
with their derivatives, so that a cubic Hermite spline through them gives both to some 1e-4 nats.

Further letters here: K inverse temperatures, P trained tokens of a batch (padded to whole chunks),
T all trained tokens of a text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from scipy.interpolate import CubicHermiteSpline

from dft_jax import sharding
from dft_jax.data import packing
from dft_jax.data.templates import Example
from dft_jax.models.model import Model, balanced, head
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import interrupts, progress
from dft_jax.training import metrics
from dft_jax.types import AnyArray, Batch, Leaf, Params

# T from 4 down to 1/4.
BETAS_K = tuple(2.0 ** (k / 3) for k in range(-6, 7))
# Tokens whose logits exist at once: 50 MB for a vocabulary of 49,152.
CHUNK_TOKENS = 256
# The p of a target that counts as missed, and as known.
BELOW, ABOVE = 0.01, 0.9


# ---- on the devices ------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenValues:
    """Of each trained token, float32 and in nats; on the host they are NumPy's, in float64.

    `is_top_P` is 1 where the target is (one of) the most probable token(s). With K are the values
    at each β, and their slopes are derivatives in β.
    """

    logp_P: Leaf
    entropy_P: Leaf
    is_top_P: Leaf
    nll_KP: Leaf
    nll_slope_KP: Leaf
    entropy_KP: Leaf
    entropy_slope_KP: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _AtBeta:
    """Of each token of a chunk at one β; over the grid, [K, C]."""

    nll_C: Leaf
    nll_slope_C: Leaf
    entropy_C: Leaf
    entropy_slope_C: Leaf


def token_values(
    hidden_PD: Float[Array, "P D"],
    head_VD: Float[Array, "V D"],
    targets_P: Int[Array, " P"],
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenValues:
    """Everything that is measured of P tokens, `chunk_tokens` (which divides P) at a time.

    Matrix products run in the dtype of `hidden_PD` and accumulate in float32; what follows is
    float32.
    """
    head_VD = head_VD.astype(hidden_PD.dtype)
    dtype = jnp.promote_types(jnp.float32, hidden_PD.dtype)

    def one_chunk(arguments: tuple[Array, Array]) -> TokenValues:
        hidden_CD, targets_C = arguments
        logits_CV = jnp.einsum("CD,VD->CV", hidden_CD, head_VD, preferred_element_type=dtype)
        # So that exp cannot overflow at the largest β; and the largest logit is 0 from here on.
        logits_CV -= logits_CV.max(axis=-1, keepdims=True)
        target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
        at_betas = functools.partial(_at_beta, logits_CV, target_C)
        # One β after the other: all at once would hold K times the logits.
        grid: _AtBeta = lax.map(at_betas, jnp.array(BETAS_K))
        is_top_C = (target_C >= 0).astype(dtype)
        one = BETAS_K.index(1.0)
        return TokenValues(
            logp_P=-grid.nll_C[one],
            entropy_P=grid.entropy_C[one],
            is_top_P=is_top_C,
            nll_KP=grid.nll_C,
            nll_slope_KP=grid.nll_slope_C,
            entropy_KP=grid.entropy_C,
            entropy_slope_KP=grid.entropy_slope_C,
        )

    n_chunks = len(targets_P) // chunk_tokens
    hidden = hidden_PD.reshape(n_chunks, chunk_tokens, -1)
    chunks = lax.map(one_chunk, (hidden, targets_P.reshape(n_chunks, chunk_tokens)))

    def join(x: Array) -> Array:
        # [chunks, C] to [P], or [chunks, K, C] to [K, P].
        if x.ndim == 2:
            return x.reshape(-1)
        return x.transpose(1, 0, 2).reshape(len(BETAS_K), -1)

    return jax.tree.map(join, chunks)


def _at_beta(logits_CV: Array, target_C: Array, beta: Array) -> _AtBeta:
    """nll, its slope, entropy and its slope of softmax(β · logits); largest logits are 0.

    nll = log Σ exp(βz) - β z_target, with derivative E[z] - z_target; entropy = log Σ exp(βz) - β
    E[z], with derivative -β Var[z].
    """
    exp_CV = jnp.exp(beta * logits_CV)
    sum_C = exp_CV.sum(axis=-1)
    mean_C = (exp_CV * logits_CV).sum(axis=-1) / sum_C
    variance_C = (exp_CV * (logits_CV - mean_C[:, None]) ** 2).sum(axis=-1) / sum_C
    logsumexp_C = jnp.log(sum_C)
    entropy_C = logsumexp_C - beta * mean_C
    return _AtBeta(
        nll_C=logsumexp_C - beta * target_C,
        nll_slope_C=mean_C - target_C,
        entropy_C=entropy_C,
        entropy_slope_C=-beta * variance_C,
    )


def make_measure(model: Model) -> Callable[[Params, Batch, jax.Array], TokenValues]:
    """The jitted measure(params, batch [1, B, L], index_P) of the tokens at places of B · L."""

    # Replicated: every process reads all values of the few tokens of a batch.
    @functools.partial(
        jax.jit,
        out_shardings=sharding.named(model.mesh),
        compiler_options=model.compiler_options,
    )
    def measure(params: Params, batch: Batch, index_P: Int[Array, " P"]) -> TokenValues:
        rows = jax.tree.map(lambda x_ABL: x_ABL[0], batch)
        lying = balanced(rows, model.mesh)
        hidden_BLD = sharding.in_row_order(model.apply(params, lying), lying.n_parts)
        hidden_PD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[index_P]
        return token_values(hidden_PD, head(params), rows.targets_BL.reshape(-1)[index_P])

    return measure


# ---- on the host ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PackedText:
    """Held-out examples as batches of one size.

    `index_P` are the places of trained tokens in B · L, `example_P` and `place_P` say which token
    of which example each is. Of `index_P` the first `n_tokens` count; the others, all 0, fill
    chunks up, so that one program serves every batch; images are as many patches in each, decoded
    once, for a text is read at every measured step of every arm.
    """

    batches: list[Batch]
    index_P: list[np.ndarray]
    example_P: list[np.ndarray]
    place_P: list[np.ndarray]
    n_tokens: list[int]


def pack(
    examples: list[Example],
    row_length: int,
    rows: int,
    chunk_tokens: int = CHUNK_TOKENS,
    vision: VisionSpec | None = None,
) -> PackedText:
    """Packs examples, longest first, into batches of `rows` rows.

    `vision` is that of a model whose tower sees the images, where examples have some.
    """
    sizes = [packing.slots(example) for example in examples]
    patches = [example.n_patches for example in examples]
    # As in training: with answers about half of a row's tokens are images, of four patches each.
    most_patches = max(2 * row_length, *patches)
    packed = packing.best_fit(sizes, row_length, patches, most_patches)
    n_patches = 0
    if vision is not None:
        most = max(sum(patches[number] for number in row) for row in packed)
        n_patches = packing.round_up(most, vision.window_patches)
    # Empty rows, to a whole number of batches.
    packed += [[] for _ in range(-len(packed) % rows)]
    text = PackedText([], [], [], [], [])
    indices = []
    for start in range(0, len(packed), rows):
        ids_of_rows = packed[start : start + rows]
        batch = packing.fill_rows(
            examples, ids_of_rows, row_length, vision=vision, n_patches=n_patches
        )
        index = np.flatnonzero(np.asarray(batch.mask_BL))
        indices.append(index)
        text.batches.append(batch)
        text.n_tokens.append(len(index))
        # Segment s of a row, counted from 1, is the s-th example that was packed into it.
        segments = np.asarray(batch.segments_BL).reshape(-1)[index]
        examples_of_tokens = []
        for place, segment in zip(index, segments, strict=True):
            examples_of_tokens.append(ids_of_rows[place // row_length][segment - 1])
        text.example_P.append(np.array(examples_of_tokens, np.int32))
        # A token's place as a target: one after the position that predicts it.
        text.place_P.append(np.asarray(batch.positions_BL).reshape(-1)[index] + 1)
    padded = packing.round_up(max(text.n_tokens), chunk_tokens)
    for index in indices:
        text.index_P.append(np.pad(index, (0, padded - len(index))).astype(np.int32))
    return text


def answer_places(example: Example, tokenizer: Any, mark: str) -> range:
    r"""The places in `example.ids` of the tokens of the answer after the last `mark`.

    After a mark that ends in an opening brace, as in `\\boxed{`, the answer ends before the brace
    that closes it; after another, as in `####`, with the line. Without an answer the range is
    empty. A token that is in part of the answer is one of its tokens.

    Args:
      tokenizer: anything with `decode(ids, skip_special_tokens)`.

    Raises:
      ValueError: the text of the ids is not that of its parts, so that places cannot be found.
    """
    first_trained = int(np.flatnonzero(example.trained)[0])
    ids = example.ids[first_trained:].tolist()

    def text(n: int) -> str:
        return tokenizer.decode(ids[:n], skip_special_tokens=True)

    whole = text(len(ids))
    start, end = _answer_span(whole, mark)
    if end <= start:
        return range(0)

    # How long the text of the first n tokens is; a token's own text may depend on those before it.
    lengths = [len(text(n)) for n in range(len(ids) + 1)]
    if lengths != sorted(lengths):
        raise ValueError(f"tokens do not spell {whole!r} one after the other")
    first = max(n for n, length in enumerate(lengths) if length <= start)
    last = min(n for n, length in enumerate(lengths) if length >= end)
    return range(first_trained + first, first_trained + last)


def _answer_span(text: str, mark: str) -> tuple[int, int]:
    """Where the answer starts and ends in a text; it ends before it starts where there is none."""
    if mark not in text:
        return 0, -1
    start = text.rfind(mark) + len(mark)
    if mark.endswith("{"):
        return start, _closing_brace(text, start)
    line = text[start:].partition("\n")[0]
    n_leading = len(line) - len(line.lstrip())
    return start + n_leading, start + len(line.rstrip())


def _closing_brace(text: str, start: int) -> int:
    """The place of the brace that closes one opened before `start`; -1 where none does."""
    depth = 1
    for place in range(start, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
        if depth == 0:
            return place
    return -1


@dataclasses.dataclass(frozen=True)
class Measures:
    """A model on a text; its fields are the keys of the JSON in a done-file.

    Means are over the tokens; nats. Lists with `_K` belong to `BETAS_K`, those with `_E` to the
    examples in their order. `answers_right_E` is 1 where every token of an answer is the model's
    first choice after the demonstration's own steps, 0 where one is not, -1 where an example has no
    answer; it is empty where the spec asks for no answers.
    """

    tokens: int
    nll: float
    mean_p: float
    entropy: float
    token_accuracy: float
    share_below: float
    share_above: float
    p_histogram: list[float]
    nll_K: list[float]
    nll_slope_K: list[float]
    entropy_K: list[float]
    entropy_slope_K: list[float]
    tokens_E: list[int]
    nll_E: list[float]
    p_E: list[float]
    entropy_E: list[float]
    answers_right_E: list[int]

    @property
    def answer_accuracy(self) -> float | None:
        """Share of the examples with an answer; None without one."""
        known = [right for right in self.answers_right_E if right >= 0]
        if not known:
            return None
        return sum(known) / len(known)


def measure_text(
    measure: Callable[[Params, Batch, jax.Array], TokenValues],
    params: Params,
    text: PackedText,
    answers: list[range] | None,
    mesh: Mesh,
    check: Callable[[], object] = interrupts.check,
) -> Measures:
    """Runs `measure` (of make_measure) over a text.

    Args:
      answers: the places of each example's answer; None where they are not asked for.
      check: called before each batch; it may raise.
    """
    values = []
    batches = progress.bar(text.batches, desc="held out", unit="batch", leave=False)
    for number, batch in enumerate(batches):
        check()
        rows = jax.tree.map(lambda x_BL: x_BL[None], batch)
        placed = sharding.device_batch(rows, mesh, batch.tokens_BL.shape[0])
        index_P = jax.device_put(text.index_P[number], sharding.named(mesh))
        found = jax.device_get(measure(params, placed, index_P))
        n = text.n_tokens[number]
        values.append(jax.tree.map(lambda x, n=n: np.asarray(x[..., :n], np.float64), found))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *values)
    examples = np.concatenate(text.example_P)
    places = np.concatenate(text.place_P)
    return summarise(whole, examples, places, answers)


def summarise(
    values: TokenValues,
    example_T: Int[np.ndarray, " T"],
    place_T: Int[np.ndarray, " T"],
    answers: list[range] | None,
) -> Measures:
    """Sums in float64, whatever the values were made in."""
    p_T = np.exp(values.logp_P)
    n_examples = int(example_T.max()) + 1

    def by_example(x_T: AnyArray) -> np.ndarray:
        return np.bincount(example_T, weights=x_T, minlength=n_examples)

    tokens_E = np.bincount(example_T, minlength=n_examples)
    # Edge i opens bin i, p = 1 is in the last, as metrics.token_sums counts.
    inner_edges = np.array(metrics.P_BIN_EDGES[1:-1], np.float32)
    bins_T = np.searchsorted(inner_edges, p_T.astype(np.float32), side="right")
    counts = np.bincount(bins_T, minlength=len(metrics.P_BIN_EDGES) - 1)
    n = len(p_T)
    return Measures(
        tokens=n,
        nll=_mean(-values.logp_P),
        mean_p=_mean(p_T),
        entropy=_mean(values.entropy_P),
        token_accuracy=_mean(values.is_top_P),
        share_below=_mean(p_T < BELOW),
        share_above=_mean(p_T > ABOVE),
        p_histogram=_rounded(counts / n),
        nll_K=_rounded(values.nll_KP.mean(axis=-1), 7),
        nll_slope_K=_rounded(values.nll_slope_KP.mean(axis=-1), 7),
        entropy_K=_rounded(values.entropy_KP.mean(axis=-1), 7),
        entropy_slope_K=_rounded(values.entropy_slope_KP.mean(axis=-1), 7),
        tokens_E=tokens_E.tolist(),
        nll_E=_rounded(by_example(-values.logp_P) / tokens_E),
        p_E=_rounded(by_example(p_T) / tokens_E),
        entropy_E=_rounded(by_example(values.entropy_P) / tokens_E),
        answers_right_E=_answers_right(values.is_top_P, example_T, place_T, answers),
    )


def _answers_right(
    is_top_T: AnyArray, example_T: np.ndarray, place_T: np.ndarray, answers: list[range] | None
) -> list[int]:
    """As `Measures.answers_right_E`."""
    right = []
    for number, places in enumerate(answers or []):
        if not places:
            right.append(-1)
            continue
        is_answer = (example_T == number) & np.isin(place_T, list(places))
        right.append(int(is_top_T[is_answer].all()))
    return right


def _mean(x_T: AnyArray) -> float:
    return float(np.mean(x_T, dtype=np.float64))


def _rounded(x: AnyArray, digits: int = 5) -> list[float]:
    return [round(float(value), digits) for value in x]


# ---- temperatures --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AtTemperature:
    """A model with its logits divided by `temperature`."""

    temperature: float
    nll: float


def best(measures: Measures) -> AtTemperature | None:
    """The temperature at which the nll is least; None where it would lie outside the grid.

    The nll is convex in β, so there is one.
    """
    nll = CubicHermiteSpline(BETAS_K, measures.nll_K, measures.nll_slope_K)
    betas = [beta for beta in nll.derivative().roots(extrapolate=False) if np.isfinite(beta)]
    if not betas:
        return None
    beta = min(betas, key=nll)
    return AtTemperature(1 / float(beta), float(nll(beta)))


def at_entropy(measures: Measures, entropy: float) -> AtTemperature | None:
    """The temperature at which the mean entropy is `entropy`, in nats; None outside the grid.

    The entropy falls as β rises, so there is one.
    """
    nll = CubicHermiteSpline(BETAS_K, measures.nll_K, measures.nll_slope_K)
    entropies = CubicHermiteSpline(BETAS_K, measures.entropy_K, measures.entropy_slope_K)
    betas = [beta for beta in entropies.solve(entropy, extrapolate=False) if np.isfinite(beta)]
    if not betas:
        return None
    beta = float(betas[0])
    return AtTemperature(1 / beta, float(nll(beta)))


def to_json(measures: Measures) -> dict[str, Any]:
    """Plain values, as a done-file has them."""
    return dataclasses.asdict(measures)


def from_json(values: dict[str, Any]) -> Measures:
    """What `to_json` was made of."""
    # The keys of the file are the fields: a missing or unknown one is a TypeError.
    return Measures(**values)
