"""Input checks shared by every estimator: shapes, masks and non-finite values.

They exist so that a bad signal stops the step with its name and place, instead of reaching the policy as a NaN
advantage. Only valid response tokens are looked at: whatever stands in the padding, NaN included, is ignored.
"""

from __future__ import annotations

import torch


class NonFiniteSignalError(ValueError):
    """A valid response token carries NaN or infinity. Its own type, so that a trainer can save before it stops."""


def as_mask(response_mask: torch.Tensor) -> torch.Tensor:
    """The (B, T) response mask as bool; any non-zero entry is a valid token.

    Raises:
        ValueError: the mask is not a two-dimensional tensor.
    """
    if not isinstance(response_mask, torch.Tensor) or response_mask.dim() != 2:
        got = tuple(response_mask.shape) if isinstance(response_mask, torch.Tensor) else type(response_mask).__name__
        raise ValueError(f"response_mask must be a (batch, response length) tensor, got {got}")
    return response_mask if response_mask.dtype == torch.bool else response_mask != 0


def require_shape(name: str, value: torch.Tensor, mask: torch.Tensor) -> None:
    """Check that a token signal is a tensor of the mask's (B, T) shape.

    Raises:
        ValueError: otherwise; the message names the signal and both shapes.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} but response_mask has shape {tuple(mask.shape)}: both must be "
            "(batch, response length), padded the same way and with rows in the same order"
        )


def masked_float32(name: str, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A detached (B, T) fp32 copy of a token signal, zero outside the mask and finite inside it.

    bf16 and fp16 are upcast here, before any statistic: dividing by a small median in half precision ruins the result.

    Raises:
        ValueError: wrong shape.
        NonFiniteSignalError: NaN or infinity on a valid token.
    """
    require_shape(name, value, mask)
    clean = torch.where(mask, value.detach().to(torch.float32), 0.0)
    require_finite(name, clean)
    return clean


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raise unless every entry of a (B, T) tensor is finite.

    Raises:
        NonFiniteSignalError: names the signal, how many tokens are bad and where the first one is.
    """
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()
    row, position = (int(i) for i in bad[0])
    raise NonFiniteSignalError(
        f"{name} is not finite on {len(bad)} of the valid response tokens; the first is row {row}, position {position} "
        f"({float(value[row, position])}). Log-probabilities of -inf usually mean a token that was sampled under other "
        "weights or filters than it is scored with; NaN usually means that the weights have diverged"
    )
