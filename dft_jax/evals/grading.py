r"""Grades answers against references in worker processes that may hang, run out of memory, or die, and are replaced.

math-verify decides whether two answers are equal. It parses LaTeX with a grammar and computes with sympy, and
`9^{9^{9^{9}}}` keeps it busy for ever. Its own time limits use SIGALRM, which works in main
threads only and cannot interrupt one long multiplication. So they are off, and the parent kills a worker that is late.

Its `ExprExtractionConfig` is never used: that one hands text to sympy's parser, which is Python's own evaluator;
`prepare` closes the one such path that its LaTeX side has. On top of that a worker refuses, by an audit hook, to
compile or run a string, to open a file for writing, to start a process or to open a
socket; an item that tries is an `error`.
"""

import dataclasses
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

from dft_jax import workers
from dft_jax.evals import extraction, paper_rules
from dft_jax.workers import Worker, peak_kib

# timeout: the time or memory of one item ran out. error: the comparison failed in some other way, or its process died.
VERDICTS: tuple[str, ...] = ("correct", "wrong", "no_answer", "timeout", "error")
MODES = ("strict", "paper")
COMPARED = 12  # texts of one problem that are compared each with each when answers are sorted by meaning
_WITHOUT_REPLY = {workers.LATE: "timeout", workers.DEAD: "error", workers.REFUSED: "error"}


@dataclasses.dataclass(frozen=True)
class Graded:
    verdict: str  # one of VERDICTS
    extracted: str | None  # the answer's text, None where the completion has none


class Grader:
    """Owns the workers; use it as a context manager.

    Args:
      workers: processes. Verdicts do not depend on their number, nor on the order of the items.
      mode: "strict", or "paper" for the rules behind the paper's numbers (which fall back to the last number).
      last_number: in strict mode, take the last number of a text that marks no answer.
      wall_s: seconds for one comparison; then the worker is killed and the verdict is `timeout`.
      memory_gb: address space of one worker in GiB.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        mode: str = "strict",
        last_number: bool = False,
        wall_s: float = 5.0,
        memory_gb: float = 2.0,
    ):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
        if workers < 1 or wall_s <= 0 or memory_gb < 0.5:
            raise ValueError(f"{workers=}, {wall_s=}, {memory_gb=}: at least 1 worker, some time, and 0.5 GiB")
        self.mode, self.last_number, self.wall_s, self.memory_gb = mode, last_number, wall_s, memory_gb
        self.wanted = workers
        self.workers: list[Worker] = []

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def grade(
        self, items: Iterable[tuple[str, str]], progress: bool = True, check: Callable[[], None] = lambda: None
    ) -> list[Graded]:
        """Grades (completion, reference) pairs in their order; equal answers to equal references are graded once.

        `check` is called with every verdict; what it raises ends the grading.
        """
        answers = [(self.extract(completion), reference) for completion, reference in items]
        counts = Counter(pair for pair in answers if pair[0] is not None)
        with tqdm(total=len(answers), desc="grading", unit="answer", disable=not progress) as bar:
            bar.update(len(answers) - counts.total())
            verdicts: dict[tuple[str | None, str], str] = {}
            plain = [] if self.mode == "paper" else filter(extraction.are_whole_numbers, counts)
            for pair in plain:  # no parser is needed, so no worker has to start
                verdicts[pair] = "correct" if pair[0] == pair[1] else "wrong"
                bar.update(counts[pair])
            for pair, verdict in self._verdicts([pair for pair in counts if pair not in verdicts]):
                verdicts[pair] = verdict
                bar.update(counts[pair])
                check()
        return [Graded(verdicts.get(pair, "no_answer"), pair[0]) for pair in answers]

    def extract(self, completion: str) -> str | None:
        """The answer's text as this grader's mode finds it."""
        if self.mode == "paper":
            return paper_rules.extract(completion)
        return extraction.extract(completion, last_number=self.last_number)

    def classes(self, answers: Sequence[str | None], verdicts: Sequence[str]) -> list[int | None]:
        """Sorts one problem's extracted answers by meaning, as voting needs it.

        Returns:
          A number for each answer, the same for the same meaning; None where there is no answer. The correct ones are
          class 0. The others are together if their normalised texts are the same, or if the grader takes one for
          the other; of these, the `COMPARED` most frequent texts are compared, each with each, and what timed out
          as an answer is not compared again: then there are at most 66 comparisons.
        """
        keys = [None if answer is None else text_key(answer) for answer in answers]
        named: dict[str, int] = {}  # text -> class
        open_texts: Counter = Counter()
        for key, verdict in zip(keys, verdicts, strict=True):
            if key is not None and verdict == "correct":
                named[key] = 0
        for key, verdict in zip(keys, verdicts, strict=True):
            if key is not None and key not in named and verdict == "wrong":
                open_texts[key] += 1
        frequent = [text for text, _ in open_texts.most_common(COMPARED)]
        equal = self._equal_pairs(itertools.combinations(frequent, 2))
        for text in frequent:
            like = [other for other in frequent if other in named and (other, text) in equal]
            named[text] = named[like[0]] if like else 1 + max(named.values(), default=0)
        for key in keys:
            if key is not None and key not in named:
                named[key] = 1 + max(named.values(), default=0)
        return [None if key is None else named[key] for key in keys]

    def _equal_pairs(self, pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those pairs of which this grader takes the second for the first."""
        unsure = [(second, first) for first, second in pairs if not extraction.are_whole_numbers((first, second))]
        return {pair[::-1] for pair, verdict in self._verdicts(unsure) if verdict == "correct"}

    def _verdicts(self, pairs: list[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], str]]:
        """Yields (pair, verdict) as they come, keeping every worker busy and replacing those that are late or dead."""
        waiting = pairs[::-1]
        running = 0
        while waiting or running:
            while waiting and len(self.workers) < min(self.wanted, len(waiting) + running):
                self.workers.append(Worker("dft_jax.evals.grading:serve", self.wall_s, self.mode, self.memory_gb))
            for worker in self.workers:
                if worker.ready and worker.request is None and waiting:
                    worker.give(waiting.pop())
                    running += 1
            deadlines = [w.deadline for w in self.workers if w.request is not None or not w.ready]
            wait([w.pipe for w in self.workers], max(0.0, min(deadlines) - time.monotonic()) if deadlines else 0.0)
            for worker in list(self.workers):
                pair, reply = worker.request, worker.poll()
                if reply is not None and pair is not None:
                    running -= 1
                    yield pair, _WITHOUT_REPLY.get(reply, reply)
                if worker.is_over:
                    worker.kill()
                    self.workers.remove(worker)


