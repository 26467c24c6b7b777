"""Schedules drawn as the configuration gives them: the method's own, and the learning rate's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

from advantage.labels import POSITION, STEP, UPDATE, Schedule
from recipes.common.record import run_dir as files
from recipes.report.figures import Line, curves
from recipes.report.panels import Shown
from recipes.report.run_data import Run

MARKED = 30  # updates that have a mark each
POSITIONS = np.linspace(0.0, 1.0, 201)


def schedule_panels(run: Run) -> list[Shown]:
    """A figure of each schedule of a run's configuration that changes anything, the learning rate first.

    A run that says its length in epochs has steps only once it is done: until then those over steps are left out.
    """
    done = run.stage.get("stage") == files.DONE
    steps = run.planned_steps or (run.records[-1]["step"] if done else 0)
    found = list(run.asks.schedules(max(steps, 1))) if run.asks else []
    if steps:
        found.insert(0, learning_rate(run.config, steps))
    return [shown for schedule in found if (shown := _shown(schedule, steps))]


def learning_rate(config: DictConfig, steps: int) -> Schedule:
    """The learning rate of each step, by the schedules that a run has: verl's, or one that falls linearly.

    Args:
        config: of the run.
        steps: of the run.
    """
    optim = config.actor_rollout_ref.actor.optim
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=optim.lr)
    scheduler = _scheduler(config, optim, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return Schedule("Learning rate", "of the optimiser, by step", STEP, lambda step: rates[int(step) - 1])


def _scheduler(config: DictConfig, optim: DictConfig, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """As workers.training.engine and verl's engine choose it."""
    from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    warmup = max(optim.get("lr_warmup_steps") or 0, 0)
    linear = config.self_distill.get("linear_decay_steps")
    if linear is not None:
        return get_linear_schedule_with_warmup(optimizer, warmup, linear)
    warmup = warmup or int((optim.get("lr_warmup_steps_ratio") or 0.0) * steps)
    if optim.get("lr_scheduler_type", "constant") == "cosine":
        return get_cosine_schedule_with_warmup(
            optimizer,
            warmup,
            steps,
            min_lr_ratio=optim.get("min_lr_ratio"),
            num_cycles=optim.get("num_cycles", 0.5),
            zero_indexed_step=optim.get("zero_indexed_step", True),
        )
    return get_constant_schedule_with_warmup(optimizer, warmup)


def _shown(schedule: Schedule, steps: int) -> Shown | None:
    """Its figure; None if one value is in force everywhere, or if it is over steps of which there is no number."""
    last = {STEP: steps, UPDATE: schedule.last or 0}
    x = POSITIONS if schedule.over == POSITION else np.arange(1.0, last[schedule.over] + 1)

    def line(value: Callable[[float], float], colour: int, *, dashed: bool = False) -> Line:
        marked = schedule.over == UPDATE and len(x) <= MARKED
        return Line(x.tolist(), [value(float(place)) for place in x], colour=colour, dashed=dashed, markers=marked)

    own = line(schedule.value, 0)
    if len(set(own.y)) < 2:
        return None
    others = [line(value, number, dashed=True) for number, (_, value) in enumerate(schedule.beside, 1)]
    ticks = (0, 0.25, 0.5, 0.75, 1) if schedule.over == POSITION else ()
    figure = curves([*others, own], from_zero=True, ticks=ticks, smooth=False)
    legend = [(schedule.line, 1, False), *((name, i, True) for i, (name, _) in enumerate(schedule.beside, 2))]
    return Shown(schedule.title, schedule.note, figure, legend if others else [])
