"""What becomes of the rows of a file: the account in data_report.json, and what is said of it."""

import collections
import hashlib
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dft_jax.data import formats
from dft_jax.data.columns import Columns
from dft_jax.data.messages import Message, is_only_read
from dft_jax.data.templates import Example, Part
from dft_jax.runtime import errors, processes

# Examples that are dropped for their images: one would be cut, or they have too many patches.
IMAGE_CUT = "image_cut"
TOO_MANY_PATCHES = "too_many_patches"
# Of each kind, in the report and in messages.
_MAX_OFFENDERS = 5
_SHOWN_BAD = 3
_SHOWN_CHARACTERS = 8
# Share of the rows that the proposed length keeps whole.
_KEPT = 0.99
_LIMIT = "data.max_length"
# Shares of the rows above which a warning says so; the last is of the characters.
_MANY_LOST = 0.02
_MANY_EQUAL = 0.02
_MANY_FILLED = 0.01
_MANY_UNREADABLE = 0.001


class Account:
    """Counts what becomes of every row, column, character and token."""

    def __init__(self):
        self.rows_read = 0
        self.rows_truncated = 0
        self.dropped: collections.Counter[str] = collections.Counter()  # rows, by reason
        self.tokens_cut = 0
        self.tokens_dropped = 0
        self.offenders: list[str] = []
        self.bad: list[str] = []
        self.n_answers_trained = 0
        self.n_answers_read = 0
        self.lengths: list[int] = []  # in tokens, before the cut
        self.columns_read: set[str] = set()
        self.columns_filled: collections.Counter[str] = collections.Counter()
        self.n_characters = 0
        self.lost_characters: collections.Counter[str] = collections.Counter()
        self.rows_with_lost: list[str] = []

    # Only the first few are kept: a file of a million bad rows has as many offenders.
    def _add_offender(self, origin: str, text: str) -> None:
        if len(self.offenders) < _MAX_OFFENDERS:
            self.offenders.append(f"{origin}: {text}")

    def bad_row(self, origin: str, problem: str) -> None:
        """Counts a row that cannot be trained on."""
        self.dropped["bad_row"] += 1
        self._add_offender(origin, problem)
        if len(self.bad) < _SHOWN_BAD:
            self.bad.append(f"{origin}: {problem}")

    def refuse_bad_rows(self) -> None:
        """UserError where there was a bad row, with the first few."""
        problems = list(self.bad)
        more = self.dropped["bad_row"] - len(problems)
        if more:
            drop = "data.bad_rows='drop' leaves them all out, counted"
            problems.append(f"… and {more} more bad rows; {drop}")
        errors.raise_if_any(problems)

    def count_columns(self, row: Columns) -> None:
        """Counts which columns of a row say something, and which a row format asked for."""
        self.columns_read |= row.asked_for
        self.columns_filled.update(row.filled())

    def answers_read(self, origin: str, messages: list[Message], parts: list[Part]) -> int:
        """How many answers of a row are only read.

        `messages` that say of themselves that they are not trained are no offence.
        """
        n_answers = 0
        n_meant = 0  # to be trained
        for message in messages:
            if message["role"] == "assistant":
                n_answers += 1
                n_meant += not is_only_read(message)
        n_trained = sum(part.trained for part in parts)
        if n_trained < n_meant:
            why = "the template shows the others differently once later turns follow"
            self._add_offender(origin, f"{n_trained} of {n_meant} answers are trained: {why}")
        return n_answers - n_trained

    def count_answers(self, parts: list[Part], n_read: int) -> None:
        """Counts the answers of an example that is trained, of which `n_read` are only read."""
        self.n_answers_trained += sum(part.trained for part in parts)
        self.n_answers_read += n_read

    def drop(self, origin: str, reason: str, n_tokens: int) -> None:
        """Counts an example of which nothing is trained."""
        self.dropped[reason] += 1
        self.tokens_dropped += n_tokens
        self.lengths.append(n_tokens)
        self._add_offender(origin, f"{reason} ({n_tokens} tokens)")

    def leave_out(self, reason: str) -> None:
        """Counts a row that the data itself says is not trained: no loss to speak of."""
        self.dropped[reason] += 1

    def use(self, origin: str, example: Example) -> None:
        """Counts an example that is trained, whole or cut."""
        self.lengths.append(len(example.ids) + example.cut_tokens)
        self.n_characters += example.n_characters
        if example.lost_characters:
            self.lost_characters.update(example.lost_characters)
            self.rows_with_lost.append(origin)
        if example.cut_tokens:
            self.rows_truncated += 1
            self.tokens_cut += example.cut_tokens
            cut = f"truncated by {example.cut_tokens} tokens, EOS among them"
            self._add_offender(origin, cut)

    def report(
        self, path: str, max_length: int, origins: list[str], examples: list[Example]
    ) -> dict[str, Any]:
        """The account as plain values, for data_report.json.

        Args:
          path: what was read.
          max_length: tokens of an example at most.
          origins: file and line of each example.
          examples: those that are used.
        """
        report = {
            "path": path,
            "rows": {
                "read": self.rows_read,
                "used_whole": len(examples) - self.rows_truncated,
                "truncated": self.rows_truncated,
                "dropped": dict(self.dropped),
            },
            "tokens": self._tokens_report(max_length, examples),
            "answers": {"trained": self.n_answers_trained, "only_read": self.n_answers_read},
            "columns": self._columns_report(),
            "equal_rows": equal_rows(origins, examples),
            "characters": self._characters_report(),
            "first_offenders": self.offenders,
            "sha256": digest(examples),
        }
        weights = _weights_report(examples)
        if weights:
            report["weights"] = weights
        images = _images_report(examples)
        if images:
            report["images"] = images
        return report

    def _tokens_report(self, max_length: int, examples: list[Example]) -> dict[str, int]:
        used = 0
        supervised = 0
        longest = 0
        for example in examples:
            used += len(example.ids)
            longest = max(longest, len(example.ids))
            # The first token of an example is never a target.
            supervised += int(example.target_mask().sum())
        return {
            "read": used + self.tokens_cut + self.tokens_dropped,
            "used": used,
            "supervised": supervised,
            "truncated": self.tokens_cut,
            "dropped": self.tokens_dropped,
            "longest_example": longest,
            "longest_read": max(self.lengths),
            "max_length": max_length,
            "max_length_for_99_percent": length_for(_KEPT, self.lengths),
        }

    def _columns_report(self) -> dict[str, Any]:
        unread = {}
        for name, n_filled in sorted(self.columns_filled.items()):
            if name not in self.columns_read:
                unread[name] = n_filled
        return {"read": sorted(self.columns_read), "unread": unread}

    def _characters_report(self) -> dict[str, Any]:
        most_lost = self.lost_characters.most_common(_SHOWN_CHARACTERS)
        return {
            "used": self.n_characters,
            "without_token": self.lost_characters.total(),
            "rows": len(self.rows_with_lost),
            "most_common": "".join(character for character, _ in most_lost),
            "first": self.rows_with_lost[:_SHOWN_BAD],
        }


