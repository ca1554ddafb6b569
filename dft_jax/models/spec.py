"""What a decoder is, and how a family reads it from a checkpoint's `config.json`, key by key."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions. `type` is `default`, `linear` or `llama3`, or `yarn` for the class below;
    the other fields serve the scaled types.
    """

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0

    # What cos and sin are multiplied by. No field: it would be in the fingerprint of every run, and
    # old ones lack it.
    attention_factor: ClassVar[float] = 1.0


@dataclasses.dataclass(frozen=True)
class Yarn(Rope):
    """YaRN (arXiv 2309.00071): dimensions that turn fewer than `beta_slow` times within the
    original context are divided by `factor`, those that turn more than `beta_fast` times are kept,
    between them is a linear ramp.

    `truncate` widens the ramp to whole dimensions. Both queries and keys are multiplied by
    `attention_factor`.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Everything that shapes the computation. Sizes in elements; `sliding_window` in tokens, None
    for none.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_epsilon: float
    rope: Rope
    tie_embeddings: bool
    max_length: int
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    init_std: float = 0.02
