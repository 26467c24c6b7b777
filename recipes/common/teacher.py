"""The privileged self-teacher's sequences, and its log-probs of the student's own tokens by verl's ordinary pass.

The teacher is the policy itself under another prompt: problem plus reference instead of problem alone.  So its scores
need no other model: sequences of (privileged prompt, the student's response ids) go to the actor's ``compute_log_prob``
like any others, once a step, before the first update (the papers' π_old).  A loss over the full vocabulary has the
teacher inside the training worker instead (workers/engine.py); the same sequences then travel with the batch.
Departure from the papers: none; what they leave open (which text is the reference, what happens when it is too long) is
`self_distill.teacher` in the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_from_nested

from recipes.common.prompts import PrivilegedPrompt, privileged_prompt
from workers.packing import TEACHER_IDS, TEACHER_POSITIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTITION = "self_teacher"  # TransferQueue partition of the teacher's sequences, cleared after each step


class MissingReference(ValueError):
    """A row that should have a reference for the teacher has none."""


@dataclass
class PrivilegedPrompts:
    """Renders each problem's privileged prompt once a step, however many rollouts it has, and counts what it cut."""

    tokenizer: PreTrainedTokenizerBase
    context: str  # "solution" or "answer"
    max_length: int
    template_kwargs: dict[str, Any]
    _cache: dict[tuple[str, str], PrivilegedPrompt] = field(default_factory=dict)

    def __call__(self, row: dict[str, Any]) -> PrivilegedPrompt:
        """The prompt for a dataset row with ``problem`` and ``solution`` or ``answer`` (see `reference_of`)."""
        problem, reference = problem_of(row), reference_of(row, self.context)
        key = (problem, reference)
        if key not in self._cache:
            self._cache[key] = privileged_prompt(
                self.tokenizer, problem, reference, max_length=self.max_length, template_kwargs=self.template_kwargs
            )
        return self._cache[key]

    def clear(self) -> None:
        self._cache.clear()


def problem_of(row: dict[str, Any]) -> str:
    """The problem's text: the ``problem`` column, else what the user asked in ``raw_prompt``."""
    if row.get("problem"):
        return str(row["problem"])
    return str([m["content"] for m in row["raw_prompt"] if m["role"] == "user"][-1])


def reference_of(row: dict[str, Any], context: str) -> str:
    """The text that the teacher is shown: the ``solution`` column, or the ``answer`` in a box.

    Raises:
        MissingReference: the column is absent or empty.
    """
    if context == "solution":
        text = str(row.get("solution") or "").strip()
    else:
        answer = row.get("answer") or (row.get("reward_model") or {}).get("ground_truth")
        text = f"\\boxed{{{answer}}}" if answer not in (None, "") else ""
    if not text:
        raise MissingReference(
            f"no {context} to show the teacher for the problem {problem_of(row)[:80]!r}: fill the column "
            f"{context!r}, or "
            "choose the other one with "
            f"self_distill.teacher.context={'answer' if context == 'solution' else 'solution'}"
        )
    return text


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


def teacher_batch(batch: KVBatchMeta, prompts: PrivilegedPrompts) -> TeacherBatch:
    """Render the privileged prompts and put the student's response ids after them.

    The metrics are ``teacher/prompt_truncated``, the share of sequences whose reference was cut, and
    ``teacher/prompt_tokens/mean``.
    """
    columns = ["responses", "response_mask", "prompts", "raw_prompt", "problem", "solution", "answer", "reward_model"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=columns)
    responses, masks = data["responses"].unbind(), data["response_mask"].unbind()
    student_prompts = data["prompts"].unbind()
    text_columns = {name: list(data[name]) for name in columns[3:] if name in data}

    prompt_ids, truncated, real = [], 0, 0
    for i, tag in enumerate(batch.tags):
        if tag.get("is_padding", False):  # verl's filler rows: masked out everywhere, any prompt will do
            prompt_ids.append(student_prompts[i].tolist())
            continue
        prompt = prompts({name: plain(values[i]) for name, values in text_columns.items()})
        prompt_ids.append(prompt.token_ids)
        truncated += prompt.truncated
        real += 1
    prompts.clear()
    return TeacherBatch(
        fields=teacher_sequences(prompt_ids, responses, masks),
        tags=[{**tag, "seq_len": len(p) + len(r)} for tag, p, r in zip(batch.tags, prompt_ids, responses, strict=True)],
        response_mask=data["response_mask"],
        metrics={
            "teacher/prompt_truncated": truncated / max(real, 1),
            "teacher/prompt_tokens/mean": sum(map(len, prompt_ids)) / len(prompt_ids),
        },
    )


def attach_teacher(batch: KVBatchMeta, teacher: TeacherBatch) -> None:
    """Write the teacher's sequences beside the batch's other fields, for a loss with the teacher in the worker."""
    fields = {TEACHER_IDS: teacher.fields["input_ids"], TEACHER_POSITIONS: teacher.fields["position_ids"]}
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
    )


def score_with_teacher(
    batch: KVBatchMeta, worker_group: Any, teacher: TeacherBatch, *, weights: str, temperature: float
) -> None:
    """Write ``teacher_log_probs``, shaped like the responses, beside the batch's other fields in TransferQueue.

    Args:
        weights: "current" (the policy itself), "frozen_adapter" (LoRA switched off), "frozen_copy" (the reference
            worker's: the worker group must answer ``compute_ref_log_prob`` then) or "engine_copy" (the teacher that the
            actor's engine keeps).
        temperature: of the rollout; the student's log-probs have the same.
    """
    tq.kv_batch_put(keys=batch.keys, partition_id=PARTITION, fields=teacher.fields, tags=teacher.tags)
    try:
        # A fresh meta: verl's workers read their options from it, and options stick to the one they were set on.
        meta = KVBatchMeta(partition_id=PARTITION, keys=list(batch.keys), tags=teacher.tags)
        meta.extra_info = {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
        if weights == "frozen_adapter":
            meta.extra_info["no_lora_adapter"] = True
        if weights == "frozen_copy":
            worker_group.compute_ref_log_prob(meta)
        elif weights == "engine_copy":
            worker_group.compute_teacher_log_prob(meta)
        else:
            worker_group.compute_log_prob(meta)
        scored = tq.kv_batch_get(keys=batch.keys, partition_id=PARTITION, select_fields=["log_probs"])
        teacher_log_probs = response_from_nested(scored["log_probs"], teacher.response_mask)
    finally:
        tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=TensorDict({"teacher_log_probs": teacher_log_probs}, batch_size=len(batch.keys)),
    )


def plain(value: Any) -> Any:
    """TransferQueue hands Python objects back as tensordict's NonTensorData or as themselves."""
    return getattr(value, "data", value)
