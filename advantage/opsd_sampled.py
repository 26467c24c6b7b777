"""OPSD's sampled-token form (arXiv 2601.18734): the teacher's gap is the whole advantage of the PPO clip.

    A_t = clip(delta_t, ±gap_clip)

At the sampling policy its expected gradient is that of -KL(p_S || p_T). The verifier has no part in it. Clipping the
gap is ours, and off by default. OPSD itself is a divergence over the full vocabulary: config/method/opsd.yaml.

With `guidance` alpha above 0 the teacher is RLCSD's contrastive target (arXiv 2606.11709, section 4.3): it is shown a
right solution and guided away from wrong ones, q ~ p_right^(1 + alpha) / p_wrong^alpha. Then

    A_t = delta_t + alpha * e_t,     e_t = log p_right(o_t) - log p_wrong(o_t)

is log q(o_t) - log p_S(o_t) up to q's normaliser, which no token changes: a baseline, whose expected gradient is zero.
The paper plugs it into the full-vocabulary loss; the sampled form is ours.
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
        gap_clip: bound of |A_t| in nats; None leaves it as it is.
        guidance: alpha, how far the teacher is guided away from the contexts it is contrasted with; 0 needs none.
    """

    gap_clip: float | None = None
    guidance: float = 0.0

    def validate(self) -> None:
        """Refuse a bound or a guidance outside its range."""
        require(self.gap_clip is None or 0.0 < self.gap_clip < math.inf, "gap_clip", self.gap_clip, "positive, or null")
        require(0.0 <= self.guidance < math.inf, "guidance", self.guidance, "0 or more; 0 is OPSD")


def _signals_needed(params: OpsdSampledParams) -> tuple[str, ...]:
    return ("log_prob_gap", "contrast_gap") if params.guidance > 0 else ("log_prob_gap",)


@estimator(
    "opsd_sampled", params=OpsdSampledParams, needs=_signals_needed, uses_group=False, shows=("gap_clip", "guidance")
)
def opsd_sampled_credit(inputs: CreditInputs, params: OpsdSampledParams) -> Credit:
    """A_t = delta_t + alpha * e_t, clipped where asked.

    Args:
        inputs: `log_prob_gap`, and `contrast_gap` if there is a guidance.
        params: alpha and the bound.
    """
    gap = masked_gap(inputs)
    metrics = magnitude_metrics("credit/gap", gap, inputs.response_mask)
    if params.guidance > 0:
        gap = gap.add_(masked_gap(inputs, "contrast_gap"), alpha=params.guidance)
    if params.gap_clip is not None:
        gap = gap.clamp_(-params.gap_clip, params.gap_clip)
    return Credit(gap, metrics)
