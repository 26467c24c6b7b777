"""Monte Carlo dropout for models without dropout layers: hooks on the outputs of the last layers (PW-OPSD, App. B).

Used to measure, never to train.  The masks come from a generator of their own, so a pass is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def dropout_hooks(model: PreTrainedModel, *, layers: int, rate: float, seed: int) -> Iterator[None]:
    """Drop entries of the outputs of the last decoder layers within the block; the hooks are removed whatever happens.

    Args:
        model: a causal language model.
        layers: number of the last layers.
        rate: probability of dropping an entry; the others are scaled by 1 / (1 − rate).
        seed: decides the masks.
    """
    stack = model.get_decoder().layers
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def drop(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        keep = torch.rand(hidden.shape, generator=generator, device=device) >= rate
        dropped = hidden * keep / (1 - rate)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    handles = [layer.register_forward_hook(drop) for layer in stack[-layers:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
