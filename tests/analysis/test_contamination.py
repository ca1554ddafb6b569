"""Which demonstrations share text with a benchmark's problems."""

import json

import pytest

from dft_jax import assets, config as config_lib
from dft_jax.analysis import contamination, inspect_data
from dft_jax.data.examples import load_examples
from dft_jax.evals.tasks.task import Problem
from dft_jax.models.hf.locate import load_tokenizer
from tests.commands import TINY, assert_refused, run_command

LONG = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen?"


def rows_with(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def overlap(folder, rows, problems, **changes):
    config = config_lib.get_default().data
    config.update({"template": "plain", "max_length": 1024} | changes)
    tokenizer = load_tokenizer(assets.TINY)
    examples = load_examples(rows_with(folder, rows), config, tokenizer, 264)
    return contamination.overlap("math500", problems, examples, tokenizer)


def test_rows_that_hold_thirteen_words_of_a_problem_are_named(tmp_path):
    """In question or answer, whatever the case, the spaces and the signs; twelve are not enough."""
    words = LONG.lower().strip("?").split()
    rows = [
        {"prompt": "Something else.", "completion": "Quite so."},
        {"prompt": f"Say: {LONG}", "completion": "Yes."},
        {"prompt": "Write it.", "completion": f"# {'  '.join(words[1:]).upper()}!"},
        {"prompt": " ".join(words[:12]), "completion": " ".join(words[12:])},
    ]
    problems = [Problem("a", LONG, ""), Problem("b", f"So {LONG}", ""), Problem("c", "1 + 1?", "")]
    found = overlap(tmp_path, rows, problems)
    # The run over the border of question and answer in the last row is in neither.
    assert [(row.origin, row.problems, row.is_trained) for row in found.rows] == [
        ("rows.jsonl:2", ("a", "b"), False),
        ("rows.jsonl:3", ("a", "b"), True),
    ]
    assert found.rows[1].words == " ".join(words[1:])
    assert (found.n_rows, found.n_problems, found.too_short) == (4, 3, 1)
    lines = found.lines()
    assert lines[0].startswith("2 of 4 rows share 13 words in a row with a problem of math500")
    assert "(1 of them in an answer); 2 of its 3 problems" in lines[0]
    assert "1 problems have fewer words" in lines[0] and "rows.jsonl:3: a, b: “two thr" in lines[2]


def test_what_is_cut_off_is_not_looked_at(tmp_path):
    row = {"prompt": "?", "completion": f"{'x' * 60} {LONG}"}
    assert overlap(tmp_path, [row], [Problem("a", LONG, "")]).rows
    assert not overlap(tmp_path, [row], [Problem("a", LONG, "")], max_length=64).rows


def test_every_row_is_counted_and_few_are_shown(tmp_path):
    rows = [{"prompt": LONG, "completion": str(n)} for n in range(8)]
    found = overlap(tmp_path, rows, [Problem("a\033[2J", LONG, "")])
    lines = found.lines()
    assert len(found.rows) == 8 and len(lines) == 7 and "3 more rows" in lines[-1]
    assert "\033" not in "".join(lines), "nothing that a terminal would obey"
    assert json.loads(json.dumps(found.report()))["problems"] == ["a\033[2J"]


def test_wrong_benchmarks_are_refused_before_data_is_read(tmp_path, capfd, monkeypatch):
    def refused(*arguments):
        return run_command(inspect_data.main, [TINY, *arguments], capfd, monkeypatch)

    assert_refused(refused("--contamination=math50"), "--contamination: benchmark 'math50' is unkn")
    data = f"--benchmark_data={tmp_path}"
    assert_refused(refused("--contamination=math500", data), "--contamination: ", "does not exist")
    assert_refused(refused(data), "has no effect without --contamination")


@pytest.mark.slow
def test_the_command_says_which_rows(tmp_path, capfd, monkeypatch):
    (tmp_path / "math500.jsonl").write_text(
        json.dumps({"unique_id": "a/1.json", "problem": LONG, "answer": "1"}) + "\n"
    )
    rows = [{"prompt": LONG, "completion": "1"}, {"prompt": "?", "completion": "2"}]
    arguments = [
        TINY,
        f"--config.data.train={rows_with(tmp_path, rows)}",
        "--config.data.rows=fields",
        "--config.data.heldout=",
        "--config.train.global_batch=8",
        "--contamination=math500",
        f"--benchmark_data={tmp_path}",
    ]
    outcome = run_command(inspect_data.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    assert "1 of 2 rows share 13 words in a row with a problem of math500" in outcome.stdout
    assert '"contamination": [' in outcome.stdout