def _weights_report(examples: list[Example]) -> dict[str, float]:
    """Weights in the loss; empty where all trained tokens weigh 1."""
    if all(example.is_plain for example in examples):
        return {}
    weights = [example.weight for example in examples]
    total = sum(float(example.target_weights().sum(dtype=np.float64)) for example in examples)
    return {
        "smallest_of_a_row": min(weights),
        "largest_of_a_row": max(weights),
        "of_prompt_tokens": examples[0].prompt_weight,
        "sum_over_tokens": total,
    }


def _images_report(examples: list[Example]) -> dict[str, int]:
    """Images that are read; empty where there are none."""
    pictures = [picture for example in examples for picture in example.images]
    if not pictures:
        return {}
    return {
        "read": len(pictures),
        "bytes": sum(picture.n_bytes for picture in pictures),
        "exif_turned": sum(picture.is_turned for picture in pictures),
    }


def length_for(share: float, lengths: Sequence[int]) -> int:
    """The smallest length that cuts at most 1 - `share` of `lengths`."""
    # The quantile that is itself one of the lengths, and not a value between two of them.
    return int(np.quantile(lengths, share, method="inverted_cdf"))


def digest(examples: list[Example]) -> str:
    """SHA-256 of all tokens and masks, of images, and of the weights that are not 1."""
    total = hashlib.sha256()
    for example in examples:
        # With the length: else the border between two examples could be moved.
        total.update(len(example.ids).to_bytes(8, "little") + _content(example))
        # What weighs 1 has the hash that it had before there were weights.
        if example.weight != 1 or example.prompt_weight:
            total.update(struct.pack("<dd", example.weight, example.prompt_weight))
        if example.images:
            total.update(_images(example))
    return total.hexdigest()


def _content(example: Example) -> bytes:
    """Its tokens and its mask."""
    return example.ids.tobytes() + example.trained.tobytes()


def _images(example: Example) -> bytes:
    """Equal for equal images in the same order; nothing where there are none."""
    return b"".join(picture.identity() for picture in example.images)


def _key(example: Example) -> bytes:
    """Equal for equal tokens, masks and images."""
    return hashlib.blake2b(_content(example) + _images(example), digest_size=16).digest()


def _prompt_key(example: Example) -> bytes:
    """Equal for equal tokens before the first trained one, and equal images."""
    prompt = example.ids[: int(example.trained.argmax())]
    return hashlib.blake2b(prompt.tobytes() + _images(example), digest_size=16).digest()


