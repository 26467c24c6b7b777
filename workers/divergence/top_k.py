"""Divergences over a part of the vocabulary, and the log-probabilities of listed tokens that they are made of.

The restricted forms: OPSD's (arXiv 2601.18734) and EOPD's (arXiv 2603.07079) teacher top-k, SDPO's (arXiv 2601.20802)
student top-k with a bucket for all other tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.divergence.full import LOG_ZERO, chunk_rows, logits_divergence
from workers.divergence.spec import DivergenceSpec


class _GatheredLogProbs(torch.autograd.Function):
    """log p at some tokens, and optionally the log of what is left; keeps the logits, not their log-softmax.

    ∂/∂z_v = g_v [v listed] + g_tail · p_v / P_tail [v not listed, with a tail] − p_v · Σ g.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, temperature: float, tail: bool) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        count, width = index.shape
        out = torch.empty(count, width + tail, dtype=dtype, device=logits.device)
        log_z = torch.empty(count, 1, dtype=dtype, device=logits.device)
        block = chunk_rows(logits.shape[1], logits.device)[1]
        for i in range(0, count, block):
            rows = slice(i, i + block)
            z = logits[rows].to(dtype) / temperature
            log_z[rows] = torch.logsumexp(z, -1, keepdim=True)
            out[rows, :width] = z.gather(1, index[rows]) - log_z[rows]
            if tail:
                # From the tail's own logits: 1 − Σ p would keep no digits where the listed tokens hold nearly all.
                rest = z.scatter_(1, index[rows], float("-inf"))
                tail_log_prob = torch.logsumexp(rest, -1, keepdim=True) - log_z[rows]
                out[rows, width:] = tail_log_prob.clamp_(min=LOG_ZERO)
        ctx.save_for_backward(logits, index, log_z, out)
        ctx.temperature, ctx.tail = temperature, tail
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, index, log_z, out = ctx.saved_tensors
        width = index.shape[1]
        grad = torch.empty_like(logits)
        block = chunk_rows(logits.shape[1], logits.device)[1]
        for i in range(0, index.shape[0], block):
            rows = slice(i, i + block)
            g = upstream[rows]
            z = logits[rows].to(out.dtype) / ctx.temperature
            coefficient = -g.sum(-1, keepdim=True)
            d = (z - log_z[rows]).exp_().mul_(coefficient)
            if ctx.tail:
                inside_tail = (z - log_z[rows] - out[rows, width:]).exp_().scatter_(1, index[rows], 0.0)
                d.add_(inside_tail.mul_(g[:, width:]))
            d.scatter_add_(1, index[rows], g[:, :width].contiguous())
            grad[rows] = d.div_(ctx.temperature).to(grad.dtype)
        return grad, None, None, None


def token_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log p(token) of one token per row; differentiable.

    Args:
        logits: (N, V), any floating dtype.
        token_ids: (N,).
        temperature: divides the logits.

    Returns:
        (N,) fp32 (fp64 for fp64 logits), nats.

    Raises:
        ValueError: if shapes do not match.
    """
    if logits.dim() != 2 or tuple(token_ids.shape) != (logits.shape[0],):
        raise ValueError(f"logits {tuple(logits.shape)} and token_ids {tuple(token_ids.shape)} must be (N, V) and (N,)")
    return _GatheredLogProbs.apply(logits, token_ids[:, None], temperature, False)[:, 0]


@torch.no_grad()
def sampled_token_gap(
    student_logits: Tensor, teacher_logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The gap δ = log p_T(o) − log p_S(o) at the sampled tokens, (N,) nats, detached.

    The one-sample form of −KL(p_S ‖ p_T): as an advantage on log p_S(o) its expected policy gradient is that of the
    reverse KL.  DASD, PW-OPSD and ATESD use it inside the PPO clip.

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V).
        token_ids: (N,) the sampled tokens.
        temperature: divides both logits.
    """
    return token_log_probs(teacher_logits, token_ids, temperature=temperature) - token_log_probs(
        student_logits, token_ids, temperature=temperature
    )


