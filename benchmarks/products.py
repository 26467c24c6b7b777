"""A linear layer in fp32 on this CPU, by torch's own products and by oneDNN's: `python -m benchmarks.products`.

Keys (`key=value`): threads=1. Times are the best of several; the last column is of forward and backward together.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable

import torch

from workers.cpu.products import mkl_falls_short, replaced_products

# What a layer is in -> (rows, width in, width out).
LAYERS = {
    "starter, packed rows": (2000, 128, 512),
    "SmolLM2-135M, attention": (2048, 576, 576),
    "SmolLM2-135M, MLP": (2048, 576, 1536),
    "SmolLM2-135M, MLP, one token of 64 responses": (64, 576, 1536),
    "SmolLM2-135M, head": (400, 576, 49152),
    "Qwen3-1.7B, MLP": (512, 2048, 6144),
}
TIMES = 8  # the first one prepares


def seconds(work: Callable[[], object]) -> float:
    """The shortest of several times."""
    return min(timeit.repeat(work, number=1, repeat=TIMES))


def passes(rows: int, inside: int, outside: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A layer's forward pass, and its backward pass alone."""
    layer = torch.nn.Linear(inside, outside, bias=False)
    x = torch.randn(rows, inside, requires_grad=True)
    y, gradient = layer(x), torch.randn(rows, outside)

    def backward() -> None:
        torch.autograd.grad(y, (x, layer.weight), gradient, retain_graph=True)

    return lambda: layer(x), backward


def main(words: list[str]) -> None:
    """Print the table: billions of operations a second, each way, and the ratio."""
    settings = {"threads": "1", **dict(word.split("=", 1) for word in words)}
    torch.set_num_threads(int(settings["threads"]))
    here = "are handed over" if mkl_falls_short() else "stay torch's"
    print(f"{torch.backends.cpu.get_cpu_capability()}, {settings['threads']} thread(s); here products {here}\n")
    print("| layer | rows × in × out | torch, forward, backward | oneDNN, forward, backward | faster |")
    print("| --- | --- | --- | --- | --- |")
    works = {name: passes(*shape) for name, shape in LAYERS.items()}
    plain = {name: [seconds(work) for work in both] for name, both in works.items()}
    replaced_products()
    for name, shape in LAYERS.items():
        operations = 2e-9 * shape[0] * shape[1] * shape[2]
        ours = [seconds(work) for work in works[name]]
        rates = [f"{operations / t[0]:.0f}, {2 * operations / t[1]:.0f}" for t in (plain[name], ours)]
        size = " × ".join(f"{n:,}" for n in shape)
        print(f"| {name} | {size} | {rates[0]} | {rates[1]} | {sum(plain[name]) / sum(ours):.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
