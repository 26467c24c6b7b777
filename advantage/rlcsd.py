"""RLCSD (arXiv 2606.11709): the verifier's advantage, moved by what a right hint says against wrong ones.

    e_t = log p_T(o_t | right) - log (1/K) sum_k p_T(o_t | wrong k),     r_t = clip(beta * lambda * tanh(e_t / tau), ±c)

Both kinds of hint are responses of the same group under one template, so what any hint does to the style cancels.
Tokens with |r_t| > threshold are kept: there A'_t = A_G + r_t, held on A_G's side of zero; elsewhere A'_t = A_G. The
two kinds of token are averaged apart, and loss = loss of the others + eta * loss of the kept ones.

Here that is one advantage under the loss's mean over tokens (`token-mean`): A'_t of the kept is multiplied by
eta * N / n_kept, that of the others by N / n_others, with N valid tokens. Positive factors pass through the PPO clip.
Ours: the tokens are counted over the global batch, not over a micro-batch. Responses without a right or a wrong sibling
keep A_G; the release leaves them out of the batch. With no token kept this is GRPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from advantage.estimators import Credit, CreditInputs, EstimatorParams, estimator, magnitude_metrics, masked_gap
from advantage.labels import Metric, TokenField
from advantage.params import require
from advantage.segments import batch_abs_mean, batch_mean


@dataclass(frozen=True)
class RlcsdParams(EstimatorParams):
    """Parameters of `algorithm.rlcsd`; the defaults are the release's, whose names are in brackets.

    Attributes:
        scale: tau (rlcsd_tau), nats: gaps beyond it count nearly in full.
        beta: beta (rlcsd_beta); only its product with lambda counts.
        mix: lambda (rlcsd_lam), in [0, 1].
        correction_clip: c (rlcsd_residual_clip_low and _high), the bound of |r|.
        threshold: tokens with |r| at most this are not kept (rlcsd_delta).
        kept_weight: eta (rlcsd_eta), the weight of the kept tokens' mean.
    """

    scale: float = 0.02
    beta: float = 1.0
    mix: float = 0.5
    correction_clip: float = 2.0
    threshold: float = 0.02
    kept_weight: float = 1.0

    def validate(self) -> None:
        """Refuse a parameter outside its range."""
        require(0.0 < self.scale < math.inf, "scale", self.scale, "a positive number of nats")
        require(0.0 <= self.beta < math.inf, "beta", self.beta, "finite, 0 or more (0 is GRPO)")
        require(0.0 <= self.mix <= 1.0, "mix", self.mix, "in [0, 1]; 0 is GRPO")
        require(0.0 < self.correction_clip < math.inf, "correction_clip", self.correction_clip, "positive and finite")
        require(0.0 <= self.threshold < math.inf, "threshold", self.threshold, "finite, 0 or more")
        require(0.0 <= self.kept_weight < math.inf, "kept_weight", self.kept_weight, "finite, 0 or more")


@estimator(
    "rlcsd",
    params=RlcsdParams,
    needs=("contrast_gap",),
    shows=("beta", "mix", "scale", "threshold"),
    tokens=(
        TokenField("contrast", "e", "right hint against wrong ones, nats: positive where the right one favours it"),
        TokenField("correction", "r", "what was added to the group advantage before it was held on its side of zero"),
    ),
    metrics=(
        Metric(
            "credit/kept_share",
            "Share of tokens that the contrast moves",
            "the others keep the group advantage",
            line="share",
            percent=True,
            from_zero=True,
        ),
    ),
)
def rlcsd_credit(inputs: CreditInputs, params: RlcsdParams) -> Credit:
    """A'_t, so weighed that its mean over all tokens is the others' mean plus eta times the kept tokens' mean.

    Args:
        inputs: A_G and `contrast_gap`.
        params: the values of `algorithm.rlcsd`.
    """
    mask, anchor = inputs.response_mask, inputs.group_advantage
    contrast = masked_gap(inputs, "contrast_gap")
    residual = params.beta * params.mix * torch.tanh(contrast / params.scale)
    residual.clamp_(-params.correction_clip, params.correction_clip)
    kept = inputs.taught(mask) & (residual.abs() > params.threshold)
    correction = torch.where(kept, residual, 0.0)
    moved = anchor + correction
    # Equal rewards say nothing, so nothing may be added to them either: A_G's sign is then none.
    sign = torch.sign(anchor).masked_fill(inputs.equal_reward_rows[:, None], 0.0)
    held = torch.where(sign > 0, moved.clamp(min=0.0), torch.where(sign < 0, moved.clamp(max=0.0), 0.0))
    share = batch_mean(kept, mask)
    of_kept = params.kept_weight / share if share > 0 else 0.0
    of_others = 1.0 / (1.0 - share) if share < 1 else 0.0
    advantages = torch.where(kept, held * of_kept, anchor * of_others)
    metrics = {
        **magnitude_metrics("credit/contrast", contrast, mask),
        **magnitude_metrics("credit/correction", correction, mask),
        "credit/kept_share": share,
        "credit/group_advantage/mean": batch_abs_mean(anchor, mask),
    }
    return Credit(advantages, metrics, {"contrast": contrast, "correction": correction})
