"""HEPO: policy gradient on the high-entropy "forking" tokens only (arXiv 2506.01939). Verifier-only, with no teacher.

    A_t = A_G * w_t * N / sum(w),     w_t = 1[H_t >= tau]
    tau = the (1 - rho) quantile of H over all valid tokens of the global batch

The name is that of DASD's tables. Their text says "updates high-entropy tokens more strongly"; the paper that it cites
keeps the top 20 % and nothing else, which is the default. Its release takes the quantile over each micro-batch; here it
is over the global batch, so that it does not depend on how a batch is cut.

A token with zero advantage adds nothing to the PPO term. With N valid tokens in the batch, N / sum(w) turns the loss's
mean over all tokens (`token-mean`) into the one over the kept tokens, as in the release. The soft weight,
sigmoid((H_t - tau) / softness), is ours; it tends to the indicator as softness goes to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.estimators import Credit, CreditInputs, EstimatorParams, estimator, masked_signal
from advantage.labels import Metric, TokenField
from advantage.params import require
from advantage.segments import batch_abs_mean, batch_mean, batch_quantile


@dataclass(frozen=True)
class HepoParams(EstimatorParams):
    """Parameters of `algorithm.hepo`.

    Attributes:
        entropy_share: rho, the share of tokens that is kept; 1 is GRPO.
        weighting: "hard" (the indicator) or "soft".
        softness: width of the soft weight, nats.
    """

    entropy_share: float = 0.2
    weighting: str = "hard"
    softness: float = 0.1

    def validate(self) -> None:
        """Refuse a share, a weighting or a width outside its range."""
        require(0.0 < self.entropy_share <= 1.0, "entropy_share", self.entropy_share, "in (0, 1]; 1 is GRPO")
        require(self.weighting in ("hard", "soft"), "weighting", self.weighting, "'hard' or 'soft'")
        require(0.0 < self.softness < math.inf, "softness", self.softness, "a positive number of nats")


@estimator(
    "hepo",
    params=HepoParams,
    needs=("entropy",),
    shows=("entropy_share", "weighting"),
    tokens=(TokenField("weight", "w", "factor of the group advantage: zero where the student is sure", 1.0),),
    metrics=(
        Metric(
            "credit/entropy_threshold",
            "Entropy threshold",
            "tokens below it are not trained, nats",
            line="τ",
            from_zero=True,
        ),
    ),
)
def hepo_credit(inputs: CreditInputs, params: HepoParams) -> Credit:
    """A_t = A_G times the weight of the token's entropy, over that weight's mean in the batch.

    Args:
        inputs: A_G and `entropy`.
        params: the values of `algorithm.hepo`.
    """
    mask = inputs.response_mask
    entropy = masked_signal(inputs, "entropy")
    threshold = batch_quantile(entropy, mask, 1.0 - params.entropy_share)
    if params.weighting == "hard":
        weight = (entropy >= threshold).to(torch.float32)
    else:
        weight = torch.sigmoid((entropy - threshold) / params.softness)
    mean = batch_mean(weight, mask)
    metrics = {
        "credit/entropy_threshold": threshold,
        "credit/weight/mean": mean,
        "credit/group_advantage/mean": batch_abs_mean(inputs.group_advantage, mask),
    }
    advantages = inputs.group_advantage * (weight / mean if mean > 0 else weight)
    return Credit(advantages, metrics, {"weight": weight})
