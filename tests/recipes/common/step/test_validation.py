"""Validation accuracy and its interval, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.common.step.validation import validation_metrics


def test_means_are_over_problems_and_the_interval_is_clustered_by_them():
    acc = [1, 1, 0, 0, 1, 0]  # problem means 1, 0, 0.5
    metrics = validation_metrics(["s"] * 6, ["a", "a", "b", "b", "c", "c"], {"acc": acc, "reward": [2] * 6})
    assert metrics["val-core/s/acc/mean@2"] == pytest.approx(0.5)
    # t(0.975, 2) = 4.3027; standard deviation of (1, 0, 0.5) is 0.5
    assert metrics["val-core/s/acc/ci95@2"] == pytest.approx(4.3027 * 0.5 / np.sqrt(3), rel=1e-4)
    assert metrics["val-aux/s/reward/mean@2"] == 2


def test_a_problem_with_more_responses_weighs_no_more():
    metrics = validation_metrics(["s"] * 4, ["a", "a", "a", "b"], {"acc": [1, 1, 1, 0]})
    assert metrics["val-core/s/acc/mean@3"] == pytest.approx(0.5)


def test_responses_that_are_missing_count_as_wrong():
    expected = {("s", "a"): 2, ("s", "b"): 2}
    metrics = validation_metrics(["s"], ["a"], {"acc": [1]}, expected)
    assert metrics["val-core/s/acc/mean@2"] == pytest.approx(0.25)


def test_sources_are_apart_texts_are_left_out_and_reward_stands_in_for_accuracy():
    metrics = validation_metrics(
        ["s", "t"], ["a", "b"], {"reward": [0.5, 0.1], "acc": [1, None], "status": ["correct", "wrong"]}
    )
    assert metrics["val-core/s/acc/mean@1"] == 1
    assert metrics["val-core/t/reward/mean@1"] == pytest.approx(0.1)
    assert not any("status" in key for key in metrics)
