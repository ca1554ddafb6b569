"""What each row format makes of a row."""

import json

import pytest

from dft_jax import config as config_lib
from dft_jax.data import formats
from dft_jax.data.sources.rows import BadRow

CONFIG = config_lib.get_default().data


def answer_of(name, answer):
    question, reply = formats.ROW_FORMATS[name](
        {"question": "Q <<1+1=2>>", "answer": answer}, CONFIG
    )
    assert question == {"role": "user", "content": "Q <<1+1=2>>"}
    assert reply["role"] == "assistant"
    return reply["content"]


MARKED = "He has 48/2 = <<48/2=24>>24 left.\nSo 24+1 = $<<24+1=25>>25.  \n#### 1,025"


def test_gsm8k_with_and_without_calculator_marks():
    assert answer_of("gsm8k", MARKED) == MARKED
    assert (
        answer_of("gsm8k_unmarked", MARKED)
        == "He has 48/2 = 24 left.\nSo 24+1 = $25.  \n#### 1,025"
    )


def test_gsm8k_boxed():
    expected = "He has 48/2 = 24 left.\nSo 24+1 = $25.\nThe answer is \\boxed{1025}."
    assert answer_of("gsm8k_boxed", MARKED) == expected
    for value, boxed in {
        "-3.5": "-3.5",
        "$1,234,567.89": "$1234567.89",
        "(1,2)": "(1,2)",
        "x, y": "x, y",
        "1,2345": "1,2345",
    }.items():
        assert answer_of("gsm8k_boxed", f"#### {value}") == f"The answer is \\boxed{{{boxed}}}."
    assert (
        answer_of("gsm8k_boxed", "1 < 2 and 3 > 2\n#### 7")
        == "1 < 2 and 3 > 2\nThe answer is \\boxed{7}."
    )


@pytest.mark.parametrize("answer", ["So 24.", "So 24.\n#### ", "#### "])
def test_gsm8k_boxed_needs_the_answer_after_hashes(answer):
    with pytest.raises(BadRow, match="field 'answer' has no '#### 42' at its end; fix the row"):
        answer_of("gsm8k_boxed", answer)


def test_gsm8k_boxed_on_the_real_problems(shared):
    """Every answer keeps its steps, loses every mark, and ends in the benchmark's own answer."""
    from dft_jax.evals.graders import extraction
    from dft_jax.evals.tasks import benchmarks

    file = shared / "data" / "gsm8k_test.jsonl"
    problems = benchmarks.load("gsm8k", str(file))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, problem in zip(rows, problems, strict=True):
        _, reply = formats.gsm8k_boxed(row, CONFIG)
        assert extraction.last_boxed(reply["content"]) == problem.answer
        assert (
            not {"<<", ">>", "####"} & set(reply["content"].split())
            and "<<" not in reply["content"]
        )
        assert reply["content"].count("\n") == row["answer"].count("\n")


ASKED, ANSWERED = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def parsed(name="messages", **row):
    return formats.ROW_FORMATS[name](row, CONFIG)


def with_key(**keys):
    return {"messages": [ASKED, ANSWERED | keys]}


# Keys of a message that say no more than their absence.
NEUTRAL = [
    *[
        {key: None}
        for key in ("weight", "name", "tool_calls", "reasoning_content", "train", "loss", "a_key")
    ],
    *[
        {"weight": 1},
        {"weight": 1.0},
        {"loss_weight": 1},
        {"train": True},
        {"loss": 1.0},
        {"end_turn": True},
    ],
    *[
        {"tool_calls": []},
        {"reasoning_content": ""},
        {"name": ""},
        {"prefix": False},
        {"recipient": "all"},
    ],
    *[
        {"function_call": {}},
        {"annotations": []},
        {"id": "a", "timestamp": 3, "language": "English"},
    ],
]


@pytest.mark.parametrize("keys", NEUTRAL, ids=str)
def test_neutral_keys_of_a_message_pass(keys):
    assert parsed(**with_key(**keys)) == [ASKED, ANSWERED]
    assert parsed(messages=[ASKED | keys, ANSWERED]) == [ASKED, ANSWERED]


# Keys that would change what is trained, each dropped in silence before.
MEANT = [
    *[{"weight": 0.5}, {"weight": "0"}, {"weight": -1}, {"train": "no"}, {"loss_weight": 2}],
    *[
        {"reasoning_content": "1 and 1"},
        {"thinking": "hm"},
        {"name": "Ann"},
        {"prefix": True},
        {"wieght": 0},
    ],
    *[
        {"tool_calls": [{"function": {"name": "add"}}]},
        {"function_call": {"name": "add"}},
        {"tool_call_id": "7"},
    ],
    *[
        {"end_turn": False},
        {"recipient": "python"},
        {"refusal": "No."},
        {"audio": {"id": 1}},
        {"mask": 1},
    ],
]


