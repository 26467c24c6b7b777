"""SRPO (arXiv 2604.02288): the verifier trains what it can, the teacher corrects what failed.

Responses are routed by their reward (section 3.1), c_i being 1 where the verifier accepts one and m_i where there is
something to show its teacher:

    distilled_i = (1 - c_i) * m_i         the others, failed ones without a teacher too, keep A_G

`self_distill.teacher.teaches=failed` is that route: a response has a teacher exactly where distilled_i is 1. Then

    A_t = A_G * (1 - distilled_i)         in the PPO clip
    w_t = distilled_i * exp(-beta * H_T) / mean over the distilled tokens of exp(-beta * H_T)

is the factor of a token's divergence, SDPO's (section 3.2): where the teacher itself is uncertain it corrects little.
Both terms are means over the same tokens (section 3.3), all valid ones of the global mini-batch
(`loss_agg_mode=token-mean`, `token_mean`). Ours: the mean of the weights is over the global batch.

With all responses accepted this is GRPO; with none, a teacher for each and beta = 0, it is SDPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.checks import check_finite, masked_float32
from advantage.estimators import Credit, CreditInputs, EstimatorParams, estimator
from advantage.labels import Metric, TokenField
from advantage.params import require
from advantage.segments import batch_abs_mean, batch_mean
from advantage.signals import Signals
from advantage.token_weights import token_weight


@dataclass(frozen=True)
class SrpoParams(EstimatorParams):
    """Parameters of `algorithm.srpo`, of the credit and of the divergence's weight.

    Attributes:
        entropy_sharpness: beta, 1/nat: how fast a token's weight falls with the teacher's entropy; 0 weighs all alike.
    """

    entropy_sharpness: float = 1.0

    def validate(self) -> None:
        """Refuse a sharpness that is negative or not finite."""
        require(
            0.0 <= self.entropy_sharpness < math.inf,
            "entropy_sharpness",
            self.entropy_sharpness,
            "finite, 0 or more; 0 weighs all tokens alike",
        )


@estimator(
    "srpo",
    params=SrpoParams,
    needs=("has_teacher",),
    shows=("entropy_sharpness",),
    tokens=(
        TokenField("distilled", "z", "1 where the teacher corrects the response, 0 where the verifier trains it", 1.0),
    ),
    metrics=(
        Metric(
            "credit/distilled_share",
            "Tokens that the teacher corrects",
            "of failed responses with something to show it; the others keep the group advantage",
            line="share",
            percent=True,
            from_zero=True,
        ),
    ),
)
def srpo_credit(inputs: CreditInputs, params: SrpoParams) -> Credit:
    """A_G in responses without a teacher, 0 in those that it corrects.

    Args:
        inputs: the group's advantage A_G, (B, T) fp32, and which responses have a teacher.
        params: not used here; they are the weight's.
    """
    mask = inputs.response_mask
    distilled = inputs.taught(mask)
    metrics = {
        "credit/distilled_share": batch_mean(distilled, mask),
        "credit/group_advantage/mean": batch_abs_mean(inputs.group_advantage, mask),
    }
    return Credit(inputs.group_advantage.masked_fill(distilled, 0.0), metrics, {"distilled": distilled.float()})


@token_weight("srpo", params=SrpoParams, needs=("has_teacher", "teacher_entropy"))
def srpo_weight(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: SrpoParams
) -> torch.Tensor:
    """exp(-beta * H_T) over its mean in the distilled tokens, 0 elsewhere, (B, T) fp32.

    Args:
        signals: ``teacher_entropy`` H_T, (B, T) in nats, and which responses have a teacher.
        response_mask: (B, T) bool.
        equal_reward_rows: (B,) bool, not used.
        params: beta, in 1/nat.
    """
    distilled = signals.taught(response_mask)
    entropy = signals.signal("teacher_entropy")
    check_finite("teacher_entropy", entropy, distilled)
    weights = torch.exp(-params.entropy_sharpness * masked_float32(entropy, distilled)).masked_fill(~distilled, 0.0)
    mean = batch_mean(weights, distilled)
    return weights / mean if mean > 0 else weights
