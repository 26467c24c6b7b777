"""Ranking measures and cluster bootstrap of the diagnostics, against values by hand and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.diagnose.statistics import (
    Pivot,
    auroc,
    average_precision,
    centered_within,
    cluster_bootstrap,
    ratios,
)


def test_auroc_by_hand():
    # Pairs (positive, negative): 3>1, 3>2, 2>1, 2=2 -> (1 + 1 + 1 + 1/2) / 4.
    assert auroc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(items):
    scores, positive = np.array([s for s, _ in items], dtype=float), np.array([p for _, p in items])
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    found = auroc(scores, positive)
    assert math.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))
    if pairs:
        assert auroc(-scores, positive) == pytest.approx(1 - found)


def test_auroc_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        auroc(np.array([1.0, math.nan]), np.array([True, False]))


def test_average_precision_by_hand():
    # Ranked: + − + −; precision 1 at recall 1/2, then 2/3 at recall 1.
    assert average_precision(np.array([4.0, 3, 2, 1]), np.array([True, False, True, False])) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 3
    )


def test_equal_scores_are_one_threshold():
    # Whatever the order inside a tie, all of it is taken at once: the share of positives.
    labels = np.array([True, False, False, True, False])
    for order in (labels, labels[::-1]):
        assert average_precision(np.ones(5), order) == pytest.approx(2 / 5)
    assert math.isnan(average_precision(np.ones(2), np.array([False, False])))


def test_centering_is_within_clusters():
    found = centered_within(np.array([1.0, 3.0, 10.0, 5.0]), np.array([7, 7, 2, 7]))
    assert found == pytest.approx([-2.0, 0.0, 0.0, 2.0])


def test_bootstrap_draws_whole_clusters_with_their_multiplicity():
    clusters = np.array([5, 9, 5, 9, 9, 1])
    seen = []

    def record(rows):
        seen.append(np.bincount(rows, minlength=6))
        return [float(len(rows))]

    cluster_bootstrap(record, clusters, resamples=200, seed=3)
    assert list(seen[0]) == [1] * 6  # the value itself: everything once
    for counts in seen[1:]:
        assert counts[0] == counts[2] and counts[1] == counts[3] == counts[4]
        assert counts[0] + counts[1] + counts[5] == 3  # three clusters are drawn
    assert any(counts[5] == 3 for counts in seen) and any(counts[5] == 0 for counts in seen)


def test_bootstrap_of_a_mean_approaches_the_normal_interval():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=400)
    values = np.repeat(effects, 5)  # five identical tokens a problem carry one problem's information
    interval = cluster_bootstrap(
        lambda rows: [values[rows].mean()], np.repeat(np.arange(400), 5), resamples=2000, seed=1
    )[0]
    half = 1.96 * effects.std() / math.sqrt(400)
    assert interval.value == pytest.approx(effects.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)


def test_bootstrap_repeats_itself_and_counts_what_is_undefined():
    positive = np.array([True, False, False])

    def statistic(rows):
        return [auroc(np.arange(3.0)[rows], positive[rows])]

    one, two = (cluster_bootstrap(statistic, [0, 1, 2], resamples=300, seed=4)[0] for _ in range(2))
    assert one == two
    # Undefined where the only positive is not drawn, (2/3)^3 of the time, or drawn alone, (1/3)^3.
    assert one.undefined == pytest.approx(300 * (8 / 27 + 1 / 27), abs=25)
    assert one.as_json()["undefined_resamples"] == one.undefined


def test_one_problem_gives_no_interval():
    interval = cluster_bootstrap(lambda rows: [2.0], [4, 4, 4], resamples=100, seed=0)[0]
    assert interval.value == 2.0 and math.isnan(interval.low) and math.isnan(interval.high)
    assert interval.as_json()["low"] is None


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="no observation"):
        cluster_bootstrap(lambda rows: [0.0], [], resamples=10, seed=0)


def test_pivot_averages_over_observations_not_over_problems():
    pivot = Pivot([(3, "a", 1.0), (3, "a", 2.0), (8, "a", 6.0), (8, "b", None), (3, "b", 5.0)])
    means = ratios(pivot.sums, pivot.counts, np.array([0, 1]))
    assert means[pivot.columns["a"]] == pytest.approx(3.0)
    assert means[pivot.columns["b"]] == pytest.approx(5.0)
    assert math.isnan(ratios(pivot.sums, pivot.counts, np.array([1]))[pivot.columns["b"]])
    intervals = pivot.means(resamples=200, seed=0)
    assert (intervals["a"].low, intervals["a"].high) == (1.5, 6.0)  # problem 3 alone, problem 8 alone
    assert intervals["b"].undefined > 0  # problem 8 drawn twice has no b
