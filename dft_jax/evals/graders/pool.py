r"""Grades answers in worker processes, which may hang, run out of memory or die, and are replaced.

math-verify decides whether two answers are equal. It parses LaTeX with a grammar and computes with
sympy, and `9^{9^{9^{9}}}` keeps it busy for ever. Its own time limits use SIGALRM, which works in
main threads only and cannot interrupt one long multiplication. So they are off, and the parent
kills a worker that is late.

Its `ExprExtractionConfig` is never used: that one hands text to sympy's parser, which is Python's
own evaluator; `latex.patch_math_verify` closes the one such path that its LaTeX side has. On top of
that a worker refuses, by an audit hook, to compile or run a string, to open a file for writing, to
start a process or to open a socket; an item that tries is an `error`.
"""

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

from dft_jax.evals.graders import equality, extraction, latex, paper, spelling
from dft_jax.evals.graders.equality import patch_math_verify, strict_equal
from dft_jax.runtime import sandbox
from dft_jax.runtime.sandbox import Worker
from dft_jax.runtime.system import peak_kib

# timeout: the time or memory of one item ran out. error: the comparison failed in some other way,
# or its process died.
VERDICTS: tuple[str, ...] = ("correct", "wrong", "no_answer", "timeout", "error")
MODES = ("strict", "paper")
# The strict mode's; 1 took trailing letters for units, lists for sets, and rounded to six decimals;
# 2 could not read E_1 nor m_{\max}, dropped primes, and took \cos 60^\circ for the cosine of 60.
RULES = 3
# Texts of one problem that are compared each with each when answers are sorted by meaning.
COMPARED = 8
_WITHOUT_REPLY = {sandbox.LATE: "timeout", sandbox.DEAD: "error", sandbox.REFUSED: "error"}


Pair = tuple[str, str]  # answer, reference


@dataclasses.dataclass(frozen=True)
class Graded:
    """One of VERDICTS, and the answer's text, None where the completion has none."""

    verdict: str
    extracted: str | None


def _key(answer: str | None) -> str | None:
    """What answers that are spelled alike have in common."""
    if answer is None:
        return None
    return spelling.key(spelling.spell(answer))


def no_check() -> None:
    """Lets the grading go on."""


