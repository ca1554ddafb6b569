"""What becomes of the rows of a file: the account in data_report.json, and what is said of it."""

import collections
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dft_jax.data import formats
from dft_jax.data.sources.rows import Message, is_only_read
from dft_jax.data.templates import Example, Part
from dft_jax.runtime import errors, processes

_MAX_OFFENDERS, _SHOWN_BAD, _SHOWN_CHARACTERS = 5, 3, 8  # in the report, and in messages
_KEPT = 0.99  # of the rows, by the length that is proposed
_LIMIT = "data.max_length"
# Shares of the rows, or of the characters, above which a warning says so.
_MANY_LOST, _MANY_EQUAL, _MANY_FILLED, _MANY_UNREADABLE = 0.02, 0.02, 0.01, 0.001


class Account:
    """Counts what becomes of every row, column, character and token."""

    def __init__(self):
        self.rows_read = self.rows_truncated = self.tokens_cut = self.tokens_dropped = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.offenders: list[str] = []
        self.bad: list[str] = []
        self.answers_trained = self.answers_read = 0
        self.lengths: list[int] = []  # in tokens, before the cut
        self.columns_read: set[str] = set()
        self.columns_filled: collections.Counter[str] = collections.Counter()
        self.n_characters = 0
        self.lost_characters: collections.Counter[str] = collections.Counter()
        self.rows_with_lost: list[str] = []

    def _offender(self, where: str, text: str) -> None:
        if len(self.offenders) < _MAX_OFFENDERS:
            self.offenders.append(f"{where}: {text}")

    def bad_row(self, where: str, problem: str) -> None:
        self.dropped["bad_row"] += 1
        self._offender(where, problem)
        if len(self.bad) < _SHOWN_BAD:
            self.bad.append(f"{where}: {problem}")

    def refuse_bad_rows(self) -> None:
        more = self.dropped["bad_row"] - len(self.bad)
        drop = "data.bad_rows='drop' leaves them all out, counted"
        tail = [f"… and {more} more bad rows; {drop}"] if more else []
        errors.raise_if_any(self.bad + tail)

    def count_columns(self, row: formats.Columns) -> None:
        self.columns_read |= row.asked_for
        self.columns_filled.update(row.filled())

    def count_answers(self, where: str, messages: list[Message], parts: list[Part]) -> None:
        """`messages` that say of themselves that they are not trained are no offence."""
        n_trained = sum(part.trained for part in parts)
        n_answers = sum(message["role"] == "assistant" for message in messages)
        n_meant = n_answers - sum(is_only_read(message) for message in messages)
        self.answers_trained += n_trained
        self.answers_read += n_answers - n_trained
        if n_trained < n_meant:
            what = "the template shows the others differently once later turns follow"
            self._offender(where, f"{n_trained} of {n_meant} answers are trained: {what}")

    def drop(self, where: str, reason: str, n_tokens: int) -> None:
        self.dropped[reason] += 1
        self.tokens_dropped += n_tokens
        self.lengths.append(n_tokens)
        self._offender(where, f"{reason} ({n_tokens} tokens)")

    def use(self, where: str, example: Example) -> None:
        self.lengths.append(len(example.ids) + example.cut_tokens)
        self.n_characters += example.n_characters
        if example.lost_characters:
            self.lost_characters.update(example.lost_characters)
            self.rows_with_lost.append(where)
        if example.cut_tokens:
            self.rows_truncated += 1
            self.tokens_cut += example.cut_tokens
            self._offender(where, f"truncated by {example.cut_tokens} tokens, EOS among them")

    def report(
        self, path: str, max_length: int, places: list[str], examples: list[Example]
    ) -> dict[str, Any]:
        """Plain values, of the examples that are used and of where each stands."""
        used_tokens = sum(len(example.ids) for example in examples)
        most_lost = self.lost_characters.most_common(_SHOWN_CHARACTERS)
        unread = {
            name: n for name, n in self.columns_filled.items() if name not in self.columns_read
        }
        return {
            "path": path,
            "rows": {
                "read": self.rows_read,
                "used_whole": len(examples) - self.rows_truncated,
                "truncated": self.rows_truncated,
                "dropped": dict(self.dropped),
            },
            "tokens": {
                "read": used_tokens + self.tokens_cut + self.tokens_dropped,
                "used": used_tokens,
                "supervised": sum(int(example.trained[1:].sum()) for example in examples),
                "truncated": self.tokens_cut,
                "dropped": self.tokens_dropped,
                "longest_example": max(len(example.ids) for example in examples),
                "longest_read": max(self.lengths),
                "max_length": max_length,
                "max_length_for_99_percent": length_for(_KEPT, self.lengths),
            },
            "answers": {"trained": self.answers_trained, "only_read": self.answers_read},
            "columns": {"read": sorted(self.columns_read), "unread": dict(sorted(unread.items()))},
            "equal_rows": equal_rows(places, examples),
            "characters": {
                "used": self.n_characters,
                "without_token": self.lost_characters.total(),
                "rows": len(self.rows_with_lost),
                "most_common": "".join(character for character, _ in most_lost),
                "first": self.rows_with_lost[:_SHOWN_BAD],
            },
            "first_offenders": self.offenders,
            "sha256": digest(examples),
        }


