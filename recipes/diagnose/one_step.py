"""DASD's one-step counterfactual: how far one gradient step of either sign moves the student (arXiv 2605.22263, Eq. 7).

The step ascends mean_i 1/L_i Σ_t s · A_t · log p_S(o_t) with A_t held fixed: the policy-gradient form of the probes'
objective (§3), since the other derivative of A_t has expectation zero on the student's own samples.

What the paper leaves open, and our reading of it:
* The optimiser is AdamW's first step without decay, −lr · g / (|g| + ε): what training would do first.
* The step is taken on all rollouts of a chunk of problems, and the shift is measured on the same rollouts.
* Which tokens push.  Read as printed, s multiplies every token's gap, and then the two steps are exact mirrors of each
  other: to first order in lr both shift every distribution equally far, whatever its entropy.  The paper reports
  opposite patterns, so a second reading is measured too: each sign pushes with its own tokens only, Conformity with
  those that the teacher favours (A_t > 0), Novelty with those that it disfavours (A_t < 0), as its Fig. 3a names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from recipes.diagnose.distributions import total_variation
from recipes.diagnose.engine import Engine, response_logits, scoring_batches
from workers.divergence import token_log_probs

ADAM_EPS = 1e-8
STEPS = ("conformity", "novelty", "conformity_own", "novelty_own")


def adam_first_step(gradient: Tensor, lr: float) -> Tensor:
    """The change of a parameter in AdamW's first step, without decay, when the gradient is ascended; of the same shape.

    Args:
        gradient: the parameter's.
        lr: the learning rate.
    """
    return lr * gradient / (gradient.abs() + ADAM_EPS)


def pressure_gradients(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    gaps: Sequence[Tensor],
    temperature: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of mean_i 1/L_i Σ_t A_t log p_S(o_t), over the tokens with A_t > 0 and over those with A_t < 0.

    Args:
        engine: the model.
        prompts: token ids of the student's prompts, one entry a rollout.
        responses: token ids.
        gaps: A_t of each rollout, (L_i,) nats, held fixed.
        temperature: divides the logits before the log-probs are taken.

    Returns:
        Two dicts, parameter's name -> gradient: favoured tokens, disfavoured tokens.
    """
    names = [name for name, _ in engine.model.named_parameters()]
    parameters = [parameter for _, parameter in engine.model.named_parameters()]
    totals = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    for batch in scoring_batches(engine, [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]):
        logits = response_logits(engine, [prompts[i] for i in batch], [responses[i] for i in batch])
        favoured, disfavoured = logits[0].new_zeros(()), logits[0].new_zeros(())
        for i, rows in zip(batch, logits, strict=True):
            ids = torch.as_tensor(responses[i], device=rows.device)
            log_probs = token_log_probs(rows, ids, temperature=temperature)
            gap = gaps[i].to(rows.device)
            share = 1.0 / (len(responses) * len(responses[i]))
            favoured = favoured + share * (gap.clamp(min=0) * log_probs).sum()
            disfavoured = disfavoured + share * (gap.clamp(max=0) * log_probs).sum()
        for total, objective, last in zip(totals, (favoured, disfavoured), (False, True), strict=True):
            found = torch.autograd.grad(objective, parameters, retain_graph=not last)
            for accumulated, gradient in zip(total, found, strict=True):
                accumulated += gradient
    return dict(zip(names, totals[0], strict=True)), dict(zip(names, totals[1], strict=True))


def stepped(engine: Engine, favoured: dict[str, Tensor], disfavoured: dict[str, Tensor], step: str, lr: float) -> dict:
    """The parameters after one step; the model's own stay as they are.

    Args:
        engine: the model.
        favoured: gradients over the tokens with A_t > 0, from `pressure_gradients`.
        disfavoured: over those with A_t < 0.
        step: one of `STEPS`.
        lr: the learning rate.

    Returns:
        Parameter's name -> tensor.
    """
    moved = {}
    for name, parameter in engine.model.named_parameters():
        own = favoured[name] if step.startswith("conformity") else disfavoured[name]
        gradient = own if step.endswith("_own") else favoured[name] + disfavoured[name]
        sign = 1.0 if step.startswith("conformity") else -1.0
        moved[name] = parameter.detach() + adam_first_step(sign * gradient, lr)
    return moved


def one_step_shifts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    gaps: Sequence[Tensor],
    *,
    lr: float,
    temperature: float,
) -> dict[str, list[Tensor]]:
    """Total variation between the student before and after each kind of step, at every token.

    Args:
        engine: the model, with fp32 weights: in bf16 a step of 1e-6 is rounded away.
        prompts: token ids of the student's prompts, one entry a rollout.
        responses: token ids.
        gaps: A_t of each rollout, (L_i,) nats.
        lr: the learning rate of the step.
        temperature: divides the logits.

    Returns:
        One of `STEPS` -> (L_i,) for each rollout.
    """
    with torch.enable_grad():
        favoured, disfavoured = pressure_gradients(engine, prompts, responses, gaps, temperature)
    shifts: dict[str, list[Tensor]] = {}
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    for step in STEPS:
        moved = stepped(engine, favoured, disfavoured, step, lr)
        found: list[Tensor] = [torch.empty(0)] * len(responses)
        for batch in scoring_batches(engine, lengths):
            asked = [prompts[i] for i in batch], [responses[i] for i in batch]
            with torch.no_grad():
                before = response_logits(engine, *asked)
                after = response_logits(
                    engine, *asked, forward=lambda *a, moved=moved, **k: functional_call(engine.model, moved, a, k)
                )
            for i, p, q in zip(batch, before, after, strict=True):
                found[i] = total_variation(p, q, temperature).cpu()
        shifts[step] = found
    return shifts