class Grader:
    """Owns the workers; use it as a context manager.

    Args:
      workers: processes. Verdicts do not depend on their number, nor on the order of the items.
      mode: "strict", or "paper" for the rules behind the paper's numbers (which fall back to the
        last number).
      last_number: in strict mode, take the last number of a text that marks no answer.
      answer_markers: in strict mode, what marks an answer: some of extraction.MARKERS.
      wall_s: seconds for one comparison; then the worker is killed and the verdict is `timeout`.
      memory_gb: address space of one worker in GiB.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        mode: str = "strict",
        last_number: bool = False,
        answer_markers: Sequence[str] = extraction.DEFAULT_MARKERS,
        wall_s: float = 5.0,
        memory_gb: float = 2.0,
    ):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
        if workers < 1 or wall_s <= 0 or memory_gb < 0.5:
            raise ValueError(
                f"{workers=}, {wall_s=}, {memory_gb=}: at least 1 worker, some time, and 0.5 GiB"
            )
        unknown = [marker for marker in answer_markers if marker not in extraction.MARKERS]
        if unknown or not answer_markers:
            raise ValueError(f"{answer_markers=}: choose from {', '.join(extraction.MARKERS)}")
        self.mode = mode
        self.last_number = last_number
        self.answer_markers = tuple(answer_markers)
        self.wall_s = wall_s
        self.memory_gb = memory_gb
        self.wanted = workers
        self.workers: list[Worker] = []

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def grade(
        self,
        items: Sequence[Pair],
        progress: bool = True,
        check: Callable[[], Any] = no_check,
        truncated: Sequence[bool] = (),
    ) -> list[Graded]:
        """Grades pairs of completion and reference, in their order.

        Equal answers to equal references are graded once.

        Args:
          items: completion and reference of each.
          progress: whether to show a bar.
          check: is called with every verdict; what it raises ends the grading.
          truncated: of each completion whether its limit of tokens cut it; by default of none.
        """
        truncated = truncated or [False] * len(items)
        extracted = []
        counts: Counter[Pair] = Counter()
        for (completion, reference), is_cut in zip(items, truncated, strict=True):
            answer = self.extract(completion, is_cut)
            extracted.append(answer)
            if answer is not None:
                counts[answer, reference] += 1
        verdicts = self.compare(counts, len(items), progress, check)
        graded = []
        for answer, (_, reference) in zip(extracted, items, strict=True):
            if answer is None:
                graded.append(Graded("no_answer", None))
            else:
                graded.append(Graded(verdicts[answer, reference], answer))
        return graded

    def compare(
        self, counts: Counter[Pair], n_items: int, progress: bool, check: Callable[[], Any]
    ) -> dict[Pair, str]:
        """The verdict of each pair of answer and reference, while a bar counts `n_items`.

        Args:
          counts: how many items each pair stands for; of those of no pair nothing is to be done.
          n_items: the items of all pairs, and those of none.
          progress, check: as for `grade`.
        """
        verdicts: dict[Pair, str] = {}
        # Not the bar of runtime/progress.py, which asks JAX for its process: workers import this
        # file under a limit of their memory, and a grader must not occupy an accelerator.
        with tqdm(total=n_items, desc="grading", unit="answer", disable=not progress) as bar:
            bar.update(n_items - counts.total())
            # Whole numbers need no parser, so no worker has to start for them.
            if self.mode == "strict":
                for pair in filter(extraction.are_whole_numbers, counts):
                    verdicts[pair] = _verdict(pair[0] == pair[1])
                    bar.update(counts[pair])
            for pair, verdict in self._verdicts([pair for pair in counts if pair not in verdicts]):
                verdicts[pair] = verdict
                bar.update(counts[pair])
                check()
        return verdicts

    def extract(self, completion: str, truncated: bool = False) -> str | None:
        """The answer's text as this grader's mode finds it."""
        if self.mode == "paper":
            return paper.extract(completion)
        return extraction.extract(
            completion,
            last_number=self.last_number,
            markers=self.answer_markers,
            truncated=truncated,
        )

    def classes(self, answers: Sequence[str | None], verdicts: Sequence[str]) -> list[int | None]:
        """Sorts one problem's extracted answers by meaning, as voting needs it.

        Returns:
          A number for each answer, the same for the same meaning; None where there is no answer.
          The correct ones are class 0. The others are together if their normalised texts are the
          same, or if the grader takes one for the other; of these, the `COMPARED` most frequent
          texts are compared, each with each, and what timed out as an answer is not compared again:
          then there are at most 28 comparisons.
        """
        keys = [_key(answer) for answer in answers]
        class_of: dict[str, int] = {}
        for key, verdict in zip(keys, verdicts, strict=True):
            if key is not None and verdict == "correct":
                class_of[key] = 0
        votes, text_of = _wrong_ones(keys, answers, verdicts, class_of)
        frequent = [key for key, _ in votes.most_common(COMPARED)]
        equal = self._equal_pairs([text_of[key] for key in frequent])
        for place, key in enumerate(frequent):
            class_of[key] = 1 + max(class_of.values(), default=0)
            for earlier in frequent[:place]:
                if (text_of[earlier], text_of[key]) in equal:
                    class_of[key] = class_of[earlier]
                    break
        # All others are alone with their text.
        for key in keys:
            if key is not None and key not in class_of:
                class_of[key] = 1 + max(class_of.values(), default=0)
        classes: list[int | None] = []
        for key in keys:
            classes.append(None if key is None else class_of[key])
        return classes

    def _equal_pairs(self, texts: list[str]) -> set[tuple[str, str]]:
        """Those pairs (earlier, later) of which this grader takes the later for the earlier."""
        unsure = []
        for earlier, later in itertools.combinations(texts, 2):
            if not extraction.are_whole_numbers((later, earlier)):
                unsure.append((later, earlier))
        equal = set()
        for (later, earlier), verdict in self._verdicts(unsure):
            if verdict == "correct":
                equal.add((earlier, later))
        return equal

    def _verdicts(self, pairs: list[Pair]) -> Iterator[tuple[Pair, str]]:
        """Yields (pair, verdict) as they come.

        Every worker is kept busy; those that are late or dead are replaced.
        """
        waiting = pairs[::-1]
        running = 0
        while waiting or running:
            while waiting and len(self.workers) < min(self.wanted, len(waiting) + running):
                self.workers.append(Worker(_SERVE, self.wall_s, self.mode, self.memory_gb))
            for worker in self.workers:
                if worker.ready and worker.request is None and waiting:
                    worker.give(waiting.pop())
                    running += 1
            wait([worker.pipe for worker in self.workers], self._patience_s())
            for worker in list(self.workers):
                pair, reply = worker.request, worker.poll()
                if reply is not None and pair is not None:
                    running -= 1
                    yield pair, _WITHOUT_REPLY.get(str(reply), str(reply))
                if worker.is_over:
                    worker.kill()
                    self.workers.remove(worker)

    def _patience_s(self) -> float:
        """How long to wait for a reply: until the first worker that has work to do is late."""
        deadlines = []
        for worker in self.workers:
            if worker.request is not None or not worker.ready:
                deadlines.append(worker.deadline)
        if not deadlines:
            return 0.0
        return max(0.0, min(deadlines) - time.monotonic())


# ---- what runs in a worker

_SERVE = "dft_jax.evals.graders.pool:serve"


def serve(pipe_number: str, wall_s: str, mode: str, memory_gb: str) -> None:
    """The entry point of a worker: pairs of answer and reference come in, verdicts go out."""
    limit = int(float(memory_gb) * 2**30)

    def start() -> sandbox.Answer:
        sandbox.limit_memory(limit)
        patch_math_verify()
        compare = {"strict": strict_equal, "paper": paper_equal}[mode]
        # Imports, and the grammar's tables, are not on the first item's time.
        for reference in ("\\frac{1}{2}", "x=1", "(1,2)", "\\{1,2\\}", "x^2+\\sqrt{3}"):
            compare("2x+1", reference)
        resident = peak_kib()

        def answer(pair: tuple[str, str]) -> tuple[str, bool]:
            before = peak_kib()
            verdict = judge(compare, *pair)
            peak = peak_kib()
            # math-verify takes a MemoryError inside sympy for "not equal".
            if verdict == "wrong" and (peak - before) * 1024 > limit / 4:
                verdict = "timeout"
            # What a large item leaves behind must not shorten the memory of the next one.
            return verdict, (peak - resident) * 1024 > limit / 4

        return answer

    sandbox.serve(pipe_number, wall_s, start)


def _verdict(is_correct: bool) -> str:
    if is_correct:
        return "correct"
    return "wrong"


def judge(compare: paper.Equal, answer: str, reference: str) -> str:
    """The verdict of one comparison in this process."""
    try:
        return _verdict(compare(answer, reference))
    except MemoryError:
        return "timeout"
    except Exception:
        return "error"


def paper_equal(answer: str, reference: str) -> bool:
    """Whether the two are one answer by the paper's rules."""
    return paper.equal(answer, reference, _close_or_equal)


