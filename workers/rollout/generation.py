"""Seeded batch generation over transformers' models: no Ray, no verl, any device.

The rollout server (`workers.rollout.server`) and the evaluation commands call this where vLLM is absent.  Model, cache
and truncations are transformers'; the loop over tokens is ours, for three things.  Each token is drawn by inverting the
distribution function at a uniform number that belongs to the *request*, so a response depends on its own seed and not
on the requests that share its batch.  A prompt that several requests share is read once.  And rows whose response has
ended leave the batch, which lasts as long as its longest response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

KEEP_SHARE = 0.75  # ended rows are taken out, which copies the others, once no more than this share still generates


@dataclass(frozen=True)
class SamplingParams:
    """How a request is sampled; the fields that verl's agent loops send.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: mass of the most likely tokens that are kept; 1.0 switches it off.
        top_k: number of most likely tokens that are kept; -1 switches it off.
        max_tokens: longest response.
        logprobs: whether the log-prob of each sampled token is wanted, under the truncated, tempered distribution
            (vLLM's ``processed_logprobs``).

    Raises:
        ValueError: if a value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 256
    logprobs: bool = True

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be >= 0; 0 means greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]; 1.0 switches it off")
        if self.top_k != -1 and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be -1 (off) or at least 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be at least 1; is the prompt as long as the context?")


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        token_ids: the stop token included.
        log_probs: those of the tokens, nats; None if they were not asked for.
        stop_reason: "completed" (a stop token came) or "length".
    """

    token_ids: list[int]
    log_probs: list[float] | None
    stop_reason: str


class _RoomyLayer(DynamicLayer):
    """transformers' cache of a layer, with memory for tokens to come: a new token does not copy the ones before it."""

    _room: tuple[Tensor, Tensor] | None = None  # keys and values, (B, heads, more than needed, head_dim)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, head_dim) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._room is None or end > self._room[0].shape[2]:
            keys, values = (
                new.new_empty(*new.shape[:2], end + end // 2, new.shape[3]) for new in (key_states, value_states)
            )
            if self._room is not None:
                keys[:, :, :start], values[:, :, :start] = self._room[0][:, :, :start], self._room[1][:, :, :start]
            self._room = keys, values
        self._room[0][:, :, start:end], self._room[1][:, :, start:end] = key_states, value_states
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, in that order; a row may stand there twice."""
        if self._room is not None:
            end = self.get_seq_length()
            self._room = self._room[0].index_select(0, indices), self._room[1].index_select(0, indices)
            self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]


def _cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own kind of cache, with `_RoomyLayer` for the layers that keep every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _warpers(params: SamplingParams) -> Any:
    """transformers' temperature, top-k and top-p, in the order of its own sampling."""
    warpers = LogitsProcessorList()
    if params.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    return warpers


def _draw(scores: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """A token for each row, and its log-prob, (B,) each.

    Args:
        scores: (B, V) fp32.
        uniforms: (B,) in double precision; the token is the one at which the distribution function passes it.  None
            takes the likeliest token.
    """
    log_probs = scores.log_softmax(dim=-1)
    if uniforms is None:
        tokens = log_probs.argmax(dim=-1, keepdim=True)
    else:
        # Double precision: over a vocabulary of 150k, fp32 sums err by more than a rare token's mass.
        cumulative = log_probs.double().exp().cumsum(dim=-1)
        threshold = uniforms[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[-1] - 1)
    return tokens.squeeze(-1), log_probs.gather(-1, tokens).squeeze(-1)


def _uniforms(seeds: Sequence[int], length: int, device: torch.device) -> torch.Tensor:
    """(B, length) uniform numbers, row i from a generator seeded with ``seeds[i]`` alone."""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(device)


def response_seed(*identity: Any) -> int:
    """A 63-bit seed from JSON-serialisable values, equal in every process and run."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> list[int]:
    """Ids that end a response: the generation configuration's, which may be several, and the tokenizer's.

    Args:
        tokenizer: its end-of-sequence token counts.
        generation_config: the model's; None if it has none.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted(i for i in ids if isinstance(i, int))


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(B, longest) token ids, the prompts at the right end, and where they are, bool."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = True
    return ids, mask


def _next_scores(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """The logits (B, V) in fp32 of the token after some tokens, whose keys and values go into the cache.

    Args:
        model: a causal language model.
        ids: (B, new).
        mask: (B, cached + new) bool.
        positions: (B, new).
        cache: keys and values of the tokens before.
    """
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def _sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    stop_token_ids: Sequence[int],
    pad_token_id: int,
) -> tuple[Tensor, Tensor]:
    """(B, T) tokens and their log-probs, on the CPU; what follows a row's first stop token means nothing."""
    device = next(model.parameters()).device
    warpers = _warpers(params)
    uniforms = None if params.temperature == 0 else _uniforms(seeds, params.max_tokens, device)
    stops = torch.tensor(list(stop_token_ids), dtype=torch.long, device=device)
    tokens = torch.full((len(prompts), params.max_tokens), pad_token_id, dtype=torch.long, device=device)
    log_probs = torch.zeros(tokens.shape, device=device)

    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids, mask = (x.to(device) for x in _left_padded(list(row_of), pad_token_id))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = _cache(model)
    scores = _next_scores(model, ids, mask, positions, cache)
    # From here on a row is a request, which starts from its prompt's row.
    start = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device)
    cache.batch_select_indices(start)
    scores, mask, position = scores[start], mask[start], positions[start, -1:]
    request = torch.arange(len(prompts), device=device)
    going = torch.ones_like(request, dtype=torch.bool)
    for step in range(params.max_tokens):
        picked, chosen = _draw(warpers(ids, scores), None if uniforms is None else uniforms[request, step])
        tokens[request, step], log_probs[request, step] = picked, chosen
        going = going & ~torch.isin(picked, stops)
        left = int(going.sum())
        if left == 0 or step + 1 == params.max_tokens:
            break
        if left <= KEEP_SHARE * len(request):
            kept = going.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            request, going, picked, mask, position = (x[kept] for x in (request, going, picked, mask, position))
        mask, position = torch.nn.functional.pad(mask, (0, 1), value=True), position + 1
        scores = _next_scores(model, picked[:, None], mask, position, cache)
    return tokens[:, : step + 1].cpu(), log_probs[:, : step + 1].cpu()


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
) -> list[Generated]:
    """Sample one response for each prompt, all with the same parameters, in one left-padded batch.

    Args:
        model: a causal language model; its device is used.
        prompts: B prompts as token ids, each non-empty.
        params: how all of them are sampled.
        seeds: B seeds; the response to prompt i is a function of the weights, ``prompts[i]`` and ``seeds[i]``
            (up to the floating-point noise that another batch shape brings).
        stop_token_ids: ids that end a response and belong to it; may be empty.
        pad_token_id: fills the batch; any id will do.

    Returns:
        B responses in the order of ``prompts``.

    Raises:
        ValueError: if there is no prompt, an empty prompt, or another number of seeds than of prompts.
        FloatingPointError: if the model returned NaN; names the first prompt concerned.
    """
    if not prompts or any(len(p) == 0 for p in prompts):
        raise ValueError("generate_batch needs at least one prompt and no empty ones")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: each request has its own")
    tokens, log_probs = _sample(model, prompts, params, seeds, stop_token_ids, pad_token_id)

    stops = torch.isin(tokens, torch.as_tensor(list(stop_token_ids), dtype=torch.long))
    responses = []
    for row in range(len(prompts)):
        hits = stops[row].nonzero()
        completed = len(hits) > 0
        length = int(hits[0]) + 1 if completed else tokens.shape[1]
        row_log_probs = log_probs[row, :length]
        if row_log_probs.isnan().any():
            raise FloatingPointError(
                f"the model's distribution is NaN while it answers prompt {row} of the batch: its weights are broken"
            )
        responses.append(
            Generated(
                token_ids=tokens[row, :length].tolist(),
                log_probs=row_log_probs.tolist() if params.logprobs else None,
                stop_reason="completed" if completed else "length",
            )
        )
    return responses
