"""How losses of single tokens become their mean over the global mini-batch, whatever its micro-batches and workers."""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("token_mean", "sequence_mean")


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown; use one of {', '.join(REDUCTIONS)}")


def reduction_count(response_mask: Tensor, reduction: str) -> Tensor:
    """What this part of the batch adds to the mean's denominator, an int64 scalar.

    Sum it over all micro-batches and data-parallel ranks of the mini-batch, *before* the first backward pass, and give
    the sum to `reduction_weights`.

    Args:
        response_mask: (B, T), 0/1 or bool.
        reduction: "token_mean" counts valid tokens; "sequence_mean" counts rows with at least one valid token (so
            padding rows do not count).
    """
    _check_reduction(reduction)
    mask = response_mask.bool()
    return mask.sum() if reduction == "token_mean" else mask.any(-1).sum()


def reduction_weights(
    response_mask: Tensor,
    reduction: str,
    *,
    global_count: int | Tensor,
    dp_size: int = 1,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Weights of tokens such that Σ w · ℓ summed over every micro-batch and rank is the global mean exactly.

    A row must lie in one micro-batch whole (verl never splits one).  For packed tokens take `weights[mask]`, which is
    in row order.

    Args:
        response_mask: (B, T), 0/1 or bool.
        reduction: "token_mean": every valid token weighs 1 / (valid tokens of the global batch), OPSD's pool of tokens.
            "sequence_mean": 1 / (own length · sequences of the global batch), PW-OPSD §3.4, and eq. 1 of ATESD as
            written.
        global_count: `reduction_count` summed over the global (mini-)batch.
        dp_size: number of data-parallel ranks *where gradients are averaged over ranks*, as FSDP and DDP do: that
            average divides the sum by dp_size, so each rank's loss is multiplied by it.  Leave 1 where gradients are
            summed, or to compute the loss itself.
        token_weights: (B, T) factors, e.g. PW-OPSD's w(u); the weights are not renormalised by them.

    Returns:
        (B, T) fp32, zero outside the mask.

    Raises:
        ValueError: if shapes do not match, or global_count is less than this part's own count.
    """
    _check_reduction(reduction)
    mask = response_mask.to(torch.float32)
    if mask.dim() != 2:
        raise ValueError(f"response_mask has shape {tuple(response_mask.shape)}, expected (B, T)")
    if token_weights is not None and token_weights.shape != mask.shape:
        raise ValueError(
            f"token_weights has shape {tuple(token_weights.shape)}, expected response_mask's {tuple(mask.shape)}"
        )
    lengths = mask.sum(-1, keepdim=True)
    own = lengths.sum() if reduction == "token_mean" else (lengths > 0).sum()
    if float(own) > float(global_count):
        raise ValueError(
            f"global_count={int(global_count)} is less than this part's own count {int(own)}; sum reduction_count over "
            "all micro-batches and ranks"
        )
    # fp64 until the end: the product of two rounded reciprocals would be off by an ulp more than their quotient.
    denominator = torch.as_tensor(global_count, dtype=torch.float64, device=mask.device).clamp(min=1.0)
    if reduction == "sequence_mean":
        denominator = denominator * lengths.double().clamp(min=1.0)
    weights = (mask.double() * dp_size / denominator).float()
    return weights if token_weights is None else weights * token_weights.float()
