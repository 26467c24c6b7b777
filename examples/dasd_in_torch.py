"""DASD's credit in a plain torch loop: transformers generates, torch trains, this package says what a token earned.

    python examples/dasd_in_torch.py --steps 5

The embedded model on its arithmetic, without Ray, verl or a GPU; a second or two a step. What a loop of your own
needs is in `credit`: rewards, a mask, the student's log-probs and entropies, and the teacher's log-probs of the same
tokens. The teacher is the same model, reading the same response after a prompt that also shows the reference.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from advantage import Credit, CreditInputs, equal_reward_rows, params_from_config, run_estimator
from config import STARTER
from recipes.common.teacher.prompts import render, student_messages, teacher_messages
from rewards.math import compute_score

PROBLEMS, ROLLOUTS, LENGTH = 8, 8, 96  # of a step; responses to each problem; tokens of a response
TEMPLATE = {"enable_thinking": False}  # the same for both prompts, so that a response's first token means the same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.005, help="of the teacher's correction to A_G; 0 is GRPO")
    options = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    model = AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    problems = pd.read_parquet(STARTER / "data" / "train.parquet").sample(frac=1, random_state=1)
    for step in range(options.steps):
        rows = problems.iloc[step * PROBLEMS : (step + 1) * PROBLEMS].to_dict("records")
        numbers = train_step(model, tokenizer, optimizer, rows, target_ratio=options.ratio)
        print(f"step {step + 1}  " + "  ".join(f"{name} {value:.3g}" for name, value in numbers.items()))


def train_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    rows: list[dict],
    *,
    target_ratio: float,
) -> dict[str, float]:
    """Sample, grade, score with the teacher, and make one update; returns the step's numbers."""
    rows = [row for row in rows for _ in range(ROLLOUTS)]
    groups = [row["problem"] for row in rows]  # responses to one problem are compared with each other
    asked = [render(tokenizer, student_messages(row["problem"]), TEMPLATE) for row in rows]
    shown = [render(tokenizer, teacher_messages(row["problem"], row["solution"]), TEMPLATE) for row in rows]
    responses, mask = sample(model, tokenizer, asked)

    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    rewards = torch.tensor(
        [
            compute_score("starter", text, row["answer"])["score"]  # bounded in time and memory, whatever it says
            for row, text in zip(rows, texts, strict=True)
        ]
    )
    with torch.no_grad():  # both before the update, at the weights that sampled
        student, entropy = scores(model, tokenizer, asked, responses)
        teacher, _ = scores(model, tokenizer, shown, responses)
    earned = credit(rewards, groups, mask, student, entropy, teacher, target_ratio=target_ratio)

    new, _ = scores(model, tokenizer, asked, responses)
    ratio = (new - student).exp()
    gain = torch.minimum(ratio * earned.advantages, ratio.clamp(0.8, 1.2) * earned.advantages)
    loss = -((gain * mask).sum(-1) / mask.sum(-1)).mean()  # within each response first: DASD's reduction
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {
        "reward": rewards.mean().item(),
        "entropy": entropy[mask].mean().item(),
        "correction/advantage": earned.metrics["credit/correction_ratio"],
    }


def credit(
    rewards: Tensor,
    groups: list[str],
    mask: Tensor,
    student: Tensor,
    entropy: Tensor,
    teacher: Tensor,
    *,
    target_ratio: float,
) -> Credit:
    """DASD's advantage of every token.

    Beta is set anew at every step. Handed the credit's `memory` of the step before, as `CreditInputs(memory=...)`, it
    would follow a running mean, as in the package's own runs.

    Args:
        rewards: (B,) of the verifier.
        groups: (B) label of each response's problem.
        mask: (B, T) bool, the responses' tokens.
        student, teacher: (B, T) log-probs of the sampled tokens, nats, fp32: in bfloat16 their difference is noise.
        entropy: (B, T) of the student over the whole vocabulary, nats.
        target_ratio: mean size of the correction over that of A_G.
    """
    inputs = CreditInputs(
        group_advantage=group_advantage(rewards)[:, None] * mask,
        response_mask=mask,
        scores=rewards,
        equal_reward_rows=equal_reward_rows(rewards, groups),
        entropy=entropy,
        log_prob_gap=teacher - student,
    )
    return run_estimator("dasd", inputs, params_from_config("dasd", {"dasd": {"target_ratio": target_ratio}}))


def group_advantage(rewards: Tensor) -> Tensor:
    """GRPO's A_G, (B,): a reward in standard deviations of its group, here `ROLLOUTS` rows that follow each other."""
    of_group = rewards.view(-1, ROLLOUTS)
    return ((of_group - of_group.mean(1, keepdim=True)) / (of_group.std(1, keepdim=True) + 1e-6)).flatten()


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Responses (B, T) at temperature 1, padded on the right, and the mask of their tokens, the end token included."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=LENGTH)
    responses = out[:, batch["input_ids"].shape[1] :]
    ended = (responses == tokenizer.eos_token_id).cumsum(-1)
    mask = (ended == 0) | ((ended == 1) & (responses == tokenizer.eos_token_id))
    return responses, mask


def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], responses: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probs of the responses' tokens and entropies before each, (B, T) nats: any prompt before the same ids."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ids = torch.cat([batch["input_ids"], responses], dim=1)
    attended = torch.cat([batch["attention_mask"], torch.ones_like(responses)], dim=1)
    positions = (attended.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=attended, position_ids=positions).logits
    log_probs = logits[:, batch["input_ids"].shape[1] - 1 : -1].float().log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, responses[..., None])[..., 0], entropy


if __name__ == "__main__":
    main()
