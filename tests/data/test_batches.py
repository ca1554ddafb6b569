"""From examples to steps: the same ones however they are split."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from dft_jax import assets, config as config_lib
from dft_jax.data import account, batches
from dft_jax.data.examples import Examples
from dft_jax.data.templates import Example
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.types import MORE_SEGMENTS
from tests.conftest import make_mesh
from tests.data.test_examples import data_config, load


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"{i}?", "completion": "x" * int(rng.integers(1, 60))} for i in range(50)]
    return load(tmp_path_factory.mktemp("data"), rows, load_tokenizer(assets.TINY))


def steps_of(examples, mesh=None, accumulation=1, seed=0, steps=40, by_examples=False):
    return batches.TrainBatches(
        examples,
        mesh or make_mesh(),
        steps=steps,
        global_batch=8,
        seed=seed,
        accumulation=accumulation,
        row_length=128,
        by_examples=by_examples,
    )


def contents(step):
    """The multiset of examples in a step, as (tokens, targets, mask) of each segment."""
    batch, found = step.batch, []
    arrays = [
        np.asarray(x) for x in (batch.tokens_BL, batch.targets_BL, batch.mask_BL, batch.segments_BL)
    ]
    tokens, targets, mask, segments = (x.reshape(-1, x.shape[-1]) for x in arrays)
    for row in range(len(tokens)):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            found.append(
                (tuple(tokens[row][here]), tuple(targets[row][here]), tuple(mask[row][here]))
            )
    return sorted(found)


def test_a_step_holds_exactly_its_examples_on_any_mesh_and_accumulation(many):
    plain = steps_of(many)
    others = [(make_mesh(2, 2, 2), 1), (make_mesh(), 4), (make_mesh(4, 1, 1), 2)]
    for other in (steps_of(many, mesh, accumulation) for mesh, accumulation in others):
        for n in (0, 3, 11):
            assert len(contents(plain[n])) == 8
            assert contents(other[n]) == contents(plain[n])


def test_each_epoch_visits_every_example_once_in_its_own_order(many):
    stream = steps_of(many).stream
    numbers = [n for step in range(19) for n in stream[step]]  # 150 = 3 epochs of 50, and a bit
    epochs = [numbers[i : i + 50] for i in range(0, 150, 50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(steps_of(many, seed=1).stream[0]) != numbers[:8]


def test_iterating_from_a_step_equals_random_access(many):
    steps = steps_of(many)
    ahead = steps.starting_at(5)
    for n in (5, 6, 7):
        count, packed = next(ahead)
        assert count == n + 1
        np.testing.assert_array_equal(packed.batch.tokens_BL, steps[n].batch.tokens_BL)


def test_rows_come_in_few_counts(many):
    steps = steps_of(many, accumulation=2)
    counts = {steps[n].n_rows * 2 for n in range(40)}
    assert counts <= set(steps.packer.row_counts) and len(steps.packer.row_counts) <= 5


def segments_of(step):
    """Those of the row that has most, counted one by one; padding is one as well."""
    rows = np.asarray(step.batch.segments_BL).reshape(-1, step.batch.segments_BL.shape[-1])
    return max(len(np.unique(row)) for row in rows)


@pytest.mark.parametrize("by_examples", [False, True])
def test_a_step_says_how_many_segments_its_rows_have_at_most(many, by_examples):
    """A power of two, the same for all steps: what attention's kernels are compiled for."""
    steps = steps_of(many, accumulation=2, steps=30, by_examples=by_examples)
    most = max(segments_of(steps[n]) for n in range(30))
    [said] = {steps[n].batch.most_segments for n in range(30)}
    assert most <= said < 2 * (most + 1) and said in (2, 4, 8, 16)


def test_a_step_with_more_segments_than_foreseen_says_so(many):
    """Steps beyond those that are packed ahead may have them."""
    shortest = np.argsort([len(example.ids) for example in many.examples])[:16].tolist()
    how = dict(accumulation=1, row_length=2048)
    packer = batches.Packer(many, make_mesh(), [shortest[:2]], **how)
    assert packer.pack(shortest[:2]).batch.most_segments == 4  # two examples and padding
    assert packer.pack(shortest[:3]).batch.most_segments == 4
    assert packer.pack(shortest).batch.most_segments == MORE_SEGMENTS


def test_by_examples_gives_each_micro_batch_its_share(many):
    """As the authors' micro-batches: two examples each of eight, even where rows have more room."""
    step = steps_of(many, accumulation=4, steps=4, by_examples=True)[0]
    segments = np.asarray(step.batch.segments_BL)
    assert [int(segments[a].max(axis=1).sum()) for a in range(4)] == [2, 2, 2, 2]
    assert contents(step) == contents(steps_of(many)[0])


def test_the_hash_of_data_sees_every_token_and_every_mask(many):
    """One bit of one example: a token, or whether a token is trained."""
    first, *others = many.examples
    digests = {account.digest(many.examples)}
    for name in ("ids", "trained"):
        changed = getattr(first, name).copy()
        changed[-1] = changed[-1] ^ 1
        digests.add(account.digest([dataclasses.replace(first, **{name: changed}), *others]))
    assert len(digests) == 3


def test_in_order_visits_each_once(many):
    steps = batches.SequentialBatches(many, make_mesh(), global_batch=8, row_length=128)
    seen = [item for step in steps for item in contents(step)]
    assert len(seen) == 50 and len(set(seen)) >= 45


def test_rows_can_be_longer_than_examples():
    """Of 101 tokens one fits a row of 160, and three a row of 320; what is trained is the same."""
    ids = np.arange(101, dtype=np.int32)
    equal = [Example(ids + n, ids > 50, 0) for n in range(12)]
    examples = Examples(equal, {}, ["a"] * 12)
    tokens = []
    efficiency = []
    for row_length in (0, 320):
        config = data_config(max_length=160, row_length=row_length)
        step = batches.TrainBatches(
            examples,
            make_mesh(),
            steps=2,
            global_batch=6,
            seed=0,
            accumulation=1,
            row_length=batches.row_length(config),
        )[0]
        assert step.batch.tokens_BL.shape[-1] == (row_length or 160)
        tokens.append(sorted(step.batch.targets_BL[step.batch.mask_BL].tolist()))
        efficiency.append(step.efficiency)
    assert tokens[0] == tokens[1]
    assert efficiency == [100 / 160, 300 / 320]


def test_a_config_from_before_row_length_has_rows_of_max_length():
    config = config_lib.get_default().data.to_dict()
    del config["row_length"]
    assert batches.row_length(ConfigDict(config).lock()) == config["max_length"]
