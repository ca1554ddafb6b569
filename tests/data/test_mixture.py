"""Several sources in one run: shares of the examples drawn, a pure function of data, seed, step."""

import collections
import fractions
import hashlib
import itertools
import json

import grain
import numpy as np
import pytest

from dft_jax import assets, config as config_lib
from dft_jax.data import account, batches, mixture, options, order
from dft_jax.data.order import Draws, Share
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from tests.conftest import make_mesh
from tests.tiny_trainer import tiny_config, tiny_examples

# Of the batches of the first twenty steps, as they were before there were mixtures.
ONE_SOURCE = {
    (1, False): "0499b3cd82f2e88ef5dc79957301e1e2a151bd5bfbf4bca882a535818984d480",
    (2, False): "cedbd059797747bfebe82594a08d540eb8488ba8ea4ead5d6e6f8e2325ea8693",
    (2, True): "ca82d6e86e25a723867b4b774d158eda83c2350220c2ea0d4b25ae2ee16dbef3",
}
DATA = "4cce727db96ad7b4ccb7c13d3c13a5df7921026c320b62e9c20fb8d50a7a0fff"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


def digest_of(steps, n_steps, with_origins=True):
    """SHA-256 of all arrays of the steps, their shapes, and the lines that they are from."""
    found = hashlib.sha256()
    for n in range(n_steps):
        step = steps[n]
        batch = step.batch
        arrays = (batch.tokens_BL, batch.targets_BL, batch.mask_BL, batch.segments_BL)
        for array in (*arrays, batch.positions_BL):
            found.update(np.ascontiguousarray(array).tobytes())
        origins = step.origins if with_origins else ()
        found.update(repr((array.shape, batch.most_segments, origins)).encode())
        assert batch.weights_BL is None
    return found.hexdigest()


def steps_of(examples, *, accumulation=1, by_examples=False, seed=5, steps=20, global_batch=8):
    return batches.TrainBatches(
        examples,
        make_mesh(),
        steps=steps,
        global_batch=global_batch,
        seed=seed,
        row_length=160,
        accumulation=accumulation,
        by_examples=by_examples,
    )


@pytest.mark.parametrize("accumulation, by_examples", ONE_SOURCE)
def test_one_source_gives_the_batches_that_it_always_gave(accumulation, by_examples):
    assert tiny_examples().report["sha256"] == DATA
    steps = steps_of(tiny_examples(), accumulation=accumulation, by_examples=by_examples)
    assert digest_of(steps, 20) == ONE_SOURCE[accumulation, by_examples]
    assert steps.report() == {} and next(steps.starting_at(0))[1].epochs == {}


def written(folder, name, n, *, of, **more):
    """A file of n rows that name themselves: prompt `a 7`, completion `7 a…`, of various lengths."""
    rows = []
    for number in range(n):
        text = {"prompt": f"{of} {number}", "completion": f"{number} {of * (1 + number % 7)}"}
        rows.append(text | more)
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def load(given, tokenizer, **changes):
    config = config_lib.get_default().data
    config.update({"max_length": 128, "template": "plain"} | changes)
    assert options.problems(config.to_dict() | {"train": given}, "here") == []
    return mixture.load(given, config, tokenizer, 264)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return [written(folder, f"{of}.jsonl", n, of=of) for of, n in (("a", 12), ("b", 5), ("c", 31))]


def test_a_list_of_one_source_gives_the_batches_of_that_source():
    config = tiny_config()
    data = config.data
    listed = mixture.load([data.train], data, load_tokenizer(assets.TINY), 264, max_rows=64)
    assert digest_of(steps_of(listed), 20, with_origins=False) == digest_of(
        steps_of(tiny_examples()), 20, with_origins=False
    )


# ---- which example each draw is


