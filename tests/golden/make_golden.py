"""Writes the golden checkpoints: tiny random models and the logits `transformers` gives for them.

    python tests/golden/make_golden.py            # every case
    python tests/golden/make_golden.py llama3     # only the named cases

Needs torch and transformers (5.x), no GPU. Each case becomes a folder beside this file:

    config.json, model.safetensors (or two shards and an index), generation_config.json
    logits.npz    token_ids int32 [B, L], logits float32 [B, L, V]
    texts.npz     of some cases logits_N float32 [N, V]: those of the first N of token_ids[0] alone
    greedy.npz    what `generate` appends, greedily and with its cache, to the first 5 and the first
                  16 of token_ids[0]

The logits are computed by reloading the folder as written, in float32 with eager attention, so what
is on disk is what they belong to. Weights are large (std 0.2), norm scales scatter around 1 and
biases are far from 0, so that a forgotten bias, scale or rotation moves the logits by far more than
float32 rounding. Long cases run to position 159, five times the 32 positions of the (original)
context: a converter that drops the rope scaling cannot pass them. Seeded per case; the same
versions of torch and transformers write the same bytes.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
CONTEXT = 32  # original context of every case
LONG = (1, 160)  # (B, L): positions up to 5x the context
SHORT = (2, 24)

# Shared by all families. Keys whose default differs between families are given per case.
BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 94,
    "eos_token_id": 95,
}
LLAMA3 = {
    "num_key_value_heads": 2,
    "head_dim": 24,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8 * CONTEXT,
    # theta 5000 with 12 frequencies puts wavelengths in all three of llama3's bands: kept (< 8
    # positions), blended (8 to 32) and divided by the factor (> 32).
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
}


def default_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


QWEN2 = {"num_key_value_heads": 2, "rope_parameters": default_rope(1000.0)}
QWEN2_TIED = QWEN2 | {"tie_word_embeddings": True}
QWEN2_UNTIED = QWEN2 | {"tie_word_embeddings": False}
QWEN3_MOE = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "rope_parameters": default_rope(3000.0),
}
# Head width 24: with theta 1000 and 32 positions, three of the twelve frequencies are blended.
YARN_SIZES = {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT,
}
# Long factors that grow as published ones do; ints are among those too.
PHI3_FACTORS = {
    "short_factor": [1.0, 1, 1.02, 1.05, 1.1, 1.3],
    "long_factor": [1, 1.12, 1.6, 2.4, 3.5, 4],
}
PHI3_LONG_FACTORS = {
    "short_factor": [1.0, 1.0, 1.02, 1.03, 1.05, 1.05, 1.1, 1.2, 1.4],
    "long_factor": [1.05, 1.1, 1.3, 1.7, 2.2, 3.1, 4.5, 6.2, 8.0],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint of a family: `overrides` change the keys of BASE."""

    family: str  # transformers has {family}Config and {family}ForCausalLM (or {model}ForCausalLM)
    overrides: dict[str, Any]
    shape: tuple[int, int]  # of the tokens, (B, L)
    seed: int
    # Further keys of a config.json that is rewritten as transformers 4 wrote it.
    old_schema: dict[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "5GB"
    model: str = ""
    norm_offset: float = 0.0  # what the family adds to the scale of a norm
    # Lengths of texts, the first tokens of token_ids[0], whose logits are written too: of families
    # to which the length of a text makes a difference.
    texts: tuple[int, ...] = ()


CASES = {
    "qwen2_tied": Case("Qwen2", QWEN2_TIED, LONG, seed=1),
    "qwen2_untied": Case("Qwen2", QWEN2_UNTIED | {"num_hidden_layers": 3}, SHORT, seed=2),
    # Multi-head attention, no grouping, as DeepSeekMath-7B.
    "llama": Case(
        "Llama",
        {
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "rope_parameters": default_rope(2000.0),
        },
        LONG,
        seed=3,
    ),
    "llama_linear": Case(
        "Llama",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 2000.0, "factor": 4.0},
            "max_position_embeddings": 4 * CONTEXT,
        },
        LONG,
        seed=4,
    ),
    "llama3": Case("Llama", LLAMA3, LONG, seed=5),
    "llama3_oldschema": Case(
        "Llama",
        LLAMA3,
        LONG,
        seed=5,
        old_schema={"transformers_version": "4.45.0.dev0", "pretraining_tp": 1},
    ),
    "qwen2_oldschema": Case(
        "Qwen2",
        QWEN2_TIED,
        LONG,
        seed=6,
        # As in the published Qwen2.5-Math files: an integer rope_theta, and a window that is given
        # but switched off (8 here, so that a loader which applies it shows).
        old_schema={
            "transformers_version": "4.44.0",
            "rope_theta": 1000,
            "sliding_window": 8,
            "use_sliding_window": False,
            "max_window_layers": 1,
            "use_mrope": False,
        },
    ),
    "llama_attention_bias": Case(
        "Llama",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": default_rope(500.0),
        },
        SHORT,
        seed=7,
    ),
    "qwen3": Case(
        "Qwen3",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": default_rope(3000.0),
        },
        LONG,
        seed=8,
    ),
    "mistral": Case(
        "Mistral",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": default_rope(1000.0),
        },
        (1, 64),
        seed=9,
    ),
    "qwen2_sharded": Case("Qwen2", QWEN2_UNTIED, SHORT, seed=10, max_shard_size="50KB"),
    "qwen2_bf16": Case(
        "Qwen2", QWEN2_UNTIED | {"num_hidden_layers": 3}, SHORT, seed=11, dtype=torch.bfloat16
    ),
    "qwen2_yarn": Case(
        "Qwen2",
        QWEN2_TIED | YARN_SIZES | {"rope_parameters": YARN_ROPE},
        LONG,
        seed=12,
        # As Qwen2.5's model card has it: the context is still the original one.
        old_schema={
            "transformers_version": "4.44.0",
            "use_sliding_window": False,
            "max_window_layers": 1,
            "sliding_window": 8,
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT,
                "type": "yarn",
            },
        },
    ),
    # The same with all that a file may set: a ramp over fractions of a dimension, from 0.9 to 5.2.
    "llama_yarn": Case(
        "Llama",
        {
            "hidden_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8 * CONTEXT,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "original_max_position_embeddings": CONTEXT,
                "beta_fast": 3.0,
                "beta_slow": 0.25,
                "truncate": False,
                "mscale": 0.707,
                "mscale_all_dim": 1.2,
            },
        },
        LONG,
        seed=13,
    ),
    # Fewer key/value heads, as in the 32B model: its two norms have different widths.
    "olmo2": Case(
        "Olmo2",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "pad_token_id": 0,
            "rope_parameters": default_rope(1000.0),
        },
        LONG,
        seed=14,
    ),
    # Every second layer without positions: one loop over periods of two layers.
    "smollm3": Case(
        "SmolLM3",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "no_rope_layer_interval": 2,
            "rope_parameters": default_rope(1000.0),
        },
        LONG,
        seed=15,
    ),
    # A list without a period, and a window on the layers without positions, which the key alone
    # brings about: `layer_types` is left out, as an older file may.
    "smollm3_window": Case(
        "SmolLM3",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_hidden_layers": 5,
            "pad_token_id": 0,
            "no_rope_layers": [1, 1, 0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": default_rope(1000.0),
        },
        (1, 64),
        seed=16,
        # As in the published SmolLM3-3B file, which has these notes of other programs.
        old_schema={
            "transformers_version": "4.54.0.dev0",
            "pretraining_tp": 2,
            "max_window_layers": 3,
            "rope_scaling": None,
        },
    ),
    # Two layers of three with a window and the smaller base; queries are scaled by another number
    # than the width of a head, and the layers without a window stretch their positions.
    "gemma3": Case(
        "Gemma3Text",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 6,
            "head_dim": 16,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 9,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "max_position_embeddings": 8 * CONTEXT,
            "rope_parameters": {
                "sliding_attention": default_rope(100.0),
                "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 4.0},
            },
        },
        LONG,
        seed=17,
        model="Gemma3",
        norm_offset=1.0,
    ),
    # A part of each head turns; the whole text is within the original context of 64.
    "phi3": Case(
        "Phi3",
        {
            "hidden_size": 64,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "sliding_window": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
                **PHI3_FACTORS,
            },
        },
        (1, 64),
        seed=18,
        # As in the published file of Phi-4-mini-instruct, with notes of the program that trained it
        # and the code that transformers has classes in place of.
        old_schema={
            "transformers_version": "4.45.0",
            "attention_bias": False,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
                "AutoTokenizer": "Xenova/gpt-4o",
            },
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope", **PHI3_FACTORS},
        },
    ),
    # Texts on both sides of the original context; `generate` goes beyond it midway.
    "phi3_long": Case(
        "Phi3",
        YARN_SIZES
        | {
            "pad_token_id": 0,
            "max_position_embeddings": 8 * CONTEXT,
            "original_max_position_embeddings": CONTEXT,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
                **PHI3_LONG_FACTORS,
            },
        },
        LONG,
        seed=19,
        texts=(20, CONTEXT, CONTEXT + 1, 48),
    ),
    # As Phi-3-mini-4k: a window, positions as they are, no grouping.
    "phi3_window": Case(
        "Phi3",
        {
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "pad_token_id": 0,
            "original_max_position_embeddings": CONTEXT,
            "sliding_window": 8,
            "rope_parameters": default_rope(1000.0),
        },
        (1, 64),
        seed=20,
        max_shard_size="50KB",
    ),
    # The second layer of four is dense; shares of a token's experts add up to 1, as in the
    # published files.
    "qwen3_moe": Case(
        "Qwen3Moe",
        QWEN3_MOE | {"num_hidden_layers": 4, "mlp_only_layers": [1], "norm_topk_prob": True},
        LONG,
        seed=18,
    ),
    # Every second layer is dense, shares are as softmax has them, and the keys are those of the
    # hub's files: `num_experts`, which transformers 5 writes under another name.
    "qwen3_moe_oldschema": Case(
        "Qwen3Moe",
        QWEN3_MOE | {"decoder_sparse_step": 2, "norm_topk_prob": False},
        SHORT,
        seed=19,
        old_schema={
            "transformers_version": "4.51.0",
            "num_experts": 6,
            "max_window_layers": 2,
            "rope_scaling": None,
            "sliding_window": None,
        },
    ),
    "mixtral": Case(
        "Mixtral",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": default_rope(1000.0),
        },
        (1, 64),
        seed=20,
    ),
}


