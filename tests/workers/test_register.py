"""Log-probs without flash-attn: exact in single precision whatever the logits' type, and verl takes ours."""

from __future__ import annotations

import math

import pytest
import torch

from workers.divergence import top_k
from workers.register import log_probs_of


def logits_and_labels(dtype: torch.dtype, rows: int = 7, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)
    return logits.requires_grad_(), torch.randint(vocabulary, (rows,), generator=generator)


def test_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    value = log_probs_of(logits, torch.tensor([1, 1]))
    assert value.tolist() == pytest.approx([math.log(0.75), math.log(0.2)])


@pytest.mark.parametrize("block", [1, 2, 100])  # rows that are worked on at a time
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_log_softmax(dtype, block, monkeypatch):
    monkeypatch.setattr(top_k, "chunk_rows", lambda vocabulary, device: (100, block))
    logits, labels = logits_and_labels(dtype)
    factor = torch.linspace(-1, 2, 7, dtype=torch.float64)
    exact = logits.detach().double().requires_grad_()
    expected = exact.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    (expected * factor).sum().backward()

    value = log_probs_of(logits, labels)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.tolist() == pytest.approx(expected.tolist(), abs=4e-6)  # fp32 of a logit of 20; bfloat16: 1e-1
    (value * factor.to(value.dtype)).sum().backward()
    assert logits.grad.dtype == dtype
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_shapes():
    logits = torch.randn(2, 3, 5)
    labels = torch.randint(5, (2, 3))
    expected = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    assert log_probs_of(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert log_probs_of(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_a_label_that_the_model_rules_out_has_log_prob_minus_infinity_and_a_finite_gradient():
    logits = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    value = log_probs_of(logits, torch.tensor([1]))
    assert value.item() == -math.inf
    value.backward()
    assert logits.grad.tolist() == [[-1.0, 1.0]]


def test_verl_takes_ours_where_flash_attn_is_absent(monkeypatch):
    from verl.utils import torch_functional

    monkeypatch.setattr(torch_functional, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", False)
    logits, labels = logits_and_labels(torch.bfloat16)
    value = torch_functional.logprobs_from_logits(logits, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, log_probs_of(logits, labels))