# ---- what runs in a worker ------------------------------------------------------------------------------------------


def serve(pipe_number: str, wall_s: str, mode: str, memory_gb: str) -> None:
    """The entry point of a worker: pairs of answer and reference come in, verdicts go out."""
    limit = int(float(memory_gb) * 2**30)

    def start() -> workers.Answer:
        workers.limit_memory(limit)
        prepare()
        compare = {"strict": strict_equal, "paper": paper_equal}[mode]
        for reference in ("\\frac{1}{2}", "x=1", "(1,2)", "\\{1,2\\}", "x^2+\\sqrt{3}"):
            compare("2x+1", reference)  # imports, and the grammar's tables, are not on the first item's time
        resident = peak_kib()

        def answer(pair: tuple[str, str]) -> tuple[str, bool]:
            before, verdict, peak = peak_kib(), judge(compare, *pair), peak_kib()
            if verdict == "wrong" and (peak - before) * 1024 > limit / 4:
                verdict = "timeout"  # math-verify takes a MemoryError inside sympy for "not equal"
            # What a large item leaves behind must not shorten the memory of the next one.
            return verdict, (peak - resident) * 1024 > limit / 4

        return answer

    workers.serve(pipe_number, wall_s, start)


def judge(compare: paper_rules.Equal, answer: str, reference: str) -> str:
    """The verdict of one comparison in this process."""
    try:
        return "correct" if compare(answer, reference) else "wrong"
    except MemoryError:
        return "timeout"
    except Exception:
        return "error"


def paper_equal(answer: str, reference: str) -> bool:
    return paper_rules.equal(answer, reference, _close_or_equal)


def _close_or_equal(answer: str, reference: str) -> bool:
    """math-verify's verdict, or both sides numbers within the paper's tolerance."""
    parsed = parse(answer), parse(reference)
    if verify(*parsed):
        return True
    values = [_value(side) for side in parsed]
    return None not in values and paper_rules.close(*values)