@pytest.mark.parametrize("keys", MEANT, ids=str)
def test_other_keys_of_a_message_are_refused_by_name(keys):
    [(key, value)] = keys.items()
    with pytest.raises(
        BadRow, match=f"message 1 has {key}=.* is not supported and would be lost; remove it where"
    ):
        parsed(**with_key(**keys))
    with pytest.raises(BadRow, match=f"message 0 has {key}="):
        parsed(messages=[ASKED | keys, ANSWERED])


@pytest.mark.parametrize(
    "keys", [{"weight": 0}, {"loss_weight": 0.0}, {"train": False}, {"loss": False}], ids=str
)
def test_an_answer_of_weight_0_is_only_read(keys):
    """So is one that says so in another way; a question is never trained."""
    again = [ASKED, ANSWERED]
    expected = [ASKED, ANSWERED | {"only_read": True}, *again]
    assert parsed(messages=[ASKED, ANSWERED | keys, *again]) == expected
    assert parsed(messages=[ASKED | keys, ANSWERED]) == [ASKED, ANSWERED]
    turns = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"} | keys]
    assert (
        parsed("sharegpt", conversations=[*turns, *turns[:1], {"from": "gpt", "value": "2"}])
        == expected
    )
    with pytest.raises(BadRow, match="no answer is trained: all have weight 0; remove the row"):
        parsed(**with_key(**keys))


def test_alpaca():
    """The input is part of the question, and a text under `system` stands before it."""
    row = {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}
    asked = {"role": "user", "content": "Add the numbers.\n2 and 3"}
    answered = {"role": "assistant", "content": "5"}
    assert parsed("alpaca", **row) == [asked, answered]
    assert parsed("alpaca", **row, system="Be brief.", history=[]) == [SYSTEM, asked, answered]
    for nothing in ({"input": ""}, {"input": None}):
        assert parsed("alpaca", **row | nothing)[0]["content"] == "Add the numbers."
    assert parsed("alpaca", instruction="Say 5.", output="5") == [
        {"role": "user", "content": "Say 5."},
        answered,
    ]
    with pytest.raises(
        BadRow, match="field 'history' beside 'instruction' is not supported and would be lost"
    ):
        parsed("alpaca", **row, history=[["1+1?", "2"]])
    with pytest.raises(BadRow, match="field 'input' should be text, not int"):
        parsed("alpaca", **row | {"input": 3})


@pytest.mark.parametrize(
    "name, row, unread",
    [
        (
            "fields",
            {"prompt": "1+1?", "completion": "2", "input": "x", "weight": 0.5},
            ["input", "weight"],
        ),
        ("alpaca", {"instruction": "1+1?", "output": "2", "text": "1+1? 2", "input": ""}, ["text"]),
        ("messages", {"messages": [ASKED, ANSWERED], "source": "x", "tools": []}, ["source"]),
        (
            "messages",
            {"messages": [ASKED, ANSWERED], "prompt": "1+1?", "prompt_id": "a"},
            ["prompt_id"],
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "2"}]},
            [],
        ),
        ("numina", {"problem": "1+1?", "solution": "2", "source": "x"}, ["source"]),
    ],
)
def test_a_row_knows_which_of_its_columns_nobody_asked_for(name, row, unread):
    columns = formats.Columns(row)
    parsed_columns = formats.ROW_FORMATS[name](columns, CONFIG)
    assert parsed_columns == formats.ROW_FORMATS[name](row, CONFIG)
    assert [column for column in columns.filled() if column not in columns.asked_for] == unread


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "1+", "image_url": None}, {"type": "text", "text": "1?"}]
    assert parsed(messages=[{"role": "user", "content": parts}, ANSWERED]) == [ASKED, ANSWERED]
    whole = [{"role": "assistant", "content": [{"type": "text", "text": "2"}]}]
    assert parsed(messages=[ASKED, *whole]) == [ASKED, ANSWERED]


