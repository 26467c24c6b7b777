"""OPSD's sampled-token form (arXiv 2601.18734): the teacher's gap is the whole advantage of the PPO clip.

    A_t = clip(delta_t, ±gap_clip)

At the sampling policy its expected gradient is that of -KL(p_S || p_T). The verifier has no part in it. Clipping the
gap is ours, and off by default. OPSD itself is a divergence over the full vocabulary: config/method/opsd.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from advantage.estimators import Credit, CreditInputs, EstimatorParams, estimator, magnitude_metrics, masked_gap
from advantage.params import require


@dataclass(frozen=True)
class OpsdSampledParams(EstimatorParams):
    """Parameters of `algorithm.opsd_sampled`.

    Attributes:
        gap_clip: bound of |delta_t| in nats; None leaves it as it is.
    """

    gap_clip: float | None = None

    def validate(self) -> None:
        require(self.gap_clip is None or 0.0 < self.gap_clip < math.inf, "gap_clip", self.gap_clip, "positive, or null")


@estimator("opsd_sampled", params=OpsdSampledParams, needs=("log_prob_gap",), shows=("gap_clip",))
def opsd_sampled_credit(inputs: CreditInputs, params: OpsdSampledParams) -> Credit:
    """A_t = delta_t, clipped where asked."""
    gap = masked_gap(inputs)
    metrics = magnitude_metrics("credit/gap", gap, inputs.response_mask)
    if params.gap_clip is not None:
        gap = gap.clamp_(-params.gap_clip, params.gap_clip)
    return Credit(gap, metrics)