def random_weights(model: torch.nn.Module, seed: int, norm_offset: float = 0.0) -> None:
    """Overwrites every parameter: norm scales 1 ± 0.2, with what the family adds to them, biases
    ± 0.5, matrices ± 0.2 (std).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 - norm_offset + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.2 * noise)


def to_old_schema(path: pathlib.Path, extra: dict[str, Any]) -> None:
    """Rewrites config.json with the keys of transformers 4 for positions and types."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "num_experts" in extra:
        del config["num_local_experts"]  # what transformers 5 calls it
    config = {key: value for key, value in config.items() if value is not None} | extra
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def greedy(model: torch.nn.Module, token_ids: torch.Tensor) -> dict[str, np.ndarray]:
    """{"after_5": int32 [40], "after_16": int32 [40]}, nothing stopping them."""
    made = {}
    for n_prompt in (5, 16):
        prompt = token_ids[:, :n_prompt]
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        made[f"after_{n_prompt}"] = ids[0, n_prompt:].numpy().astype(np.int32)
    return made


def make_case(name: str) -> None:
    """Writes the folder of a case, replacing what is there."""
    case = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    config_class = getattr(transformers, f"{case.family}Config")
    model_class = getattr(transformers, f"{case.model or case.family}ForCausalLM")
    config = config_class(**BASE | case.overrides)
    model = model_class(config)
    random_weights(model, case.seed, case.norm_offset)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.max_shard_size)
    if case.old_schema is not None:
        to_old_schema(folder / "config.json", case.old_schema)

    generator = torch.Generator().manual_seed(1000 + case.seed)
    token_ids = torch.randint(config.vocab_size, case.shape, generator=generator)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = reloaded(token_ids, use_cache=False).logits
    assert torch.isfinite(logits).all() and logits.dtype == torch.float32
    texts = {}
    for length in case.texts:
        with torch.no_grad():
            alone = reloaded(token_ids[:1, :length], use_cache=False).logits
        texts[f"logits_{length}"] = alone[0].numpy()
    if texts:
        np.savez(folder / "texts.npz", **texts)
    np.savez(folder / "greedy.npz", **greedy(reloaded, token_ids[:1]))
    np.savez(
        folder / "logits.npz", token_ids=token_ids.numpy().astype(np.int32), logits=logits.numpy()
    )
    size_kb = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    print(f"{name}: logits {tuple(logits.shape)}, std {logits.std():.2f}, {size_kb:.0f} kB")


def make_those_asked_for(
    make: Callable[[str], None], cases: Collection[str], description: str | None
) -> None:
    """The command line of a script that makes golden cases: all, or those that it names."""
    known = ", ".join(cases)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {known}")
    names = parser.parse_args().cases or list(cases)
    unknown = sorted(set(names) - set(cases))
    if unknown:
        parser.error(f"unknown cases {unknown}; choose from {known}")
    torch.set_num_threads(1)
    for name in names:
        make(name)


if __name__ == "__main__":
    make_those_asked_for(make_case, CASES, __doc__)
