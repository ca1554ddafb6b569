"""Writes golden adapters: files as PEFT writes them, and the logits it gives with them.

    python tests/golden/make_lora_golden.py            # every case
    python tests/golden/make_lora_golden.py rslora     # only the named cases

Needs torch, transformers (5.x) and peft (0.21), no GPU; run it in the repository's root, whose
checkpoints beside this file are the bases. Each case becomes a folder under lora/:

    adapter_config.json, adapter_model.safetensors    as `save_pretrained` writes them
    logits.npz      token_ids int32 [B, L], logits float32 [B, L, V]

The logits are computed by reloading the folder as written, in float32 with eager attention. A and
B are large (std 0.3), the rank is 4 and alpha is 7 where nothing else is said, so that a scale of 1
or alpha, or a module that is forgotten, moves the logits by far more than rounding does.
"""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import peft
import torch
import transformers
from make_golden import make_those_asked_for

BASES = pathlib.Path("tests/golden")
HERE = BASES / "lora"
LENGTH = 24
MODULES = [f"self_attn.{name}_proj" for name in "qkvo"]
MODULES += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter of a golden checkpoint; `config` are arguments of peft.LoraConfig."""

    base: str
    config: dict[str, Any]
    seed: int
    dtype: torch.dtype = torch.float32


ALL = {"target_modules": "all-linear"}
CASES = {
    "all_linear": Case("llama", ALL, seed=1),
    # On a tied head, which all-linear leaves out.
    "tied": Case("qwen2_tied", ALL, seed=2),
    "q_and_v": Case("mistral", {"target_modules": ["q_proj", "v_proj"]}, seed=3),
    "unset": Case("qwen3", {}, seed=4),
    "rslora": Case("qwen2_tied", ALL | {"use_rslora": True}, seed=5),
    # The first key that matches counts, so o_proj of layer 1 has rank 2.
    "patterns": Case(
        "qwen3",
        ALL
        | {
            "rank_pattern": {"layers.1.self_attn.o_proj": 2, "o_proj": 6, "down_proj": 3},
            "alpha_pattern": {r".*\.0\.mlp\..*": 3, "v_proj": 20},
        },
        seed=6,
    ),
    "one_layer": Case(
        "llama", {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]}, seed=7
    ),
    # 21 full names, which PEFT makes shorter.
    "full_names": Case(
        "llama",
        {
            "target_modules": [
                f"model.layers.{layer}.{name}" for layer in range(3) for name in MODULES
            ]
        },
        seed=8,
    ),
    "odd_names": Case(
        "llama", {"target_modules": ["0.self_attn.q_proj", "gate_proj", "2.mlp.down_proj"]}, seed=9
    ),
    "expression": Case("olmo2", {"target_modules": r".*\.(self_attn\.o|mlp\.up)_proj"}, seed=10),
    "excluded": Case(
        "qwen2_untied", ALL | {"exclude_modules": ["k_proj", "1.mlp.up_proj"]}, seed=11
    ),
    # A base with biases everywhere.
    "biases": Case("llama_attention_bias", ALL, seed=12),
    "bfloat16": Case("qwen2_untied", ALL, seed=13, dtype=torch.bfloat16),
    # Layers in periods of two.
    "periods": Case("smollm3", ALL, seed=14),
}


def open_base(name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(BASES / name), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def make_case(name: str) -> None:
    """Writes the folder of a case, replacing what is there."""
    case = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    settings = {"r": 4, "lora_alpha": 7, "task_type": "CAUSAL_LM"} | case.config
    model = peft.get_peft_model(open_base(case.base), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
                parameter.data = parameter.data.to(case.dtype)
    model.save_pretrained(folder)  # with names in no order: PEFT has them in sets
    (folder / "README.md").unlink()

    tokens = np.load(BASES / case.base / "logits.npz")["token_ids"][:1, :LENGTH]
    base = open_base(case.base)
    with torch.no_grad():
        before = base(torch.tensor(tokens).long(), use_cache=False).logits
        loaded = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        logits = loaded(torch.tensor(tokens).long(), use_cache=False).logits
    assert torch.isfinite(logits).all() and logits.dtype == torch.float32
    np.savez(folder / "logits.npz", token_ids=tokens, logits=logits.numpy())
    change = (logits - before).abs().max()
    size_kb = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    print(f"{name}: logits move by {change:.2f}, {size_kb:.0f} kB")


if __name__ == "__main__":
    make_those_asked_for(make_case, CASES, __doc__)
