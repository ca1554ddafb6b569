"""The study of rates: its tests and intervals against direct computations, what it runs next, how
a rate is chosen, equal entropy, and the placebo.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as reference

from dft_jax.evals import significance
from dft_jax.losses import objectives
from dft_jax.types import TokenStats
from experiments.lab import trials
from experiments.rates import entropy, inference, measure, placebo, plan, run


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_sign_flips_are_those_of_scipy(shift):
    difference_S = np.random.default_rng(0).normal(shift, size=8)
    expected = reference.permutation_test(
        (difference_S,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert inference.sign_flip_p(difference_S) == pytest.approx(expected.pvalue)


def test_ten_seeds_can_pass_holm_of_seventeen_and_eight_cannot():
    for n_seeds, can in ((8, False), (10, True)):
        p = inference.sign_flip_p(np.ones(n_seeds))
        assert p == 2 / 2**n_seeds
        assert significance.holm([p] * 17) == [can] * 17


def test_holm_by_hand():
    # 0.01 is at most 0.05 / 4; 0.03 is more than 0.05 / 3.
    assert significance.holm([0.01, 0.04, 0.03, 0.5]) == [True, False, False, False]


def test_intervals_have_the_width_of_seeds_and_problems():
    rng = np.random.default_rng(0)
    seeds_S1, problems_1P = rng.normal(size=(10, 1)), rng.normal(scale=3, size=(1, 100))
    mean, low, high = inference.interval(seeds_S1 + problems_1P)
    error = np.sqrt(seeds_S1.var() / 10 + problems_1P.var() / 100)
    assert mean == pytest.approx(seeds_S1.mean() + problems_1P.mean())
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.05)
    narrower = inference.interval(seeds_S1 + problems_1P, level=0.9)
    assert low < narrower[1] < narrower[2] < high


def rows_of(trial, accuracy):
    """As stage 1 records them: temperature 0.4 is the best."""
    about = dataclasses.asdict(trial)
    return [
        about
        | {
            "trial": trial.name,
            "temperature": t,
            "avg": accuracy - abs(t - 0.4) / 10,
            "correct": "1 0",
        }
        for t in (0.0, 0.4, 1.0)
    ]


def test_stage_1_tries_what_was_registered():
    """Accuracy falls by 4 points a step from a best rate that is inside of the grid, at its end,
    or beyond it.
    """
    best_of = {"sft": 3e-4, "dft": 1e-2, "mixed": 1e-6}
    failing = plan.trial("strong", "talr", 1e-2, 0)
    rows, failed, rounds = [], [], 0
    while wanted := plan.next_trials(rows, failed, "strong"):
        rounds += 1
        for trial in wanted:
            assert trial.seed in plan.TUNING_SEEDS
            if trial == failing:
                failed.append(trial.name)
                continue
            best = best_of.get(trial.objective, 1e-3)
            steps = abs(np.log(trial.learning_rate / best)) / np.log(10**0.5)
            rows += rows_of(trial, 0.9 - 0.04 * steps)
    assert rounds > 2
    tried: dict[str, dict[float, set[int]]] = {}
    for row in rows:
        rates = tried.setdefault(row["objective"], {})
        rates.setdefault(row["learning_rate"], set()).add(row["seed"])
    assert set(tried["sft"]) == set(plan.RATES)
    assert set(tried["dft"]) == {*plan.RATES, 3e-2}
    assert set(tried["mixed"]) == {*plan.LOWER, *plan.RATES}
    assert set(tried["talr"]) == set(plan.RATES) - {1e-2}
    # Seed 1 where seed 0 is within ten points: two steps of four.
    with_both = [rate for rate, seeds in tried["sft"].items() if seeds == {0, 1}]
    assert sorted(with_both) == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    found = plan.scores(rows, "strong")
    ours = [score for score in found if score.objective == "sft"]
    assert {score.temperature for score in ours} == {0.4}
    # A best accuracy of 90 % of four answers: one error is 15 points, so the smallest rate is it.
    assert plan.choose(ours).rate == 3e-5


def score(rate, accuracy, objective="gift(beta=5)", seeds=plan.TUNING_SEEDS):
    return plan.Score(objective, rate, 1.0, accuracy, 0.02, seeds)


def test_the_smallest_of_equally_good_rates_is_chosen():
    found = [score(1e-4, 0.77), score(3e-4, 0.79), score(1e-3, 0.80), score(3e-3, 0.70)]
    assert plan.choose(found).rate == 3e-4
    # One that has only one seed was clearly out with it.
    assert plan.choose([*found, score(1e-2, 0.9, seeds=(0,))]).rate == 3e-4
    better = score(3e-4, 0.795, objective="gift(beta=20)")
    assert plan.choose([*found, better]) == better


def test_temperatures_of_equal_entropy():
    logits_TV = np.random.default_rng(0).normal(scale=4, size=(200, 30))
    for temperature in (0.1, 0.7, 2.5):
        wanted = entropy.entropy(logits_TV, temperature)
        found = entropy.temperature_of(logits_TV, wanted)
        assert abs(entropy.entropy(logits_TV, found) - wanted) < entropy.TOLERANCE
        assert found == pytest.approx(temperature, abs=0.02)
    assert entropy.entropy(logits_TV, 1e6) == pytest.approx(np.log(30), abs=1e-6)
    assert entropy.temperature_of(logits_TV, np.log(30)) is None
    assert entropy.divergence(logits_TV, logits_TV) == 0


def test_the_placebo_has_the_same_weights_at_other_tokens(monkeypatch):
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    placebo.register()
    placebo.register()
    rng = np.random.default_rng(0)
    examples_BL = jnp.asarray(rng.integers(0, 3, size=(4, 16)))
    is_trained_BL = np.asarray(examples_BL) > 0

    def gradient(name, seed):
        logp_BL = jnp.where(examples_BL > 0, -np.random.default_rng(seed).random((4, 16)), 0.0)

        def loss(logp_BL):
            token = TokenStats(logp_BL, logp_BL, logp_BL, examples_BL)
            return jnp.where(examples_BL > 0, objectives.make_objective(name)(token), 0).sum()

        return -np.asarray(jax.jit(jax.grad(loss))(logp_BL)), np.asarray(jnp.exp(logp_BL))

    places = []
    for seed in (1, 2):
        weights_BL, p_BL = gradient("permuted_dft", seed)
        assert np.all(weights_BL[~is_trained_BL] == 0)
        weights, p = weights_BL[is_trained_BL], p_BL[is_trained_BL]
        assert sorted(weights) == sorted(p) and np.mean(weights == p) < 0.2
        places.append([int(np.flatnonzero(p == weight)[0]) for weight in weights])
    assert places[0] != places[1]


def test_what_is_recorded_is_read_again(tmp_path):
    rows = rows_of(plan.trial("weak", "gift(beta=5)", 3e-6, 1), 0.8)
    run.Sheet(tmp_path / "choosing.csv").add([row | {"equal": ""} for row in rows])
    again = run.Sheet(tmp_path / "choosing.csv")
    assert again.trials == {rows[0]["trial"]} and len(again.rows) == 3
    assert all(isinstance(row["avg"], float) and row["equal"] == "" for row in again.rows)
    assert plan.scores(again.rows, "weak") == plan.scores(rows, "weak")


def test_all_seeds_are_sampled_where_the_tests_look_and_three_everywhere():
    about = plan.REGIMES["weak"]
    assert measure.probes(about, 102, 0.6)[0] == about.measuring
    for own, expected in ((0.6, (0.6, 1.0)), (1.0, (1.0,)), (0.0, (1.0,))):
        (probe,) = measure.probes(about, 103, own)
        settings = trials.settings_of(probe)
        assert settings.temperature == expected and settings.greedy
        whole = trials.settings_of(about.measuring)
        assert dataclasses.replace(whole, temperature=expected) == settings
    assert not trials.settings_of(f"{about.measuring}@0.4321").greedy


def test_stage_2_measures_sft_first_then_all_then_adapters(tmp_path):
    """Each of a seed beside SFT of the same seed, at SFT's own rate."""
    study = run.Study(tmp_path, tmp_path / "root")
    for regime in plan.REGIMES:
        while wanted := plan.next_trials(study.choosing.rows, [], regime):
            for trial in wanted:
                steps = abs(np.log10(trial.learning_rate / 1e-3))
                study.choosing.rows += rows_of(trial, 0.9 - 0.2 * steps)
    rounds = []
    while tasks := study.next_tasks():
        rounds.append([task.trial for task in tasks])
        for task in tasks:
            if task.function is measure.measuring:
                reference = task.arguments[3]
                assert reference.trial.objective == "sft" and reference.trial.rank == 0
                assert reference.trial.seed == task.trial.seed
                study.heldout.rows.append({"trial": task.trial.name})
            else:
                study.choosing.rows += rows_of(task.trial, 0.5)
    assert [len(trials) for trials in rounds] == [10, 197, 10, 197, 48, 30]
    assert {trial.objective for trial in rounds[0]} == {"sft"}
    assert [trial.objective for trial in rounds[1]].count("none") == 1
    assert sum(trial.clip_norm == run.NO_CLIP for trial in rounds[1]) == 6
    assert {trial.rank for trial in rounds[5]} == set(plan.RANKS)
