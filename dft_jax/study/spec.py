"""What a study is: arms, the texts that they are measured on, and the phases that this makes.

A spec is a Python file with `get_spec(argument)`, as a config is one with `get_config(argument)`;
see experiments/real/dynamics.py.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax import config as config_lib
from dft_jax.data import formats
from dft_jax.evals.settings import Settings
from dft_jax.losses import objectives
from dft_jax.models.lora import is_adapted
from dft_jax.runtime import errors, options
from dft_jax.runtime.options import Config
from dft_jax.runtime.python_files import call_file
from dft_jax.training import identity

BASE = "base"
KEEP = ("parameters", "nothing")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One fine-tuning. Arms differ in these alone; those of one objective share a program.

    `overrides` are other keys of the config with their values: see grid.py.
    """

    objective: str
    learning_rate: float
    seed: int
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def changes(self) -> str:
        """The overrides as text, empty without."""
        return ",".join(f"{key}={_shown(value)}" for key, value in self.overrides)

    @property
    def name(self) -> str:
        """The arm's folder in STUDY/done, which old studies have: not to be changed."""
        name = f"{self.objective},learning_rate={self.learning_rate:g},seed={self.seed}"
        if self.overrides:
            name += f",{self.changes}"
        return name


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


@dataclasses.dataclass(frozen=True)
class Text:
    """Demonstrations that models are measured on, token by token.

    `path` and `rows` are as in a config's `data`; `max_length` is that of an example, of which
    longer ones are left out (0: that of the config); `max_examples` are the first ones (0: all).
    `answer_mark` stands before an answer, as `\\boxed{` or `####` does; empty: answers are not
    looked at.
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
    # Packed rows that are measured at once.
    rows_at_once: int = 4
    evaluation: Settings | None = None
    keep: str = "nothing"

    @property
    def steps(self) -> int:
        """Of every arm."""
        return self.config.train.steps


def name_of(arm: Arm | None) -> str:
    """The name of an arm, or of the base where it is None: its folder among the done-files."""
    if arm is None:
        return BASE
    return arm.name


@dataclasses.dataclass(frozen=True)
class Phase:
    """A piece of work with a done-file.

    `arm` is None for the base as it is. `kind` is one of train, heldout, evaluate, prune. `step` is
    the last one of a train phase, and the one that another phase is at.
    """

    arm: Arm | None
    kind: str
    step: int

    @property
    def arm_name(self) -> str:
        """As `name_of`."""
        return name_of(self.arm)

    @property
    def file(self) -> Path:
        """Its done-file, in the folder of done-files."""
        name = self.kind
        # An arm has several of these, and one of the other kinds.
        if self.kind in ("train", "heldout"):
            name += f"-{self.step:04d}"
        return Path(self.arm_name) / f"{name}.json"

    def __str__(self) -> str:
        return f"{self.arm_name} {self.kind} {self.step}"


def phases_of(spec: Spec, arm: Arm | None) -> list[Phase]:
    """The phases of an arm, or of the base, in order."""
    if arm is None:
        found = [Phase(None, "heldout", 0)]
        if spec.evaluation:
            found.append(Phase(None, "evaluate", 0))
        return found
    found = []
    for step in spec.measured_at:
        found += [Phase(arm, "train", step), Phase(arm, "heldout", step)]
    if spec.evaluation:
        found.append(Phase(arm, "evaluate", spec.steps))
    found.append(Phase(arm, "prune", spec.steps))
    return found


def phases(spec: Spec) -> list[Phase]:
    """All phases, those of the base first."""
    found = []
    for arm in (None, *spec.arms):
        found += phases_of(spec, arm)
    return found


# ---- what a phase depends on ---------------------------------------------------------------------

# Of the inputs' names, the beginnings that each kind of phase depends on.
_DEPENDS = {
    "train": ("config.", "train_data"),
    "heldout": ("config.", "train_data", "texts."),
    "evaluate": ("config.", "train_data", "evaluation."),
    "prune": ("config.", "train_data", "keep"),
}
# Named even where they are the default: arms differ in them, or what is not named means something
# else.
_ARM_KEYS = ("objective", "optimizer.learning_rate", "train.seed")
_ABSENT = {"optimizer.warmup_from": "zero"}  # key -> what a study means that does not name it
# All that the base depends on of the config: it is not trained.
_MODEL_ONLY = ("config.model.", "config.data.")
# Of an evaluation: these say on which machine it is done, and not what is measured.
_CARRIED_OUT = ("benchmark_data", "slots", "workers")


def inputs_of(spec: Spec, arm: Arm | None) -> dict[str, Any]:
    """What an arm's results depend on, as far as the spec says it: values by name, no paths.

    Of the config only what differs from the default is there: a key that a later version adds, with
    a default that means what was done before, leaves what is done as it is.
    """
    config = spec.config
    if arm is not None:
        config = config_of(spec, arm)
    default = config_lib.flatten(config_lib.get_default())
    found: dict[str, Any] = {}
    for key, value in identity.kept_on_resume(config).items():
        name = f"config.{key}"
        is_of_base = name.startswith(_MODEL_ONLY)
        if arm is None and not is_of_base:
            continue
        if value != default[key] or key in _ARM_KEYS or key in _ABSENT:
            found[name] = value
    for text in spec.texts:
        values = dataclasses.asdict(text)
        # The same file elsewhere is the same text; its content has a digest of its own.
        values["path"] = Path(text.path).name
        for key, value in values.items():
            found[f"texts.{text.name}.{key}"] = value
    if spec.evaluation:
        for key, value in dataclasses.asdict(spec.evaluation).items():
            if key not in _CARRIED_OUT:
                found[f"evaluation.{key}"] = value
    found["keep"] = spec.keep
    # As it will be read back: a tuple is a list.
    return json.loads(json.dumps(found))


def default_of(name: str) -> Any:
    """What `config.KEY` is where inputs do not name it; None for a key that there is no longer."""
    default = config_lib.flatten(config_lib.get_default()) | _ABSENT
    return default.get(name.removeprefix("config."))


def config_of(spec: Spec, arm: Arm) -> Config:
    """The config of an arm, locked."""
    config = spec.config.copy_and_resolve_references().unlock()
    config.objective = arm.objective
    config.optimizer.learning_rate = arm.learning_rate
    config.train.seed = arm.seed
    config.update_from_flattened_dict(dict(arm.overrides))
    return config.lock()


def digest(inputs: dict[str, Any], kind: str) -> str:
    """SHA-256 of those inputs that a kind of phase depends on."""
    prefixes = _DEPENDS[kind]
    needed = {name: value for name, value in inputs.items() if name.startswith(prefixes)}
    return hashlib.sha256(json.dumps(needed, sort_keys=True).encode()).hexdigest()


# ---- reading and checking ------------------------------------------------------------------------


def read(given: str, arms_of: Callable[[Config], tuple[Arm, ...]] | None = None) -> Spec:
    """The spec of `FILE` or `FILE:argument`.

    `arms_of` makes the arms from its config, in place of its own.

    Raises:
      UserError: no such file, no get_spec in it, an exception from it (named with its line), or a
      wrong spec.
    """
    example = "experiments/real/dynamics.py"
    spec = call_file(given, "--spec", "get_spec", "spec", example, "correct the spec")
    file = given.partition(":")[0]
    if not isinstance(spec, Spec):
        kind = type(spec).__name__
        raise errors.UserError(f"{file}: get_spec() should return a Spec, not {kind}")
    if arms_of is not None:
        spec = dataclasses.replace(spec, arms=arms_of(spec.config))
    errors.raise_if_any([f"{file}: {problem}" for problem in problems(spec)])
    return spec


def problems(spec: Spec) -> list[str]:
    """What is wrong with a spec by itself, a line each; its config is looked at before the run."""
    found = _arm_problems(spec.arms)
    found += _step_problems(spec)
    if is_adapted(spec.config.get("lora")):
        found.append("config.lora: a study trains all of a model; set lora.rank=0")
    if spec.config.data.get("image_features"):
        # Arms share the tower, and a text is measured with it.
        found.append("config.data.image_features: a study keeps no features; remove it")
    if not spec.texts:
        found.append("texts: there is none; give at least one")
    for text in spec.texts:
        found += _text_problems(text, spec)
    if len({text.name for text in spec.texts}) < len(spec.texts):
        found.append("texts: two have the same name; rename one")
    if spec.keep not in KEEP:
        found.append(options.unknown(f"keep={spec.keep!r} is unknown", spec.keep, KEEP))
    if spec.evaluation:
        evaluation = spec.evaluation
        found += evaluation.mistakes("evaluation.") or evaluation.idle("evaluation.")
    return found


def _arm_problems(arms: tuple[Arm, ...]) -> list[str]:
    found = []
    if not arms:
        found.append("arms: there is none; give at least one")
    count_of = collections.Counter(arm.name for arm in arms)
    for name in sorted(count_of):
        if count_of[name] > 1:
            found.append(f"arms: {name} is there twice; remove one")
    for objective in sorted({arm.objective for arm in arms}):
        try:
            objectives.make_objective(objective)
        except errors.UserError as error:
            found.append(f"arms: {error}")
    for arm in arms:
        # `not >`, because a rate that is no number is not above 0 either.
        if not arm.learning_rate > 0 or not 0 <= arm.seed < 2**32:
            legal = f"the rate should be above 0, the seed at least 0 and below {2**32}"
            found.append(f"arms: {arm.name}: {legal}")
    return found


def _step_problems(spec: Spec) -> list[str]:
    if spec.steps < 1:
        what = f"config.train.steps={spec.steps} should be at least 1"
        return [f"{what}: a study counts steps, not epochs"]
    steps = list(spec.measured_at)
    rises = steps == sorted(set(steps))
    if not steps or not rises or steps[0] < 1 or steps[-1] != spec.steps:
        last = f"config.train.steps={spec.steps}"
        return [f"measured_at={steps} should rise from at least 1 to {last}"]
    return []


def _text_problems(text: Text, spec: Spec) -> list[str]:
    found = []
    place = f"texts: {text.name}"
    if text.rows not in formats.ROW_FORMATS:
        what = f"{place}: rows={text.rows!r} is unknown"
        found.append(options.unknown(what, text.rows, list(formats.ROW_FORMATS)))
    limit = spec.config.data.max_length
    if not 0 <= text.max_length <= limit:
        legal = f"should be 0 to data.max_length={limit}"
        found.append(f"{place}: max_length={text.max_length} {legal}")
    return found
