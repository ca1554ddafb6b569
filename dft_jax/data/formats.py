"""What a row of a dataset means, as a conversation.

A new dataset is one function under `@row_format`: it turns a row into messages, or raises BadRow.
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data import image_columns, ratings, source_list
from dft_jax.data.columns import Columns, require, says_nothing, text_in, value_in
from dft_jax.data.messages import (
    ONLY_READ,
    Message,
    Part,
    content_of,
    is_only_read,
    text_of,
    text_part,
)
from dft_jax.data.sources.locate import read_rows
from dft_jax.data.sources.rows import BadRow, Row
from dft_jax.runtime.options import Config

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
# Keys under which 0 or false says that an answer is read, not trained.
_WEIGHTS = ("weight", "loss_weight", "loss", "train", "trainable")
# Keys of a message that no template and no trainer reads.
_BOOKKEEPING = frozenset(
    "id message_id uuid timestamp created_at language lang source model metadata".split()
)
# Fields of a row that hold something else than text, which a row format may not read.
NOT_TEXT = "images image videos audios".split()
# Fields that would be part of its conversation, or of its training, to other trainers.
_BESIDE_MESSAGES = [*NOT_TEXT, *"tools functions documents chat_template_kwargs weight".split()]
# Columns that, where a row format does not read them, were most likely meant to be part of what is
# trained.
CHANGES_MEANING = frozenset(
    (*_BESIDE_MESSAGES, *"instruction input context system system_prompt history".split())
)
# Of a key or a field that would be lost.
_REMEDY = "remove it where that is right, else the row"
# Of rows that are left out as the data itself says, or was asked to, in the account: weighed with
# 0, without a rated answer, and not drawn by data.sample_rows.
WEIGHT_0 = "weight_0"
NO_ANSWER = "no_answer_to_train"
NOT_DRAWN = "not_drawn"
LEFT_OUT = (WEIGHT_0, NO_ANSWER, NOT_DRAWN)
# What a token may weigh besides 0. The loss is summed in float32, where weights far beyond are inf
# or 0, as may be those of a row times the prompt's.
LEAST_WEIGHT, MOST_WEIGHT = 1e-12, 1e12
_SHOWN = 40  # characters of a value in a message
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # commas of 1,234,567
_CALCULATOR_MARK = re.compile("<<[^<>]*>>")  # GSM8K's 48/2 = <<48/2=24>>24

# (row, `config.data`) -> conversation
RowFormat = Callable[[dict, ConfigDict], list[Message]]
ROW_FORMATS: dict[str, RowFormat] = {}


def row_format(function: RowFormat) -> RowFormat:
    """Registers a function under its name, as `data.rows` gives it."""
    ROW_FORMATS[function.__name__] = function
    return function


@row_format
def fields(row: dict, config: Config) -> list[Message]:
    """A prompt and a completion under `data.prompt_field` and `data.completion_field`.

    Images under `data.image_field` stand before the prompt, or where its marks `<image>` are.
    """
    pair = _pair(row, config.prompt_field, config.completion_field)
    pair = _with_images(row, pair, config)
    texts = [text_of(message) for message in pair]
    for field in ("messages", "conversations"):
        if not says_nothing(field, row.get(field)) and _texts_of(row[field]) != texts:
            other = f"{config.prompt_field!r} and its completion"
            raise BadRow(
                f"field {field!r} holds another conversation than {other};"
                " set data.rows to train on that, or remove the field"
            )
    return pair


@row_format
def gsm8k(row: dict, config: Config) -> list[Message]:
    """openai/gsm8k: `question`, and `answer` with its steps and `#### 42`."""
    return _pair(row, "question", "answer")


@row_format
def gsm8k_unmarked(row: dict, config: Config) -> list[Message]:
    """openai/gsm8k without its calculator's marks: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    question, answer = _pair(row, "question", "answer")
    return [question, answer | {"content": _CALCULATOR_MARK.sub("", answer["content"])}]


@row_format
def gsm8k_boxed(row: dict, config: Config) -> list[Message]:
    """As `gsm8k_unmarked`, and its end `#### 1,234` becomes "The answer is \\boxed{1234}."."""
    question, answer = gsm8k_unmarked(row, config)
    steps, hashes, value = answer["content"].rpartition("####")
    value = _GROUPED.sub("", value.strip())
    if not hashes or not value:
        raise BadRow("field 'answer' has no '#### 42' at its end; fix the row or set data.rows")
    text = f"{steps.rstrip()}\nThe answer is \\boxed{{{value}}}."
    return [question, answer | {"content": text.lstrip()}]


