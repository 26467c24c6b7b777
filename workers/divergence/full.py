"""Full-vocabulary divergences with a closed-form gradient, in token chunks.

A distillation loss over V = 152k tokens costs 0.6 MB per response token and tensor in fp32, and plain autograd keeps
half a dozen of those until the backward pass.  Here the gradient is computed together with the value, chunk by chunk,
so that what survives the forward pass is

* `logits_divergence`: one (N, V) buffer in the student's dtype, which may be the storage of the teacher's own logits;
* `hidden_divergence`: a (N, h) gradient, and an fp32 (V, h) one if the output head trains.  No (N, V) tensor at all.

Derivation, for all kinds at once.  With p = p_S, q = p_T (both at their temperature) and z the student's scaled logits,
the loss of a token is Σ_v φ(e_v): e_v is the entry of vocabulary token v, φ the clip.  Each e_v depends on z only
through log p_v, and ∂ log p_v / ∂z_u = 1[u = v] − p_u.  So with d_v = φ'(e_v) · ∂e_v/∂log p_v,

    ∂ℓ/∂z_u = d_u − p_u · Σ_v d_v,        φ'(e) = 1 where e is not clipped (its bound included), else 0.

    kind          e_v                                             ∂e_v / ∂log p_v
    forward_kl    q (log q − log p)                               −q
    reverse_kl    p (log p − log q)                               e_v + p
    jsd           β q (log q − log m) + (1−β) p (log p − log m)   (1−β) p (log p − log m),   m = (1−β) p + β q
    mixed_kl      a times the first and 1−a times the second entry, and so their derivatives; a is the token's own

That of the JSD: ∂log m/∂log p = (1−β)p/m, hence −βq(1−β)p/m + (1−β)p(log p − log m) + (1−β)p(1 − (1−β)p/m), whose
first and third terms cancel because βq + (1−β)p = m.  For the forward KL this is p · M − q · 1[not clipped] with
M = Σ_{v not clipped} q_v, for the pointwise clip of OPSD (arXiv 2601.18734; PW-OPSD, eq. 1).  The chain through the
temperature adds 1/τ; there is no τ² factor.

Memory traffic is what the arithmetic costs, so everything below works in place on a few preallocated buffers, small
enough to stay in cache on a CPU, and avoids boolean masks (several times slower there than a float 0/1 mask).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.divergence.spec import MIXED, STATS, DivergenceSpec

# Whether `workers.divergence.fused` does the element-wise part where it can: off until a GPU has shown that it pays.
USE_FUSED = False

# Stands for log 0: far below any logit, yet finite, so that 0 · log 0 is 0 and not NaN.
LOG_ZERO = -1.0e30

TeacherLogits = Tensor | Callable[[int, int], Tensor]


def chunk_rows(vocab: int, device: torch.device) -> tuple[int, int]:
    """How many tokens are worked on at once.

    A chunk bounds memory and must be large enough to keep the matrix products efficient (each reads the whole head).
    A block bounds the working buffers; on a CPU they should stay in cache.

    Args:
        vocab: size of the vocabulary.
        device: where the logits are.

    Returns:
        Tokens of a chunk, and of a block inside it.
    """
    chunk_elements, block_elements = (20_000_000, 1 << 20) if device.type == "cpu" else (1 << 28, 1 << 26)
    return max(1, chunk_elements // vocab), max(1, block_elements // vocab)


def _log_partition_inplace(z: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Turn logits z (r, V) into z/τ − max and fill `probabilities`; return log Σ exp z of that, (r, 1).

    The largest probability is exp(0) / Σ, so its logarithm gives the normaliser without another pass of exponentials.
    """
    if temperature != 1.0:
        z.div_(temperature)
    z.sub_(z.amax(-1, keepdim=True)).clamp_min_(LOG_ZERO)
    torch.softmax(z, -1, out=probabilities)
    return probabilities.amax(-1, keepdim=True).log_().neg_()


