"""What a run says of itself while it goes on: metrics one step late, rates, the progress bar, skipped steps."""

import time
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from dft_jax import errors, metrics, models
from dft_jax.data import loader
from dft_jax.models import Model
from dft_jax.writer import Writer


class Reporter:
    """Takes each step's sums as they are dispatched and reports the step before, so devices never wait for the host."""

    _SHOWN = ("train/loss", "train/nll", "speed/tokens_per_s")

    def __init__(self, config: ConfigDict, model: Model, log: Writer, *, steps: int, start: int, mean_length: float):
        self.log, self.log_every, self.steps = log, config.log.every, steps
        self.throughput = _Throughput(model, mean_length)
        self.skips = SkipGuard(config.train.max_skipped_steps)
        self.behind: tuple[int, dict, loader.Step] | None = None
        quiet = jax.process_index() > 0
        self.bar = tqdm(total=steps, initial=start, desc=config.objective, unit="step", disable=quiet)

    def add(self, step: int, sums: dict[str, jax.Array], packed: loader.Step) -> None:
        self.flush()
        self.behind = (step, sums, packed)

    def flush(self) -> None:
        """Reports the step that is behind, if there is one.

        Raises:
          UserError: too many steps in a row were skipped.
        """
        if self.behind is None:
            return
        (step, sums, packed), self.behind = self.behind, None
        sums = jax.device_get(sums)
        values = metrics.per_token(sums, "train") | self.throughput.of(sums, packed)
        values |= {f"optimizer/{name}": float(sums[name]) for name in ("learning_rate", "gradient_norm")}
        values["optimizer/skipped"] = int(sums["skipped"])
        is_finite = bool(sums["is_finite"])
        if step % self.log_every == 0 or step == self.steps or not is_finite:
            self.log.write(step, values)
        self.skips.count(step, is_finite, packed.where)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix({name.split("/")[1]: f"{values[name]:.4g}" for name in self._SHOWN if name in values})

    def sync(self) -> None:
        """As `flush`; then the rows are on the disk as well, to outlast what the checkpoint will outlast."""
        self.flush()
        self.log.sync()

    def evaluated(self, step: int, values: dict[str, Any]) -> None:
        """Reports an evaluation, whose time is not part of the next step's."""
        self.flush()
        self.log.write(step, values)
        self.throughput.last = None

    def close(self) -> None:
        self.bar.close()
        self.log.close()


class SkipGuard:
    """Counts updates skipped for non-finite numbers; too many in a row end the run."""

    _SHOWN = 16

    def __init__(self, most_in_a_row: int):
        self.most, self.in_a_row = most_in_a_row, 0

    def count(self, step: int, is_finite: bool, where: tuple[str, ...]) -> None:
        """`where`: file and line of the step's examples."""
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if self.in_a_row >= self.most:
            shown = ", ".join(where[: self._SHOWN]) + (", …" if len(where) > self._SHOWN else "")
            raise errors.UserError(
                [
                    f"step {step}: {self.most} non-finite updates in a row, none of them applied; look at the data of"
                    " these steps, or start again in a new --workdir with a lower config.optimizer.learning_rate",
                    f"the {len(where)} examples of step {step}: {shown}",
                ]
            )


class _Throughput:
    """Rates between one report and the next. The first interval holds the compilation, so it is left out."""

    def __init__(self, model: Model, mean_length: float):
        c = model.config
        n_lookup = 0 if c.tie_embeddings else c.vocab_size * c.hidden_size  # a row is read, nothing is multiplied
        n_matmul = models.parameter_count(model.abstract_params) - n_lookup
        self.flops = metrics.training_flops_per_token(n_matmul, c.num_layers, c.num_heads, c.head_dim, mean_length)
        peak = metrics.peak_flops(jax.devices()[0].device_kind)
        self.peak = peak * jax.device_count() if peak else None
        self.last = None

    def of(self, sums: dict, step: loader.Step) -> dict[str, float]:
        now, last = time.perf_counter(), self.last
        self.last = now
        accumulation = step.batch.tokens_BL.shape[0]
        values = {"data/packing_efficiency": step.efficiency, "data/rows": step.n_rows * accumulation}
        if last is None:
            return values
        rate = step.real_tokens / (now - last)
        values["speed/step_s"] = now - last
        values["speed/tokens_per_s"] = rate
        values["speed/supervised_tokens_per_s"] = float(sums["tokens"]) / (now - last)
        if self.peak:
            values["speed/mfu"] = rate * self.flops / self.peak
        return values
