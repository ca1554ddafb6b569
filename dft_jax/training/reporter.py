"""What a run says of itself while it goes on: metrics one step late, where the time went, skipped
steps, a profile.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from dft_jax.data.batches import PackedBatch
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts, progress
from dft_jax.runtime.options import Config
from dft_jax.training import metrics
from dft_jax.training.evaluators import Evaluator
from dft_jax.training.guards import RoundingWarning, SkipGuard
from dft_jax.training.metrics_log import Writer
from dft_jax.training.throughput import Throughput
from dft_jax.training.trace import Trace
from dft_jax.types import Weights

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
        mean_length: float,
        steps: int,
        start: int,
    ):
        """`log` is closed with the reporter; `mean_length` are the tokens of an example."""
        self.log, self.log_every, self.steps = log, config.log.every, steps
        self.throughput = Throughput(model, mean_length)
        self.skips = SkipGuard(config.train.max_skipped_steps)
        self.rounding = RoundingWarning(config.optimizer)
        self.trace = Trace(config.profile, log.file.parent / "profile")
        self.compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self._pending: tuple[int, dict, PackedBatch] | None = None
        self.bar = progress.bar(total=steps, initial=start, desc=config.objective, unit="step")
        self._has_begun = False

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
        if not self._has_begun:
            # Else compiling, and the evaluation before, would count as time of the first step: the
            # bar said minutes a step, for many steps.
            self.bar.unpause()
            self._has_begun = True
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
        values |= metrics.of_experts(sums)
        values |= metrics.of_sources(packed)
        values["optimizer/skipped"] = int(sums["skipped"])
        values["speed/compilations"] = self.compilations
        interrupts.outlook.step_s = values.get("speed/step_s", interrupts.outlook.step_s)
        is_finite = bool(sums["is_finite"])
        if step % self.log_every == 0 or step == self.steps or not is_finite:
            self.log.write(step, values)
        self.rounding.say(step, values)
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

    def evaluate(self, step: int, evaluator: Evaluator, weights: Weights) -> dict[str, Any]:
        """Makes, reports and returns an evaluation, whose time is not part of the next step's."""
        _log.debug("evaluate %d", step)
        interrupts.outlook.step_began = None
        values = evaluator.run(step, weights)
        self.flush()
        self.log.write(step, values)
        self.throughput.last = None
        return values

    def close(self) -> None:
        self.trace.close()
        self.bar.close()
        self.log.close()
        jax.monitoring.unregister_event_duration_listener(self._count)