@row_format
def numina(row: dict, config: Config) -> list[Message]:
    """AI-MO/NuminaMath-CoT: `problem`, `solution`."""
    return _pair(row, "problem", "solution")


@row_format
def math(row: dict, config: Config) -> list[Message]:
    """MATH: `problem`, `solution` with the answer in \\boxed{}."""
    return _pair(row, "problem", "solution")


@row_format
def alpaca(row: dict, config: Config) -> list[Message]:
    """{instruction, input, output}: `input`, if any, is on the lines after the instruction.

    A text under `system` begins the conversation. Earlier turns under `history` are refused. Images
    are as in `fields`.
    """
    question, answer = _pair(row, "instruction", "output")
    if not says_nothing("input", row.get("input")):
        question["content"] += f"\n{text_in(row, 'input')}"
    # Earlier turns, which would be lost: a row with them is another example than its last turn.
    _refuse_beside(row, "instruction", (*_BESIDE_MESSAGES, "history"), config)
    return _after_system(row, _with_images(row, [question, answer], config), "instruction")


@row_format
def humaneval(row: dict, config: Config) -> list[Message]:
    """openai/openai_humaneval: `prompt`, without white space around it, and `canonical_solution`.

    So the benchmarks of programs ask, under the template `plain`. Rows of `programs(…)` are such.
    """
    prompt, solution = _pair(row, "prompt", "canonical_solution")
    return [prompt | {"content": prompt["content"].strip()}, solution]


@row_format
def messages(row: dict, config: Config) -> list[Message]:
    """A conversation under `data.messages_field`: a list of {role, content}.

    Only assistant turns are trained. Content may be a list of parts, as {"type": "text", "text":
    "…"} and, of users, {"type": "image", "image": …} (data/image_columns.py). A text under `system`
    beside the list begins the conversation. An answer with `weight` 0 (or `train` false) is read,
    not trained. What else a message or the row says of it is refused by name.

    Images may also be in a column `images`, in the order of the parts that hold none, and of marks
    `<image>` in the text.
    """
    field = config.messages_field
    return _conversation(row, field, _list(row, field), config)


@row_format
def sharegpt(row: dict, config: Config) -> list[Message]:
    """A conversation under `conversations`: {from, value}, from `system`, `human` or `gpt`.

    Images are as in `messages`.
    """
    turns = _list(row, "conversations")
    renamed = [_sharegpt_message(turn, number) for number, turn in enumerate(turns)]
    return _conversation(row, "conversations", renamed, config)


@row_format
def ultrafeedback(row: dict, config: Config) -> list[Message]:
    """openbmb/UltraFeedback: `instruction`, and the best-rated `response` of its `completions`.

    Which one that is, ratings.py says. The system prompts that the completions were made with
    differ from one to the next, and are not read.
    """
    question = {"role": "user", "content": text_in(row, "instruction")}
    completions = value_in(row, "completions")
    best = ratings.best_of(completions)
    try:
        answer = text_in(completions[best], "response")
    except BadRow as error:
        raise BadRow(f"completion {best}, the best: {error}") from error
    return [question, {"role": "assistant", "content": answer}]


def _sharegpt_message(turn: Any, number: int) -> dict[str, Any]:
    """A turn {from, value} as {role, content}; other keys stay, for `_message` to judge."""
    if not isinstance(turn, dict):
        found = type(turn).__name__
        raise BadRow(f"message {number} should be an object with from and value, not {found}")
    sender = turn.get("from")
    if not isinstance(sender, str) or sender not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise BadRow(f"message {number} is from {sender!r}; it should be one of {known}")
    message = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if "value" in turn:
        message["content"] = turn["value"]
    message["role"] = _SHAREGPT_ROLES[sender]
    return message


@dataclasses.dataclass(frozen=True)
class Read:
    """A row as it was read: its columns, its conversation, and its weight in the loss."""

    columns: Columns
    messages: list[Message]
    weight: float


def read(row: Row, config: Config) -> Read:
    """The row as `data.rows` says; `config` is `config.data`.

    Raises:
      BadRow: it is malformed, has nothing to train, or more to it than text.
    """
    columns = Columns(row.value)
    weight = 1.0
    # Runs that are older than a key have none.
    weight_field: Any = config.get("weight_field", "")
    if weight_field:
        weight = take_weight(columns, weight_field)
    messages = ROW_FORMATS[config.rows](columns, config)
    _refuse_weighed_context(messages, config)
    for column in _not_read(NOT_TEXT, config):
        if not says_nothing(column, row.value.get(column)):
            raise BadRow(
                f"field {column!r}: data.rows={config.rows!r} reads no images, video or sound"
                f" there, and without it the row is another; {_REMEDY}"
            )
    return Read(columns, messages, weight)


