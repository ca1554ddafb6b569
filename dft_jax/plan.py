"""What a config's training step takes of each device's memory, and what fits; no weights, data or
accelerator needed.

python -m dft_jax.plan --config=configs/numina_qwen25_math.py:size=7b --device=h100 --devices=8

Parameters, moments and gradients have the shapes and shardings that training gives them. The rest
is found by walking the step that training would run, as JAX traces it for one device's share of
rows, heads and vocabulary (analysis/memory.py), under each rematerialisation policy and for more
and more rows per micro-batch. The last line has the settings to use, or the choice that would make
it fit. How far this is from XLA's own account: experiments/planner.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

from dft_jax.data import batches
from dft_jax.models.model import parameter_count
from dft_jax.runtime.options import Config

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs an accelerator that may be busy

from absl import flags

from dft_jax import config as config_lib, sharding
from dft_jax.commands import cli
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import REMAT_POLICIES, DecoderSpec
from dft_jax.models.options import architecture_problems
from dft_jax.models.spec import LayerSpec, Rope
from dft_jax.planner.memory import KINDS, Planner, Setting, settings
from dft_jax.runtime import errors, hub
from dft_jax.training import optimizer

# Memory of one device as its maker gives it (cloud.google.com/tpu/docs: one page for each version;
# NVIDIA's datasheets of A100, H100, H200 and DGX B200). What they write as GB, drivers report as
# GiB within 1 %: 81,559 MiB for an H100.
DEVICES_GIB = {
    **{"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32},
    **{"a100-40": 40, "a100": 80, "h100": 80, "h200": 141, "b200": 180},
}
# The rest is for what nobody plans: a driver's context, buffers of collectives, workspaces of
# matrix products, and that XLA may keep more than it must: 7 % above the account in float32, a
# TPU's compiler 26 % under `full`, which SURE does not cover (experiments/planner). On a GPU, JAX
# takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
SURE, MOST = 0.85, 0.95


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


# The paper's models, for which nothing needs to be fetched. Of other models config.json is read.
ARCHITECTURES = {
    "Qwen/Qwen2.5-Math-1.5B": _shape(1536, 28, 12, 2, 8960, 151936, True, 4096, bias=True),
    "Qwen/Qwen2.5-Math-7B": _shape(3584, 28, 28, 4, 18944, 152064, False, 4096, bias=True),
    "meta-llama/Llama-3.2-3B": _shape(3072, 28, 24, 8, 8192, 128256, True, 131072),
    "meta-llama/Llama-3.1-8B": _shape(4096, 32, 32, 8, 14336, 128256, False, 131072),
    "deepseek-ai/deepseek-math-7b-base": _shape(4096, 30, 32, 32, 11008, 102400, False, 4096),
}


def read_architecture(path: str, revision: str) -> DecoderSpec:
    """Of a folder, of one of ARCHITECTURES, or of a model on the hub; only its config.json is
    looked at.
    """
    if path in ARCHITECTURES:
        return ARCHITECTURES[path]
    if Path(path).is_dir():
        return read_config(Path(path))
    hub_id = hub.id_of(path, "config.model.path")
    import huggingface_hub

    try:
        file = huggingface_hub.hf_hub_download(hub_id, "config.json", revision=revision)
    except Exception as error:  # offline, unknown, gated, no hub id at all: many types, one remedy
        raise errors.UserError(
            f"config.model.path={path!r} is not a folder, and its config.json could not be fetched"
            f" ({type(error).__name__}); give a folder that has one, or one of {', '.join(ARCHITECTURES)}"
        ) from error
    return read_config(Path(file).parent)


def fitting(
    planner: Planner, mesh: tuple[int, int, int], remat: str, step_rows: int, room_gib: float
) -> Setting | None:
    """The setting with the most rows that fits, None where not even one row does."""
    best = None
    for setting in settings(mesh, remat, step_rows):
        if sum(planner.memory(setting).values()) > room_gib:
            break
        best = setting
    return best


def best(planner: Planner, n_devices: int, step_rows: int, room_gib: float) -> Setting | None:
    """What fits with the least tensor parallelism, then with the least recomputation, then with the
    least sharding: each costs time, the first most. None where nothing fits.
    """
    heads = math.gcd(planner.architecture.num_heads, planner.architecture.num_kv_heads)
    sizes = [n for n in range(1, n_devices + 1) if n_devices % n == 0]
    for tensor, remat, fsdp in itertools.product(sizes, REMAT_POLICIES, sizes):
        shards = n_devices // tensor
        is_legal = heads % tensor == 0 and shards % fsdp == 0 and shards <= step_rows
        mesh = (shards // fsdp, fsdp, tensor)
        if is_legal and (found := fitting(planner, mesh, remat, step_rows, room_gib)):
            return found
    return None


# Tried in this order where nothing fits: what each costs is said where the config has it, of the
# last also here.
CHOICES = (
    {},
    {"optimizer.moment_dtype": "bfloat16_first"},
    {"optimizer.moment_dtype": "bfloat16"},
    {"model.param_dtype": "bfloat16"},
)


# Said where parameters are bfloat16.
_SHORT = {
    "stochastic": "bfloat16 parameters take small updates by chance (optimizer.rounding=stochastic): right on average,"
    " with noise; optimizer/moved_share in metrics.jsonl has the share of weights that move",
    "nearest": "bfloat16 parameters lose small updates (optimizer.rounding=nearest, as in the authors' run);"
    " optimizer/update_lost in metrics.jsonl has how much",
}


def of_parameters(config: Config, choice: dict[str, str]) -> str:
    """What to know of parameters that are bfloat16, or are by `choice`; empty where they are not."""
    dtype = choice.get("model.param_dtype", config.model.param_dtype)
    return _SHORT[config.optimizer.rounding] if dtype == "bfloat16" else ""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What fits: as the config is if `choice` is empty; on as many devices as asked for, or on
    more.
    """

    choice: dict[str, str]
    n_devices: int
    setting: Setting
    gib: float

    def __str__(self) -> str:
        choice = "".join(f"--config.{key}={value} " for key, value in self.choice.items())
        rows = _count(self.setting.rows, "row")
        return (
            f"{choice}{self.setting.flags()} ({rows} a device and micro-batch, {self.gib:.1f} GiB)"
        )


