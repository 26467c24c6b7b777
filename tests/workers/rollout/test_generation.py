"""Seeded generation against exact distributions and plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import Olmo3Config, Olmo3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from workers.rollout.generation import KEEP_SHARE, Generated, SamplingParams, generate_batch

VOCABULARY, PAD, STOP = 23, 0, 1


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.6,  # peaked distributions: near-uniform ones would hide errors of temperature and top-p
    )
    return Qwen3ForCausalLM(config).eval()


def generate(model, prompts, seeds, stop=(STOP,), **params) -> list[Generated]:
    return generate_batch(model, prompts, SamplingParams(**params), seeds, stop_token_ids=list(stop), pad_token_id=PAD)


def next_token_probs(model, prompt, temperature=1.0, top_k=-1, top_p=1.0) -> torch.Tensor:
    """(V,) by the textbook: sort, keep, renormalise."""
    with torch.no_grad():
        probs = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    keep = torch.zeros(VOCABULARY, dtype=torch.bool)
    keep[order[: top_k if top_k > 0 else VOCABULARY]] = True
    probs = probs * keep / (probs * keep).sum()
    mass_before = probs[order].cumsum(0) - probs[order]
    keep[order[mass_before >= top_p]] = False
    return probs * keep / (probs * keep).sum()


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 8, "top_p": 0.8}]
)
def test_tokens_follow_the_truncated_tempered_distribution(model, params):
    prompt, draws = [5, 9, 3], 4000
    expected = next_token_probs(model, prompt, **params)
    outputs = generate(model, [prompt] * draws, list(range(draws)), max_tokens=1, **params)
    counts = torch.bincount(torch.tensor([o.token_ids[0] for o in outputs]), minlength=VOCABULARY)
    assert counts[expected == 0].sum() == 0
    deviation = (counts / draws - expected).abs() / (expected * (1 - expected) / draws).sqrt().clamp(min=1e-4)
    assert deviation.max() < 4.5  # standard errors; 23 comparisons
    for output in outputs[:50]:
        assert output.log_probs[0] == pytest.approx(expected[output.token_ids[0]].log().item(), abs=1e-4)


def test_a_response_does_not_depend_on_its_batch(model):
    prompts = [[2, 7], [4, 4, 4, 8, 9, 10], [3], [11, 12, 13]]
    together = generate(model, prompts, [10, 11, 12, 13], max_tokens=12)
    alone = [generate(model, [p], [s], max_tokens=12)[0] for p, s in zip(prompts, [10, 11, 12, 13], strict=True)]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


def test_equal_prompts_with_other_seeds_differ_and_with_equal_seeds_agree(model):
    first, second, again = generate(model, [[6, 2]] * 3, [1, 2, 1], max_tokens=16, stop=())
    assert first.token_ids == again.token_ids
    assert first.token_ids != second.token_ids


def test_log_probs_are_the_models(model):
    prompt = [5, 6, 7, 8]
    (output,) = generate(model, [prompt], [3], max_tokens=10, stop=())
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + output.token_ids])).logits[0].log_softmax(-1)
    expected = [log_probs[len(prompt) + i - 1, t].item() for i, t in enumerate(output.token_ids)]
    assert output.log_probs == pytest.approx(expected, abs=1e-4)


def test_greedy_is_transformers_greedy(model):
    prompt = [3, 14, 15]
    (output,) = generate(model, [prompt], [0], temperature=0, max_tokens=8, stop=())
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert output.token_ids == expected[0, 3:].tolist()


@pytest.mark.parametrize("kind", ["window", "full"])
def test_greedy_is_transformers_greedy_where_the_cache_grows_slides_and_loses_rows(kind):
    """Up to 100 tokens from prompts of 2 to 4, a window of 6, rows that end in between, prompts that are shared."""
    torch.manual_seed(0)
    layers = {"window": ["sliding_attention", "full_attention"], "full": ["full_attention", "full_attention"]}[kind]
    config = Olmo3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        layer_types=layers,
        initializer_range=0.6,
        max_position_embeddings=256,
    )
    olmo = Olmo3ForCausalLM(config).eval()
    prompts = [[a, b, *([5] * (a % 3))] for a in range(3, 9) for b in (4, 11)] * 2
    found = generate(olmo, prompts, list(range(len(prompts))), temperature=0, max_tokens=100)
    for prompt, output in zip(prompts, found, strict=True):
        expected = olmo.generate(
            torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=STOP, pad_token_id=0
        )
        assert output.token_ids == expected[0, len(prompt) :].tolist()
    lengths = {len(output.token_ids) for output in found}
    assert max(lengths) > 60 and min(lengths) < 10  # the cache began with room for 6 tokens


def test_ended_rows_leave_the_batch_and_a_shared_prompt_is_read_once(model):
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        outputs = generate(model, [[5, 9, 3]] * 60 + [[4, 8]] * 4, list(range(64)), max_tokens=60)
    finally:
        handle.remove()
    lengths = torch.tensor([len(output.token_ids) for output in outputs])
    assert shapes[0] == (2, 3)
    rows = torch.tensor([rows for rows, _ in shapes[1:]])
    needed = torch.tensor([int((lengths > step + 1).sum()) for step in range(len(rows))])
    assert (rows >= needed).all() and (rows <= (needed / KEEP_SHARE).clamp(max=64)).all()
    assert rows[0] > rows[-1] > 0


def test_a_response_ends_with_its_stop_token(model):
    outputs = generate(model, [[5, 9, 3]] * 200, list(range(200)), max_tokens=30)
    ended = [o for o in outputs if o.stop_reason == "completed"]
    cut = [o for o in outputs if o.stop_reason == "length"]
    assert ended and all(o.token_ids[-1] == STOP and STOP not in o.token_ids[:-1] for o in ended)
    assert all(len(o.token_ids) == 30 and STOP not in o.token_ids for o in cut)
    assert all(len(o.log_probs) == len(o.token_ids) for o in outputs)


def test_several_stop_tokens(model):
    outputs = generate(model, [[5, 9, 3]] * 100, list(range(100)), max_tokens=30, stop=(1, 2, 3))
    assert {o.token_ids[-1] for o in outputs if o.stop_reason == "completed"} <= {1, 2, 3}
    assert len({o.token_ids[-1] for o in outputs if o.stop_reason == "completed"}) > 1


@pytest.mark.parametrize(
    ("params", "rule"),
    [
        ({"temperature": -1}, ">= 0"),
        ({"top_p": 0}, r"\(0, 1\]"),
        ({"top_k": 0}, "-1"),
        ({"max_tokens": 0}, "at least 1"),
    ],
)
def test_impossible_parameters_are_refused(params, rule):
    with pytest.raises(ValueError, match=rule):
        SamplingParams(**params)


def test_bad_requests_are_refused(model):
    with pytest.raises(ValueError, match="no empty"):
        generate(model, [[1], []], [1, 2])
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        generate(model, [[1], [2]], [1])


def test_a_broken_model_is_an_error_and_not_a_response():
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    broken = Qwen3ForCausalLM(config).eval()
    broken.lm_head.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        generate(broken, [[1, 2]], [1], max_tokens=3)
