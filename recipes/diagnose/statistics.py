"""Ranking measures, and bootstrap intervals that know that the tokens of a problem hang together.

Pure: numpy in, numbers out.  Intervals resample whole problems with replacement, a problem drawn twice counting twice
(PW-OPSD, App. A, phase G); the tokens, rollouts and sampling seeds of a problem stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
from scipy.stats import rankdata

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with the percentile interval (95 %) of its bootstrap; numbers are NaN if there is nothing to estimate.

    Attributes:
        value: over all observations.
        low: lower bound.
        high: upper bound.
        undefined: resamples that had no value and are not in it.
    """

    value: float
    low: float
    high: float
    undefined: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """The numbers by name; null for those that are NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{k: v if isfinite(v) else None for k, v in numbers.items()}, "undefined_resamples": self.undefined}


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties counting a half: the Mann-Whitney form with mid-ranks.

    Args:
        scores: (N,) floats.
        positive: (N,) bool.

    Returns:
        A number in [0, 1]; NaN unless both classes occur.

    Raises:
        ValueError: if a score is NaN.
    """
    positive = np.asarray(positive, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError("auroc: a score is NaN, which has no rank; leave such items out and count them")
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return nan
    ranks = rankdata(scores)  # ties share the mean of their ranks
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall curve (AUPRC), Σ (recall step) · precision; equal scores are one threshold.

    Args:
        scores: (N,) floats.
        positive: (N,) bool.

    Returns:
        A number in [0, 1], by chance the share of positives; NaN without a positive.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not positive.any():
        return nan
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_tie]
    taken = np.flatnonzero(last_of_tie) + 1
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / positive.sum())


def centered_within(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Values minus their cluster's mean (PW-OPSD, App. A: residualisation within problem).

    Args:
        values: (N,) floats.
        clusters: (N,) the problem of each.

    Returns:
        (N,) fp64.
    """
    _, inverse = np.unique(clusters, return_inverse=True)
    means = np.bincount(inverse, weights=values) / np.bincount(inverse)
    return np.asarray(values, dtype=np.float64) - means[inverse]


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], Sequence[float] | np.ndarray],
    clusters: Sequence[int] | np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """Intervals of several statistics at once, from the same resamples of whole clusters.

    Args:
        statistic: from an index array into the observations, in which an observation may occur several times, to Q
            numbers; NaN where one is undefined.
        clusters: (N,) the problem of each observation.
        resamples: number of bootstrap draws; 0 gives values without intervals.
        seed: decides the draws.

    Returns:
        Q intervals; ``value`` is the statistic of all observations once.  A single cluster says nothing of the error:
        its bounds are NaN.

    Raises:
        ValueError: if there is no observation.
    """
    clusters = np.asarray(clusters)
    if len(clusters) == 0:
        raise ValueError("cluster_bootstrap: there is no observation; nothing was measured")
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    members = np.split(order, starts[1:])
    values = np.asarray(statistic(np.arange(len(clusters))), dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(values)))
    for row in draws:
        picked = rng.integers(len(members), size=len(members))
        row[:] = statistic(np.concatenate([members[i] for i in picked]))
    if len(members) < 2:
        draws[:] = nan
    return [_percentiles(value, column) for value, column in zip(values, draws.T, strict=True)]


def _percentiles(value: float, draws: np.ndarray) -> Interval:
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return Interval(float(value), nan, nan, len(draws))
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(value), float(low), float(high), len(draws) - len(defined))


def ratios(sums: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Σ sums / Σ counts over some rows (one a problem), (Q,); NaN where nothing was counted.

    Args:
        sums: (C, Q), each problem's sum of a quantity.
        counts: (C, Q), the number of things that it is summed over.
        rows: indices of problems, in which one may occur several times.
    """
    total = counts[rows].sum(0)
    return np.divide(sums[rows].sum(0), total, out=np.full(total.shape, nan), where=total > 0)


class Pivot:
    """Sums and counts of quantities by problem: what `ratios` and the bootstrap over problems work on.

    Args:
        observations: (problem, quantity, value); None is left out.

    Attributes:
        columns: quantity -> its place on the arrays' second axis.
        sums: (C, Q), a row for each problem.
        counts: (C, Q), number of values in each sum.
    """

    def __init__(self, observations: Iterable[tuple[int, Hashable, float | None]]):
        cells: dict[tuple[int, Hashable], list[float]] = {}
        for problem, quantity, value in observations:
            if value is not None:
                cells.setdefault((problem, quantity), []).append(float(value))
        rows = {problem: i for i, problem in enumerate(sorted({problem for problem, _ in cells}))}
        self.columns = {quantity: i for i, quantity in enumerate(dict.fromkeys(quantity for _, quantity in cells))}
        self.sums = np.zeros((len(rows), len(self.columns)))
        self.counts = np.zeros_like(self.sums)
        for (problem, quantity), values in cells.items():
            self.sums[rows[problem], self.columns[quantity]] = sum(values)
            self.counts[rows[problem], self.columns[quantity]] = len(values)

    def intervals(
        self, derive: Callable[[np.ndarray], Sequence[float] | np.ndarray], *, resamples: int, seed: int
    ) -> list[Interval]:
        """Intervals of what `derive` makes of the means; problems are resampled.

        Args:
            derive: from the (Q,) means to any number of statistics.
            resamples: number of bootstrap draws; 0 gives values without intervals.
            seed: decides the draws.
        """
        return cluster_bootstrap(
            lambda rows: derive(ratios(self.sums, self.counts, rows)),
            np.arange(len(self.sums)),
            resamples=resamples,
            seed=seed,
        )

    def means(self, *, resamples: int, seed: int) -> dict[Hashable, Interval]:
        """The interval of every quantity's mean, by its name.

        Args:
            resamples: number of bootstrap draws; 0 gives values without intervals.
            seed: decides the draws.
        """
        found = self.intervals(lambda means: means, resamples=resamples, seed=seed)
        return {quantity: found[i] for quantity, i in self.columns.items()}
