"""Avg@n, Pass@k, Maj@n and their intervals: hand-computed values, slow references, and simulated coverage."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recipes.evaluate import metrics


def never(one, other):
    return False


# ------------------------------------------------------------------ Pass@k


@given(st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_counts_the_subsets_that_hold_a_correct_sample(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert metrics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_by_hand():
    assert metrics.pass_at_k(16, 1, 16) == 1.0  # resampling with replacement would say 0.644
    assert metrics.pass_at_k(16, 1, 8) == 0.5
    assert metrics.pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert metrics.pass_at_k(16, 0, 16) == 0.0
    # Far beyond what floating-point binomials can do, and without cancellation where c/n is tiny.
    assert metrics.pass_at_k(10**6, 1, 1) == 1e-6
    assert metrics.pass_at_k(4096, 1, 2048) == 0.5


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_it_cannot_answer(n, c, k):
    with pytest.raises(ValueError, match="must lie|needs 1 <= k <= n"):
        metrics.pass_at_k(n, c, k)


def test_pass_at_k_refuses_fractions_and_takes_numpy_integers():
    with pytest.raises(TypeError):
        metrics.pass_at_k(4, 1.5, 2)
    assert metrics.pass_at_k(np.int64(4), np.int64(4), np.int64(2)) == 1.0


def test_default_ks_are_powers_of_two_and_n():
    assert metrics.default_ks(16) == [1, 2, 4, 8, 16]
    assert metrics.default_ks(12) == [1, 2, 4, 8, 12]
    assert metrics.default_ks(1) == [1]


# ------------------------------------------------------------------ Maj@n


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["7", "8", "8"], 1),
        (["7", "8", "8", "7"], 0),  # a tie: the one that occurs first
        (["8", "7", "7", "8"], 0),
        ([None, None, "7"], None),  # INVALID votes
        ([None, "7"], None),  # and wins ties that it began
        (["7", None], 0),
        (["7", None, None, "7"], 0),
        ([None], None),
        (["5", None, "6", None, "6", "6"], 2),
    ],
)
def test_majority_by_hand(answers, winner):
    assert metrics.majority_vote(answers, never) == winner


def test_equivalence_counts_in_either_direction_and_against_the_first_member_only():
    def one_way(gold, answer):  # "1/2" is accepted as "0.5", not the other way round
        return (gold, answer) == ("0.5", "1/2")

    assert metrics.majority_vote(["3", "1/2", "0.5"], one_way) == 1
    assert metrics.majority_vote(["3", "0.5", "1/2"], one_way) == 1

    def near(one, other):  # not transitive: 1 ~ 2 ~ 3, but 3 is not near 1, the representative
        return abs(int(one) - int(other)) <= 1

    assert metrics.majority_vote(["1", "2", "3", "9", "9"], near) == 0
    assert metrics.majority_vote(["1", "3", "2", "3"], near) == 0  # 2 joins 1, which comes first
    assert metrics.majority_vote(["2", "1", "3", "9", "9"], near) == 0


def test_majority_needs_an_answer_and_asks_nothing_about_invalid_ones():
    with pytest.raises(ValueError, match="at least one"):
        metrics.majority_vote([], never)

    def explode(one, other):
        raise AssertionError("an answer was compared with INVALID")

    assert metrics.majority_vote([None, "4", None, "4", "4"], explode) == 1


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcd")), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_majority_is_the_mode_that_occurs_first(answers):
    counts = {a: answers.count(a) for a in answers}
    best = next(a for a in answers if counts[a] == max(counts.values()))
    expected = None if best is None else answers.index(best)
    assert metrics.majority_vote(answers, never) == expected


# ------------------------------------------------------------------ intervals


def test_the_interval_of_a_mean_is_students():
    accuracies = [0.25, 1.0, 0.5, 0.0, 0.75]
    estimate = metrics.ratio(accuracies)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(accuracies), scale=stats.sem(accuracies))
    assert estimate.value == pytest.approx(0.5)
    assert estimate.value - estimate.half_width == pytest.approx(low)
    assert estimate.value + estimate.half_width == pytest.approx(high)


def test_a_ratio_weighs_problems_by_their_denominator():
    estimate = metrics.ratio([1, 2], [2, 8])
    assert estimate.value == pytest.approx(0.3)
    assert metrics.ratio([0, 0], [0, 0]) is None
    assert math.isnan(metrics.ratio([1.0]).half_width)  # one problem says nothing about others
    with pytest.raises(ValueError, match="one number a problem"):
        metrics.ratio([1, 2], [1])


def test_intervals_clustered_by_problem_cover_where_intervals_over_responses_do_not():
    """Problems of very different difficulty, 16 samples of each: 95 % must hold, and the naive one must fail."""
    rng = np.random.default_rng(3)
    clustered = naive = 0
    for _ in range(400):
        difficulty = rng.beta(0.3, 0.3, size=30)
        correct = rng.binomial(16, difficulty) / 16
        estimate = metrics.ratio(correct)
        clustered += abs(estimate.value - 0.5) <= estimate.half_width
        naive += abs(estimate.value - 0.5) <= 1.96 * math.sqrt(0.25 / (30 * 16))
    assert 0.92 < clustered / 400 < 0.98
    assert naive / 400 < 0.6


def test_the_interval_of_a_ratio_covers():
    """Share of right steps where long answers are the wrong ones: num and den hang together."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        steps = rng.integers(1, 20, size=40)
        right = rng.binomial(steps, np.where(steps > 10, 0.3, 0.9))
        truth = sum(s * (0.3 if s > 10 else 0.9) for s in range(1, 20)) / sum(range(1, 20))
        estimate = metrics.ratio(right, steps)
        hits += abs(estimate.value - truth) <= estimate.half_width
    assert 0.91 < hits / 400 < 0.98


