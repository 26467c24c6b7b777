"""What an update did, taken once out of the numbers that the workers sent back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from recipes.common.metric_names import SKIPPED, SKIPPED_TOTAL
from recipes.common.step.broken_numbers import BrokenNumbers
from recipes.common.step.signals import Scores
from recipes.common.teacher.decisions import Observation
from workers.training.metrics import DISAGREEMENT, LOSS, MEAN, STUDENT_ENTROPY, STUDENT_LOG_PROB
from workers.training.skipped_updates import SKIPPED as SKIPPED_BY_WORKERS

_FROM_WORKERS = "actor/"  # verl puts it before every name of the workers


@dataclass(frozen=True)
class Update:
    """An update of the actor.

    Attributes:
        skipped: mini-batches whose gradient was not finite, so that the weights stayed as they were.
        grad_norm: mean over the mini-batches that were made; not finite where none was.
        policy_loss, divergence_mean: means over the step, None where that part is not trained.
        divergence_loss: the divergence as it was trained, weighted and reduced; None without one.
        disagreement: share of tokens where the likeliest tokens of student and teacher differ; None without divergence.
        student_entropy, student_log_prob: means over the tokens, nats, where the divergence's pass measured them.
    """

    skipped: int
    grad_norm: float
    policy_loss: float | None = None
    divergence_mean: float | None = None
    divergence_loss: float | None = None
    disagreement: float | None = None
    student_entropy: float | None = None
    student_log_prob: float | None = None

    @property
    def made(self) -> bool:
        """Whether the weights moved."""
        return math.isfinite(self.grad_norm)


def take_update(metrics: dict[str, Any]) -> Update:
    """The update that a step's metrics tell of.

    Args:
        metrics: of verl's `_update_actor`, changed in place: numbers of the divergence lose the workers' prefix, and
            the count of skipped updates is taken out, for `SkipBudget` writes it with the run's total.
    """
    for name in [name for name in metrics if name.startswith(f"{_FROM_WORKERS}divergence/")]:
        metrics[name.removeprefix(_FROM_WORKERS)] = metrics.pop(name)
    return Update(
        skipped=int(metrics.pop(f"{_FROM_WORKERS}{SKIPPED_BY_WORKERS}")),
        grad_norm=metrics[f"{_FROM_WORKERS}grad_norm"],
        policy_loss=metrics.get(f"{_FROM_WORKERS}pg_loss"),
        divergence_mean=metrics.get(MEAN),
        divergence_loss=metrics.get(LOSS),
        disagreement=metrics.get(DISAGREEMENT),
        student_entropy=metrics.pop(STUDENT_ENTROPY, None),
        student_log_prob=metrics.pop(STUDENT_LOG_PROB, None),
    )


@dataclass
class SkipBudget:
    """How many updates a run may skip, and how many it has skipped.

    Attributes:
        allowed: `self_distill.max_skipped_updates`.
        total: of the whole run, those before a resume included.
    """

    allowed: int
    total: int = 0

    def count(self, update: Update, *, step: int, safe_ground: str) -> dict[str, float]:
        """Count what an update skipped; returns the metrics that say so.

        Args:
            safe_ground: a sentence that says where the run can go on from.

        Raises:
            BrokenNumbers: more were skipped than the run may; or an update was made although its loss is not finite.
        """
        self.total += update.skipped
        if self.total > self.allowed:
            raise BrokenNumbers(
                f"{self.total} updates were skipped in this run, {update.skipped} of them at step {step}, because "
                f"their gradient is not finite; self_distill.max_skipped_updates={self.allowed} allows no more. "
                f"{safe_ground}"
            )
        losses = {"policy loss": update.policy_loss, "divergence": update.divergence_mean}
        for name, value in losses.items() if not update.skipped else ():
            if value is not None and not math.isfinite(value):
                raise BrokenNumbers(
                    f"the {name} is {value} at step {step}, and its gradient was finite, so that the update was made. "
                    f"{safe_ground}"
                )
        return {SKIPPED: update.skipped, SKIPPED_TOTAL: self.total}


def observation(update: Update, scores: Scores) -> Observation:
    """What the exposure's controller is told of an update (ATESD, arXiv 2605.11458, §3.2 and 4.2).

    With a divergence ℓ is the loss that was trained and mismatch the top-1 disagreement.  In the PPO clip there is no
    full vocabulary: ℓ is −mean δ, the one-sample estimate of KL(p_S ‖ p_T), and mismatch mean |δ| (ours).  Both losses
    are of the weights before the update (with several mini-batches, of those before each): ℓ_{t−1} of update t.
    """
    if update.divergence_loss is not None:
        confidence = update.student_log_prob if scores.student_mean is None else scores.student_mean
        return Observation(update.divergence_loss, update.disagreement, confidence=confidence)
    loss = None if scores.gap_mean is None else -scores.gap_mean
    return Observation(loss, scores.gap_abs_mean, confidence=scores.student_mean)
