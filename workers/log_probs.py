"""Log-probs of tokens in single precision, where flash-attn's cross-entropy is absent.

verl's own way without that kernel takes one row of the logits at a time (on a CPU a fifth of an update), and gives
log-probs in the logits' precision: in bfloat16 they are off by 1e-3 to 1.5e-2 nat (docs/precision.md).  Here rows are
taken in blocks, sums are in fp32 whatever the logits are, and the backward pass keeps nothing but the logits
themselves.  `workers.register` puts `from_logits` in the place of verl's function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 24  # of the logits that are in fp32 at a time: 64 MiB


def from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) under softmax(logits), (...,) in fp32, or in fp64 for logits in fp64; differentiable.

    Args:
        logits: (..., V).
        labels: (...,) int64.
    """
    rows = _LogProbs.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return rows.view(labels.shape)


def _blocks(logits: Tensor) -> int:
    return max(BLOCK_ELEMENTS // logits.shape[-1], 1)


class _LogProbs(torch.autograd.Function):
    """(N, V) logits, (N,) labels -> (N,) log-probs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        sums = [rows.to(precise).logsumexp(-1) for rows in logits.split(_blocks(logits))]
        log_sum = torch.cat(sums) if sums else logits.new_zeros(0, dtype=precise)
        ctx.save_for_backward(logits, labels, log_sum)
        return logits.gather(-1, labels[:, None]).squeeze(-1).to(precise) - log_sum

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_sum = ctx.saved_tensors
        result = torch.empty_like(logits)
        size = _blocks(logits)
        parts = (x.split(size) for x in (logits, labels[:, None], log_sum[:, None], gradient[:, None], result))
        for rows, label, total, factor, target in zip(*parts, strict=True):
            # (onehot − p) · gradient
            part = rows.to(total.dtype).sub(total).exp_().mul_(-factor)
            target.copy_(part.scatter_add_(-1, label, factor))
        return result, None
