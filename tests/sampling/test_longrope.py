"""Sampling under LongRoPE: a text that outgrows the original context is read again, and what is
sampled is what the forward pass of training gives at every length.

Against `generate` of transformers, which does so too: test_sampler, case phi3_long.
"""

import dataclasses

import numpy as np
import pytest

from dft_jax.models.hf.locate import read_config
from dft_jax.sampling import rereading
from dft_jax.sampling.sampler import Request
from tests import commands
from tests.conftest import GOLDEN, make_mesh
from tests.models.test_golden import logits_of
from tests.sampling.test_sampler import by_request, sampler

CASE, CONTEXT, NEW = "phi3_long", 32, 12
SPEC = read_config(GOLDEN / CASE)


def asked(temperature=1.0):
    """Prompts that become long ones midway, at the last token, never, and that are so before."""
    tokens = np.load(GOLDEN / CASE / "logits.npz")["token_ids"][0].tolist()
    lengths = [9, 20, 21, 26, 27, 30, 31, 32, 33, 40]
    return [Request(f"p{n}", 0, tuple(tokens[:n]), temperature, NEW) for n in lengths]


@pytest.mark.parametrize(
    "n_prompt, most_new, expected",
    [(9, 12, 12), (20, 12, 12), (21, 12, 12), (22, 12, 11), (32, 12, 1), (33, 12, 12), (40, 5, 5)],
)
def test_the_first_limit(n_prompt, most_new, expected):
    """Of 21 + 12 = 33 tokens the last is drawn behind 32, and never read."""
    one = Request("p", 0, (1,) * n_prompt, 1.0, most_new)
    assert rereading.first_limit(one, SPEC) == expected
    assert rereading.first_limit(one, read_config(GOLDEN / "llama")) == most_new


@pytest.mark.slow
def test_every_token_is_drawn_from_what_the_forward_pass_gives_at_its_length():
    """Entropies, against a pass over each text as far as it was: those up to 32 tokens are short.

    All programs are compiled ahead, for all requests and for parts of them.
    """
    ready = sampler(CASE, slots=4, max_length=64)
    ready.sampler.compile_programs(asked(), watched=True)
    commands.compiled.clear()
    found = by_request(ready.sample(asked()))
    part = by_request(ready.sample(asked()[5:7]))
    list(ready.sampler.sample(ready.params, asked(), False, lambda request, ids: 0))
    assert commands.compiled == []
    for key, completion in part.items():
        assert completion.ids == found[key].ids
    texts = []
    for completion in found.values():
        ids = [*completion.request.prompt_ids, *completion.ids]
        assert len(completion.ids) == NEW
        texts += [ids[: len(ids) - NEW + n] for n in range(NEW)]
    tokens_BL, segments_BL, positions_BL = np.zeros((3, len(texts), 52), np.int32)
    for row, ids in enumerate(texts):
        tokens_BL[row, : len(ids)], segments_BL[row, : len(ids)] = ids, 1
        positions_BL[row, : len(ids)] = np.arange(len(ids))
    logits_BLV = logits_of(CASE, make_mesh(), tokens_BL, segments_BL, positions_BL)
    last_BV = logits_BLV[np.arange(len(texts)), [len(ids) - 1 for ids in texts]].astype(float)
    p_BV = np.exp(last_BV - last_BV.max(axis=1, keepdims=True))
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    entropies = -(p_BV * np.log(p_BV)).sum(axis=1).reshape(-1, NEW).mean(axis=1)
    for completion, expected in zip(found.values(), entropies, strict=True):
        assert completion.entropy == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(slots=1), dict(slots=16, sizes=(8, 1, 1))], ids=str)
def test_neighbours_and_arrangement_change_nothing(settings):
    """Eight and more that are read again at once, one after another, on eight devices."""
    expected = by_request(sampler(CASE, max_length=64).sample(asked()))
    found = by_request(sampler(CASE, max_length=64, **settings).sample(asked()[::-1]))
    assert {key: c.ids for key, c in found.items()} == {key: c.ids for key, c in expected.items()}


@pytest.mark.slow
def test_stops_and_watches_where_a_text_becomes_a_long_one():
    """A token that ends a completion just there is its last; so it is where a watch says so."""
    (one,) = asked()[5:6]  # 30 tokens: the third makes it a long text
    free = sampler(CASE, max_length=64)
    (whole,) = free.sample([one])
    (stopped,) = sampler(CASE, max_length=64, stop_ids=[whole.ids[2]]).sample([one])
    assert stopped.ids == whole.ids[: whole.ids.index(whole.ids[2]) + 1] and not stopped.is_cut
    for n in (2, 3, 4):
        watch = lambda request, ids, n=n: n if len(ids) >= n else 0  # noqa: E731
        (ended,) = free.sampler.sample(free.params, [one], False, watch)
        assert ended.ids == whole.ids[:n]
    (shorter,) = free.sample([dataclasses.replace(one, max_new_tokens=3)])
    assert shorter.ids == whole.ids[:3]
