"""Accuracy over n samples of each problem, with intervals that know that the samples of a problem hang together.

Avg@n, unbiased Pass@k, Maj@n, and estimates whose intervals are clustered by problem.  Pure: numbers in, numbers out.

Every quantity reported by an evaluation is a ratio of sums over problems (Avg@n: sum of the problems' accuracies over
their number; tokens per response: sum of tokens over sum of responses).  Its error is that of drawing other problems,
linearised: problem i contributes (a_i - r·b_i) / mean(b), and the variance of r is that of these contributions over
their number.  For Avg@n this is Student's interval over the problems' means.  Two models that answer the same problems
are compared by the difference of their contributions, problem by problem.

Departs from verl: its best@N resamples with replacement, which is biased low (with one right answer among 16 it gives
0.64 for best@16 where the answer is 1).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, isnan, nan, sqrt
from typing import TypeVar

import numpy as np
from scipy.stats import t as student_t

Answer = TypeVar("Answer")

CONFIDENCE = 0.95


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, contain one of the c correct ones.

    1 - C(n-c, k) / C(n, k): the unbiased estimator of Chen et al. (arXiv 2107.03374, Eq. 1), in exact integers.

    Args:
        n: number of samples.
        c: number of correct ones among them.
        k: number of samples that are drawn.

    Raises:
        ValueError: if not 1 <= k <= n, or not 0 <= c <= n.
        TypeError: if a number is no integer.
    """
    n, c, k = operator.index(n), operator.index(c), operator.index(k)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of n={n} samples: Pass@k needs 1 <= k <= n; draw at least {max(k, 1)} samples")
    if not 0 <= c <= n:
        raise ValueError(f"c={c} correct of n={n} samples: must lie between 0 and {n}")
    subsets = comb(n, k)
    return (subsets - comb(n - c, k)) / subsets


def default_ks(n: int) -> list[int]:
    """The k of Pass@k: powers of two up to n, and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})


def majority_vote(answers: Sequence[Answer | None], equivalent: Callable[[Answer, Answer], bool]) -> int | None:
    """Index of the winning answer, or None where INVALID wins (PW-OPSD, App. J: Maj@N).

    An answer joins the first cluster whose representative, its first member, it is equivalent to in either direction.
    All None (no answer in the response) are one cluster, INVALID, which votes like the others.  The largest cluster
    wins, of equally large ones the one that occurs first; its representative's index is returned.

    Args:
        answers: n answers in the order of sampling, None where a response has none.
        equivalent: whether its second argument means the same as its first; need not be symmetric.

    Raises:
        ValueError: if there are no answers at all.
    """
    if not answers:
        raise ValueError("a majority vote needs at least one answer")
    votes: dict[int, int] = {}  # index of the representative -> votes, in order of first occurrence
    for index, answer in enumerate(answers):
        home = next((first for first in votes if _same(answers[first], answer, equivalent)), index)
        votes[home] = votes.get(home, 0) + 1
    winner = max(votes, key=lambda first: votes[first])  # max keeps the first of equals
    return None if answers[winner] is None else winner


def _same(one: Answer | None, other: Answer | None, equivalent: Callable[[Answer, Answer], bool]) -> bool:
    if one is None or other is None:
        return one is other
    return bool(one == other or equivalent(one, other) or equivalent(other, one))


@dataclass(frozen=True)
class Estimate:
    """A value and what each problem contributes to its error.

    Attributes:
        value: the estimate.
        strata: for each data set an array (P,) of contributions with mean 0, in the order of its problems; the value's
            variance is the sum of their variances over P.  Data sets are fixed, problems are drawn.
    """

    value: float
    strata: tuple[np.ndarray, ...]

    @property
    def problems(self) -> int:
        """Number of problems of all data sets together."""
        return sum(len(stratum) for stratum in self.strata)

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval (Student's t; Welch-Satterthwaite's degrees of freedom over several
        data sets).  NaN where a data set has a single problem."""
        if any(len(stratum) < 2 for stratum in self.strata):
            return nan
        variances = [float(stratum.var(ddof=1)) / len(stratum) for stratum in self.strata]
        total = sum(variances)
        if total == 0.0:
            return 0.0
        pairs = zip(variances, self.strata, strict=True)
        degrees = total**2 / sum(variance**2 / (len(stratum) - 1) for variance, stratum in pairs)
        return float(student_t.ppf((1 + CONFIDENCE) / 2, degrees)) * sqrt(total)


def ratio(numerators: Sequence[float], denominators: Sequence[float] | None = None) -> Estimate | None:
    """The estimate of sum(numerators) / sum(denominators) over the problems of one data set.

    Args:
        numerators, denominators: (P,) one number a problem, denominators >= 0; without denominators, the mean.

    Returns:
        None where the denominators sum to 0, that is, where there is nothing to average.

    Raises:
        ValueError: if the two are not one number a problem each.
    """
    a = np.asarray(numerators, dtype=np.float64)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"numerators {a.shape} and denominators {b.shape} must be one number a problem each")
    if not b.sum() > 0:
        return None
    value = float(a.sum() / b.sum())
    return Estimate(value, ((a - value * b) / b.mean(),))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """``one - other``, paired by problem.

    Args:
        one, other: estimates on the same problems in the same order.

    Raises:
        ValueError: if the numbers of problems differ.
    """
    if [len(s) for s in one.strata] != [len(s) for s in other.strata]:
        raise ValueError(
            f"a paired difference needs the same problems on both sides; got {one.problems} and {other.problems}"
        )
    return Estimate(one.value - other.value, tuple(a - b for a, b in zip(one.strata, other.strata, strict=True)))


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one quantity over seeds; its interval is that of drawing other problems, see `sample_std` for seeds.

    Raises:
        ValueError: if there is no estimate, or some stand on different problems.
    """
    if not estimates:
        raise ValueError("no seed to average over")
    shapes = {tuple(len(s) for s in e.strata) for e in estimates}
    if len(shapes) > 1:
        raise ValueError(f"the seeds stand on different numbers of problems: {sorted(shapes)}")
    strata = tuple(np.mean(parts, axis=0) for parts in zip(*(e.strata for e in estimates), strict=True))
    return Estimate(float(np.mean([e.value for e in estimates])), strata)


def sample_std(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1) over seeds; NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def over_sets(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean over data sets, each weighing the same however many problems it has (the papers' "Avg").

    Raises:
        ValueError: if there is no data set.
    """
    if not estimates:
        raise ValueError("no data set to average over")
    share = 1 / len(estimates)
    return Estimate(
        sum(e.value for e in estimates) * share, tuple(stratum * share for e in estimates for stratum in e.strata)
    )


def finite(value: float) -> float | None:
    """The number, or None for NaN, which JSON does not have."""
    return None if isnan(value) else value