def _score_block(
    s: Tensor,
    t: Tensor,
    work: Sequence[Tensor],
    spec: DivergenceSpec,
    grad: bool,
    stats: Sequence[str],
    ids: Tensor | None,
    share: Tensor | None,
) -> list[Tensor]:
    """Divergence of one block and its statistics, [(r,)] * (1 + len(stats)).

    s, t (r, V) hold student and teacher logits in the working dtype and are destroyed; with `grad`, s ends as ∂ℓ/∂z
    (before the factor 1/τ).  work: three (r, V) buffers.  share: (r,) of the forward KL, for a mixed one.
    """
    p, q, e = work
    log_zs = _log_partition_inplace(s, p, spec.temperature)
    log_zt = _log_partition_inplace(t, q, spec.teacher_temperature or spec.temperature)

    measured = []
    for name in stats:
        if name == "top1_disagreement":  # both shifted logits are 0 at one token only where both put their maximum
            measured.append((torch.add(s, t, out=e).amax(-1) < 0).to(s.dtype))
        elif name == "student_entropy":
            measured.append(log_zs[:, 0] - torch.mul(p, s, out=e).sum(-1))
        elif name == "teacher_entropy":
            measured.append(log_zt[:, 0] - torch.mul(q, t, out=e).sum(-1))
        elif ids is None:
            raise ValueError(f"{name} needs token_ids")
        elif name == "student_logprob":
            measured.append((s.gather(1, ids[:, None]) - log_zs)[:, 0])
        else:
            measured.append((t.gather(1, ids[:, None]) - log_zt)[:, 0])

    # Logits are subtracted before the normalisers are, so that near-equal distributions lose no digits.
    kind = spec.effective_kind
    if kind == "forward_kl":
        torch.sub(t, s, out=e).add_(log_zs - log_zt).mul_(q)
        d = q.neg_()
    elif kind == "reverse_kl":
        torch.sub(s, t, out=e).add_(log_zt - log_zs).mul_(p)
        d = torch.add(e, p, out=q)
    elif share is not None:
        d = _mixed_entries_inplace(s, t, p, q, e, log_zt - log_zs, share[:, None].to(s.dtype))
    else:
        d = _jsd_entries_inplace(s, t, p, q, e, log_zt - log_zs, spec.jsd_beta)

    clip = spec.effective_clip
    if clip is not None:
        if grad:
            kept = torch.le(e, clip, out=t) if spec.clip_mode == "upper" else torch.abs(e, out=t).le_(clip)
            d.mul_(kept)
        e.clamp_(min=None if spec.clip_mode == "upper" else -clip, max=clip)
    value = e.sum(-1)
    if grad:
        torch.sub(d, p.mul_(d.sum(-1, keepdim=True)), out=s)
    return [value, *measured]


def _mixed_entries_inplace(
    s: Tensor, t: Tensor, p: Tensor, q: Tensor, e: Tensor, offset: Tensor, share: Tensor
) -> Tensor:
    """Entries of the mixed KL into e; returns their derivatives, in s.  t and q are destroyed.  share: (r, 1)."""
    torch.sub(s, t, out=e).add_(offset)  # log p − log q
    torch.mul(e, p, out=t)  # the reverse KL's entries
    torch.add(t, p, out=s).mul_(1.0 - share)
    q.mul_(share)
    e.mul_(q).neg_().add_(t.mul_(1.0 - share))
    return s.sub_(q)


def _jsd_entries_inplace(s: Tensor, t: Tensor, p: Tensor, q: Tensor, e: Tensor, offset: Tensor, beta: float) -> Tensor:
    """Entries of the generalised JSD into e; returns (1−β) p (log p − log m), in s.  t and q are destroyed.

    With r = log p − log q, the larger of the two log-ratios to the mixture is C = −log1p(b · expm1(−|r|)), b = β where
    p is the larger and 1−β where q is; the smaller is C − |r|.  Nothing overflows, and p = q gives exactly zero.
    """
    r = torch.sub(s, t, out=e).add_(offset)
    torch.abs(r, out=t).neg_().expm1_()
    torch.ge(r, 0.0, out=s).mul_(2.0 * beta - 1.0).add_(1.0 - beta)  # b
    t.mul_(s).log1p_().neg_()  # C
    torch.clamp(r, max=0.0, out=s).add_(t).mul_(p).mul_(1.0 - beta)  # (1−β) p (log p − log m)
    t.sub_(r.clamp_(min=0.0)).mul_(q).mul_(beta)  # β q (log q − log m)
    torch.add(s, t, out=e)
    return s


