"""What a decoder is, and how a family reads it from a checkpoint's `config.json`, key by key."""

import dataclasses
import sys
from typing import Any

from dft_jax import errors


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions. `type` is `default`, `linear` or `llama3`; the other fields serve the scaled types."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that shapes the computation. Sizes in elements; `sliding_window` in tokens, None for none."""

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


# Keys that do not change what training computes: bookkeeping, generation defaults, and fields that
# transformers writes for every model.
_IRRELEVANT = frozenset(
    """_name_or_path _commit_hash architectures bos_token_id eos_token_id pad_token_id dtype torch_dtype
    transformers_version use_cache output_attentions output_hidden_states return_dict id2label label2id
    problem_type chunk_size_feed_forward _attn_implementation_autoset""".split()
)
_REQUIRED = object()
_MOST = 2**31 - 1  # of a size: what an index on a device can be
_MOST_LAYERS = 1000  # each has its names listed; the largest models have some 130


class ConfigReader:
    """Reads `config.json` so that no key passes unseen: each is taken, or must equal what is assumed, or is refused.

    Problems are collected; `finish` raises them all at once.
    """

    def __init__(self, raw: dict[str, Any], where: str):
        self.raw, self.where, self.problems = raw, where, []
        self._left = set(raw) - _IRRELEVANT

    def problem(self, text: str) -> None:
        self.problems.append(f"{self.where}: {text}")

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of `key`; an absent or null one gives `default`, or a problem when there is none."""
        self._left.discard(key)
        value = self.raw.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if value is None:
            self.problem(f"{key!r} is missing; a guess would change the model silently, so add it")
            return kind(1)
        is_kind = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not is_kind or (isinstance(value, bool) and kind is not bool):
            self.problem(f"{key}={value!r} should be {kind.__name__}")
            return kind(1) if default is _REQUIRED else default
        if kind is float and not abs(value) <= sys.float_info.max:  # JSON's 1e999 is read as infinity
            self.problem(f"{key} is beyond what a float holds; put the model's own value there")
            return 1.0
        return kind(value)

    def size(self, key: str, default: Any = _REQUIRED, most: int = _MOST) -> int:
        """An integer from 1 to `most`."""
        value = self.take(key, int, default)
        if value is not None and not 1 <= value <= most:
            self.problem(f"{key}={value} should be at least 1" if value < 1 else f"{key}={value} is more than {most}")
            return 1
        return value

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """A number above zero."""
        value = self.take(key, float, default)
        if not value > 0:
            self.problem(f"{key}={value} should be positive")
            return 1.0
        return value

    def expect(self, key: str, *legal: Any, default: Any = _REQUIRED) -> None:
        """`key` must have one of the `legal` values; absent is as good, unless a `default` says what absent means."""
        self._left.discard(key)
        value = self.raw.get(key, legal[0] if default is _REQUIRED else default)
        if value not in legal or isinstance(value, bool) != isinstance(legal[0], bool):
            self.problem(f"{key}={value!r} is not supported: only {' or '.join(map(repr, legal))}")

    def ignore(self, *keys: str) -> None:
        """Keys that this family defines and that are known not to matter here."""
        self._left.difference_update(keys)

    def rope(self, context: int) -> Rope:
        """Rotary settings from transformers 5 (`rope_parameters`) or older files (`rope_theta`, `rope_scaling`)."""
        old = {"rope_theta": self.raw.get("rope_theta")} | self.take("rope_scaling", dict, {})
        raw = self.take("rope_parameters", dict, {}) or old
        self.ignore("rope_theta", "rope_scaling", "rope_parameters")
        if self.raw.get("rope_parameters") and self.raw.get("rope_scaling"):
            self.problem("rope_parameters and rope_scaling are both there; keep the right one")
        if self.raw.get("rope_theta") not in (None, raw.get("rope_theta")):
            self.problem("rope_theta differs from the one inside rope_parameters or rope_scaling; keep the right one")
        raw = {"rope_type": raw.get("type")} | raw  # `type` is the oldest spelling
        if raw.get("type") not in (None, raw["rope_type"]):
            self.problem(f"rope: type={raw['type']!r} and rope_type={raw['rope_type']!r} differ; keep the right one")
        reader = ConfigReader({k: v for k, v in raw.items() if k != "type"}, f"{self.where}: rope")
        kind = reader.take("rope_type", str, "default")
        rope = Rope(theta=reader.positive("rope_theta"), type=kind)
        if kind in ("linear", "llama3"):
            rope = dataclasses.replace(rope, factor=reader.positive("factor"))
        if kind == "llama3":
            rope = dataclasses.replace(
                rope,
                low_freq_factor=reader.positive("low_freq_factor"),
                high_freq_factor=reader.positive("high_freq_factor"),
                original_context=reader.size("original_max_position_embeddings", context),
            )
        if kind not in ("default", "linear", "llama3"):
            reader.problem(f"rope_type={kind!r} is not supported: only 'default', 'linear', 'llama3'")
        elif kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
            reader.problem("high_freq_factor should be above low_freq_factor")
        else:
            reader.expect("partial_rotary_factor", 1.0, 1)
            reader.refuse_rest()
        self.problems += reader.problems
        return rope

    def refuse_rest(self) -> None:
        for key in sorted(self._left):
            self.problem(f"{key}={self.raw[key]!r} is not a known key of this model; remove it if it has no effect")

    def finish(self, config: DecoderConfig) -> DecoderConfig:
        """Returns `config` when nothing is wrong with it and no key is left over; else raises UserError with all."""
        self.refuse_rest()
        if config.num_heads % config.num_kv_heads:
            self.problem(f"num_key_value_heads={config.num_kv_heads} does not divide {config.num_heads} heads")
        if config.head_dim % 2:
            self.problem(f"head_dim={config.head_dim} should be even for rotary positions")
        errors.raise_if_any(self.problems)
        return config


def read_common(reader: ConfigReader) -> dict[str, Any]:
    """The fields that every supported family spells alike, as keyword arguments of DecoderConfig."""
    hidden_size, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    reader.expect("hidden_act", "silu")
    reader.expect("attention_dropout", 0.0, 0)
    reader.expect("is_encoder_decoder", False)
    max_length = reader.size("max_position_embeddings")
    if "head_dim" not in reader.raw and hidden_size % num_heads:
        reader.problem(f"hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}: give head_dim")
    return dict(
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=reader.size("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=num_heads,
        num_kv_heads=reader.size("num_key_value_heads", num_heads),
        head_dim=reader.size("head_dim", max(hidden_size // num_heads, 1)),
        intermediate_size=reader.size("intermediate_size"),
        rms_epsilon=reader.positive("rms_norm_eps"),
        rope=reader.rope(max_length),
        tie_embeddings=reader.take("tie_word_embeddings", bool, False),
        max_length=max_length,
        init_std=reader.positive("initializer_range", 0.02),
    )
