"""Next-token distributions compared and reshaped: what the probes of DASD, PW-OPSD and ATESD measure at one position.

Pure torch on (N, V) logits, one row a position; arithmetic and results in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributions import Categorical
from transformers import TopPLogitsWarper


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """H of the full distribution in nats, (N,) (DASD §3, H_t)."""
    return Categorical(logits=logits.float() / temperature).entropy()


def total_variation(logits: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """½ Σ_v |p(v) − q(v)|, (N,), in [0, 1] (DASD Eq. 7)."""
    p = (logits.float() / temperature).softmax(-1)
    return 0.5 * (p - (other.float() / temperature).softmax(-1)).abs().sum(-1)


def top1_disagreement(logits: Tensor, other: Tensor) -> Tensor:
    """1 where the two most likely tokens differ, else 0, (N,) fp32 (ATESD §3.2); of equal logits the first counts."""
    return (logits.argmax(-1) != other.argmax(-1)).float()


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits with −inf outside the nucleus: the smallest set of most likely tokens that holds at least top_p."""
    return logits if top_p >= 1.0 else TopPLogitsWarper(top_p)(None, logits.float())  # type: ignore[arg-type]


def novelty_log_probs(student_logits: Tensor, teacher_logits: Tensor, alpha: float) -> Tensor:
    """log of p_S(v) / p_T(v)^α, renormalised, (N, V) (DASD §3, probe 3: the Novelty intervention; there α = 0.5).

    Both log-softmaxed first.  −inf of the student (outside its nucleus) stays −inf; α = 0 is the student itself.
    Nothing bounds the factor p_T^−α: a token that the teacher nearly excludes can win although the student hardly
    considers it.  That is the paper's formula; a nucleus on the student's side (`keep_top_p`) bounds it.
    """
    log_p, log_q = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return torch.where(log_p.isneginf(), log_p, log_p - alpha * log_q).log_softmax(-1)


def draw(log_probs: Tensor, uniform: float) -> int:
    """The token at which the distribution function first exceeds a number in [0, 1); log_probs (V,)."""
    cumulative = log_probs.double().exp().cumsum(-1)
    threshold = uniform * cumulative[-1:]
    return int(torch.searchsorted(cumulative, threshold, right=True).clamp(max=len(cumulative) - 1))


def truncated_entropy(logits: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Entropy of the k most likely allowed tokens, renormalised over them, (N,) nats (PW-OPSD, App. A, phases B, C).

    Args:
        allowed: (V,) bool.  Renormalising is ours: the paper says "top-k valid-token truncated entropy".
    """
    kept = logits.float().masked_fill(~allowed, float("-inf"))
    return Categorical(logits=kept.topk(min(k, int(allowed.sum())), -1).values).entropy()


def monte_carlo_scores(samples: Iterable[Tensor]) -> dict[str, Tensor]:
    """Uncertainty of K perturbed forward passes, each (N, V) logits: a dict of (N,) fp32 tensors (PW-OPSD, App. B).

    ``predictive_entropy``: H of the mean distribution p̄.  ``mutual_information``: H[p̄] − mean_k H[p_k] (epistemic).
    ``dirichlet_precision``: α₀ = (1 − Σ_v p̄_v²) / Σ_v Var_k(p_v) − 1, by matching moments; raw, so it can be negative,
    and infinite where the passes agree exactly.  Unbiased variance over k (ours).  Only running sums are kept.

    Raises ValueError with fewer than two passes.
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