def test_pairing_removes_what_the_problems_have_in_common():
    rng = np.random.default_rng(5)
    difficulty = rng.uniform(size=50)
    one = metrics.ratio(np.clip(difficulty + 0.05 + rng.normal(0, 0.02, 50), 0, 1))
    other = metrics.ratio(difficulty)
    paired = metrics.difference(one, other)
    assert paired.value == pytest.approx(one.value - other.value)
    assert paired.half_width < 0.1 * math.hypot(one.half_width, other.half_width)
    assert metrics.difference(other, other).half_width == 0.0
    with pytest.raises(ValueError, match="same problems"):
        metrics.difference(one, metrics.ratio([0.5, 0.5]))


def test_the_paired_interval_is_that_of_the_problems_differences():
    a, b = np.array([1.0, 0.5, 0.25, 0.75]), np.array([0.5, 0.5, 0.5, 0.25])
    paired = metrics.difference(metrics.ratio(a), metrics.ratio(b))
    result = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert paired.value - paired.half_width == pytest.approx(result.low)
    assert paired.value + paired.half_width == pytest.approx(result.high)


def test_over_sets_weighs_sets_alike_and_adds_their_variances():
    small, large = metrics.ratio([0.0, 1.0, 1.0]), metrics.ratio(np.linspace(0, 1, 101))
    both = metrics.over_sets([small, large])
    assert both.value == pytest.approx((2 / 3 + 0.5) / 2)
    variances = [np.var([0, 1, 1], ddof=1) / 3, np.var(np.linspace(0, 1, 101), ddof=1) / 101]
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 100)  # Welch-Satterthwaite
    expected = stats.t.ppf(0.975, degrees) * math.sqrt(sum(variances)) / 2
    assert both.half_width == pytest.approx(expected)
    assert metrics.over_sets([small]).half_width == pytest.approx(small.half_width)


def test_seeds_are_averaged_and_their_spread_is_the_sample_deviation():
    runs = [metrics.ratio([0.0, 1.0, 0.5]), metrics.ratio([0.5, 1.0, 1.0])]
    mean = metrics.over_seeds(runs)
    assert mean.value == pytest.approx(2 / 3)
    # Averaging problem by problem first gives the same interval.
    assert mean.half_width == pytest.approx(metrics.ratio([0.25, 1.0, 0.75]).half_width)
    assert metrics.sample_std([0.4, 0.5, 0.9]) == pytest.approx(math.sqrt(0.07))
    assert math.isnan(metrics.sample_std([0.4]))
    with pytest.raises(ValueError, match="different numbers"):
        metrics.over_seeds([runs[0], metrics.ratio([1.0, 0.0])])
