"""Numbers that stopped being numbers: the error that ends a run before its next checkpoint, and who raises it."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class BrokenNumbers(FloatingPointError):
    """Log-probs, losses or gradients stopped being numbers; the last checkpoint is from before."""


def check_tokens(
    tensors: Mapping[str, torch.Tensor], mask: torch.Tensor, *, exact: bool, step: int, safe_ground: str
) -> None:
    """Refuse to train on numbers of tokens that are broken or too coarse.

    Args:
        tensors: name to (B, T).
        mask: (B, T) bool, valid tokens.
        exact: whether a gap is made of them, whose small median is divided by.
        step, safe_ground: for the message: the training step, and a sentence that says where the run can go on from.

    Raises:
        BrokenNumbers: if a valid token's value is NaN or infinite.
        RuntimeError: if `exact`, and a tensor is not float32.
    """
    for name, tensor in tensors.items():
        if exact and tensor.dtype != torch.float32:
            raise RuntimeError(
                f"{name} came back as {tensor.dtype}; dividing by their small median needs float32. On GPUs install "
                "flash-attn (extra 'gpu'), whose cross-entropy works in float32; see docs/precision.md"
            )
        bad = int((~tensor[mask].isfinite()).sum())
        if bad:
            raise BrokenNumbers(f"{bad} of {int(mask.sum())} {name} are NaN or infinite at step {step}. {safe_ground}")