def _not_read(columns: Iterable[str], config: Config) -> list[str]:
    """The columns but the one that the row format takes images from."""
    return [column for column in columns if column != image_columns.column_of(config)]


def _with_images(row: dict, pair: list[Message], config: Config) -> list[Message]:
    """A question and its answer with the images under `data.image_field`."""
    column = image_columns.column_of(config)
    if not column:
        return pair
    # Null, unlike a missing column, is a row of text alone.
    require(row, column)
    return image_columns.before_question(pair, image_columns.in_column(row, column))


def _refuse_weighed_context(messages: list[Message], config: Config) -> None:
    """BadRow where an answer that is only read would be trained with the prompt's weight."""
    prompt_weight: Any = config.get("prompt_weight", 0.0)
    if prompt_weight and any(is_only_read(message) for message in messages):
        raise BadRow(
            f"an answer has weight 0, and data.prompt_weight={prompt_weight:g} would train it with"
            " the prompt; remove the row, or set data.prompt_weight=0"
        )


def take_weight(row: Columns, field: str) -> float:
    """The weight of a row in the loss, taken out of it: no row format is to find it there.

    Raises:
      BadRow: none, or one that `is_weight` refuses.
    """
    weight = value_in(row, field)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not is_weight(weight):
        shown = repr(weight)[:_SHOWN]
        raise BadRow(
            f"field {field!r} is {shown}; a row's weight (data.weight_field) should be 0, or a"
            f" number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}; fix it, or set data.bad_rows='drop'"
        )
    del row[field]
    return float(weight)


def is_weight(number: float) -> bool:
    """Whether a token may weigh so much in the loss."""
    return number == 0 or LEAST_WEIGHT <= number <= MOST_WEIGHT


def calculator_marks(config: Config) -> str:
    """A line on the marks `<<48/2=24>>` in the answers of data.train, or of each source that has
    some; empty where there are none.

    `config` is `config.data`.
    """
    lines = []
    for name, path, own in source_list.each(config.train, config):
        line = _calculator_marks(path, own)
        if line:
            lines.append(f"{name}: {line}" if name else line)
    return "\n".join(lines)


def _calculator_marks(path: str, config: Config) -> str:
    """The same of one source; `config` is `config.data` as it is for it."""
    rows = read_rows(path, config, config.split)
    n_rows = n_marked = 0
    for row in itertools.islice(rows, config.max_rows or None):
        with contextlib.suppress(BadRow):
            conversation = ROW_FORMATS[config.rows](row.value, config)
            n_rows += 1
            n_marked += _has_calculator_marks(conversation)
    if not n_marked:
        return ""
    remedy = "data.rows=gsm8k_unmarked or gsm8k_boxed leaves them out"
    if config.get("sample_rows", 0):
        remedy += f"; data.sample_rows={config.sample_rows} of these rows are drawn"
    return f"calculator marks (<<48/2=24>>) are trained in {n_marked} of {n_rows} rows; {remedy}"


def _has_calculator_marks(conversation: list[Message]) -> bool:
    """Whether an answer holds marks as GSM8K's `<<48/2=24>>`, which are trained like other text."""
    return any(_CALCULATOR_MARK.search(answer["content"]) for answer in _answers(conversation))


def _answers(conversation: list[Message]) -> list[Message]:
    return [message for message in conversation if message["role"] == "assistant"]


def _conversation(row: dict, field: str, turns: list, config: Config) -> list[Message]:
    """The messages of a row, after the text of its `system`; refuses what else belongs to them."""
    images = image_columns.in_column(row, image_columns.column_of(config))
    conversation = [_message(message, number) for number, message in enumerate(turns)]
    if conversation[-1]["role"] != "assistant":
        raise BadRow(
            "the last message should be the assistant's; add the answer or remove the message"
        )
    if all(is_only_read(answer) for answer in _answers(conversation)):
        raise BadRow(
            "no answer is trained: all have weight 0; remove the row or set data.bad_rows='drop'"
        )
    _refuse_beside(row, field, _BESIDE_MESSAGES, config)
    # Many datasets repeat the first question and the last answer beside the conversation.
    texts = [text_of(message).strip() for message in conversation]
    for other in ("prompt", "completion"):
        value = row.get(other)
        is_repeated = isinstance(value, str) and value.strip() in texts
        if not is_repeated and not says_nothing(other, value):
            raise BadRow(f"field {other!r} beside {field!r} is in none of its messages; {_REMEDY}")
    return image_columns.placed(_after_system(row, conversation, field), images)


