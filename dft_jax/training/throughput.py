"""How fast a run is, and what its time is spent on."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import dft_jax
from dft_jax.data.batches import PackedBatch
from dft_jax.data.image_rows import Grid
from dft_jax.models.model import Model, parameter_count
from dft_jax.models.parts import text_of
from dft_jax.runtime import system
from dft_jax.training import metrics


def flops_per_token(model: Model, mean_length: float) -> float:
    """FLOPs of training on a token; see metrics.training_flops_per_token.

    Those of the images that some tokens are of come on top: `flops_of_images`.
    """
    c = model.config
    # Those of a tower see patches, not tokens.
    n_matmul = parameter_count(text_of(model.abstract_params)) - c.idle_parameters
    if not c.tie_embeddings:
        # Of an embedding table a row is read; nothing is multiplied.
        n_matmul -= c.vocab_size * c.hidden_size
    n_frozen = 0
    if model.lora is not None:
        n_matmul, n_frozen = parameter_count(model.trainable), n_matmul
    elif not model.trains_head:
        # The merger alone is trained, through the text.
        n_matmul, n_frozen = 0, n_matmul
    return metrics.training_flops_per_token(
        n_matmul, c.num_layers, c.num_heads, c.head_dim, mean_length, n_frozen
    )


def flops_of_images(model: Model, grids: Sequence[Grid]) -> float:
    """FLOPs of training on images, by rows and columns of their patches; see metrics.tower_flops.

    Their tokens in the text are counted as tokens.
    """
    if not grids:
        return 0.0
    vision = model.config.vision
    assert vision is not None, "examples have images where the model has a tower"
    return sum(metrics.tower_flops(vision, grid, model.parts) for grid in grids)


class Throughput:
    """Rates between one report and the next, and what the time was spent on.

    Compilation is done before the first step, but that step starts with nothing dispatched: it is
    left out.
    """

    def __init__(self, model: Model, mean_length: float):
        self.model = model
        self.flops = flops_per_token(model, mean_length)
        self.device = model.mesh.local_devices[0]
        peak = metrics.peak_flops(self.device.device_kind)
        self.peak = None
        if peak:
            self.peak = peak * model.mesh.size
        self.last: float | None = None
        self.is_first = True
        self.spent_s: dict[str, float] = {"data_wait_s": 0.0, "device_wait_s": 0.0}

    @contextlib.contextmanager
    def timer(self, on: str) -> Iterator[None]:
        """Counts the time within as spent on one of `spent_s`; what is left of a step is the
        host's.
        """
        begin = time.perf_counter()
        yield
        self.spent_s[on] += time.perf_counter() - begin

    def rates(self, sums: dict, step: PackedBatch) -> dict[str, float]:
        now, last = time.perf_counter(), self.last
        self.last = now
        spent_s, self.spent_s = self.spent_s, dict.fromkeys(self.spent_s, 0.0)
        A, _, L = step.batch.tokens_BL.shape
        values = {"data/packing_efficiency": step.efficiency, "data/rows": step.n_rows * A}
        if self.is_first:
            self.is_first = False
            values["speed/first_step_s"] = time.monotonic() - dft_jax.IMPORTED_AT
        memory = self.device.memory_stats()
        if memory:
            values["speed/peak_memory_gib"] = memory.get("peak_bytes_in_use", 0) / 2**30
        values["speed/peak_host_gib"] = system.peak_gib()
        if last is None:
            return values
        step_s = now - last
        rate = step.real_tokens / step_s
        values["speed/step_s"] = step_s
        for waited_for, seconds in spent_s.items():
            values[f"speed/{waited_for}"] = seconds
        values["speed/host_s"] = step_s - sum(spent_s.values())
        values["speed/tokens_per_s"] = rate
        values["speed/supervised_tokens_per_s"] = float(sums["tokens"]) / step_s
        values["speed/positions_per_s"] = step.n_rows * A * L / step_s  # padding as well
        if self.peak:
            flops = step.real_tokens * self.flops + flops_of_images(self.model, step.grids)
            values["speed/mfu"] = flops / step_s / self.peak
        return values