def _score_rows(
    student: Tensor,
    teacher: Tensor,
    grad_out: Tensor | None,
    work: Sequence[Tensor],
    spec: DivergenceSpec,
    stats: Sequence[str],
    ids: Tensor | None,
    share: Tensor | None,
) -> list[Tensor]:
    """Score a chunk (c, V) block by block; ∂ℓ/∂z (without 1/τ) goes into grad_out (c, V), which may be either input."""
    if not work:
        from workers.divergence.fused import score_rows  # imports Triton

        return score_rows(student, teacher, grad_out, spec, stats, ids)
    block = work[0].shape[0]
    parts = []
    for i in range(0, student.shape[0], block):
        rows = slice(i, min(i + block, student.shape[0]))
        s, t, *rest = (buffer[: rows.stop - rows.start] for buffer in work)
        s.copy_(student[rows])
        t.copy_(teacher[rows])
        own = [None if values is None else values[rows] for values in (ids, share)]
        parts.append(_score_block(s, t, rest, spec, grad_out is not None, stats, *own))
        if grad_out is not None:
            grad_out[rows].copy_(s)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _fused(dtype: torch.dtype, device: torch.device, kind: str) -> bool:
    """Whether Triton's kernel is wanted and can do it: fp32 arithmetic, on a GPU or interpreted, no mixture of KLs."""
    where = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return USE_FUSED and dtype == torch.float32 and where and kind != MIXED


def _buffers(rows: int, vocab: int, dtype: torch.dtype, device: torch.device, kind: str) -> list[Tensor]:
    """Working buffers of a block; none where the fused kernel does without."""
    if _fused(dtype, device, kind):
        return []
    block = min(max(rows, 1), chunk_rows(vocab, device)[1])
    return [torch.empty(block, vocab, dtype=dtype, device=device) for _ in range(5)]


def _working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """fp32 for anything smaller, fp64 where an input is fp64."""
    dtype = torch.float32
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _check_share(spec: DivergenceSpec, share: Tensor | None, rows: int) -> None:
    if (share is not None) != (spec.kind == MIXED):
        raise ValueError(f"kind={spec.kind!r}: forward_share belongs to kind={MIXED!r}, and to no other")
    if share is not None and (tuple(share.shape) != (rows,) or share.requires_grad):
        raise ValueError(
            f"forward_share has shape {tuple(share.shape)} (requires_grad={share.requires_grad}), expected ({rows},) "
            "constants, one per scored token"
        )


def _check_stats(stats: Sequence[str], token_ids: Tensor | None, rows: int) -> tuple[str, ...]:
    for name in stats:
        if name not in STATS:
            raise ValueError(f"stats={tuple(stats)!r}: {name!r} is unknown; use some of {', '.join(STATS)}")
        if name.endswith("logprob") and token_ids is None:
            raise ValueError(f"stats asks for {name!r}, which needs token_ids; pass the (N,) sampled token ids")
    if token_ids is not None and tuple(token_ids.shape) != (rows,):
        raise ValueError(f"token_ids has shape {tuple(token_ids.shape)}, expected ({rows},), one id per scored token")
    return tuple(stats)


