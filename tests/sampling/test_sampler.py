"""The sampler against `transformers.generate`, softmax, the training forward pass, and itself."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dft_jax.models import cached
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build
from dft_jax.sampling import filters as token_filters, sampler as sampling
from dft_jax.sampling.categorical import draw
from dft_jax.sampling.sampler import Request, Sampler
from tests import commands
from tests.conftest import GOLDEN, make_mesh
from tests.marks import slow_but
from tests.models.test_golden import CASES, FAMILY_CASES, logits_of

NEW = 40


@functools.cache
def load(case, sizes=(1, 1, 1)):
    model = build(read_config(GOLDEN / case), make_mesh(*sizes))
    return model, load_params(Checkpoint(GOLDEN / case), model)


class Loaded:
    """A sampler with the parameters of a golden checkpoint."""

    def __init__(self, case="qwen2_tied", sizes=(1, 1, 1), **settings):
        model, self.params = load(case, sizes)
        self.sampler = Sampler(model, **{"stop_ids": [], "max_length": 150, "slots": 4} | settings)
        self.usage = self.sampler.usage

    def sample(self, requests, progress=False):
        return self.sampler.sample(self.params, requests, progress)


sampler = Loaded


def requests(n_problems=5, n_samples=3, temperature=1.0):
    """Prompts of 3, 10, 17 … tokens: several buckets once the lengths are above 64."""
    random = np.random.default_rng(0)
    made = []
    for problem in range(n_problems):
        prompt = tuple(random.integers(0, 96, 3 + 17 * problem).tolist())
        limits = random.integers(5, 30, n_samples).tolist()
        made += [
            Request(f"p{problem}", i, prompt, temperature, limits[i]) for i in range(n_samples)
        ]
    return made


def by_request(completions):
    return {(c.request.problem, c.request.sample): c for c in completions}


@pytest.mark.parametrize(
    "case",
    slow_but(
        ["qwen2_tied", "llama3"],
        CASES,
        slow=["smollm3_window", "llama_yarn", "gemma3", "phi3_long", "qwen3_moe", "mixtral"],
    ),
)
def test_greedy_equals_transformers(case):
    prompt = np.load(GOLDEN / case / "logits.npz")["token_ids"][0]
    expected = np.load(GOLDEN / case / "greedy.npz")
    asked = [Request("p", n, tuple(prompt[:n].tolist()), 0.0, NEW) for n in (5, 16)]
    for completion in sampler(case).sample(asked, progress=False):
        n = completion.request.sample
        assert list(completion.ids) == expected[f"after_{n}"].tolist()
        assert completion.is_cut


def test_the_greedy_golden_files_are_not_one_token_over_and_over():
    distinct = [
        len(set(np.load(GOLDEN / case / "greedy.npz")["after_16"].tolist())) for case in CASES
    ]
    assert min(distinct) >= 2 and np.median(distinct) >= 5


@pytest.mark.parametrize("case", slow_but(["mistral"], FAMILY_CASES, slow=["qwen3", "qwen3_moe"]))
def test_cache_gives_what_the_forward_pass_gives(case):
    """The hidden states behind each token, and so the entropies, are those of one pass over all."""
    prompt = tuple(np.load(GOLDEN / case / "logits.npz")["token_ids"][0, :7].tolist())
    (completion,) = sampler(case).sample([Request("p", 0, prompt, 1.0, 50)], progress=False)
    tokens_BL = np.array([[*prompt, *completion.ids]], np.int32)
    logits_LV = logits_of(case, make_mesh(), tokens_BL)[0, len(prompt) - 1 : -1]
    p_LV = np.exp(logits_LV - stats_logsumexp(logits_LV)[:, None])
    assert completion.entropy == pytest.approx(
        float(-(p_LV * np.log(p_LV)).sum(axis=1).mean()), abs=1e-4
    )


def stats_logsumexp(x_LV):
    largest_L = x_LV.max(axis=1)
    return largest_L + np.log(np.exp(x_LV - largest_L[:, None]).sum(axis=1))


VOCAB, WIDTH, ROWS = 1100, 8, 20_000
# six blocks in three chunks; the vocabulary ends in the fifth
HEAD_SHAPE = (3, 2, cached.VOCAB_BLOCK, WIDTH)


def drawn(logits_V, temperature, parts=10, **filters):
    """ROWS draws from these logits, and the entropies; in chunks, so that memory stays small."""
    head_VD = np.zeros((np.prod(HEAD_SHAPE[:3]), WIDTH), np.float32)
    head_VD[:VOCAB, 0] = logits_V
    head_VD[VOCAB:, 0] = 50.0  # padding that would win, were it drawn from
    hidden_BD = np.zeros((ROWS // 10, WIDTH), np.float32)
    hidden_BD[:, 0] = 1.0
    run = jax.jit(
        functools.partial(
            draw, vocab_size=VOCAB, mesh=make_mesh(), filters=token_filters.make(**filters)
        )
    )
    temperature_B = jnp.full(ROWS // 10, temperature, jnp.float32)
    head_UDMW = jnp.asarray(head_VD.reshape(HEAD_SHAPE).transpose(0, 3, 1, 2))
    made = [
        jax.device_get(
            run(
                hidden_BD,
                head_UDMW,
                jax.random.split(jax.random.key(part), ROWS // 10),
                temperature_B,
            )
        )
        for part in range(parts)
    ]
    return np.concatenate([tokens for tokens, _ in made]), made[0][1][0]


def expected_p(logits_V, temperature, top_k=0, top_p=1.0):
    """In float64, by sorting."""
    scaled = logits_V.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:
        kept = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
        p[order[kept:]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "filters"),
    slow_but(
        [(1.0, {}), (0.7, {"top_k": 40, "top_p": 0.9})],
        [
            (1.0, {}),
            (0.6, {}),
            (1.7, {}),
            (1.0, {"top_k": 7}),
            (1.0, {"top_p": 0.8}),
            (0.7, {"top_k": 40, "top_p": 0.9}),
        ],
        slow=[(0.6, {}), (1.0, {"top_p": 0.8})],
    ),
)
def test_frequencies_are_those_of_softmax(temperature, filters):
    logits_V = (np.random.default_rng(0).normal(size=VOCAB) * 2).astype(np.float32)
    tokens, entropy = drawn(logits_V, temperature, **filters)
    p_V = expected_p(logits_V, temperature, **filters)
    count_V = np.bincount(tokens, minlength=VOCAB)
    assert count_V[p_V == 0].sum() == 0
    # the chi-square approximation wants a few of each: the rare ones are one cell
    rare = p_V * ROWS < 10
    observed, expected = count_V[~rare], p_V[~rare] * ROWS
    if p_V[rare].sum() > 0:
        observed, expected = (
            np.append(observed, count_V[rare].sum()),
            np.append(expected, p_V[rare].sum() * ROWS),
        )
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    own_V = expected_p(logits_V, temperature)
    assert entropy == pytest.approx(-(own_V * np.log(own_V)).sum(), abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e6])
@pytest.mark.parametrize("filters", [{}, {"top_k": 7}])
def test_entropy_does_not_depend_on_an_offset_of_all_logits(offset, filters):
    """Against float64, of the logits in float32: in steps of 0.001 at 1e4, 0.06 at 1e6."""
    logits_V = (np.random.default_rng(0).normal(size=VOCAB) * 2 + offset).astype(np.float32)
    for temperature in (0.05, 1.0, 3.0):
        _, entropy = drawn(logits_V, temperature, parts=1, **filters)
        p_V = expected_p(logits_V, temperature)
        p_V = p_V[p_V > 0]
        assert entropy == pytest.approx(-(p_V * np.log(p_V)).sum(), abs=1e-4)


def test_entropy_of_a_certain_token_is_zero():
    logits_V = np.full(VOCAB, -1e30, np.float32)
    logits_V[777] = 1e4
    assert drawn(logits_V, 1.0, parts=1)[1] == 0


def test_the_bar_moves_with_tokens_and_knows_the_rest():
    """Four completions of at most 100 tokens; two turn out to have 20: 40 more are expected."""
    asked = [Request("p", sample, (1,), 1.0, 100) for sample in range(4)]
    with sampling.Progress(asked, quiet=True) as bar:
        assert bar.expected_tokens() == 400
        bar.update(40, 0)
        assert (bar.tokens, bar.expected_tokens()) == (40, 400)
        bar.update(40, 2)
        assert bar.expected_tokens() == 160
        bar.update(100, 0)
        assert bar.expected_tokens() == 360
        bar.update(10, 2)
        assert bar.expected_tokens() == 190 == bar.tokens


@pytest.mark.slow
def test_the_bar_is_shown_while_a_long_completion_is_made(capsys):
    """Tokens, completions and the time left are there long before the first completion is."""
    shown = []

    class Recorded(sampling.Progress):
        def update(self, tokens, finished):
            super().update(tokens, finished)
            self.bar.refresh()
            shown.append((self.bar.n, self.finished))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "Progress", Recorded)
        asked = [Request("p", 0, (1, 2, 3), 1.0, 200)]
        [completion] = sampler(max_length=256).sample(asked, progress=True)
    assert shown[0] == (64, 0) and shown[-1] == (len(completion.ids), 1) and len(shown) >= 4
    text = capsys.readouterr().err
    assert "64/200" in text and "0 of 1 completions" in text and "token/s" in text and "<" in text


def test_the_chi_square_would_notice_a_wrong_temperature():
    logits_V = (np.random.default_rng(0).normal(size=VOCAB) * 2).astype(np.float32)
    tokens, _ = drawn(logits_V, 1.05)
    p_V = expected_p(logits_V, 1.0)
    common = p_V * ROWS >= 10
    observed = np.append(np.bincount(tokens, minlength=VOCAB)[common], np.sum(~common[tokens]))
    expected = np.append(p_V[common], p_V[~common].sum()) * ROWS
    assert stats.chisquare(observed, expected).pvalue < 1e-3


def test_temperature_zero_takes_the_most_probable():
    logits_V = np.zeros(VOCAB, np.float32)
    logits_V[777] = 1e-3
    assert set(drawn(logits_V, 0.0)[0].tolist()) == {777}


@pytest.mark.parametrize(
    "arrangement",
    slow_but(
        [],
        [
            dict(slots=1),
            dict(slots=3),
            dict(slots=64),
            dict(sizes=(2, 2, 2), slots=5),
            dict(sizes=(8, 1, 1), slots=8),
            dict(sizes=(1, 2, 2, 2), slots=5),
        ],
        slow=[dict(slots=3), dict(sizes=(2, 2, 2), slots=5), dict(sizes=(1, 2, 2, 2), slots=5)],
    ),
    ids=str,
)
def test_a_sample_does_not_depend_on_the_arrangement(arrangement):
    """Other batch sizes, another order, other problems beside it, eight devices."""
    expected = by_request(sampler().sample(requests(), progress=False))
    order = requests()[::-1]
    found = by_request(sampler(**arrangement).sample(order, progress=False))
    assert {key: c.ids for key, c in found.items()} == {key: c.ids for key, c in expected.items()}
    for key, completion in found.items():
        assert completion.entropy == pytest.approx(expected[key].entropy, abs=1e-4)


def test_a_sample_depends_on_seed_problem_and_number():
    asked = Request("p", 0, (1, 2, 3), 1.0, 30)
    others = [asked, dataclasses.replace(asked, problem="q"), dataclasses.replace(asked, sample=1)]
    of_request = {c.request: c.ids for c in sampler().sample(others)}
    (reseeded,) = sampler(seed=1).sample([asked])
    assert len({*of_request.values(), reseeded.ids}) == 4
    (again,) = sampler().sample([asked])
    assert again.ids == of_request[asked]


def test_consecutive_tokens_are_drawn_independently():
    """At a temperature of 1000 all of the 96 tokens are alike: a pair is equal once in 96 times.

    1,920 tokens: 20 equal pairs expected, with a standard deviation of 4.4. With the same noise for
    every token of a completion, all pairs would be.
    """
    asked = [Request(f"p{i}", 0, (1, 2, 3), 1000.0, 30) for i in range(64)]
    made = [c.ids for c in sampler().sample(asked)]
    equal = sum(one == other for ids in made for one, other in itertools.pairwise(ids))
    assert sum(map(len, made)) == 64 * 30 and 3 <= equal <= 40
    counts = np.bincount(np.concatenate(made), minlength=96)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len({ids[:5] for ids in made}) == 64, "each problem has noise of its own"


@pytest.mark.slow
def test_rows_beyond_the_tokenizer_are_never_drawn():
    """Hot, where 56 of the 96 rows would be; and the entropy is that of the 40 tokens there are."""
    asked = [Request("p", sample, (1, 2, 3), 50.0, 30) for sample in range(8)]
    made = list(sampler(vocab_size=40).sample(asked))
    assert 30 < max(id_ for c in made for id_ in c.ids) < 40
    assert all(np.log(40) - 0.1 < c.entropy < np.log(40) + 1e-4 for c in made)


def test_completions_end_at_a_stop_token_or_are_cut():
    free = by_request(sampler().sample(requests(), progress=False))
    stop = 17
    assert any(stop in c.ids for c in free.values()) and any(
        stop not in c.ids for c in free.values()
    )
    for key, completion in by_request(
        sampler(stop_ids=[stop, 95_000]).sample(requests(), progress=False)
    ).items():
        until = list(itertools.takewhile(lambda id: id != stop, free[key].ids))
        assert list(completion.ids) == (until + [stop])[: len(free[key].ids)]
        assert completion.is_cut == (stop not in completion.ids)


@pytest.mark.slow
@pytest.mark.parametrize("slots,steps_at_once", [(1, 64), (4, 1), (64, 16)])
def test_what_a_watch_ends_is_as_with_that_limit(slots, steps_at_once):
    """Tokens and entropy, however many tokens came before the host looked."""
    length_of = {one: min(3 + 2 * one.sample, one.max_new_tokens) for one in requests()}
    limited = [dataclasses.replace(one, max_new_tokens=n) for one, n in length_of.items()]
    expected = by_request(sampler().sample(limited))

    def watch(request, ids):
        return length_of[request] if len(ids) >= length_of[request] else 0

    busy = sampler(slots=slots, steps_at_once=steps_at_once)
    found = by_request(busy.sampler.sample(busy.params, requests(), False, watch))
    assert {key: c.ids for key, c in found.items()} == {key: c.ids for key, c in expected.items()}
    for key, completion in found.items():
        assert completion.entropy == pytest.approx(expected[key].entropy, abs=1e-4)
    if steps_at_once == 1:
        assert busy.usage.tokens == sum(length_of.values())


@pytest.mark.slow
def test_lengths_up_to_the_limit_of_the_cache():
    """The longest prompt and completion that fit, through every growth of the cache."""
    prompt = tuple(range(1, 60))
    settings = dict(max_length=600, slots=2)
    asked = [Request("p", 0, prompt, 0.0, 541), Request("q", 0, prompt[:50], 1.0, 20)]
    found = by_request(sampler("llama3", **settings).sample(asked, progress=False))
    assert [len(c.ids) for c in found.values()] in ([541, 20], [20, 541])
    (alone,) = sampler("llama3", **settings).sample(asked[:1], progress=False)
    assert found["p", 0].ids == alone.ids


@pytest.mark.slow
def test_slots_are_refilled():
    """Of lengths as GSM8K's solutions have (log-normal), 85 % of decode places do useful work."""
    random = np.random.default_rng(0)
    # a quarter of it, to be quick
    lengths = np.clip(random.lognormal(4.75, 0.45, 400) / 4, 2, 100).astype(int)
    asked = [Request(f"p{i}", 0, (1, 2, 3 + i % 50), 1.0, int(n)) for i, n in enumerate(lengths)]
    busy = sampler(slots=32)
    made = list(busy.sample(asked, progress=False))
    assert sorted(len(c.ids) for c in made) == sorted(lengths)
    assert busy.usage.tokens == lengths.sum()
    assert busy.usage.tokens >= 0.85 * busy.usage.places > 0