def equal_rows(origins: list[str], examples: list[Example]) -> dict[str, Any]:
    """How many examples equal an earlier one, token by token, and the first that does."""
    first_origin: dict[bytes, str] = {}
    number = 0
    first = ""
    for origin, example in zip(origins, examples, strict=True):
        key = _key(example)
        if key in first_origin:
            number += 1
            first = first or f"{origin} equals {first_origin[key]}"
        else:
            first_origin[key] = origin
    return {"number": number, "first": first}


def also_trained(
    origins: list[str], heldout: list[Example], train_origins: list[str], train: list[Example]
) -> dict[str, Any]:
    """How many held-out examples are trained too, as they are, or with another answer."""
    origin_in_train: dict[bytes, str] = {}
    for origin, example in zip(train_origins, train, strict=True):
        origin_in_train.setdefault(_key(example), origin)
    prompts = {_prompt_key(example) for example in train}
    # The same row twice tells nothing new; the same question with another answer may.
    number = 0
    number_of_prompts = 0
    first = ""
    for origin, example in zip(origins, heldout, strict=True):
        same = origin_in_train.get(_key(example))
        if same is not None:
            number += 1
            first = first or f"{origin} is {same}"
        elif _prompt_key(example) in prompts:
            number_of_prompts += 1
    return {"rows": number, "first": first, "prompts_with_another_answer": number_of_prompts}


# ---- what is said of it


def lines(name: str, report: dict[str, Any]) -> list[str]:
    """The account for a reader; `name` is what the user calls the file, as in data.train."""
    if "sources" in report:
        return _of_each(lines, name, report)
    rows = report["rows"]
    tokens = report["tokens"]
    n_dropped = sum(rows["dropped"].values()) - rows["dropped"].get(formats.NOT_DRAWN, 0)
    counts = f"{rows['read']:,} rows read: {rows['used_whole']:,} whole"
    counts += f", {rows['truncated']:,} cut, {n_dropped:,} dropped"
    length = f"the longest has {tokens['longest_read']:,} tokens"
    found = [f"{name}: {counts}; {tokens['supervised']:,} trained tokens; {length}"]
    details = []
    if "sample" in report:
        sample = report["sample"]
        of = f"of {sample['of_usable_rows']:,} usable ones, with seed {sample['seed']}"
        details.append(f"{sample['rows']:,} rows drawn {of}")
    if "images" in report:
        images = report["images"]
        megabytes = images["bytes"] / 1e6
        turned = f", {images['exif_turned']:,} of them turned by EXIF"
        details.append(f"{images['read']:,} images of {megabytes:,.1f} MB{turned}")
    unread = report["columns"]["unread"]
    if unread:
        details.append(f"columns that are not read: {', '.join(unread)}")
    n_equal = report["equal_rows"]["number"]
    if n_equal:
        details.append(f"{n_equal:,} rows equal an earlier one")
    n_weightless = rows["dropped"].get(formats.WEIGHT_0, 0)
    if n_weightless:
        details.append(f"{n_weightless:,} of the dropped rows have weight 0")
    n_unanswered = rows["dropped"].get(formats.NO_ANSWER, 0)
    if n_unanswered:
        details.append(f"{n_unanswered:,} of the dropped rows have no rated answer")
    if details:
        found.append(f"{name}: {'; '.join(details)}")
    return found


def warnings(name: str, report: dict[str, Any], limit: str = _LIMIT) -> list[str]:
    """What a user would want to know before training on it, a line each.

    `limit` is what the user calls the largest length of an example.
    """
    if "sources" in report:
        return _of_each(warnings, name, report, limit)
    found = []
    if _lost_share(report) > _MANY_LOST:
        found.append(_losses(report, limit))
    found += _equal_warnings(report)
    found += _column_warnings(report)
    found += _character_warnings(report)
    found += _heldout_warnings(report)
    return [f"{name}: {warning}" for warning in found]


def _of_each(
    said: Callable[..., list[str]], name: str, report: dict[str, Any], *more: Any
) -> list[str]:
    """What is said of each source of a list."""
    found = []
    for source, one in report["sources"].items():
        found += said(f"{name} {source}", one, *more)
    return found


def _equal_warnings(report: dict[str, Any]) -> list[str]:
    n_read = _n_drawn(report)
    equal = report["equal_rows"]
    if equal["number"] <= _MANY_EQUAL * n_read:
        return []
    rows = f"{equal['number']:,} of {n_read:,} rows equal an earlier one ({equal['first']})"
    return [f"{rows}; each counts as often as it is there"]


def _column_warnings(report: dict[str, Any]) -> list[str]:
    n_read = _n_drawn(report)
    found = []
    for column, n_filled in report["columns"]["unread"].items():
        if column in formats.CHANGES_MEANING and n_filled > _MANY_FILLED * n_read:
            readers = "others may"
            if column == "input":
                readers = "alpaca does"
            if column == "weight":
                readers = "data.weight_field=weight does"
            found.append(
                f"column {column!r} is filled in {n_filled:,} of {n_read:,} rows, and not read"
                f" by this row format; {readers}, or put it into the prompt"
            )
    return found


