"""Divergences over a whole vocabulary: their closed-form gradient against autograd's, and what OPSD's clip does to it.

    python examples/divergences.py

`token_divergence` is the plain entry. A training step should use `hidden_divergence`, which needs no logits at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.divergence import DivergenceSpec, hidden_divergence, token_divergence

TOKENS, VOCABULARY, WIDTH = 16, 1000, 32


def main() -> None:
    torch.manual_seed(0)
    student = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(TOKENS, VOCABULARY, dtype=torch.float64)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        ours = gradient(token_divergence(student, teacher, kind=kind).sum(), student)
        theirs = gradient(by_autograd(student, teacher, kind).sum(), student)
        print(f"{kind:<11} largest difference to autograd {(ours - theirs).abs().max():.1e}")

    # OPSD clamps each entry of the forward KL from above; where the teacher is sure, the entry then has no gradient.
    p_student, p_teacher = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.9, 0.1]])
    logits = p_student.log().requires_grad_()
    loss = token_divergence(logits, p_teacher.log(), kind="forward_kl", clip=0.05)
    pulled = -gradient(loss.sum(), logits)[0]
    print(f"clip 0.05: loss {loss.item():.2f}; descent moves the logit of the teacher's token by {pulled[0]:+.2f}")

    # The same from hidden states and heads, chunk by chunk: no (tokens, vocabulary) tensor is made.
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    head, of_teacher = torch.randn(VOCABULARY, WIDTH), torch.randn(TOKENS, WIDTH)
    spec = DivergenceSpec("reverse_kl", temperature=1.1)
    weights = torch.full((TOKENS,), 1 / TOKENS)
    loss, numbers = hidden_divergence(
        hidden, head, of_teacher, weights=weights, spec=spec, stats=("student_entropy", "top1_disagreement")
    )
    loss.sum().backward()
    print(f"from hidden states: {loss.sum().item():.3f}, gradient {tuple(hidden.grad.shape)}, {sorted(numbers)}")


def by_autograd(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """The divergence of each token as its definition has it, every (N, V) tensor kept for the backward pass."""
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    if kind == "forward_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if kind == "reverse_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return 0.5 * (log_q.exp() * (log_q - middle)).sum(-1) + 0.5 * (log_p.exp() * (log_p - middle)).sum(-1)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


if __name__ == "__main__":
    main()
