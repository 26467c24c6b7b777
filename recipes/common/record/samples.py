"""A few responses of a step with what each of their tokens earned, for people to read: ``samples.jsonl``.

One line a record: ``{"step": 10, "samples": [{"problem", "reward", "tokens": [...], "omitted": 0, "fields": {...}}]}``
with one list of numbers a field, as long as ``tokens``.  Written in the first step, in the last, and in those that end
with a validation or a checkpoint.  Nothing is trained with it; reports show it as heat over the text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advantage.labels import TokenField
from recipes.common.record.run_dir import SAMPLES, drop_torn_line
from recipes.common.teacher.contexts import problem_of
from recipes.common.teacher.sequences import plain

if TYPE_CHECKING:
    import torch
    from transfer_queue import KVBatchMeta
    from transformers import PreTrainedTokenizerBase

COUNT = 6  # responses a record
HEAD, TAIL = 768, 256  # tokens kept of a response's beginning and end
DIGITS = 4  # significant ones

# What any method's samples may hold, beside its own fields.
FIELDS = (
    TokenField(
        "delta", "δ", "log p_T − log p_S of the sampled token, nats: positive where the teacher prefers it more"
    ),
    TokenField("divergence_weight", "w", "factor of the token's divergence from the teacher"),
    TokenField("advantage", "Â", "the advantage that the PPO clip trains on"),
    TokenField("teacher_entropy", "HT", "entropy of the teacher's next token, nats"),
    TokenField("entropy", "H", "entropy of the student's next token, nats"),
)


def due(trainer: Any, step: int, last: int) -> bool:
    """Whether a step's samples are kept: the first, the last, and those with a validation or a checkpoint.

    Args:
        trainer: the configuration's node; ``test_freq`` and ``save_freq``, where 0 and below mean never.
        step: the step in question, from 1.
        last: the run's last step.
    """
    return step in (1, last) or any(every > 0 and step % every == 0 for every in (trainer.test_freq, trainer.save_freq))


def choose(scores: Sequence[float], groups: Sequence[Any], count: int = COUNT) -> list[int]:
    """Rows to keep: of problems whose responses differ in reward, a best and a worst one; then others in order.

    Args:
        scores: (B,) rewards.
        groups: (B,) label of each row's problem.
        count: rows to keep at most.
    """
    rows_of: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    pairs = [
        (max(rows, key=lambda r: scores[r]), min(rows, key=lambda r: scores[r]))
        for rows in rows_of.values()
        if max(scores[r] for r in rows) > min(scores[r] for r in rows)
    ]
    firsts = [rows[0] for rows in rows_of.values()]
    ordered = [row for pair in pairs for row in pair] + firsts + list(range(len(scores)))
    return list(dict.fromkeys(ordered))[:count]


def append(
    run_dir: Path,
    step: int,
    batch: KVBatchMeta,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rewards: torch.Tensor,
    groups: Sequence[Any],
    fields: Mapping[str, torch.Tensor],
) -> None:
    """Add a step's samples to the run's file, after its advantages were written to TransferQueue.

    Args:
        run_dir: the run's directory.
        step: the step that the batch is of.
        batch: keys of the step's rows in TransferQueue; rows that only fill up the batch are left out.
        tokenizer: turns response ids into text.
        rewards: (B,) reward of each row.
        groups: (B,) label of each row's problem.
        fields: name to (B, T), padded: what is known of the tokens.
    """
    import transfer_queue as tq

    real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    scores = rewards[real].tolist()
    chosen = choose(scores, [groups[i] for i in real])
    texts, tensors = ["raw_prompt", "problem"], ["responses", "response_mask", "advantages"]
    keys = [batch.keys[real[i]] for i in chosen]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=tensors + texts)
    columns = {name: data[name].unbind() for name in tensors}
    records = [
        sample(
            problem=problem_of({name: plain(data[name][row]) for name in texts if name in data}),
            reward=scores[i],
            tokens=[str(tokenizer.decode([int(token)])) for token in columns["responses"][row]],
            mask=columns["response_mask"][row].tolist(),
            fields={
                "advantage": columns["advantages"][row].tolist(),
                **{name: values[real[i]].tolist() for name, values in fields.items()},
            },
        )
        for row, i in enumerate(chosen)
    ]
    path = run_dir / SAMPLES
    drop_torn_line(path)
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "samples": records}) + "\n")


def sample(
    *,
    problem: str,
    reward: float,
    tokens: Sequence[str],
    mask: Sequence[int],
    fields: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """One response as it stands in the file.

    Of more than HEAD + TAIL tokens those in the middle are left out and counted in ``omitted``.

    Args:
        problem: text of the problem.
        reward: what the whole response got.
        tokens: (L,) texts.
        mask: (L,) non-zero where a token is the student's.
        fields: name to at least L numbers; those of masked tokens, and what is not finite, become null.
    """
    length = len(tokens)
    omitted = max(0, length - HEAD - TAIL)
    kept = [*range(HEAD), *range(HEAD + omitted, length)] if omitted else range(length)
    return {
        "problem": problem,
        "reward": reward,
        "tokens": [tokens[i] for i in kept],
        "omitted": omitted,
        "fields": {name: [_rounded(values[i]) if mask[i] else None for i in kept] for name, values in fields.items()},
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
