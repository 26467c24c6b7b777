"""Where a response is uncertain, as a share between 0 and 1: for mixing two divergences token by token (ours).

    a_t = sigmoid((H_t - tau_rho) / (MAD(H) + eps)),      or 1 - a_t with `of="certain"`

per response over its valid tokens, with the quantities of DASD's router (arXiv 2605.22263, section 4). As the share of
the forward KL it lets the student cover what the teacher might say where it is uncertain itself, and keeps it from
spreading (reverse KL) where it is not; EOPD (arXiv 2603.07079) switches between the two by the teacher's entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from advantage.checks import check_finite, check_shape
from advantage.estimators import EstimatorParams
from advantage.params import require
from advantage.segments import Tokens, map_rows, mean_abs_deviation, quantile, sigmoid
from advantage.signals import Signals
from advantage.token_weights import token_weight


@dataclass(frozen=True)
class EntropyShareParams(EstimatorParams):
    """Parameters of `algorithm.entropy_share`, all ours.

    Attributes:
        quantile: rho, the quantile of a response's entropies at which the share is one half.
        entropy_eps: floor in nats under the entropies' mean absolute deviation, positive.
        of: "uncertain": high where the entropy is; "certain": the reverse.
    """

    quantile: float = 0.5
    entropy_eps: float = 0.1
    of: str = "uncertain"

    def validate(self) -> None:
        """Refuse a quantile, a floor or a side that is out of its range."""
        require(0.0 <= self.quantile <= 1.0, "quantile", self.quantile, "in [0, 1]")
        require(0.0 < self.entropy_eps < math.inf, "entropy_eps", self.entropy_eps, "positive and finite")
        require(self.of in ("uncertain", "certain"), "of", self.of, "uncertain or certain")


@token_weight("entropy", params=EntropyShareParams, node="entropy_share", needs=("entropy",), share=True)
def entropy_share(
    signals: Signals, response_mask: torch.Tensor, equal_reward_rows: torch.Tensor, params: EntropyShareParams
) -> torch.Tensor:
    """a_t, (B, T) fp32; the rewards have no part in it.

    Args:
        signals: the student's entropy, (B, T) in nats.
        response_mask: (B, T) bool.
        equal_reward_rows: (B,) bool, not used.
        params: the quantile, the floor in nats, and which side is high.
    """
    entropy = signals.signal("entropy")
    check_shape("entropy", entropy, response_mask)
    check_finite("entropy", entropy, response_mask)
    sign = 1.0 if params.of == "uncertain" else -1.0

    def trajectory(count: int, entropies: Tokens) -> tuple[Tokens]:
        above = entropies.astype(np.float64) - quantile(entropies, params.quantile)
        return (sigmoid(sign * above / (mean_abs_deviation(entropies) + params.entropy_eps)),)

    (share,) = map_rows(trajectory, response_mask, entropy)
    return share
