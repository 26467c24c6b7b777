"""Make a model's output head compute what is needed of its logits, so that the logits themselves are never held.

Logits of a vocabulary of 152k are 0.3 MB a token, the hidden states that they are made of 8 KB.  A divergence, a
log-prob and an entropy need logits only for a moment, a chunk of tokens at a time.  So within `head_computes` the
head's forward is a function of its inputs and its weight: inside the model's own forward pass, where FSDP has the
weight whole, and in its graph, so that gradients reach the weight and the layers below as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# Of a config.json: what some models do to their logits after the head, which this way would leave out.
AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def output_head(model: nn.Module) -> nn.Module:
    """The module that makes logits of hidden states, also under an adapter and FSDP."""
    return model.get_output_embeddings()


def head_obstacle(model: nn.Module) -> str | None:
    """Why the head's logits cannot be replaced by a function of its inputs and weight; None if they can."""
    head = output_head(model)
    if not isinstance(head, nn.Linear):
        return f"its head is a {type(head).__name__}, not a linear map (an adapter on it makes it one of its own)"
    if head.bias is not None:
        return "its head has a bias"
    return after_the_head(model.config)


def after_the_head(model_config: Any) -> str | None:
    """What a model's transformers configuration says it does to the head's logits; None: nothing."""
    for name in AFTER_THE_HEAD:
        value = getattr(model_config.get_text_config(), name, None)
        if value not in (None, 1, False):
            return f"its configuration has {name}={value}, which changes the logits after the head"
    return None


@contextmanager
def head_computes(model: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Let the model's "logits" be a function of the head's inputs and weight within the block.

    Args:
        model: a causal language model, also under an adapter and FSDP.
        function: (hidden states (1, T, h), weight (V, h)) -> (1, T, anything).
    """
    head: Any = output_head(model)
    head.forward = lambda hidden: function(hidden, head.weight)
    try:
        yield
    finally:
        del head.forward  # the class's own again
