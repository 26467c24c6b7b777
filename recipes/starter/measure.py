"""Accuracies of a starter model: what it answers, how it gets there, and what a reference adds.

Everything is sampled at temperature 1 and top-p 1, the setting of the rollouts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from recipes.common.teacher.prompts import student_messages, teacher_messages
from recipes.starter import task
from recipes.starter.tokenizer import render, truncate_reference

MAX_RESPONSE = 96
EXPOSURES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Score:
    """Means over the sampled responses of a set of problems."""

    accuracy: float
    step_accuracy: float  # share of the standing steps that are right
    follows: float  # share of the responses whose boxed answer is that of their own last step
    tokens: float  # mean response length, the end token included
    finished: float  # share that ended within the limit
    markers: float  # epistemic markers per response
    habits: dict[str, float] = field(default_factory=dict)
    by_steps: dict[int, float] = field(default_factory=dict)  # accuracy by number of operations


@torch.no_grad()
def sample(model, tokenizer, prompts: list[list[int]], *, seed: int, limit: int = MAX_RESPONSE) -> list[list[int]]:
    """One response at temperature 1 for each prompt, as token ids with the end token (if it came within `limit`)."""
    generator = torch.Generator().manual_seed(seed)
    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, done, drawn = DynamicCache(), torch.zeros(len(prompts), dtype=torch.bool), []
    for _ in range(limit):
        out = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        ids = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
        drawn.append(ids.masked_fill(done[:, None], end))
        done |= ids[:, 0] == end
        if done.all():
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    rows = torch.cat(drawn, dim=1).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def score(problems: list[str], responses: list[list[int]], tokenizer) -> Score:
    """Mean accuracies of sampled responses, `responses[i]` answering `problems[i]`."""
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
    right = [
        task.boxed_answer(text) == str(task.parse_problem(problem).values()[-1])
        for problem, text in zip(problems, texts, strict=True)
    ]
    steps = [task.step_accuracy(problem, text) for problem, text in zip(problems, texts, strict=True)]
    checked = [share for share in steps if share is not None]
    by_steps: dict[int, list[bool]] = {}
    for problem, verdict in zip(problems, right, strict=True):
        by_steps.setdefault(task.parse_problem(problem).steps, []).append(verdict)
    count = len(texts)
    return Score(
        accuracy=sum(right) / count,
        step_accuracy=sum(checked) / max(1, len(checked)),
        follows=sum(task.answer_follows(p, t) for p, t in zip(problems, texts, strict=True)) / count,
        tokens=sum(map(len, responses)) / count,
        finished=sum(ids[-1] == tokenizer.eos_token_id for ids in responses) / count,
        markers=sum(sum(task.count_markers(text).values()) for text in texts) / count,
        habits={name: number / count for name, number in Counter(map(task.habit, texts)).most_common()},
        by_steps={number: sum(group) / len(group) for number, group in sorted(by_steps.items())},
    )


def prompt_ids(tokenizer, problem: str, solution: str, exposure: float | None) -> list[int]:
    """The student's prompt (`exposure` None), or the teacher's with that share of the solution's reasoning."""
    if exposure is None:
        return render(tokenizer, student_messages(problem))
    return render(tokenizer, teacher_messages(problem, truncate_reference(tokenizer, solution, exposure)))


def measure(model, tokenizer, rows: list[dict], exposure: float | None, *, samples: int = 4, seed: int = 0) -> Score:
    """Sample every row's problem `samples` times with the student's or the teacher's prompt and score."""
    repeated = [row for row in rows for _ in range(samples)]
    prompts = [prompt_ids(tokenizer, row["problem"], row["solution"], exposure) for row in repeated]
    responses = []
    for start in range(0, len(prompts), 128):
        responses += sample(model, tokenizer, prompts[start : start + 128], seed=seed + start)
    return score([row["problem"] for row in repeated], responses, tokenizer)


@torch.no_grad()
def reference_log_prob(model, tokenizer, rows: list[dict], exposure: float | None) -> float:
    """Mean log-probability per token (nats) that a prompt form gives to the careful reference solutions."""
    total, count = 0.0, 0
    for row in rows:
        prompt = prompt_ids(tokenizer, row["problem"], row["solution"], exposure)
        response = tokenizer(row["solution"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
        total += logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum().item()
        count += len(response)
    return total / count
