"""RLSD (arXiv 2604.03128): the teacher's evidence ratio rescales the group advantage and never turns its sign.

    w_t = clip(exp(sign(A_G) * delta_t), 1 - c, 1 + c),     A_t = A_G * ((1 - lambda) + lambda * w_t)

which is Algorithm 1 of the paper, with delta a constant to the gradient. lambda decays linearly from its start to zero
over the first steps (section 5.1), after which this is GRPO. That the first step has the full lambda is ours.

RLCSD's plug-in form (arXiv 2606.11709, section 4.3) puts its contrast in the place of delta: the teacher that is shown
a right solution against the same teacher that is shown wrong ones, instead of against the student.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from advantage.estimators import (
    Credit,
    CreditInputs,
    EstimatorParams,
    estimator,
    magnitude_metrics,
    masked_gap,
)
from advantage.labels import STEP, Metric, Schedule, TokenField
from advantage.params import require
from advantage.segments import batch_abs_mean, batch_mean

EVIDENCE = {"student": "log_prob_gap", "contrast": "contrast_gap"}


@dataclass(frozen=True)
class RlsdParams(EstimatorParams):
    """Parameters of `algorithm.rlsd`.

    Attributes:
        mix: lambda at the first step, in [0, 1]; 0 is GRPO.
        decay_steps: steps over which lambda falls to zero; null keeps it constant, and then no `step` is needed.
        weight_clip: c in [0, 1).
        evidence: what the teacher is compared with: "student" (the paper) or "contrast" (RLCSD's plug-in form).
    """

    mix: float = 0.5
    decay_steps: int | None = 50
    weight_clip: float = 0.2
    evidence: str = "student"

    def validate(self) -> None:
        """Refuse a parameter outside its range."""
        require(0.0 <= self.mix <= 1.0, "mix", self.mix, "in [0, 1]; 0 is GRPO")
        require(
            self.decay_steps is None or self.decay_steps > 0,
            "decay_steps",
            self.decay_steps,
            "positive, or null for none",
        )
        require(0.0 <= self.weight_clip < 1.0, "weight_clip", self.weight_clip, "in [0, 1): weights stay positive")
        require(self.evidence in EVIDENCE, "evidence", self.evidence, f"one of {', '.join(EVIDENCE)}")

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """lambda over the steps."""
        note = "λ, how far the teacher's evidence rescales the group advantage, by step; at 0 it is GRPO"
        return (Schedule("Part of the teacher", note, STEP, lambda step: self.mix_at(int(step))),)

    def mix_at(self, step: int | None) -> float:
        """The value of lambda at a step, counted from 1; at an unknown step it is that of the first."""
        if self.decay_steps is None or step is None:
            return self.mix
        return self.mix * max(0.0, 1.0 - (step - 1) / self.decay_steps)


def _signals_needed(params: RlsdParams) -> tuple[str, ...]:
    gap = EVIDENCE[params.evidence]
    return (gap,) if params.decay_steps is None else (gap, "step")


@estimator(
    "rlsd",
    params=RlsdParams,
    needs=_signals_needed,
    shows=("mix", "decay_steps", "weight_clip", "evidence"),
    tokens=(TokenField("weight", "w", "factor of the group advantage at this token"),),
    metrics=(
        Metric(
            "credit/weight/clipped_share",
            "Share of clipped weights",
            "tokens where the teacher's evidence ratio left its bounds",
            line="share",
            percent=True,
            from_zero=True,
        ),
    ),
)
def rlsd_credit(inputs: CreditInputs, params: RlsdParams) -> Credit:
    """A_t = A_G * ((1 - lambda) + lambda * w_t).

    Args:
        inputs: A_G, the gap of `params.evidence`, and `step` if lambda decays.
        params: the values of `algorithm.rlsd`.
    """
    mask, anchor = inputs.response_mask, inputs.group_advantage
    gap = masked_gap(inputs, EVIDENCE[params.evidence])
    metrics = magnitude_metrics("credit/gap", gap, mask)
    mix = params.mix_at(inputs.step)
    ratio = torch.exp(torch.sign(anchor) * gap)
    clipped = (ratio - 1.0).abs() > params.weight_clip
    weight = (1.0 - mix) + mix * ratio.clamp_(1.0 - params.weight_clip, 1.0 + params.weight_clip)
    metrics |= {
        "credit/mix": mix,
        "credit/weight/mean": batch_mean(weight, mask),
        "credit/weight/clipped_share": batch_mean(clipped, mask),
        "credit/group_advantage/mean": batch_abs_mean(anchor, mask),
    }
    return Credit(anchor * weight, metrics, {"weight": weight})
