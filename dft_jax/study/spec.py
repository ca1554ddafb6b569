"""What a study is: arms, the texts that they are measured on, and the phases that this makes.

A spec is a Python file with `get_spec(argument)`, as a config is one with `get_config(argument)`;
see experiments/real/dynamics.py.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from dft_jax import config as config_lib
from dft_jax.data import formats
from dft_jax.evals.settings import Settings
from dft_jax.losses import objectives
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.runtime.python_files import call_file
from dft_jax.training import identity

BASE = "base"
KEEP = ("parameters", "nothing")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One fine-tuning. Arms differ in these alone, so that those of one objective share a
    program."""

    objective: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.objective},learning_rate={self.learning_rate:g},seed={self.seed}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Demonstrations that models are measured on, token by token.

    `path` and `rows` are as in a config's `data`; `max_length` is that of an example, of which
    longer ones are left out (0: that of the config); `max_examples` are the first ones (0: all).
    `answer_mark` stands before an answer, as `\\boxed{` or `####` does; empty where nobody asks for
    answers.
    """

    name: str
    path: str
    rows: str
    max_examples: int = 0
    max_length: int = 0
    answer_mark: str = ""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A study.

    `config` is that of every arm, but for objective, rate and seed. `arms` are done in this order:
    with seeds outermost, every prefix is balanced. `measured_at` are the steps at which the texts
    are read, besides 0. `evaluation` says what is sampled and graded at the end of each arm, None
    for nothing. `keep` says what stays of a finished arm besides its results.
    """

    name: str
    config: Config
    arms: tuple[Arm, ...]
    texts: tuple[Text, ...]
    measured_at: tuple[int, ...]
    rows_at_once: int = 4  # packed rows that are measured at once
    evaluation: Settings | None = None
    keep: str = "nothing"

    @property
    def steps(self) -> int:
        return self.config.train.steps


@dataclasses.dataclass(frozen=True)
class Phase:
    """A piece of work with a done-file. `step` is the last of a train phase, and the one that
    another phase is at."""

    arm: Arm | None  # None is the model as it is
    kind: str  # train, heldout, evaluate, prune
    step: int

    @property
    def arm_name(self) -> str:
        return self.arm.name if self.arm else BASE

    @property
    def file(self) -> Path:
        """Of the folder of done-files."""
        number = f"-{self.step:04d}" if self.kind in ("train", "heldout") else ""
        return Path(self.arm_name) / f"{self.kind}{number}.json"

    def __str__(self) -> str:
        return f"{self.arm_name} {self.kind} {self.step}"


def phases_of(spec: Spec, arm: Arm | None) -> list[Phase]:
    """The phases of an arm, or of the base, in order."""
    found = [Phase(None, "heldout", 0)] if arm is None else []
    for step in spec.measured_at if arm else ():
        found += [Phase(arm, "train", step), Phase(arm, "heldout", step)]
    last = spec.steps if arm else 0
    if spec.evaluation:
        found.append(Phase(arm, "evaluate", last))
    if arm:
        found.append(Phase(arm, "prune", last))
    return found


def phases(spec: Spec) -> list[Phase]:
    """All phases, those of the base first."""
    return [phase for arm in (None, *spec.arms) for phase in phases_of(spec, arm)]


# ---- what a phase depends on
# ----------------------------------------------------------------------------------------

# Of the inputs' names, the beginnings that each kind of phase depends on.
_DEPENDS = {
    "train": ("config.", "train_data"),
    "heldout": ("config.", "train_data", "texts."),
    "evaluate": ("config.", "train_data", "evaluation."),
    "prune": ("config.", "train_data", "keep"),
}
_ARM_KEYS = (
    "objective",
    "optimizer.learning_rate",
    "train.seed",
)  # named even where they are the default
_MODEL_ONLY = ("config.model.", "config.data.")  # all that the base depends on of the config
_CARRIED_OUT = ("benchmark_data", "slots", "workers")  # of an evaluation: how, not what


