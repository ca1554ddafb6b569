"""What a row of a dataset means, as a conversation.

A new dataset is one function under `@row_format`: it turns a row into messages, or raises BadRow.
"""

import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources import BadRow, Message

ROLES = ("system", "user", "assistant")
_CALCULATOR_MARK = re.compile("<<[^<>]*>>")  # GSM8K's 48/2 = <<48/2=24>>24

ROW_FORMATS: dict[str, Callable[[dict, ConfigDict], list[Message]]] = {}


def row_format(function):
    ROW_FORMATS[function.__name__] = function
    return function


@row_format
def fields(row: dict, config: ConfigDict) -> list[Message]:
    """A prompt and a completion under the names in `data.prompt_field` and `data.completion_field`."""
    return _pair(row, config.prompt_field, config.completion_field)


@row_format
def gsm8k(row: dict, config: ConfigDict) -> list[Message]:
    """openai/gsm8k: `question`, and `answer` with its steps and `#### 42`."""
    return _pair(row, "question", "answer")


@row_format
def gsm8k_unmarked(row: dict, config: ConfigDict) -> list[Message]:
    """openai/gsm8k without the marks of its calculator: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    question, answer = _pair(row, "question", "answer")
    return [question, answer | {"content": _CALCULATOR_MARK.sub("", answer["content"])}]


@row_format
def gsm8k_boxed(row: dict, config: ConfigDict) -> list[Message]:
    """As `gsm8k_unmarked`, and its end `#### 1,234` becomes "The answer is \\boxed{1234}."."""
    question, answer = gsm8k_unmarked(row, config)
    steps, hashes, value = answer["content"].rpartition("####")
    value = value.strip().replace(",", "")
    if not hashes or not value:
        raise BadRow("field 'answer' has no '#### 42' at its end; mend the row or set data.rows")
    text = f"{steps.rstrip()}\nThe answer is \\boxed{{{value}}}."
    return [question, answer | {"content": text.lstrip()}]


@row_format
def numina(row: dict, config: ConfigDict) -> list[Message]:
    """AI-MO/NuminaMath-CoT: `problem`, `solution`."""
    return _pair(row, "problem", "solution")


@row_format
def math(row: dict, config: ConfigDict) -> list[Message]:
    """MATH: `problem`, `solution` with the answer in \\boxed{}."""
    return _pair(row, "problem", "solution")


@row_format
def messages(row: dict, config: ConfigDict) -> list[Message]:
    """A conversation under `data.messages_field`: a list of {role, content}; only assistant turns are trained."""
    conversation = _value(row, config.messages_field)
    if not isinstance(conversation, list) or not conversation:
        found = "an empty list" if conversation == [] else type(conversation).__name__
        problem = f"field {config.messages_field!r} should be a list of messages, not {found}"
        raise BadRow(f"{problem}; mend it or set data.rows")
    result = []
    for number, message in enumerate(conversation):
        if not isinstance(message, dict):
            raise BadRow(f"message {number} should be an object with role and content, not {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise BadRow(f"message {number} has role {message.get('role')!r}; it should be one of {', '.join(ROLES)}")
        empty_is_fine = message["role"] != "assistant"
        result.append({"role": message["role"], "content": _text(message, "content", empty_is_fine=empty_is_fine)})
    if result[-1]["role"] != "assistant":
        raise BadRow("the last message should be the assistant's; add the answer or remove the message")
    return result


def _pair(row: dict, prompt_field: str, completion_field: str) -> list[Message]:
    return [
        {"role": "user", "content": _text(row, prompt_field)},
        {"role": "assistant", "content": _text(row, completion_field)},
    ]


def _text(row: dict, field: str, empty_is_fine: bool = False) -> str:
    text = _value(row, field)
    if not isinstance(text, str):
        raise BadRow(f"field {field!r} should be text, not {type(text).__name__}; put it in quotes")
    if re.search("[\ud800-\udfff]", text):
        raise BadRow(f"field {field!r} holds half a surrogate pair, which is not text; re-save the row as UTF-8")
    if not text.strip() and not empty_is_fine:
        raise BadRow(f"field {field!r} is empty; remove the row or set data.bad_rows='drop'")
    return text


def _value(row: dict, field: str) -> Any:
    if field not in row:
        has = ", ".join(map(repr, sorted(row))) or "no fields"
        raise BadRow(f"field {field!r} is missing (the row has {has}); set data.rows or the field names")
    if row[field] is None:
        raise BadRow(f"field {field!r} is null; remove the row or set data.bad_rows='drop'")
    return row[field]
