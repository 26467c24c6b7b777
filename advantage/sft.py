"""SFT: supervised fine-tuning on the data's solutions, a row of ATESD's Table 1 (arXiv 2605.11458).

    A_t = 1

on every token of a reference that stands in the place of a response (`self_distill.responses=reference`), for verl's
loss `gpg`, -A_t log p_S(o_t): the cross-entropy. In PPO's clip, verl's `vanilla`, the gradient is the cross-entropy's
in a step's first mini-batch only.
"""

from __future__ import annotations

from dataclasses import dataclass

from advantage.estimators import Credit, CreditInputs, EstimatorParams, estimator


@dataclass(frozen=True)
class SftParams(EstimatorParams):
    """Parameters of `algorithm.sft`: none."""


@estimator("sft", params=SftParams, uses_group=False)
def sft_credit(inputs: CreditInputs, params: SftParams) -> Credit:
    """One on every valid token.

    Args:
        inputs: the mask.
        params: none.
    """
    return Credit(inputs.response_mask.float(), {})
