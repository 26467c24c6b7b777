"""A learning rate that falls linearly to 0 over more steps than are trained, which verl has no schedule for."""

from __future__ import annotations

import pytest
import torch
from verl.workers.config import FSDPOptimizerConfig

from recipes.common.checks.learning import schedule
from recipes.common.method import read
from workers.training.engine import SelfDistillEngine
from workers.training.params import LossParams, TeacherWeights


def rates(linear: int | None, warmup: int = 0, steps: int = 151) -> list[float]:
    engine = object.__new__(SelfDistillEngine)
    engine.rank = 0
    engine.optimizer_config = FSDPOptimizerConfig(lr=3.0, lr_warmup_steps=warmup, total_training_steps=100)
    engine.configure(LossParams(), TeacherWeights(), linear)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    scheduler = engine._build_lr_scheduler(optimizer)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_step_100_of_150_has_a_third_of_the_rate():
    found = rates(150)
    assert (
        found[0] == 3.0 and found[75] == pytest.approx(1.5) and found[100] == pytest.approx(1.0) and found[150] == 0.0
    )
    assert rates(150, warmup=10)[5] == pytest.approx(1.5)
    assert set(rates(None)) == {3.0}  # verl's constant


def test_the_release_is_a_protocol(compose_config):
    cfg = compose_config("method=pw_opsd", "experiment=qwen3_4b_openthoughts", "protocol=pw_opsd_release")
    assert (cfg.self_distill.linear_decay_steps, cfg.trainer.total_training_steps) == (150, 100)
    assert cfg.actor_rollout_ref.model.lora_rank == 64 and list(schedule(cfg, read(cfg))) == []


def test_schedules_that_end_too_early_or_that_nobody_follows_are_refused(compose_config):
    def found(*overrides: str) -> list[str]:
        cfg = compose_config("method=grpo", "experiment=starter", *overrides)
        return list(schedule(cfg, read(cfg)))

    assert found() == found("self_distill.linear_decay_steps=30") == []
    (short,) = found("self_distill.linear_decay_steps=29")
    assert "linear_decay_steps=29" in short and "0 from step 30 on" in short
    (other,) = found("self_distill.linear_decay_steps=30", "actor_rollout_ref.actor.strategy=fsdp")
    assert "strategy=fsdp: set it to fsdp2" in other
