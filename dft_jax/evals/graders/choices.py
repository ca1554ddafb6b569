r"""Judges answers to problems with images: letters of options, or values; no model is a judge.

The answer is what the last \boxed{} holds, and in a text without a box what stands behind the last
"answer is" or "Answer:". Where there are options to choose from it is read as a letter: B, (B), B.,
\text{(B)}, option B, or B with the text of the option behind it. A text without a letter is the
option that it is equal to, if it is equal to one and no other; what is left is no answer. Where
there are no options, the answer has to be equal to the reference (equality.py).

`vlmevalkit` reproduces how VLMEvalKit reads answers to We-Math where no model judges them
(vlmeval/dataset/utils/wemath.py there, and four_dimensional_metrics.py of We-Math itself): the text
behind the last "Answer", without the characters > < : and full stops, counts by its first
character, which has to be one of A to H. So (B), \boxed{B} and **B** are no answers, and a text
without "Answer" that begins with "A triangle" is the answer A.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dft_jax.evals.graders import extraction, pool, spelling
from dft_jax.evals.graders.pool import Graded, Pair
from dft_jax.evals.tasks.task import Option

MODES = ("strict", "vlmevalkit")

# answer is, answer: and their spellings with marks of Markdown or of a tag: **Answer**:, <Answer>:
_ANSWER = re.compile(r"\banswer[ \t*_>\"]{0,4}(?:is\b|:)", re.IGNORECASE)
_LETTERS = "ABCDEFGH"
_READ_BY_VLMEVALKIT = frozenset(_LETTERS)
_DROPPED_BY_VLMEVALKIT = re.compile(r"[><:.]")

# What may stand around a label and says nothing.
_AROUND = re.compile(
    r"\\(?:left|right|displaystyle|bf|rm)(?![A-Za-z])|\\[ ,;:!()\[\]]|\\quad(?![A-Za-z])|[~*`_]|\$"
)
_NAME = re.compile(r"(?:the[ ]+)?(?:correct[ ]+)?(?:option|choice|answer)(?:[ ]+is)?[ :]+", re.I)
# (B), [B], B, B., B), B: and nothing else.
_LABEL = r"[(\[{]?\s*([A-Z])\s*[)\]}]?"
_IS_LABEL = re.compile(rf"{_LABEL}\s*[.:]?")
# C and D; C, D; (C) & (D); one below the other.
_JOIN = r"\s*(?:,|;|&|\n|\band\b)\s*(?:and\b\s*)?"
_IS_LIST = re.compile(rf"{_LABEL}(?:{_JOIN}{_LABEL})+\s*[.]?")
# The label before the text of an option: (B) 42, B. 42, B: 42, B) 42.
_LABELLED = re.compile(r"(?:[(\[]\s*([A-Z])\s*[)\]]|([A-Z])\s*[).:])\s*(.+)", re.DOTALL)
# Another option behind it: (B) or (C), B. C, and B. 42 C. 43, as where all options are repeated.
_JOINED = re.compile(r"(?:(?:and|or)\b|[,;&/])\s*[(\[]?\s*([A-Z])(?![A-Za-z0-9])")
_ANOTHER = re.compile(r"(?<![A-Za-z0-9])[(\[]\s*([A-Z])\s*[)\]]|(?:^|(?<=\s))([A-Z])\s*[).:]")
# Directly behind a label, which then is a part of a word or formula: e.g., (B)-5, A:b.
_GOES_ON = re.compile(r"[a-z]|[-+^_/*=!,<>]")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an answer is held against.

    `answer` is the letters of the right options where there are options, in their order.
    """

    answer: str
    options: tuple[Option, ...] = ()


def bare(text: str) -> str:
    r"""A text without what stands around a label: \text{…}, dollar signs, marks of Markdown."""
    text = extraction.tidy(text)
    text = re.sub(spelling.TEXT, r"\1", text)
    text = _AROUND.sub(" ", text).strip()
    return _NAME.sub("", text, count=1).strip()


def letter_of(text: str, options: Sequence[Option]) -> str | None:
    """The letter of the option that a text names by its letter.

    None where it names none by its letter, and may be an option's text; empty where it begins as if
    it did, and names another one too, as in "(B) or (C)". That an option's text is a letter as well
    changes nothing: a letter that is an option's is it.
    """
    text = bare(text)
    known = {option.letter: option for option in options}
    alone = _IS_LABEL.fullmatch(text)
    if alone:
        return alone[1] if alone[1] in known else None
    labelled = _LABELLED.fullmatch(text)
    if labelled is None:
        return None
    letter, rest = labelled[1] or labelled[2], labelled[3].strip()
    if letter not in known:
        return None
    if spelling.key(rest) == spelling.key(bare(known[letter].text)):
        return letter
    is_glued = not text[labelled.start(3) - 1].isspace() and _GOES_ON.match(rest) is not None
    if is_glued or _names_another(rest, letter, known):
        return ""
    return letter


def _names_another(rest: str, letter: str, known: dict[str, Option]) -> bool:
    """Whether the text behind a label names a second option."""
    for pattern in (_IS_LABEL.fullmatch, _JOINED.match):
        match = pattern(rest)
        if match and match[1] in known:
            return True
    for match in _ANOTHER.finditer(rest):
        other = match[1] or match[2]
        if other in known and other != letter:
            return True
    return False


