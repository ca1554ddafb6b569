"""What a decoder is: its sizes, and layer by layer what is computed. Nothing runs here."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv 2104.09864): dimension pair i turns by position · theta^(-2i/K).

    `type` is `default`, `linear` or `llama3`, or that of a class below; the other fields serve the
    scaled types.
    """

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0

    # What cos and sin are multiplied by, and the share of a head's dimensions that turn. No fields:
    # they would be in the fingerprint of every run, and old ones lack them.
    attention_factor: ClassVar[float] = 1.0
    share: ClassVar[float] = 1.0

    def width(self, head_dim: int) -> int:
        """Dimensions of a head that turn, the first ones; the others pass through."""
        return int(head_dim * self.share)


@dataclasses.dataclass(frozen=True)
class Yarn(Rope):
    """YaRN (arXiv 2309.00071): slow dimensions are divided by `factor`, fast ones are kept.

    Slow are those that turn fewer than `beta_slow` times within the original context, fast those
    that turn more than `beta_fast` times; between them is a linear ramp. `truncate` widens the ramp
    to whole dimensions. Both queries and keys are multiplied by `attention_factor`.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class MRope(Rope):
    """Multimodal positions (Qwen2-VL, arXiv 2409.12191): a token has three, of time, row and column
    (data/image_rows.py), and each dimension pair turns by one of them.

    The first `sections[0]` pairs turn by the time, the next by the row, the last by the column. All
    three are equal in text, which so has ordinary rotary positions.
    """

    sections: tuple[int, ...] = ()

    @property
    def axes(self) -> tuple[int, ...]:
        """The axis of positions, 0 to 2, that each dimension pair turns by."""
        found: list[int] = []
        for axis, size in enumerate(self.sections):
            found += [axis] * size
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class PartialRope(Rope):
    """Of each head a `share` of the dimensions turns; theta^(-2i/K) has their number as K."""

    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class LongRope(PartialRope):
    """LongRoPE (arXiv 2402.13753): frequency i is divided by a factor of its own, from one of two
    lists; both queries and keys are multiplied by `attention_factor`.

    Short factors are for texts of at most `original_context` tokens, long ones for longer texts:
    for all of their tokens, so that queries and keys turn alike. Which a token gets depends on the
    text that it is in, and on nothing else:

    - A packed example is such a text by itself, and its length is that of what the model reads of
      it: all but the last token, which is only a target. Neighbours in its row, the row's length
      and the run's data.max_length do not matter.
    - A prompt is one, and so is a prompt with what has been made of its completion. When that
      grows beyond the original context, the model reads it again from the start with the long
      factors (sampling/rereading.py), as `generate` of transformers does.

    transformers has one choice for a whole batch, by the largest position in it: it gives the same
    for a text alone, and other logits for a short text beside a long one.
    """

    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer: self-attention, then a feed-forward, each added to the residual stream."""

    # How queries and keys are rotated; None for a layer without positions (NoPE).
    rope: Rope | None
    # Tokens that a query sees, itself included; None for all up to it.
    sliding_window: int | None = None
    # before: x + f(norm(x)), as Llama; after: x + norm(f(x)), as OLMo-2; both, as Gemma 3.
    norm: Literal["before", "after", "both"] = "before"
    # RMS norm of queries and keys: over each head, or over the width of all heads together.
    qk_norm: Literal["head", "width"] | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    # A name in layers.FEED_FORWARDS, or "experts" (models/moe.py).
    feed_forward: str = "swiglu"
    mlp_bias: bool = False


@dataclasses.dataclass(frozen=True)
class LayerLoop:
    """Layers that one loop runs: those of `period`, `times` over, from layer `first` on.

    Their parameters are stacked over the trips of the loop, apart for each place in the period:
    layer first + t · len(period) + p is number t of place p.
    """

    first: int
    period: tuple[LayerSpec, ...]
    times: int

    @property
    def name(self) -> str:
        """Of its parameters in the tree. Most models have one loop, whose name is `layers`."""
        if self.first == 0:
            return "layers"
        return f"layers_{self.first}"

    def paths(self) -> list[tuple[str, ...]]:
        """Where the tree has the parameters of each layer of the period.

        A period of one layer has no name of its own there, as in checkpoints of earlier runs.
        """
        if len(self.period) == 1:
            return [(self.name,)]
        return [(self.name, place_in_period(number)) for number in range(len(self.period))]


