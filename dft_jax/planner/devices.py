"""What a plan is for: devices and their memory, and the architectures of a few models."""

import dataclasses
from pathlib import Path

from dft_jax.models.attention import select
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import DecoderSpec
from dft_jax.models.spec import ExpertsSpec, LayerSpec, LongRope, MRope, Rope, VisionSpec
from dft_jax.runtime import errors, hub

# Memory of one device as its maker gives it (cloud.google.com/tpu/docs: one page for each version;
# NVIDIA's datasheets of A100, H100, H200 and DGX B200). What they write as GB, drivers report as
# GiB within 1 %: 81,559 MiB for an H100.
DEVICES_GIB = {
    "v4": 32,
    "v5e": 16,
    "v5p": 95,
    "v6e": 32,
    "a100-40": 40,
    "a100": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
}
# Bytes/s between one device and its host, each way: of TPUs by "How to Scale Your Model"
# (jax-ml.github.io/scaling-book/tpus), of GPUs half of what NVIDIA's datasheets give for PCIe.
_HOST_RATES = {"v6e": 32e9, "a100-40": 32e9, "a100": 32e9, "h100": 64e9, "h200": 64e9, "b200": 64e9}
_HOST_RATE = 16e9  # of older TPUs
# Of NVIDIA's (developer.nvidia.com/cuda-gpus); the others are TPUs.
_CAPABILITIES = {
    "a100-40": "8.0",
    "a100": "8.0",
    "h100": "9.0",
    "h200": "9.0",
    "b200": "10.0",
}


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that need not be there, as JAX would describe it."""

    device_kind: str
    platform: str
    compute_capability: str = "none"

    def attention(self, asked: str, c: DecoderSpec, compute_dtype: str, ways: int = 1) -> str:
        """The backend that config.model.attention, `asked`, comes to here, with rows cut over so
        many devices.

        Raises:
          UserError: one that is asked for by name cannot attend in such rows.
        """
        problem = select.uncut(asked, ways)
        if problem:
            raise errors.UserError(f"config.model.attention={asked!r} {problem}; use auto")
        return select.foreseen(asked, self, c, compute_dtype, ways)


CPU = Device("cpu", "cpu")


def described(name: str) -> Device:
    """One of DEVICES_GIB."""
    if name in _CAPABILITIES:
        return Device(name, "gpu", _CAPABILITIES[name])
    return Device(name, "tpu")


def host_rate(name: str) -> float:
    """Bytes/s from one of DEVICES_GIB to its host, and as many back."""
    return _HOST_RATES.get(name, _HOST_RATE)


# Shares of it: below the first a step fits, above the second it does not.
# The rest is for what nobody plans: a driver's context, buffers of collectives, workspaces of
# matrix products, and that XLA may keep more than it must: 7 % above the account in float32, a
# TPU's compiler 26 % under `full`, which SURE does not cover (experiments/planner). On a GPU, JAX
# takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
SURE = 0.85
MOST = 0.95


def verdict(gib: float, has_gib: float) -> str:
    """`fits`, `tight` (it may or may not), or by how much it does not fit."""
    if gib <= SURE * has_gib:
        return "fits"
    if gib <= MOST * has_gib:
        return "tight"
    return f"does not fit by {gib - MOST * has_gib:.1f}"


def _shape(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    vocabulary: int,
    tied: bool,
    context: int,
    bias: bool = False,
) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        intermediate_size=feed_forward,
        rms_epsilon=1e-6,
        tie_embeddings=tied,
        max_length=context,
        layers=(LayerSpec(Rope(1e4), qkv_bias=bias),) * layers,
    )


def _phi4_mini() -> DecoderSpec:
    """A part of each head turns; what its factors are makes no difference to a plan."""
    rope = LongRope(1e4, type="longrope", original_context=4096, share=0.75)
    ones = (1.0,) * 48
    rope = dataclasses.replace(rope, short_factors=ones, long_factors=ones)
    shape = _shape(3072, 32, 24, 8, 8192, 200064, True, 131072)
    return dataclasses.replace(shape.with_layers(rope=rope), family="phi3")


def _qwen3_30b_a3b() -> DecoderSpec:
    """128 experts in each layer, of which a token goes through 8 (arXiv 2505.09388)."""
    shape = _shape(2048, 48, 32, 4, 6144, 151936, False, 40960)
    experts = ExpertsSpec(count=128, per_token=8, width=768, normalised=True)
    shape = shape.with_layers(qk_norm="head", feed_forward="experts")
    return dataclasses.replace(shape, experts=experts, family="qwen3_moe")


def _with_tower(text: DecoderSpec) -> DecoderSpec:
    """Qwen2.5-VL: the tower is the same for all sizes but for its features (arXiv 2502.13923)."""
    rope = MRope(1e6, type="mrope", sections=(16, 24, 24))
    tower = VisionSpec(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        out_size=text.hidden_size,
        full_blocks=(7, 15, 23, 31),
        patch_size=14,
        merge=2,
        window_size=112,
        image_token=151655,
        start_token=151652,
        end_token=151653,
    )
    with_rope = text.with_layers(rope=rope)
    return dataclasses.replace(with_rope, vision=tower, family="qwen2_5_vl")


# The paper's models, Phi-4 mini, one with experts, and two of 70 billion parameters, which a few
# devices train with adapters: for these nothing needs to be fetched. Of others config.json is read.
ARCHITECTURES = {
    "Qwen/Qwen2.5-Math-1.5B": _shape(1536, 28, 12, 2, 8960, 151936, True, 4096, bias=True),
    "Qwen/Qwen2.5-Math-7B": _shape(3584, 28, 28, 4, 18944, 152064, False, 4096, bias=True),
    "meta-llama/Llama-3.2-3B": _shape(3072, 28, 24, 8, 8192, 128256, True, 131072),
    "meta-llama/Llama-3.1-8B": _shape(4096, 32, 32, 8, 14336, 128256, False, 131072),
    "microsoft/Phi-4-mini-instruct": _phi4_mini(),
    "deepseek-ai/deepseek-math-7b-base": _shape(4096, 30, 32, 32, 11008, 102400, False, 4096),
    "meta-llama/Llama-3.1-70B": _shape(8192, 80, 64, 8, 28672, 128256, False, 131072),
    "Qwen/Qwen3-30B-A3B": _qwen3_30b_a3b(),
    "Qwen/Qwen2.5-VL-3B-Instruct": _with_tower(
        _shape(2048, 36, 16, 2, 11008, 151936, True, 128000, bias=True)
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _with_tower(
        _shape(3584, 28, 28, 4, 18944, 152064, False, 128000, bias=True)
    ),
    "Qwen/Qwen2.5-72B": _shape(8192, 80, 64, 8, 29568, 152064, False, 131072, bias=True),
}


def read_architecture(path: str, revision: str) -> DecoderSpec:
    """The architecture of a folder, of one of ARCHITECTURES, or of a model on the hub.

    Only its config.json is looked at.

    Raises:
      UserError: no folder, and nothing that could be fetched; or an architecture that is unknown.
    """
    if path in ARCHITECTURES:
        return ARCHITECTURES[path]
    if Path(path).is_dir():
        return read_config(Path(path))
    hub_id = hub.id_of(path, "config.model.path")
    import huggingface_hub

    try:
        file = huggingface_hub.hf_hub_download(hub_id, "config.json", revision=revision)
    # Offline, unknown, gated, no hub id at all: many types, one remedy.
    except Exception as error:
        raise errors.UserError(
            f"config.model.path={path!r} is not a folder, and its config.json could not be fetched"
            f" ({type(error).__name__}); give a folder that has one, or one of"
            f" {', '.join(ARCHITECTURES)}"
        ) from error
    return read_config(Path(file).parent)
