"""Numbers from verdicts: avg@k with its error, pass@k, maj@k, lengths, loops. NumPy only.

Arrays are named by letters as elsewhere: P problems, S samples of each, R resamples.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500  # resamples at a time: 500 × 1319 problems of int64 are 5 MB

LOOP_CHARACTERS, LOOP_REPEATS, LOOP_PERIOD = 200, 4, 250


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over problems. Error and interval are None where there is one problem: nothing says how others vary."""

    mean: float
    standard_error: float | None
    interval_95: tuple[float, float] | None


def average(correct_PS: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Mean:
    """avg@S: the share of correct samples, with a cluster bootstrap over problems.

    Samples of one problem are not independent, so whole problems are drawn, with replacement, and each brings all of
    its samples. The error is the standard deviation of the `resamples` means, sqrt(Σ(m_p − m)²)/P for means m_p of
    the problems (a factor sqrt(1 − 1/P) below the unbiased estimate); the interval is that of their percentiles
    2.5 and 97.5. Both say how the score would vary over other problems like these. With every sample of every problem
    correct (or none), the interval has no width; that is a limit of the bootstrap, not certainty.
    """
    return mean_with_error(_checked(correct_PS).mean(axis=1), seed=seed, resamples=resamples)


def mean_with_error(value_P: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Mean:
    """The mean of one value for each problem (a share, or a difference of two), with the bootstrap over problems."""
    mean = float(value_P.mean())
    if len(value_P) == 1:
        return Mean(mean, None, None)
    return summarized(mean, bootstrap(value_P, seed=seed, resamples=resamples))


def summarized(mean: float, means_R: np.ndarray) -> Mean:
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Mean(mean, float(means_R.std()), (float(low), float(high)))


def bootstrap(value_P: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of `resamples` draws of as many problems, with replacement."""
    random, n_problems, chunks = np.random.default_rng(seed), len(value_P), []
    for begin in range(0, resamples, _CHUNK):
        drawn_RP = random.integers(n_problems, size=(min(_CHUNK, resamples - begin), n_problems))
        chunks.append(value_P[drawn_RP].mean(axis=1))
    return np.concatenate(chunks)


def pass_at_k(correct_PS: np.ndarray, k: int) -> float:
    """The chance that at least one of k samples, drawn from the S without replacement, is correct; mean over problems.

    The unbiased estimator 1 − C(S−c, k)/C(S, k) of Chen et al. (arXiv 2107.03374, equation 1), c of S correct, as the
    product of (S−c−j)/(S−j) for j < k: no large numbers, and exactly 1 where fewer than k are wrong.
    """
    correct_PS = _checked(correct_PS)
    n_samples = correct_PS.shape[1]
    if not 1 <= k <= n_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n_samples} samples")
    wrong_P = n_samples - correct_PS.sum(axis=1)
    j_K = np.arange(k)
    all_wrong_P = np.prod((wrong_P[:, None] - j_K) / (n_samples - j_K), axis=1)  # 0 once j reaches wrong_P
    return float(np.mean(1 - all_wrong_P))


def powers_of_two(n_samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, …, and the number of samples itself."""
    powers = [2**i for i in range(n_samples.bit_length()) if 2**i <= n_samples]
    return powers if powers[-1] == n_samples else [*powers, n_samples]


def majority(answers_PS: Sequence[Sequence[str | None]], correct_PS: np.ndarray) -> float:
    """maj@S: the share of problems whose most frequent extracted answer is correct.

    Answers are compared as text, outer white space aside. A sample without an answer (None) does not vote; of equally
    frequent answers the one of the earliest sample wins; a problem where nobody votes counts as not correct. The
    winner is correct if any of its samples was found so: a verdict of `timeout` on one of them is the machine's doing.
    """
    correct_PS = _checked(correct_PS)
    right = []
    for answers_S, correct_S in zip(answers_PS, correct_PS, strict=True):
        texts = [None if answer is None else answer.strip() for answer in answers_S]
        votes = collections.Counter(text for text in texts if text is not None)  # keeps the order of first appearance
        winner = votes.most_common(1)[0][0] if votes else None
        pairs = zip(texts, correct_S, strict=True)
        right.append(winner is not None and any(correct for text, correct in pairs if text == winner))
    return float(np.mean(right))


def loops(text: str) -> bool:
    """Whether a completion ends in a loop: one stretch of text over and over, until the limit cut it.

    That is, for some period p of at most 250 characters, the last max(200, 4·p) characters repeat with period p: at
    least four times the same, and at least 200 characters of it. White space at the very end is left out.
    """
    text = text.rstrip()
    for period in range(1, LOOP_PERIOD + 1):
        needed = max(LOOP_CHARACTERS, LOOP_REPEATS * period)
        if len(text) < needed:
            return False
        if text[-1] == text[-1 - period]:  # most periods end here
            tail = text[-needed:]
            if tail[period:] == tail[:-period]:
                return True
    return False


def rectangle(samples_of: dict[str, Sequence[int]]) -> list[str]:
    """What is wrong with the samples of each problem, by id: all should have the same numbers. Empty where all is well.

    A missing sample is a gap that would bias every score if it were counted as wrong, or left out.
    """
    full = sorted(set().union(*samples_of.values()))
    mistakes = []
    for problem, samples in samples_of.items():
        missing = sorted(set(full) - set(samples))
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
            mistakes.append(f"problem {problem!r} has {len(samples)} of {len(full)} samples; missing: sample {shown}")
    return mistakes


def _checked(correct_PS: np.ndarray) -> np.ndarray:
    """As bool [P, S] with at least one of each. NaN for a missing sample is refused: it is a gap, not a zero."""
    correct_PS = np.asarray(correct_PS)
    if correct_PS.ndim != 2 or 0 in correct_PS.shape:
        raise ValueError(f"correctness should be [problems, samples], at least one of each, not {correct_PS.shape}")
    if not np.isin(correct_PS, [0, 1]).all():
        raise ValueError("correctness should be true or false for every sample")
    return correct_PS.astype(bool)
