"""We-Math's scores: what a model knows of the steps of a problem, and whether it can join them.

A composite problem has two or three steps, each of which is a problem of its own. By whether its
steps (s) and itself (m) are answered right, it is one of four cases (arXiv 2407.01284, section 3):

    insufficient knowledge      not all s, not m        worth 0
    inadequate generalization   all s, not m            worth 1/2
    complete mastery            all s, m                worth 1
    rote memorization           not all s, m            worth 0

That is the strict score. The loose one takes a right composite for mastered where one step is
right or more, and for rote memorization where none is. A score is the mean worth over composites:
with 525 of them (525 - IG / 2 - RM - IK) / 525, as the authors' four_dimensional_metrics.py has it.

Arrays are named by letters: C composites, S samples. Sample 3 of a composite goes with sample 3 of
its steps; of several samples the worths are means.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from dft_jax.evals import scores
from dft_jax.evals.tasks.task import Problem
from dft_jax.evals.tasks.wemath import ONE_STEP, STEPS


@dataclasses.dataclass(frozen=True)
class Cases:
    """A score, and the share of all composites in each of the four cases.

    The authors give rote memorization as a share of what was answered right, RM / (CM + RM).
    """

    score: scores.Mean
    insufficient_knowledge: scores.Mean
    inadequate_generalization: scores.Mean
    complete_mastery: scores.Mean
    rote_memorization: scores.Mean


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of the composites of which every part has an answer: `scored` of them."""

    scored: int
    strict: Cases
    loose: Cases


def score(problems: Sequence[Problem], correct_of: Mapping[str, Sequence[bool]]) -> Scores | None:
    """The two scores; None where no composite has all of its parts.

    Args:
      problems: of We-Math.
      correct_of: by a problem's id whether each of its samples is right; in the same order for all.
    """
    steps_of: dict[str, list[str]] = {}
    itself_of: dict[str, str] = {}
    for problem in problems:
        if dict(problem.groups)[STEPS] == ONE_STEP:
            steps_of.setdefault(problem.cluster, []).append(problem.id)
        else:
            itself_of[problem.cluster] = problem.id
    rows = []
    for name, itself in itself_of.items():
        steps = steps_of.get(name, [])
        is_whole = len(steps) == n_steps(name)
        if is_whole and all(id_ in correct_of for id_ in (itself, *steps)):
            s_KS = np.array([correct_of[id_] for id_ in steps], bool)
            rows.append([np.array(correct_of[itself], bool), s_KS.all(axis=0), s_KS.any(axis=0)])
    if not rows:
        return None
    m_CS, all_CS, any_CS = np.moveaxis(np.array(rows), 1, 0)
    return Scores(len(rows), _cases(m_CS, all_CS, all_CS), _cases(m_CS, all_CS, any_CS))


def n_steps(composite: str) -> int:
    """How many steps a composite has: 3 of 3steps_17."""
    return int(composite[0])


def _cases(
    m_CS: Bool[np.ndarray, "C S"],
    all_CS: Bool[np.ndarray, "C S"],
    mastered_CS: Bool[np.ndarray, "C S"],
) -> Cases:
    """The cases, of whether composites are right, all their steps are, and enough for mastery."""
    insufficient_CS = ~all_CS & ~m_CS
    inadequate_CS = all_CS & ~m_CS
    mastery_CS = mastered_CS & m_CS
    rote_CS = ~mastered_CS & m_CS
    return Cases(
        score=_mean(mastery_CS + inadequate_CS / 2),
        insufficient_knowledge=_mean(insufficient_CS),
        inadequate_generalization=_mean(inadequate_CS),
        complete_mastery=_mean(mastery_CS),
        rote_memorization=_mean(rote_CS),
    )


def _mean(value_CS: Shaped[np.ndarray, "C S"]) -> scores.Mean:
    return scores.mean_of_shares(value_CS.mean(axis=1))
