"""Seeded batch generation over transformers' ``generate``: no Ray, no verl, any device.

The rollout server (`workers.rollout.server`) and the evaluation commands call this where vLLM is absent. Decoding,
cache and stopping are transformers'. Ours is one logits processor, which draws each token by inverting the distribution
function at a uniform number that belongs to the *request*, so a response depends on its own seed and not on the
requests that happen to share its batch; the same processor records the log-prob of what it drew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class SamplingParams:
    """How a request is sampled; the fields that verl's agent loops send.

    ``temperature=0`` is greedy. ``top_k=-1`` and ``top_p=1.0`` switch the truncations off. ``logprobs`` asks for the
    log-prob of each sampled token under the truncated, tempered distribution (vLLM's ``processed_logprobs``).
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
    """One response: token ids (the stop token included), their log-probs (or None), and why it ended."""

    token_ids: list[int]
    log_probs: list[float] | None
    stop_reason: str  # "completed" (a stop token) or "length"


class _InverseTransformSampler(LogitsProcessor):
    """Last in the processor list: picks the token itself and leaves ``generate`` an argmax with one candidate.

    ``uniforms`` (B, T) holds the request's own uniform number for each position; None is greedy.
    """

    def __init__(self, uniforms: torch.Tensor | None):
        self.uniforms = uniforms
        self.log_probs: list[torch.Tensor] = []  # one (B,) tensor a position

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:  # type: ignore[override]
        log_probs = scores.float().log_softmax(dim=-1)  # (B, V)
        if self.uniforms is None:
            tokens = log_probs.argmax(dim=-1, keepdim=True)
        else:
            # Double precision: over a vocabulary of 150k, fp32 sums err by more than a rare token's mass.
            cumulative = log_probs.double().exp().cumsum(dim=-1)
            threshold = self.uniforms[:, len(self.log_probs), None] * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[-1] - 1)
        self.log_probs.append(log_probs.gather(-1, tokens).squeeze(-1))
        return torch.full_like(scores, float("-inf")).scatter_(-1, tokens, 0.0)


def _uniforms(seeds: Sequence[int], length: int, device: torch.device) -> torch.Tensor:
    """(B, length) uniform numbers, row i from a generator seeded with ``seeds[i]`` alone."""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(device)


def response_seed(*identity: Any) -> int:
    """A 63-bit seed from JSON-serialisable values, equal in every process and run."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> list[int]:
    """Ids that end a response: the generation config's, which may be several, and the tokenizer's."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return sorted(i for i in ids if isinstance(i, int))


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
        prompts: B prompts as token ids, each non-empty.
        seeds: B seeds; the response to prompt i is a function of the weights, ``prompts[i]`` and ``seeds[i]``
            (up to the floating-point noise that another batch shape brings).
        stop_token_ids: ids that end a response and belong to it; may be empty.

    Returns:
        B responses in the order of ``prompts``.

    Raises:
        ValueError: no prompt, an empty prompt, or a number of seeds that differs from that of the prompts.
        FloatingPointError: the model returned NaN, naming the first prompt concerned.
    """
    if not prompts or any(len(p) == 0 for p in prompts):
        raise ValueError("generate_batch needs at least one prompt and no empty ones")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: each request has its own")
    device = next(model.parameters()).device
    width = max(len(p) for p in prompts)
    input_ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1

    greedy = params.temperature == 0
    sampler = _InverseTransformSampler(None if greedy else _uniforms(seeds, params.max_tokens, device))
    processors = LogitsProcessorList()
    if not greedy and params.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        processors.append(TopPLogitsWarper(params.top_p))
    processors.append(sampler)

    output = model.generate(  # type: ignore[operator]
        input_ids.to(device),
        attention_mask=attention_mask.to(device),
        logits_processor=processors,
        do_sample=False,
        num_beams=1,
        max_new_tokens=params.max_tokens,
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=pad_token_id,
        use_cache=True,
    )
    tokens = output[:, width:].cpu()
    log_probs = torch.stack(sampler.log_probs, dim=1).cpu()  # (B, T)

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
