"""Demonstrations that share text with a benchmark's problems: runs of n words in common.

A score on problems that were trained on says little. Words are compared as letters, digits and
underscores between other characters, in lower case, so that neither spaces nor signs hide a copy.
A shared run is no proof: it may be a common phrase, or a task that both took from elsewhere. The
report names rows and problems, for a reader to judge.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dft_jax.data.examples import Examples
from dft_jax.data.templates import Example
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import errors

N_WORDS = 13
# Rows named in the report, of each benchmark; all are counted.
_SHOWN = 5
_WORD = re.compile(r"\w+")

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Shared:
    """A row that shares a run of words with problems."""

    origin: str  # file and line of the row
    problems: tuple[str, ...]  # ids, in the order of the row's text
    words: str  # the first run that is shared
    is_trained: bool  # whether one is in an answer, and not only in what is read


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What the rows of some data share with one benchmark."""

    benchmark: str
    n_words: int
    n_rows: int
    n_problems: int
    too_short: int  # problems of fewer words, which are compared with nothing
    rows: tuple[Shared, ...]

    @property
    def problems(self) -> set[str]:
        """Ids of the problems of which some row has a part."""
        return {one for row in self.rows for one in row.problems}

    def report(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self) | {"problems": sorted(self.problems)}

    def lines(self) -> list[str]:
        """The same for a reader: a line of counts, and one for each of the first rows."""
        what = f"{self.n_words} words in a row with a problem of {self.benchmark}"
        counts = f"{len(self.rows):,} of {self.n_rows:,} rows share {what}"
        n_trained = sum(row.is_trained for row in self.rows)
        counts += f" ({n_trained:,} of them in an answer)"
        counts += f"; {len(self.problems):,} of its {self.n_problems:,} problems are concerned"
        if self.too_short:
            counts += f"; {self.too_short:,} problems have fewer words, and were not looked for"
        lines = [counts]
        for row in self.rows[:_SHOWN]:
            shown = ", ".join(row.problems[:_SHOWN])
            lines.append(errors.printable(f"  {row.origin}: {shown}: “{row.words}”"))
        if len(self.rows) > _SHOWN:
            lines.append(f"  … and {len(self.rows) - _SHOWN:,} more rows")
        return lines


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> words_of("def f_1(x):  # One\\n")
    ['def', 'f_1', 'x', 'one']
    """
    return _WORD.findall(text.lower())


def grams(words: Sequence[str], n: int) -> Iterator[Gram]:
    """All runs of n words, in order."""
    for start in range(len(words) - n + 1):
        yield tuple(words[start : start + n])


@dataclasses.dataclass(frozen=True)
class _Index:
    """The runs of words of a benchmark's problems."""

    benchmark: str
    n_problems: int
    too_short: int
    problems_of: dict[Gram, list[str]]

    @classmethod
    def of(cls, benchmark: str, problems: Sequence[Problem], n_words: int) -> "_Index":
        problems_of: dict[Gram, list[str]] = collections.defaultdict(list)
        too_short = 0
        for problem in problems:
            words = words_of(problem.question)
            too_short += len(words) < n_words
            for gram in dict.fromkeys(grams(words, n_words)):
                problems_of[gram].append(problem.id)
        return cls(benchmark, len(problems), too_short, dict(problems_of))


@dataclasses.dataclass(frozen=True)
class _Part:
    """The runs of words of a question or an answer, in order."""

    grams: list[Gram]
    is_trained: bool


def overlaps(
    problems: dict[str, list[Problem]],
    examples: Examples,
    tokenizer: Tokenizer,
    n_words: int = N_WORDS,
) -> list[Overlap]:
    """Which examples share a run of words with the questions of which problems, by benchmark.

    The rows are read once for all benchmarks: to decode 7,473 of them takes longer than to look
    their words up.

    Args:
      problems: of each benchmark.
      examples: as they are trained: what was cut off is not looked at.
      n_words: in a row.
    """
    indices = [_Index.of(name, asked, n_words) for name, asked in problems.items()]
    rows_of: dict[str, list[Shared]] = {name: [] for name in problems}
    for origin, example in zip(examples.origins, examples.examples, strict=True):
        parts = _parts(example, tokenizer, n_words)
        for index in indices:
            shared = _shared(origin, parts, index)
            if shared is not None:
                rows_of[index.benchmark].append(shared)
    found = []
    for index in indices:
        rows = tuple(rows_of[index.benchmark])
        counts = (len(examples), index.n_problems, index.too_short)
        found.append(Overlap(index.benchmark, n_words, *counts, rows))
    return found


def _parts(example: Example, tokenizer: Tokenizer, n_words: int) -> list[_Part]:
    """Question and answer by themselves: a run over the border between them is in neither."""
    parts = []
    borders = np.flatnonzero(np.diff(example.trained)) + 1
    for ids, trained in zip(
        np.split(example.ids, borders), np.split(example.trained, borders), strict=True
    ):
        words = words_of(_text(ids, tokenizer))
        parts.append(_Part(list(grams(words, n_words)), bool(trained[0])))
    return parts


def _text(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text without its special tokens, of which each leaves a space.

    Else the last word of a question and the role of what follows were one under Llama 3's template,
    as in "pensassistant".
    """
    is_special = np.isin(ids, tokenizer.all_special_ids)
    runs = np.split(ids, np.flatnonzero(np.diff(is_special)) + 1)
    return " ".join(tokenizer.decode(run, skip_special_tokens=True) for run in runs)


def _shared(origin: str, parts: list[_Part], index: _Index) -> Shared | None:
    """What one example shares with problems; None for nothing."""
    found: dict[str, None] = {}  # an ordered set
    first = ""
    is_trained = False
    for part in parts:
        for gram in part.grams:
            if gram in index.problems_of:
                first = first or " ".join(gram)
                is_trained = is_trained or part.is_trained
                found.update(dict.fromkeys(index.problems_of[gram]))
    if not found:
        return None
    return Shared(origin, tuple(found), first, is_trained)


def load(names: Sequence[str], place: str) -> dict[str, list[Problem]]:
    """The problems of these benchmarks, by name; `place` is a file, a folder, or empty for the hub.

    Raises:
      UserError: an unknown benchmark, or one that cannot be read; or a place for no benchmark.
    """
    if place and not names:
        what = f"--benchmark_data={place} has no effect without --contamination"
        raise errors.UserError(f"{what}; name the benchmarks, or remove it")
    try:
        return {name: benchmarks.load(name, place) for name in names}
    except errors.UserError as error:
        raise errors.UserError([f"--contamination: {one}" for one in error.problems]) from error