def _close_or_equal(answer: str, reference: str) -> bool:
    """math-verify's verdict, or both sides numbers within the paper's tolerance."""
    parsed_answer = latex.parse_as_published(answer)
    parsed_reference = latex.parse_as_published(reference)
    equality.begin(answer, reference)
    if latex.verify_as_published(parsed_answer, parsed_reference):
        return True
    a, b = _value(parsed_answer), _value(parsed_reference)
    return a is not None and b is not None and paper.close(a, b)


def _value(parsed: list[Any]) -> float | None:
    """The number that was parsed; None where it is none, or not finite."""
    try:
        value = float(parsed[0].evalf())
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    if not math.isfinite(value):
        return None
    return value


def _wrong_ones(
    keys: Sequence[str | None],
    answers: Sequence[str | None],
    verdicts: Sequence[str],
    correct: dict[str, int],
) -> tuple[Counter[str], dict[str, str]]:
    """How many samples give each wrong answer, by its key, and its first text.

    They are compared as texts, for a key has lost its spaces.
    """
    votes: Counter[str] = Counter()
    text_of: dict[str, str] = {}
    for key, answer, verdict in zip(keys, answers, verdicts, strict=True):
        if key is None or answer is None or key in correct:
            continue
        if verdict == "wrong":
            votes[key] += 1
            text_of.setdefault(key, answer)
    return votes, text_of