def naive(shares, seed, n_draws):
    """The draws one by one, by counting: the oracle of `Draws`."""
    first = np.cumsum([0] + [share.n_examples for share in shares])
    rounds = [iter_rounds(share.n_examples, seed, source) for source, share in enumerate(shares)]
    places = []
    for source, share in enumerate(shares):
        for k in range(share.quota):
            places.append((fractions.Fraction(2 * k + 1, 2 * share.quota), source))
    sources = itertools.cycle([source for _, source in sorted(places)])
    drawn = itertools.islice(sources, n_draws)
    return [int(first[source]) + next(rounds[source]) for source in drawn]


def iter_rounds(n_examples, seed, source):
    for epoch in itertools.count():
        drawn_from = order.epoch_seed(seed, epoch, source=source)
        shuffled = grain.MapDataset.range(n_examples).shuffle(seed=drawn_from)
        yield from (shuffled[place] for place in range(n_examples))


SHARES = [
    [Share("a", 6, 9), Share("b", 15, 3)],
    [Share("a", 12, 20), Share("b", 5, 8), Share("c", 31, 20)],
    [Share("a", 7, 7)],
    [Share("a", 9, 1), Share("b", 9, 1), Share("c", 9, 37)],
]


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_draws_are_those_of_counting_one_by_one(shares):
    draws, n = Draws(shares, seed=3), 60
    expected = naive(shares, 3, n)
    assert [draws.example_at(place) for place in range(n)] == expected
    assert [draws.example_at(51), draws.example_at(17)] == [expected[51], expected[17]]
    ends = np.cumsum([share.n_examples for share in shares])
    for n_draws in (0, 1, 17, 50, 60):
        sources = np.searchsorted(ends, expected[:n_draws], side="right")
        assert draws.drawn(n_draws) == np.bincount(sources, minlength=len(shares)).tolist()


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_a_source_is_drawn_whole_before_any_of_it_comes_again(shares):
    """And each round has an order of its own."""
    draws = Draws(shares, seed=0)
    ids = [draws.example_at(place) for place in range(110)]
    first = 0
    for share in shares:
        mine = [one for one in ids if first <= one < first + share.n_examples]
        rounds = [mine[k : k + share.n_examples] for k in range(0, len(mine), share.n_examples)]
        whole = [one for one in rounds if len(one) == share.n_examples]
        assert all(sorted(one) == list(range(first, first + share.n_examples)) for one in whole)
        assert len(set(map(tuple, whole))) == len(whole)
        first += share.n_examples


def test_every_step_has_its_share_of_each_source():
    """Quotas 20, 8 and 20 of 48: of 24 examples 10, 4 and 10 are drawn, never one more or less."""
    draws = Draws(SHARES[1], seed=1)
    for step in range(40):
        before, after = draws.drawn(24 * step), draws.drawn(24 * (step + 1))
        found = np.array(after) - before
        assert np.abs(found - [10, 4, 10]).max() <= 1


def test_sources_of_one_size_are_not_read_side_by_side():
    """Line k of one file would else always be trained beside line k of the other."""
    draws = Draws([Share("a", 50, 50), Share("b", 50, 50)], seed=0)
    pairs = [(draws.example_at(2 * k), draws.example_at(2 * k + 1) - 50) for k in range(50)]
    assert sum(one == other for one, other in pairs) < 10


