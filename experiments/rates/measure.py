"""What is measured on one trial of the study, in each of its stages."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from dft_jax.runtime import files
from experiments.lab import trials
from experiments.lab.trials import Trial
from experiments.rates import entropy, placebo
from experiments.rates.plan import REGIMES, WIDE_SEEDS, Regime, Row

# Of the rows of a trial; `equal` says whose entropy a temperature gives.
COLUMNS = (
    *("trial", "objective", "data", "learning_rate", "clip_norm", "rank", "seed", "probe"),
    *("benchmark", "temperature", "equal", "samples", "avg", "pass", "entropy", "length", "cut"),
    *("correct", "seconds"),
)
OTHER = "rates_other"
AT_1, AT_ITS_OWN = "sft at 1", "sft at its own"  # temperatures whose entropy is made equal


@dataclasses.dataclass(frozen=True)
class Reference:
    """The paired run of SFT: the same seed, at SFT's rate; and SFT's validated temperature."""

    trial: Trial
    temperature: float


def choosing(trial: Trial, regime: str, root: Path) -> list[Row]:
    """Stage 1: accuracy at six temperatures on validation problems."""
    placebo.register()
    return _shown(trials.measure(trial, REGIMES[regime].choosing, root))


def measuring(
    trial: Trial, regime: str, temperature: float, sft: Reference, root: Path
) -> tuple[list[Row], Row]:
    """Stage 2, on test problems.

    Args:
      temperature: that of the method, chosen on validation problems.
      sft: measured before, unless it is `trial` itself.

    Returns:
      Rows of accuracy, and the row of held-out demonstrations.
    """
    placebo.register()
    about = REGIMES[regime]
    found = []
    for probe in probes(about, trial.seed, temperature):
        found += _shown(trials.measure(trial, probe, root))
    params, _ = trials.train(trial, root)
    logits_TV, logp_T = entropy.logits(trial.base, about.data, params)
    wanted = _wanted(trial, regime, sft, logits_TV, root)
    equal_temperatures: dict[str, float | None] = {}
    for name, nats in wanted.items():
        equal = entropy.temperature_of(logits_TV, nats)
        equal_temperatures[name] = equal
        if equal is not None:
            probe = f"{about.measuring}@{equal:.4f}"
            found += _shown(trials.measure(trial, probe, root), equal=name)
    base_TV = _base(trial.base, regime, root)
    heldout = {
        "trial": trial.name,
        **dataclasses.asdict(trial),
        "temperature": temperature,
        "nll": float(-logp_T.mean()),
        "mean_p": float(np.exp(logp_T).mean()),
        "entropy": entropy.entropy(logits_TV, 1.0),
        "kl_from_base": entropy.divergence(logits_TV, base_TV),
        "clipped": clipped(root / trial.name, trial.clip_norm),
        **{f"entropy of {name}": nats for name, nats in wanted.items()},
        **{f"temperature equal to {name}": value for name, value in equal_temperatures.items()},
    }
    return found, heldout


def probes(about: Regime, seed: int, temperature: float) -> tuple[str, ...]:
    """Every seed greedily, at the method's own temperature and at 1; three seeds all there is."""
    if seed in WIDE_SEEDS:
        return (about.measuring, OTHER, about.pass64)
    temperatures = sorted({0.0, temperature, 1.0})
    return (f"{about.measuring}@{'+'.join(f'{each:g}' for each in temperatures)}",)


def _wanted(
    trial: Trial, regime: str, sft: Reference, logits_TV: entropy.Logits, root: Path
) -> dict[str, float]:
    """Entropies of the paired SFT run, nats; kept beside it, for all that are compared with it."""
    file = root / sft.trial.name / f"entropies-{regime}.json"
    if trial == sft.trial:
        # Greedily nothing is drawn: as near to it as temperatures go.
        own = max(sft.temperature, entropy.LOWEST)
        found = {AT_1: 1.0, AT_ITS_OWN: own}
        files.write_json(file, {k: entropy.entropy(logits_TV, t) for k, t in found.items()})
    return files.read_json(file)


@functools.cache
def _base(base: str, regime: str, root: Path) -> entropy.Logits:
    params, _ = trials.train(Trial(base=base, objective="none", steps=0), root)
    return entropy.logits(base, REGIMES[regime].data, params)[0]


def clipped(folder: Path, clip_norm: float) -> float | None:
    """The share of steps whose gradient was clipped; None for what was not trained."""
    name = "optimizer/gradient_norm"
    norms = [row[name] for row in files.json_lines(folder / "metrics.jsonl", containing=name)]
    return sum(norm > clip_norm for norm in norms) / len(norms) if norms else None


def _shown(rows: list[Row], equal: str = "") -> list[Row]:
    return [{name: (row | {"equal": equal})[name] for name in COLUMNS} for row in rows]
