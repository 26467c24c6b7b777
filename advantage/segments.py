"""Statistics of each response over its own valid tokens, and of a whole batch, on padded (B, T) tensors.

A response is a row; which of its tokens count is given by a mask that may have holes. Results depend on the valid
tokens alone: not on how much padding there is, on what stands in it, or on the other rows. All of it is exact (no
histograms, no sampling): order statistics by selection, sums in fp64, results in fp32.

Speed: rows are visited in blocks of similar length. Within a block one partition finds the wanted rank of every row at
once: the padding of each row is filled with as many -inf, and +inf for the rest, as bring that row's rank to the same
column. There is no loop over rows and no sort. Selection runs on the host, through numpy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from advantage.checks import as_mask

BLOCK_ELEMENTS = 1 << 19  # 2 MiB of fp32: a block and its partition copy stay in a core's cache


def token_counts_per_row(response_mask: torch.Tensor) -> torch.Tensor:
    """Number of valid tokens |o| of each row: (B,) int64."""
    return as_mask(response_mask).sum(dim=-1)


def relative_position(response_mask: torch.Tensor) -> torch.Tensor:
    """u_t = (t - 0.5) / L, with t the 1-based index among the row's own L valid tokens: (B, T) fp32, 0 outside."""
    mask = as_mask(response_mask)
    length = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    index = mask.cumsum(dim=-1, dtype=torch.int32)
    return torch.where(mask, (index.to(torch.float32) - 0.5) / length, 0.0)


