"""Accuracies of a starter model: what it answers, how it gets there, and what a reference adds.

Everything is sampled at temperature 1 and top-p 1, the setting of the rollouts.  Estimates are those of
`recipes.evaluate.metrics`: their 95 % intervals are clustered by problem.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from recipes.common.teacher.prompts import student_messages, teacher_messages
from recipes.evaluate.metrics import Estimate, ratio
from recipes.starter import task
from recipes.starter.tokenizer import render, truncate_reference

MAX_RESPONSE = 96
EXPOSURES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Score:
    """What the sampled responses to a set of problems are worth; estimates of nothing are None."""

    accuracy: Estimate
    worked_out: Estimate | None  # accuracy of the responses that are not direct
    step_accuracy: Estimate | None  # share of the standing steps that are right, over responses that have steps
    follows: float  # share of the responses whose boxed answer is that of their own last step
    tokens: float  # mean response length, the end token included
    finished: float  # share that ended within the limit
    markers: Estimate  # epistemic markers per response
    habits: dict[str, Estimate]  # share of the responses in each habit
    by_habit: dict[str, Estimate]  # accuracy of the responses in each habit
    by_steps: dict[int, Estimate]  # accuracy by number of operations


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
    """Score sampled responses, `responses[i]` answering `problems[i]`."""
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
    pairs = list(zip(problems, texts, strict=True))
    right = [float(task.boxed_answer(text) == str(task.parse_problem(problem).values()[-1])) for problem, text in pairs]
    habits = [task.habit(text) for text in texts]
    lengths = [task.parse_problem(problem).steps for problem in problems]

    def mean(values: Iterable[float | None]) -> Estimate | None:
        """Over the responses that have a value; None where none has."""
        sums = {problem: [0.0, 0] for problem in problems}
        for problem, value in zip(problems, values, strict=True):
            if value is not None:
                sums[problem][0] += value
                sums[problem][1] += 1
        return ratio(*zip(*sums.values(), strict=True))

    def right_where(chosen: Iterable[bool]) -> Estimate | None:
        return mean(verdict if there else None for verdict, there in zip(right, chosen, strict=True))

    return Score(
        accuracy=mean(right),
        worked_out=right_where(habit != "direct" for habit in habits),
        step_accuracy=mean(task.step_accuracy(problem, text) for problem, text in pairs),
        follows=sum(task.answer_follows(problem, text) for problem, text in pairs) / len(pairs),
        tokens=sum(map(len, responses)) / len(pairs),
        finished=sum(ids[-1] == tokenizer.eos_token_id for ids in responses) / len(pairs),
        markers=mean(float(sum(task.count_markers(text).values())) for text in texts),
        habits={name: mean(float(habit == name) for habit in habits) for name in sorted(set(habits))},
        by_habit={name: right_where(habit == name for habit in habits) for name in sorted(set(habits))},
        by_steps={number: right_where(length == number for length in lengths) for number in sorted(set(lengths))},
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