def test_a_seed_decides_the_order():
    first, again, other = (Draws(SHARES[1], seed=seed) for seed in (0, 0, 1))
    ids = [[draws.example_at(place) for place in range(40)] for draws in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


# ---- what an epoch draws


def test_quotas_of_weights_numbers_and_neither(files, tokenizer):
    a, b, c = files
    neither = load([a, b, c], tokenizer)
    assert [share.quota for share in neither.shares] == [12, 5, 31]
    numbers = load([{"path": a, "examples": 3}, b, {"path": c, "examples": 100}], tokenizer)
    assert [share.quota for share in numbers.shares] == [3, 5, 100]
    assert mixture.epoch_of(numbers) == 108
    # Of 48 examples 3/6, 1/6 and 2/6.
    weights = load(
        [{"path": p, "weight": w} for p, w in zip(files, (3, 1, 2), strict=True)], tokenizer
    )
    assert [share.quota for share in weights.shares] == [24, 8, 16]
    # 48 · 1/7 = 6.86 and 48 · 5/7 = 34.29: the sum stays 48.
    rounded = load(
        [{"path": p, "weight": w} for p, w in zip(files, (1, 1, 5), strict=True)], tokenizer
    )
    assert [share.quota for share in rounded.shares] == [7, 7, 34]


def test_a_weight_that_comes_to_nothing_is_refused(files, tokenizer):
    given = [{"path": files[0], "weight": 1e-6}, {"path": files[1], "weight": 1}]
    with pytest.raises(errors.UserError, match=r"weight=1e-06 of 'a' comes to none of 17 examples"):
        load(given, tokenizer)


def test_sources_have_rows_templates_and_fields_of_their_own(tmp_path, files, tokenizer):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"problem": "what?", "solution": "that"}) + "\n")
    given = [
        {"path": files[0], "max_rows": 2, "name": "first"},
        {"path": str(other), "rows": "math", "template": "deepseek-math"},
    ]
    examples = load(given, tokenizer)
    texts = [tokenizer.decode(example.ids) for example in examples.examples]
    assert texts[:2] == ["a 0\n0 a<|endoftext|>", "a 1\n1 aa<|endoftext|>"]
    assert texts[2].startswith("User: what?\n") and texts[2].endswith("that<|endoftext|>")
    assert examples.origins == ["first a.jsonl:1", "first a.jsonl:2", "other other.jsonl:1"]
    assert list(examples.report["sources"]) == ["first", "other"]
    assert [share.n_examples for share in examples.shares] == [2, 1]


def test_the_hash_covers_sources_and_shares(files, tokenizer):
    a, b, _ = files
    given = [
        [a, b],
        [b, a],
        [{"path": a, "examples": 3}, b],
        [{"path": a, "max_rows": 3}, b],
        [{"path": a, "prompt_weight": 0.5}, b],
    ]
    digests = [load(one, tokenizer).report["sha256"] for one in given]
    assert len(set(digests)) == len(given)
    named = [{"path": a, "name": "x"}, {"path": b, "name": "y"}]
    assert load(named, tokenizer).report["sha256"] == digests[0], "the same data under other names"


# ---- the account


def test_the_account_of_a_run_is_what_its_steps_hold(files, tokenizer):
    """Counted step by step, to the last token; a source comes round three times, another not once."""
    a, b, c = files
    given = [{"path": a, "weight": 2}, {"path": b, "weight": 4}, {"path": c, "weight": 1}]
    examples = load(given, tokenizer)
    steps = steps_of(examples, steps=7, global_batch=9)
    counted = collections.Counter()
    for _, packed in steps.starting_at(0):
        for name, drawn in packed.drawn.items():
            counted[name, "examples"] += drawn.examples
            counted[name, "tokens"] += drawn.tokens
            counted[name, "trained_tokens"] += drawn.trained_tokens
        assert sum(drawn.examples for drawn in packed.drawn.values()) == 9
        assert sum(d.trained_tokens for d in packed.drawn.values()) == packed.batch.mask_BL.sum()
        total = sum(d.tokens - d.examples for d in packed.drawn.values())
        assert total == packed.real_tokens, "the last token of an example takes no position"
    report = steps.report()
    for name, held in (("a", 12), ("b", 5), ("c", 31)):
        for what in ("examples", "tokens", "trained_tokens"):
            assert report[name][what] == counted[name, what] > 0
        assert report[name]["epochs"] == counted[name, "examples"] / held
        assert packed.epochs[name] == report[name]["epochs"]
    assert report["b"]["epochs"] > 3 and report["c"]["epochs"] < 1
    assert sum(one["share_of_examples"] for one in report.values()) == pytest.approx(1)
    line = mixture.run_lines(report)[1]
    assert line.startswith("data.train b: 36 examples (57.1%), ") and "7.20 epochs of it" in line


