"""Statistics of each response over its own valid tokens, and of a whole batch, on padded (B, T) tensors.

A response is a row; which of its tokens count is given by a mask that may have holes. Results depend on a row's valid
tokens alone: not on how much padding there is, on what stands in it, or on the other rows. That holds to the last bit,
because each row is packed before anything is computed from it. All of it is exact (no histograms, no sampling): order
statistics by selection, statistics summed in fp64, results in fp32.

Why numpy and a loop over rows: a row costs some tens of microseconds, nothing is spent on padding, and temporaries stay
in a core's cache. On 4096 ragged rows of up to 8k tokens this took half of the time of the same work in torch on padded
blocks and a sixth of that of a loop-free padded selection, and it has no thread pool to fight the rest of the driver
for. `python -m benchmarks.advantage` times it. Tensors on an accelerator are copied to the host and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from advantage.checks import as_mask

Tokens = np.ndarray  # 1-D fp32, the valid tokens of one row in order


def map_rows(
    function: Callable[..., Sequence[Tokens]], response_mask: torch.Tensor, *values: torch.Tensor, outputs: int = 1
) -> tuple[torch.Tensor, ...]:
    """Apply a function to the packed valid tokens of every row.

    Args:
        function: called as `function(count, *tokens)` with the row's number of valid tokens and one 1-D fp32 array per
            tensor, each of them its own to overwrite; returns `outputs` arrays of that length.
        response_mask: (B, T), non-zero on valid tokens.
        values: (B, T) tensors of any real dtype.
        outputs: how many arrays the function returns.

    Returns:
        That many (B, T) fp32 tensors, zero outside the mask.
    """
    mask = as_mask(response_mask)
    valid = mask.cpu().numpy()
    sources = [_host(value) for value in values]
    results = [np.zeros(valid.shape, dtype=np.float32) for _ in range(outputs)]
    for row, here in enumerate(valid):
        count = int(np.count_nonzero(here))
        if count:
            for result, tokens in zip(results, function(count, *(s[row][here] for s in sources)), strict=True):
                result[row][here] = tokens
    return tuple(torch.from_numpy(result).to(mask.device) for result in results)


def reduce_rows(function: Callable[[Tokens], float], values: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Apply a statistic to the packed valid tokens of every row: (B,) fp32, zero for a row with no valid token.

    Args:
        function: makes a number of a row's valid tokens, a 1-D fp32 array.
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
    """
    valid = as_mask(response_mask).cpu().numpy()
    source = _host(values)
    result = np.zeros(len(valid), dtype=np.float32)
    for row, here in enumerate(valid):
        tokens = source[row][here]
        if len(tokens):
            result[row] = function(tokens)
    return torch.from_numpy(result).to(values.device)


def quantile(tokens: Tokens, fraction: float) -> float:
    """Quantile of a non-empty 1-D array, with linear interpolation between neighbouring ranks (numpy's default).

    Args:
        tokens: the values.
        fraction: in [0, 1]; 0.5 is the median: the mean of the middle two for an even count, unlike `torch.median`.

    Raises:
        ValueError: if the fraction is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"quantile={fraction}: must lie in [0, 1]")
    rank = fraction * (len(tokens) - 1)
    lower = int(rank)
    weight = rank - lower
    ordered = np.partition(tokens, lower)
    low = float(ordered[lower])
    if weight == 0.0:
        return low
    # The next rank up is the smallest of what selection left above this one; cheaper than selecting twice.
    return low + weight * (float(ordered[lower + 1 :].min()) - low)


def mean_abs_deviation(tokens: Tokens, center: str = "mean") -> float:
    """mean_t |x_t - center(x)| of a non-empty 1-D array; exactly zero where all values are equal.

    Args:
        tokens: the values.
        center: "mean" (what MeanAbsDev usually means; the DASD paper does not say) or "median".

    Raises:
        ValueError: if the center is another.
    """
    if center not in ("mean", "median"):
        raise ValueError(f"center={center!r}: must be 'mean' or 'median'")
    middle = tokens.mean(dtype=np.float64) if center == "mean" else quantile(tokens, 0.5)
    return float(np.abs(np.subtract(tokens, middle, dtype=np.float64)).mean())


def row_median(values: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Median of each row over its valid tokens: (B,) fp32, zero for a row with no valid token.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
    """
    return reduce_rows(lambda tokens: quantile(tokens, 0.5), values, response_mask)


def relative_positions(count: int) -> Tokens:
    """Relative positions u_t = (t - 0.5) / L for t = 1 .. L: a 1-D fp32 array of length L, inside (0, 1)."""
    return (np.arange(count, dtype=np.float32) + 0.5) / count


def sigmoid(x: Tokens) -> Tokens:
    """Logistic sigmoid of a 1-D array, in its dtype."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, the right limit
        return 1.0 / (1.0 + np.exp(-x))


def pack(values: torch.Tensor, response_mask: torch.Tensor) -> Tokens:
    """All valid tokens of the batch as a 1-D fp32 array of its own, rows one after another.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
    """
    return _host(values)[as_mask(response_mask).cpu().numpy()]


def batch_quantile(values: torch.Tensor, response_mask: torch.Tensor, fraction: float) -> float:
    """A quantile over all valid tokens of the batch; 0.0 when there is no valid token.

    Call it on the global batch: methods that threshold on a batch quantile (HEPO, REOPOLD) change their meaning when
    it is taken per micro-batch or per rank.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
        fraction: in [0, 1], as in `quantile`.
    """
    tokens = pack(values, response_mask)
    return quantile(tokens, fraction) if len(tokens) else 0.0


def batch_magnitude(values: torch.Tensor, response_mask: torch.Tensor, fraction: float = 0.99) -> tuple[float, float]:
    """Mean and quantile of |x| over all valid tokens of the batch; zeros when there is no valid token.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
        fraction: which quantile, in [0, 1].
    """
    tokens = pack(values, response_mask)
    if not len(tokens):
        return 0.0, 0.0
    np.abs(tokens, out=tokens)
    return float(tokens.mean(dtype=np.float64)), quantile(tokens, fraction)


def batch_mean(values: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Mean over all valid tokens of the batch, summed in fp64; 0.0 when there is no valid token.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
    """
    tokens = pack(values, response_mask)
    return float(tokens.mean(dtype=np.float64)) if len(tokens) else 0.0


def batch_abs_mean(values: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Mean of |x| over all valid tokens of the batch, summed in fp64; 0.0 when there is no valid token.

    Args:
        values: (B, T) of any real dtype.
        response_mask: (B, T), non-zero on valid tokens.
    """
    tokens = pack(values, response_mask)
    return float(np.abs(tokens, out=tokens).mean(dtype=np.float64)) if len(tokens) else 0.0


def _host(values: torch.Tensor) -> np.ndarray:
    """A (B, T) tensor as a numpy fp32 array; bf16 and fp16 are upcast before any statistic."""
    return values.detach().to(device="cpu", dtype=torch.float32).numpy()
