"""Which completion of a row of UltraFeedback is the demonstration."""

import json

import pytest

from dft_jax import assets, config as config_lib
from dft_jax.data import account, formats, ratings
from dft_jax.data.examples import load_examples
from dft_jax.data.sources.rows import BadRow, NothingToTrain
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors

CONFIG = config_lib.get_default().data


def completion(*given, response="?", **more):
    """A completion whose aspects have these ratings."""
    aspects = ["helpfulness", "honesty", "instruction_following", "truthfulness"]
    annotations = {
        aspect: {"Rating": rating, "Rationale": "…"}
        for aspect, rating in zip(aspects, given, strict=False)
    }
    return {"response": response, "annotations": annotations, "overall_score": 10} | more


def row(*completions):
    return {"instruction": "Say.", "source": "sharegpt", "completions": list(completions)}


@pytest.mark.parametrize(
    ("completions", "best"),
    [
        # By the mean: 4.25 is more than 4, whatever the overall score says.
        ([completion("4", "4", "4", "4"), completion("5", "5", "5", "2", overall_score=1)], 1),
        # A tie goes to the first.
        ([completion("1"), completion("5", "3"), completion("3", "5"), completion("4")], 1),
        # Aspects that do not apply are no zeros.
        ([completion("4", "4", "4", "4"), completion("5", "N/A", "N/A", "4")], 1),
        # Where no aspect is rated, the score of all of them; it may be 0.
        ([completion("3"), completion("N/A", **{"fine-grained_score": 3.5})], 1),
        ([completion("N/A"), completion("N/A", **{"fine-grained_score": 0.0})], 1),
        # The ratings come before that score, which may be of something else.
        ([completion("3", **{"fine-grained_score": 5}), completion("4")], 1),
        # One that was not rated does not take part. Numbers may be numbers, aspects null.
        ([completion("N/A"), completion(2) | {"annotations": {"a": None, "b": {"Rating": 2}}}], 1),
    ],
)
def test_the_best_mean_is_the_demonstration(completions, best):
    named = [one | {"response": f"answer {n}"} for n, one in enumerate(completions)]
    assert ratings.best_of(named) == best
    assert formats.ultrafeedback(row(*named), CONFIG) == [
        {"role": "user", "content": "Say."},
        {"role": "assistant", "content": f"answer {best}"},
    ]


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        ([completion("4"), {"response": "?"}], "completion 1 has no ratings ('annotations' or"),
        ([completion("4", "good")], "completion 0: Rating of 'honesty' is 'good'; it should be"),
        ([completion(True)], "Rating of 'helpfulness' is True"),
        ([completion(10**400)], "Rating of 'helpfulness' is 1000"),
        ([completion("nan")], "Rating of 'helpfulness' is 'nan'"),
        ([completion("N/A", **{"fine-grained_score": "?"})], "0: fine-grained_score is '?'"),
        ([{"annotations": {"honesty": {"Rationale": "…"}}}], "'honesty' has no 'Rating'"),
        ([{"annotations": ["4"]}], "'annotations' should be an object of aspects, not list"),
        (["text"], "completion 0 should be an object"),
        ([completion("4", response=" ")], "completion 0, the best: field 'response' is empty"),
    ],
)
def test_ratings_that_are_missing_or_none_are_refused_by_name(completions, expected):
    with pytest.raises(BadRow) as error:
        formats.ultrafeedback(row(*completions), CONFIG)
    assert expected in str(error.value) and not isinstance(error.value, NothingToTrain)


def write(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def load(file, changes=None, **arguments):
    config = config_lib.get_default().data
    config.update(
        {"rows": "ultrafeedback", "template": "plain", "max_length": 96} | (changes or {})
    )
    return load_examples(file, config, load_tokenizer(assets.TINY), 264, **arguments)


def test_rows_without_a_rated_answer_are_left_out_and_counted(tmp_path):
    """They are no loss and no mistake: the data says so itself."""
    rows = [row(completion("4")), row(), row(completion("N/A"), completion("N/A"))]
    report = load(write(tmp_path, rows)).report
    assert report["rows"]["dropped"] == {"no_answer_to_train": 2}
    assert account.refusals("data.train", report, 0.0) == account.warnings("x", report) == []
    assert "2 of the dropped rows have no rated answer" in account.lines("data.train", report)[1]
    assert report["columns"]["unread"] == {"source": 1}


# ---- a sample of rows


def text_row(n):
    return {"prompt": f"{n}?", "completion": str(n)}


def test_a_sample_is_of_usable_rows_and_follows_from_its_seed(tmp_path):
    rows = [text_row(n) for n in range(40)]
    rows[::4] = [{"prompt": "no answer"}] * 10
    file = write(tmp_path, rows)
    fields = {"rows": "fields", "bad_rows": "drop"}
    drawn = {}
    for seed in (0, 1, 0):
        examples = load(file, fields, sample_rows=12, sample_seed=seed)
        lines = [int(origin.split(":")[1]) - 1 for origin in examples.origins]
        assert lines == sorted(lines) and len(set(lines)) == 12
        assert not any(line % 4 == 0 for line in lines)
        assert drawn.setdefault(seed, lines) == lines
        report = examples.report
        assert report["sample"] == {"rows": 12, "of_usable_rows": 30, "seed": seed}
        assert report["rows"]["dropped"] == {"bad_row": 10, "not_drawn": 18}
    assert drawn[0] != drawn[1]
    # Of the bad rows a quarter of the file is lost, of the sample nothing.
    assert "10 of 22 rows (25.0%) are not trained whole" in account.warnings("x", report)[0]
    counts, details = account.lines("x", report)[:2]
    assert "40 rows read: 12 whole, 0 cut, 10 dropped" in counts
    assert "12 rows drawn of 30 usable ones, with seed 0" in details
    # From the first rows, where both are asked for; all of them are as without a sample.
    few = load(file, fields, max_rows=8, sample_rows=6)
    assert few.report["sha256"] == load(file, fields, max_rows=8).report["sha256"]
    with pytest.raises(errors.UserError, match="sample_rows=7 is more than the 6 rows there"):
        load(file, fields, max_rows=8, sample_rows=7)


def test_what_a_sample_loses_is_counted_against_the_sample(tmp_path):
    """Of 200 rows 20 are drawn, and all of them are cut: not a tenth, but all of it is lost."""
    long = [{"prompt": f"{n}?", "completion": "x" * 200} for n in range(200)]
    report = load(write(tmp_path, long), {"rows": "fields"}, sample_rows=20).report
    (refusal,) = account.refusals("data.train", report, 0.5)
    assert "20 of 20 rows (100.0%) are not trained whole: 20 cut at data.max_length=96" in refusal