def test_nothing_asked_nothing_made():
    assert list(sampler().sample([], progress=False)) == []


def test_prompts_are_prefilled_once(monkeypatch):
    """Sixteen samples of three prompts in four slots: one prefill."""
    busy, calls = sampler(), []
    prefill = busy.sampler._prefill
    busy.sampler._prefill = lambda *arguments: calls.append(1) or prefill(*arguments)
    asked = [Request(f"p{i}", k, (1, 2, 3, i), 1.0, 5) for i in range(3) for k in range(16)]
    assert len(list(busy.sample(asked, progress=False))) == 48
    assert len(calls) == 1


def growing_requests():
    """Prompts in three buckets of lengths, 64, 128 and 512; caches of 128, 256, 512 and 600."""
    made = []
    for length, new in [(3, 8), (70, 20), (70, 230), (300, 250)]:
        for sample in range(2):
            made.append(Request(f"p{length}", sample, (7,) * length, 1.0, new))
    return made


@pytest.mark.parametrize("data,fsdp,tensor", slow_but([], [(1, 1, 1), (2, 2, 2)], slow=[(1, 1, 1)]))
def test_all_that_sampling_needs_is_compiled_ahead(data, fsdp, tensor):
    """Also for a part of the requests; nothing is allocated for it, and tokens are as without."""
    settings = dict(max_length=600, slots=4, sizes=(data, fsdp, tensor))
    asked = growing_requests()
    expected = by_request(sampler(**settings).sample(asked))
    ready = sampler(**settings)
    before = sum(array.nbytes for array in jax.live_arrays())
    ready.sampler.compile_programs(asked, watched=True)
    # A few constants of the programs; the smallest cache has 0.1 MB.
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1000
    commands.compiled.clear()
    parts = [asked[:1], asked[5:], asked[-1:]]
    found = by_request(ready.sample(asked))
    of_parts = [by_request(ready.sample(part)) for part in parts]
    ended = list(ready.sampler.sample(ready.params, asked, False, lambda request, ids: 1))
    assert {len(completion.ids) for completion in ended} == {1}
    assert commands.compiled == []
    assert found == expected
    for part in of_parts:
        for key, completion in part.items():
            assert completion.ids == expected[key].ids


def test_no_program_is_compiled_ahead_for_nothing():
    ready = sampler()
    ready.sampler.compile_programs([])
    assert list(ready.sample([])) == []