def letters_of(text: str, options: Sequence[Option]) -> str | None:
    """Letters of several options, sorted: CD for "C and D"; None where they are not a list."""
    text = bare(text)
    if _IS_LIST.fullmatch(text) is None:
        return None
    found = sorted(set(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", text)))
    if not set(found) <= {option.letter for option in options}:
        return None
    return "".join(found)


def reference_of(answer: str, options: Sequence[Option]) -> str | None:
    """The letters that a reference names: B of (B) and of the text of option B, CD of C and D; None
    where it names no option.
    """
    letter = letter_of(answer, options) or letters_of(answer, options)
    if letter:
        return letter
    text = spelling.key(answer)
    same = [
        option.letter for option in options if option.text and spelling.key(option.text) == text
    ]
    if len(same) == 1:
        return same[0]
    return None


def extract_as_vlmevalkit(completion: str) -> str | None:
    """The letter that VLMEvalKit reads, as the head of this file says."""
    text = completion.split("Answer")[-1].strip()
    text = _DROPPED_BY_VLMEVALKIT.sub("", text).strip()
    if text[:1] in _READ_BY_VLMEVALKIT:
        return text[:1]
    return None


class Grader:
    """Judges answers; use it as a context manager.

    Args:
      workers: processes that compare values (pool.py).
      mode: one of MODES.
      last_number, answer_markers: as for other graders; here neither can be chosen.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        mode: str = "strict",
        last_number: bool = False,
        answer_markers: Sequence[str] = extraction.DEFAULT_MARKERS,
    ):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
        if last_number or tuple(answer_markers) != extraction.DEFAULT_MARKERS:
            raise ValueError(f"{last_number=}, {answer_markers=}: what marks an answer is fixed")
        self.mode = mode
        self.pool = pool.Grader(workers=workers)

    def __enter__(self) -> "Grader":
        self.pool.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.__exit__(*exc)

    def grade(
        self,
        items: Sequence[tuple[str, Reference]],
        progress: bool = True,
        check: Callable[[], Any] = pool.no_check,
        truncated: Sequence[bool] = (),
    ) -> list[Graded]:
        """Judges pairs of completion and reference, in their order; as `pool.Grader.grade`.

        What was extracted is the letter, where there are options.
        """
        truncated = truncated or [False] * len(items)
        texts = []
        counts: Counter[Pair] = Counter()
        for (completion, reference), is_cut in zip(items, truncated, strict=True):
            text = self._extract(completion, is_cut)
            texts.append(text)
            counts.update(self._pairs(text, reference))
        # An answer may be compared with several options.
        n_items = max(len(items), counts.total())
        verdicts = self.pool.compare(counts, n_items, progress, check)
        graded = []
        for text, (_, reference) in zip(texts, items, strict=True):
            graded.append(self._graded(text, reference, verdicts))
        return graded

    def _extract(self, completion: str, is_cut: bool) -> str | None:
        if self.mode == "vlmevalkit":
            return extract_as_vlmevalkit(completion)
        return extraction.extract_after(completion, _ANSWER, truncated=is_cut)

    def _named(self, text: str, reference: Reference) -> str | None:
        """The letters that an answer names; None where it may be an option's text, empty where it
        names one and another.
        """
        if self.mode == "vlmevalkit":
            return text
        if len(reference.answer) > 1:
            several = letters_of(text, reference.options)
            if several:
                return several
        return letter_of(text, reference.options)

    def _pairs(self, text: str | None, reference: Reference) -> Iterator[Pair]:
        """The values that have to be compared before this answer is judged."""
        if text is None:
            return
        if not reference.options:
            yield text, reference.answer
        elif self._named(text, reference) is None:
            for option in _with_text(reference):
                yield text, option.text

    def _graded(self, text: str | None, reference: Reference, verdicts: dict[Pair, str]) -> Graded:
        if text is None:
            return Graded("no_answer", None)
        if not reference.options:
            return Graded(verdicts[text, reference.answer], text)
        letters = self._named(text, reference)
        if letters is None:
            found = [verdicts[text, option.text] for option in _with_text(reference)]
            if found.count("correct") == 1:
                letters = _with_text(reference)[found.index("correct")].letter
            elif "timeout" in found:
                return Graded("timeout", text)
            else:
                return Graded("no_answer", None)
        if not letters:
            return Graded("no_answer", None)
        if letters == reference.answer:
            return Graded("correct", letters)
        return Graded("wrong", letters)

    def classes(self, answers: Sequence[str | None], verdicts: Sequence[str]) -> list[int | None]:
        """Sorts one problem's answers by meaning, as `pool.Grader.classes`; letters are compared as
        texts.
        """
        are_letters = all(set(answer or "") <= set(_LETTERS) for answer in answers)
        if not are_letters:
            return self.pool.classes(answers, verdicts)
        numbers: dict[str, int] = {}
        for answer, verdict in zip(answers, verdicts, strict=True):
            if answer is not None and verdict == "correct":
                numbers[answer] = 0
        found: list[int | None] = []
        for answer in answers:
            if answer is None:
                found.append(None)
            else:
                found.append(numbers.setdefault(answer, 1 + len(numbers)))
        return found


def _with_text(reference: Reference) -> list[Option]:
    return [option for option in reference.options if option.text]