def _refuse_beside(row: dict, field: str, others: Iterable[str], config: Config) -> None:
    """BadRow where a row has more than the conversation in `field`, and its images."""
    for other in _not_read(others, config):
        if not says_nothing(other, row.get(other)):
            remedy = _REMEDY
            if other == "weight":
                remedy = "data.weight_field='weight' weighs rows by it"
            raise BadRow(
                f"field {other!r} beside {field!r} is not supported and would be lost; {remedy}"
            )


def _after_system(row: dict, conversation: list[Message], field: str) -> list[Message]:
    """The conversation that is in `field`, after the text in the row's `system`, if any."""
    if says_nothing("system", row.get("system")):
        return conversation
    system = {"role": "system", "content": text_in(row, "system")}
    if conversation[0]["role"] != "system":
        return [system, *conversation]
    if conversation[0] != system:
        raise BadRow(
            f"field 'system' differs from the system message in {field!r}; keep the right one"
        )
    return conversation


def _message(message: Any, number: int) -> Message:
    """One message, all that it says honoured."""
    if not isinstance(message, dict):
        found = type(message).__name__
        raise BadRow(f"message {number} should be an object with role and content, not {found}")
    if "role" not in message and "from" in message:
        raise BadRow(
            f"message {number} has 'from' in the place of 'role'; set data.rows='sharegpt'"
        )
    role = message.get("role")
    if role not in ROLES:
        raise BadRow(f"message {number} has role {role!r}; it should be one of {', '.join(ROLES)}")
    has_no_weight = _has_no_weight(message, number)
    content = message.get("content")
    parts: list[Part] = []
    if isinstance(content, list):
        parts = [_part(part, number) for part in content]
        image_columns.refuse_of_others(role, parts, number)
        message = message | {"content": text_of({"content": parts})}
    try:
        text = text_in(message, "content", empty_is_fine=role != "assistant")
    except BadRow as error:
        raise BadRow(f"message {number}: {error}") from error
    read: Message = {"role": role, "content": content_of(parts or [text_part(text)])}
    # Messages of other roles are never trained.
    if has_no_weight and role == "assistant":
        read[ONLY_READ] = True
    return read


def _has_no_weight(message: dict[str, Any], number: int) -> bool:
    """Whether a message says that it is not trained; BadRow for keys that would be lost."""
    has_no_weight = False
    for key, value in message.items():
        if key in _WEIGHTS and isinstance(value, (int, float)) and value == 0:
            has_no_weight = True
        elif key in ("role", "content") or key in _BOOKKEEPING:
            continue
        elif not says_nothing(key, value):
            shown = repr(value)
            if len(shown) > _SHOWN:
                shown = "…"
            raise BadRow(
                f"message {number} has {key}={shown}, which is not supported and would be lost;"
                f" {_REMEDY}"
            )
    return has_no_weight


def _part(part: Any, number: int) -> Part:
    """One part of a message's content."""
    kind = type(part).__name__
    if isinstance(part, dict):
        kind = part.get("type")
        text = part.get("text")
        says = {key for key, value in part.items() if not says_nothing(key, value)}
        if kind == "text" and isinstance(text, str) and says <= {"type", "text"}:
            return text_part(text)
        if kind in ("image", "image_url"):
            return image_columns.part(part, says, number)
    raise BadRow(
        f"message {number} has a part of type {kind!r} in its content; only plain text and images"
        " are read"
    )


def _texts_of(conversation: Any) -> list[Any]:
    """The texts of a list of messages, in either spelling."""
    if not isinstance(conversation, list):
        return []
    texts = []
    for turn in conversation:
        if isinstance(turn, dict):
            texts.append(turn.get("content", turn.get("value")))
    return texts


def _list(row: dict, field: str) -> list:
    """The list of messages in a field, not empty."""
    conversation = value_in(row, field)
    if not isinstance(conversation, list) or not conversation:
        found = type(conversation).__name__
        if conversation == []:
            found = "an empty list"
        raise BadRow(
            f"field {field!r} should be a list of messages, not {found}; fix it or set data.rows"
        )
    return conversation


def _pair(row: dict, prompt_field: str, completion_field: str) -> list[Message]:
    """One question and its answer."""
    return [
        {"role": "user", "content": text_in(row, prompt_field)},
        {"role": "assistant", "content": text_in(row, completion_field)},
    ]
