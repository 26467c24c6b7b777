"""Per-token weights: the sum over micro-batches and ranks is the global mean, however the batch is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.divergence import (
    REDUCTIONS,
    DivergenceSpec,
    hidden_divergence,
    reduction_count,
    reduction_weights,
)


def batch(rows, length, seed):
    """Losses, mask (some rows empty, as padding rows are) and token weights."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (rows,), generator=g)
    lengths[0] = max(1, int(lengths[0]))
    mask = torch.arange(length) < lengths[:, None]
    return torch.randn(rows, length, generator=g), mask, torch.rand(rows, length, generator=g)


def global_mean(losses, mask, reduction):
    if reduction == "token_mean":
        return losses[mask].double().mean().item()
    return torch.stack([row[m].double().mean() for row, m in zip(losses, mask, strict=True) if m.any()]).mean().item()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 24),
    length=st.integers(1, 9),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
    data=st.data(),
)
def test_any_partition_gives_the_global_mean(rows, length, ranks, seed, reduction, weighted, data):
    losses, mask, factors = batch(rows, length, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 4 * ranks - 1), min_size=rows, max_size=rows)))
    parts = [order[owner == i] for i in range(4 * ranks)]  # four micro-batches a rank, some of them empty
    parts = [part for part in parts if len(part)]
    count = sum(int(reduction_count(mask[part], reduction)) for part in parts)
    total = 0.0
    for part in parts:
        weights = reduction_weights(
            mask[part], reduction, global_count=count, token_weights=factors[part] if weighted else None
        )
        total += (weights * losses[part]).sum().item()
    expected = global_mean(losses * factors if weighted else losses, mask, reduction)
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_averaged_over_ranks_are_the_global_means(reduction):
    g = torch.Generator().manual_seed(0)
    head, teacher_head = (torch.randn(17, 6, generator=g, dtype=torch.float64) for _ in range(2))
    hidden = torch.randn(8, 5, 6, generator=g, dtype=torch.float64)
    _, mask, factors = batch(8, 5, seed=2)
    spec = DivergenceSpec(clip=0.05, temperature=1.1)
    head.requires_grad_()

    def gradient(rows, weights):
        """What one rank's backward pass leaves on the head."""
        chosen = mask[rows]
        loss, _ = hidden_divergence(
            hidden[rows][chosen], head, hidden[rows][chosen], teacher_head, weights=weights[chosen], spec=spec
        )
        return torch.autograd.grad(loss, head)[0]

    everything = torch.arange(8)
    count = reduction_count(mask, reduction)
    expected = gradient(everything, reduction_weights(mask, reduction, global_count=count, token_weights=factors))
    for split in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[5], [0, 7, 1], [2, 3, 4, 6]]):
        ranks = len(split)
        averaged = torch.zeros_like(head)
        for rows in map(torch.tensor, split):
            weights = reduction_weights(
                mask[rows], reduction, global_count=count, dp_size=ranks, token_weights=factors[rows]
            )
            for micro in rows.split(2) if len(rows) > 2 else [rows]:  # gradient accumulation inside the rank
                inside = torch.isin(rows, micro)
                averaged += gradient(micro, weights[inside]) / ranks
        torch.testing.assert_close(averaged, expected, rtol=1e-6, atol=1e-9)


def test_the_two_reductions_agree_when_lengths_do_and_differ_when_not():
    equal = torch.ones(3, 4)
    a, b = (reduction_weights(equal, r, global_count=reduction_count(equal, r)) for r in REDUCTIONS)
    torch.testing.assert_close(a, b)
    ragged = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    token, sequence = (reduction_weights(ragged, r, global_count=reduction_count(ragged, r)) for r in REDUCTIONS)
    torch.testing.assert_close(token, torch.tensor([[0.2] * 4, [0.2, 0, 0, 0]]))
    assert sequence.tolist() == [[0.125] * 4, [0.5, 0, 0, 0]]


def test_empty_rows_weigh_nothing_and_do_not_count():
    mask = torch.tensor([[1, 1], [0, 0]])
    assert reduction_count(mask, "sequence_mean") == 1 and reduction_count(mask, "token_mean") == 2
    for reduction in REDUCTIONS:
        weights = reduction_weights(mask, reduction, global_count=reduction_count(mask, reduction))
        assert weights.tolist() == [[0.5, 0.5], [0, 0]]
    nothing = torch.zeros(2, 3)
    assert (reduction_weights(nothing, "token_mean", global_count=0) == 0).all()


def test_what_cannot_be_right_is_refused():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match="token_mean, sequence_mean"):
        reduction_weights(mask, "mean", global_count=6)
    with pytest.raises(ValueError, match="less than this part's own count"):
        reduction_weights(mask, "token_mean", global_count=5)
    with pytest.raises(ValueError, match="less than this part's own count"):
        reduction_weights(mask, "sequence_mean", global_count=0)
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        reduction_weights(mask[0], "token_mean", global_count=6)
    with pytest.raises(ValueError, match="token_weights"):
        reduction_weights(mask, "token_mean", global_count=6, token_weights=torch.ones(2, 4))
