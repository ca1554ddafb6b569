"""Measures of held-out text against float64 oracles: dense logits, scipy, tokens one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from dft_jax import assets
from dft_jax.data.templates import Example, Part
from dft_jax.data.tokenize import tokenize
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.models.model import head, matmul_precision
from dft_jax.study import measures
from dft_jax.training.state import init_params
from dft_jax.types import Batch
from tests.tiny_trainer import tiny_config, tiny_examples

N, D, V = 96, 16, 50


def fake(scale, seed=0):
    """Hidden states and head, logits as sharp as `scale`; targets are drawn at T = 1.5."""
    random = np.random.default_rng(seed)
    hidden_PD, head_VD = random.normal(size=(N, D)), scale * random.normal(size=(V, D)) / np.sqrt(D)
    p_PV = special.softmax(hidden_PD @ head_VD.T / 1.5, axis=-1)
    targets_P = np.array([random.choice(V, p=p_V) for p_V in p_PV])
    return hidden_PD.astype(np.float32), head_VD.astype(np.float32), targets_P


def oracle(logits_TV, targets_T, beta):
    """Mean nll and mean entropy, float64, of logits multiplied by `beta`."""
    logp_TV = special.log_softmax(beta * np.asarray(logits_TV, np.float64), axis=-1)
    nll_T = -logp_TV[np.arange(len(targets_T)), targets_T]
    return nll_T.mean(), -(np.exp(logp_TV) * logp_TV).sum(axis=-1).mean()


token_values = jax.jit(measures.token_values, static_argnames="chunk_tokens")


def measured(hidden_PD, head_VD, targets_P):
    values = token_values(
        jnp.asarray(hidden_PD), jnp.asarray(head_VD), jnp.asarray(targets_P), chunk_tokens=32
    )
    values = jax.tree.map(lambda x: np.asarray(x, np.float64), values)
    return values, measures.summarise(values, np.arange(N) // 8, np.arange(N) % 8, None)


@pytest.fixture(scope="module", params=[1.0, 4.0])
def case(request):
    hidden_PD, head_VD, targets_P = fake(request.param)
    values, found = measured(hidden_PD, head_VD, targets_P)
    return hidden_PD.astype(np.float64) @ head_VD.T.astype(np.float64), targets_P, values, found


def test_each_token_equals_dense_logits(case):
    logits_TV, targets_T, values, _ = case
    logp_TV = special.log_softmax(logits_TV, axis=-1)
    np.testing.assert_allclose(values.logp_P, logp_TV[np.arange(N), targets_T], atol=2e-6)
    np.testing.assert_allclose(
        values.entropy_P, -(np.exp(logp_TV) * logp_TV).sum(axis=-1), atol=5e-6
    )
    np.testing.assert_array_equal(values.is_top_P, logits_TV.argmax(axis=-1) == targets_T)


def test_grid_and_its_derivatives(case):
    logits_TV, targets_T, _, found = case
    h = 1e-5
    for k, beta in enumerate(measures.BETAS_K):
        nll, entropy = oracle(logits_TV, targets_T, beta)
        after, before = (
            oracle(logits_TV, targets_T, beta + h),
            oracle(logits_TV, targets_T, beta - h),
        )
        assert found.nll_K[k] == pytest.approx(nll, abs=3e-6)
        assert found.entropy_K[k] == pytest.approx(entropy, abs=1e-5)
        assert found.nll_slope_K[k] == pytest.approx((after[0] - before[0]) / (2 * h), abs=2e-5)
        assert found.entropy_slope_K[k] == pytest.approx((after[1] - before[1]) / (2 * h), abs=2e-5)


def test_best_temperature_is_that_of_a_minimiser(case):
    logits_TV, targets_T, _, found = case
    bounds = (measures.BETAS_K[0], measures.BETAS_K[-1])
    minimum = optimize.minimize_scalar(
        lambda beta: oracle(logits_TV, targets_T, beta)[0], bounds=bounds
    )
    best = measures.best(found)
    assert best.nll == pytest.approx(minimum.fun, abs=1e-4)
    assert best.temperature == pytest.approx(1 / minimum.x, rel=5e-3)
    assert best.nll < found.nll


@pytest.mark.parametrize("share", [0.5, 0.9, 1.2])
def test_equal_entropy_is_that_of_a_root_finder(case, share):
    logits_TV, targets_T, _, found = case
    wanted = share * found.entropy
    bounds = (measures.BETAS_K[0], measures.BETAS_K[-1])
    if (
        not oracle(logits_TV, targets_T, bounds[1])[1]
        < wanted
        < oracle(logits_TV, targets_T, bounds[0])[1]
    ):
        assert measures.at_entropy(found, wanted) is None
        return
    beta = optimize.brentq(lambda beta: oracle(logits_TV, targets_T, beta)[1] - wanted, *bounds)
    equal = measures.at_entropy(found, wanted)
    assert equal.temperature == pytest.approx(1 / beta, rel=1e-3)
    assert equal.nll == pytest.approx(oracle(logits_TV, targets_T, beta)[0], abs=5e-4)


def test_sharpening_alone_changes_nothing_but_the_temperature():
    """Twice the logits: another nll and entropy, the same at the best T and at equal entropy."""
    hidden_PD, head_VD, targets_P = fake(1.5, seed=3)
    _, before = measured(hidden_PD, head_VD, targets_P)
    _, after = measured(hidden_PD, 2 * head_VD, targets_P)
    assert abs(after.nll - before.nll) > 0.05 and after.entropy < 0.7 * before.entropy
    assert measures.best(after).nll == pytest.approx(measures.best(before).nll, abs=2e-5)
    assert measures.best(after).temperature == pytest.approx(
        2 * measures.best(before).temperature, rel=5e-3
    )
    equal = measures.at_entropy(after, before.entropy)
    assert equal.nll == pytest.approx(before.nll, abs=2e-4) and equal.temperature == pytest.approx(
        2, rel=1e-3
    )


def test_outside_the_grid_there_is_no_temperature():
    hidden_PD, head_VD, targets_P = fake(1.0)
    _, found = measured(hidden_PD, 20 * head_VD, targets_P)  # its best temperature is 30
    assert measures.best(found) is None
    assert measures.at_entropy(found, 100.0) is None


# ---- packing, and what the whole model gives
# ------------------------------------------------------------------------


def test_packed_places_are_the_trained_tokens_once_each():
    examples = tiny_examples().examples[:10]
    text = measures.pack(examples, row_length=160, rows=3, chunk_tokens=16)
    seen = []
    for batch, index_P, example_P, place_P, n in zip(
        text.batches, text.index_P, text.example_P, text.place_P, text.n_tokens, strict=True
    ):
        assert len(index_P) % 16 == 0 and len(index_P) == len(text.index_P[0])
        assert len(example_P) == len(place_P) == n
        targets = batch.targets_BL.reshape(-1)[index_P[:n]]
        for target, example, place in zip(targets, example_P, place_P, strict=True):
            assert examples[example].ids[place] == target and examples[example].trained[place]
            seen.append((int(example), int(place)))
    expected = [
        (e, int(j))
        for e, example in enumerate(examples)
        for j in np.flatnonzero(example.trained)
        if j
    ]
    assert sorted(seen) == expected


@pytest.fixture(scope="module")
def tiny():
    config = tiny_config()
    source, model, tokenizer = open_config(config)
    return model, init_params(config.model.init, config.train.seed, source, model), tokenizer


@pytest.mark.slow
def test_a_model_on_a_text_equals_its_examples_alone(tiny):
    model, params, _ = tiny
    examples = tiny_examples().examples[:5]
    text = measures.pack(examples, row_length=160, rows=8)
    with matmul_precision("float32"):
        found = measures.measure_text(measures.make_measure(model), params, text, None, model.mesh)
        apply = jax.jit(model.apply)
        logp = []
        for example in examples:
            tokens_BL = np.zeros((8, 160), np.int32)
            tokens_BL[0, : len(example.ids)] = example.ids
            ones = np.ones_like(tokens_BL)
            positions = np.broadcast_to(np.arange(160, dtype=np.int32), tokens_BL.shape)
            hidden_LD = np.asarray(
                apply(params, Batch(tokens_BL, tokens_BL, ones > 0, ones, positions))[0], np.float64
            )
            logits_LV = hidden_LD @ np.asarray(head(params), np.float64).T
            places = np.flatnonzero(example.trained)
            logp_LV = special.log_softmax(logits_LV[places - 1], axis=-1)
            logp.append(logp_LV[np.arange(len(places)), example.ids[places]])
    assert found.tokens == sum(map(len, logp)) and found.tokens_E == [len(own) for own in logp]
    assert found.nll == pytest.approx(-np.concatenate(logp).mean(), abs=1e-5)
    np.testing.assert_allclose(found.nll_E, [-own.mean() for own in logp], atol=2e-5)
    assert found.mean_p == pytest.approx(np.exp(np.concatenate(logp)).mean(), abs=1e-6)
    assert sum(found.p_histogram) == pytest.approx(1, abs=1e-4)
    assert found.answer_accuracy is None and found.answers_right_E == []
    assert measures.from_json(measures.to_json(found)) == found


def test_shares_are_strict_and_of_tokens():
    zeros_KP = np.zeros((len(measures.BETAS_K), 4))
    logp_P = np.log([0.009, 0.011, 0.89, 0.95])
    values = measures.TokenValues(logp_P, np.ones(4), np.zeros(4), *[zeros_KP] * 4)
    found = measures.summarise(values, np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2]), None)
    assert (found.share_below, found.share_above) == (0.25, 0.25)
    assert (
        found.p_histogram[2] == 0.25
        and found.p_histogram[3] == 0.25
        and found.p_histogram[-1] == 0.25
    )


# ---- answers -------------------------------------------------------------------------------------


def demonstration(tokenizer, answer, prompt="question \\boxed{7}"):
    parts = [Part(prompt, False), Part(answer + tokenizer.eos_token, True)]
    (example,) = tokenize([parts], tokenizer, [], 1000)
    return example


@pytest.mark.parametrize(
    ("answer", "mark", "expected"),
    [
        ("So it is \\boxed{18}.", "\\boxed{", "18"),
        ("first \\boxed{3}, then \\boxed{1,250}", "\\boxed{", "1,250"),
        ("\\boxed{\\frac{1}{2}} holds", "\\boxed{", "\\frac{1}{2}"),
        ("\\boxed{5", "\\boxed{", None),  # never closed
        ("\\boxed{}", "\\boxed{", None),
        ("no mark", "\\boxed{", None),
        ("a\n#### 42", "####", "42"),
        ("#### -3.5 \nmore", "####", "-3.5"),
    ],
)
def test_answer_places_spell_the_answer(answer, mark, expected):
    tokenizer = load_tokenizer(assets.TINY)
    example = demonstration(tokenizer, answer)
    places = measures.answer_places(example, tokenizer, mark)
    if expected is None:
        assert not len(places)
    else:
        assert tokenizer.decode(example.ids[list(places)]).strip() == expected
        assert example.trained[list(places)].all()


def test_a_token_that_is_in_part_of_the_answer_is_of_the_answer():
    """A tokenizer that merges each brace with the digit beside it."""

    class Merging:
        pieces = {1: "x \\boxed", 2: "{1", 3: "2", 4: "3}.", 5: ""}

        def decode(self, ids, **_):
            return "".join(self.pieces[id_] for id_ in ids)

    ids = np.array([9, 1, 2, 3, 4, 5])
    example = Example(ids, ids != 9, 0)
    assert measures.answer_places(example, Merging(), "\\boxed{") == range(2, 5)


def test_an_answer_is_right_when_each_of_its_tokens_is():
    ones_KP = np.ones((len(measures.BETAS_K), 6))
    is_top_P = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    values = measures.TokenValues(np.full(6, -1.0), np.ones(6), is_top_P, *[ones_KP] * 4)
    example_T, place_T = np.array([0, 0, 0, 1, 1, 2]), np.array([4, 5, 6, 4, 5, 4])
    found = measures.summarise(values, example_T, place_T, [range(5, 7), range(4, 6), range(0)])
    assert found.answers_right_E == [1, 0, -1]
    assert found.answer_accuracy == 0.5


def test_measures_are_plain_values():
    """JSON has no NumPy numbers."""
    hidden_PD, head_VD, targets_P = fake(1.0)
    _, found = measured(hidden_PD, head_VD, targets_P)
    for value in dataclasses.asdict(found).values():
        for one in value if isinstance(value, list) else [value]:
            assert type(one) in (int, float)
