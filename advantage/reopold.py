"""REOPOLD (arXiv 2603.11137): on-policy distillation by policy gradient, on a clipped gap and on a part of the tokens.

    R_t = max(delta_t, log(lambda / (1 - lambda))),     A_t = M_t * R_t * N / sum(M)

The teacher is the only reward: A_G is not used. In the first part of training M keeps the tokens whose gap is not below
the floor; after it, those whose entropy is among the top share of the global batch. With N valid tokens in the batch,
N / sum(M) turns the loss's mean over all tokens (`token-mean`) into the paper's mean over the kept ones.

Ours: the floor of the first part is the clip value itself, and tokens are counted over the global batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.checks import check_finite, check_shape, masked_float32
from advantage.estimators import (
    Credit,
    CreditInputs,
    EstimatorParams,
    estimator,
    magnitude_metrics,
    masked_gap,
)
from advantage.params import require
from advantage.segments import batch_mean, batch_quantile


@dataclass(frozen=True)
class ReopoldParams(EstimatorParams):
    """Parameters of `algorithm.reopold`.

    Attributes:
        mixture: lambda in (0, 1); the gap is clipped from below at log(lambda / (1 - lambda)), -0.85 nats at 0.3.
        entropy_share: beta, the share of tokens kept in the second part.
        first_part: share of the training steps that the first part takes; 0 and 1 leave only one of the two.
        gap_floor: tokens below it, in nats, are left out in the first part; null is the clip value.
    """

    mixture: float = 0.3
    entropy_share: float = 0.2
    first_part: float = 1.0 / 3.0
    gap_floor: float | None = None

    def validate(self) -> None:
        require(0.0 < self.mixture < 1.0, "mixture", self.mixture, "in (0, 1)")
        require(0.0 < self.entropy_share <= 1.0, "entropy_share", self.entropy_share, "in (0, 1]; 1 keeps all tokens")
        require(0.0 <= self.first_part <= 1.0, "first_part", self.first_part, "in [0, 1]")

    def clip_value(self) -> float:
        """log(lambda / (1 - lambda)), nats."""
        return math.log(self.mixture / (1.0 - self.mixture))


@estimator(
    "reopold",
    params=ReopoldParams,
    needs=("log_prob_gap", "entropy", "step", "total_steps"),
    shows=("mixture", "entropy_share", "first_part"),
)
def reopold_credit(inputs: CreditInputs, params: ReopoldParams) -> Credit:
    """A_t = M_t * max(delta_t, log(lambda / (1 - lambda))) * N / sum(M)."""
    mask = inputs.response_mask
    gap = masked_gap(inputs)
    metrics = magnitude_metrics("credit/gap", gap, mask)
    if inputs.signal("step") < params.first_part * inputs.signal("total_steps"):
        kept = mask & (gap >= (params.clip_value() if params.gap_floor is None else params.gap_floor))
    else:
        check_shape("entropy", inputs.signal("entropy"), mask)
        check_finite("entropy", inputs.signal("entropy"), mask)
        entropy = masked_float32(inputs.signal("entropy"), mask)
        kept = mask & (entropy >= batch_quantile(entropy, mask, 1.0 - params.entropy_share))
    share = batch_mean(kept, mask)
    reward = gap.clamp_(min=params.clip_value())
    advantages = torch.where(kept, reward / share, 0.0) if share > 0 else torch.zeros_like(reward)
    metrics |= {"credit/kept_share": share, **magnitude_metrics("credit/advantage", advantages, mask)}
    return Credit(advantages, metrics)