def _value(parsed: list) -> float | None:
    try:
        value = float(parsed[0].evalf())
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def parse(answer: str) -> list:
    r"""math-verify's reading of one answer as LaTeX: [expression, text], [text], or nothing.

    The box makes it take the whole answer; "first_match" keeps it from grading by any fraction inside an answer that it
    cannot parse. Parsing goes through a grammar to sympy's constructors, never through text.
    """
    import math_verify

    config = math_verify.LatexExtractionConfig(boxed_match_priority=0)
    return math_verify.parse(f"\\boxed{{{answer}}}", [config], extraction_mode="first_match", parsing_timeout=None)


def verify(answer: list, reference: list) -> bool:
    import math_verify

    return math_verify.verify(reference, answer, timeout_seconds=None)


def prepare() -> None:
    """Makes math-verify and sympy fit for a worker: nothing compiles a string, no warning of time limits turned off.

    And two equalities go that are none: M/m = m/M (all letters were made small), and that of two equations without
    solutions, such as n = n + 7 and x^2 = -1.

    Its parser reads "6" as `sympy.Number("6")`, and that evaluates Python source made of the text. Only what the
    grammar took for a number gets there, but nothing should: numbers are built here. sympy's polynomials write source
    for each number of variables, and its rationals come back from mpmath as source (no model text in either); without
    these two the guard can be simple.
    """
    import math_verify.grader
    import math_verify.parser
    import mpmath
    import sympy
    import sympy.integrals.manualintegrate  # its dataclasses write source when first imported
    from latex2sympy2_extended import latex2sympy2
    from sympy.polys import monomials

    for name in ("mul", "pow", "ldiv", "div", "lcm", "gcd"):
        plain = getattr(monomials, f"monomial_{name}")
        setattr(monomials.MonomialOps, name, lambda self, plain=plain: plain)
    monomials.MonomialOps.mulpow = lambda self: _monomial_mulpow

    identify = mpmath.identify
    mpmath.identify = lambda *args, **options: _fraction(identify(*args, **options))

    def convert_number(text: str) -> Any:
        is_decimal = "," in text and text.startswith("0")  # 0,111 is a decimal, 1,111 a thousand
        return number(text.replace(",", "." if is_decimal else ""))

    latex2sympy2.convert_number = convert_number
    latex2sympy2._Latex2Sympy.parse_number = lambda self, text: number(text.replace(",", ""))

    def latex2sympy(latex: str, **options: Any) -> Any:
        config = latex2sympy2.ConversionConfig(lowercase_symbols=not _uses_both_cases(latex))
        return latex2sympy2.latex2sympy(latex, conversion_config=config, **options)

    def solve(*arguments: Any) -> Any:
        solutions = sympy.solve(*arguments)
        if not solutions:
            raise ValueError("nothing to compare")  # which math-verify takes for "not equal"
        return solutions

    math_verify.parser.latex2sympy, math_verify.grader.solve = latex2sympy, solve
    math_verify.grader.TIMEOUT_WARNING_SHOWN = math_verify.parser.TIMEOUT_WARNING_SHOWN = True


def _uses_both_cases(latex: str) -> bool:
    letters = set(re.sub(rf"{_TEXT}|\\[A-Za-z]+", "", latex))
    return any(letter.isupper() and letter.lower() in letters for letter in letters)


def _monomial_mulpow(a: tuple, b: tuple, power: int) -> tuple:
    return tuple(x + y * power for x, y in zip(a, b, strict=True))


def _fraction(formula: Any) -> Any:
    """mpmath's "(5/4)" as a sympy number; None, its word for nothing found, for a formula such as "log(2)"."""
    import sympy

    match = re.fullmatch(r"(-?)\((-?[0-9]+)/([0-9]+)\)|(-?[0-9]+)", formula) if isinstance(formula, str) else None
    if match is None:
        return None
    if match[4]:
        return sympy.Integer(int(match[4]))
    return sympy.Rational(int(match[2]), int(match[3])) * (-1 if match[1] else 1)


def number(text: str) -> Any:
    """The sympy number that digits stand for; a ValueError for anything else."""
    import sympy

    text = text.replace(" ", "")
    if _INTEGER.fullmatch(text):
        return sympy.Integer(int(text))
    if _DECIMAL.fullmatch(text):
        return sympy.Float(text)
    raise ValueError("not a number")


