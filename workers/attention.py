"""Exact attention over packed sequences without flash-attn, under the name ``packed`` in transformers.

``import workers.attention`` registers it; from then on ``attn_implementation="packed"`` works in every transformers
model whose attention goes through transformers' attention interface, with packed rows as verl and TRL make them:
``position_ids`` that start again at each sequence, no attention mask, no cache.  With transformers' own ``sdpa`` such a
row has one dense mask over the whole pack, so its cost is quadratic in the pack; here it is the sum over the sequences.

Where the sequences begin is found once a forward pass, when the model asks for its mask: the `Packing` that it gets
instead of a mask travels to every layer, and through gradient checkpointing, as the mask would.  In half precision on
CUDA it goes to `torch.nn.attention.varlen` (flash-attention inside torch, gradients included), anywhere else to one
SDPA call for each sequence, which on a CPU takes less time than a padded batch.  What is not packed (padded batches,
generation with a cache, masks of other kinds) goes to transformers' ``sdpa`` unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "packed"  # the value of attn_implementation

VARLEN_DTYPES = (torch.float16, torch.bfloat16)
VARLEN_TORCH = "2.11"  # the first torch whose varlen_attn has a window and a scale


class Packing:
    """Where the sequences of packed rows lie; stands in the attention mask's place.

    Attributes:
        starts: (B, T) bool on the model's device, true at the first token of each sequence.
        window: tokens that a token sees, itself included, in a sliding-window layer; None if it sees all before it.
    """

    def __init__(self, starts: Tensor, window: int | None = None):
        self.starts = starts
        self.window = window
        self._windowed: dict[int, Tensor] = {}

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(sequences + 1,) int32: the sequences' first rows in the flattened pack, and its end."""
        first = self.starts.flatten().nonzero().flatten()
        return torch.nn.functional.pad(first, (0, 1), value=self.starts.numel()).to(torch.int32)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return self.cu_seqlens.diff().tolist()

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """(1, 1, length, length) bool for a sequence longer than the window; None if causal attention is enough.

        Args:
            length: tokens of the sequence.
            device: where the mask is needed.
        """
        if self.window is None or length <= self.window:
            return None
        if length not in self._windowed:
            row = torch.arange(length, device=device)
            distance = row[:, None] - row[None, :]
            self._windowed[length] = ((distance >= 0) & (distance < self.window))[None, None]
        return self._windowed[length]


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Packing | Tensor | None:
    """transformers' mask interface: a `Packing` for packed rows, else what ``sdpa`` gets.

    Args:
        batch_size: number of rows, B.
        q_length: tokens whose queries are computed.
        kv_length: tokens that they may see, those in the cache included.
        q_offset: place of the first query in its row; a tensor with a static cache.
        kv_offset: place of the first key in its row.
        mask_function: (batch, head, query, key) indices -> whether the query sees the key.  transformers puts the
            packed sequences into it, and ``allow_is_causal_skip=False`` beside it.
        attention_mask: (batch_size, kv_length) bool of a padded batch.
        local_size: tokens in the window of a sliding layer.
        allow_is_causal_skip: whether "causal" alone may stand for the mask; not in packed rows.
        use_vmap: whether transformers evaluates `mask_function` by vmap; such masks go to ``sdpa``.
        device: where the mask is needed.
        kwargs: handed on to ``sdpa``.
    """
    uncached = isinstance(q_offset, int) and (q_offset, kv_offset, q_length) == (0, 0, kv_length)
    # One sequence alone is packed only where that saves the window's dense mask: CUDA has a kernel for windows.
    windowed = local_size is not None and kv_length > local_size and torch.device(device).type == "cuda"
    if uncached and attention_mask is None and not use_vmap and (windowed or not allow_is_causal_skip):
        batch, row = torch.arange(batch_size, device=device)[:, None], torch.arange(q_length, device=device)[None]
        # A sequence begins where a token does not see the one before it; with a window of one token that says nothing.
        if local_size != 1 and not bool(mask_function(batch, 0, row[:, :-1], row[:, 1:]).any()):
            starts = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
            starts[:, 1:] = ~mask_function(batch, 0, row[:, 1:], row[:, :-1])
            return Packing(starts, local_size)
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset=q_offset,  # type: ignore[arg-type]  # a tensor with a static cache
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packing | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    Args:
        module: the attention layer.
        query: (B, heads, T, head_dim).
        key: (B, kv_heads, T, head_dim); kv_heads divides heads.
        value: (B, kv_heads, T, head_dim).
        attention_mask: what `packed_mask` gave.
        dropout: share of the attention weights that is dropped.
        scaling: factor of the scores; None is 1/√head_dim.
        is_causal: handed on to ``sdpa``; packed sequences always are.
        kwargs: what else transformers gives a layer: `position_ids`, and features that are refused.

    Returns:
        The attention's output (B, T, heads, head_dim), and None in place of the scores.

    Raises:
        ValueError: if the model caps its scores or has sinks, or the positions start again where a cache was asked for.
    """
    for name, what in (("softcap", "caps its attention scores"), ("s_aux", "has attention sinks")):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} {what}, which attn_implementation={NAME} does not compute")
    if not isinstance(attention_mask, Packing):
        if attention_mask is None:
            _refuse_unseen_packing(module, query, key, kwargs.get("position_ids"))
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    rows = query.shape[0]
    if rows > 1:  # one long row: no sequence spans two
        query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # SDPA would do this; torch's varlen kernel does not
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    if query.is_cuda and query.dtype in VARLEN_DTYPES and dropout == 0.0 and _has_kernel(query, value):
        output = _in_one_kernel(query, key, value, attention_mask, scaling)
    else:
        output = _one_by_one(module, query, key, value, attention_mask, dropout, scaling)
    return output.reshape(rows, -1, *output.shape[2:]), None


def _one_by_one(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """(1, T, heads, head_dim) by one SDPA call for each sequence."""
    sequences = zip(*(x.split(packing.lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(
            module, q, k, v, packing.mask(q.shape[2], q.device), dropout=dropout, scaling=scaling, is_causal=True
        )[0]
        for q, k, v in sequences
    ]
    return torch.cat(outputs, dim=1)


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether flash-attention has a kernel for these heads; others go through SDPA, which picks what it has."""
    return query.shape[-1] == value.shape[-1] <= 256 and query.shape[-1] % 8 == 0


