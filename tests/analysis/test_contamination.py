"""Which demonstrations share text with a benchmark's problems."""

import json
import subprocess
import sys

import pytest

from dft_jax import assets, config as config_lib
from dft_jax.analysis import contamination
from dft_jax.data.examples import load_examples
from dft_jax.evals.tasks.task import Problem
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests import lookalikes
from tests.commands import ROOT, TINY

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
    (found,) = contamination.overlaps({"math500": problems}, examples, tokenizer)
    return found


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


def test_rows_are_compared_with_each_benchmark_by_itself(tmp_path):
    config = config_lib.get_default().data
    config.update({"template": "plain", "max_length": 1024})
    tokenizer = load_tokenizer(assets.TINY)
    rows = [{"prompt": LONG, "completion": "1"}, {"prompt": "Else.", "completion": f"2 {LONG}"}]
    examples = load_examples(rows_with(tmp_path, rows), config, tokenizer, 264)
    other = LONG.replace("One", "Zero")
    problems = {"math500": [Problem("a", LONG, "")], "gsm8k": [Problem("b", other, "")]}
    whole, part = contamination.overlaps(problems, examples, tokenizer)
    assert (whole.benchmark, part.benchmark) == ("math500", "gsm8k")
    assert [row.words[:3] for row in whole.rows] == ["one", "one"]
    assert [row.words[:3] for row in part.rows] == ["two", "two"]
    assert (whole.problems, part.problems) == ({"a"}, {"b"})


def test_the_last_word_of_a_question_is_not_joined_to_what_follows(tmp_path):
    """Llama 3's template writes special tokens alone between a question and `assistant`."""
    tokenizer = load_tokenizer(lookalikes.write("llama3", tmp_path / "llama3"))
    config = config_lib.get_default().data
    question = LONG.removesuffix(" fourteen?")
    rows = rows_with(tmp_path, [{"prompt": question, "completion": "Yes."}])
    examples = load_examples(rows, config, tokenizer, len(tokenizer))
    (found,) = contamination.overlaps(
        {"math500": [Problem("a", question, "")]}, examples, tokenizer
    )
    assert [row.problems for row in found.rows] == [("a",)]


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


def test_wrong_benchmarks_are_refused(tmp_path):
    with pytest.raises(errors.UserError, match="--contamination: benchmark 'math50' is unknown"):
        contamination.load(["math50"], "")
    with pytest.raises(errors.UserError, match="--contamination: .* does not exist"):
        contamination.load(["math500"], str(tmp_path))
    with pytest.raises(errors.UserError, match="has no effect without --contamination"):
        contamination.load([], str(tmp_path))


@pytest.mark.slow
def test_the_command_says_which_rows(tmp_path):
    """In a process of its own: its --rows is another flag than that of the commands that evaluate."""
    (tmp_path / "math500.jsonl").write_text(
        json.dumps({"unique_id": "a/1.json", "problem": LONG, "answer": "1"}) + "\n"
    )
    rows = [{"prompt": LONG, "completion": "1"}, {"prompt": "?", "completion": "2"}]
    command = [sys.executable, "-m", "dft_jax.analysis.inspect_data", TINY]
    command += [
        f"--config.data.train={rows_with(tmp_path, rows)}",
        "--config.data.rows=fields",
        "--config.data.heldout=",
        "--config.train.global_batch=8",
        f"--benchmark_data={tmp_path}",
    ]
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=300)
    done = subprocess.run([*command, "--contamination=math500"], **options)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 rows share 13 words in a row with a problem of math500" in done.stdout
    assert '"contamination": [' in done.stdout
    refused = subprocess.run([*command, "--contamination=math50"], **options)
    assert refused.returncode == 2 and "benchmark 'math50' is unknown" in refused.stderr