def row_quantile(values: torch.Tensor, response_mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Per-row quantile over valid tokens, with linear interpolation between neighbouring ranks (numpy's default).

    Args:
        values: (B, T), any float dtype; must be finite on valid tokens.
        response_mask: (B, T), non-zero on valid tokens.
        quantile: in [0, 1]; 0.5 is the median (the mean of the middle two for an even count, unlike `torch.median`).

    Returns:
        (B,) fp32, zero for a row with no valid token.

    Raises:
        ValueError: quantile outside [0, 1].
    """
    _check_quantile(quantile)
    out = np.zeros(values.shape[0], dtype=np.float32)
    for rows, block, valid, counts in _blocks(values, response_mask):
        out[rows] = _block_quantile(block, valid, counts, quantile)
    return torch.from_numpy(out).to(values.device)


def row_median(values: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Per-row 0.5 quantile over valid tokens: (B,) fp32, zero for a row with no valid token."""
    return row_quantile(values, response_mask, 0.5)


def row_mean(values: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Per-row mean over valid tokens, summed in fp64: (B,) fp32, zero for a row with no valid token."""
    out = np.zeros(values.shape[0], dtype=np.float32)
    for rows, block, valid, counts in _blocks(values, response_mask):
        out[rows] = _block_mean(block, valid, counts)
    return torch.from_numpy(out).to(values.device)


def row_mean_abs_deviation(
    values: torch.Tensor, response_mask: torch.Tensor, *, center: str = "mean"
) -> torch.Tensor:
    """Per-row mean absolute deviation, mean_t |x_t - center(x)|, over valid tokens.

    Args:
        values: (B, T), any float dtype; must be finite on valid tokens.
        response_mask: (B, T), non-zero on valid tokens.
        center: "mean" (the DASD paper's MeanAbsDev as it is usually defined) or "median".

    Returns:
        (B,) fp32; zero for a row with no valid token, and exactly zero where all valid values are equal.

    Raises:
        ValueError: unknown center.
    """
    if center not in ("mean", "median"):
        raise ValueError(f"center={center!r}: must be 'mean' or 'median'")
    out = np.zeros(values.shape[0], dtype=np.float32)
    for rows, block, valid, counts in _blocks(values, response_mask):
        if center == "mean":
            middle = _block_mean(block, valid, counts)
        else:
            middle = _block_quantile(block, valid, counts, 0.5)
        deviation = np.subtract(block, middle[:, None], dtype=np.float64)
        np.abs(deviation, out=deviation)
        out[rows] = _block_mean(deviation, valid, counts)
    return torch.from_numpy(out).to(values.device)


def batch_quantile(values: torch.Tensor, response_mask: torch.Tensor, quantile: float) -> float:
    """Quantile over all valid tokens of the batch, with linear interpolation; 0.0 when there is no valid token.

    Call it on the global batch: methods that threshold on a batch quantile (HEPO, REOPOLD) change their meaning when
    it is taken per micro-batch or per rank.

    Raises:
        ValueError: quantile outside [0, 1].
    """
    _check_quantile(quantile)
    tokens = values.detach()[as_mask(response_mask)].to(torch.float32).cpu().numpy()
    if tokens.size == 0:
        return 0.0
    everything = np.ones((1, tokens.size), dtype=bool)
    return float(_block_quantile(tokens[None, :], everything, np.array([tokens.size]), quantile)[0])


def batch_mean(values: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Mean over all valid tokens of the batch, summed in fp64; 0.0 when there is no valid token."""
    mask = as_mask(response_mask)
    count = int(mask.sum())
    if count == 0:
        return 0.0
    rows = torch.where(mask, values.detach().to(torch.float32), 0.0).cpu().numpy().sum(axis=1, dtype=np.float64)
    return float(rows.sum() / count)


def _check_quantile(quantile: float) -> None:
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile={quantile}: must lie in [0, 1]")


def _blocks(
    values: torch.Tensor, response_mask: torch.Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of rows of similar extent: (row numbers, fp32 values, validity, counts). Rows with no token are left out.

    Each block is cut after its last valid column, so that the work follows the tokens there are, not the padding.
    """
    valid = as_mask(response_mask).cpu().numpy()
    host = values.detach().to(torch.float32).cpu().numpy()
    counts = valid.sum(axis=1)
    width = valid.shape[1]
    if width == 0:
        return
    extent = np.where(counts > 0, width - np.argmax(valid[:, ::-1], axis=1), 0)
    order = np.argsort(extent, kind="stable")
    start = int(np.searchsorted(extent[order], 1))
    while start < len(order):
        # The block's width is that of its last row, which is not known before its height is chosen: the first row's
        # extent sets the height, and similar lengths keep the difference small.
        height = max(1, BLOCK_ELEMENTS // int(extent[order[start]]))
        rows = np.sort(order[start : start + height])
        columns = int(extent[rows].max())
        yield rows, host[rows, :columns], valid[rows, :columns], counts[rows]
        start += height


def _block_quantile(block: np.ndarray, valid: np.ndarray, counts: np.ndarray, quantile: float) -> np.ndarray:
    """Quantile of each row of a block: (b,) fp32. Every row must have a valid token."""
    width = block.shape[1]
    rank = quantile * (counts - 1)
    lower = np.floor(rank).astype(np.int64)
    weight = rank - lower
    # Rank `lower` among the n valid values is rank `column` in the padded row once column - lower entries of its
    # padding are -inf and the others +inf. That number always lies in [0, width - n], because quantile <= 1.
    column = int(quantile * (width - 1))
    if valid.all():
        filled = block
    else:
        filler = np.where(np.cumsum(~valid, axis=1, dtype=np.int32) <= (column - lower)[:, None], -np.inf, np.inf)
        filled = np.where(valid, block, filler.astype(np.float32))
    neighbour = min(column + 1, width - 1)
    ordered = np.partition(filled, (column, neighbour), axis=1)
    low = ordered[:, column].astype(np.float64)
    # Where the rank is whole there may be no next value (it would be +inf), and 0 * inf is NaN.
    high = np.where(weight > 0, ordered[:, neighbour], low)
    return (low + weight * (high - low)).astype(np.float32)


def _block_mean(block: np.ndarray, valid: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each row of a block: (b,) fp64. Every row must have a valid token."""
    return np.where(valid, block, 0).sum(axis=1, dtype=np.float64) / counts