class _LogitsDivergence(torch.autograd.Function):
    """Per-token divergence of logits that are already in the graph.  The gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor | None,
        read_teacher: Callable[[int, int], Tensor],
        spec: DivergenceSpec,
        chunk: int,
        storage: Tensor | None,
        consume: bool,
        stats: tuple[str, ...],
        ids: Tensor | None,
        share: Tensor | None,
        grad: bool,
    ) -> tuple[Tensor, ...]:
        count, vocab = (logits.shape[0] if rows is None else rows.shape[0]), logits.shape[1]
        results: list[Tensor] = []
        buffer: Tensor | None = None
        work: list[Tensor] = []
        for i in range(0, count, chunk):
            stop = min(i + chunk, count)
            teacher = read_teacher(i, stop)
            if tuple(teacher.shape) != (stop - i, vocab):
                raise ValueError(
                    f"the teacher's logits for tokens {i}..{stop} have shape {tuple(teacher.shape)}, expected "
                    f"({stop - i}, {vocab}): one row per scored token, the student's vocabulary"
                )
            if not results:
                dtype = _working_dtype(logits.dtype, teacher.dtype)
                results = [torch.empty(count, dtype=dtype, device=logits.device) for _ in range(1 + len(stats))]
                work = _buffers(min(chunk, count), vocab, dtype, logits.device, spec.kind)
                if grad:
                    buffer = logits.new_empty(count, vocab) if storage is None else storage
            student = logits[i:stop] if rows is None else logits.index_select(0, rows[i:stop])
            grad_out = None if buffer is None else buffer[i:stop]
            own = [None if values is None else values[i:stop] for values in (ids, share)]
            part = _score_rows(student, teacher, grad_out, work, spec, stats, *own)
            for whole, piece in zip(results, part, strict=True):
                whole[i:stop] = piece
            del teacher  # before the next chunk is made: one at a time is alive
        if not results:
            results = [logits.new_empty(0, dtype=_working_dtype(logits.dtype)) for _ in range(1 + len(stats))]
            buffer = logits.new_empty(0, vocab) if grad else None
        if buffer is not None:
            ctx.save_for_backward(buffer, rows)
        ctx.temperature, ctx.shape, ctx.consume = spec.temperature, logits.shape, consume
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 11
        buffer, rows = ctx.saved_tensors
        scale = (upstream / ctx.temperature)[:, None]
        # In place, the next backward over the same graph fails with autograd's own message about a modified tensor.
        grad = buffer.mul_(scale) if ctx.consume else torch.mul(buffer, scale, out=torch.empty_like(buffer))
        if rows is not None:
            grad = buffer.new_zeros(ctx.shape).index_add_(0, rows, grad)
        return (grad, *(None,) * 10)


def logits_divergence(
    student_logits: Tensor,
    teacher_logits: TeacherLogits,
    spec: DivergenceSpec,
    *,
    rows: Tensor | None = None,
    token_ids: Tensor | None = None,
    stats: Sequence[str] = (),
    forward_share: Tensor | None = None,
    chunk_size: int | None = None,
    consume_teacher: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token divergence (N,) of student logits that are in the graph, and statistics of the same pass.

    Arithmetic is fp32 (fp64 for fp64 inputs), results have that dtype; the gradient has the student's dtype.  A logit
    of −inf counts as probability zero.

    Args:
        student_logits: (T, V), or (1, T, V) as verl's logits hook passes it, any floating dtype.  The gradient goes
            here.
        teacher_logits: (N, V), or a function (start, stop) -> (stop − start, V) called once per chunk, in order, whose
            result is dropped after use: a teacher whose logits are made chunk by chunk from its hidden states, or
            popped from a list, is never held whole.
        spec: which divergence.
        rows: (N,) indices of the scored rows of student_logits; None scores all.  Passing them here rather than
            indexing the logits beforehand saves a copy of (N, V).
        token_ids: (N,) sampled tokens, for the log-probability statistics.
        stats: names from `STATS`; each comes back as (N,), detached.
        forward_share: (N,) in [0, 1], each token's share of the forward KL; for kind="mixed_kl" and no other.
        chunk_size: tokens per chunk; None chooses by device and vocabulary.  The result does not depend on it.
        consume_teacher: overwrite teacher_logits (a tensor) with the gradient where dtypes agree, and scale the kept
            gradient in place in the backward pass, which can then run once.  Peak memory above the two logits: none.

    Raises:
        ValueError: if shapes do not match, or a setting is not allowed.
    """
    if student_logits.dim() == 3 and student_logits.shape[0] == 1:
        student_logits = student_logits.squeeze(0)  # its backward is a view, that of [0] another (T, V) buffer
    if student_logits.dim() != 2:
        raise ValueError(f"student_logits has shape {tuple(student_logits.shape)}, expected (T, V) or (1, T, V)")
    total, vocab = student_logits.shape
    count = total if rows is None else rows.shape[0]
    stats = _check_stats(stats, token_ids, count)
    _check_share(spec, forward_share, count)
    chunk = _check_chunk(chunk_size) or chunk_rows(vocab, student_logits.device)[0]
    grad = torch.is_grad_enabled() and student_logits.requires_grad

    storage = None
    if isinstance(teacher_logits, Tensor):
        if tuple(teacher_logits.shape) != (count, vocab):
            raise ValueError(
                f"teacher_logits has shape {tuple(teacher_logits.shape)}, expected ({count}, {vocab}): one row per "
                "scored token, over the student's vocabulary"
            )
        teacher = teacher_logits.detach()
        if grad and consume_teacher and teacher.dtype == student_logits.dtype:
            storage = teacher

        def read_teacher(start: int, stop: int) -> Tensor:
            return teacher[start:stop]
    else:

        def read_teacher(start: int, stop: int) -> Tensor:
            return teacher_logits(start, stop).detach()

    value, *measured = _LogitsDivergence.apply(
        student_logits,
        rows,
        read_teacher,
        spec,
        chunk,
        storage,
        consume_teacher,
        stats,
        token_ids,
        forward_share,
        grad,
    )
    return value, dict(zip(stats, measured, strict=True))


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: float | None = None,
    clip_mode: str = "upper",
    temperature: float = 1.0,
) -> Tensor:
    """Divergence of each token over the full vocabulary, (N,); differentiable in the student only.

    Arithmetic and result are fp32 (fp64 for fp64 inputs).

    Args:
        student_logits: (N, V), any floating dtype.
        teacher_logits: (N, V), any floating dtype.
        kind: "forward_kl", "reverse_kl" or "jsd"; this and the rest as in `DivergenceSpec`.
        jsd_beta: β of the JSD.
        clip: bound of each vocabulary entry; None is no clip.
        clip_mode: "upper", "symmetric" or "none".
        temperature: divides both logits.

    Raises:
        ValueError: if shapes do not match, or a setting is not allowed.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} must both "
            "be (N, V), one row per token"
        )
    spec = DivergenceSpec(kind, jsd_beta, clip, clip_mode, temperature)
    return logits_divergence(student_logits, teacher_logits, spec)[0]


def _check_chunk(chunk_size: int | None) -> int | None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1; None chooses it")
    return chunk_size


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total (m, n) += a (m, k) @ b (k, n), accumulated in total's dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    if total.is_cuda and total.dtype == torch.float32:
        try:  # no rounding of the product to 16 bits on the way; torch 2.8 and later
            torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
            return
        except (TypeError, NotImplementedError):
            pass
    slab = max(1, (1 << 26) // total.shape[1])  # bounds the product, which is a temporary here
    for i in range(0, total.shape[0], slab):
        total[i : i + slab].add_(a[i : i + slab] @ b)


class _HiddenDivergence(torch.autograd.Function):
    """Weighted loss from hidden states and heads; both gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        weights: Tensor,
        spec: DivergenceSpec,
        chunk: int,
        stats: tuple[str, ...],
        ids: Tensor | None,
        share: Tensor | None,
        grads: tuple[bool, bool],
    ) -> tuple[Tensor, ...]:
        need_hidden, need_head = grads
        count, vocab = hidden.shape[0], head.shape[0]
        dtype = _working_dtype(hidden.dtype, teacher_hidden.dtype)
        results = [torch.empty(count, dtype=dtype, device=hidden.device) for _ in range(1 + len(stats))]
        grad_hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if need_hidden else None
        grad_head = torch.zeros(head.shape, dtype=dtype, device=hidden.device) if need_head else None
        work = _buffers(min(chunk, count), vocab, dtype, hidden.device, spec.kind)
        z_student = hidden.new_empty(min(chunk, count), vocab)
        z_teacher = teacher_hidden.new_empty(min(chunk, count), vocab)
        scale = (weights.to(dtype) / spec.temperature)[:, None]
        for i in range(0, count, chunk):
            stop = min(i + chunk, count)
            zs = torch.mm(hidden[i:stop], head.t(), out=z_student[: stop - i])
            zt = torch.mm(teacher_hidden[i:stop], teacher_head.t(), out=z_teacher[: stop - i])
            grad_out = zs if need_hidden or need_head else None
            own = [None if values is None else values[i:stop] for values in (ids, share)]
            part = _score_rows(zs, zt, grad_out, work, spec, stats, *own)
            for whole, piece in zip(results, part, strict=True):
                whole[i:stop] = piece
            # Per-token weights meet the (tokens, h) side of each product: cheaper than (tokens, V), and the unweighted
            # gradient, of order one, is what a small dtype represents best.
            if grad_hidden is not None:
                torch.mul(zs @ head, scale[i:stop], out=grad_hidden[i:stop])
            if grad_head is not None:
                _add_product(grad_head, zs.t(), (hidden[i:stop] * scale[i:stop]).to(hidden.dtype))
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(*results)
        ctx.set_materialize_grads(False)
        return ((results[0] * weights.to(dtype)).sum(), *results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 11
        grads = [
            None if grad is None else _scaled(grad, upstream, dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, *(None,) * 9)


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad · factor in a dtype: in place where it is grad's own, so that a head's gradient is never held twice.

    A second backward over the same graph then fails with autograd's own message about a modified tensor.
    """
    if grad.dtype == dtype:
        return grad.mul_(factor)
    return torch.mul(grad, factor, out=torch.empty(grad.shape, dtype=dtype, device=grad.device))


def hidden_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor | None = None,
    *,
    weights: Tensor,
    spec: DivergenceSpec,
    token_ids: Tensor | None = None,
    stats: Sequence[str] = (),
    forward_share: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted divergence Σ_n weights_n · ℓ_n from final hidden states, without ever holding the (N, V) logits.

    Gradients go to whichever of the student's states and head requires one.  A frozen head costs three matrix products
    per chunk (two logits, one gradient), a trained one four; nothing is recomputed.  Logits have the dtype of the
    inputs, as the model's own head would give them; everything after them is fp32 (fp64 for fp64 inputs), and the
    head's gradient is accumulated over chunks in that dtype and cast once.  Heads with a bias or a soft cap are not
    covered: use `logits_divergence`.

    Args:
        student_hidden: (N, h) final hidden states of the scored tokens.
        student_head: (V, h), of the same dtype.
        teacher_hidden: (N, h'), taken as constants.
        teacher_head: (V, h'), taken as a constant; None for the student's head.
        weights: (N,) constants, e.g. from `reduction_weights`.
        spec: which divergence.
        token_ids: (N,) sampled tokens, for the log-probability statistics.
        stats: names from `STATS`.
        forward_share: (N,) in [0, 1], each token's share of the forward KL; for kind="mixed_kl" and no other.
        chunk_size: tokens per chunk; None chooses by device and vocabulary.

    Returns:
        The scalar loss, to be backpropagated once, and {"divergence": (N,), **stats: (N,)}, detached.

    Raises:
        ValueError: if shapes or dtypes do not match, or a setting is not allowed.
    """
    teacher_head = student_head if teacher_head is None else teacher_head
    count = student_hidden.shape[0]
    for name, hidden, head in (("student", student_hidden, student_head), ("teacher", teacher_hidden, teacher_head)):
        if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1] or hidden.dtype != head.dtype:
            raise ValueError(
                f"{name}: hidden states {tuple(hidden.shape)} {hidden.dtype} do not fit the head {tuple(head.shape)} "
                f"{head.dtype}; expected (N, h) and (V, h) of one dtype"
            )
    if teacher_hidden.shape[0] != count or teacher_head.shape[0] != student_head.shape[0]:
        raise ValueError(
            f"student scores {count} tokens over {student_head.shape[0]}, teacher {teacher_hidden.shape[0]} over "
            f"{teacher_head.shape[0]}; both must score the same tokens over one vocabulary"
        )
    if tuple(weights.shape) != (count,) or weights.requires_grad:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} (requires_grad={weights.requires_grad}), expected ({count},) "
            "constants; detach them"
        )
    stats = _check_stats(stats, token_ids, count)
    _check_share(spec, forward_share, count)
    chunk = _check_chunk(chunk_size) or chunk_rows(student_head.shape[0], student_head.device)[0]
    enabled = torch.is_grad_enabled()
    grads = enabled and student_hidden.requires_grad, enabled and student_head.requires_grad
    with torch.autocast(student_hidden.device.type, enabled=False):
        loss, value, *measured = _HiddenDivergence.apply(
            student_hidden,
            student_head,
            teacher_hidden.detach(),
            teacher_head.detach(),
            weights,
            spec,
            chunk,
            stats,
            token_ids,
            forward_share,
            grads,
        )
    return loss, {"divergence": value, **dict(zip(stats, measured, strict=True))}


