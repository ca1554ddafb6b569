"""Which examples each step holds: seeds share no epochs, and epochs are whole batches."""

import itertools

import pytest

from dft_jax.data import order


def epochs(seed, n, n_examples=50, version=order.VERSION):
    """The first `n` epochs, each as a list of example numbers."""
    stream = order.batches(n_examples, global_batch=n_examples, seed=seed, version=version)
    return [stream[epoch] for epoch in range(n)]


def test_no_epoch_of_a_seed_is_an_epoch_of_another():
    """In version 1 epoch 1 of seed 0 was epoch 0 of seed 1: three seeds were no three samples."""
    before = [epochs(seed, 3, version=1) for seed in range(3)]
    assert before[0][1] == before[1][0] and before[0][2] == before[1][1] == before[2][0]
    found = [tuple(one) for seed in range(4) for one in epochs(seed, 4)]
    assert len(set(found)) == 16
    assert all(sorted(one) == list(range(50)) for one in found)


def test_seeds_of_later_epochs_do_not_meet_in_32_bits():
    drawn_from = {order.epoch_seed(seed, epoch) for seed in range(100) for epoch in range(100)}
    assert len(drawn_from) == 100 * 100 and max(drawn_from) < 2**32


def test_one_epoch_has_the_order_that_it_always_had():
    for seed in (0, 7, 2**32 - 1):
        assert epochs(seed, 1) == epochs(seed, 1, version=1)


def test_steps_go_on_over_the_end_of_an_epoch():
    stream = order.batches(50, global_batch=8, seed=3)
    joined = list(itertools.chain.from_iterable(stream[step] for step in range(25)))
    assert joined == list(itertools.chain.from_iterable(epochs(3, 4)))


# (epochs, examples, batch) -> steps; in version 1 they were the last number.
LENGTHS = [
    ((1.0, 511, 256), 2, 1),
    ((1.0, 512, 256), 2, 2),
    ((1.0, 7473, 64), 117, 116),
    ((1.0, 100, 256), 1, 1),
    ((0.29, 100, 1), 29, 28),  # 28.999999999999996
    ((0.1, 30, 1), 3, 3),  # 3.0000000000000004 with three tenths
    ((3 * 0.1, 10, 1), 3, 3),
    ((2.0, 60_000, 64), 1875, 1875),
    ((1e-12, 5, 1), 1, 1),
]


@pytest.mark.parametrize("asked, steps, before", LENGTHS, ids=str)
def test_epochs_are_rounded_up(asked, steps, before):
    given = dict(zip(("epochs", "n_examples", "global_batch"), asked, strict=True))
    assert order.length(steps=0, **given).steps == steps
    assert order.length(steps=0, version=1, **given).steps == before
    assert order.length(steps=7, **given) == order.Length(7, asked[2], asked[1], None)


def test_what_is_said_of_a_length():
    whole = order.length(steps=0, epochs=1.0, n_examples=511, global_batch=256)
    assert whole.line() == "2 steps of 256 examples = 1.00 epochs of 511" and whole.warnings() == []
    assert whole.report()["epochs"] == 512 / 511 and whole.report()["asked_epochs"] == 1.0
    few = order.length(steps=0, epochs=1.0, n_examples=100, global_batch=256)
    assert few.line() == "1 step of 256 examples = 2.56 epochs of 100"
    rounded, repeated = few.warnings()
    assert "config.train.epochs=1 becomes 2.56" in rounded
    assert "config.train.global_batch=256 is more than the 100 examples" in repeated
    by_steps = order.length(steps=1, epochs=1.0, n_examples=300, global_batch=256)
    assert by_steps.warnings() == [], "what was asked for is what is made"


def test_a_run_from_before_versions_were_recorded_keeps_its_own():
    assert order.version_of(None) == order.VERSION == 2
    assert order.version_of({"steps": 4}) == 1 and order.as_fingerprint(1) == {}
    assert order.version_of(order.as_fingerprint(2)) == 2