@dataclasses.dataclass(frozen=True)
class LayerPlace:
    """Where a layer's parameters lie: beneath `path` in the tree, number `trip` of their stack."""

    path: tuple[str, ...]
    trip: int


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """What lies beneath a path of keys in a tree of nested dicts."""
    return functools.reduce(lambda node, key: node[key], path, tree)


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """The tower of a model with images (models/vision.py); sizes in elements unless they say more.

    Patches are square; `merge` × `merge` of them are a unit, which is one token of the text.
    """

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    # Of a feature: the width of the decoder.
    out_size: int
    # Blocks whose patches attend to all of their image; in the others to those of their window.
    full_blocks: tuple[int, ...]
    patch_size: int  # pixels
    merge: int
    window_size: int  # pixels
    # Token ids: what stands for a unit, and what is before and after those of an image.
    image_token: int
    start_token: int
    end_token: int
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of a patch (X): those of its pixels in three colours."""
        return 3 * self.patch_size**2

    @property
    def window_units(self) -> int:
        """Units along one side of a window."""
        return self.window_size // (self.patch_size * self.merge)

    @property
    def window_patches(self) -> int:
        """The most patches that a window holds."""
        return (self.window_units * self.merge) ** 2


@dataclasses.dataclass(frozen=True)
class ExpertsSpec:
    """The experts of each layer whose feed-forward is "experts" (models/moe.py)."""

    count: int
    per_token: int
    width: int  # of one: its feed-forward width
    # Whether the shares of a token's experts are divided by their sum.
    normalised: bool
    # Besides `count`, experts that are on other devices: the router knows them, and of the tokens
    # none goes through them here. For plans, which trace the program of one device alone.
    absent: int = 0


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Everything that shapes the computation; sizes in elements, `max_length` in tokens."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_epsilon: float
    tie_embeddings: bool
    max_length: int
    layers: tuple[LayerSpec, ...]
    init_std: float = 0.02
    # The module of models/families whose tensor names a checkpoint of this has.
    family: str = "llama"
    # What turns its images into tokens; None of a model for text alone.
    vision: VisionSpec | None = None
    # Gemma's: embeddings times √D, norms times (1 + scale), and queries times √(K / s) beside 1/√K.
    scales_embeddings: bool = False
    norm_offset: float = 0.0
    query_factor: float = 1.0
    # Of layers whose feed-forward has them; `intermediate_size` is that of the others.
    experts: ExpertsSpec | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @functools.cached_property
    def loops(self) -> tuple[LayerLoop, ...]:
        """The layers as loops over periods of equal ones (see `split_into_loops`)."""
        return split_into_loops(self.layers)

    @property
    def long_rope(self) -> LongRope | None:
        """The rotary positions whose frequencies depend on the length of a text; all layers have
        the same.
        """
        rope = self.layers[0].rope
        return rope if isinstance(rope, LongRope) else None

    @property
    def idle_parameters(self) -> int:
        """Of the experts: parameters that a token is not multiplied with."""
        if self.experts is None:
            return 0
        n_layers = sum(layer.feed_forward == "experts" for layer in self.layers)
        of_one = 3 * self.hidden_size * self.experts.width
        return n_layers * of_one * (self.experts.count - self.experts.per_token)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding windows that occur, each once."""
        return tuple(dict.fromkeys(layer.sliding_window for layer in self.layers))

    def with_layers(self, **changes: Any) -> "DecoderSpec":
        """The same decoder with these fields of every layer changed."""
        layers = [dataclasses.replace(layer, **changes) for layer in self.layers]
        return dataclasses.replace(self, layers=tuple(layers))

    def layer_places(self) -> list[LayerPlace]:
        """Where each layer's parameters lie, in the order of the layers."""
        places = []
        for loop in self.loops:
            for trip in range(loop.times):
                for path in loop.paths():
                    places.append(LayerPlace(path, trip))
        return places

    def fingerprint(self) -> dict[str, Any]:
        """What a run records of its architecture, to resume only on the same one.

        Runs from before there was a LayerSpec have the keys of a decoder whose layers are all
        alike; such a decoder is still recorded by these keys, so that those runs resume.
        """
        first = self.layers[0]
        sizes = dataclasses.asdict(dataclasses.replace(self, layers=()))
        del sizes["layers"]
        family = sizes.pop("family")
        for key, value in _BEFORE.items():
            # Runs from before there was such a field lack the key.
            if sizes[key] == value:
                del sizes[key]
        if self.experts is not None:
            del sizes["experts"]["absent"]  # of plans alone
        sizes["num_layers"] = self.num_layers
        expressible = dataclasses.replace(first, norm="before", feed_forward="swiglu")
        if set(self.layers) != {expressible} or first.rope is None or first.qk_norm == "width":
            loops = [dataclasses.asdict(loop) for loop in self.loops]
            return sizes | {"family": family, "loops": loops}
        return sizes | {
            "rope": dataclasses.asdict(first.rope),
            "qkv_bias": first.qkv_bias,
            "o_bias": first.o_bias,
            "mlp_bias": first.mlp_bias,
            "qk_norm": first.qk_norm == "head",
            "sliding_window": first.sliding_window,
        }


# What fields of a DecoderSpec that came later mean to the runs from before.
_BEFORE = {
    "vision": None,
    "scales_embeddings": False,
    "norm_offset": 0.0,
    "query_factor": 1.0,
    "experts": None,
}


def place_in_period(number: int) -> str:
    """The name beneath which the tree has the parameters of layer `number` of a period."""
    return f"layer_{number}"


def split_into_loops(layers: tuple[LayerSpec, ...]) -> tuple[LayerLoop, ...]:
    """Cuts layers into loops over periods, so that few layers are compiled however many there are.

    r r r n r r r n      one loop: the period r r r n, twice
    d m m m m m          two loops: d once, and m five times

    From each place on, the period is taken that spares most layers from being compiled; of equally
    good ones the shortest.
    """
    loops = []
    first = 0
    while first < len(layers):
        rest = layers[first:]
        best = LayerLoop(first, rest[:1], 1)
        for length in range(1, len(rest) // 2 + 1):
            times = _repetitions(rest, length)
            if length * (times - 1) > len(best.period) * (best.times - 1):
                best = LayerLoop(first, rest[:length], times)
            if length * times == len(rest):
                break
        loops.append(best)
        first += len(best.period) * best.times
    return tuple(loops)


def _repetitions(layers: tuple[LayerSpec, ...], length: int) -> int:
    """How often the first `length` layers come one after another from the start."""
    same = length
    while same < len(layers) and layers[same] == layers[same - length]:
        same += 1
    return same // length
