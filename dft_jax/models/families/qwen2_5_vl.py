"""Qwen2.5-VL (arXiv 2502.13923): Qwen2 with multimodal positions, and a tower for images.

The keys of the text stand at the top of a config.json, as in the hub's files, or beneath
`text_config`, as transformers 5 writes them; hf/safetensors.py reads both spellings of its tensors.
"""

import dataclasses

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common, refuse_window
from dft_jax.models.spec import DecoderSpec, MRope, VisionSpec

HF_MODEL_TYPE = "qwen2_5_vl"
TENSORS = llama.TENSORS
# The same of the tower (models/vision.py). Above: once; below: of each block.
TOWER_TENSORS = {
    "patch_embed.kernel": "visual.patch_embed.proj.weight",
    "merger.norm.scale": "visual.merger.ln_q.weight",
    "merger.up.kernel": "visual.merger.mlp.0.weight",
    "merger.up.bias": "visual.merger.mlp.0.bias",
    "merger.down.kernel": "visual.merger.mlp.2.weight",
    "merger.down.bias": "visual.merger.mlp.2.bias",
    #
    "attention_norm.scale": "visual.blocks.{layer}.norm1.weight",
    "qkv.kernel": "visual.blocks.{layer}.attn.qkv.weight",
    "qkv.bias": "visual.blocks.{layer}.attn.qkv.bias",
    "o.kernel": "visual.blocks.{layer}.attn.proj.weight",
    "o.bias": "visual.blocks.{layer}.attn.proj.bias",
    "mlp_norm.scale": "visual.blocks.{layer}.norm2.weight",
    "gate.kernel": "visual.blocks.{layer}.mlp.gate_proj.weight",
    "gate.bias": "visual.blocks.{layer}.mlp.gate_proj.bias",
    "up.kernel": "visual.blocks.{layer}.mlp.up_proj.weight",
    "up.bias": "visual.blocks.{layer}.mlp.up_proj.bias",
    "down.kernel": "visual.blocks.{layer}.mlp.down_proj.weight",
    "down.bias": "visual.blocks.{layer}.mlp.down_proj.bias",
}
_SECTIONS = [16, 24, 24]  # of an absent mrope_section
_USED_TOKENS = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
# What absent ones are. The others are of videos, and of a mark that no processor writes.
_TOKENS = {
    "image_token_id": 151655,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "video_token_id": 151656,
    "vision_token_id": 151654,
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Refuses the sliding window, which no published file switches on."""
    tokens = {key: reader.take(key, int, usual) for key, usual in _TOKENS.items()}
    tower = reader.part("vision_config")
    text = reader.part_or_rest("text_config")
    for key, token in tokens.items():
        # Files of transformers 4.5x repeat them, some as null.
        text.expect(key, token, None)
    spec = _read_text(text)
    for key in _USED_TOKENS:
        if not 0 <= tokens[key] < spec.vocab_size:
            reader.problem(f"{key}={tokens[key]}: vocab_size={spec.vocab_size} has no such token")
    return dataclasses.replace(spec, vision=_read_tower(tower, spec.hidden_size, tokens))


def _read_text(reader: ConfigReader) -> DecoderSpec:
    reader.expect("model_type", "qwen2_5_vl_text", HF_MODEL_TYPE)
    spec = read_common(reader, ropes={"default": _mrope, "mrope": _mrope})
    refuse_window(reader, spec.num_layers)
    for rope in {layer.rope for layer in spec.layers}:
        if isinstance(rope, MRope) and 2 * len(rope.axes) != spec.head_dim:
            reader.problem(
                f"mrope_section={list(rope.sections)} has to add up to half of head_dim,"
                f" {spec.head_dim // 2}"
            )
    return spec.with_layers(qkv_bias=True)


def _mrope(reader: ConfigReader, theta: float, context: int) -> MRope:
    sections = reader.take("mrope_section", list, _SECTIONS)
    is_legal = all(type(size) is int and size >= 0 for size in sections)
    if not is_legal or len(sections) != 3:
        reader.problem(
            f"mrope_section={sections} should be three numbers of dimension pairs: those that turn"
            " by time, row and column"
        )
        sections = _SECTIONS
    # One name for both: `mrope` is the old one, "default" what transformers made of it.
    return MRope(theta, type="mrope", sections=tuple(sections))


def _read_tower(reader: ConfigReader, out_size: int, tokens: dict[str, int]) -> VisionSpec:
    """The tower of `vision_config`; token ids stand outside of it."""
    reader.expect("model_type", "qwen2_5_vl_vision", HF_MODEL_TYPE)
    reader.expect("hidden_act", "silu")
    reader.expect("out_hidden_size", out_size, default=None)
    # Colours, and the frames that a patch of a video has; an image is its own second frame.
    reader.expect("in_channels", 3)
    reader.expect("in_chans", 3)
    reader.expect("temporal_patch_size", 2)
    reader.expect("rope_parameters", None, {"rope_type": "axial", "rope_theta": 10000.0})
    reader.ignore("tokens_per_second")  # of videos
    patch_size = reader.size("patch_size", 14)
    reader.expect("spatial_patch_size", patch_size)
    depth = reader.size("depth", most=1000)
    spec = VisionSpec(
        depth=depth,
        hidden_size=reader.size("hidden_size"),
        num_heads=reader.size("num_heads"),
        intermediate_size=reader.size("intermediate_size"),
        out_size=out_size,
        full_blocks=_full_blocks(reader, depth),
        patch_size=patch_size,
        merge=reader.size("spatial_merge_size", 2),
        window_size=reader.size("window_size", 112),
        image_token=tokens["image_token_id"],
        start_token=tokens["vision_start_token_id"],
        end_token=tokens["vision_end_token_id"],
        init_std=reader.positive("initializer_range", 0.02),
    )
    # Rows and columns each turn a quarter of a head.
    if spec.hidden_size % (4 * spec.num_heads):
        reader.problem(
            f"hidden_size={spec.hidden_size} is no multiple of 4 · num_heads={spec.num_heads}"
        )
    if spec.window_size % (spec.patch_size * spec.merge):
        reader.problem(
            f"window_size={spec.window_size} is no multiple of patch_size={spec.patch_size} ·"
            f" spatial_merge_size={spec.merge}: windows are whole units"
        )
    return spec


def _full_blocks(reader: ConfigReader, depth: int) -> tuple[int, ...]:
    """The blocks with full attention; demanded, since programs differ in what they assume."""
    blocks = reader.take("fullatt_block_indexes", list, None)
    if blocks is None or not all(type(n) is int and 0 <= n < depth for n in blocks):
        reader.problem(
            f"fullatt_block_indexes={blocks} should be a list of blocks from 0 to {depth - 1}"
        )
        return ()
    return tuple(sorted(set(blocks)))
