"""The Triton kernel gives what the eager version gives: interpreted on a CPU, in a process of its own.

Skipped where Triton is not installed; `benchmarks.gpu_check` compares both on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.builders.configs import ROOT

PROGRAM = """
import itertools, torch
from workers.divergence import STATS, DivergenceSpec, full, hidden_divergence, logits_divergence

torch.manual_seed(0)
worst = 0.0
for kind, clip, mode, tau, dtype, V in [
    ("forward_kl", 0.05, "upper", 1.1, torch.float32, 5000),
    ("forward_kl", None, "upper", 1.0, torch.bfloat16, 4096),
    ("reverse_kl", 0.02, "symmetric", 0.7, torch.float32, 37),
    ("reverse_kl", None, "none", 1.3, torch.float32, 4097),
    ("jsd", 0.003, "upper", 1.1, torch.float32, 5000),
    ("jsd", None, "none", 1.0, torch.bfloat16, 64),
]:
    spec = DivergenceSpec(kind, 0.3, clip, mode, tau, tau if kind == "jsd" else 1.2)
    student = 3 * torch.randn(7, V)
    teacher = student + torch.randn(7, V)
    teacher[0] = student[0]  # near-equal and equal rows
    teacher[1] = student[1] + 1e-3 * torch.randn(V)
    teacher[2, 5:] = float("-inf")  # tokens without probability
    student, teacher = student.to(dtype), teacher.to(dtype)
    ids, rows = torch.arange(7) % V, torch.tensor([0, 2, 3, 1, 6])
    results = []
    for fused in (False, True):
        full.USE_FUSED = fused
        leaf = student.clone().requires_grad_()
        value, stats = logits_divergence(
            leaf, teacher[rows].clone(), spec, rows=rows, token_ids=ids[:5], stats=STATS, chunk_size=3,
            consume_teacher=True,
        )
        (value * torch.arange(1.0, 6.0)).sum().backward()
        results.append([value.detach(), leaf.grad.float(), *stats.values()])
    for name, eager, kernel in zip(("value", "gradient", *STATS), *results, strict=True):
        off = float((eager - kernel).abs().max() / eager.abs().max().clamp(min=1e-3))
        assert off < (2e-2 if dtype == torch.bfloat16 and name == "gradient" else 5e-5), (kind, dtype, name, off)
        worst = max(worst, off)
    if dtype == torch.float32:
        heads = []
        for fused in (False, True):
            full.USE_FUSED = fused
            hidden, head = torch.randn(9, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
            with torch.no_grad():
                hidden.copy_(torch.linspace(-1, 1, 72).view(9, 8))
                head.copy_(torch.linspace(-2, 2, 8 * V).view(V, 8).sin())
            loss, _ = hidden_divergence(
                hidden, head, hidden.detach().flip(0), weights=torch.ones(9), spec=spec, chunk_size=4
            )
            loss.backward()
            heads.append((loss.detach(), hidden.grad, head.grad))
        for eager, kernel in zip(*heads, strict=True):
            assert torch.allclose(eager, kernel, rtol=1e-4, atol=1e-6 * float(eager.abs().max() + 1)), (kind, V)
full.USE_FUSED = True
equal = torch.randn(3, 50)
assert torch.equal(logits_divergence(equal, equal.clone(), DivergenceSpec("jsd"))[0], torch.zeros(3))
print("worst", worst)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
def test_the_kernel_gives_what_the_eager_version_gives():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "worst" in done.stdout
