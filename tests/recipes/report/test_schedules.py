"""Schedules in a report: drawn from what the configuration says, by the functions that training itself uses."""

from __future__ import annotations

import pytest

from recipes.report.page import run_page
from recipes.report.run_data import load_run
from recipes.report.schedules import learning_rate, schedule_panels
from tests.builders.runs import record, write_run

OPTIM = "actor_rollout_ref.actor.optim."


def run_of(tmp_path, *overrides: str, method: str = "dasd"):
    return load_run(
        write_run(tmp_path / method, [record(1)], "trainer.total_training_steps=100", *overrides, method=method)
    )


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        ((), {1: 1.0, 100: 1.0}),
        ((f"{OPTIM}lr_warmup_steps=10",), {1: 0.0, 6: 0.5, 11: 1.0, 100: 1.0}),
        ((f"{OPTIM}lr_warmup_steps=-1", f"{OPTIM}lr_warmup_steps_ratio=0.2"), {1: 0.0, 11: 0.5, 21: 1.0}),
        # Half a cosine: of step t, t - 1 of 100 parts are behind it.
        ((f"{OPTIM}lr_scheduler_type=cosine",), {1: 1.0, 51: 0.5}),
        (("+self_distill.linear_decay_steps=200",), {1: 1.0, 51: 0.75, 100: 101 / 200}),
    ],
)
def test_the_learning_rate_of_a_step_is_the_one_that_its_update_has(tmp_path, overrides, at):
    overrides = tuple(o.removeprefix("+") for o in overrides)
    run = run_of(tmp_path, f"{OPTIM}lr=2e-5", *overrides)
    schedule = learning_rate(run.config, 100)
    assert {step: schedule.value(step) / 2e-5 for step in at} == pytest.approx(at)


@pytest.mark.parametrize(
    ("method", "titles"),
    [
        ("grpo", []),
        ("dasd", []),
        ("pw_opsd", ["Weight by position"]),
        ("pw_opsd_sampled", ["Weight by position"]),
        ("opsd_mixed_position", ["Share of the forward KL"]),
        ("reopold", ["Tokens that may be kept"]),
        ("rlsd", ["Part of the teacher"]),
        ("atesd", ["Credit of an exposure", "Cap on the exposure policy's entropy"]),
    ],
)
def test_a_method_shows_the_schedules_that_it_declares(tmp_path, method, titles):
    run = run_of(tmp_path, method=method)
    assert [shown.title for shown in schedule_panels(run)] == titles
    assert ("<h2>Schedules</h2>" in run_page(run)) == bool(titles)


def test_what_changes_nothing_is_not_drawn(tmp_path):
    fixed = run_of(tmp_path, "self_distill.exposure.mode=fixed", method="atesd")
    assert schedule_panels(fixed) == []


def test_over_steps_only_where_their_number_is_known(tmp_path):
    epochs = ("trainer.total_training_steps=null", f"{OPTIM}lr_scheduler_type=cosine")
    records = [{"step": 0}, record(1), record(8)]
    found = [
        load_run(write_run(tmp_path / ending, records, *epochs, method="atesd", ending=ending))
        for ending in ("update", "done")
    ]
    assert [[shown.title for shown in schedule_panels(run)] for run in found] == [
        ["Credit of an exposure"],
        ["Learning rate", "Credit of an exposure", "Cap on the exposure policy's entropy"],
    ]


def test_the_schedule_in_force_is_named_and_the_others_stand_beside_it(tmp_path):
    (shown,) = schedule_panels(run_of(tmp_path, "algorithm.pw_opsd.schedule=sharp", method="pw_opsd"))
    assert [(label, dashed) for label, _, dashed in shown.legend] == [
        ("in force: sharp", False),
        *((name, True) for name in ("moderate", "mild", "aggressive", "uniform")),
    ]
