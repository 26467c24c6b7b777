"""SDPO (arXiv 2601.20802): every response that has a teacher is distilled, and the mean is over their tokens.

The teacher is the policy under a prompt with the first successful other response of the group, or with feedback. Where
there is neither the response is left out, of the mean's denominator too. The divergence itself is `self_distill.loss`.

As a factor of the tokens' divergences under a mean over all N valid tokens (`token_mean`) that is

    w_t = 1[the response has a teacher] * N / N_taught

Ours: N and N_taught are counted over the global batch; the release counts them over each micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from advantage.estimators import EstimatorParams
from advantage.segments import batch_mean
from advantage.signals import Signals
from advantage.token_weights import token_weight


@dataclass(frozen=True)
class TaughtParams(EstimatorParams):
    """Parameters of the weight `taught`: none."""


@token_weight("taught", params=TaughtParams)
def taught_weight(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: TaughtParams
) -> torch.Tensor:
    """N / N_taught in responses with a teacher, 0 elsewhere, (B, T) fp32; the rewards have no part in it."""
    taught = signals.taught(response_mask)
    share = batch_mean(taught, response_mask)
    return taught.float() / share if share > 0 else torch.zeros_like(taught, dtype=torch.float32)
