"""Reads config.json: every key is used, or known to have no effect, or refused by name."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dft_jax.models.spec import DecoderSpec, ExpertsSpec, LayerSpec, Rope, Yarn
from dft_jax.runtime import errors

# Keys that do not change what training computes, at any value: bookkeeping, generation defaults,
# choices of kernels, notes of other programs, and fields that transformers writes for every model.
_IRRELEVANT = frozenset(
    """
    _name_or_path _commit_hash architectures bos_token_id eos_token_id pad_token_id sep_token_id
    decoder_start_token_id dtype torch_dtype transformers_version tokenizer_class finetuning_task
    task_specific_params prefix is_decoder use_cache output_attentions output_hidden_states
    return_dict id2label label2id problem_type
    chunk_size_feed_forward gradient_checkpointing use_reentrant_checkpointing
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    transformers.js_config unsloth_fixed unsloth_version
    """.split()
)
# Keys that would change it, with the values that do not.
_WITHOUT_EFFECT = {
    # else neighbouring dimensions were rotated together
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1.0,),
    "alibi": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "torchscript": (False,),
    "use_bfloat16": (False,),
    "pruned_heads": ({},),
    "attn_pdrop": (0.0,),
    "embd_pdrop": (0.0,),
    "resid_pdrop": (0.0,),
    "hidden_dropout": (0.0,),
    "hidden_dropout_prob": (0.0,),
    "attention_probs_dropout_prob": (0.0,),
    "neftune_noise_alpha": (0.0,),
}
_REQUIRED = object()
_MOST = 2**31 - 1  # of a size: what an index on a device can be
_MOST_LAYERS = 1000  # each has its names listed; the largest models have some 130


class ConfigReader:
    """Reads `config.json` so that no key passes unseen.

    Each key is taken, or must equal what is assumed, or is refused. Problems are collected;
    `finish` raises them all at once. `place` is what messages begin with: the file.
    """

    def __init__(self, raw: dict[str, Any], place: str):
        self.raw = raw
        self.place = place
        self.problems: list[str] = []
        self._left = set(raw) - _IRRELEVANT
        self._parts: list[ConfigReader] = []

    def problem(self, text: str) -> None:
        self.problems.append(f"{self.place}: {text}")

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of `key`, of type `kind`; `default` where it is absent or null.

        Without a default that is a problem. Where there is one, some value of the type comes back,
        so that reading continues and finds the others.
        """
        self._left.discard(key)
        value = self.raw.get(key)
        if value is None:
            if default is not _REQUIRED:
                return default
            self.problem(f"{key!r} is missing; a guess would change the model silently, so add it")
            return kind(1)
        if not _is_a(value, kind):
            self.problem(f"{key}={value!r} should be {kind.__name__}")
            if default is _REQUIRED:
                return kind(1)
            return default
        # JSON's 1e999 is read as infinity
        if kind is float and not abs(value) <= sys.float_info.max:
            self.problem(f"{key} is beyond what a float holds; put the model's own value there")
            return 1.0
        return kind(value)

    def size(self, key: str, default: Any = _REQUIRED, most: int = _MOST) -> Any:
        """An integer from 1 to `most`; `default` may be None, for an absent one."""
        value = self.take(key, int, default)
        if value is None:
            return None
        if value < 1:
            self.problem(f"{key}={value} should be at least 1")
            return 1
        if value > most:
            self.problem(f"{key}={value} is more than {most}")
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
        """`key` must have one of the `legal` values.

        An absent one is as good as the first of them, unless a `default` says what absent means.
        """
        self._left.discard(key)
        if default is _REQUIRED:
            default = legal[0]
        value = self.raw.get(key, default)
        if not _is_one_of(value, legal):
            self.problem(f"{key}={value!r} is not supported: only {' or '.join(map(repr, legal))}")

    def ignore(self, *keys: str) -> None:
        """Keys that this family defines and that are known not to matter here."""
        self._left.difference_update(keys)

    def part(self, key: str) -> "ConfigReader":
        """A reader of the object under `key`; its problems, and keys left over, are this one's."""
        part = ConfigReader(dict(self.take(key, dict, {})), f"{self.place}: {key}")
        part.problems = self.problems
        self._parts.append(part)
        return part

    def part_or_rest(self, key: str) -> "ConfigReader":
        """A reader of the object under `key` and of all that was not read here; without such an
        object, this one.

        Some files have keys in both places: with one value, or it is a problem.
        """
        if self.raw.get(key) is None:
            self.ignore(key)
            return self
        part = self.part(key)
        for name in sorted(self._left):
            value, inner = self.raw[name], part.raw.get(name)
            if inner is None:
                part.raw[name] = value
                part._left.add(name)
            elif value is not None and value != inner:
                self.problem(f"{name}={value!r}, but {key} has {inner!r}; keep the right one")
        self._left.clear()
        return part

    def rope(self, context: int, kinds: "Ropes | None" = None) -> Rope:
        """Rotary settings, as transformers 5 (`rope_parameters`) or older files spell them.

        `kinds` are the families' own types of it, by name; None for those that all others have.
        """
        kinds = kinds or _ROPES
        raw = self._rope_settings()
        reader = ConfigReader(raw, f"{self.place}: rope")
        kind = reader.take("rope_type", str, "default")
        theta = reader.positive("rope_theta")
        if kind in kinds:
            rope = kinds[kind](reader, theta, context)
            reader.refuse_rest()
        else:
            rope = Rope(theta)
            reader.problem(
                f"rope_type={kind!r} is not supported: only {', '.join(map(repr, kinds))}"
            )
        self.problems += reader.problems
        return rope

    def _rope_settings(self) -> dict[str, Any]:
        """As transformers 5 has them, from either spelling; what contradicts is a problem."""
        old = {"rope_theta": self.raw.get("rope_theta")} | self.take("rope_scaling", dict, {})
        raw = self.take("rope_parameters", dict, {}) or old
        self.ignore("rope_theta", "rope_scaling", "rope_parameters")
        if self.raw.get("rope_parameters") and self.raw.get("rope_scaling"):
            self.problem("rope_parameters and rope_scaling are both there; keep the right one")
        if self.raw.get("rope_theta") not in (None, raw.get("rope_theta")):
            self.problem(
                "rope_theta differs from the one inside rope_parameters or rope_scaling;"
                " keep the right one"
            )
        # `type` is the oldest spelling
        raw = {"rope_type": raw.get("type")} | raw
        oldest = raw.pop("type", None)
        if oldest not in (None, raw["rope_type"]):
            self.problem(
                f"rope: type={oldest!r} and rope_type={raw['rope_type']!r} differ;"
                " keep the right one"
            )
        return raw

    def refuse_rest(self) -> None:
        """Each key that is left is a problem, unless it is null or has a value without effect."""
        for key in sorted(self._left):
            value = self.raw[key]
            if value is None:
                continue
            if key not in _WITHOUT_EFFECT:
                self.problem(
                    f"{key}={value!r} is not a known key of this model;"
                    " remove it if it has no effect"
                )
                continue
            legal = _WITHOUT_EFFECT[key]
            if not _is_one_of(value, legal):
                self.problem(f"{key}={value!r} is not supported: only {legal[0]!r}")
        for part in self._parts:
            part.refuse_rest()

    def finish(self, spec: DecoderSpec) -> DecoderSpec:
        """Returns `spec`, or raises UserError with all that is wrong, keys left over included."""
        self.refuse_rest()
        if spec.num_heads % spec.num_kv_heads:
            self.problem(
                f"num_key_value_heads={spec.num_kv_heads} does not divide {spec.num_heads} heads"
            )
        if spec.head_dim % 2:
            self.problem(f"head_dim={spec.head_dim} should be even for rotary positions")
        errors.raise_if_any(self.problems)
        return spec


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a type: integers are floats too, but True is no number."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def _is_one_of(value: Any, legal: tuple) -> bool:
    """False is not 0 here, nor True 1."""
    for legal_value in legal:
        if value == legal_value and isinstance(value, bool) == isinstance(legal_value, bool):
            return True
    return False