def test_what_is_said_of_rows_is_said_of_each_source(files, tmp_path, tokenizer):
    bad = written(tmp_path, "bad.jsonl", 4, of="d")
    with open(bad, "a") as file:
        file.write('{"prompt": "x"}\n' * 4)
    report = load([files[0], bad], tokenizer, bad_rows="drop").report
    first, second = account.lines("data.train", report)
    assert first.startswith("data.train a: 12 rows read: 12 whole")
    assert second.startswith("data.train bad: 8 rows read: 4 whole, 0 cut, 4 dropped")
    [warning] = account.warnings("data.train", report)
    assert warning.startswith("data.train bad: 4 of 8 rows (50.0%)")
    [refusal] = account.refusals("data.train", report, 0.4)
    assert refusal.startswith("config.data.train bad: ")


def test_a_step_resumes_where_it_was(files, tokenizer):
    examples = load(files, tokenizer)
    whole = list(steps_of(examples, steps=12).starting_at(0))
    later = list(steps_of(examples, steps=12).starting_at(7))
    assert [step for step, _ in later] == [8, 9, 10, 11, 12]
    for (_, one), (_, other) in zip(whole[7:], later, strict=True):
        assert one.origins == other.origins and one.drawn == other.drawn
        assert one.epochs == other.epochs
        np.testing.assert_array_equal(one.batch.tokens_BL, other.batch.tokens_BL)


def test_held_out_steps_have_examples_of_one_source(files, tokenizer):
    steps = batches.SequentialBatches(
        load(files, tokenizer), make_mesh(), global_batch=8, row_length=128
    )
    assert steps.sources == ["a", "a", "b", "c", "c", "c", "c"]
    assert steps.batches[1] == [8, 9, 10, 11] and steps.batches[2] == [12, 13, 14, 15, 16]


# ---- what is refused

