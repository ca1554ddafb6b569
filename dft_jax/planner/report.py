"""A plan as people read it: model and devices, a table of what each choice takes, and advice."""

from collections.abc import Iterator

from dft_jax import config as config_lib
from dft_jax.data import batches
from dft_jax.models.model import REMAT_POLICIES, Model, parameter_count
from dft_jax.models.options import architecture_problems
from dft_jax.planner import devices
from dft_jax.planner.layouts import layouts
from dft_jax.planner.memory import KINDS, Planner
from dft_jax.planner.models import patches_of
from dft_jax.planner.suggestion import Suggestion, bfloat16_note, count, offload_note, suggest
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.sharding import Sizes, SomeSizes

# Problems of these keys do not matter: no data is read, nothing is logged.
_UNREAD = (
    "config.data.train",
    "config.data.heldout",
    "config.data.template",
    "config.eval.benchmark_data",
    "config.log.",
)


def plan(
    config: Config, device: str, n_devices: int, step_rows: int | None = None
) -> Iterator[str]:
    """What the training step of a config takes of each device's memory, and what fits, in lines.

    Each line comes when it is known: tracing a step takes a second or more.

    Args:
      config: a complete config.
      device: one of `devices.DEVICES_GIB`.
      n_devices: how many of them.
      step_rows: packed rows of a step; by default one for each example.

    Raises:
      UserError: a config that is not legal on so many devices, or an unknown architecture.
    """
    problems = []
    for problem in config_lib.validate_on(config, n_devices):
        if not problem.startswith(_UNREAD):
            problems.append(problem)
    errors.raise_if_any(problems)
    architecture = devices.read_architecture(config.model.path, config.model.revision)
    max_length = config.data.max_length
    errors.raise_if_any(architecture_problems(config.mesh, max_length, architecture, n_devices))
    planner = Planner(config, architecture, devices.described(device))
    mesh = Sizes(**config.mesh).on(n_devices)
    examples: int = config.train.global_batch
    step_rows = min(step_rows or examples, examples)
    has_gib = devices.DEVICES_GIB[device]

    model = planner.build(mesh)
    yield (
        f"{config.model.path}: {_parameters(model)} in {config.model.param_dtype},"
        f" products in {config.model.compute_dtype}, moments {config.optimizer.moment_dtype},"
        f" {config.objective}"
    )
    if model.lora is not None:
        n_trained = parameter_count(model.trainable)
        yield f"adapters of rank {model.lora.rank}: {n_trained / 1e6:.3g} M parameters in float32"
    yield (
        f"{n_devices} × {device} of {has_gib} GiB; mesh {mesh};"
        f" {count(step_rows, 'row')} of {batches.row_length(config.data)} tokens a step"
    )
    n_patches = patches_of(config, architecture)
    if n_patches:
        kept = ""
        if config.data.image_features:
            kept = " and their features are kept"
        yield (
            f"rows with up to {n_patches} patches of images, of which"
            f" {config.train.parts} is trained{kept}; rows of text alone take less"
        )
    yield ""
    yield from table(planner, mesh, step_rows, has_gib)
    yield ""
    found = suggest(planner, n_devices, step_rows, devices.SURE * has_gib)
    yield _advice(found, n_devices)
    choice = {}
    if found:
        choice = found.choice
    notes = [bfloat16_note(config, choice)]
    if found:
        notes.append(offload_note(found, devices.host_rate(device)))
    yield from filter(None, notes)


def _parameters(model: Model) -> str:
    """How many there are, and of a model with experts how many a token is multiplied with."""
    n_params, n_idle = parameter_count(model.abstract_params), model.config.idle_parameters
    text = f"{n_params / 1e9:.2f} B parameters"
    if n_idle:
        text += f" ({(n_params - n_idle) / 1e9:.2f} B for each token)"
    return text


# The last is what lies on the host.
_COLUMNS = ("remat  ", "rows", "accumulation", *KINDS, " total", " host")


def table(planner: Planner, mesh: SomeSizes, step_rows: int, has_gib: float) -> Iterator[str]:
    """Lines: for each policy more and more rows, up to the first that do not fit."""
    yield " ".join(_COLUMNS) + "  GiB per device"
    for remat in REMAT_POLICIES:
        for layout in layouts(mesh, remat, step_rows, planner.config.train.global_batch):
            account = planner.memory(layout)
            cells = [remat, str(layout.rows), str(layout.accumulation)]
            gibs = (*account.by_kind().values(), account.total, planner.host_gib(layout))
            cells += [f"{gib:.2f}" for gib in gibs]
            columns = zip(_COLUMNS, cells, strict=True)
            row = " ".join(cell.rjust(len(name)) for name, cell in columns)
            yield f"{row}  {devices.verdict(account.total, has_gib)}"
            if account.total > devices.MOST * has_gib:
                break


def _advice(found: Suggestion | None, n_devices: int) -> str:
    if found is None:
        return f"fits on no number of these devices up to {8 * n_devices}"
    if found.n_devices > n_devices:
        return f"fits on {found.n_devices} of these devices: {found}"
    if found.choice:
        return f"fits with another choice: {found}"
    return f"fits so: {found}"
