"""What each row format makes of a row."""

import json

import pytest

from dft_jax import config as config_lib
from dft_jax.data import formats
from dft_jax.data.sources import BadRow

CONFIG = config_lib.get_default().data


def answer_of(name, answer):
    question, reply = formats.ROW_FORMATS[name]({"question": "Q <<1+1=2>>", "answer": answer}, CONFIG)
    assert question == {"role": "user", "content": "Q <<1+1=2>>"}
    assert reply["role"] == "assistant"
    return reply["content"]


MARKED = "He has 48/2 = <<48/2=24>>24 left.\nSo 24+1 = $<<24+1=25>>25.  \n#### 1,025"


def test_gsm8k_with_and_without_calculator_marks():
    assert answer_of("gsm8k", MARKED) == MARKED
    assert answer_of("gsm8k_unmarked", MARKED) == "He has 48/2 = 24 left.\nSo 24+1 = $25.  \n#### 1,025"


def test_gsm8k_boxed():
    expected = "He has 48/2 = 24 left.\nSo 24+1 = $25.\nThe answer is \\boxed{1025}."
    assert answer_of("gsm8k_boxed", MARKED) == expected
    assert answer_of("gsm8k_boxed", "#### -3.5") == "The answer is \\boxed{-3.5}."
    assert answer_of("gsm8k_boxed", "1 < 2 and 3 > 2\n#### 7") == "1 < 2 and 3 > 2\nThe answer is \\boxed{7}."


@pytest.mark.parametrize("answer", ["So 24.", "So 24.\n#### ", "#### "])
def test_gsm8k_boxed_needs_the_answer_after_hashes(answer):
    with pytest.raises(BadRow, match="field 'answer' has no '#### 42' at its end; mend the row"):
        answer_of("gsm8k_boxed", answer)


def test_gsm8k_boxed_on_the_real_problems(shared):
    """Every answer keeps its steps, loses every mark, and ends in the benchmark's own answer."""
    from dft_jax.evals import benchmarks, extraction

    file = shared / "data" / "gsm8k_test.jsonl"
    problems = benchmarks.load("gsm8k", str(file))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, problem in zip(rows, problems, strict=True):
        _, reply = formats.gsm8k_boxed(row, CONFIG)
        assert extraction.last_boxed(reply["content"]) == problem.answer
        assert not {"<<", ">>", "####"} & set(reply["content"].split()) and "<<" not in reply["content"]
        assert reply["content"].count("\n") == row["answer"].count("\n")
