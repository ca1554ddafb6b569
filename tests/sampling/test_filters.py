"""Filters of tokens against sorting in float64; equal tokens stay together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.sampling import filters

ROWS, VOCAB = 16, 200


@pytest.fixture(scope="module")
def logits_BV():
    return np.random.default_rng(0).normal(size=(ROWS, VOCAB)).astype(np.float32) * 3


def by_sorting(logits_V, top_k=0, top_p=1.0):
    order = np.argsort(-logits_V)
    p = np.exp(logits_V.astype(np.float64) - logits_V.max())
    kept = np.zeros(VOCAB, bool)
    n_kept = top_k or VOCAB
    p[order[n_kept:]] = 0
    if top_p < 1:
        share = np.cumsum(p[order]) / p.sum()
        n_kept = min(n_kept, int(np.searchsorted(share, top_p)) + 1)
    kept[order[:n_kept]] = True
    return kept


@pytest.mark.parametrize(
    "options",
    [dict(top_k=1), dict(top_k=7), dict(top_p=0.5), dict(top_p=0.95), dict(top_k=9, top_p=0.6)],
    ids=str,
)
def test_what_is_kept_is_what_sorting_keeps(options, logits_BV):
    kept_BV = jax.jit(lambda x: filters.keep(x, filters.make(**options)))(logits_BV)
    expected_BV = [by_sorting(logits_V, **options) for logits_V in logits_BV]
    np.testing.assert_array_equal(kept_BV, expected_BV)


def test_the_defaults_are_no_filter(logits_BV):
    assert filters.make() == ()
    assert filters.keep(jnp.asarray(logits_BV), ()).all()


def test_more_than_there_are_keeps_all(logits_BV):
    assert filters.keep_top_k(jnp.asarray(logits_BV), VOCAB + 1).all()


def test_equal_tokens_are_kept_together():
    """A picture: two of four tokens share the second place, at a negative logit and at zero."""
    logits_BV = jnp.array([[-1.0, 2.0, -1.0, -5.0], [0.0, 2.0, -0.5, 0.0]])
    expected = [[True, True, True, False], [True, True, False, True]]
    np.testing.assert_array_equal(filters.keep_top_k(logits_BV, 2), expected)


def test_a_later_filter_sees_only_what_an_earlier_one_kept():
    """Of p = 0.4, 0.3, 0.2, 0.1 two are kept, 0.57 and 0.43 of what is left: half is the first."""
    logits_BV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    chain = filters.make(top_k=2, top_p=0.5)
    assert filters.keep(logits_BV, chain).tolist() == [[True, False, False, False]]
    assert filters.keep_top_p(logits_BV, 0.5).tolist() == [[True, True, False, False]]
