"""EOPD, entropy-aware on-policy distillation (arXiv 2603.07079): forward KL where the teacher itself is uncertain.

    L_t = PPO clip on A_t  +  1[H_T > threshold] * KL(p_T || p_S) over the teacher's top k
    A_t = log p_T(o_t) - log p_old(o_t)

The first term is the sampled-token form of the reverse KL on all tokens (`opsd_sampled`); the second is added, not put
in its place, where the teacher's distribution is broad and the mode-seeking first one would keep a single branch of it.
Both are means over all valid tokens.

Here stands the gate, as the factor of a token's divergence. H_T is the teacher's entropy over its full vocabulary, by
the pass that scores the sampled tokens: at the rollout's temperature, which is then the loss's too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.checks import check_finite
from advantage.estimators import EstimatorParams
from advantage.params import require
from advantage.signals import Signals
from advantage.token_weights import token_weight


@dataclass(frozen=True)
class EopdParams(EstimatorParams):
    """Parameters of `algorithm.eopd`.

    Attributes:
        entropy_threshold: tau, nats. Infinity never opens the gate; below 0 it is always open.
    """

    entropy_threshold: float = 0.8

    def validate(self) -> None:
        require(
            self.entropy_threshold > -math.inf,
            "entropy_threshold",
            self.entropy_threshold,
            "a number of nats; -1 opens the gate everywhere, .inf nowhere",
        )


@token_weight("eopd", params=EopdParams, needs=("teacher_entropy",))
def eopd_weight(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: EopdParams
) -> torch.Tensor:
    """1[H_T > threshold], (B, T) fp32; the rewards have no part in it."""
    entropy = signals.signal("teacher_entropy")
    taught = signals.taught(response_mask)
    check_finite("teacher_entropy", entropy, taught)
    return ((entropy > params.entropy_threshold) & taught).float()
