"""The privileged self-teacher's sequences, and its log-probs of the student's own tokens by verl's ordinary pass.

The teacher is the policy itself under another prompt: problem plus reference instead of problem alone.  So its scores
need no other model: sequences of (privileged prompt, the student's response ids) go to the actor's ``compute_log_prob``
like any others, once a step, before the first update (the papers' π_old).  A loss over the full vocabulary has the
teacher inside the training worker instead (workers/training/engine.py); the same sequences then travel with the batch.
Departure from the papers: none; what they leave open (which text is the reference, what happens when it is too long) is
`self_distill.teacher` in the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_from_nested

from recipes.common.metric_names import FORCED_FULL, PROMPT_TOKENS, PROMPT_TRUNCATED
from recipes.common.teacher.contexts import PrivilegedPrompts

PARTITION = "self_teacher"  # TransferQueue partition of the teacher's sequences, cleared after each step


def teacher_sequences(
    prompts: Sequence[Sequence[int]], responses: Sequence[torch.Tensor], response_masks: Sequence[torch.Tensor]
) -> TensorDict:
    """Jagged ``input_ids``, ``position_ids`` and ``loss_mask`` (B, prompt_i + response_i) for verl's log-prob pass."""
    ids, positions, masks = [], [], []
    for prompt, response, mask in zip(prompts, responses, response_masks, strict=True):
        sequence = torch.cat([torch.as_tensor(prompt, dtype=torch.int64), response.to(torch.int64)])
        ids.append(sequence)
        positions.append(torch.arange(len(sequence), dtype=torch.int64))
        masks.append(mask.to(torch.int64))

    def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    return TensorDict(
        {"input_ids": jagged(ids), "position_ids": jagged(positions), "loss_mask": jagged(masks)}, batch_size=len(ids)
    )


@dataclass(frozen=True)
class TeacherBatch:
    """The teacher's sequences for a batch, in its row order."""

    fields: TensorDict  # input_ids, position_ids, loss_mask, as `teacher_sequences` makes them
    tags: list[dict[str, Any]]
    response_mask: torch.Tensor  # jagged (B, response_i)
    metrics: dict[str, float]


def teacher_batch(
    batch: KVBatchMeta, prompts: PrivilegedPrompts, exposures: Sequence[float] | None = None
) -> TeacherBatch:
    """Render the privileged prompts and put the student's response ids after them.

    exposures: (B,) share of the reasoning that the teacher of each response is shown; None: all of it.
    The metrics are the share of sequences whose reference was cut, the mean tokens of a prompt and, with exposures,
    the share of references in which no answer was found to keep, so that they were shown whole.
    """
    columns = ["responses", "response_mask", "prompts", "raw_prompt", "problem", "solution", "answer", "reward_model"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=columns)
    responses, masks = data["responses"].unbind(), data["response_mask"].unbind()
    student_prompts = data["prompts"].unbind()
    text_columns = {name: list(data[name]) for name in columns[3:] if name in data}

    prompt_ids, truncated, forced, real = [], 0, 0, 0
    for i, tag in enumerate(batch.tags):
        if tag.get("is_padding", False):  # verl's filler rows: masked out everywhere, any prompt will do
            prompt_ids.append(student_prompts[i].tolist())
            continue
        row = {name: plain(values[i]) for name, values in text_columns.items()}
        prompt = prompts(row, 1.0 if exposures is None else exposures[i])
        prompt_ids.append(prompt.token_ids)
        truncated += prompt.truncated
        forced += prompt.forced_full
        real += 1
    prompts.clear()
    metrics = {
        PROMPT_TRUNCATED: truncated / max(real, 1),
        PROMPT_TOKENS: sum(map(len, prompt_ids)) / len(prompt_ids),
    }
    if exposures is not None:
        metrics[FORCED_FULL] = forced / max(real, 1)
    return TeacherBatch(
        fields=teacher_sequences(prompt_ids, responses, masks),
        tags=[{**tag, "seq_len": len(p) + len(r)} for tag, p, r in zip(batch.tags, prompt_ids, responses, strict=True)],
        response_mask=data["response_mask"],
        metrics=metrics,
    )


def sequence_log_probs(
    worker_group: Any,
    *,
    keys: Sequence[str],
    fields: TensorDict,
    tags: list[dict[str, Any]],
    response_mask: torch.Tensor,
    weights: str,
    temperature: float,
) -> torch.Tensor:
    """Log-probs (B, response_i), jagged, of the responses in any sequences, by verl's pass on the actor's workers.

    Args:
        keys, fields, tags: the sequences (`teacher_sequences`), under keys of their own or a batch's; one tag each,
            with ``seq_len``.  Their number must be a multiple of the data-parallel workers.
        response_mask: jagged (B, response_i).
        weights: "current" (the policy itself), "frozen_adapter" (LoRA switched off) or "engine_copy" (the teacher that
            the actor's engine keeps).
        temperature: divides the logits.
    """
    keys = list(keys)
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=tags)
    try:
        # A fresh meta: verl's workers read their options from it, and options stick to the one they were set on.
        meta = KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)
        meta.extra_info = {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
        if weights == "frozen_adapter":
            meta.extra_info["no_lora_adapter"] = True
        if weights == "engine_copy":
            worker_group.compute_teacher_log_prob(meta)
        else:
            worker_group.compute_log_prob(meta)
        scored = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=["log_probs"])
        return response_from_nested(scored["log_probs"], response_mask)
    finally:
        tq.kv_clear(keys=keys, partition_id=PARTITION)


def plain(value: Any) -> Any:
    """TransferQueue hands Python objects back as tensordict's NonTensorData or as themselves."""
    return getattr(value, "data", value)
