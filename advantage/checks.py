"""Input checks shared by every estimator: shapes, masks and non-finite values.

They exist so that a bad signal stops the step with its name and place, instead of reaching the policy as a NaN
advantage. Only valid response tokens are looked at: whatever stands in the padding, NaN included, is ignored.
"""

from __future__ import annotations

import numpy as np
import torch


class NonFiniteSignalError(ValueError):
    """A valid response token carries NaN or infinity. Its own type, so that a trainer can save before it stops."""


def as_mask(response_mask: torch.Tensor) -> torch.Tensor:
    """The (B, T) response mask as bool; any non-zero entry is a valid token.

    Raises:
        ValueError: if the mask is not a two-dimensional tensor.
    """
    if not isinstance(response_mask, torch.Tensor) or response_mask.dim() != 2:
        got = tuple(response_mask.shape) if isinstance(response_mask, torch.Tensor) else type(response_mask).__name__
        raise ValueError(f"response_mask must be a (batch, response length) tensor, got {got}")
    return response_mask if response_mask.dtype == torch.bool else response_mask != 0


def check_shape(name: str, value: torch.Tensor, mask: torch.Tensor) -> None:
    """Refuse a token signal that is not a tensor of the mask's (B, T) shape.

    Args:
        name: what the message calls the signal.
        value: the signal.
        mask: (B, T).

    Raises:
        ValueError: if it is not; names the signal and both shapes.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} but response_mask has shape {tuple(mask.shape)}: both must be "
            "(batch, response length), padded the same way and with rows in the same order"
        )


def check_finite(name: str, value: torch.Tensor, mask: torch.Tensor) -> None:
    """Refuse a (B, T) tensor that is not finite on every valid token.

    Args:
        name: what the message calls the signal.
        value: the signal, of any floating dtype.
        mask: (B, T), non-zero on valid tokens.

    Raises:
        NonFiniteSignalError: if it is not; names the signal, how many tokens are bad and where the first one is.
    """
    mask = as_mask(mask)
    # numpy: torch's isfinite makes several full-size temporaries of a (B, T) tensor, this makes one of bytes.
    finite = np.isfinite(value.detach().to(device="cpu", dtype=torch.float32).numpy())
    finite |= ~mask.cpu().numpy()
    if finite.all():
        return
    places = np.argwhere(~finite)
    row, position = (int(i) for i in places[0])
    raise NonFiniteSignalError(
        f"{name} is not finite on {len(places)} of {int(mask.sum())} valid response tokens; the first is row {row}, "
        f"position {position} ({float(value[row, position])}). A log-probability of -inf usually means that the token "
        "was sampled with other weights or filters than it is scored with; NaN, that the weights have diverged"
    )


def masked_float32(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A detached fp32 copy of a (B, T) tensor, zero outside the mask.

    bf16 and fp16 are upcast here, before any statistic: dividing by a small median in half precision ruins the result.

    Args:
        value: a tensor of any dtype.
        mask: (B, T), non-zero on valid tokens.
    """
    return torch.where(as_mask(mask), value.detach().to(torch.float32), 0.0)
