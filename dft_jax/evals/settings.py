"""Settings of a benchmark evaluation: the flags of `evaluate`, and keys of config.eval."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dft_jax.data.sources.rows import has_half_pair
from dft_jax.data.templates import TOKENIZER_BOXED
from dft_jax.evals import prompts as prompts_lib
from dft_jax.evals.graders import choices, extraction, pool
from dft_jax.evals.graders.programs import RUN, SKIP
from dft_jax.evals.tasks import benchmarks, code
from dft_jax.evals.tasks.task import CHOICES
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config, Option


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an evaluation is. The flags of dft_jax.evaluate and the `eval` keys of a config are
    these.
    """

    benchmarks: tuple[str, ...] = _setting((), "Names of benchmarks, separated by commas.")
    benchmark_data: str = _setting(
        "", "The benchmark's file, or a folder of them; by default the hub."
    )
    prompt: str = _setting(
        prompts_lib.AUTO,
        "A name of data/templates.py, 'tokenizer', a .jinja file, or 'auto': as the model was"
        " trained.",
    )
    instruction: str = _setting("", "Text on a line of its own at the end of each question.")
    answer_prefix: str = _setting(
        "", "How every answer begins: text behind the prompt, which the model continues."
    )
    samples: int = _setting(16, "Samples of each problem at each temperature.")
    temperature: tuple[float, ...] = _setting(
        (1.0,), "Temperatures to sample at, separated by commas."
    )
    greedy: bool = _setting(True, "Make one greedy completion of each problem as well.")
    top_k: int = _setting(0, "Sample from the k most probable tokens; 0 for all.")
    top_p: float = _setting(
        1.0, "Sample from the fewest tokens that hold this share of the probability."
    )
    seed: int = _setting(0, "Of the sampling noise.")
    context: int = _setting(
        4096, "Tokens of prompt and completion, at most; the model's own limit may be lower."
    )
    max_new_tokens: int = _setting(
        0, "Tokens of a completion, at most; 0 for what the context leaves."
    )
    max_problems: int = _setting(0, "The first problems of each benchmark; 0 for all.")
    slots: int = _setting(64, "Completions in progress at once, over all devices.")
    mode: str = _setting(
        "strict",
        "The grader's rules: strict, or paper for those of the paper, or vlmevalkit for those by"
        " which VLMEvalKit reads We-Math.",
    )
    image_min_pixels: int = _setting(
        0, "Smaller images are scaled up to so many pixels; 0 for what the checkpoint says."
    )
    image_max_pixels: int = _setting(
        0, "Larger images are scaled down to so many pixels; 0 for what the checkpoint says."
    )
    last_number: bool = _setting(
        False, "Take the last number of a completion that marks no answer."
    )
    answer_markers: tuple[str, ...] = _setting(
        extraction.DEFAULT_MARKERS,
        "What marks an answer, separated by commas: box, final (final answer is), hashes (####), "
        "colon (Answer:), is (the answer is).",
    )
    workers: int = _setting(2, "Processes that grade.")
    programs: str = _setting(
        RUN,
        "Of benchmarks whose completions are programs: run them in a jail, or skip their verdicts.",
    )

    @classmethod
    def read(cls, values: dict[str, Any], prefix: str) -> "Settings":
        """Settings from plain values, several of which are text with commas; `prefix` stands before
        their names.

        Raises:
          UserError: a temperature that is no number.
        """
        names = tuple(filter(None, values["benchmarks"].replace(" ", "").split(",")))
        markers = tuple(filter(None, values["answer_markers"].replace(" ", "").split(",")))
        text = values["temperature"]
        try:
            temperature = tuple(float(part) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise errors.UserError(
                f"{prefix}temperature={text!r} should be numbers, separated by commas"
            ) from error
        read = {"benchmarks": names, "temperature": temperature, "answer_markers": markers}
        return cls(**values | read)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """0 is greedy, of which there is one sample."""
        return tuple(dict.fromkeys((*([0.0] if self.greedy else []), *self.temperature)))

    def mistakes(self, prefix: str) -> list[str]:
        """What is wrong with the settings, a line each; `prefix` stands before their names (--,
        config.eval.).
        """
        found = []

        def require(name: str, is_legal: bool, should_be: str) -> None:
            if not is_legal:
                value = _shown(getattr(self, name))
                found.append(f"{prefix}{name}={value} should be {should_be}")

        for name in self.benchmarks:
            try:
                benchmarks.find(name)
            except errors.UserError as error:
                found.append(f"{prefix}benchmarks: {error}")
        n_names, n_temperatures = len(set(self.benchmarks)), len(set(self.temperature))
        is_once = n_names == len(self.benchmarks)
        require("benchmarks", n_names > 0 and is_once, "one or more, none of them twice")
        in_range = all(0 <= temperature <= 10 for temperature in self.temperature)
        is_once = n_temperatures == len(self.temperature)
        words = "numbers from 0 (greedy) to 10, none of them twice"
        require("temperature", in_range and is_once, words)
        require("greedy", bool(self.temperatures), "true where no temperature is given")
        require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        require("seed", 0 <= self.seed < 2**32, f"at least 0 and below {2**32}")
        require("context", self.context >= 2, "at least 2")
        is_free = not self.instruction or self.prompt != TOKENIZER_BOXED
        require("instruction", is_free, f"empty with prompt={TOKENIZER_BOXED}, which has one")
        is_free = not self.answer_prefix or self.prompt != code.BASE_TEMPLATE
        words = f"empty with prompt={code.BASE_TEMPLATE}, which has no answer to begin"
        require("answer_prefix", is_free, words)
        for name in ("instruction", "answer_prefix"):
            require(name, not has_half_pair(getattr(self, name)), "text in UTF-8")
        require("programs", self.programs in (RUN, SKIP), f"{RUN} or {SKIP}")
        modes = tuple(dict.fromkeys((*pool.MODES, *choices.MODES)))
        require("mode", self.mode in modes, " or ".join(modes))
        markers = set(self.answer_markers)
        are_known = bool(markers) and markers <= set(extraction.MARKERS)
        known = ", ".join(extraction.MARKERS)
        require("answer_markers", are_known, f"one or more of {known}")
        least, most = self.image_min_pixels, self.image_max_pixels
        require("image_max_pixels", not 0 < most < least, f"at least image_min_pixels={least}")
        for name in (
            "top_k",
            "max_new_tokens",
            "max_problems",
            "image_min_pixels",
            "image_max_pixels",
        ):
            require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("samples", "slots", "workers"):
            require(name, getattr(self, name) >= 1, "at least 1")
        if not found:
            found = rule_mistakes(
                self.benchmarks, self.mode, self.last_number, self.answer_markers, prefix
            )
        return found

    def idle(self, prefix: str) -> list[str]:
        """Settings that have no effect on these benchmarks, which are known, a line each; `prefix`
        is as in `mistakes`.
        """
        if any(benchmarks.find(name).shows_images for name in self.benchmarks):
            return []
        found = []
        for name in ("image_min_pixels", "image_max_pixels"):
            value = getattr(self, name)
            if value:
                names = ", ".join(self.benchmarks)
                what = f"{prefix}{name}={value} has no effect: no problem of {names} shows an image"
                found.append(f"{what}; remove it ({prefix}{name}=0)")
        return found

    def place_mistakes(self, prefix: str) -> list[str]:
        """What is wrong with `benchmark_data` for these benchmarks, which are known, before any of
        it is read; `prefix` is as in `mistakes`.
        """
        found: dict[str, None] = {}  # an ordered set: one path may be wrong for all of them
        for name in self.benchmarks:
            try:
                benchmarks.find(name).place(self.benchmark_data)
            except errors.UserError as error:
                found |= dict.fromkeys(f"{prefix}benchmark_data: {one}" for one in error.problems)
        return list(found)


def rule_mistakes(
    names: Sequence[str], mode: str, last_number: bool, answer_markers: Sequence[str], prefix: str
) -> list[str]:
    """Benchmarks that are not judged by the rules which are asked for, a line for each rule.

    Args:
      names: of known benchmarks.
      mode, last_number, answer_markers: as in `Settings`.
      prefix: stands before the names of settings.
    """
    tasks = [benchmarks.find(name) for name in names]
    found = []
    others = [task for task in tasks if mode not in task.modes]
    if others:
        listed = ", ".join(f"{task.name} ({' or '.join(task.modes)})" for task in others)
        found.append(
            f"{prefix}mode={mode} has no rules for {listed};"
            " evaluate benchmarks of other modes apart"
        )
    fixed = ", ".join(task.name for task in tasks if task.grader == CHOICES)
    remedy = f"whose rules say what marks an answer ({fixed}); evaluate other benchmarks apart"
    if fixed and last_number:
        found.append(f"{prefix}last_number=True is not of benchmarks {remedy}")
    if fixed and tuple(answer_markers) != extraction.DEFAULT_MARKERS:
        markers = ",".join(answer_markers)
        found.append(f"{prefix}answer_markers={markers} is not of benchmarks {remedy}")
    return found


def plain(value: Any) -> Any:
    """A setting as a config has it: ml_collections reads no tuples from a command line, they are
    text with commas.
    """
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value


# What config.eval has of a benchmark evaluation.
SECTION = {
    field.name: Option(plain(field.default), field.metadata["help"])
    for field in dataclasses.fields(Settings)
}


def of_config(values: Config) -> Settings:
    """The evaluation that `config.eval` asks for; UserError for a temperature that is no number."""
    return Settings.read({name: values[name] for name in SECTION}, "config.eval.")


def problems(values: Config, prefix: str) -> list[str]:
    """What is wrong with the settings in `config.eval`, as far as nothing has to be read."""
    try:
        asked = of_config(values)
    except errors.UserError as error:
        return [str(error)]
    # The rest is said of benchmarks that there are.
    return asked.mistakes(prefix) or asked.idle(prefix) + asked.place_mistakes(prefix)


def _shown(value: Any) -> str:
    return str(plain(value))
