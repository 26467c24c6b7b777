"""Next-token distributions compared and reshaped: what the probes of DASD, PW-OPSD and ATESD measure at one position.

Pure torch on logits (N, V), one row a position; arithmetic and results are fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributions import Categorical
from transformers import TopPLogitsWarper


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy H_t of the full distribution (DASD §3).

    Args:
        logits: (N, V).
        temperature: divides them.

    Returns:
        (N,) nats.
    """
    return Categorical(logits=logits.float() / temperature).entropy()


def total_variation(logits: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """Total variation ½ Σ_v |p(v) − q(v)| (DASD Eq. 7).

    Args:
        logits: (N, V) of p.
        other: (N, V) of q.
        temperature: divides both.

    Returns:
        (N,) in [0, 1].
    """
    p = (logits.float() / temperature).softmax(-1)
    return 0.5 * (p - (other.float() / temperature).softmax(-1)).abs().sum(-1)


def top1_disagreement(logits: Tensor, other: Tensor) -> Tensor:
    """Where the two most likely tokens differ (ATESD §3.2); of equal logits the first counts.

    Args:
        logits: (N, V).
        other: (N, V).

    Returns:
        (N,) fp32: 1 where they differ, else 0.
    """
    return (logits.argmax(-1) != other.argmax(-1)).float()


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits with −inf outside the nucleus, the smallest set of most likely tokens that holds at least top_p.

    Args:
        logits: (N, V).
        top_p: mass in (0, 1]; at 1 nothing is left out.
    """
    return logits if top_p >= 1.0 else TopPLogitsWarper(top_p)(None, logits.float())  # type: ignore[arg-type]


def novelty_log_probs(student_logits: Tensor, teacher_logits: Tensor, alpha: float) -> Tensor:
    """Log of p_S(v) / p_T(v)^α, renormalised: DASD's Novelty intervention (§3, probe 3; there α = 0.5).

    Nothing bounds the factor p_T^−α: a token that the teacher nearly excludes can win although the student hardly
    considers it.  That is the paper's formula; a nucleus on the student's side (`keep_top_p`) bounds it.

    Args:
        student_logits: (N, V); −inf (outside the student's nucleus) stays −inf.
        teacher_logits: (N, V).
        alpha: α; 0 gives the student itself.

    Returns:
        (N, V) log-probs.
    """
    log_p, log_q = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return torch.where(log_p.isneginf(), log_p, log_p - alpha * log_q).log_softmax(-1)


def draw(log_probs: Tensor, uniform: float) -> int:
    """The token at which the distribution function first exceeds a number.

    Args:
        log_probs: (V,).
        uniform: the number, in [0, 1).
    """
    cumulative = log_probs.double().exp().cumsum(-1)
    threshold = uniform * cumulative[-1:]
    return int(torch.searchsorted(cumulative, threshold, right=True).clamp(max=len(cumulative) - 1))


def truncated_entropy(logits: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Entropy of the most likely allowed tokens, renormalised over them (PW-OPSD, App. A, phases B and C).

    Renormalising is ours: the paper says "top-k valid-token truncated entropy".

    Args:
        logits: (N, V).
        allowed: (V,) bool.
        k: number of tokens.

    Returns:
        (N,) nats.
    """
    kept = logits.float().masked_fill(~allowed, float("-inf"))
    return Categorical(logits=kept.topk(min(k, int(allowed.sum())), -1).values).entropy()


def monte_carlo_scores(samples: Iterable[Tensor]) -> dict[str, Tensor]:
    """Uncertainty of K perturbed forward passes (PW-OPSD, App. B).  Only running sums are kept.

    Args:
        samples: K tensors (N, V) of logits; with p_k their distributions and p̄ the mean of these.

    Returns:
        (N,) fp32 tensors by name.  ``predictive_entropy``: H[p̄], nats.  ``mutual_information``: H[p̄] − mean_k H[p_k],
        nats (epistemic).  ``dirichlet_precision``: α₀ = (1 − Σ_v p̄_v²) / Σ_v Var_k(p_v) − 1, by matching moments, with
        the unbiased variance over k (ours); raw, so it can be negative, and infinite where the passes agree exactly.

    Raises:
        ValueError: if there are fewer than two passes.
    """
    count = 0
    for logits in samples:
        p = logits.float().softmax(-1).double()
        if count == 0:
            first, second, entropies = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p[:, 0])
        first += p
        second += p * p
        entropies += Categorical(probs=p).entropy()
        count += 1
    if count < 2:
        raise ValueError(f"{count} Monte Carlo passes: a variance needs at least two")
    mean = first / count
    predictive = Categorical(probs=mean).entropy()
    variance = ((second - count * mean * mean) / (count - 1)).clamp(min=0).sum(-1)
    precision = (1 - (mean * mean).sum(-1)) / variance - 1
    return {
        "predictive_entropy": predictive.float(),
        "mutual_information": (predictive - entropies / count).float(),
        "dirichlet_precision": precision.float(),
    }
