"""ATESD (arXiv 2605.11458) as an advantage: the gap of a teacher that sees a truncated solution.

The paper trains by a full-vocabulary divergence; what sets its teacher apart, how much of the solution it is shown, is
decided where the teacher's prompt is built. The sampled-token form (ours) is then a plain attraction,

    A_t = A_G + beta * delta_t,

with delta_t from the exposure-truncated teacher. At full exposure it is OPSD's sampled form.
"""

from __future__ import annotations

from dataclasses import dataclass

from advantage.estimators import (
    AdditiveParams,
    Credit,
    CreditInputs,
    additive_credit,
    estimator,
    magnitude_metrics,
    masked_gap,
)


@dataclass(frozen=True)
class AtesdSampledParams(AdditiveParams):
    """Parameters of `algorithm.atesd_sampled`: those of every additive estimator; the exposure is the teacher's."""


@estimator("atesd_sampled", params=AtesdSampledParams, needs=("log_prob_gap",), shows=("beta",))
def atesd_sampled_credit(inputs: CreditInputs, params: AtesdSampledParams) -> Credit:
    """A_t = A_G + beta * delta_t.

    Args:
        inputs: A_G and delta_t of a teacher that sees a truncated solution.
        params: beta.
    """
    gap = masked_gap(inputs)
    return additive_credit(inputs, params, gap, magnitude_metrics("credit/gap", gap, inputs.response_mask))
