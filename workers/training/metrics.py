"""Statistics of the divergence over the global mini-batch, the same on every rank.

Exact, not averages of micro-batch statistics: sums and counts are added up over ranks, and the 99th percentile is taken
from the largest hundredth of every rank's tokens, among which the global one must lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Names of what is measured here and in the loss; the trainer writes them as they are.
LOSS, MEAN, DISAGREEMENT = "divergence/loss", "divergence/mean", "divergence/top1_disagreement"
IMPORTANCE_CLIPPED = "divergence/importance_clipped"  # share of tokens whose importance ratio is held at its bound
STUDENT_ENTROPY, STUDENT_LOG_PROB = "divergence/student_entropy", "divergence/student_logprob"

POSITION_BINS = 10
QUANTILE = 0.99


def divergence_metrics(
    divergence: Sequence[Tensor],
    positions: Sequence[Tensor],
    *,
    device: torch.device,
    group: Any = None,
    **stats: Sequence[Tensor],
) -> dict[str, float]:
    """Mean, largest, 99th percentile, negative share, profile over relative position, and means of the statistics.

    Every rank must call this, also one without tokens.

    Args:
        divergence: (n_i,) token losses of each micro-batch of this rank, nats.
        positions: (n_i,) u in (0, 1) of the same tokens.
        device: where ranks exchange tensors.
        group: the data-parallel group.
        stats: other values of the same tokens, the same names on every rank; of each the mean becomes
            `divergence/<name>`.
    """
    value, u, *others = (
        torch.cat([torch.zeros(0, device=device), *(p.to(device, torch.float32) for p in parts)])
        for parts in (divergence, positions, *stats.values())
    )
    bins = (u * POSITION_BINS).long().clamp(0, POSITION_BINS - 1)
    sums = torch.zeros(3 + 2 * POSITION_BINS + len(others), dtype=torch.float64, device=device)
    sums[0], sums[1], sums[2] = value.numel(), value.double().sum(), (value < 0).sum()
    profile = slice(3, 3 + POSITION_BINS), slice(3 + POSITION_BINS, 3 + 2 * POSITION_BINS)
    sums[profile[0]] = torch.bincount(bins, minlength=POSITION_BINS)
    sums[profile[1]] = torch.bincount(bins, weights=value.double(), minlength=POSITION_BINS)
    for i, other in enumerate(others):
        sums[profile[1].stop + i] = other.double().sum()
    if dist.is_initialized():
        dist.all_reduce(sums, group=group)
    count = int(sums[0])
    top = _largest(value, count - _index(count), group)

    share = sums / max(count, 1)
    metrics = {
        MEAN: float(share[1]),
        "divergence/p99": float(top[-1]),
        "divergence/max": float(top[0]),
        "divergence/negative_share": float(share[2]),
        **{f"divergence/{name}": float(share[profile[1].stop + i]) for i, name in enumerate(stats)},
    }
    tokens, total = sums[profile[0]], sums[profile[1]]
    for i, mean in enumerate((total / tokens.clamp(min=1.0)).tolist()):
        metrics[f"divergence/position_{i}"] = mean
    return metrics


def _index(count: int) -> int:
    """Index of the percentile among `count` ascending values (nearest rank)."""
    return max(math.ceil(QUANTILE * count) - 1, 0)


def _largest(value: Tensor, wanted: int, group: Any) -> Tensor:
    """The `wanted` largest values over all ranks, descending; zeros where there are no tokens at all."""
    wanted = max(wanted, 1)
    padded = torch.full((wanted,), -math.inf, device=value.device)
    own = value.topk(min(wanted, value.numel())).values
    padded[: own.numel()] = own
    if dist.is_initialized():
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, padded, group=group)
        padded = torch.cat(parts).topk(wanted).values
    return padded.nan_to_num(neginf=0.0)
