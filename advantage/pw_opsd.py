"""PW-OPSD, position-weighted self-distillation (section 3.4, Eq. 5), as a weight and as an advantage.

The teacher is less reliable early in a response, so its pressure grows with relative position:

    w(u) = w_min + (1 - w_min) * sigmoid((u - theta) / s),     u_t = (t - 0.5) / L

The paper applies w to a full-vocabulary forward KL and averages per sequence. As an advantage (ours, the sampled-token
form) it is A_t = A_G + beta * w(u_t) * delta_t; pair it with a per-sequence reduction (`seq-mean-token-mean`), since a
position fraction has a meaning only within its own response. Weights are not renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from advantage.estimators import (
    AdditiveParams,
    Credit,
    CreditInputs,
    EstimatorParams,
    additive_credit,
    estimator,
    magnitude_metrics,
    masked_gap,
)
from advantage.labels import POSITION, Schedule, TokenField
from advantage.params import require
from advantage.segments import Tokens, batch_mean, map_rows, relative_positions, sigmoid
from advantage.signals import Signals
from advantage.token_weights import token_weight

# (floor w_min, threshold theta, scale s). Only "moderate" is the paper's. The tuples of the other three are lost from
# its text, which fixes nothing but their order (mild: high floor, softest; sharp: lower floor, steeper; aggressive:
# strongest discount, latest); these values are ours. "uniform" is OPSD's weight of one everywhere.
SCHEDULES: dict[str, tuple[float, float, float]] = {
    "moderate": (0.25, 0.30, 0.10),
    "mild": (0.50, 0.20, 0.15),
    "sharp": (0.10, 0.30, 0.05),
    "aggressive": (0.05, 0.40, 0.05),
    "uniform": (1.0, 0.30, 0.10),
}


def position_weight(
    response_mask: torch.Tensor, *, floor: float = 0.25, threshold: float = 0.30, scale: float = 0.10
) -> torch.Tensor:
    """Position weight w(u_t) of Eq. 5; the defaults are the paper's Moderate schedule.

    Args:
        response_mask: (B, T), non-zero on valid tokens. Holes do not count: t is the index among valid tokens.
        floor: w_min in [0, 1], the weight that the earliest tokens tend to.
        threshold: theta, the relative position of the transition, where the weight is (1 + floor) / 2.
        scale: s > 0, the width of the transition.

    Returns:
        (B, T) fp32, zero outside the mask.

    Raises:
        ValueError: if a parameter is outside its range.
    """
    _check_schedule(floor, threshold, scale)

    def trajectory(count: int) -> tuple[Tokens]:
        return (_weight_at(relative_positions(count), floor, threshold, scale),)

    (weight,) = map_rows(trajectory, response_mask)
    return weight


def _weight_at(positions: Tokens, floor: float, threshold: float, scale: float) -> Tokens:
    return floor + (1.0 - floor) * sigmoid((positions - threshold) / scale)


def _check_schedule(floor: float, threshold: float, scale: float) -> None:
    require(0.0 <= floor <= 1.0, "floor", floor, "in [0, 1]")
    require(math.isfinite(threshold), "threshold", threshold, "a finite relative position")
    require(0.0 < scale < math.inf, "scale", scale, "positive and finite: weights grow with position")


@dataclass(frozen=True)
class PositionParams(EstimatorParams):
    """Parameters of `algorithm.pw_opsd`: a named schedule, of which single values can be overridden.

    Attributes:
        schedule: a key of `SCHEDULES`: mild, moderate, sharp, aggressive or uniform.
        floor: w_min, the weight that the earliest tokens tend to; null takes the schedule's.
        threshold: theta, the relative position of the transition; null takes the schedule's.
        scale: s, the width of the transition; null takes the schedule's.
    """

    schedule: str = "moderate"
    floor: float | None = None
    threshold: float | None = None
    scale: float | None = None

    def validate(self) -> None:
        """Refuse an unknown schedule, and overrides outside their range."""
        super().validate()
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        _check_schedule(*self.position_schedule())

    def position_schedule(self) -> tuple[float, float, float]:
        """The schedule after the overrides: floor, threshold, scale."""
        floor, threshold, scale = SCHEDULES[self.schedule]
        return (
            floor if self.floor is None else self.floor,
            threshold if self.threshold is None else self.threshold,
            scale if self.scale is None else self.scale,
        )

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """w(u) in force, with the named schedules beside it (PW-OPSD's Figure 2)."""

        def drawn(values: tuple[float, float, float]) -> Callable[[float], float]:
            return lambda u: float(_weight_at(np.asarray([u], dtype=np.float32), *values)[0])

        own = self.position_schedule()
        named = next((name for name, values in SCHEDULES.items() if values == own), None)
        others = tuple((name, drawn(values)) for name, values in SCHEDULES.items() if values != own)
        note = "factor w(u) of a token's teacher, by its relative position u in the response"
        line = f"in force: {named}" if named else "in force"
        return (Schedule("Weight by position", note, POSITION, drawn(own), line, others),)

    def weight(self, response_mask: torch.Tensor) -> torch.Tensor:
        """The weight w(u_t) under this schedule, (B, T) fp32."""
        floor, threshold, scale = self.position_schedule()
        return position_weight(response_mask, floor=floor, threshold=threshold, scale=scale)


@dataclass(frozen=True)
class PwOpsdSampledParams(PositionParams, AdditiveParams):
    """Parameters of `algorithm.pw_opsd_sampled`: beta beside the schedule."""


@token_weight("position", params=PositionParams, node="pw_opsd", share=True)
def pw_opsd_weight(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: PositionParams
) -> torch.Tensor:
    """The weight w(u_t) of Eq. 5 as the factor of a token's divergence.

    Args:
        signals: not needed.
        response_mask: (B, T), non-zero on valid tokens.
        equal_reward_rows: not needed: the rewards have no part in it.
        params: the values of `algorithm.pw_opsd`.
    """
    return params.weight(response_mask)


@estimator(
    "pw_opsd_sampled",
    params=PwOpsdSampledParams,
    needs=("log_prob_gap",),
    shows=("beta", "schedule"),
    tokens=(TokenField("weight", "w", "factor of the token's credit: small early in the response"),),
)
def pw_opsd_sampled_credit(inputs: CreditInputs, params: PwOpsdSampledParams) -> Credit:
    """A_t = A_G + beta * w(u_t) * delta_t.

    Args:
        inputs: A_G and `log_prob_gap`.
        params: the values of `algorithm.pw_opsd_sampled`.
    """
    mask = inputs.response_mask
    weight = params.weight(mask)
    gap = masked_gap(inputs)
    metrics = magnitude_metrics("credit/gap", gap, mask)
    metrics["credit/position_weight/mean"] = batch_mean(weight, mask)
    return additive_credit(inputs, params, gap.mul_(weight), metrics, {"weight": weight})
