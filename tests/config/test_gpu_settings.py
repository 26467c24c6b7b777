"""What GPU configurations must say of verl's engine, whatever method and hardware."""

from __future__ import annotations

import pytest

from config import CONFIG_DIR

HARDWARE = sorted(p.stem for p in (CONFIG_DIR / "hardware").glob("*.yaml"))
EXPERIMENTS = sorted(p.stem for p in (CONFIG_DIR / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_entropy_is_not_compiled(compose_config, hardware):
    """Its loop over chunks makes a graph for each length: minutes on each worker in the first step, for nothing."""
    cfg = compose_config("method=dasd", "experiment=qwen3_8b_dapo", f"hardware={hardware}")
    assert cfg.actor_rollout_ref.actor.fsdp_config.use_torch_compile is False


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_dasds_distribution_level_loss_has_its_teacher_at_the_start_of_the_step(compose_config, experiment):
    """§4's π_old: the step has several updates, and a teacher of weights=current would be another one in each."""
    teacher = compose_config("method=dasd_distribution", f"experiment={experiment}").self_distill.teacher
    assert (teacher.weights, teacher.snapshot_every) == ("snapshot", 1)
