"""Packed attention: logits and gradients of each sequence alone, and of transformers' sdpa where nothing is packed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)
from transformers.masking_utils import create_causal_mask

from workers import attention
from workers.attention import Packing, attention_problems

VOCABULARY = 41
LENGTHS = [7, 1, 19, 2, 12, 1]  # sequences of one token, and, for windows of 4, longer and shorter ones
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**SIZES),
    "llama": lambda: LlamaConfig(**SIZES),
    "olmo3": lambda: Olmo3Config(
        **{k: v for k, v in SIZES.items() if k != "head_dim"},
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=4),
    "one_key_value_head": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
}


def model_pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same random weights with packed attention and with sdpa."""
    torch.manual_seed(0)
    packed = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="packed").to(dtype)
    plain = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="sdpa").to(dtype)
    plain.load_state_dict(packed.state_dict())
    return packed, plain


def sequences(lengths: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths]


def pack(tokens: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    positions = torch.cat([torch.arange(len(t)) for t in tokens])
    return {"input_ids": torch.cat(list(tokens))[None], "position_ids": positions[None]}


def logits_and_gradients(model, calls: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, V) over all calls, one after the other, and the gradient of a loss over them, flat."""
    model.zero_grad()
    logits = torch.cat([model(**call, use_cache=False).logits.flatten(0, 1) for call in calls])
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits.log_softmax(-1) * weights).sum().div(len(logits)).backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pack_gives_what_each_sequence_gives_alone(name):
    packed, plain = model_pair(name)
    tokens = sequences(LENGTHS)
    logits, gradient = logits_and_gradients(packed, [pack(tokens)])
    expected, expected_gradient = logits_and_gradients(plain, [{"input_ids": t[None]} for t in tokens])
    assert logits == pytest.approx(expected, abs=1e-5)
    assert gradient == pytest.approx(expected_gradient, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_double_precision_leaves_no_room_for_a_leak(name):
    packed, plain = model_pair(name, torch.float64)
    tokens = sequences(LENGTHS)
    logits, gradient = logits_and_gradients(packed, [pack(tokens)])
    expected, expected_gradient = logits_and_gradients(plain, [pack(tokens)])  # transformers' dense mask over the pack
    assert logits == pytest.approx(expected, abs=1e-12)
    assert gradient == pytest.approx(expected_gradient, abs=1e-12)


@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
def test_half_precision_differs_by_rounding(name):
    """As far from fp32 as one sequence at a time is in bfloat16: about 1 % of the logits, 4 % of the gradient."""
    packed, plain = model_pair(name)
    tokens = sequences(LENGTHS)
    exact = logits_and_gradients(plain, [pack(tokens)])
    alone = logits_and_gradients(plain.bfloat16(), [{"input_ids": t[None]} for t in tokens])
    together = logits_and_gradients(packed.bfloat16(), [pack(tokens)])
    for value, one_by_one, reference, bound in zip(together, alone, exact, (0.02, 0.05), strict=True):
        rounding = (one_by_one.float() - reference).norm() / reference.norm()
        assert (value.float() - reference).norm() / reference.norm() < 1.2 * rounding < 1.2 * bound


def test_several_packed_rows():
    packed, plain = model_pair("olmo3")
    tokens = sequences([5, 9, 3, 11])
    rows = [pack(tokens[:2]), pack(tokens[2:])]
    both = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    logits, gradient = logits_and_gradients(packed, [both])
    expected, expected_gradient = logits_and_gradients(plain, [{"input_ids": t[None]} for t in tokens])
    assert logits == pytest.approx(expected, abs=1e-5)
    assert gradient == pytest.approx(expected_gradient, abs=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
def test_gradient_checkpointing_recomputes_the_same(name, reentrant):
    packed, _ = model_pair(name)
    tokens = sequences(LENGTHS)
    expected = logits_and_gradients(packed, [pack(tokens)])
    packed.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    logits, gradient = logits_and_gradients(packed, [pack(tokens)])
    assert torch.equal(logits, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_packed_is_sdpas_to_the_bit(name):
    packed, plain = model_pair(name)
    padded = torch.nn.utils.rnn.pad_sequence(sequences(LENGTHS), batch_first=True, padding_side="left")
    mask = (padded != 0).long()
    batch = {"input_ids": padded, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    alone = {"input_ids": sequences([9])[0][None]}
    for call in (batch, alone, {**alone, "position_ids": torch.arange(9)[None]}):
        for got, expected in zip(
            logits_and_gradients(packed, [call]), logits_and_gradients(plain, [call]), strict=True
        ):
            assert torch.equal(got, expected)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    generated = [model.generate(padded, attention_mask=mask, **options) for model in (packed, plain)]
    assert torch.equal(generated[0].sequences, generated[1].sequences)
    assert torch.equal(torch.stack(generated[0].logits), torch.stack(generated[1].logits))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
def test_nothing_is_as_large_as_the_square_of_the_pack(name):
    packed, plain = model_pair(name)
    call = pack(sequences([20] * 40))
    with LargestTensor() as ours, torch.no_grad():
        packed(**call, use_cache=False)
    with LargestTensor() as theirs, torch.no_grad():
        plain(**call, use_cache=False)
    assert ours.elements <= 800 * 48  # a feed-forward layer's
    assert theirs.elements >= 800 * 800


@pytest.mark.parametrize(("name", "packings"), [("qwen3", 1), ("olmo3", 2)])
def test_the_sequences_are_looked_for_once_a_forward_pass(name, packings, monkeypatch):
    made = []
    monkeypatch.setattr(
        Packing, "__init__", lambda self, *a, _init=Packing.__init__: (made.append(a), _init(self, *a))[1]
    )
    packed, _ = model_pair(name)
    packed(**pack(sequences(LENGTHS)), use_cache=False)
    assert len(made) == packings  # one for each kind of layer, not for each layer


def test_a_mask_that_is_not_causal_stays_a_mask():
    """Images and the like: tokens of one block see each other, later ones too."""
    packed, plain = model_pair("qwen3")
    call = {
        "inputs_embeds": torch.zeros(1, 6, 32),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
        "block_sequence_ids": torch.tensor([[-1, 0, 0, -1, -1, -1]]),
    }
    assert torch.equal(create_causal_mask(packed.config, **call), create_causal_mask(plain.config, **call))
    assert isinstance(create_causal_mask(packed.config, **{**call, "block_sequence_ids": None}), Packing)


# ------------------------------------------------------------------------------------------------ the kernel of GPUs


def reference_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), **groups
):
    """`torch.nn.attention.varlen.varlen_attn` by its documentation, in double precision: (T, heads, head_dim)."""
    assert cu_seq_q.dtype == torch.int32 and cu_seq_k.dtype == torch.int32 and max_q == max_k
    assert max_q == int(cu_seq_q.diff().max()) and groups in ({}, {"enable_gqa": query.shape[1] != key.shape[1]})
    left, right = (length if length >= 0 else math.inf for length in window_size)
    outputs = []
    for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[start:end].double().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        after = torch.arange(end - start) - torch.arange(end - start)[:, None]  # of the key after the query
        scores = scores.masked_fill((after > right) | (-after > left), -math.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


@pytest.mark.parametrize("window", [None, 4, 1])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_the_kernel_for_gpus_is_asked_for_the_same(window, scaling, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", reference_varlen)
    starts = pack(sequences(LENGTHS))["position_ids"] == 0
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    packing = Packing(starts, window)
    expected = attention._one_by_one(module, q, k, v, packing, 0.0, scaling)
    assert attention._in_one_kernel(q, k, v, packing, scaling) == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_on_a_gpu(name):
    packed, plain = model_pair(name)
    tokens = sequences(LENGTHS)
    exact, exact_gradient = logits_and_gradients(plain, [pack(tokens)])
    call = {key: value.cuda() for key, value in pack(tokens).items()}
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        model = packed.to("cuda", dtype)
        logits, gradient = (x.cpu().float() for x in logits_and_gradients(model, [call]))
        assert (logits - exact).norm() / exact.norm() < bound
        assert (gradient - exact_gradient).norm() / exact_gradient.norm() < bound


# ------------------------------------------------------------------------------------------------ refusals


def test_a_cache_beside_packed_positions_is_refused():
    packed, _ = model_pair("qwen3")
    with pytest.raises(ValueError, match="use_cache=False"):
        packed(**pack(sequences([4, 5])), use_cache=True)


def test_a_soft_cap_is_refused():
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES), attn_implementation="packed")
    with pytest.raises(ValueError, match="caps its attention scores"):
        model(**pack(sequences([4, 5])), use_cache=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("implementation", ["packed", "sdpa", "eager", "flash_attention_2", "kernels-community/attn"])
def test_what_works_has_no_problems(name, implementation):
    assert list(attention_problems(CONFIGS[name](), implementation, "cpu")) == []


@pytest.mark.parametrize(
    ("config", "implementation", "said"),
    [
        (CONFIGS["qwen3"](), "varlen", "must be an attention of transformers or this package's 'packed'"),
        (Gemma2Config(), "packed", "gemma2 caps its attention scores at 50.0"),
        (AutoConfig.for_model("llama4_text"), "packed", "llama4_text has layers of chunked_attention"),
        (AutoConfig.for_model("qwen3_next"), "packed", "linear_attention"),
        (AutoConfig.for_model("gpt_oss"), "packed", "gpt_oss (sinks, alibi"),
        (AutoConfig.for_model("bloom"), "packed", "bloom (sinks, alibi"),
        (T5Config(), "packed", "t5 is no causal decoder"),
    ],
)
def test_what_cannot_be_packed_is_said(config, implementation, said):
    problems = list(attention_problems(config, implementation, "cpu"))
    assert said in problems[0]
    assert all(problem.startswith(f"attn_implementation={implementation}") for problem in problems)
    if implementation == "packed":
        assert list(attention_problems(config, "flash_attention_2", "cpu")) == []


def test_a_torch_without_the_kernel_is_refused_on_gpus(monkeypatch):
    monkeypatch.delattr(varlen, "varlen_attn")
    attention._varlen_parameters.cache_clear()
    try:
        (problem,) = attention_problems(CONFIGS["qwen3"](), "packed", "cuda")
        assert f"torch {torch.__version__} lacks" in problem and "install torch 2.11" in problem
        assert list(attention_problems(CONFIGS["qwen3"](), "packed", "cpu")) == []
    finally:
        attention._varlen_parameters.cache_clear()