def strict_equal(answer: str, reference: str) -> bool:
    """Whether the two are one answer: the same text, or equal by math-verify, with the same unit if both have one."""
    sides = [readable(answer), readable(reference)]
    if _letters(sides[0]) == _letters(sides[1]):
        return True
    units = [_unit(side) for side in sides]
    if None not in units and units[0] != units[1]:
        return False
    if not re.search(r"[A-Za-z]", sides[1]):
        sides[0] = _without_noun(sides[0])
    parsed = parse(sides[0]), parse(sides[1])
    return verify(*parsed) and not _small_and_apart(*map(_value, parsed))


def _small_and_apart(a: float | None, b: float | None) -> bool:
    """math-verify rounds to six decimals, where 3e-8 is 4e-8; below a thousandth, three digits have to agree."""
    return a is not None and b is not None and max(abs(a), abs(b)) < 1e-3 and not math.isclose(a, b, rel_tol=1e-3)


# ---- strings before they are parsed ---------------------------------------------------------------------------------

_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,6})?")
_UNIT_NAMES = {
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "cm": "cm centimeter centimetre",
    "mm": "mm millimeter millimetre",
    "mi": "mi mile",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "year": "year yr",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "oz": "oz ounce",
    "l": "l liter litre",
    "ml": "ml milliliter millilitre",
    "dollar": "dollar",
    "cent": "cent",
    "degree": "degree",
    "radian": "radian rad",
}
_CANONICAL = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_TEXT = r"\\(?:text|mathrm|mbox|textrm|textbf|mathbf)\s*\{\s*~?\s*([^{}]*?)\s*\}"
_UNIT_AT_END = re.compile(rf"(?<=[\d}}\s])(?:\\[,;: ]|~|\s)*(?:{_TEXT}|([A-Za-z]+))\s*(\^\s*\{{?-?\d\}}?)?\s*$")
_BASE_AT_END = re.compile(r"\d\)?_\{?(\d+)\}?$")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.^])")  # else 3e-8 is 3·e − 8
_NOUN_AT_END = re.compile(r"(-?[\d.,/]*\d)\s+((?:[A-Za-z]+\s*){1,3})")
_NOT_NOUNS = set(
    "or and to hundred thousand million billion trillion dozen percent half halves thirds over times".split()
)


def text_key(answer: str) -> str:
    """The answer's text without what never changes a meaning: equal keys are equal answers."""
    return _letters(readable(answer))


def readable(answer: str) -> str:
    r"""The same answer without what math-verify stumbles over: $ signs, `{,}`, `\%` in words, long dashes, 3e8."""
    text = extraction.tidy(answer).replace("\u2212", "-").replace("\u2013", "-").replace("\u00b0", "^\\circ")
    text = text.replace("\\$", "").replace("$", "").replace("{,}", ",").replace("./", "/")
    text = re.sub(r"\\!\s*", "", text)
    text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = re.sub(r"(?<=\d)\s*(?:percent\b|\\text\s*\{\s*percent\s*\})", r"\\%", text)
    return text.strip()


def _letters(text: str) -> str:
    """For the comparison of texts: no spaces, no text commands, one case if it is words only."""
    text = re.sub(_TEXT, r"\1", text)
    text = re.sub(r"\\left|\\right|\\[,;:! ]|\s", "", text)
    return text.lower() if re.fullmatch(r"[A-Za-z'.-]{3,}", text) else text


def _unit(text: str) -> str | None:
    """The physical unit an answer ends with, by its usual name, with its power, or its base; None if none is known."""
    base = _BASE_AT_END.search(text)
    if base:
        return f"base {base[1]}"
    match = _UNIT_AT_END.search(text)
    if match is None:
        return None
    name = (match[1] or match[2] or "").lower()
    name = _CANONICAL.get(name) or _CANONICAL.get(name.removesuffix("s"))
    return None if name is None else name + re.sub(r"[^\d-]", "", match[3] or "")


def _without_noun(text: str) -> str:
    """`12 red apples` is 12 where the reference has no words; `5 million` is not 5."""
    match = _NOUN_AT_END.fullmatch(text)
    return match[1] if match and not set(match[2].lower().split()) & _NOT_NOUNS else text
