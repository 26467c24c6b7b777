"""The privileged self-teacher's sequences, and its log-probs of the student's own tokens by verl's ordinary pass.

The teacher is the policy itself under another prompt: problem plus reference instead of problem alone.  So its scores
need no other model: sequences of (privileged prompt, the student's response ids) go to the actor's ``compute_log_prob``
like any others, once a step, before the first update (the papers' π_old).  A loss over the full vocabulary has the
teacher inside the training worker instead (workers/training/engine.py); the same sequences then travel with the batch.
Departure from the papers: none; what they leave open (which text is the reference, what happens when it is too long) is
`self_distill.teacher` in the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_from_nested

from recipes.common.metric_names import CONTRASTED, FORCED_FULL, PROMPT_TOKENS, PROMPT_TRUNCATED, WITHOUT_CONTEXT
from recipes.common.teacher.contexts import (
    FROM_GROUP,
    ContextParams,
    PrivilegedPrompts,
    Response,
    shown_texts,
    strip_thinking,
    taught,
)
from recipes.common.teacher.prompts import PrivilegedPrompt
from workers.rollout.thinking import thinking_is_open

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTITION = "self_teacher"  # TransferQueue partition of the teacher's sequences, cleared after each step


def teacher_sequences(
    prompts: Sequence[Sequence[int]], responses: Sequence[torch.Tensor], response_masks: Sequence[torch.Tensor]
) -> TensorDict:
    """Jagged ``input_ids``, ``position_ids`` and ``loss_mask`` (B, prompt_i + response_i) for verl's log-prob pass.

    Args:
        prompts: (B) token ids of what the teacher is shown.
        responses: (B) the student's token ids, (response_i,) each.
        response_masks: (B) validity of these, (response_i,) each.
    """
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
    """The teacher's sequences for a batch.

    Attributes:
        fields, tags: one sequence a row of the batch, in its order: input_ids, position_ids, loss_mask, as
            `teacher_sequences` makes them. Rows without a teacher have the student's own prompt there.
        responses: (B) ids, (response_i,) each, and response_mask: jagged (B, response_i).
        prompts: (B) rows of one list of prompts for each context; empty for rows without a teacher.
        has_teacher: (B,) bool; false for verl's filler rows.
        metrics: of the prompts.
    """

    fields: TensorDict
    tags: list[dict[str, Any]]
    responses: Sequence[torch.Tensor]
    response_mask: torch.Tensor
    prompts: list[list[list[list[int]]]]
    has_teacher: torch.Tensor
    metrics: dict[str, float]


COLUMNS = ("raw_prompt", "problem", "solution", "answer", "reward_model", "hint", "feedback")


def teacher_batch(
    batch: KVBatchMeta,
    prompts: PrivilegedPrompts,
    contexts: ContextParams,
    *,
    groups: Sequence[Any],
    correct: Sequence[bool],
    feedback: Sequence[str],
    step: int,
    exposures: Sequence[float] | None = None,
) -> TeacherBatch:
    """Render the privileged prompts and put the student's response ids after them.

    Args:
        batch: the global batch, with verl's filler rows.
        prompts: renders what the teacher is shown.
        contexts: which texts it is shown.
        groups, correct, feedback: (B) label of each response's problem, whether it was successful, and what the
            verifier said of it in words.
        step: the training step, for contexts that are drawn.
        exposures: (B,) share of the reasoning that the teacher of each response is shown; None: all of it.

    Returns:
        With metrics: the share of prompts whose text was cut, of the responses that `contexts.teaches` names the share
        without a teacher, the mean tokens of a prompt, how many texts each further context shows on average and, with
        exposures, the share of references in which no answer was found to keep, so that they were shown whole.
    """
    tensors = ["responses", "response_mask", "prompts"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[*tensors, *COLUMNS])
    answers, masks, student = (data[name].unbind() for name in tensors)
    columns = {name: list(data[name]) for name in COLUMNS if name in data}
    # verl's filler rows are masked out everywhere: any prompt will do, and they are nobody's sibling.
    real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    reads = not set(FROM_GROUP).isdisjoint(contexts.named)
    responses = [
        Response(
            row={name: plain(values[i]) for name, values in columns.items()},
            group=groups[i],
            number=tuple(int(part) for part in batch.keys[i].split("_")[1:]),
            text=response_text(prompts.tokenizer, answers[i], masks[i], student[i]) if reads else "",
            correct=bool(correct[i]),
            feedback=feedback[i],
        )
        for i in real
    ]
    texts = {kind: shown_texts(kind, responses, contexts, step=step) for kind in contexts.named}

    shown: list[list[list[list[int]]]] = [[] for _ in batch.tags]
    made: list[PrivilegedPrompt] = []
    asked = taught(responses, contexts)
    for n, (i, response) in enumerate(zip(real, responses, strict=True)):
        if not asked[n]:
            continue
        kinds = list(contexts.kinds)
        if contexts.fallback and not texts[kinds[0]][n]:
            kinds[0] = contexts.fallback
        if not all(texts[kind][n] for kind in kinds):
            continue
        exposure = 1.0 if exposures is None else exposures[i]
        rendered = [[prompts.showing(kind, response.row, text, exposure) for text in texts[kind][n]] for kind in kinds]
        shown[i] = [[prompt.token_ids for prompt in of_kind] for of_kind in rendered]
        made += [prompt for of_kind in rendered for prompt in of_kind]
    prompts.clear()

    own = [of_row[0][0] if of_row else student[i].tolist() for i, of_row in enumerate(shown)]
    metrics = {
        PROMPT_TRUNCATED: sum(prompt.truncated for prompt in made) / max(len(made), 1),
        PROMPT_TOKENS: sum(len(prompt.token_ids) for prompt in made) / max(len(made), 1),
        WITHOUT_CONTEXT: (sum(asked) - sum(map(bool, shown))) / max(sum(asked), 1),
    }
    if len(contexts.kinds) > 1:
        counts = [sum(map(len, of_row[1:])) for of_row in shown if of_row]
        metrics[CONTRASTED] = sum(counts) / max(len(counts), 1)
    if exposures is not None:
        metrics[FORCED_FULL] = sum(prompt.forced_full for prompt in made) / max(len(made), 1)
    return TeacherBatch(
        fields=teacher_sequences(own, answers, masks),
        tags=[{**tag, "seq_len": len(p) + len(r)} for tag, p, r in zip(batch.tags, own, answers, strict=True)],
        responses=answers,
        response_mask=data["response_mask"],
        prompts=shown,
        has_teacher=torch.tensor([bool(of_row) for of_row in shown]),
        metrics=metrics,
    )


def response_text(
    tokenizer: PreTrainedTokenizerBase, response: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor
) -> str:
    """A response as another one's context: its text without thinking and special tokens.

    Args:
        tokenizer: the student's.
        response, mask: (response_i,) ids and their validity.
        prompt: (prompt_i,) the student's ids, which may end in an open thinking block.
    """
    thinking = {"<think>", "</think>"}
    special = {i for i in tokenizer.all_special_ids if tokenizer.convert_ids_to_tokens(i) not in thinking}
    ids = [i for i, valid in zip(response.tolist(), mask.tolist(), strict=True) if valid and i not in special]
    opened = thinking_is_open(tokenizer, prompt.tolist())
    return strip_thinking(str(tokenizer.decode(ids, skip_special_tokens=False)), opened=opened)


@dataclass(frozen=True)
class TeacherLogProbs:
    """What the teacher says of the responses' tokens, nats; zeros in rows without a teacher.

    Attributes:
        own: log p_T(o_t) of the first context, jagged (B, response_i) fp32.
        entropy: H_T of the first context over the full vocabulary, like `own`; None where it was not asked for.
        contrast: log of the mean probability under the further contexts, like `own`; None where there are none.
        tokens: how many the teacher read for it.
    """

    own: torch.Tensor
    entropy: torch.Tensor | None
    contrast: torch.Tensor | None
    tokens: int


def teacher_log_probs(
    batch: KVBatchMeta,
    teacher: TeacherBatch,
    worker_group: Any,
    *,
    weights: str,
    workers: int,
    temperature: float,
    entropy: bool = False,
) -> TeacherLogProbs:
    """Score every prompt of every response in one batch, and mix those of a context: log (1/K) Σ_k p_T(o_t | k).

    Args:
        batch: the global batch.
        teacher: its sequences.
        worker_group: verl's, of the actor.
        weights, temperature: as in `sequence_scores`.
        workers: data-parallel workers; the first sequence is repeated to a multiple of them.
        entropy: keep the teacher's entropies too; its first context then has one prompt a response.
    """
    answers, masks = teacher.responses, teacher.response_mask.unbind()
    places = [
        (i, part, prompt)
        for i, of_row in enumerate(teacher.prompts)
        for part, of_kind in enumerate(of_row)
        for prompt in of_kind
    ]
    several = any(len(of_row) > 1 for of_row in teacher.prompts)
    scored: dict[tuple[int, bool], list[torch.Tensor]] = {}
    uncertain: dict[tuple[int, bool], list[torch.Tensor]] = {}
    tokens = 0
    if places:
        filled = [*places, *[places[0]] * (-len(places) % workers)]
        rows = [i for i, _, _ in filled]
        lengths = [len(prompt) + len(answers[i]) for i, _, prompt in filled]
        tokens = sum(lengths)
        scores = sequence_scores(
            worker_group,
            keys=[f"{batch.keys[i]}_{n}" for n, i in enumerate(rows)],
            fields=teacher_sequences([p for *_, p in filled], [answers[i] for i in rows], [masks[i] for i in rows]),
            tags=[{**batch.tags[i], "seq_len": length} for i, length in zip(rows, lengths, strict=True)],
            response_mask=torch.nested.as_nested_tensor([masks[i] for i in rows], layout=torch.jagged),
            weights=weights,
            temperature=temperature,
            entropy=entropy,
        )
        for name, found in (("log_probs", scored), ("entropy", uncertain)):
            for (i, part, _), values in zip(places, scores[name].unbind() if name in scores else (), strict=False):
                found.setdefault((i, part > 0), []).append(values)

    def mixed(found: dict[tuple[int, bool], list[torch.Tensor]], contrast: bool) -> torch.Tensor:
        # Of the scores' own type, which may be the wrong one: that is refused later, with the reason.
        dtype = next((values[0].dtype for values in found.values()), torch.float32)
        zeros = [torch.zeros(len(mask), dtype=dtype) for mask in masks]
        of_rows = [log_mean(found[i, contrast]) if (i, contrast) in found else zero for i, zero in enumerate(zeros)]
        return torch.nested.as_nested_tensor(of_rows, layout=torch.jagged)

    return TeacherLogProbs(
        own=mixed(scored, False),
        entropy=mixed(uncertain, False) if entropy else None,
        contrast=mixed(scored, True) if several else None,
        tokens=tokens,
    )


def log_mean(log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """log (1/K) Σ_k exp(x_k), elementwise over K tensors; of one tensor it is that tensor."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))