def suggest(planner: Planner, n_devices: int, step_rows: int, room_gib: float) -> Suggestion | None:
    """What fits on these devices, with one of CHOICES if need be; else what fits on up to eight
    times as many.
    """
    tries = [(choice, n_devices) for choice in CHOICES] + [
        ({}, n_devices * more) for more in (2, 4, 8)
    ]
    for choice, count in tries:
        config = planner.config.copy_and_resolve_references()
        config.update_from_flattened_dict(choice)
        chosen = Planner(config, planner.architecture)
        if not optimizer.problems(config.optimizer.moment_dtype, config.optimizer.b2) and (
            found := best(chosen, count, step_rows, room_gib)
        ):
            return Suggestion(choice, count, found, sum(chosen.memory(found).values()))
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def verdict(gib: float, has_gib: float) -> str:
    """`fits`, `tight` (it may or may not), or by how much it does not fit."""
    if gib <= MOST * has_gib:
        return "fits" if gib <= SURE * has_gib else "tight"
    return f"does not fit by {gib - MOST * has_gib:.1f}"


_COLUMNS = ("remat", "rows", "accumulation", *KINDS, " total")


def table(
    planner: Planner, mesh: tuple[int, int, int], step_rows: int, has_gib: float
) -> Iterator[str]:
    """Lines: for each policy more and more rows, up to the first that do not fit."""
    yield " ".join(_COLUMNS) + "  GiB per device"
    for remat in REMAT_POLICIES:
        for setting in settings(mesh, remat, step_rows):
            account = planner.memory(setting)
            total = sum(account.values())
            values = (
                remat,
                setting.rows,
                setting.accumulation,
                *(f"{gib:.2f}" for gib in (*account.values(), total)),
            )
            row = " ".join(
                f"{value:>{len(name)}}" for name, value in zip(_COLUMNS, values, strict=True)
            )
            yield f"{row}  {verdict(total, has_gib)}"
            if total > MOST * has_gib:
                break


_CONFIG = cli.define_config()
_DEVICE = flags.DEFINE_enum("device", None, list(DEVICES_GIB), "What it is to run on.")
_DEVICES = flags.DEFINE_integer("devices", 1, "How many of them.", lower_bound=1)
_STEP_ROWS = flags.DEFINE_integer(
    "step_rows",
    None,
    "Packed rows of a step (data/rows in metrics.jsonl); by default one for each example.",
    1,
)

# not needed here
_UNREAD = ("config.data.train", "config.data.heldout", "config.data.template", "config.log.")


def main() -> None:
    cli.parse(required=["config", "device"])
    config, n_devices = _CONFIG.value, _DEVICES.value
    problems = config_lib.validate_on(config, n_devices)
    errors.raise_if_any([problem for problem in problems if not problem.startswith(_UNREAD)])
    architecture = read_architecture(config.model.path, config.model.revision)
    max_length = config.data.max_length
    errors.raise_if_any(architecture_problems(config.mesh, max_length, architecture, n_devices))
    mesh = (config.mesh[axis] for axis in sharding.MESH_AXES)
    planner, mesh = Planner(config, architecture), sharding.mesh_sizes(*mesh, n_devices)
    step_rows = min(_STEP_ROWS.value or config.train.global_batch, config.train.global_batch)
    has_gib = DEVICES_GIB[_DEVICE.value]
    n_params = parameter_count(planner.build(mesh).abstract_params)
    print(
        f"{config.model.path}: {n_params / 1e9:.2f} B parameters in {config.model.param_dtype}, products in"
        f" {config.model.compute_dtype}, moments {config.optimizer.moment_dtype}, {config.objective}\n"
        f"{n_devices} × {_DEVICE.value} of {has_gib} GiB; mesh data={mesh[0]} × fsdp={mesh[1]} ×"
        f" tensor={mesh[2]}; {_count(step_rows, 'row')} of {batches.row_length(config.data)} tokens a step\n"
    )
    for line in table(planner, mesh, step_rows, has_gib):
        print(line, flush=True)
    found = suggest(planner, n_devices, step_rows, SURE * has_gib)
    if found is None:
        print(f"\nfits on no number of these devices up to {8 * n_devices}")
    else:
        how = "with another choice: " if found.choice else ""
        how = f"on {found.n_devices} of these devices: " if found.n_devices > n_devices else how
        print(f"\nfits {how or 'so: '}{found}")
    if text := of_parameters(config, found.choice if found else {}):
        print(text)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
