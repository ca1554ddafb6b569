"""What is said of data before training: rows lost, equal or held out, columns, characters."""

import json

import numpy as np
import pytest

from dft_jax import assets, config as config_lib
from dft_jax.data import account
from dft_jax.data.examples import load_examples
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


def load(folder, given, tokenizer, name="train.jsonl", **changes):
    config = config_lib.get_default().data
    config.update({"max_length": 128, "template": "plain"} | changes)
    file = folder / name
    file.write_text("".join(json.dumps(one) + "\n" for one in given))
    return load_examples(str(file), config, tokenizer, 264)


def row(prompt, completion, **more):
    return {"prompt": prompt, "completion": completion} | more


def rows(n, first=0):
    return [row(f"{number}?", f"{number}") for number in range(first, first + n)]


def test_nothing_is_said_where_nothing_is_lost(tmp_path, tokenizer):
    report = load(tmp_path, rows(100), tokenizer).report
    assert (
        account.warnings("data.train", report) == account.refusals("data.train", report, 0.0) == []
    )
    [line] = account.lines("data.train", report)
    assert line.startswith("data.train: 100 rows read: 100 whole, 0 cut, 0 dropped; ")


def test_cut_rows_and_the_length_that_would_keep_them(tmp_path, tokenizer):
    """Of 100 rows 3 are long: a warning from 2 % on, a refusal above what the config accepts."""
    long = row("?", "x" * 200)
    few = load(tmp_path, [*rows(98), long, long], tokenizer).report
    assert not [line for line in account.warnings("data.train", few) if "whole" in line]
    report = load(
        tmp_path, [*rows(97), *[long | {"prompt": text} for text in "?!."]], tokenizer
    ).report
    [warning] = account.warnings("data.train", report)
    assert "3 of 100 rows (3.0%) are not trained whole: 3 cut at data.max_length=128" in warning
    longest = report["tokens"]["longest_read"]
    assert f"data.max_length={longest} would keep 99 % whole" in warning and longest > 200
    whole = load(tmp_path, [*rows(97), *3 * [long]], tokenizer, max_length=longest).report
    assert whole["rows"]["truncated"] == 0
    [refusal] = account.refusals("data.train", report, 0.02)
    assert (
        refusal.startswith("config.data.train: 3 of 100 rows")
        and "data.max_lost_fraction above 0.02" in refusal
    )
    assert account.refusals("data.train", report, 0.03) == []


def test_dropped_rows_by_reason(tmp_path, tokenizer):
    given = [*rows(7), {"question": "?"}, {"prompt": "?"}, row("p" * 200, "too late")]
    report = load(tmp_path, given, tokenizer, bad_rows="drop").report
    [warning] = account.warnings("--heldout", report, "--context")
    assert (
        "3 of 10 rows (30.0%) are not trained whole:"
        " 2 dropped as bad_row, 1 dropped as prompt_too_long" in warning
    )
    assert "--context=" in warning and "data.bad_rows='refuse' says what is wrong" in warning


@pytest.mark.parametrize(
    "lengths, expected", [([5], 5), (range(1, 101), 99), ([*range(99), 500], 98), ([3, 9], 9)]
)
def test_the_length_for_99_percent_keeps_so_many(lengths, expected):
    found = account.length_for(0.99, list(lengths))
    assert np.mean(np.array(lengths) <= found) >= 0.99
    assert found == expected


def test_columns_that_nobody_reads_are_named(tmp_path, tokenizer):
    """Of those that change what is meant a warning speaks, the others are listed."""
    given = [row(f"{n}?", "5", input=f"{n} and 3", level=3, note=None) for n in range(50)]
    report = load(tmp_path, given, tokenizer).report
    assert report["columns"]["unread"] == {"input": 50, "level": 50}
    assert "columns that are not read: input, level" in account.lines("data.train", report)[1]
    [warning] = account.warnings("data.train", report)
    assert (
        "column 'input' is filled in 50 of 50 rows, and not read by this row format; alpaca does"
        in warning
    )
    rarely = [*rows(199), row("Add.", "5", input="2 and 3")]
    assert account.warnings("data.train", load(tmp_path, rarely, tokenizer).report) == []
    alpaca = [{"instruction": one["prompt"], "output": "5", "input": one["input"]} for one in given]
    assert (
        account.warnings("data.train", load(tmp_path, alpaca, tokenizer, rows="alpaca").report)
        == []
    )


def test_equal_rows_are_counted(tmp_path, tokenizer):
    report = load(tmp_path, [*rows(60), *rows(2, first=7)], tokenizer).report
    assert report["equal_rows"] == {"number": 2, "first": "train.jsonl:61 equals train.jsonl:8"}
    assert "2 rows equal an earlier one" in account.lines("data.train", report)[1]
    [warning] = account.warnings("data.train", report)
    assert "2 of 62 rows equal an earlier one (train.jsonl:61 equals train.jsonl:8)" in warning


def test_heldout_rows_that_are_trained_are_named(tmp_path, tokenizer):
    train = load(tmp_path, [*rows(20), *rows(1, first=18)], tokenizer)
    heldout = load(
        tmp_path,
        [*rows(3, first=18), row("5?", "six"), row("6?", "x")],
        tokenizer,
        name="test.jsonl",
    )
    found = account.also_trained(heldout.origins, heldout.examples, train.origins, train.examples)
    assert found == {
        "rows": 2,
        "first": "test.jsonl:1 is train.jsonl:19",
        "prompts_with_another_answer": 2,
    }
    same, others = account.warnings("data.heldout", heldout.report | {"also_trained": found})
    assert "2 rows are trained as well (test.jsonl:1 is train.jsonl:19)" in same
    assert "the prompts of 2 rows are trained with another answer" in others
    new = load(tmp_path, rows(3, first=30), tokenizer, name="test.jsonl")
    none = account.also_trained(new.origins, new.examples, train.origins, train.examples)
    assert none == {"rows": 0, "first": "", "prompts_with_another_answer": 0}
    assert account.warnings("data.heldout", new.report | {"also_trained": none}) == []


def test_characters_without_a_token_are_counted(tmp_path):
    """The laboratory's tokenizer has no token for parentheses, nor for Chinese."""
    laboratory = load_tokenizer(assets.LAB)
    given = [*rows(10), row("f(2)?", "2 is 2"), row("9?", "很好 2")]
    report = load(tmp_path, given, laboratory).report
    characters = report["characters"]
    assert (characters["without_token"], characters["rows"], characters["first"]) == (
        4,
        2,
        ["train.jsonl:11", "train.jsonl:12"],
    )
    assert set(characters["most_common"]) == set("()很好")
    [warning] = account.warnings("data.train", report)
    assert "has no token for 4 of" in warning and "first in train.jsonl:11" in warning


def test_an_answer_without_any_token_is_refused(tmp_path):
    """It would be trained on EOS alone: the model learns to say nothing."""
    laboratory = load_tokenizer(assets.LAB)
    with pytest.raises(
        errors.UserError,
        match=r"train.jsonl:11: .* no token for anything in the answer \('很好。'\)",
    ):
        load(tmp_path, [*rows(10), row("9?", "很好。")], laboratory)
    dropped = load(tmp_path, [*rows(10), row("9?", "很好。")], laboratory, bad_rows="drop").report
    assert dropped["rows"]["dropped"] == {"bad_row": 1}