def length_for(share: float, lengths: Sequence[int]) -> int:
    """The smallest length that cuts at most 1 - `share` of `lengths`."""
    return int(np.quantile(lengths, share, method="inverted_cdf"))


def digest(examples: list[Example]) -> str:
    """SHA-256 of all tokens and masks."""
    total = hashlib.sha256()
    for example in examples:
        total.update(len(example.ids).to_bytes(8, "little") + _content(example))
    return total.hexdigest()


def _content(example: Example) -> bytes:
    """Its tokens and its mask."""
    return example.ids.tobytes() + example.trained.tobytes()


def _key(example: Example) -> bytes:
    """Equal for equal tokens and masks."""
    return hashlib.blake2b(_content(example), digest_size=16).digest()


def _prompt_key(example: Example) -> bytes:
    """Equal for equal tokens before the first trained one."""
    prompt = example.ids[: int(example.trained.argmax())]
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()


def equal_rows(places: list[str], examples: list[Example]) -> dict[str, Any]:
    """How many examples equal an earlier one, token by token, and the first that does."""
    first_place: dict[bytes, str] = {}
    number, first = 0, ""
    for place, example in zip(places, examples, strict=True):
        key = _key(example)
        if key in first_place:
            number += 1
            first = first or f"{place} equals {first_place[key]}"
        else:
            first_place[key] = place
    return {"number": number, "first": first}


def also_trained(
    places: list[str], heldout: list[Example], train_places: list[str], train: list[Example]
) -> dict[str, Any]:
    """How many held-out examples are trained too, as they are, or with another answer."""
    trained: dict[bytes, str] = {}
    for place, example in zip(train_places, train, strict=True):
        trained.setdefault(_key(example), place)
    prompts = {_prompt_key(example) for example in train}
    number, number_of_prompts, first = 0, 0, ""
    for place, example in zip(places, heldout, strict=True):
        place_in_train = trained.get(_key(example))
        if place_in_train is not None:
            number += 1
            first = first or f"{place} is {place_in_train}"
        elif _prompt_key(example) in prompts:
            number_of_prompts += 1
    return {"rows": number, "first": first, "prompts_with_another_answer": number_of_prompts}


# ---- what is said of it
# -------------------------------------------------------------------------------------


def lines(name: str, report: dict[str, Any]) -> list[str]:
    """The account for a reader; `name` is what the user calls the file, as in data.train."""
    rows, tokens = report["rows"], report["tokens"]
    n_dropped = sum(rows["dropped"].values())
    counts = f"{rows['read']:,} rows read: {rows['used_whole']:,} whole"
    counts += f", {rows['truncated']:,} cut, {n_dropped:,} dropped"
    length = f"the longest has {tokens['longest_read']:,} tokens"
    found = [f"{name}: {counts}; {tokens['supervised']:,} trained tokens; {length}"]
    said = []
    if unread := report["columns"]["unread"]:
        said.append(f"columns that are not read: {', '.join(unread)}")
    if report["equal_rows"]["number"]:
        said.append(f"{report['equal_rows']['number']:,} rows equal an earlier one")
    if said:
        found.append(f"{name}: {'; '.join(said)}")
    return found