# Name -> (row, what the message must say).
REFUSED = {
    "a sound": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "x"}}],
                },
                ANSWERED,
            ]
        },
        "message 0 has a part of type 'input_audio' in its content; only plain text and images",
    ),
    "a cached part": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]},
                ANSWERED,
            ]
        },
        "message 0 has a part of type 'text' in its content",
    ),
    "a part that is text": (
        {"messages": [{"role": "user", "content": ["x"]}, ANSWERED]},
        "a part of type 'str'",
    ),
    "no parts": (
        {"messages": [ASKED, {"role": "assistant", "content": []}]},
        "message 1: field 'content' is empty",
    ),
    "null content": (
        {"messages": [ASKED, {"role": "assistant", "content": None}]},
        "message 1: field 'content' is null; remove the row",
    ),
    "a tool call without content": (
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
                ANSWERED,
            ]
        },
        "message 1 has tool_calls=",
    ),
    "no content": (
        {"messages": [ASKED, {"role": "assistant"}]},
        "message 1: field 'content' is missing",
    ),
    "a tool's turn": (
        {"messages": [ASKED, {"role": "tool", "content": "2"}, ANSWERED]},
        "message 1 has role 'tool'; it should be one of system, user, assistant",
    ),
    "a developer's turn": (
        {"messages": [{"role": "developer", "content": "x"}, ANSWERED]},
        "role 'developer'",
    ),
    "roles of ShareGPT": (
        {"messages": [{"role": "human", "content": "x"}, ANSWERED]},
        "role 'human'",
    ),
    "keys of ShareGPT": (
        {"messages": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        "message 0 has 'from' in the place of 'role'; set data.rows='sharegpt'",
    ),
    "tools": (
        {"messages": [ASKED, ANSWERED], "tools": [{"name": "add"}]},
        "field 'tools' beside 'messages'",
    ),
    "a weight of the row": (
        {"messages": [ASKED, ANSWERED], "weight": 0.5},
        "field 'weight' beside 'messages'",
    ),
    "documents": (
        {"messages": [ASKED, ANSWERED], "documents": [{"text": "x"}]},
        "field 'documents' beside",
    ),
    "another prompt": (
        {"messages": [ASKED, ANSWERED], "prompt": "1+2?"},
        "field 'prompt' beside 'messages' is in none of its messages",
    ),
    "a prompt of messages": (
        {"messages": [ASKED, ANSWERED], "prompt": [ASKED]},
        "field 'prompt' beside 'messages'",
    ),
    "another completion": (
        {"messages": [ASKED, ANSWERED], "completion": "3"},
        "field 'completion' beside",
    ),
    "another system": (
        {"messages": [SYSTEM, ASKED, ANSWERED], "system": "Be kind."},
        "field 'system' differs from the system message in 'messages'; keep the right one",
    ),
    "a system of numbers": (
        {"messages": [ASKED, ANSWERED], "system": 3},
        "field 'system' should be text, not int",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(case):
    row, expected = REFUSED[case]
    with pytest.raises(BadRow) as caught:
        parsed(**row)
    assert expected in str(caught.value)


def test_the_system_prompt_of_a_row_begins_its_conversation():
    expected = [SYSTEM, ASKED, ANSWERED]
    assert parsed(messages=[ASKED, ANSWERED], system="Be brief.") == expected
    assert parsed(messages=expected, system="Be brief.") == expected
    for nothing in (None, ""):
        assert parsed(messages=[ASKED, ANSWERED], system=nothing) == [ASKED, ANSWERED]


def test_fields_that_repeat_the_conversation_pass():
    row = {
        "messages": [ASKED, ANSWERED],
        "prompt": "1+1?",
        "completion": "2",
        "prompt_id": "a",
        "tools": "[]",
    }
    assert parsed(**row) == [ASKED, ANSWERED]
    assert parsed("fields", **row) == [ASKED, ANSWERED]


def test_a_conversation_beside_prompt_and_completion_is_not_lost():
    row = {"prompt": "1+1?", "completion": "2"}
    for field, turns in (
        ("messages", [SYSTEM, ASKED, ANSWERED]),
        ("conversations", [{"from": "gpt", "value": "3"}]),
    ):
        with pytest.raises(
            BadRow, match=f"field '{field}' holds another conversation than 'prompt'.*set data.rows"
        ):
            parsed("fields", **row, **{field: turns})


def test_sharegpt():
    turns = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2", "weight": None}]
    assert parsed("sharegpt", conversations=turns) == [ASKED, ANSWERED]
    assert parsed("sharegpt", conversations=turns, system="Be brief.", tools="") == [
        SYSTEM,
        ASKED,
        ANSWERED,
    ]
    begun = [{"from": "system", "value": "Be brief."}, *turns]
    assert parsed("sharegpt", conversations=begun) == [SYSTEM, ASKED, ANSWERED]


@pytest.mark.parametrize(
    "turns, expected",
    [
        (
            [{"from": "observation", "value": "x"}],
            "message 0 is from 'observation'; it should be one of system, human",
        ),
        ([{"role": "user", "content": "x"}], "message 0 is from None"),
        ([{"from": ["human"], "value": "x"}], "message 0 is from ['human']; it should be one of"),
        (
            [{"from": "human", "value": "x"}, {"from": "gpt"}],
            "message 1: field 'content' is missing",
        ),
        (
            [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0.5}],
            "message 1 has weight=0.5",
        ),
        (["x"], "message 0 should be an object with from and value, not str"),
        ([], "field 'conversations' should be a list of messages, not an empty list"),
    ],
)
def test_bad_sharegpt(turns, expected):
    with pytest.raises(BadRow) as caught:
        parsed("sharegpt", conversations=turns)
    assert expected in str(caught.value)


def test_the_account_says_that_calculator_marks_are_trained(tmp_path):
    rows = [
        {"question": "Q <<1>>", "answer": answer} for answer in (MARKED, "Two.\n#### 2", MARKED)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_lib.get_default().data
    config.update(train=str(tmp_path / "a.jsonl"), rows="gsm8k")
    line = formats.calculator_marks(config)
    assert line.startswith(
        "calculator marks (<<48/2=24>>) are trained in 2 of 3 rows; data.rows=gsm8k_unmarked"
    )
    for rows in ("gsm8k_unmarked", "gsm8k_boxed"):
        config.rows = rows
        assert formats.calculator_marks(config) == ""
