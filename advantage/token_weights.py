"""Factors of the tokens' divergences: PW-OPSD's w(u) and DASD's ω, from the parameters of the estimators of that name.

Computed once a step for the global batch, from the scores at the rollout's weights, and held over its mini-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from advantage.dasd import DasdParams, direction_coefficient, inverse_frequency_signal
from advantage.estimators import equal_reward_rows, params_from_config
from advantage.pw_opsd import PwOpsdParams, position_weight
from advantage.segments import batch_mean
from advantage.signals import TokenSignals


def token_weights(
    weighting: str,
    algorithm: Any,
    response_mask: torch.Tensor,
    signals: TokenSignals,
    *,
    scores: torch.Tensor,
    groups: Sequence[Any],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Factors (B, T) fp32, zero outside the mask, and metrics.

    Args:
        weighting: "position" (PW-OPSD, Eq. 5; `algorithm.pw_opsd`) or "dasd" (DASD, Eq. 4 in its Eq. 5;
            `algorithm.dasd`, of which `beta` is replaced by `self_distill.loss.coefficient`).
        algorithm: the configuration's node of that name.
        response_mask: (B, T) bool.
        signals: what the weights are made of; "dasd" needs `log_prob_gap` and its router's signal.
        scores: (B,) rewards, and groups: the label of each row's group; for `mask_zero_variance_groups`.
    """
    if weighting == "position":
        pw = cast(PwOpsdParams, params_from_config("pw_opsd", algorithm))
        floor, threshold, scale = pw.position_schedule()
        weights = position_weight(response_mask, floor=floor, threshold=threshold, scale=scale)
    elif weighting == "dasd":
        dasd = cast(DasdParams, params_from_config("dasd", algorithm))
        weights = _dasd_omega(dasd, response_mask, signals)
        if dasd.mask_zero_variance_groups:
            weights[equal_reward_rows(scores, groups)] = 0.0
    else:
        raise ValueError(f"weighting={weighting!r}: must be position or dasd")
    return weights, {
        "divergence/weight/mean": batch_mean(weights, response_mask),
        "divergence/weight/positive_share": batch_mean(weights > 0, response_mask),
    }


def _dasd_omega(params: DasdParams, mask: torch.Tensor, signals: TokenSignals) -> torch.Tensor:
    """ω_t (B, T) of DASD's Eq. 4, signed: positive attracts to the teacher, negative repels."""
    router_signal = None
    if params.direction != "constant" and params.router == "token_frequency":
        router_signal = inverse_frequency_signal(signals.token_ids, mask, signals.token_counts)
    elif params.direction != "constant" and params.router == "external":
        router_signal = signals.router_signal
    omega, _ = direction_coefficient(
        signals.entropy if params.router == "entropy" else None,
        signals.log_prob_gap,
        mask,
        router_quantile=params.router_quantile,
        gap_eps=params.gap_eps,
        entropy_eps=params.entropy_eps,
        gap_clip=params.gap_clip,
        router=params.router,
        router_signal=router_signal,
        direction=params.direction,
        constant=params.constant,
        gate=params.gate,
        gate_threshold=params.gate_threshold,
        deviation=params.deviation,
    )
    return omega
