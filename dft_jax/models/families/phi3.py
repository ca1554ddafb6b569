"""Phi-3, Phi-3.5 and Phi-4 mini (arXiv 2404.14219, 2503.01743): Llama with LongRoPE, of which some
turn a part of each head, and with queries, keys and values in one tensor.
"""

import functools
import math

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec, LongRope, PartialRope, Rope

HF_MODEL_TYPE = "phi3"
# Parameters with one name are joined along its rows, in the order of this table.
TENSORS = llama.TENSORS | {
    "attention.q.kernel": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "attention.k.kernel": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "attention.v.kernel": "model.layers.{layer}.self_attn.qkv_proj.weight",
    "mlp.gate.kernel": "model.layers.{layer}.mlp.gate_up_proj.weight",
    "mlp.up.kernel": "model.layers.{layer}.mlp.gate_up_proj.weight",
}
# What the published files have in `auto_map`: classes that transformers has under the same names,
# and a tokenizer beside the one in the folder. Other code is refused.
REPLACED_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    "AutoTokenizer": "Xenova/gpt-4o",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Every layer is the same."""
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        reader.expect(key, False)
    # Of the program that trained it: every layer attends to all, and positions are as they are.
    reader.expect("full_attn_mod", 1)
    reader.expect("interpolate_factor", 1)
    reader.expect("resid_pdrop", 0.0)
    reader.expect("embd_pdrop", 0.0)
    window = reader.size("sliding_window", None)
    share = _take_share(reader)
    original = reader.size("original_max_position_embeddings", None)
    default = functools.partial(_partial_rope, share=share)
    long = functools.partial(_long_rope, share=share, original=original)
    # `su` is the older name of longrope. An old `yarn` means other positions to each program.
    spec = read_common(reader, ropes={"default": default, "longrope": long, "su": long})
    _check_widths(reader, spec)
    if window is not None and window >= spec.max_length:
        window = None  # no text is long enough for it to hide anything
    return spec.with_layers(sliding_window=window)


def _take_share(reader: ConfigReader) -> float:
    """Of a head's dimensions those that turn: a key by itself, or one of the rotary settings."""
    share = reader.positive("partial_rotary_factor", 1.0)
    if share > 1:
        reader.problem(f"partial_rotary_factor={share} should be at most 1")
        return 1.0
    return share


def _partial_rope(reader: ConfigReader, theta: float, context: int, *, share: float) -> Rope:
    share = _agreeing_share(reader, share)
    # Without effect here, as outside of the settings.
    reader.ignore("original_max_position_embeddings")
    return Rope(theta) if share == 1 else PartialRope(theta, share=share)


def _agreeing_share(reader: ConfigReader, outer: float) -> float:
    """That of the settings, which counts for transformers; another one outside is a problem."""
    share = reader.take("partial_rotary_factor", float, outer)
    if outer not in (1.0, share):
        reader.problem(f"partial_rotary_factor={share}, but outside it is {outer}; keep one")
    if not 0 < share <= 1:
        reader.problem(f"partial_rotary_factor={share} should be above 0 and at most 1")
        return 1.0
    return share


def _long_rope(
    reader: ConfigReader, theta: float, context: int, *, share: float, original: int | None
) -> LongRope:
    """Absent keys mean what they mean to transformers, but for the original context.

    That stands outside of the settings; transformers would assume 4096 where it is absent, even
    beside another one within them.
    """
    inner = reader.size("original_max_position_embeddings", original)
    if original is None:
        reader.problem(
            "original_max_position_embeddings is missing beside max_position_embeddings"
            " (transformers would assume 4096); add it"
        )
    elif inner != original:
        reader.problem(
            f"original_max_position_embeddings={inner}, but outside it is {original}; keep one"
        )
    original = original or context
    if original < 2:
        reader.problem(f"original_max_position_embeddings={original} should be at least 2")
        original = 2
    factor = reader.positive("factor", context / original)
    return LongRope(
        theta,
        type="longrope",
        factor=factor,
        original_context=original,
        share=_agreeing_share(reader, share),
        short_factors=_take_factors(reader, "short_factor"),
        long_factors=_take_factors(reader, "long_factor"),
        attention_factor=reader.positive("attention_factor", _attention_factor(factor, original)),
    )


def _attention_factor(factor: float, original: int) -> float:
    """What cos and sin are multiplied by (arXiv 2402.13753): attention to `factor` times as many
    tokens has a larger entropy, against which logits are scaled.
    """
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _take_factors(reader: ConfigReader, key: str) -> tuple[float, ...]:
    """A number for each pair of dimensions that turns."""
    given = reader.take(key, list, [])
    if not given:
        reader.problem(
            f"{key!r} is missing; it has a number for each pair of dimensions that turns"
        )
    factors = []
    for number, value in enumerate(given):
        one = ConfigReader({f"{key}[{number}]": value}, reader.place)
        factors.append(one.positive(f"{key}[{number}]"))
        reader.problems += one.problems
    return tuple(factors)


def _check_widths(reader: ConfigReader, spec: DecoderSpec) -> None:
    """Whole pairs of dimensions turn, and each pair has a factor."""
    rope = spec.layers[0].rope
    assert rope is not None, "every type of it gives one"
    width = rope.width(spec.head_dim)
    if width % 2 or not width:
        reader.problem(
            f"partial_rotary_factor={rope.share} turns {width} of head_dim={spec.head_dim}"
            " dimensions, which should be an even number"
        )
    if not isinstance(rope, LongRope):
        return
    for key, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if len(factors) != width // 2:
            reader.problem(
                f"rope: {key} has {len(factors)} numbers, and {width // 2} pairs of dimensions turn"
            )