def _default_rope(reader: ConfigReader, theta: float, context: int) -> Rope:
    return Rope(theta)


def _linear_rope(reader: ConfigReader, theta: float, context: int) -> Rope:
    return Rope(theta, type="linear", factor=reader.positive("factor"))


def _llama3_rope(reader: ConfigReader, theta: float, context: int) -> Rope:
    low = reader.positive("low_freq_factor")
    high = reader.positive("high_freq_factor")
    if high <= low:
        reader.problem("high_freq_factor should be above low_freq_factor")
    return Rope(
        theta,
        type="llama3",
        factor=reader.positive("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=reader.size("original_max_position_embeddings", context),
    )


def _yarn_rope(reader: ConfigReader, theta: float, context: int) -> Yarn:
    """Absent keys mean what they mean to transformers."""
    factor = reader.positive("factor")
    beta_fast = reader.positive("beta_fast", 32.0)
    beta_slow = reader.positive("beta_slow", 1.0)
    if beta_fast < beta_slow:
        reader.problem(f"beta_fast={beta_fast} should be at least beta_slow={beta_slow}")
    if theta <= 1:
        reader.problem(f"rope_theta={theta} should be above 1 for yarn")
    return Yarn(
        theta,
        type="yarn",
        factor=factor,
        attention_factor=_yarn_attention_factor(reader, factor),
        original_context=reader.size("original_max_position_embeddings", context),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=reader.take("truncate", bool, True),
    )


def _yarn_attention_factor(reader: ConfigReader, factor: float) -> float:
    """What cos and sin are multiplied by: as given, or as it follows from the other keys."""
    mscale = reader.take("mscale", float, None)
    mscale_all_dim = reader.take("mscale_all_dim", float, None)
    if (mscale is None) != (mscale_all_dim is None):
        reader.problem(
            "mscale and mscale_all_dim go together: programs differ on one alone;"
            " give both, or neither"
        )
    attention_factor = reader.take("attention_factor", float, None)
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = _yarn_scale(factor, mscale) / _yarn_scale(factor, mscale_all_dim)
    elif attention_factor is None:
        attention_factor = _yarn_scale(factor, 1.0)
    if not attention_factor > 0:
        reader.problem(f"attention_factor={attention_factor} should be positive")
    return attention_factor


def _yarn_scale(factor: float, mscale: float) -> float:
    """The scale of arXiv 2309.00071, section 3.4; contexts that are not stretched have 1."""
    if factor <= 1:
        return 1.0
    return 0.1 * mscale * math.log(factor) + 1.0


# What `layer_types` says of a layer.
FULL, SLIDING = "full_attention", "sliding_attention"


def take_layer_types(reader: ConfigReader, default: list[str]) -> list[str]:
    """FULL or SLIDING for each layer; `default` where the file has no list, or a wrong one."""
    kinds = reader.take("layer_types", list, default)
    if len(kinds) != len(default) or any(kind not in (FULL, SLIDING) for kind in kinds):
        reader.problem(
            f"layer_types={kinds} should have {FULL!r} or {SLIDING!r} for each of the"
            f" {len(default)} layers"
        )
        return default
    return kinds


# From the settings, the base and the context of a model: its rotary positions, by their type.
Ropes = Mapping[str, Callable[[ConfigReader, float, int], Rope]]
_ROPES: Ropes = {
    "default": _default_rope,
    "linear": _linear_rope,
    "llama3": _llama3_rope,
    "yarn": _yarn_rope,
}


def refuse_window(reader: ConfigReader, num_layers: int) -> None:
    """Refuses the sliding window of Qwen's configs, which no published file switches on."""
    reader.expect("use_sliding_window", False)
    reader.expect("layer_types", [FULL] * num_layers, None)
    # without effect while use_sliding_window is false
    reader.ignore("sliding_window", "max_window_layers")


def take_experts(reader: ConfigReader, count: int, width: int, *, normalised: bool) -> ExpertsSpec:
    """Experts whose number, width and shares a family has read under keys of its own."""
    per_token = reader.size("num_experts_per_tok")
    if per_token > count:
        reader.problem(f"num_experts_per_tok={per_token} is more than the {count} experts")
        per_token = count
    # How much transformers adds of a loss that balances the experts, if it is asked to.
    reader.take("router_aux_loss_coef", float, 0.0)
    if reader.take("output_router_logits", bool, False):
        reader.problem(
            "output_router_logits=True asks for the loss that balances experts, which is not"
            " added by a checkpoint's own word; set it to false, and give train.balance_weight"
        )
    return ExpertsSpec(count, per_token, width, normalised)


def read_common(
    reader: ConfigReader, *, ties_by_default: bool = False, ropes: Ropes | None = None
) -> DecoderSpec:
    """A decoder from the keys that all supported families spell alike; its layers are Llama's.

    A family changes what it has otherwise (`DecoderSpec.with_layers`). `ties_by_default` is what an
    absent `tie_word_embeddings` means to the family in transformers, `ropes` are types of rotary
    positions that only this family has.
    """
    hidden_size = reader.size("hidden_size")
    num_heads = reader.size("num_attention_heads")
    reader.expect("hidden_act", "silu")
    reader.expect("attention_dropout", 0.0, 0)
    reader.expect("is_encoder_decoder", False)
    context = reader.size("max_position_embeddings")
    rope = reader.rope(context, ropes)
    if rope.type == "yarn":
        # published files say the original context there, or already the longer one
        context = min(max(context, int(rope.factor * rope.original_context)), _MOST)
    if "head_dim" not in reader.raw and hidden_size % num_heads:
        reader.problem(
            f"hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}:"
            " give head_dim"
        )
    vocab_size = reader.size("vocab_size")
    num_layers = reader.size("num_hidden_layers", most=_MOST_LAYERS)
    return DecoderSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=reader.size("num_key_value_heads", num_heads),
        head_dim=reader.size("head_dim", max(hidden_size // num_heads, 1)),
        intermediate_size=reader.size("intermediate_size"),
        rms_epsilon=reader.positive("rms_norm_eps"),
        tie_embeddings=reader.take("tie_word_embeddings", bool, ties_by_default),
        max_length=context,
        layers=(LayerSpec(rope),) * num_layers,
        init_std=reader.positive("initializer_range", 0.02),
    )
