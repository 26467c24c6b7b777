"""REOPOLD (arXiv 2603.11137): on-policy distillation by policy gradient, on a clipped gap and on a part of the tokens.

    R_t = max(delta_t, floor),     A_t = M_t * R_t * N / sum(M)

The teacher is the only reward: A_G is not used. Up to a step M keeps the tokens whose gap is not below the floor; after
it, those whose entropy is among the top share of the global batch. With N valid tokens in the batch, N / sum(M) turns
the loss's mean over all tokens (`token-mean`) into the paper's mean over the kept ones.

The floor comes of a target mixed with the student, q = lambda p_S + (1 - lambda) p_T, of which there are two readings:

    jensen   log(lambda) / (1 - lambda): with x = p_T / p_S, log(lambda + (1 - lambda) x) is at least log(lambda) and,
             by Jensen, at least (1 - lambda) log x;
             the larger of the two is (1 - lambda) max(log x, log(lambda) / (1 - lambda))
    odds     log(lambda / (1 - lambda)): where both parts of the mixture are equal

PW-OPSD ran it with the first (arXiv 2605.21606, its release), which is why it is the default; both are at hand.

The floor of the first part is the clip value itself (Eq. 9 as PW-OPSD's release cites it). Ours: tokens are counted
over the global batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.estimators import (
    Credit,
    CreditInputs,
    EstimatorParams,
    estimator,
    magnitude_metrics,
    masked_gap,
    masked_signal,
)
from advantage.labels import STEP, Metric, Schedule, TokenField
from advantage.params import require
from advantage.segments import batch_mean, batch_quantile

FLOORS = ("jensen", "odds")


@dataclass(frozen=True)
class ReopoldParams(EstimatorParams):
    """Parameters of `algorithm.reopold`; the defaults are those that PW-OPSD ran.

    Attributes:
        mixture: lambda in (0, 1), the student's part of the mixed target.
        floor: how the floor follows from it; one of `FLOORS`.
        entropy_share: beta, the share of tokens kept after the switch.
        switch_step: the last step that keeps tokens by their gap; 0 never does.
        gap_floor: tokens below it, in nats, are left out until the switch; null is the clip value.
    """

    mixture: float = 0.1
    floor: str = "jensen"
    entropy_share: float = 0.2
    switch_step: int = 50
    gap_floor: float | None = None

    def validate(self) -> None:
        """Refuse a mixture, a floor, a share or a step outside its range."""
        require(0.0 < self.mixture < 1.0, "mixture", self.mixture, "in (0, 1)")
        require(self.floor in FLOORS, "floor", self.floor, f"one of {', '.join(FLOORS)}")
        require(0.0 < self.entropy_share <= 1.0, "entropy_share", self.entropy_share, "in (0, 1]; 1 keeps all tokens")
        require(self.switch_step >= 0, "switch_step", self.switch_step, "a step, 0 or more")

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The largest share of tokens that is kept: all that pass the floor until the switch, then beta."""

        def most(step: float) -> float:
            return 1.0 if step <= self.switch_step else self.entropy_share

        note = (
            "largest share of the tokens that is trained, by step: those whose gap passes the floor until the switch, "
            "those of the highest entropy after it"
        )
        return (Schedule("Tokens that may be kept", note, STEP, most),)

    def clip_value(self) -> float:
        """The floor, nats: -2.56 by Jensen and -2.20 by the odds at 0.1."""
        if self.floor == "jensen":
            return math.log(self.mixture) / (1.0 - self.mixture)
        return math.log(self.mixture / (1.0 - self.mixture))


@estimator(
    "reopold",
    params=ReopoldParams,
    needs=("log_prob_gap", "entropy", "step"),
    uses_group=False,
    shows=("mixture", "floor", "entropy_share", "switch_step"),
    tokens=(TokenField("kept", "M", "1 where the token is trained, 0 where it is left out", 1.0),),
    metrics=(
        Metric(
            "credit/kept_share",
            "Share of tokens trained",
            "by their gap until the switch, by their entropy after it",
            line="share",
            percent=True,
            from_zero=True,
            idle=1.0,
        ),
    ),
)
def reopold_credit(inputs: CreditInputs, params: ReopoldParams) -> Credit:
    """A_t = M_t * max(delta_t, floor) * N / sum(M).

    Args:
        inputs: `log_prob_gap`, `entropy` and `step`.
        params: the values of `algorithm.reopold`.
    """
    taught = inputs.taught(inputs.response_mask)
    gap = masked_gap(inputs)
    metrics = magnitude_metrics("credit/gap", gap, taught)
    if inputs.signal("step") <= params.switch_step:
        kept = taught & (gap >= (params.clip_value() if params.gap_floor is None else params.gap_floor))
    else:
        entropy = masked_signal(inputs, "entropy")
        kept = taught & (entropy >= batch_quantile(entropy, taught, 1.0 - params.entropy_share))
    share = batch_mean(kept, inputs.response_mask)
    reward = gap.clamp_(min=params.clip_value())
    advantages = torch.where(kept, reward / share, 0.0) if share > 0 else torch.zeros_like(reward)
    metrics |= {"credit/kept_share": share, **magnitude_metrics("credit/advantage", advantages, inputs.response_mask)}
    return Credit(advantages, metrics, {"kept": kept.float()})