def _check_k(k: int, student_logits: Tensor, teacher_logits: Tensor) -> int:
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} must both "
            "be (N, V), one row per token"
        )
    if k < 1:
        raise ValueError(f"k={k} must be at least 1: it is the number of tokens that are compared")
    return min(k, student_logits.shape[1])


def teacher_topk_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    k: int,
    student_norm: str = "renormalised",
    kind: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: float | None = None,
    clip_mode: str = "upper",
    temperature: float = 1.0,
) -> Tensor:
    """Divergence over the teacher's k most likely tokens, (N,); differentiable in the student.

    The teacher is renormalised over them.

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V).
        k: number of tokens, 1 or more; k ≥ V is the full divergence.
        student_norm: "renormalised" does the same to the student (any kind; its mass outside is then free); "full"
            keeps its full-vocabulary probabilities (EOPD; forward KL only, since the others need a distribution).
        kind: "forward_kl", "reverse_kl" or "jsd"; this and the rest as in `DivergenceSpec`.
        jsd_beta: β of the JSD.
        clip: bound of each vocabulary entry; None is no clip.
        clip_mode: "upper", "symmetric" or "none".
        temperature: divides both logits.

    Raises:
        ValueError: if shapes do not match, or a setting is not allowed.
    """
    k = _check_k(k, student_logits, teacher_logits)
    spec = DivergenceSpec(kind, jsd_beta, clip, clip_mode, temperature)
    if student_norm not in ("renormalised", "full"):
        raise ValueError(f"student_norm={student_norm!r} is unknown; use renormalised or full")
    teacher_top, index = teacher_logits.detach().topk(k, dim=-1)
    if student_norm == "renormalised":
        # A softmax over the gathered logits is the renormalised distribution.
        return logits_divergence(student_logits.gather(1, index), teacher_top, spec)[0]
    if spec.effective_kind != "forward_kl":
        raise ValueError(
            f"student_norm='full' with kind={kind!r}: the student's probabilities over k tokens do not sum to one; "
            "use kind='forward_kl' or student_norm='renormalised'"
        )
    log_p = _GatheredLogProbs.apply(student_logits, index, temperature, False)
    log_q = torch.log_softmax(teacher_top.to(log_p.dtype) / temperature, -1)
    entries = log_q.exp() * (log_q - log_p)
    if spec.effective_clip is not None:
        lower = None if clip_mode == "upper" else -spec.effective_clip
        entries = entries.clamp(min=lower, max=spec.effective_clip)
    return entries.sum(-1)


def student_topk_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    k: int,
    kind: str = "jsd",
    jsd_beta: float = 0.5,
    clip: float | None = None,
    clip_mode: str = "upper",
    temperature: float = 1.0,
) -> Tensor:
    """Divergence over the student's k most likely tokens and one bucket for all others, (N,) (SDPO).

    Both distributions keep their full-vocabulary probabilities; the bucket holds the rest, log(1 − Σ p), so mass that
    leaves the listed tokens is seen.  A lower bound of the full divergence, equal to it for k ≥ V − 1.  Differentiable
    in the student.

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V).
        k: number of tokens, 1 or more.
        kind: "forward_kl", "reverse_kl" or "jsd"; this and the rest as in `DivergenceSpec`.
        jsd_beta: β of the JSD.
        clip: bound of each entry; None is no clip.
        clip_mode: "upper", "symmetric" or "none".
        temperature: divides both logits.

    Raises:
        ValueError: if shapes do not match, or a setting is not allowed.
    """
    k = _check_k(k, student_logits, teacher_logits)
    spec = DivergenceSpec(kind, jsd_beta, clip, clip_mode, temperature)
    if k >= student_logits.shape[1] - 1:
        return logits_divergence(student_logits, teacher_logits, spec)[0]
    index = student_logits.detach().topk(k, dim=-1).indices
    log_p = _GatheredLogProbs.apply(student_logits, index, temperature, True)
    log_q = _GatheredLogProbs.apply(teacher_logits.detach(), index, temperature, True)
    # Log-probabilities that sum to one are their own logits.
    return logits_divergence(log_p, log_q, DivergenceSpec(kind, jsd_beta, clip, clip_mode))[0]