def inputs_of(spec: Spec, arm: Arm | None) -> dict[str, Any]:
    """What the results of an arm depend on, as far as the spec says it: plain values by name, no
    paths.

    Of the config only what differs from the default is there: a key that a later version adds, with
    a default that means what was done before, leaves what is done as it is.
    """
    config = config_of(spec, arm) if arm else spec.config
    default = config_lib.flatten(config_lib.get_default())
    found: dict[str, Any] = {}
    for key, value in identity.kept_on_resume(config).items():
        if value != default[key] or key in _ARM_KEYS:
            found[f"config.{key}"] = value
    if arm is None:
        found = {name: value for name, value in found.items() if name.startswith(_MODEL_ONLY)}
    for text in spec.texts:
        values = dataclasses.asdict(text) | {"path": Path(text.path).name}
        found |= {f"texts.{text.name}.{key}": value for key, value in values.items()}
    if spec.evaluation:
        values = dataclasses.asdict(spec.evaluation)
        found |= {
            f"evaluation.{key}": value for key, value in values.items() if key not in _CARRIED_OUT
        }
    found["keep"] = spec.keep
    return json.loads(json.dumps(found))  # as it will be read back: a tuple is a list


def default_of(name: str) -> Any:
    """The default of `config.KEY`; None for a key that there is no longer."""
    default = config_lib.flatten(config_lib.get_default())
    return default.get(name.removeprefix("config."))


def config_of(spec: Spec, arm: Arm) -> Config:
    """The config of an arm."""
    config = spec.config.copy_and_resolve_references().unlock()
    config.objective = arm.objective
    config.optimizer.learning_rate = arm.learning_rate
    config.train.seed = arm.seed
    return config.lock()


def digest(inputs: dict[str, Any], kind: str) -> str:
    """SHA-256 of those inputs that a kind of phase depends on."""
    own = {name: value for name, value in inputs.items() if name.startswith(_DEPENDS[kind])}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


# ---- reading and checking
# -------------------------------------------------------------------------------------------


def read(given: str) -> Spec:
    """The spec of `FILE` or `FILE:argument`.

    Raises:
      UserError: no such file, no get_spec in it, an exception from it (named with its line), or a
      wrong spec.
    """
    example, remedy = "experiments/real/dynamics.py", "correct the spec"
    spec = call_file(given, "--spec", "get_spec", "spec", example, remedy)
    file = given.partition(":")[0]
    if not isinstance(spec, Spec):
        raise errors.UserError(
            f"{file}: get_spec() should return a Spec, not {type(spec).__name__}"
        )
    errors.raise_if_any([f"{file}: {problem}" for problem in problems(spec)])
    return spec


def problems(spec: Spec) -> list[str]:
    """What is wrong with a spec by itself, a line each; its config is looked at before the run."""
    found = []
    steps = list(spec.measured_at)
    if not spec.arms:
        found.append("arms: there is none; give at least one")
    names = [arm.name for arm in spec.arms]
    found += [
        f"arms: {name} is there twice; remove one"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    for objective in sorted({arm.objective for arm in spec.arms}):
        try:
            objectives.make_objective(objective)
        except errors.UserError as error:
            found.append(f"arms: {error}")
    for arm in spec.arms:
        if not arm.learning_rate > 0 or not 0 <= arm.seed < 2**32:
            found.append(
                f"arms: {arm.name}: the rate should be above 0, the seed at least 0 and below {2**32}"
            )
    if spec.steps < 1:
        found.append(
            f"config.train.steps={spec.steps} should be at least 1: a study counts steps, not epochs"
        )
    elif not steps or steps != sorted(set(steps)) or steps[0] < 1 or steps[-1] != spec.steps:
        found.append(
            f"measured_at={steps} should rise from at least 1 to config.train.steps={spec.steps}"
        )
    if not spec.texts:
        found.append("texts: there is none; give at least one")
    for text in spec.texts:
        found += _text_problems(text, spec)
    if len({text.name for text in spec.texts}) < len(spec.texts):
        found.append("texts: two have the same name; rename one")
    if spec.keep not in KEEP:
        found.append(f"keep={spec.keep!r} should be one of {', '.join(KEEP)}")
    if spec.evaluation:
        found += spec.evaluation.mistakes("evaluation.")
    return found


def _text_problems(text: Text, spec: Spec) -> list[str]:
    found = []
    if text.rows not in formats.ROW_FORMATS:
        hint = errors.did_you_mean(text.rows, list(formats.ROW_FORMATS))
        found.append(f"texts: {text.name}: rows={text.rows!r} is unknown{hint}")
    if not 0 <= text.max_length <= spec.config.data.max_length:
        limit = spec.config.data.max_length
        found.append(
            f"texts: {text.name}: max_length={text.max_length} should be 0 to data.max_length={limit}"
        )
    return found
