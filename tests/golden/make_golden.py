"""Write the golden checkpoints: tiny random HF models and the logits `transformers` gives for them.

    python tests/golden/make_golden.py            # every case; needs torch and transformers (5.x), no GPU
    python tests/golden/make_golden.py llama3     # only the named cases

Each case becomes a folder beside this file:

    config.json, model.safetensors (or two shards and an index), generation_config.json
    logits.npz    token_ids int32 [B, L], logits float32 [B, L, V]
    greedy.npz    what `generate` appends, greedily and with its cache, to the first 5 and the first 16 of token_ids[0]

The logits are computed by reloading the folder as written, in float32 with eager attention, so what
is on disk is what they belong to. Weights are large (std 0.2), norm scales scatter around 1 and
biases are far from 0, so that a forgotten bias, scale or rotation moves the logits by far more than
float32 rounding. Long cases run to position 159, five times the 32 positions of the (original)
context: a converter that drops the rope scaling cannot pass them. Seeded per case; the same
versions of torch and transformers write the same bytes.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
CONTEXT = 32  # original context of every case
LONG = (1, 160)  # (B, L): positions up to 5x the context
SHORT = (2, 24)

# Shared by all families. Keys whose default differs between families are given per case.
BASE = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=CONTEXT, bos_token_id=94, eos_token_id=95,
)  # fmt: skip
LLAMA3_ROPE = dict(
    # theta 5000 with 12 frequencies puts wavelengths in all three of llama3's bands: kept (< 8
    # positions), blended (8 to 32) and divided by the factor (> 32).
    rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=CONTEXT,
)  # fmt: skip
LLAMA3 = dict(
    num_key_value_heads=2, head_dim=24, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE,
    max_position_embeddings=8 * CONTEXT,
)  # fmt: skip


def default_rope(theta: float) -> dict:
    return dict(rope_type="default", rope_theta=theta)


YARN_SIZES = dict(hidden_size=48, num_attention_heads=2, num_key_value_heads=1)
YARN_ROPE = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=CONTEXT)
QWEN2 = dict(num_key_value_heads=2, rope_parameters=default_rope(1000.0))

# name -> (family, config overrides, (B, L), seed). Options of single cases are below.
CASES = {
    "qwen2_tied": ("Qwen2", QWEN2 | dict(tie_word_embeddings=True), LONG, 1),
    "qwen2_untied": (
        "Qwen2",
        QWEN2 | dict(tie_word_embeddings=False, num_hidden_layers=3),
        SHORT,
        2,
    ),
    # Multi-head attention, no grouping, as DeepSeekMath-7B.
    "llama": (
        "Llama",
        dict(num_key_value_heads=4, num_hidden_layers=3, rope_parameters=default_rope(2000.0)),
        LONG,
        3,
    ),
    "llama_linear": (
        "Llama",
        dict(
            num_key_value_heads=4,
            rope_parameters=dict(rope_type="linear", rope_theta=2000.0, factor=4.0),
            max_position_embeddings=4 * CONTEXT,
        ),
        LONG,
        4,
    ),
    "llama3": ("Llama", LLAMA3, LONG, 5),
    "llama3_oldschema": ("Llama", LLAMA3, LONG, 5),
    "qwen2_oldschema": ("Qwen2", QWEN2 | dict(tie_word_embeddings=True), LONG, 6),
    "llama_attention_bias": (
        "Llama",
        dict(
            num_key_value_heads=2,
            head_dim=16,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=default_rope(500.0),
        ),
        SHORT,
        7,
    ),
    "qwen3": (
        "Qwen3",
        dict(
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=default_rope(3000.0),
        ),
        LONG,
        8,
    ),
    "mistral": (
        "Mistral",
        dict(
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=8,
            rope_parameters=default_rope(1000.0),
        ),
        (1, 64),
        9,
    ),
    # Fewer key/value heads, as in the 32B model: its two norms have different widths.
    "olmo2": (
        "Olmo2",
        dict(
            num_key_value_heads=2,
            num_hidden_layers=3,
            pad_token_id=0,
            rope_parameters=default_rope(1000.0),
        ),
        LONG,
        14,
    ),
    # Every second layer without positions: one loop over periods of two layers.
    "smollm3": (
        "SmolLM3",
        dict(
            num_key_value_heads=2,
            num_hidden_layers=4,
            pad_token_id=0,
            no_rope_layer_interval=2,
            rope_parameters=default_rope(1000.0),
        ),
        LONG,
        15,
    ),
    # A list without a period, and a window on the layers without positions, which the key alone
    # brings about: `layer_types` is left out, as an older file may.
    "smollm3_window": (
        "SmolLM3",
        dict(
            num_key_value_heads=2,
            head_dim=16,
            num_hidden_layers=5,
            pad_token_id=0,
            no_rope_layers=[1, 1, 0, 1, 0],
            use_sliding_window=True,
            sliding_window=8,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            rope_parameters=default_rope(1000.0),
        ),
        (1, 64),
        16,
    ),
    # Head width 24: with theta 1000 and 32 positions, three of the twelve frequencies are blended.
    "qwen2_yarn": (
        "Qwen2",
        QWEN2
        | YARN_SIZES
        | dict(tie_word_embeddings=True, rope_parameters=YARN_ROPE | dict(rope_theta=1000.0)),
        LONG,
        12,
    ),
    # The same with all that a file may set: a ramp over fractions of a dimension, from 0.9 to 5.2.
    "llama_yarn": (
        "Llama",
        YARN_SIZES
        | dict(
            num_key_value_heads=2,
            max_position_embeddings=8 * CONTEXT,
            rope_parameters=YARN_ROPE
            | dict(rope_theta=1000.0, factor=8.0, beta_fast=3.0, beta_slow=0.25, truncate=False)
            | dict(mscale=0.707, mscale_all_dim=1.2),
        ),
        LONG,
        13,
    ),
    "qwen2_sharded": ("Qwen2", QWEN2 | dict(tie_word_embeddings=False), SHORT, 10),
    "qwen2_bf16": (
        "Qwen2",
        QWEN2 | dict(tie_word_embeddings=False, num_hidden_layers=3),
        SHORT,
        11,
    ),
}
SAVE_OPTIONS = {"qwen2_sharded": dict(max_shard_size="50KB")}
SAVED_DTYPE = {"qwen2_bf16": torch.bfloat16}
# Cases whose config.json is rewritten as transformers 4 wrote it, with the further keys of the
# published files.
OLD_SCHEMA = {
    "llama3_oldschema": dict(transformers_version="4.45.0.dev0", pretraining_tp=1),
    "qwen2_oldschema": dict(
        # As in the published Qwen2.5-Math files: an integer rope_theta, and a window that is given
        # but switched off (8 here, so that a loader which applies it shows).
        transformers_version="4.44.0", rope_theta=1000, sliding_window=8, use_sliding_window=False,
        max_window_layers=1, use_mrope=False,
    ),
    # As in the published SmolLM3-3B file, which has these notes of other programs.
    "smollm3_window": dict(
        transformers_version="4.54.0.dev0", pretraining_tp=2, max_window_layers=3, rope_scaling=None,
    ),
    # As Qwen2.5's model card has it: the context is still the original one.
    "qwen2_yarn": dict(
        transformers_version="4.44.0", use_sliding_window=False, max_window_layers=1, sliding_window=8,
        rope_scaling=dict(factor=4.0, original_max_position_embeddings=CONTEXT, type="yarn"),
    ),
}  # fmt: skip


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Overwrites every parameter: norm scales 1 ± 0.2, biases ± 0.5, matrices ± 0.2 (one standard
    deviation).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_((0.5 if name.endswith("bias") else 0.2) * noise)


def to_old_schema(path: pathlib.Path, extra: dict) -> None:
    """Rewrites config.json: `rope_parameters` to `rope_theta` and `rope_scaling`, `dtype` to
    `torch_dtype`.
    """
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config = {key: value for key, value in config.items() if value is not None} | extra
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def greedy(model: torch.nn.Module, token_ids: torch.Tensor) -> dict[str, np.ndarray]:
    """{"after_5": int32 [40], "after_16": int32 [40]}, nothing stopping them."""
    options = dict(max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    made = {}
    for n_prompt in (5, 16):
        prompt = token_ids[:, :n_prompt]
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        made[f"after_{n_prompt}"] = ids[0, n_prompt:].numpy().astype(np.int32)
    return made


def make_case(name: str) -> None:
    family, overrides, (batch, length), seed = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config = getattr(transformers, f"{family}Config")(**BASE | overrides)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    random_weights(model, seed)
    model.to(SAVED_DTYPE.get(name, torch.float32)).save_pretrained(
        folder, **SAVE_OPTIONS.get(name, {})
    )
    if name in OLD_SCHEMA:
        to_old_schema(folder / "config.json", OLD_SCHEMA[name])

    generator = torch.Generator().manual_seed(1000 + seed)
    token_ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = reloaded(token_ids, use_cache=False).logits
    assert torch.isfinite(logits).all() and logits.dtype == torch.float32
    np.savez(folder / "greedy.npz", **greedy(reloaded, token_ids[:1]))
    np.savez(
        folder / "logits.npz", token_ids=token_ids.numpy().astype(np.int32), logits=logits.numpy()
    )
    size_kb = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    print(f"{name}: logits {tuple(logits.shape)}, std {logits.std():.2f}, {size_kb:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}"
    )
    names = parser.parse_args().cases or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        parser.error(f"unknown cases {unknown}; choose from {', '.join(CASES)}")
    torch.set_num_threads(1)
    for name in names:
        make_case(name)


if __name__ == "__main__":
    main()
