"""What a run says of itself while it goes on: metrics one step late, where the time went, skipped
steps, a profile.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import dft_jax
from dft_jax.data.batches import Examples, PackedBatch
from dft_jax.models.model import Model, parameter_count
from dft_jax.runtime import errors, interrupts, processes, progress, system
from dft_jax.runtime.options import Config
from dft_jax.training import metrics, optimizer
from dft_jax.training.evaluators import Evaluator
from dft_jax.training.metrics_log import Writer
from dft_jax.training.options import parse_steps
from dft_jax.types import Params

# those that there are
_OF_UPDATE = ("learning_rate", "gradient_norm", "moved_share", "update_lost")
_log = logging.getLogger(__name__)  # phases, as in checkpoint.py


class Reporter:
    """Takes each step's sums as they are dispatched and reports the step before, so devices never
    wait for the host.
    """

    _SHOWN = ("train/loss", "train/nll", "speed/tokens_per_s")
    # jax.monitoring's name of a compilation
    _COMPILED = "/jax/core/compile/backend_compile_duration"

    def __init__(
        self,
        config: Config,
        model: Model,
        log: Writer,
        examples: Examples,
        steps: int,
        start: int,
    ):
        """`log` is closed with the reporter."""
        self.log, self.log_every, self.steps = log, config.log.every, steps
        self.throughput = _Throughput(model, examples.mean_length)
        self.skips = SkipGuard(config.train.max_skipped_steps)
        self.rounding = RoundingWarning(config.optimizer)
        self.trace = Trace(config.profile, log.file.parent / "profile")
        self.compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self._pending: tuple[int, dict, PackedBatch] | None = None
        self.bar = progress.bar(total=steps, initial=start, desc=config.objective, unit="step")

    def _count(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.compilations += event == self._COMPILED

    def timed(
        self, batches: Iterator[tuple[int, PackedBatch]]
    ) -> Iterator[tuple[int, PackedBatch]]:
        """Yields `batches`, recording the time that each takes as waiting for data."""
        with contextlib.suppress(StopIteration):
            while True:
                with self.throughput.timer("data_wait_s"):
                    batch = next(batches)
                yield batch

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of one step: implicit transfers are errors, a compilation is warned about, the
        profiler is switched.
        """
        interrupts.outlook.step_began = time.monotonic()
        _log.debug("step %d", step)
        before = self.compilations
        self.trace.begin(step)
        with jax.transfer_guard("disallow"):
            yield
        assert self._pending is not None, "the step adds its sums within this context"
        self.trace.end(step, self._pending[1])
        if self.compilations > before:
            what = f"step {step} compiled something, which should not happen while training"
            print(f"warning: {what}", file=sys.stderr)

    def add(self, step: int, sums: dict[str, jax.Array], packed: PackedBatch) -> None:
        self.flush()
        self._pending = (step, sums, packed)

    def flush(self) -> None:
        """Reports the step that is behind, if there is one.

        Raises:
          UserError: too many steps in a row were skipped.
        """
        if self._pending is None:
            return
        (step, sums, packed), self._pending = self._pending, None
        with self.throughput.timer("device_wait_s"):
            sums = jax.device_get(sums)
        values = metrics.per_token(sums, "train") | self.throughput.rates(sums, packed)
        for name in _OF_UPDATE:
            if name in sums:
                values[f"optimizer/{name}"] = float(sums[name])
        values["optimizer/skipped"] = int(sums["skipped"])
        values["speed/compilations"] = self.compilations
        interrupts.outlook.step_s = values.get("speed/step_s", interrupts.outlook.step_s)
        is_finite = bool(sums["is_finite"])
        if step % self.log_every == 0 or step == self.steps or not is_finite:
            self.log.write(step, values)
        warning = self.rounding.after(step, values)
        if warning and processes.is_first():
            print(f"warning: {warning}", file=sys.stderr)
        self.skips.count(step, is_finite, packed.origins)
        self.bar.update(step - self.bar.n)
        shown = {}
        for name in self._SHOWN:
            if name in values:
                shown[name.split("/")[1]] = f"{values[name]:.4g}"
        self.bar.set_postfix(shown)

    def wait(self) -> None:
        """Waits for the step that was just dispatched, and reports it: for steps so long that a
        signal should not have to wait for another one.
        """
        self.flush()
        began = interrupts.outlook.step_began
        assert began is not None, "a step was dispatched"
        interrupts.outlook.step_s = time.monotonic() - began
        interrupts.outlook.step_began = None

    def sync(self) -> None:
        """As `flush`; then the rows are on the disk as well, to outlast what the checkpoint will
        outlast.
        """
        self.flush()
        interrupts.outlook.step_began = None
        self.log.sync()

    def evaluate(self, step: int, evaluator: Evaluator, params: Params) -> None:
        """Makes and reports an evaluation, whose time is not part of the next step's."""
        _log.debug("evaluate %d", step)
        interrupts.outlook.step_began = None
        values = evaluator.run(step, params)
        self.flush()
        self.log.write(step, values)
        self.throughput.last = None

    def close(self) -> None:
        self.trace.close()
        self.bar.close()
        self.log.close()
        jax.monitoring.unregister_event_duration_listener(self._count)