def _in_one_kernel(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None) -> Tensor:
    """(1, T, heads, head_dim) by flash-attention's kernel for sequences of any lengths."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, head_dim)
    longest = max(packing.lengths)
    options: dict[str, Any] = {"scale": scaling}
    # Tokens before the query, not counting itself, and none after it.
    options["window_size"] = (-1 if packing.window is None else packing.window - 1, 0)
    if "enable_gqa" in _varlen_parameters():  # the kernel takes grouped heads in every version; since 2.12 it is told
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    output: Any = varlen_attn(query, key, value, packing.cu_seqlens, packing.cu_seqlens, longest, longest, **options)
    return output[None]


@cache
def _varlen_parameters() -> tuple[str, ...]:
    """Names of the parameters of the installed torch's `varlen_attn`; () where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return ()
    return tuple(inspect.signature(varlen_attn).parameters)


def _refuse_unseen_packing(module: torch.nn.Module, query: Tensor, key: Tensor, position_ids: Tensor | None) -> None:
    """transformers looks for packed sequences only where there is no cache; with one, they would see each other."""
    if getattr(module, "layer_idx", None) != 0 or query.shape[2] == 1 or query.shape[2] != key.shape[2]:
        return
    if position_ids is not None and position_ids.ndim == 2 and bool((position_ids.diff() != 1).any()):
        raise ValueError("packed position_ids with a key-value cache: pass use_cache=False to the model")


def attention_problems(model_config: Any, attn_implementation: str, device: str) -> Iterator[str]:
    """Why a run cannot use an attention, as sentences with value, rule and fix; nothing if it can.

    Args:
        model_config: the model's transformers configuration.
        attn_implementation: value of ``actor_rollout_ref.model.override_config.attn_implementation``.
        device: "cpu" or "cuda".
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    key = f"attn_implementation={attn_implementation}"
    known = {"eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)}  # not the paged ones
    if attn_implementation not in known and "/" not in attn_implementation:  # a slash: a kernel of the hub
        yield f"{key}: must be an attention of transformers or this package's {NAME!r}; set one of {sorted(known)}"
        return
    if attn_implementation != NAME:
        return
    if device == "cuda" and "window_size" not in _varlen_parameters():
        yield (
            f"{key} on GPUs needs torch.nn.attention.varlen with windows, which torch {torch.__version__} lacks: "
            f"install torch {VARLEN_TORCH} or newer, or set flash_attention_2"
        )
    config = model_config.get_text_config()
    name = getattr(config, "model_type", type(config).__name__)
    other = "set flash_attention_2, or eager"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield (
            f"{key}: {name} caps its attention scores at {config.attn_logit_softcapping}, which SDPA cannot do; {other}"
        )
    layers = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"})
    if layers:
        yield f"{key}: {name} has layers of {', '.join(layers)}, which packing does not divide; train another model"
    if not getattr(config, "is_causal", True) or getattr(config, "is_encoder_decoder", False):
        yield f"{key}: {name} is no causal decoder, and packed sequences are causal; train another model"
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model is not None and not (model._supports_sdpa and model._supports_attention_backend):
        yield (
            f"{key}: the attention of {name} (sinks, alibi or code of its own) does not go through transformers' "
            f"attention interface; {other}"
        )


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