def _fp32_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """(n, V) logits in fp32, or fp64 for fp64 inputs, not rounded to the inputs' 16 bits on the way."""
    dtype = _working_dtype(hidden.dtype)
    if hidden.dtype == dtype:
        return hidden @ head.t()
    if hidden.is_cuda:
        try:  # sums in fp32 and stops there; torch 2.8 and later
            return torch.mm(hidden, head.t(), out_dtype=dtype)
        except (TypeError, NotImplementedError):
            pass
    return hidden.to(dtype) @ head.t().to(dtype)


@torch.no_grad()
def hidden_statistics(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    gradient_norm: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor, ...]:
    """Log-prob of one token per row, and the entropy, from final hidden states: no (N, V) tensor is held.

    Logits are fp32 (fp64 for fp64 inputs) even where hidden states and head are 16-bit: rounded to bf16, logits of 22
    to 25 err by up to 0.06, and log p by as much.

    Args:
        hidden: (N, h).
        head: (V, h), of the same dtype.
        token_ids: (N,).
        temperature: divides the logits.
        gradient_norm: add ‖∂ log p(token) / ∂ head‖ (Frobenius). That gradient is (e_token − p) hᵀ / τ, so its norm is
            √((1 − p_token)² + Σ_{v ≠ token} p_v²) · ‖h‖ / τ, without a backward pass.
        chunk_size: tokens per chunk; None chooses by device and vocabulary.

    Returns:
        log p and H, (N,) each, nats; with `gradient_norm` the norms, (N,), as a third.

    Raises:
        ValueError: if shapes do not match.
    """
    if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and head {tuple(head.shape)} must be (N, h) and (V, h)")
    _check_stats((), token_ids, hidden.shape[0])
    count, dtype = hidden.shape[0], _working_dtype(hidden.dtype)
    found = [torch.empty(count, dtype=dtype, device=hidden.device) for _ in range(3 if gradient_norm else 2)]
    chunk = _check_chunk(chunk_size) or chunk_rows(head.shape[0], hidden.device)[0]
    with torch.autocast(hidden.device.type, enabled=False):
        for i in range(0, count, chunk):
            rows = slice(i, min(i + chunk, count))
            z = _fp32_logits(hidden[rows], head)
            p = torch.empty_like(z)
            log_z = _log_partition_inplace(z, p, temperature)[:, 0]
            own = token_ids[rows, None]
            found[0][rows] = z.gather(1, own)[:, 0] - log_z
            if gradient_norm:
                # Without the token itself: 1 − p of a certain token would be rounding error.
                kept = p.gather(1, own)
                p.scatter_(1, own, 0.0)
                others = torch.linalg.vector_norm(p, dim=1)
                size = torch.linalg.vector_norm(hidden[rows].to(dtype), dim=1) / temperature
                found[2][rows] = torch.hypot(p.sum(-1), others) * size
                p.scatter_(1, own, kept)
            found[1][rows] = log_z - p.mul_(z).sum(-1)
            del z, p  # before the next chunk's are made
    return tuple(found)