def warnings(name: str, report: dict[str, Any], limit: str = _LIMIT) -> list[str]:
    """What a user would want to know before training on it, a line each.

    `limit` is what the user calls the largest length of an example.
    """
    found = []
    if _lost_share(report) > _MANY_LOST:
        found.append(f"{name}: {_losses(report, limit)}")
    n_read, equal = report["rows"]["read"], report["equal_rows"]
    if equal["number"] > _MANY_EQUAL * n_read:
        what = f"{equal['number']:,} of {n_read:,} rows equal an earlier one ({equal['first']})"
        found.append(f"{name}: {what}; each counts as often as it is there")
    for column, n in report["columns"]["unread"].items():
        if column in formats.CHANGES_MEANING and n > _MANY_FILLED * n_read:
            what = f"column {column!r} is filled in {n:,} of {n_read:,} rows, and not read"
            formats_ = "alpaca does" if column == "input" else "others may"
            found.append(
                f"{name}: {what} by this row format; {formats_}, or put it into the prompt"
            )
    characters = report["characters"]
    if characters["without_token"] > _MANY_UNREADABLE * characters["used"]:
        what = f"the tokenizer has no token for {characters['without_token']:,} of"
        what += f" {characters['used']:,} characters, in {characters['rows']:,} rows"
        what += f" (such as {characters['most_common']!r}, first in {characters['first'][0]})"
        found.append(f"{name}: {what}; the model never sees them")
    if also := report.get("also_trained"):
        if also["rows"]:
            what = f"{also['rows']:,} rows are trained as well ({also['first']})"
            found.append(f"{name}: {what}; their nll says nothing of new text")
        if n := also["prompts_with_another_answer"]:
            found.append(f"{name}: the prompts of {n:,} rows are trained with another answer")
    return found


def refusals(name: str, report: dict[str, Any], most: float) -> list[str]:
    """Why a run should not begin on this: more than `most` of the rows are cut or dropped."""
    if _lost_share(report) <= most:
        return []
    accept = f"set data.max_lost_fraction above {most:g} to train on it as it is"
    return [f"config.{name}: {_losses(report, _LIMIT)}; or {accept}"]


def _lost_share(report: dict[str, Any]) -> float:
    rows = report["rows"]
    return (rows["read"] - rows["used_whole"]) / rows["read"]


def _losses(report: dict[str, Any], limit: str) -> str:
    """How many rows are not trained whole, why, and what would keep them."""
    rows, tokens = report["rows"], report["tokens"]
    reasons, remedies = [], []
    if rows["truncated"]:
        what = f"cut at {limit}={tokens['max_length']}, so that their EOS is not trained"
        reasons.append(f"{rows['truncated']:,} {what}")
    reasons += [f"{n:,} dropped as {reason}" for reason, n in rows["dropped"].items()]
    if rows["truncated"] or "prompt_too_long" in rows["dropped"]:
        longer = tokens["max_length_for_99_percent"]
        remedies.append(f"{limit}={longer} would keep 99 % whole")
    if "bad_row" in rows["dropped"]:
        remedies.append("data.bad_rows='refuse' says what is wrong with the bad ones")
    n_lost = rows["read"] - rows["used_whole"]
    lost = f"{n_lost:,} of {rows['read']:,} rows ({_lost_share(report):.1%}) are not trained whole"
    return f"{lost}: {', '.join(reasons)}; {', '.join(remedies)}"


def tell(name: str, report: dict[str, Any], limit: str = _LIMIT) -> None:
    """Says the account of one file and what to know of it; `name` and `limit` as in `warnings`."""
    announce(lines(name, report), warnings(name, report, limit))


def announce(told: list[str], warned: list[str]) -> None:
    """Says it on process 0."""
    if processes.is_first():
        for line in told:
            print(line, file=sys.stderr)
        for line in warned:
            print(f"warning: {line}", file=sys.stderr, flush=True)