def sequence_scores(
    worker_group: Any,
    *,
    keys: Sequence[str],
    fields: TensorDict,
    tags: list[dict[str, Any]],
    response_mask: torch.Tensor,
    weights: str,
    temperature: float,
    entropy: bool = False,
) -> dict[str, torch.Tensor]:
    """`log_probs` (B, response_i), jagged, of the responses in any sequences, by verl's pass on the actor's workers.

    Args:
        worker_group: verl's, of the actor.
        keys, fields, tags: the sequences (`teacher_sequences`), under keys of their own or a batch's; one tag each,
            with ``seq_len``.  Their number must be a multiple of the data-parallel workers.
        response_mask: jagged (B, response_i).
        weights: "current" (the policy itself), "frozen_adapter" (LoRA switched off) or "engine_copy" (the teacher that
            the actor's engine keeps).
        temperature: divides the logits.
        entropy: give `entropy` too, of each token's distribution over the full vocabulary, nats.
    """
    keys = list(keys)
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=tags)
    try:
        # A fresh meta: verl's workers read their options from it, and options stick to the one they were set on.
        meta = KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags)
        meta.extra_info = {"calculate_entropy": entropy, "compute_loss": False, "temperature": temperature}
        if weights == "frozen_adapter":
            meta.extra_info["no_lora_adapter"] = True
        if weights == "engine_copy":
            worker_group.compute_teacher_log_prob(meta)
        else:
            worker_group.compute_log_prob(meta)
        names = ["log_probs", *(["entropy"] if entropy else [])]
        scored = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=names)
        return {name: response_from_nested(scored[name], response_mask) for name in names}
    finally:
        tq.kv_clear(keys=keys, partition_id=PARTITION)


def plain(value: Any) -> Any:
    """TransferQueue hands Python objects back as tensordict's NonTensorData or as themselves."""
    return getattr(value, "data", value)
