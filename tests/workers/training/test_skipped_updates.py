"""The count of skipped updates, and the rule that ends a run."""

from __future__ import annotations

import math

import pytest

from recipes.common.record.console import progress_numbers, warnings_of
from recipes.common.step.broken_numbers import BrokenNumbers
from recipes.common.step.update import SkipBudget, Update, take_update
from workers.training.skipped_updates import SKIPPED, count_skipped

NAN, INF = math.nan, math.inf


def test_skipped_updates_are_counted_and_left_out_of_the_means():
    metrics = {"grad_norm": [1.0, NAN, 3.0, INF], "pg_loss": [0.5, NAN, 0.5, NAN, 0.5, 0.5], "lr": [0.1], "text": ["a"]}
    assert count_skipped(metrics) == 2
    assert metrics == {
        "grad_norm": [1.0, 3.0],
        "pg_loss": [0.5] * 4,
        "lr": [0.1],
        "text": ["a"],
        SKIPPED: [2.0],
    }


def test_a_loss_that_is_not_finite_though_its_update_was_made_stays_in_sight():
    metrics = {"grad_norm": [1.0], "pg_loss": [INF]}
    assert count_skipped(metrics) == 0
    assert metrics == {"grad_norm": [1.0], "pg_loss": [INF], SKIPPED: [0.0]}


def test_a_step_without_any_update_has_no_means():
    metrics = {"grad_norm": [NAN], "pg_loss": [NAN]}
    assert count_skipped(metrics) == 1
    assert math.isnan(metrics["grad_norm"][0]) and math.isnan(metrics["pg_loss"][0])


def taken(**metrics: float) -> Update:
    """The update of a step that the workers tell of."""
    return take_update({f"actor/{name}": value for name, value in {SKIPPED: 0.0, "grad_norm": 1.0, **metrics}.items()})


def count(update: Update, *, budget: int, before: int = 0) -> dict:
    return SkipBudget(budget, before).count(update, step=7, safe_ground="Step 6 is complete.")


def test_skipped_updates_within_the_budget_are_recorded():
    metrics = count(taken(**{SKIPPED: 2.0, "pg_loss": NAN}), budget=3, before=1)
    assert metrics == {"training/skipped_updates": 2, "training/skipped_updates_total": 3}
    ((kind, text),) = warnings_of(metrics)
    assert kind == "skipped" and "2 updates skipped, 3 in this run" in text
    assert progress_numbers(metrics).endswith("skipped 3")
    assert warnings_of({**metrics, "training/skipped_updates": 0}) == []


@pytest.mark.parametrize(("budget", "before"), [(0, 0), (3, 3)])
def test_one_more_than_the_budget_ends_the_run_and_names_the_safe_checkpoint(budget, before):
    with pytest.raises(BrokenNumbers, match=rf"at step 7.*max_skipped_updates={budget} .*Step 6 is complete"):
        count(taken(**{SKIPPED: 1.0}), budget=budget, before=before)


@pytest.mark.parametrize(("name", "called"), [("pg_loss", "policy loss"), ("divergence/mean", "divergence")])
def test_a_loss_that_is_not_finite_though_its_update_was_made_ends_the_run(name, called):
    with pytest.raises(BrokenNumbers, match=f"the {called} is inf at step 7.*Step 6"):
        count(taken(**{name: INF}), budget=5)
    assert count(taken(**{name: 1.0}), budget=0)["training/skipped_updates_total"] == 0


def test_the_divergences_numbers_lose_the_workers_prefix_and_become_data():
    metrics = {"actor/grad_norm": 0.5, f"actor/{SKIPPED}": 0.0, "actor/divergence/loss": 0.25, "actor/lr": 1.0}
    update = take_update(metrics)
    assert metrics == {"actor/grad_norm": 0.5, "divergence/loss": 0.25, "actor/lr": 1.0}
    assert (update.divergence_loss, update.disagreement, update.skipped, update.made) == (0.25, None, 0, True)
    assert not taken(grad_norm=NAN).made
