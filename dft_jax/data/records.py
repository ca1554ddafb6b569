"""From rows to examples: conversations under a template, their images looked at, tokens."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from dft_jax.data import formats, image_marks
from dft_jax.data.account import IMAGE_CUT, TOO_MANY_PATCHES, Account
from dft_jax.data.image_files import ImageFile, Picture, look_at_all
from dft_jax.data.image_settings import Vision
from dft_jax.data.messages import images_of
from dft_jax.data.row_sample import RowSample
from dft_jax.data.sources.rows import BadRow, NothingToTrain, Row
from dft_jax.data.templates import Example, Part, Template
from dft_jax.data.tokenize import tokenize
from dft_jax.runtime.options import Config

# The tokenizer's threads need some hundred texts to be busy; more only hold memory.
_TOKENIZE_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Record:
    """One usable row: its conversation as text, its images in order, and its origin (file and
    line).
    """

    origin: str
    parts: list[Part]
    answers_read: int  # that are not trained
    weight: float
    images: list[ImageFile]


def read(
    rows: Iterable[Row],
    config: Config,
    template: Template,
    account: Account,
    sample: RowSample | None,
    image_folder: Path | None,
) -> Iterator[Record]:
    """The rows as conversations under the template; malformed ones are counted and left out.

    Args:
      config: `config.data`.
      account: counts every row.
      sample: which rows are drawn; None for all.
      image_folder: that paths of images are relative to.
    """
    for number, row in enumerate(rows):
        account.rows_read += 1
        try:
            found = formats.read(row, config)
            # Before it is rendered: most rows of a large file may not be drawn.
            if sample is not None and found.weight > 0 and number not in sample.numbers:
                account.leave_out(formats.NOT_DRAWN)
                continue
            images = images_of(found.messages)
            if images and template.vision is None:
                raise BadRow(image_marks.NO_TOWER)
            parts = template.parts(found.messages)
        except NothingToTrain:
            account.leave_out(formats.NO_ANSWER)
            continue
        except BadRow as error:
            account.bad_row(row.origin, str(error))
            continue
        account.count_columns(found.columns)
        # It would add nothing to the loss, nor to what the loss is divided by.
        if found.weight == 0:
            account.leave_out(formats.WEIGHT_0)
            continue
        n_read = account.answers_read(row.origin, found.messages, parts)
        images = [image.within(image_folder) for image in images]
        yield Record(row.origin, parts, n_read, found.weight, images)


def looked_at(
    records: list[Record], account: Account, vision: Vision | None
) -> tuple[list[Record], list[list[Picture]]]:
    """The records whose images are all readable, with their pictures; the others are counted."""
    files = [file for record in records for file in record.images]
    if vision is None or not files:
        return records, [[] for _ in records]
    outcomes = iter(look_at_all(files, vision.geometry))
    found, pictures = [], []
    for record in records:
        of_record: list[Picture] = []
        problems: list[BadRow] = []
        for _ in record.images:
            outcome = next(outcomes)
            if isinstance(outcome, BadRow):
                problems.append(outcome)
            else:
                of_record.append(outcome)
        if problems:
            account.bad_row(record.origin, str(problems[0]))
        else:
            found.append(record)
            pictures.append(of_record)
    return found, pictures


def tokenized(
    records: Iterator[Record],
    template: Template,
    max_length: int,
    account: Account,
    vision: Vision | None,
) -> Iterator[tuple[Record, Example]]:
    """Each record of which an answer is trained, with its example; the others are counted."""
    # In blocks: the texts of a file of 10 GB would not fit beside its tokens.
    while block := list(itertools.islice(records, _TOKENIZE_AT_ONCE)):
        block, pictures = looked_at(block, account, vision)
        all_parts = [record.parts for record in block]
        examples = tokenize(
            all_parts, template.tokenizer, template.first_ids, max_length, pictures, template.vision
        )
        for record, example in zip(block, examples, strict=True):
            if isinstance(example, BadRow):
                account.bad_row(record.origin, str(example))
                continue
            reason = _lost_as(example, vision)
            if reason:
                account.drop(record.origin, reason, len(example.ids) + example.cut_tokens)
            else:
                account.use(record.origin, example)
                account.count_answers(record.parts, record.answers_read)
                yield record, example


def _lost_as(example: Example, vision: Vision | None) -> str:
    """Why nothing of an example can be trained; empty where something can."""
    if vision is not None and example.n_patches > vision.most_patches:
        return TOO_MANY_PATCHES
    # Never half an image: the model would be trained on a picture that it never gets.
    if example.cuts_an_image:
        return IMAGE_CUT
    if len(example.ids) < 2 or not example.trained[1:].any():
        return "prompt_too_long"
    return ""
