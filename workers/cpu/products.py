"""Matrix products in fp32 by oneDNN, on CPUs where torch's own take more than twice the time.

torch leaves fp32 products to MKL, which uses AVX-512 on Intel's CPUs alone.  AMD's have it too, from Zen 4 on: there
oneDNN, which is in every build of torch beside MKL, makes the same products twice as fast
(`python -m benchmarks.products`).  `use_onednn` hands them over, for the whole process: forward, backward, generation.

The numbers are fp32 either way, added up in another order.  `ATEN_CPU_CAPABILITY=avx2` in the environment, which turns
AVX-512 off in torch, leaves the products with MKL.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A call comes through Python here, which takes 12 µs: a starter's step, of a model 128 wide, gains 6 % by its larger
# products, and its rollout loses 10 % by its small ones (docs/cpu.md).
WIDTH = 256


def use_onednn(model_config: Any) -> bool:
    """Make this process's fp32 products with oneDNN, if that is faster for such a model on this CPU.

    Args:
        model_config: the model's transformers configuration.

    Returns:
        Whether they are made so from now on.
    """
    if not mkl_falls_short() or model_config.get_text_config().hidden_size < WIDTH:
        return False
    replaced_products()
    return True


def mkl_falls_short(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has AVX-512, which torch may use, and MKL does not use it, not being Intel's.

    Args:
        cpuinfo: Linux's description of the CPU; without one the answer is no.
    """
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not libraries or torch.backends.cpu.get_cpu_capability() != "AVX512" or not cpuinfo.is_file():
        return False
    return "GenuineIntel" not in cpuinfo.read_text(encoding="utf-8", errors="replace")


@cache
def replaced_products() -> torch.library.Library:
    """Put oneDNN's products in the place of torch's for dense matrices on the CPU, once in a process.

    Below autograd, so that gradients go through it and its products come here too.

    Returns:
        What holds the replacement; it ends with it.
    """
    library = torch.library.Library("aten", "IMPL")
    mm, addmm = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))

    def onednn_mm(keys: torch.DispatchKeySet, a: Tensor, b: Tensor) -> Tensor:
        return _product(a, b, None) if _suits(a, b) else mm.call_boxed(keys, a, b)

    def onednn_addmm(
        keys: torch.DispatchKeySet, c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Tensor:
        plain = beta == 1 and alpha == 1 and c.ndim == 1 and c.dtype == torch.float32
        if plain and len(c) == b.shape[1] and c.is_contiguous() and _suits(a, b):
            return _product(a, b, c)
        return addmm.call_boxed(keys, c, a, b, beta=beta, alpha=alpha)

    with warnings.catch_warnings():  # torch tells of every replacement
        warnings.simplefilter("ignore")
        library.impl("mm", onednn_mm, "CPU", with_keyset=True, allow_override=True)
        library.impl("addmm", onednn_addmm, "CPU", with_keyset=True, allow_override=True)
    return library


def _suits(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN makes this product: fp32, of matrices that fit and are not empty; the rest is torch's."""
    both = a.dtype == b.dtype == torch.float32 and a.ndim == b.ndim == 2
    return both and a.shape[1] == b.shape[0] and a.numel() > 0 and b.numel() > 0


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b + bias, (rows, columns), of any strides."""
    return linear_pointwise()(a, b.t(), bias, "none", [], None)


@cache
def linear_pointwise() -> Any:
    """torch's private operator: x wᵀ + bias of dense matrices by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise.default
