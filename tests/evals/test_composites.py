"""We-Math's cases and scores against a naive count, and scores by cluster."""

import random

import numpy as np
import pytest

from dft_jax.evals import composites, scores
from dft_jax.evals.tasks.task import Problem


def made(n_two, n_three):
    """Problems of so many composites of two and of three steps."""
    problems = []
    for kind, n, label in (("2steps", n_two, "two-step"), ("3steps", n_three, "three-step")):
        for number in range(n):
            name = f"{kind}_{number}"
            for step in range(1, int(kind[0]) + 1):
                groups = (("steps", "one-step"),)
                problems.append(Problem(f"{name}/{step}", "?", "A", groups=groups, cluster=name))
            groups = (("steps", label),)
            problems.append(Problem(f"{name}/multi", "?", "A", groups=groups, cluster=name))
    return problems


def counted(problems, right):
    """The published definition, one composite after the other: counts, and 525 - … over 525."""
    names = sorted({problem.id.split("/")[0] for problem in problems})
    counts = dict.fromkeys(["IK", "IG", "CM strict", "RM strict", "CM loose", "RM loose"], 0)
    for name in names:
        steps = [right[f"{name}/{step}"] for step in range(1, int(name[0]) + 1)]
        n_right = steps.count(True)
        if right[f"{name}/multi"]:
            counts["CM strict" if n_right == len(steps) else "RM strict"] += 1
            counts["RM loose" if n_right == 0 else "CM loose"] += 1
        else:
            counts["IG" if n_right == len(steps) else "IK"] += 1
    n = len(names)
    score = {
        rules: (n - 0.5 * counts["IG"] - counts[f"RM {rules}"] - counts["IK"]) / n
        for rules in ("strict", "loose")
    }
    return counts, score, n


def shuffled(problems, seed):
    """In any order: rows of a file need none."""
    return random.Random(seed).sample(problems, len(problems))


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_random_verdicts(seed):
    rng = random.Random(seed)
    problems = made(rng.randint(1, 40), rng.randint(1, 40))
    chance = rng.random()
    right = {problem.id: rng.random() < chance for problem in problems}
    counts, score, n = counted(problems, right)
    found = composites.score(
        shuffled(problems, seed), {id_: [value] for id_, value in right.items()}
    )
    assert found.scored == n
    for rules in ("strict", "loose"):
        cases = getattr(found, rules)
        assert cases.score.mean == pytest.approx(score[rules])
        shares = {
            "IK": cases.insufficient_knowledge,
            "IG": cases.inadequate_generalization,
            f"CM {rules}": cases.complete_mastery,
            f"RM {rules}": cases.rote_memorization,
        }
        for name, share in shares.items():
            assert share.mean == pytest.approx(counts[name] / n), name
        assert sum(share.mean for share in shares.values()) == pytest.approx(1)
        low, high = cases.score.interval_95
        assert low <= cases.score.mean <= high


@pytest.mark.parametrize(
    "steps, itself, strict, loose",
    [
        ("11", 1, 1.0, 1.0),
        ("11", 0, 0.5, 0.5),
        ("10", 1, 0.0, 1.0),
        ("00", 1, 0.0, 0.0),
        ("10", 0, 0.0, 0.0),
        ("001", 1, 0.0, 1.0),
        ("000", 1, 0.0, 0.0),
        ("111", 0, 0.5, 0.5),
    ],
)
def test_the_worth_of_each_case(steps, itself, strict, loose):
    problems = made(*((1, 0) if len(steps) == 2 else (0, 1)))
    name = problems[0].cluster
    correct = {f"{name}/{number}": [step == "1"] for number, step in enumerate(steps, start=1)}
    found = composites.score(problems, correct | {f"{name}/multi": [bool(itself)]})
    assert (found.strict.score.mean, found.loose.score.mean) == (strict, loose)


def test_of_several_samples_each_goes_with_its_own():
    problems = made(1, 0)
    correct = {"2steps_0/1": [True, False], "2steps_0/2": [True, True]}
    found = composites.score(problems, correct | {"2steps_0/multi": [False, True]})
    # Sample 0 is inadequate generalization, sample 1 rote memorization.
    assert found.strict.score.mean == 0.25 and found.loose.score.mean == 0.75


def test_what_is_not_whole_is_left_out():
    problems = made(2, 1)
    right = {problem.id: [True] for problem in problems}
    del right["2steps_1/2"]
    found = composites.score(problems, right)
    assert found.scored == 2 and found.strict.score.mean == 1
    # A benchmark that was cut off by max_problems has not all the steps either.
    cut = [problem for problem in problems if problem.id != "3steps_0/2"]
    assert composites.score(cut, right).scored == 1
    assert composites.score(problems[:2], right) is None
    assert composites.score(problems, {}) is None


# ---- clusters


def test_clusters_of_one_size_count_by_their_means():
    share_P = np.array([1, 0, 1, 1, 0, 0.5])
    found = scores.by_cluster(share_P, ["b", "b", "a", "a", "c", "c"])
    assert sorted(found) == pytest.approx([0.25, 0.5, 1.0])


def test_clusters_of_any_size_keep_the_mean_over_problems():
    rng = np.random.default_rng(0)
    share_P = rng.random(50)
    clusters = rng.integers(0, 9, 50).astype(str)
    found = scores.by_cluster(share_P, clusters.tolist())
    assert len(found) == 9 and found.mean() == pytest.approx(share_P.mean())
    # Naively: by how much each cluster's sum is off what its size would give, over the mean size.
    expected = []
    for name in sorted(set(clusters)):
        inside = share_P[clusters == name]
        off = inside.sum() - len(inside) * share_P.mean()
        expected.append(share_P.mean() + off / (50 / 9))
    assert found == pytest.approx(expected)


def test_intervals_of_clusters_hold_the_truth():
    """Five versions of a question that are right or wrong together are not five questions."""
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(40), 5).astype(str).tolist()
    held = {"clusters": 0, "problems": 0}
    for _ in range(300):
        share_P = np.repeat(rng.random(40) < 0.4, 5).astype(float)
        for name, value in (
            ("clusters", scores.by_cluster(share_P, clusters)),
            ("problems", share_P),
        ):
            low, high = scores.mean_of_shares(value).interval_95
            held[name] += low <= 0.4 <= high
    assert held["clusters"] >= 0.92 * 300 and held["problems"] < 0.75 * 300
