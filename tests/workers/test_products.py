"""Products by oneDNN: right to fp32's precision for whatever comes to `mm` and `addmm`, and only where they pay."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from config import STARTER
from recipes.diagnose.engine import load_model
from recipes.evaluate.sampling import EngineOptions, TransformersSampler
from workers.cpu import products
from workers.cpu.products import WIDTH, linear_pointwise, mkl_falls_short, replaced_products, use_onednn
from workers.rollout.generation import SamplingParams


@pytest.fixture
def replaced(monkeypatch):
    """Products by oneDNN, for one test; the fixture's value counts them."""
    calls = []
    product = products._product
    monkeypatch.setattr(products, "_product", lambda *args: calls.append(1) or product(*args))
    library = replaced_products()
    yield calls
    library._destroy()
    replaced_products.cache_clear()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


MATRICES = {
    "rows": (randn(5, 7), randn(7, 3)),
    "a turned": (randn(7, 5).t(), randn(7, 3)),
    "b turned": (randn(5, 7), randn(3, 7).t()),
    "both turned": (randn(7, 5).t(), randn(3, 7).t()),
    "every other column": (randn(5, 14)[:, ::2], randn(7, 12)[:, ::4]),
    "every other row": (randn(10, 7)[::2], randn(14, 3)[::2]),
    "a part of the columns": (randn(5, 20)[:, 3:10], randn(7, 9)[:, 2:5]),
    "one number everywhere, as the gradient of a sum": (randn(1, 1).expand(5, 7), randn(7, 3)),
    "one row, repeated": (randn(1, 7).expand(5, 7), randn(7, 1).expand(7, 3)),
    "a single row": (randn(1, 7), randn(7, 3)),
    "a single column": (randn(5, 7), randn(7, 1)),
    "one number": (randn(1, 1), randn(1, 1)),
    "wide": (randn(33, 576), randn(576, 4099)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_product_is_that_of_fp64(name, replaced):
    a, b = MATRICES[name]
    bias = randn(b.shape[1])
    plain, biased = torch.mm(a, b), torch.addmm(bias, a, b)
    assert len(replaced) == 2 and plain.dtype == torch.float32
    exact = a.double() @ b.double()
    torch.testing.assert_close(plain.double(), exact, rtol=1e-5, atol=1e-5 * a.shape[1] ** 0.5)
    torch.testing.assert_close(biased.double(), exact + bias.double(), rtol=1e-5, atol=1e-5 * a.shape[1] ** 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients_are_made_so(bias, replaced):
    layer, exact = torch.nn.Linear(7, 5, bias=bias), torch.nn.Linear(7, 5, bias=bias, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = randn(2, 3, 7).requires_grad_()
    y = x.detach().double().requires_grad_()
    layer(x).square().sum().backward()
    assert len(replaced) == 3  # forward, and the gradients of weights and inputs
    exact(y).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_other_types_stay_torchs(dtype, replaced):
    a = torch.arange(6).reshape(2, 3).to(dtype)
    assert torch.mm(a, a.t()).tolist() == [[5, 14], [14, 50]]
    assert torch.addmm(a[:, 0], a, a.t()).tolist() == [[5, 17], [14, 53]]
    assert not replaced


def test_what_onednn_does_not_make_stays_torchs(replaced):
    a, b = randn(2, 4), randn(4, 3)
    assert torch.mm(randn(2, 0), randn(0, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert torch.mm(randn(0, 4), b).shape == (0, 3)
    assert torch.addmm(torch.ones(3), torch.ones(2, 4), torch.ones(4, 3), beta=2, alpha=0.5).tolist() == [[4.0] * 3] * 2
    for bias in (randn(2, 3), randn(1), randn(6)[::2], randn(2, 1)):  # a matrix, one number, not dense, a column
        torch.testing.assert_close(torch.addmm(bias, a, b), bias + (a.double() @ b.double()).float())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(a, randn(5, 3))
    assert not replaced


def test_broken_numbers_stay_visible(replaced):
    a = torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0], [1.0, 1.0]])
    product = torch.mm(a, torch.ones(2, 1)).flatten()
    assert product.isnan().tolist() == [True, False, False]
    assert product.isinf().tolist() == [False, True, False]


def test_it_is_done_once_in_a_process(replaced):
    assert replaced_products() is replaced_products()


@pytest.mark.parametrize(
    "vendor, capability, answer",
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),  # MKL uses it there
        ("AuthenticAMD", "AVX2", False),  # nothing that MKL would not use
        ("AuthenticAMD", "DEFAULT", False),
    ],
)
def test_it_is_for_cpus_whose_avx_512_mkl_leaves_alone(vendor, capability, answer, tmp_path, monkeypatch):
    described = tmp_path / "cpuinfo"
    described.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A CPU\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert mkl_falls_short(described) is answer
    assert mkl_falls_short(tmp_path / "none") is False
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert mkl_falls_short(described) is False


@pytest.mark.parametrize("width, here, answer", [(WIDTH, True, True), (WIDTH - 8, True, False), (WIDTH, False, False)])
def test_it_is_for_wide_models_on_such_cpus(width, here, answer, monkeypatch):
    done = []
    monkeypatch.setattr(products, "mkl_falls_short", lambda: here)
    monkeypatch.setattr(products, "replaced_products", lambda: done.append(1))
    assert use_onednn(LlamaConfig(hidden_size=width, num_attention_heads=8)) is answer
    assert len(done) == answer


def test_torchs_private_operator_is_the_one_we_call():
    schema = linear_pointwise()._schema
    assert [(a.name, str(a.type)) for a in schema.arguments] == [
        ("X", "Tensor"),
        ("W", "Tensor"),
        ("B", "Optional[Tensor]"),
        ("attr", "str"),
        ("scalars", "List[Optional[number]]"),
        ("algorithm", "Optional[str]"),
    ]
    assert "allow_override" in inspect.signature(torch.library.Library.impl).parameters


def test_what_loads_a_model_on_a_cpu_asks_for_them(tmp_path, monkeypatch):
    asked, model = [], str(STARTER / "model")
    monkeypatch.setattr(products, "use_onednn", lambda config: asked.append(config.hidden_size))
    load_model(model, merged=tmp_path, device="cpu", dtype="float32", tokens_per_pass=1)
    options = EngineOptions("transformers", "float32", max_model_len=None)
    TransformersSampler(model, [0], 0, SamplingParams(temperature=1.0), options)
    assert asked == [AutoConfig.from_pretrained(model).hidden_size] * 2
