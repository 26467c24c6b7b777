"""Entropy of a model's attention at the tokens that predict a response, from the queries and keys of its own pass.

    H_t = mean over heads (and layers) of −Σ_j a_tj log a_tj,      a_t = softmax(q_t · k_j · scale),  j up to t

Kernels do not give their weights, and eager attention of a packed row would hold them for all of it.  So within
`attention_watched` the model's attention function hands its queries and keys over before it runs, whatever kernel it
is, and the weights of the response's rows alone are made again, in fp32, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import workers.attention  # noqa: F401  registers "packed" among them

# Elements of a block of weights (heads, rows, keys); on a CPU it should stay in cache.
_BLOCK = {"cpu": 1 << 20}
_GPU_BLOCK = 1 << 26


def attention_entropy(
    query: Tensor,
    key: Tensor,
    sequence_offsets: Tensor,
    response_offsets: Tensor,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Mean over heads of the attention's entropy at the rows that predict response tokens, (Σ response_i,) fp32, nats.

    In the order of `workers.training.packing.response_rows`: the row of the token before the response comes first.

    Args:
        query: (heads, T, head_dim) of packed sequences, rotated.  key: (kv_heads, T, head_dim); kv_heads divides heads.
        sequence_offsets, response_offsets: (B + 1,) of the packed sequences and of the responses at their ends.
        scaling: factor of the scores; None: 1/√head_dim.
        window: tokens that a token sees, itself included; None: all before it.
    """
    heads, groups = query.shape[0], key.shape[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    budget = _BLOCK.get(query.device.type, _GPU_BLOCK)
    ends, counts = sequence_offsets[1:].tolist(), response_offsets.diff().tolist()
    found = []
    with torch.autocast(query.device.type, enabled=False):
        for start, end, count in zip(sequence_offsets[:-1].tolist(), ends, counts, strict=True):
            keys = key[:, start : end - 1].float()
            first, last = end - 1 - count, end - 1  # rows that predict the response
            step = max(1, budget // max(1, heads * (last - start)))
            for at in range(first, last, step):
                to = min(at + step, last)
                # Keys after the block's last row are masked for all of it.
                before = keys[:, : to - start]
                asked = query[:, at:to].float().reshape(groups, -1, query.shape[-1])
                scores = (asked @ before.transpose(1, 2)).mul_(scale).reshape(heads, to - at, -1)
                distance = torch.arange(at, to, device=query.device)[:, None] - torch.arange(
                    start, to, device=query.device
                )
                unseen = distance < 0 if window is None else (distance < 0) | (distance >= window)
                weights = scores.masked_fill_(unseen, float("-inf")).softmax(-1)
                found.append(torch.special.entr(weights).sum(-1).mean(0))
    return torch.cat(found) if found else query.new_zeros(0, dtype=torch.float32)


@contextmanager
def attention_watched(
    model: nn.Module, see: Callable[[int, Tensor, Tensor, float | None, int | None], None]
) -> Iterator[None]:
    """Within the block see(layer, query, key, scaling, window) is called before each attention of the model.

    query (heads, T, head_dim) and key (kv_heads, T, head_dim) are those of a pass of one packed row.
    """
    name = _implementation(model)
    inner = ALL_ATTENTION_FUNCTIONS[name]

    def watched(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        see(module.layer_idx, query[0], key[0], kwargs.get("scaling"), kwargs.get("sliding_window"))  # type: ignore[arg-type]
        return inner(module, query, key, *args, **kwargs)

    had = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = watched
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if had is not None:
            ALL_ATTENTION_FUNCTIONS[name] = had


class AttentionEntropy:
    """What `attention_watched` sees of a pass, averaged over the layers that are asked for.

    Args:
        layers: one of `ATTENTION_LAYERS`.
        sequence_offsets, response_offsets: of the pass, as in `attention_entropy`.
    """

    def __init__(self, model: nn.Module, layers: str, sequence_offsets: Tensor, response_offsets: Tensor) -> None:
        self.count = model.config.get_text_config().num_hidden_layers
        self.layers, self.offsets = layers, (sequence_offsets, response_offsets)
        self.seen = 0
        self.total: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float | None, window: int | None) -> None:
        if self.layers == "last" and layer != self.count - 1:
            return
        entropy = attention_entropy(query, key, *self.offsets, scaling=scaling, window=window)
        self.total = entropy if self.total is None else self.total + entropy
        self.seen += 1

    def mean(self) -> Tensor:
        """(Σ response_i,) fp32, nats.  Raises RuntimeError where the model's attention was not seen."""
        wanted = 1 if self.layers == "last" else self.count
        if self.total is None or self.seen != wanted:
            raise RuntimeError(
                f"the attention of {self.seen} of {wanted} layers was seen, so its entropy is not known: this model's "
                "attention does not go through transformers' attention interface; choose another router"
            )
        return self.total / wanted


def _implementation(model: nn.Module) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def attention_entropy_problems(model_config: Any, attn_implementation: str) -> Iterator[str]:
    """Why a run cannot have the entropy of its model's attention, as sentences with value, rule and fix.

    Args:
        model_config: the model's transformers configuration.
        attn_implementation: value of ``actor_rollout_ref.model.override_config.attn_implementation``.
    """
    if attn_implementation not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        yield (
            f"attn_implementation={attn_implementation}: the entropy of the attention is made of the queries and keys "
            "that transformers' attention interface gets, which this one does not; set packed, sdpa or "
            "flash_attention_2"
        )
    config = model_config.get_text_config()
    name = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield (
            f"actor_rollout_ref.model.path: {name} caps its attention scores at {config.attn_logit_softcapping}, which "
            "the entropy of the attention leaves out; choose another router"
        )
    layers = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"})
    if layers:
        yield f"{name} has layers of {', '.join(layers)}, whose attention has no such weights; choose another router"
