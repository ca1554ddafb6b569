"""The rows of both tables: what is measured, and what it should be."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A measure with its floor and its aim, if it has them; `better` says which way is good."""

    id: str
    measure: str
    floor: float | None = None
    aim: float | None = None
    better: str = "higher"
    unit: str = "×"  # of the value

    def verdict(self, value: float) -> str:
        """`aim`, `floor` or `below`: which of the two the value reaches."""
        if self.floor is None:
            return "no target"
        sign = 1 if self.better == "higher" else -1
        return next(
            (name for name in ("aim", "floor") if sign * (value - getattr(self, name)) >= 0),
            "below",
        )


CPU = [
    Target("trl_T_tuned", "step against TRL dft fp32, T, tuned", 1.05, 1.2),
    Target("trl_T_default", "step against TRL dft fp32, T, default", 1.4, 1.7),
    Target("trl_V_tuned", "step against TRL dft fp32, V, tuned", 1.5, 2.0),
    Target("trl_V_default", "step against TRL dft fp32, V, default", 1.8, 2.3),
    Target("trl_as_installed_T", "step against TRL's defaults, T", 2.2, 3.0),
    Target("trl_as_installed_V", "step against TRL's defaults, V", 2.2, 3.0),
    Target("tunix_T_tuned", "step against Tunix, T, tuned", 1.4, 1.7),
    Target("tunix_T_default", "step against Tunix, T, default", 1.4, 1.7),
    Target("tunix_V_tuned", "step against Tunix, V, tuned", 1.2, 1.5),
    Target("tunix_V_default", "step against Tunix, V, default", 1.2, 1.5),
    Target("torch_T_tuned", "step against a bare PyTorch loop, T, tuned", 0.75, 0.9),
    Target("torch_V_tuned", "step against a bare PyTorch loop, V, tuned", 0.75, 0.9),
    Target("torch_trained_T_tuned", "… whose head sees trained tokens only, T, tuned"),
    Target("torch_trained_V_tuned", "… whose head sees trained tokens only, V, tuned"),
    Target("dft_over_sft_T", "DFT ÷ SFT step time, T", 1.03, 1.01, "lower"),
    Target("dft_over_sft_V", "DFT ÷ SFT step time, V", 1.03, 1.01, "lower"),
    Target("packing", "useful tokens/s, packed against padding to 2048", 3.2, 4.0),
    Target("packing_dynamic", "useful tokens/s, packed against padding to the longest of eight"),
    Target(
        "efficiency_gsm8k", "packing efficiency within 256 examples, GSM8K", 0.975, 0.985, unit=""
    ),
    Target("efficiency_math", "… lengths of mathematical data (drawn)", 0.975, 0.985, unit=""),
    Target("generation", "generation, V, batch 16, against transformers.generate", 1.6, 2.5),
    Target("startup", "warm ÷ cold time to the first step", 0.3, 0.22, "lower"),
    Target("compilations", "compilations after the first step", 0, 0, "lower", unit=""),
    Target("compile_layers", "compile time, 16 layers ÷ 4 layers", 1.3, 1.1, "lower"),
]

# Ratios that depend on the processor: they are kept for each that they were measured on.
BY_PROCESSOR = [
    target
    for target in CPU
    if target.id.startswith(("trl_", "tunix_", "torch_", "dft_over_sft_"))
    and not target.id.endswith("default")
    and "as_installed" not in target.id
]

GPU = [
    Target("ceilings", "ceiling: a product of 8192³ in bfloat16", unit="TF/s"),
    Target("ceilings_copy", "ceiling: a copy of 2 GiB, read and written", unit="GB/s"),
    Target(
        "train_1.5b",
        "1.5B full fine-tuning, packed 2048, tokens/s",
        45_000,
        55_000,
        unit="tokens/s",
    ),
    Target("train_1.5b_mfu", "… model FLOPs utilisation of 989 TF/s", 0.45, 0.55, unit=""),
    Target("train_7b", "7B (bf16 parameters), tokens/s", 9_500, 12_000, unit="tokens/s"),
    Target("train_7b_mfu", "… model FLOPs utilisation", unit=""),
    Target("train_8b", "Llama-8B (bf16 parameters), tokens/s", 9_000, 11_000, unit="tokens/s"),
    Target("train_8b_mfu", "… model FLOPs utilisation", unit=""),
    Target("torch_eager", "1.5B against PyTorch eager with sdpa attention", 1.3, 1.5),
    Target("torch_fused", "1.5B against PyTorch with TRL's fused head", 1.1, 1.25),
    Target("recipe", "samples/s against the official recipe's style", 4.0, 5.0),
    Target("head", "head, 16,384 tokens, forward + backward", 48, 40, "lower", "ms"),
    Target("head_memory", "… extra memory", 6, 4.5, "lower", "GiB"),
    Target("head_dft_over_sft", "DFT ÷ SFT head time", 1.02, 1.01, "lower"),
    Target("optimizer", "optimizer update 1.5B", 16, 14, "lower", "ms"),
    Target(
        "decode_1.5b",
        "decode 1.5B, batch 256–512, context 700, tokens/s",
        30_000,
        55_000,
        unit="tokens/s",
    ),
    Target("decode_7b", "decode 7B, tokens/s", 12_000, 17_000, unit="tokens/s"),
]
