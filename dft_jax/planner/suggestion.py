"""What fits on so many devices: the settings to use, or the choice that would make it fit."""

import dataclasses
import itertools
import math

from dft_jax.data import batches
from dft_jax.models.attention.kernels import is_tiled
from dft_jax.models.lora import is_adapted
from dft_jax.models.model import REMAT_POLICIES
from dft_jax.planner.layouts import StepLayout, layouts
from dft_jax.planner.memory import Planner
from dft_jax.runtime.options import Config
from dft_jax.sharding import Sizes, SomeSizes
from dft_jax.training import optimizer

Choice = dict[str, str | int]  # keys of a config, with other values
# Tried in this order where nothing fits: what each costs is said where the config has it, of the
# last also here.
CHOICES: tuple[Choice, ...] = (
    {},
    {"optimizer.moment_dtype": "bfloat16_first"},
    {"optimizer.moment_dtype": "bfloat16"},
    {"model.param_dtype": "bfloat16"},
)
# With adapters: their moments are small, and a bfloat16 checkpoint loses nothing by its own dtype.
_LORA_CHOICES: tuple[Choice, ...] = (
    {},
    {"model.param_dtype": "bfloat16"},
    {"model.param_dtype": "bfloat16", "optimizer.moment_dtype": "bfloat16"},
)
# Where nothing fits, on no number of devices.
_LORA: Choice = {"lora.rank": 8, "model.param_dtype": "bfloat16"}
# Where none of them helps: experts on so many different devices, to which tokens travel. Beyond
# eight that moves more than other ways would (models/moe.py);
_EXPERTS = (2, 4, 8)
# rows cut over so many devices, which moves keys and values in every layer;
_SEQUENCES = (2, 4, 8, 16)
# then so many times as many devices.
_MORE_DEVICES = (2, 4, 8)

# Said where parameters are bfloat16, by the way in which they are rounded.
_BFLOAT16_PARAMETERS = {
    "stochastic": "bfloat16 parameters take small updates by chance"
    " (optimizer.rounding=stochastic): right on average, with noise; optimizer/moved_share in"
    " metrics.jsonl has the share of weights that move",
    "nearest": "bfloat16 parameters lose small updates (optimizer.rounding=nearest, as in the"
    " authors' run); optimizer/update_lost in metrics.jsonl has how much",
}


def bfloat16_note(config: Config, choice: Choice) -> str:
    """What to know of parameters that are bfloat16, or are so by `choice`; else empty."""
    dtype = choice.get("model.param_dtype", config.model.param_dtype)
    if dtype != "bfloat16":
        return ""
    if is_adapted(config.get("lora")) or "lora.rank" in choice:
        return "the frozen base is bfloat16, which loses nothing of a bfloat16 checkpoint"
    return _BFLOAT16_PARAMETERS[config.optimizer.rounding]


def offload_note(found: "Suggestion", rate: float) -> str:
    """What it costs that layers' inputs wait on the host; else empty.

    `rate` is that of a device's link to its host, bytes/s each way.
    """
    if not found.host_gib:
        return ""
    seconds = 2 * found.layout.accumulation * found.host_gib * 2**30 / rate
    return (
        f"layers' inputs wait on the host (model.remat=offload): {found.host_gib:.1f} GiB a device,"
        f" {seconds:.1f} s of a step to get there and back at {rate / 1e9:.0f} GB/s, which costs"
        " what is not beside the computation"
    )


def fitting(
    planner: Planner, mesh: SomeSizes, remat: str, step_rows: int, room_gib: float
) -> StepLayout | None:
    """The layout with the most rows that fits, None where not even one row does."""
    best = None
    for layout in layouts(mesh, remat, step_rows, planner.config.train.global_batch):
        if planner.memory(layout).total > room_gib:
            break
        best = layout
    return best