class RoundingWarning:
    """Says once that most bfloat16 parameters stayed as they were: at the first step of the full
    rate.

    `config` is `config.optimizer`. Below that rate, while it warms up, it is no wonder.
    """

    _FEW = 0.5  # of the weights

    def __init__(self, config: Config):
        self.full_rate, self.rounding = 0.99 * config.learning_rate, optimizer.rounding_of(config)
        self.is_over = False

    def after(self, step: int, values: dict[str, Any]) -> str:
        """The warning, if it is time for it; `values` are a row of metrics.jsonl."""
        share = values.get("optimizer/moved_share")
        if self.is_over or share is None or values["optimizer/learning_rate"] < self.full_rate:
            return ""
        self.is_over = True
        if share >= self._FEW:
            return ""
        what = f"step {step}: {share:.1%} of the bfloat16 weights moved"
        if self.rounding == "nearest":
            lost = f"{values['optimizer/update_lost']:.1%} of the update was rounded away"
            remedy = "config.optimizer.rounding='stochastic' keeps it on average"
            return f"{what} and {lost}; {remedy}, config.model.param_dtype='float32' exactly"
        how = "the others' updates are less than a step of bfloat16, and come by chance"
        return f"{what}; {how}: right on average, with noise that float32 parameters do not have"


class SkipGuard:
    """Counts updates skipped for non-finite numbers; too many in a row end the run."""

    def __init__(self, most_in_a_row: int):
        self.most, self.in_a_row = most_in_a_row, 0

    def count(self, step: int, is_finite: bool, where: tuple[str, ...]) -> None:
        """`where`: file and line of the step's examples."""
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if self.in_a_row >= self.most:
            shown = ", ".join(where[:16]) + (", …" if len(where) > 16 else "")
            raise errors.UserError(
                [
                    f"step {step}: {self.most} non-finite updates in a row, none of them applied;"
                    " look at the data of these steps, or start again in a new --workdir with a"
                    " lower config.optimizer.learning_rate",
                    f"the {len(where)} examples of step {step}: {shown}",
                ]
            )


class Trace:
    """A profile of some steps (`first,last`, both included; empty for none), for TensorBoard,
    Perfetto or XProf.
    """

    def __init__(self, steps: str, folder: Path):
        self.first, self.last = parse_steps(steps) if steps else (0, 0)
        self.folder, self.is_on = folder, False

    def begin(self, step: int) -> None:
        # a run may be taken up again in the middle
        if self.first <= step <= self.last and not self.is_on:
            jax.profiler.start_trace(str(self.folder))
            self.is_on = True

    def end(self, step: int, result: Any) -> None:
        """`result`: arrays that the step makes."""
        if self.is_on and step == self.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self.is_on:
            jax.profiler.stop_trace()
        self.is_on = False


class _Throughput:
    """Rates between one report and the next, and what the time was spent on.

    Compilation is done before the first step, but that step starts with nothing dispatched: it is
    left out.
    """

    def __init__(self, model: Model, mean_length: float):
        c = model.config
        n_matmul = parameter_count(model.abstract_params)
        if not c.tie_embeddings:
            # Of an embedding table a row is read; nothing is multiplied.
            n_matmul -= c.vocab_size * c.hidden_size
        self.flops = metrics.training_flops_per_token(
            n_matmul, c.num_layers, c.num_heads, c.head_dim, mean_length
        )
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
            values["speed/mfu"] = rate * self.flops / self.peak
        return values
