"""A run that is there and was trained by other settings does not pass for what a table asks for."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recipes.reproduce.runs import Job, seeded
from recipes.reproduce.settings import refusals
from tests.builders.configs import composed

DASD = ("experiment=starter", "method=dasd")


@pytest.fixture
def directory(tmp_path):
    """Of a run of DASD with a beta of its own."""
    path = tmp_path / "run"
    path.mkdir()
    OmegaConf.save(composed(*DASD, "algorithm.dasd.beta=0.02", *seeded(1), run_dir=path), path / "config.yaml")
    return path


def job(directory, *overrides):
    return Job(
        "a", directory, 20, (*DASD, *overrides, *seeded(1), f"trainer.validation_data_dir={directory}/validation")
    )


def test_a_run_of_the_same_settings_and_one_that_has_not_begun_are_taken(directory, tmp_path):
    same = "algorithm.dasd.beta=0.02"
    without = ("self_distill.stall_minutes=7", "algorithm.dasd.ratio_decay=0.5")  # effect: the second follows no beta
    assert list(refusals([job(directory, same, *without), job(tmp_path / "new")])) == []


def test_another_default_and_another_override_are_named(directory):
    (said,) = refusals([job(directory)])
    assert (
        said
        == f"{directory} is a run with algorithm.dasd.beta=0.02 (asked for: null): move it away, or choose another out="
    )
    three = (
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "algorithm.dasd.router_quantile=0.5",
    )
    (said,) = refusals([job(directory, *three)])
    assert "actor_rollout_ref.rollout.n=8 (asked for: 4)" in said and "and 1 more" in said


def test_seeds_of_a_row_are_one_setting(tmp_path):
    row = ("experiment=starter", "method=atesd")
    jobs = []
    for seed in (1, 2):
        folder = tmp_path / f"seed_{seed}"
        folder.mkdir()
        OmegaConf.save(composed(*row, *seeded(seed), run_dir=folder), folder / "config.yaml")
        jobs.append(Job("a", folder, 20, (*row, *seeded(seed))))
    assert list(refusals(jobs)) == []


def test_each_run_is_compared_with_its_own_row(directory, tmp_path):
    """Seeds of a row share what they are compared with; rows do not."""
    rows = [job(directory), job(directory, "algorithm.dasd.beta=0.02"), job(directory)]
    assert len(list(refusals(rows))) == 2
