"""The element-wise part of `workers.divergence.full` as one Triton kernel: a row's divergence, statistics and gradient.

The eager version passes some twenty-five times over (tokens, V) in fp32, which on a GPU costs more than the matrix
products; here a program reads its row of logits three times and writes the gradient once: normalisers, then value and
Σ d, then d − p · Σ d.  The formulas are those of `full`'s docstring.

Off unless `full.USE_FUSED` is set: `python -m benchmarks.gpu_check --parts 3` measures whether it pays.  With
TRITON_INTERPRET=1 it runs on a CPU, which is how its numbers are tested.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.divergence.spec import DivergenceSpec

KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}
CLIPS = {"none": 0, "upper": 1, "symmetric": 2}
# What the kernel leaves of a row, fp32: see `_row`.
COLUMNS = 8
TILE, WARPS = 4096, 8


@triton.jit
def _entries(s, t, offset, log_zs, log_zt, beta, KIND: tl.constexpr):
    """e_v, d_v before the clip, and p, q, of shifted logits (each row's maximum is 0)."""
    p = tl.exp(s - log_zs)
    q = tl.exp(t - log_zt)
    r = (s - t) + offset  # log p - log q
    if KIND == 0:
        e = q * -r
        d = -q
    elif KIND == 1:
        e = p * r
        d = e + p
    else:
        size = tl.abs(r)
        b = tl.where(r >= 0.0, beta, 1.0 - beta)
        # expm1 and log1p near zero by their series: the others would lose what is left of near-equal distributions.
        x = b * tl.where(size < 1e-2, size * (size * (0.5 - size * (1.0 / 6.0)) - 1.0), tl.exp(-size) - 1.0)
        c = -tl.where(x > -1e-2, x * (1.0 - x * (0.5 - x * (1.0 / 3.0))), tl.log(1.0 + x))
        d = (1.0 - beta) * p * (c + tl.minimum(r, 0.0))
        e = d + beta * q * (c - tl.maximum(r, 0.0))
    return e, d, p, q


@triton.jit
def _row(
    student,
    teacher,
    gradient,
    found,
    student_stride,
    teacher_stride,
    gradient_stride,
    vocabulary,
    student_temperature,
    teacher_temperature,
    beta,
    bound,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    GRAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row.  found: value, Σ p s, Σ q t, both maxima agree, max s, log Σ exp s, max t, log Σ exp t (s, t scaled)."""
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    columns = tl.arange(0, TILE)
    low = -1.0e30

    max_s = tl.full((), low, tl.float32)
    max_t = tl.full((), low, tl.float32)
    sum_s = tl.zeros((), tl.float32)
    sum_t = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, TILE):
        at = start + columns
        inside = at < vocabulary
        s = tl.load(student + at, mask=inside, other=low).to(tl.float32) / student_temperature
        t = tl.load(teacher + at, mask=inside, other=low).to(tl.float32) / teacher_temperature
        s = tl.maximum(s, low)
        t = tl.maximum(t, low)
        new_s = tl.maximum(max_s, tl.max(s, 0))
        new_t = tl.maximum(max_t, tl.max(t, 0))
        sum_s = sum_s * tl.exp(max_s - new_s) + tl.sum(tl.where(inside, tl.exp(s - new_s), 0.0), 0)
        sum_t = sum_t * tl.exp(max_t - new_t) + tl.sum(tl.where(inside, tl.exp(t - new_t), 0.0), 0)
        max_s = new_s
        max_t = new_t
    log_zs = tl.log(sum_s)
    log_zt = tl.log(sum_t)
    offset = log_zt - log_zs

    value = tl.zeros((), tl.float32)
    total = tl.zeros((), tl.float32)
    moment_s = tl.zeros((), tl.float32)
    moment_t = tl.zeros((), tl.float32)
    agree = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, TILE):
        at = start + columns
        inside = at < vocabulary
        s = tl.load(student + at, mask=inside, other=low).to(tl.float32) / student_temperature
        t = tl.load(teacher + at, mask=inside, other=low).to(tl.float32) / teacher_temperature
        s = tl.maximum(s - max_s, low)
        t = tl.maximum(t - max_t, low)
        e, d, p, q = _entries(s, t, offset, log_zs, log_zt, beta, KIND)
        moment_s += tl.sum(tl.where(inside, p * s, 0.0), 0)
        moment_t += tl.sum(tl.where(inside, q * t, 0.0), 0)
        both = tl.where(inside & (s == 0.0) & (t == 0.0), 1.0, 0.0)
        agree = tl.maximum(agree, tl.max(both, 0))
        if CLIP == 1:
            d = tl.where(e <= bound, d, 0.0)
            e = tl.minimum(e, bound)
        if CLIP == 2:
            d = tl.where(tl.abs(e) <= bound, d, 0.0)
            e = tl.maximum(tl.minimum(e, bound), -bound)
        value += tl.sum(tl.where(inside, e, 0.0), 0)
        total += tl.sum(tl.where(inside, d, 0.0), 0)

    found += row * 8
    tl.store(found, value)
    tl.store(found + 1, moment_s)
    tl.store(found + 2, moment_t)
    tl.store(found + 3, agree)
    tl.store(found + 4, max_s)
    tl.store(found + 5, log_zs)
    tl.store(found + 6, max_t)
    tl.store(found + 7, log_zt)

    if GRAD:
        gradient += row * gradient_stride
        for start in range(0, vocabulary, TILE):
            at = start + columns
            inside = at < vocabulary
            s = tl.load(student + at, mask=inside, other=low).to(tl.float32) / student_temperature
            t = tl.load(teacher + at, mask=inside, other=low).to(tl.float32) / teacher_temperature
            s = tl.maximum(s - max_s, low)
            t = tl.maximum(t - max_t, low)
            e, d, p, q = _entries(s, t, offset, log_zs, log_zt, beta, KIND)
            if CLIP == 1:
                d = tl.where(e <= bound, d, 0.0)
            if CLIP == 2:
                d = tl.where(tl.abs(e) <= bound, d, 0.0)
            tl.store(gradient + at, (d - p * total).to(gradient.dtype.element_ty), mask=inside)


def score_rows(
    student: Tensor,
    teacher: Tensor,
    grad_out: Tensor | None,
    spec: DivergenceSpec,
    stats: Sequence[str],
    ids: Tensor | None,
) -> list[Tensor]:
    """Score a chunk as `full._score_rows` does, in one launch of the kernel.

    Args:
        student: (c, V) logits, rows contiguous, 16-bit or fp32.
        teacher: (c, V) logits, likewise.
        grad_out: (c, V) takes ∂ℓ/∂z without the factor 1/τ; may be either input.  None: no gradient.
        spec: which divergence.
        stats: names from `full.STATS`, checked by the caller.
        ids: (c,) tokens for the log-probs among stats.

    Returns:
        (c,) fp32 each: the divergence, then the statistics in order.
    """
    rows, vocabulary = student.shape
    found = torch.empty(rows, COLUMNS, dtype=torch.float32, device=student.device)
    taus = spec.temperature, spec.teacher_temperature or spec.temperature
    own: list[Tensor] = []
    if ids is not None:  # before the gradient is written over them
        for logits, tau in zip((student, teacher), taus, strict=True):
            own.append(logits.gather(1, ids[:, None])[:, 0].float() / tau)
    clip = spec.effective_clip
    target = student if grad_out is None else grad_out
    _row[(rows,)](
        student,
        teacher,
        target,
        found,
        student.stride(0),
        teacher.stride(0),
        target.stride(0),
        vocabulary,
        float(taus[0]),
        float(taus[1]),
        float(spec.jsd_beta),
        0.0 if clip is None else clip,
        KIND=KINDS[spec.effective_kind],
        CLIP=CLIPS["none" if clip is None else spec.clip_mode],
        GRAD=grad_out is not None,
        TILE=TILE,
        num_warps=WARPS,
    )
    value, moment_s, moment_t, agree, max_s, log_zs, max_t, log_zt = found.unbind(1)
    measured = {
        "top1_disagreement": 1.0 - agree,
        "student_entropy": log_zs - moment_s,
        "teacher_entropy": log_zt - moment_t,
    }
    if own:
        measured["student_logprob"] = own[0] - max_s - log_zs
        measured["teacher_logprob"] = own[1] - max_t - log_zt
    return [value, *(measured[name] for name in stats)]