SOURCE = {"path": "a.jsonl"}
REFUSED = {
    "empty": ([], "config.data.train=[] has no source; give at least one"),
    "no dict": ([3], "config.data.train[0]=3 should be a path, or a dict such as"),
    "no path": ([{"weight": 2}], "config.data.train[0]: path='' should name a file"),
    "unknown": ([SOURCE | {"wieght": 2}], "unknown key 'wieght' (did you mean 'weight'?); known:"),
    "zero": ([SOURCE | {"weight": 0}], "weight=0 should be a number above 0"),
    "negative": ([SOURCE | {"weight": -1.5}], "weight=-1.5 should be a number above 0"),
    "nan": ([SOURCE | {"weight": float("nan")}], "weight=nan should be a number above 0"),
    "huge": ([SOURCE | {"weight": 1e308}], "weight=1e+308 should be a number above 0, and at most"),
    "many digits": ([SOURCE | {"weight": 10**400}], "000 should be a number above 0, and at most"),
    "text": ([SOURCE | {"weight": "2"}], "weight='2' should be a number above 0"),
    "bool": ([SOURCE | {"weight": True}], "weight=True should be a number above 0"),
    "no number": ([SOURCE | {"examples": 2.5}], "examples=2.5 should be a whole number"),
    "none": ([SOURCE | {"examples": 0}], "examples=0 should be a whole number of at least 1"),
    "both": ([SOURCE | {"examples": 5, "weight": 2}], "weight=2 and examples=5 both say what"),
    "some": (
        [SOURCE | {"weight": 2}, {"path": "b.jsonl", "examples": 3}],
        "source 0 has weight=2 and source 1 has none; give every source a weight, or none",
    ),
    "names": (["a.jsonl", "x/y/a.jsonl"], "sources 0 and 1 are both called 'a'; give one of them"),
    "name": ([SOURCE | {"name": "a/b"}], "name='a/b' should be letters, digits"),
    "rows": ([SOURCE | {"rows": "mth"}], "config.data.train[0]: rows='mth' is unknown"),
    "template": ([SOURCE | {"template": "plian"}], "template='plian' is unknown"),
    "prompt weight": ([SOURCE | {"prompt_weight": -1}], "prompt_weight=-1 should be 0, or from"),
    "absent": (["./none.jsonl"], "config.data.train[0]='./none.jsonl': no such file"),
    "address": (
        ["gs://a/b.jsonl"],
        "config.data.train[0]='gs://a/b.jsonl': only files and folders",
    ),
    "jinja": (
        [SOURCE | {"template": "no.jinja"}],
        "config.data.train[0]: template='no.jinja': no such file (looked from",
    ),
    "idle": ([SOURCE | {"subset": "main"}], "config.data.train[0]: subset='main' has no effect"),
    "no list": ("[{'path': 'a.jsonl'", "is no list that Python reads; write it as in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_list_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    given, expected = REFUSED[name]
    config = tiny_config(**{"data.train": given})
    problems = [line for line in config_lib.validate(config) if "config.data." in line]
    [problem] = problems
    assert expected in problem and problem.startswith("config.data.train")


def test_held_out_sources_are_not_drawn():
    config = tiny_config(**{"data.heldout": [{"path": tiny_config().data.train, "weight": 2}]})
    [line] = config_lib.validate(config)
    assert "config.data.heldout[0]: weight=2 has no effect: all rows of config.data.heldout" in line


def test_a_config_keeps_its_list():
    """As text in config.json and back, and each config has a list of its own."""
    given = [{"path": "a.jsonl", "weight": 2}, "b.jsonl"]
    config = tiny_config(**{"data.train": given})
    assert json.loads(config_lib.to_json(config))["data"]["train"] == given
    assert config_lib.get_default().data.train == ""
    config.data.train = "a.jsonl"
    assert config.data.train == "a.jsonl"
    assert config_lib.validate(tiny_config(**{"data.train": 3}))[0] == (
        "config.data.train=3 should be str, not int"
    )


def test_sources_draw_samples_of_their_own(files, tokenizer):
    """A sample is drawn from all rows of its source, whatever part of the others is read."""
    a, _, c = files
    given = [{"path": c, "sample_rows": 9, "sample_seed": 3}, {"path": a, "sample_rows": 0}]
    data = config_lib.get_default().data
    data.update({"max_length": 128, "template": "plain"})
    examples = mixture.load(given, data, tokenizer, 264, max_rows=4, sample_rows=2, sample_seed=1)
    assert [share.n_examples for share in examples.shares] == [9, 4]
    reports = examples.report["sources"]
    assert reports["c"]["sample"] == {"rows": 9, "of_usable_rows": 31, "seed": 3}
    assert "sample" not in reports["a"]
    other = mixture.load(
        [given[0] | {"sample_seed": 4}, given[1]], data, tokenizer, 264, max_rows=4
    )
    assert other.report["sha256"] != examples.report["sha256"]


def test_a_seed_of_a_sample_that_is_not_drawn_is_refused():
    def found(**given):
        data = config_lib.get_default().data.to_dict() | {"train": "a/a", "split": "x"}
        return [line for line in options.problems(data | given, "here") if "sample" in line]

    (line,) = found(sample_seed=3)
    assert "config.data.sample_seed=3 has no effect: no rows are drawn" in line
    listed = [{"path": "a/a", "sample_seed": 3}]
    (line,) = found(train=listed)
    assert "config.data.train[0]: sample_seed=3 has no effect" in line
    assert found(train=listed, sample_rows=5) == found(sample_rows=5, sample_seed=3) == []
    (line,) = found(heldout=listed, sample_rows=5)
    assert "config.data.heldout[0]: sample_seed=3 has no effect" in line
    assert found(train=[{"path": "a/a", "sample_rows": 2}], sample_seed=3) == []
