"""Which models' heads may compute something else than logits, and that they do so only within the block."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workers.divergence import hidden_statistics
from workers.training.head import head_computes, head_obstacle

SMALL = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def model(kind: str = "qwen3", **settings):
    config = AutoConfig.for_model(kind, **SMALL, **settings)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "olmo3"])
def test_the_presets_models_have_no_obstacle(kind):
    assert head_obstacle(model(kind)) is None


def test_what_a_head_may_not_have_is_named():
    assert "final_logit_softcapping=30" in head_obstacle(model("gemma2", final_logit_softcapping=30.0))
    assert "logits_scaling=8" in head_obstacle(model("granite", logits_scaling=8.0))
    assert head_obstacle(model("granite", logits_scaling=1.0)) is None
    biased = model()
    biased.lm_head = torch.nn.Linear(16, 31)
    assert head_obstacle(biased) == "its head has a bias"


def test_an_adapter_on_the_head_is_an_obstacle_and_one_elsewhere_is_none():
    from peft import LoraConfig, get_peft_model

    def adapted(modules):
        return get_peft_model(model(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=modules))

    assert head_obstacle(adapted("all-linear")) is None  # all but the head
    assert "an adapter on it" in head_obstacle(adapted(["lm_head"]))


def test_the_head_computes_within_the_block_and_is_itself_again_after_an_error():
    built, ids = model(), torch.arange(7)[None]
    logits = built(input_ids=ids).logits
    with head_computes(built, lambda hidden, weight: hidden @ weight.t() + 1.0):
        assert torch.equal(built(input_ids=ids).logits, logits + 1.0)
    with pytest.raises(ZeroDivisionError), head_computes(built, lambda hidden, weight: 1 / 0):
        built(input_ids=ids)
    assert torch.equal(built(input_ids=ids).logits, logits)


@pytest.mark.parametrize(("count", "chunk"), [(9, None), (9, 4), (1, 1), (0, None)])
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_log_probs_and_entropies_from_hidden_states(count, chunk, temperature):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(count, 16, generator=generator), torch.randn(31, 16, generator=generator)
    ids = torch.randint(31, (count,), generator=generator)
    log_probs, entropy = hidden_statistics(hidden, head, ids, temperature=temperature, chunk_size=chunk)
    exact = (hidden.double() @ head.double().t() / temperature).log_softmax(-1)
    assert torch.allclose(log_probs.double(), exact.gather(1, ids[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5)


def test_sixteen_bit_hidden_states_give_logits_of_thirty_two():
    """Rounded to bf16, logits near 22 err by 0.06; from the same numbers ours err by fp32's rounding."""
    generator = torch.Generator().manual_seed(0)
    hidden = (22 / 16 * torch.randn(64, 256, generator=generator)).bfloat16()
    head, ids = (torch.randn(512, 256, generator=generator) / 4).bfloat16(), torch.randint(512, (64,))
    exact = (hidden.double() @ head.double().t()).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    ours = hidden_statistics(hidden, head, ids)[0]
    rounded = (hidden @ head.t()).float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    assert ours.dtype == torch.float32 and (ours - exact).abs().max() < 1e-4
    assert (rounded - exact).abs().max() > 1e-2  # what this is for


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(N, h\) and \(V, h\)"):
        hidden_statistics(torch.zeros(3, 4), torch.zeros(7, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="token_ids has shape"):
        hidden_statistics(torch.zeros(3, 4), torch.zeros(7, 4), torch.zeros(2, dtype=torch.long))


def test_passes_within_a_budget():
    from workers.training.packing import passes_within

    assert passes_within([5, 5, 5], 10) == [[0, 1], [2]]
    assert passes_within([5, 50, 5], 10) == [[0], [1], [2]]  # a longer row is alone
    assert passes_within([5, 5, 5], None) == [[0, 1, 2]]
    assert passes_within([3], 10) == [[0]]


class CountsTokens:
    """verl's interface (test_verl_contract.py): 6 operations a token, on a device of 1,000 a second."""

    def estimate_flops(self, lengths: list[int], seconds: float) -> tuple[float, float]:
        return 6 * sum(lengths) / seconds, 1000.0


def test_the_teachers_work_counts_in_the_mfu():
    """Forward alone: a third of what verl's counter gives for a training pass over as many tokens."""
    from workers.training.engine import TEACHER_LENGTHS
    from workers.training.worker import count_teacher

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        metrics = {"mfu": 0.25, TEACHER_LENGTHS: [[10, 20], [30]]}
        count_teacher(metrics, CountsTokens(), 2.0)
        assert metrics == {"mfu": pytest.approx(0.25 + (6 * 60 / 2) / 3 / 1000)}
        alone = {"mfu": 0.25}
        count_teacher(alone, CountsTokens(), 2.0)
        assert alone == {"mfu": 0.25}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_norms_are_those_of_a_backward_pass_for_every_token(temperature):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (9,), generator=generator)
    log_p = (hidden @ head.t() / temperature).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    wanted = [torch.autograd.grad(one, head, retain_graph=True)[0].norm() for one in log_p]
    plain = hidden_statistics(hidden, head.detach(), ids, temperature=temperature, chunk_size=4)
    found = hidden_statistics(hidden, head.detach(), ids, temperature=temperature, gradient_norm=True, chunk_size=4)
    torch.testing.assert_close(found[2], torch.stack(wanted), rtol=1e-12, atol=0)
    assert len(plain) == 2 and all(torch.equal(a, b) for a, b in zip(plain, found, strict=False))


def test_the_gradient_of_a_certain_token_is_small_and_not_rounding_error():
    """fp32, p = 1 − 2e-9: by hand 1 − p twice over, as one other token has all of the rest."""
    hidden, head = torch.tensor([[1.0]]), torch.tensor([[20.0], [0.0]])
    norm = hidden_statistics(hidden, head, torch.tensor([0]), gradient_norm=True)[2]
    assert norm.item() == pytest.approx(math.sqrt(2) * math.exp(-20) / (1 + math.exp(-20)), rel=1e-5)
    assert hidden_statistics(hidden, head, torch.tensor([1]), gradient_norm=True)[2].item() == pytest.approx(2**0.5)
