"""SmolLM3: Llama without positions in some layers, by default every fourth (arXiv 2501.18795)."""

import dataclasses

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import (
    FULL,
    SLIDING,
    ConfigReader,
    read_common,
    take_layer_types,
)
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "smollm3"
TENSORS = llama.TENSORS


def read(reader: ConfigReader) -> DecoderSpec:
    """Layers differ in positions, and in the window where one is switched on."""
    attention_bias = reader.take("attention_bias", bool, False)
    mlp_bias = reader.take("mlp_bias", bool, False)
    # notes of other programs, in the published file
    reader.ignore("pretraining_tp", "max_window_layers")
    spec = read_common(reader, ties_by_default=True)
    spec = spec.with_layers(qkv_bias=attention_bias, o_bias=attention_bias, mlp_bias=mlp_bias)
    rotated = _rotated_layers(reader, spec.num_layers)
    windows = _windows(reader, rotated)
    layers = []
    for layer, is_rotated, window in zip(spec.layers, rotated, windows, strict=True):
        if not is_rotated:
            layer = dataclasses.replace(layer, rope=None)
        layers.append(dataclasses.replace(layer, sliding_window=window))
    return dataclasses.replace(spec, layers=tuple(layers))


def _rotated_layers(reader: ConfigReader, num_layers: int) -> list[bool]:
    """Which layers have positions: those with a 1 in `no_rope_layers`, despite its name."""
    # Layers interval, 2 · interval, … have none, unless the list says more.
    interval = reader.size("no_rope_layer_interval", 4)
    flags = reader.take("no_rope_layers", list, None)
    if flags is None:
        return [number % interval != 0 for number in range(1, num_layers + 1)]
    is_legal = all(type(flag) is int and flag in (0, 1) for flag in flags)
    if not is_legal or len(flags) != num_layers:
        reader.problem(
            f"no_rope_layers={flags} should have a 0 (no positions) or 1 for each of the"
            f" {num_layers} layers"
        )
        return [True] * num_layers
    return [flag == 1 for flag in flags]


def _windows(reader: ConfigReader, rotated: list[bool]) -> list[int | None]:
    """The window of each layer: by default of those without positions, if it is switched on."""
    is_on = reader.take("use_sliding_window", bool, False)
    window = reader.size("sliding_window", None)
    default = []
    for is_rotated in rotated:
        slides = is_on and window is not None and not is_rotated
        default.append(SLIDING if slides else FULL)
    types = take_layer_types(reader, default)
    if SLIDING in types and (window is None or not is_on):
        reader.problem(
            f"layer_types has {SLIDING!r}, but use_sliding_window={is_on} and"
            f" sliding_window={window}: programs differ in what they make of that"
        )
    return [window if kind == SLIDING else None for kind in types]
