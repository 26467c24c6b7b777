"""workers.training.attention_entropy: weights made again from queries and keys, whatever kernel the model runs."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import workers.attention  # noqa: F401  registers "packed"
from workers.training import attention_entropy as module
from workers.training.attention_entropy import (
    AttentionEntropy,
    attention_entropy,
    attention_entropy_problems,
    attention_watched,
)

LENGTHS, RESPONSES = [7, 2, 12, 5], [3, 1, 9, 4]


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def tiny(window: int | None = None, implementation: str = "eager") -> torch.nn.Module:
    torch.manual_seed(0)
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    config = Qwen3Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
        **sliding,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("implementation", ["packed", "sdpa"])
@pytest.mark.parametrize("layers", ["last", "all"])
@torch.no_grad()
def test_packed_rows_give_the_entropies_of_each_sequence_alone(window, implementation, layers, monkeypatch):
    monkeypatch.setitem(module._BLOCK, "cpu", 60)  # several blocks a response
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(23, (length,), generator=generator) for length in LENGTHS]
    eager = tiny(window)
    wanted = []
    for ids, count in zip(sequences, RESPONSES, strict=True):
        weights = torch.stack(eager(ids[None], output_attentions=True).attentions)[:, 0, :, -count - 1 : -1].double()
        of_layers = torch.special.entr(weights).sum(-1).mean(1)
        wanted.append(of_layers[-1] if layers == "last" else of_layers.mean(0))
    model = tiny(window, implementation)
    seen = AttentionEntropy(model, layers, offsets(LENGTHS), offsets(RESPONSES))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    before = ALL_ATTENTION_FUNCTIONS[implementation]
    with attention_watched(model, seen):
        watched = model(torch.cat(sequences)[None], position_ids=positions, use_cache=False).logits
    assert ALL_ATTENTION_FUNCTIONS[implementation] is before
    torch.testing.assert_close(seen.mean().double(), torch.cat(wanted), rtol=0, atol=3e-6)
    assert torch.equal(watched, model(torch.cat(sequences)[None], position_ids=positions, use_cache=False).logits)


def test_by_hand():
    """One head of width 1: the second row attends evenly to two keys, the third as 1 : 1 : e."""
    query, key = torch.tensor([[[5.0], [0.0], [1.0], [0.0]]]), torch.tensor([[[0.0], [0.0], [1.0], [9.0]]])
    found = attention_entropy(query, key, offsets([4]), offsets([3]))
    z = 2 + math.e
    by_hand = [0.0, math.log(2), 2 / z * math.log(z) + math.e / z * (math.log(z) - 1)]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert attention_entropy(query, key, offsets([4]), offsets([0])).tolist() == []
    twice = attention_entropy(query, key, offsets([4]), offsets([3]), scaling=2.0)[2].item()
    z = 2 + math.e**2
    assert twice == pytest.approx(2 / z * math.log(z) + math.e**2 / z * (math.log(z) - 2), abs=1e-6)


def test_an_attention_that_is_not_seen_is_refused():
    with pytest.raises(RuntimeError, match="0 of 3 layers"):
        AttentionEntropy(tiny(), "all", offsets([3]), offsets([1])).mean()


def test_the_interface_is_as_it_was_after_an_error():
    model = tiny(None, "sdpa")
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ZeroDivisionError), attention_watched(model, lambda *_: 1 / 0):
        model(torch.tensor([[1, 2]]))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_models_and_attentions_that_cannot_are_named():
    assert not list(attention_entropy_problems(Qwen3Config(), "packed"))
    (eager,) = attention_entropy_problems(Qwen3Config(), "eager")
    assert eager.startswith("attn_implementation=eager") and "set packed, sdpa or" in eager
    (caps,) = attention_entropy_problems(Gemma2Config(), "sdpa")
    assert "caps its attention scores at 50" in caps