def best_layout(
    planner: Planner,
    n_devices: int,
    step_rows: int,
    room_gib: float,
    sequence: int = 1,
    expert: int = 1,
) -> StepLayout | None:
    """What fits at the least cost in time, None where nothing fits.

    That is with the least tensor parallelism, then with the least recomputation and copies to the
    host, then with the least sharding: each costs time, the first most. Rows are cut over
    `sequence` devices, and experts lie on `expert` different ones; together they divide the number
    of devices.
    """
    heads = math.gcd(planner.architecture.num_heads, planner.architecture.num_kv_heads)
    n_devices //= sequence * expert
    sizes = [size for size in range(1, n_devices + 1) if n_devices % size == 0]
    for tensor, remat, fsdp in itertools.product(sizes, REMAT_POLICIES, sizes):
        # Devices that have different rows; each needs one row at least.
        shards = n_devices // tensor
        if heads % tensor or shards % fsdp or shards * expert > step_rows:
            continue
        mesh = shards // fsdp, fsdp, tensor, sequence, expert
        found = fitting(planner, mesh, remat, step_rows, room_gib)
        if found:
            return found
    return None


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What fits: as the config is if `choice` is empty, on as many devices as asked for or more.

    `host_gib` is what each device keeps in the memory of its host besides.
    """

    choice: Choice
    n_devices: int
    layout: StepLayout
    gib: float
    host_gib: float

    def __str__(self) -> str:
        """As on a command line, with what it takes."""
        choice = "".join(f"--config.{key}={value} " for key, value in self.choice.items())
        rows = count(self.layout.rows, "row")
        return (
            f"{choice}{self.layout.flags()} ({rows} a device and micro-batch, {self.gib:.1f} GiB)"
        )


def suggest(planner: Planner, n_devices: int, step_rows: int, room_gib: float) -> Suggestion | None:
    """What fits on these devices, with one of CHOICES if need be; else with experts on different
    ones, or rows cut over some of them; else on up to 8 times as many; else with adapters in place
    of all parameters.

    A config that cuts rows keeps that, and one whose experts lie on different devices keeps those.
    """
    is_lora = planner.lora is not None
    asked = Sizes(**planner.config.mesh).on(n_devices)
    sequence, expert = asked.sequence, asked.expert
    tries = [
        (choice, n_devices, sequence, expert) for choice in (_LORA_CHOICES if is_lora else CHOICES)
    ]
    tries += [
        ({}, n_devices, sequence, ways)
        for ways in _ways_to_place(planner, n_devices // sequence)
        if ways > expert
    ]
    tries += [
        ({}, n_devices, ways, expert)
        for ways in _ways_to_cut(planner, n_devices // expert)
        if ways > sequence
    ]
    tries += [({}, n_devices * more, sequence, expert) for more in _MORE_DEVICES]
    if not is_lora:
        tries.append((_LORA, n_devices, sequence, expert))
    for choice, n_tried, *ways in tries:
        config = planner.config.copy_and_resolve_references()
        config.update_from_flattened_dict(choice)
        # With a b2 near 1, a second moment in bfloat16 would never shrink.
        if optimizer.problems(config.optimizer.moment_dtype, config.optimizer.b2):
            continue
        changed = dataclasses.replace(planner, config=config)
        found = best_layout(changed, n_tried, step_rows, room_gib, *ways)
        if found:
            gib, host_gib = changed.memory(found).total, changed.host_gib(found)
            return Suggestion(choice, n_tried, found, gib, host_gib)
    return None


def _ways_to_place(planner: Planner, n_devices: int) -> list[int]:
    """On how many different devices the experts can lie; on none of a model without any."""
    experts = planner.architecture.experts
    if experts is None:
        return []
    return [ways for ways in _EXPERTS if n_devices % ways == 0 and experts.count % ways == 0]


def _ways_to_cut(planner: Planner, n_devices: int) -> list[int]:
    """Over how many devices rows can be cut, where their kernel of attention can be (it needs its
    tiles whole; cuDNN's sees whole rows alone).
    """
    length = batches.row_length(planner.config.data)
    if planner.attention() == "cudnn":
        return []
    return [ways for ways in _SEQUENCES if n_devices % ways == 0 and is_tiled(length, ways)]


def count(number: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}s"
