r"""Grades answers against references in worker processes that may hang, run out of memory, or die,
and are replaced.

math-verify decides whether two answers are equal. It parses LaTeX with a grammar and computes with
sympy, and `9^{9^{9^{9}}}` keeps it busy for ever. Its own time limits use SIGALRM, which works in
main threads only and cannot interrupt one long multiplication. So they are off, and the parent
kills a worker that is late.

Its `ExprExtractionConfig` is never used: that one hands text to sympy's parser, which is Python's
own evaluator; `latex.prepare` closes the one such path that its LaTeX side has. On top of that a
worker refuses, by an audit hook, to compile or run a string, to open a file for writing, to start a
process or to open a socket; an item that tries is an `error`.
"""

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait

from tqdm import tqdm

from dft_jax.evals.graders import equality, extraction, latex, paper, spelling
from dft_jax.evals.graders.equality import prepare, strict_equal
from dft_jax.runtime import sandbox
from dft_jax.runtime.sandbox import Worker
from dft_jax.runtime.system import peak_kib

# timeout: the time or memory of one item ran out. error: the comparison failed in some other way,
# or its process died.
VERDICTS: tuple[str, ...] = ("correct", "wrong", "no_answer", "timeout", "error")
MODES = ("strict", "paper")
# the strict mode's; 1 took trailing letters for units, lists for sets, and rounded to six decimals
RULES = 2
# texts of one problem that are compared each with each when answers are sorted by meaning
COMPARED = 8
_WITHOUT_REPLY = {sandbox.LATE: "timeout", sandbox.DEAD: "error", sandbox.REFUSED: "error"}


@dataclasses.dataclass(frozen=True)
class Graded:
    verdict: str  # one of VERDICTS
    extracted: str | None  # the answer's text, None where the completion has none


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
        self.mode, self.last_number, self.answer_markers = mode, last_number, tuple(answer_markers)
        self.wall_s, self.memory_gb = wall_s, memory_gb
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
        items: Sequence[tuple[str, str]],
        progress: bool = True,
        check: Callable[[], None] = no_check,
        truncated: Sequence[bool] = (),
    ) -> list[Graded]:
        """Grades (completion, reference) pairs in their order; equal answers to equal references
        are graded once.

        `check` is called with every verdict; what it raises ends the grading. `truncated` says of
        each completion whether its limit of tokens cut it; by default of none.
        """
        cut = truncated or [False] * len(items)
        pairs = zip(items, cut, strict=True)
        answers = [
            (self.extract(completion, is_cut), reference)
            for (completion, reference), is_cut in pairs
        ]
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
        keys = [
            None if answer is None else spelling.key(spelling.spell(answer)) for answer in answers
        ]
        class_of: dict[str, int] = {}
        votes: Counter = Counter()  # of the keys that are to be compared
        text_of: dict[str, str] = {}  # a key has lost its spaces, so an answer is what is compared
        for key, verdict in zip(keys, verdicts, strict=True):
            if key is not None and verdict == "correct":
                class_of[key] = 0
        for key, answer, verdict in zip(keys, answers, verdicts, strict=True):
            if key is not None and key not in class_of and verdict == "wrong":
                votes[key] += 1
                text_of.setdefault(key, answer)
        frequent = [key for key, _ in votes.most_common(COMPARED)]
        equal = self._equal_pairs([text_of[key] for key in frequent])
        for key in frequent:
            like = [
                other
                for other in frequent
                if other in class_of and (text_of[other], text_of[key]) in equal
            ]
            class_of[key] = class_of[like[0]] if like else 1 + max(class_of.values(), default=0)
        for key in keys:
            if key is not None and key not in class_of:
                class_of[key] = 1 + max(class_of.values(), default=0)
        return [None if key is None else class_of[key] for key in keys]

    def _equal_pairs(self, texts: list[str]) -> set[tuple[str, str]]:
        """Those pairs (earlier, later) of which this grader takes the later for the earlier."""
        pairs = [(later, earlier) for earlier, later in itertools.combinations(texts, 2)]
        unsure = [pair for pair in pairs if not extraction.are_whole_numbers(pair)]
        return {pair[::-1] for pair, verdict in self._verdicts(unsure) if verdict == "correct"}

    def _verdicts(self, pairs: list[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], str]]:
        """Yields (pair, verdict) as they come, keeping every worker busy and replacing those that
        are late or dead.
        """
        waiting = pairs[::-1]
        running = 0
        while waiting or running:
            while waiting and len(self.workers) < min(self.wanted, len(waiting) + running):
                self.workers.append(
                    Worker(
                        "dft_jax.evals.graders.pool:serve", self.wall_s, self.mode, self.memory_gb
                    )
                )
            for worker in self.workers:
                if worker.ready and worker.request is None and waiting:
                    worker.give(waiting.pop())
                    running += 1
            deadlines = [w.deadline for w in self.workers if w.request is not None or not w.ready]
            wait(
                [w.pipe for w in self.workers],
                max(0.0, min(deadlines) - time.monotonic()) if deadlines else 0.0,
            )
            for worker in list(self.workers):
                pair, reply = worker.request, worker.poll()
                if reply is not None and pair is not None:
                    running -= 1
                    yield pair, _WITHOUT_REPLY.get(reply, reply)
                if worker.is_over:
                    worker.kill()
                    self.workers.remove(worker)


# ---- what runs in a worker
# ------------------------------------------------------------------------------------------


def serve(pipe_number: str, wall_s: str, mode: str, memory_gb: str) -> None:
    """The entry point of a worker: pairs of answer and reference come in, verdicts go out."""
    limit = int(float(memory_gb) * 2**30)

    def start() -> sandbox.Answer:
        sandbox.limit_memory(limit)
        prepare()
        compare = {"strict": strict_equal, "paper": paper_equal}[mode]
        for reference in ("\\frac{1}{2}", "x=1", "(1,2)", "\\{1,2\\}", "x^2+\\sqrt{3}"):
            # imports, and the grammar's tables, are not on the first item's time
            compare("2x+1", reference)
        resident = peak_kib()

        def answer(pair: tuple[str, str]) -> tuple[str, bool]:
            before, verdict, peak = peak_kib(), judge(compare, *pair), peak_kib()
            if verdict == "wrong" and (peak - before) * 1024 > limit / 4:
                verdict = "timeout"  # math-verify takes a MemoryError inside sympy for "not equal"
            # What a large item leaves behind must not shorten the memory of the next one.
            return verdict, (peak - resident) * 1024 > limit / 4

        return answer

    sandbox.serve(pipe_number, wall_s, start)


def judge(compare: paper.Equal, answer: str, reference: str) -> str:
    """The verdict of one comparison in this process."""
    try:
        return "correct" if compare(answer, reference) else "wrong"
    except MemoryError:
        return "timeout"
    except Exception:
        return "error"


def paper_equal(answer: str, reference: str) -> bool:
    return paper.equal(answer, reference, _close_or_equal)


def _close_or_equal(answer: str, reference: str) -> bool:
    """math-verify's verdict, or both sides numbers within the paper's tolerance."""
    parsed = latex.parse_as_published(answer), latex.parse_as_published(reference)
    equality.begin(answer, reference)
    if latex.verify_as_published(*parsed):
        return True
    numbers = [_value(side) for side in parsed]
    return None not in numbers and paper.close(*numbers)


def _value(parsed: list) -> float | None:
    try:
        value = float(parsed[0].evalf())
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