def _character_warnings(report: dict[str, Any]) -> list[str]:
    characters = report["characters"]
    if characters["without_token"] <= _MANY_UNREADABLE * characters["used"]:
        return []
    return [
        f"the tokenizer has no token for {characters['without_token']:,} of"
        f" {characters['used']:,} characters, in {characters['rows']:,} rows"
        f" (such as {characters['most_common']!r}, first in {characters['first'][0]});"
        " the model never sees them"
    ]


def _heldout_warnings(report: dict[str, Any]) -> list[str]:
    """Of held-out rows, whose report says which of them are trained too."""
    also = report.get("also_trained")
    if not also:
        return []
    found = []
    if also["rows"]:
        found.append(
            f"{also['rows']:,} rows are trained as well ({also['first']});"
            " their nll says nothing of new text"
        )
    n_prompts = also["prompts_with_another_answer"]
    if n_prompts:
        found.append(f"the prompts of {n_prompts:,} rows are trained with another answer")
    return found


def refusals(name: str, report: dict[str, Any], most: float) -> list[str]:
    """Why a run should not begin on this: more than `most` of the rows are cut or dropped."""
    if "sources" in report:
        return _of_each(refusals, name, report, most)
    if _lost_share(report) <= most:
        return []
    accept = f"set data.max_lost_fraction above {most:g} to train on it as it is"
    return [f"config.{name}: {_losses(report, _LIMIT)}; or {accept}"]


def _lost_share(report: dict[str, Any]) -> float:
    """Share of the rows that are cut or dropped.

    Of a sample, whose rows were drawn after the bad ones were left out, these are counted by
    themselves: of 60,000 rows 600 bad ones are one in a hundred, however few are drawn.
    """
    if "sample" not in report:
        return _n_lost(report) / report["rows"]["read"]
    n_bad = report["rows"]["dropped"].get("bad_row", 0)
    return n_bad / report["rows"]["read"] + (_n_lost(report) - n_bad) / report["sample"]["rows"]


def _n_lost(report: dict[str, Any]) -> int:
    """Rows that are cut or dropped, but not as the data says itself, or was asked to."""
    rows = report["rows"]
    n_left_out = sum(rows["dropped"].get(reason, 0) for reason in formats.LEFT_OUT)
    return rows["read"] - rows["used_whole"] - n_left_out


def _n_drawn(report: dict[str, Any]) -> int:
    """Rows that were read, without those that a sample has left out."""
    return report["rows"]["read"] - report["rows"]["dropped"].get(formats.NOT_DRAWN, 0)


def _losses(report: dict[str, Any], limit: str) -> str:
    """How many rows are not trained whole, why, and what would keep them."""
    rows = report["rows"]
    tokens = report["tokens"]
    reasons = []
    if rows["truncated"]:
        cut = f"cut at {limit}={tokens['max_length']}, so that their EOS is not trained"
        reasons.append(f"{rows['truncated']:,} {cut}")
    for reason, n_dropped in rows["dropped"].items():
        if reason not in formats.LEFT_OUT:
            reasons.append(f"{n_dropped:,} dropped as {reason}")
    remedies = []
    if rows["truncated"] or {"prompt_too_long", IMAGE_CUT} & rows["dropped"].keys():
        longer = tokens["max_length_for_99_percent"]
        remedies.append(f"{limit}={longer} would keep 99 % whole")
    if {IMAGE_CUT, TOO_MANY_PATCHES} & rows["dropped"].keys():
        remedies.append("a lower data.image_max_pixels makes images smaller")
    if TOO_MANY_PATCHES in rows["dropped"]:
        remedies.append("a higher data.image_max_patches keeps more of them")
    if "bad_row" in rows["dropped"]:
        remedies.append("data.bad_rows='refuse' says what is wrong with the bad ones")
    share = _lost_share(report)
    lost = f"{_n_lost(report):,} of {_n_drawn(report):,} rows ({share:.1%}) are not trained whole"
    return f"{lost}: {', '.join(reasons)}; {', '.join(remedies)}"


def tell(name: str, report: dict[str, Any], limit: str = _LIMIT) -> None:
    """Prints the account of one file and its warnings; `name` and `limit` as in `warnings`."""
    announce(lines(name, report), warnings(name, report, limit))


def announce(notes: list[str], to_warn_of: list[str]) -> None:
    """Prints lines and warnings to stderr, on process 0."""
    if not processes.is_first():
        return
    for line in notes:
        print(line, file=sys.stderr)
    for line in to_warn_of:
        print(f"warning: {line}", file=sys.stderr, flush=True)
