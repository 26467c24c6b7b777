"""workers.divergence against a naive fp64 autograd reference, its limits and invariances, and hostile inputs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from workers.divergence import (
    KINDS,
    MIXED,
    DivergenceSpec,
    full,
    hidden_divergence,
    logits_divergence,
    sampled_token_gap,
    student_topk_divergence,
    teacher_topk_divergence,
    token_divergence,
    token_log_probs,
    top_k,
)

CLIPS = ((None, "upper"), (0.05, "upper"), (0.05, "symmetric"), (0.002, "upper"), (0.002, "symmetric"))
SETTINGS = [
    pytest.param(
        {"kind": kind, "jsd_beta": 0.3, "clip": clip, "clip_mode": mode, "temperature": t},
        id=f"{kind}-{clip}-{mode}-{t}",
    )
    for kind, (clip, mode), t in itertools.product(KINDS, CLIPS, (1.0, 1.1, 0.5))
]


def naive(
    student, teacher, *, kind="forward_kl", jsd_beta=0.5, clip=None, clip_mode="upper", temperature=1.0, summed=True
):
    """The definition, written with probabilities and left to autograd."""
    p = torch.softmax(student / temperature, -1)
    q = torch.softmax(teacher / temperature, -1)
    if kind == "forward_kl":
        entries = q * (q / p).log()
    elif kind == "reverse_kl":
        entries = p * (p / q).log()
    else:
        m = (1 - jsd_beta) * p + jsd_beta * q
        entries = jsd_beta * q * (q / m).log() + (1 - jsd_beta) * p * (p / m).log()
    if clip is not None:
        entries = entries.clamp(max=clip, min=-clip if clip_mode == "symmetric" else None)
    return entries.sum(-1) if summed else entries


def pair(rows=24, vocab=211, scale=2.0, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(rows, vocab, generator=g) * scale).to(dtype) for _ in range(2))


def rounding(options, student, teacher):
    """What fp32 may cost, relative to the largest result, whatever instructions the processor has.

    A log-probability is a difference of numbers as large as the scaled logits, so it errs by an fp32 step of that size;
    four more steps are for the exponential, the products and the sum.  Where entries of both signs cancel, the error
    stays that of the entries while the result shrinks: the condition of the sum.
    """
    eps = torch.finfo(torch.float32).eps
    size = max(student.abs().max().item(), teacher.abs().max().item()) / options["temperature"]
    entries = naive(student.double(), teacher.double(), **options, summed=False)
    condition = (entries.abs().sum(-1).max() / entries.sum(-1).abs().max()).item()
    return eps * (size + 4) * max(condition, 1.0)


def relative(actual, expected):
    return (actual.double() - expected).abs().max().item() / expected.abs().max().item()


def kl_of(p, q, **kwargs):
    """token_divergence of two probability vectors, student first."""
    return token_divergence(torch.tensor([p]).log(), torch.tensor([q]).log(), **kwargs).item()


# --- value and gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS)
def test_value_and_weighted_gradient_match_naive_fp64(options):
    student, teacher = pair()
    weights = torch.rand(len(student), generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    value = token_divergence(student, teacher, **options)
    assert value.dtype == torch.float32 and value.shape == (24,)
    (grad,) = torch.autograd.grad((value * weights).sum(), student)

    exact = student.detach().double().requires_grad_()
    expected = naive(exact, teacher.double(), **options)
    (expected_grad,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    bound = rounding(options, student.detach(), teacher)
    assert relative(value.detach(), expected.detach()) < bound
    assert relative(grad, expected_grad) < bound


@pytest.mark.parametrize("options", SETTINGS)
def test_gradcheck(options):
    student, teacher = pair(3, 6, scale=1.0, seed=3, dtype=torch.float64)
    # Away from the clip's corner, where the derivative jumps and finite differences mean nothing.
    assert gradcheck(lambda z: token_divergence(z, teacher, **options), student.requires_grad_())


def test_the_worked_example_is_negative_and_points_away_from_the_teacher():
    student = torch.tensor([[0.1, 0.9]]).log().requires_grad_()
    teacher = torch.tensor([[0.9, 0.1]]).log()
    value = token_divergence(student, teacher, clip=0.05)
    # The first entry, 0.9 ln 9, is cut to .05; the second, −0.1 ln 9, is not: nothing holds it from below.
    assert value.item() == pytest.approx(0.05 - 0.1 * math.log(9), abs=1e-6)
    assert value.item() == pytest.approx(-0.1697, abs=1e-4)
    value.backward()
    # M = 0.1: ∂ℓ/∂z = 0.1 p − (0, 0.1) = (.01, −.01): descent lowers the token that the teacher wants.
    assert student.grad.flatten().tolist() == pytest.approx([0.01, -0.01], abs=1e-7)
    assert kl_of([0.1, 0.9], [0.9, 0.1], clip=0.05, clip_mode="symmetric") == pytest.approx(0.0, abs=1e-6)
    assert kl_of([0.1, 0.9], [0.9, 0.1], clip=0.05, clip_mode="none") == pytest.approx(0.8 * math.log(9), rel=1e-6)


def test_differentiable_in_the_student_only():
    student, teacher = pair(4, 9)
    student.requires_grad_()
    teacher.requires_grad_()
    token_divergence(student, teacher).sum().backward()
    assert student.grad is not None and teacher.grad is None
    assert not token_divergence(student.detach(), teacher).requires_grad
    with torch.no_grad():
        assert not token_divergence(student, teacher).requires_grad


def test_zero_weights_give_zero_gradient():
    student, teacher = pair(6, 40)
    student.requires_grad_()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 1.0])
    (token_divergence(student, teacher, clip=0.05) * weights).sum().backward()
    assert (student.grad[weights == 0] == 0).all() and (student.grad[weights > 0].abs().sum(-1) > 0).all()


# --- limits and invariances -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["upper", "symmetric"])
def test_infinite_clip_is_none_bit_for_bit(kind, mode):
    student, teacher = pair()
    results = []
    for clip in (None, math.inf, 1e30):
        z = student.clone().requires_grad_()
        value = token_divergence(z, teacher, kind=kind, clip=clip, clip_mode=mode)
        results.append((value.detach(), torch.autograd.grad(value.sum(), z)[0]))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_equal_distributions_give_zero(kind, clip):
    student, _ = pair(dtype=torch.bfloat16)
    shifted = student.float() + 2.0  # the same distribution from other logits
    for teacher in (student.clone(), shifted):
        z = student.clone().float().requires_grad_()
        value = token_divergence(z, teacher, kind=kind, clip=clip, temperature=1.1)
        assert value.abs().max() < 1e-6
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert grad.abs().max() < 1e-6


def test_jsd_is_symmetric_at_one_half_and_bounded():
    student, teacher = pair(scale=6.0)
    forth, back = token_divergence(student, teacher, kind="jsd"), token_divergence(teacher, student, kind="jsd")
    torch.testing.assert_close(forth, back, rtol=1e-5, atol=1e-7)
    assert (forth > 0).all() and (forth < math.log(2) + 1e-6).all()
    # Not symmetric elsewhere; swapping β with the sides is.
    skew, swapped = (
        token_divergence(student, teacher, kind="jsd", jsd_beta=0.2),
        token_divergence(teacher, student, kind="jsd", jsd_beta=0.8),
    )
    torch.testing.assert_close(skew, swapped, rtol=1e-5, atol=1e-7)
    assert (skew - forth).abs().max() > 1e-2


def test_jsd_tends_to_the_two_kls_and_its_endpoints_are_them():
    student, teacher = pair(dtype=torch.float64)
    forward, reverse = (token_divergence(student, teacher, kind=kind) for kind in ("forward_kl", "reverse_kl"))
    tiny = 1e-7
    near_zero = token_divergence(student, teacher, kind="jsd", jsd_beta=tiny) / tiny
    near_one = token_divergence(student, teacher, kind="jsd", jsd_beta=1 - tiny) / tiny
    torch.testing.assert_close(near_zero, forward, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(near_one, reverse, rtol=1e-3, atol=1e-6)
    assert torch.equal(token_divergence(student, teacher, kind="jsd", jsd_beta=0.0), forward)
    assert torch.equal(token_divergence(student, teacher, kind="jsd", jsd_beta=1.0), reverse)


def test_forward_and_reverse_are_each_other_with_sides_swapped():
    student, teacher = pair()
    torch.testing.assert_close(
        token_divergence(student, teacher, kind="forward_kl"), token_divergence(teacher, student, kind="reverse_kl")
    )


def test_temperature_is_division_of_both_logits_and_has_no_square_factor():
    student, teacher = pair()
    warm = student.clone().requires_grad_()
    plain = (student / 2.0).requires_grad_()
    a = token_divergence(warm, teacher, clip=0.05, temperature=2.0)
    b = token_divergence(plain, teacher / 2.0, clip=0.05)
    torch.testing.assert_close(a, b)
    (ga,), (gb,) = torch.autograd.grad(a.sum(), warm), torch.autograd.grad(b.sum(), plain)
    torch.testing.assert_close(ga, gb / 2.0)
    # A teacher of its own temperature: student logits that were divided elsewhere.
    spec = DivergenceSpec(clip=0.05, temperature=1.0, teacher_temperature=2.0)
    torch.testing.assert_close(logits_divergence(student / 2.0, teacher, spec)[0], a.detach())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    clip=st.sampled_from([None, 0.05, 0.01]),
    mode=st.sampled_from(["upper", "symmetric"]),
    shift=st.floats(-50, 50),
)
def test_shift_and_permutation_leave_it_unchanged(seed, kind, clip, mode, shift):
    student, teacher = pair(5, 37, seed=seed, dtype=torch.float64)
    options = {"kind": kind, "clip": clip, "clip_mode": mode}
    z = student.clone().requires_grad_()
    value = token_divergence(z, teacher, **options)
    (grad,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(token_divergence(student + shift, teacher - shift, **options), value.detach())
    # Adding a constant to a row changes nothing, so its gradient sums to zero.
    assert grad.sum(-1).abs().max() < 1e-9
    order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
    y = student[:, order].clone().requires_grad_()
    permuted = token_divergence(y, teacher[:, order], **options)
    torch.testing.assert_close(permuted, value)
    torch.testing.assert_close(torch.autograd.grad(permuted.sum(), y)[0], grad[:, order])
    assert clip is not None or (value > -1e-12).all()


# --- hostile inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS)
def test_extreme_logits_stay_finite_and_right(options):
    g = torch.Generator().manual_seed(5)
    student = torch.randn(8, 50, generator=g)
    teacher = torch.randn(8, 50, generator=g)
    student[0, 3] = 1e4
    student[1] = -1e4
    teacher[2, 7] = 1e4
    teacher[3, ::2] = -1e4
    student[4, 1], teacher[4, 2] = 1e4, 1e4
    student[5], teacher[5] = 1e4, -1e4
    z = student.clone().requires_grad_()
    value = token_divergence(z, teacher, **options)
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and grad.isfinite().all()
    # Both agree with fp64 log-softmax arithmetic where the naive p / q would overflow.
    t = options["temperature"]
    lp, lq = ((x.double() / t).log_softmax(-1) for x in (student, teacher))
    if options["kind"] == "forward_kl" and options["clip"] is None:
        torch.testing.assert_close(value.double().detach(), (lq.exp() * (lq - lp)).sum(-1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grad.double(), (lp.exp() - lq.exp()) / t, rtol=1e-5, atol=1e-6)


def test_bf16_inputs_are_scored_in_fp32():
    student, teacher = pair(dtype=torch.bfloat16)
    z = student.clone().requires_grad_()
    value = token_divergence(z, teacher, clip=0.05, temperature=1.1)
    wide = student.float().requires_grad_()
    expected = token_divergence(wide, teacher.float(), clip=0.05, temperature=1.1)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    value.sum().backward()
    expected.sum().backward()
    assert z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(z.grad.float(), wide.grad, rtol=2**-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_count_as_probability_zero(kind):
    student, teacher = pair(6, 20)
    expected = token_divergence(student, teacher, kind=kind)
    wide = torch.full((6, 5), -math.inf)
    z = torch.cat([student, wide], -1).requires_grad_()
    value = token_divergence(z, torch.cat([teacher, wide], -1), kind=kind)
    torch.testing.assert_close(value.detach(), expected)
    value.sum().backward()
    assert z.grad.isfinite().all() and (z.grad[:, 20:] == 0).all()


def test_no_tokens():
    z = torch.empty(0, 7, requires_grad=True)
    value = token_divergence(z, torch.empty(0, 7))
    assert value.shape == (0,)
    value.sum().backward()
    assert z.grad.shape == (0, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "kl"}, "forward_kl"),
        ({"kind": "jsd", "jsd_beta": 1.5}, r"\[0, 1\]"),
        ({"clip": -0.05}, "positive"),
        ({"clip": float("nan")}, "positive"),
        ({"clip": 0.05, "clip_mode": "lower"}, "symmetric"),
        ({"temperature": 0.0}, "positive"),
    ],
)
def test_bad_settings_name_value_rule_and_fix(options, said):
    (name, value) = list(options.items())[-1]
    with pytest.raises(ValueError, match=said) as error:
        token_divergence(*pair(2, 3), **options)
    assert name in str(error.value) and str(value) in str(error.value)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))])
def test_shapes_that_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\(N, V\)"):
        token_divergence(*(torch.zeros(shape) for shape in shapes))


# --- logits that are in the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_teachers_and_rows_do_not_change_the_result(chunk, kind):
    student, teacher = pair(10, 33)
    spec = DivergenceSpec(kind=kind, clip=0.05, temperature=1.1)
    rows = torch.tensor([0, 2, 3, 9, 5])
    weights = torch.rand(5, generator=torch.Generator().manual_seed(0))
    z = student.clone().requires_grad_()
    expected = logits_divergence(z[rows], teacher[rows], spec)[0]
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), z)
    for given_teacher in (teacher[rows], lambda a, b: teacher[rows[a:b]]):
        for consume in (False, True):
            y = student.clone().requires_grad_()
            source = given_teacher.clone() if isinstance(given_teacher, torch.Tensor) else given_teacher
            value, _ = logits_divergence(y[None], source, spec, rows=rows, chunk_size=chunk, consume_teacher=consume)
            (grad,) = torch.autograd.grad((value * weights).sum(), y)
            assert torch.equal(value, expected)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-9)
            assert (grad[[1, 4, 6, 7, 8]] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_working_blocks_do_not_change_the_result(kind, monkeypatch):
    """A real vocabulary is scored a few rows at a time inside a chunk; these small ones would fit in one block."""
    names = ("top1_disagreement", "student_entropy", "student_logprob")
    ids = torch.randint(0, 33, (10,), generator=torch.Generator().manual_seed(0))
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case(torch.float64)
    spec = DivergenceSpec(kind=kind, clip=0.05, temperature=1.1)

    def everything():
        student, teacher = pair(10, 33, dtype=torch.float64)
        z, h = student.requires_grad_(), hidden.detach().requires_grad_()
        value, stats = logits_divergence(z, teacher, spec, token_ids=ids, stats=names)
        loss, more = hidden_divergence(
            h, head, teacher_hidden, teacher_head, weights=weights, spec=spec, stats=names[:2]
        )
        bucketed = student_topk_divergence(z, teacher, k=4, kind=kind)
        grads = torch.autograd.grad((value * torch.arange(10.0)).sum() + bucketed.square().sum() + loss, (z, h))
        return [value.detach(), bucketed.detach(), loss.detach(), *stats.values(), *more.values(), *grads]

    whole = everything()
    for module in (full, top_k):
        monkeypatch.setattr(module, "chunk_rows", lambda vocab, device: (5, 2))
    for expected, blocked in zip(whole, everything(), strict=True):
        torch.testing.assert_close(blocked, expected)


def test_teacher_chunks_are_dropped_one_by_one():
    import weakref

    student, teacher = pair(10, 33)
    alive = []

    def read(start, stop):
        assert all(ref() is None for ref in alive), "an earlier chunk of the teacher's logits is still held"
        chunk = teacher[start:stop].clone()
        alive.append(weakref.ref(chunk.untyped_storage()))
        return chunk

    value, _ = logits_divergence(student.requires_grad_(), read, DivergenceSpec(), chunk_size=3)
    assert len(alive) == 4
    torch.testing.assert_close(value, token_divergence(student, teacher))


def test_a_consumed_teacher_is_the_buffer_of_the_gradient_and_serves_once():
    student, teacher = pair(10, 33)
    spec = DivergenceSpec(clip=0.05)
    y, kept, given_teacher = student.clone().requires_grad_(), [], teacher.clone()

    def keep(x):
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value, _ = logits_divergence(y, given_teacher, spec, consume_teacher=True)
    assert [x.data_ptr() for x in kept] == [given_teacher.data_ptr()], "nothing but the teacher's storage may be kept"
    y = student.clone().requires_grad_()
    value, _ = logits_divergence(y, teacher.clone(), spec, consume_teacher=True)
    value.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_a_teacher_of_the_wrong_shape_is_refused():
    student, teacher = pair(4, 9)
    with pytest.raises(ValueError, match="one row per"):
        logits_divergence(student, teacher, DivergenceSpec(), rows=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="one row per"):
        logits_divergence(student, lambda a, b: teacher[:1], DivergenceSpec())
    with pytest.raises(ValueError, match="chunk_size=0"):
        logits_divergence(student, teacher, DivergenceSpec(), chunk_size=0)
    with pytest.raises(ValueError, match="token_ids"):
        logits_divergence(student, teacher, DivergenceSpec(), stats=("student_logprob",))
    with pytest.raises(ValueError, match="unknown"):
        logits_divergence(student, teacher, DivergenceSpec(), stats=("entropy",))


def test_statistics_of_the_same_pass():
    student, teacher = pair(30, 5)
    student[0], teacher[0] = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0])
    ids = torch.randint(0, 5, (30,), generator=torch.Generator().manual_seed(0))
    names = ("top1_disagreement", "student_entropy", "teacher_entropy", "student_logprob", "teacher_logprob")
    spec = DivergenceSpec(kind="jsd", clip=0.05, temperature=1.3)
    value, stats = logits_divergence(student.requires_grad_(), teacher, spec, token_ids=ids, stats=names)
    assert value.requires_grad and not any(x.requires_grad for x in stats.values()) and tuple(stats) == names
    torch.testing.assert_close(value, token_divergence(student, teacher, kind="jsd", clip=0.05, temperature=1.3))
    lp, lq = (torch.log_softmax(x.detach() / 1.3, -1) for x in (student, teacher))
    torch.testing.assert_close(stats["student_entropy"], -(lp.exp() * lp).sum(-1))
    torch.testing.assert_close(stats["teacher_entropy"], -(lq.exp() * lq).sum(-1))
    torch.testing.assert_close(stats["student_logprob"], lp.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(stats["teacher_logprob"], lq.gather(1, ids[:, None])[:, 0])
    disagree = (lp.argmax(-1) != lq.argmax(-1)).float()
    assert torch.equal(stats["top1_disagreement"][1:], disagree[1:]) and 0 < disagree.mean() < 1
    assert stats["top1_disagreement"][0] == 0  # a tie for the first place is no disagreement


# --- from hidden states -----------------------------------------------------------------------------------------------


def hidden_case(dtype=torch.float32, count=13, vocab=61, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((count, 16), (vocab, 16), (count, 12), (vocab, 12))
    tensors = [torch.randn(shape, generator=g).to(dtype) * (0.5 if i % 2 else 1.0) for i, shape in enumerate(shapes)]
    return (*tensors, torch.rand(count, generator=g))


@pytest.mark.parametrize("options", SETTINGS)
def test_hidden_states_and_heads_match_naive_fp64(options):
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case()
    weights[3] = 0.0
    spec = DivergenceSpec(**options)
    hidden.requires_grad_()
    head.requires_grad_()
    loss, stats = hidden_divergence(
        hidden, head, teacher_hidden, teacher_head, weights=weights, spec=spec, chunk_size=5
    )
    grads = torch.autograd.grad(loss, (hidden, head))
    exact = [x.detach().double() for x in (hidden, head, teacher_hidden, teacher_head, weights)]
    leaves = [x.requires_grad_() for x in exact[:2]]
    per_token = naive(leaves[0] @ leaves[1].t(), exact[2] @ exact[3].t(), **options)
    expected = torch.autograd.grad((per_token * exact[4]).sum(), leaves)
    assert relative(stats["divergence"], per_token.detach()) < 3e-6  # logits of order 4 carry 2e-7 each
    assert loss.item() == pytest.approx((per_token * exact[4]).sum().item(), rel=3e-6)
    for grad, reference in zip(grads, expected, strict=True):
        assert relative(grad, reference) < 3e-6
    assert (grads[0][3] == 0).all()


def test_hidden_gradients_in_fp64_upstream_factor_and_chunk_invariance():
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case(torch.float64, 7, 9)
    leaves = hidden.requires_grad_(), head.requires_grad_()
    spec = DivergenceSpec("jsd", 0.4, 0.03, temperature=1.2)
    options = {"kind": "jsd", "jsd_beta": 0.4, "clip": 0.03, "temperature": 1.2}
    reference = (naive(hidden @ head.t(), teacher_hidden @ teacher_head.t(), **options) * weights.double()).sum()
    expected = torch.autograd.grad(3.0 * reference, leaves)
    for chunk in (1, 2, 3, 7, 100):
        loss, _ = hidden_divergence(
            *leaves, teacher_hidden, teacher_head, weights=weights.double(), spec=spec, chunk_size=chunk
        )
        for actual, grad in zip(torch.autograd.grad(3.0 * loss, leaves, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(actual, grad, rtol=1e-10, atol=1e-14)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_shared_head_gets_the_students_gradient_only():
    hidden, head, _, _, weights = hidden_case()
    teacher_hidden = torch.randn(13, 16, generator=torch.Generator().manual_seed(9), requires_grad=True)
    head.requires_grad_()
    loss, _ = hidden_divergence(hidden, head, teacher_hidden, weights=weights, spec=DivergenceSpec(), chunk_size=4)
    (grad,) = torch.autograd.grad(loss, head)
    student = (hidden @ head.t()).log_softmax(-1)
    with torch.no_grad():
        teacher = (teacher_hidden @ head.t()).softmax(-1)
    reference = (torch.nn.functional.kl_div(student, teacher, reduction="none").sum(-1) * weights).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(reference, head)[0], rtol=1e-5, atol=1e-6)


class ProductCount(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("train_head", "products"), [(False, 3), (True, 4)])
def test_three_products_with_a_frozen_head_four_with_a_trained_one_and_no_logits_kept(train_head, products):
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case(count=20)
    hidden.requires_grad_()
    head.requires_grad_(train_head)
    kept = []

    def keep(x):
        kept.append(tuple(x.shape))
        return x

    stats = ("top1_disagreement", "student_entropy", "teacher_entropy")
    with ProductCount() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss, _ = hidden_divergence(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            weights=weights,
            spec=DivergenceSpec(),
            chunk_size=5,
            stats=stats,
        )
        loss.backward()
    assert counter.count == 4 * products  # four chunks
    assert kept == [(20, 16)] + [(61, 16)] * train_head
    with ProductCount() as counter, torch.no_grad():
        hidden_divergence(
            hidden, head, teacher_hidden, teacher_head, weights=weights, spec=DivergenceSpec(), chunk_size=5
        )
    assert counter.count == 4 * 2


def test_the_heads_gradient_is_accumulated_in_fp32():
    # Many chunks, each adding the same small amount: a bf16 total would stop growing.
    count = 600
    hidden = torch.ones(count, 4, dtype=torch.bfloat16)
    head = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    teacher_head = torch.zeros(3, 4, dtype=torch.bfloat16)
    teacher_head[0] = 1.0
    loss, _ = hidden_divergence(
        hidden, head, hidden, teacher_head, weights=torch.ones(count), spec=DivergenceSpec(), chunk_size=1
    )
    loss.backward()
    q = torch.softmax(torch.tensor([4.0, 0.0, 0.0]), -1)
    expected = count * (torch.full((3,), 1 / 3) - q)
    assert head.grad.dtype == torch.bfloat16
    torch.testing.assert_close(head.grad[:, 0].float(), expected, rtol=1e-2, atol=0)


def test_autocast_does_not_reach_inside():
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case()
    leaves = hidden.requires_grad_(), head.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = hidden_divergence(
                hidden, head, teacher_hidden, teacher_head, weights=weights, spec=DivergenceSpec(clip=0.05)
            )
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for plain, cast in zip(*results, strict=True):
        assert torch.equal(plain, cast)


def test_hidden_arguments_that_do_not_fit_are_refused():
    hidden, head, teacher_hidden, teacher_head, weights = hidden_case()
    spec = DivergenceSpec()
    with pytest.raises(ValueError, match="do not fit the head"):
        hidden_divergence(hidden, head, teacher_hidden, weights=weights, spec=spec)
    with pytest.raises(ValueError, match="one dtype"):
        hidden_divergence(hidden.bfloat16(), head, teacher_hidden, teacher_head, weights=weights, spec=spec)
    with pytest.raises(ValueError, match="same tokens"):
        hidden_divergence(hidden, head, teacher_hidden[:-1], teacher_head, weights=weights, spec=spec)
    with pytest.raises(ValueError, match="detach"):
        hidden_divergence(hidden, head, teacher_hidden, teacher_head, weights=weights.requires_grad_(), spec=spec)


# --- over part of the vocabulary --------------------------------------------------------------------------------------


def test_token_log_probs():
    student, _ = pair(5, 11, dtype=torch.float64)
    ids = torch.tensor([0, 3, 10, 3, 7])
    expected = (student / 1.3).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(token_log_probs(student, ids, temperature=1.3), expected)
    assert gradcheck(lambda z: token_log_probs(z, ids, temperature=1.3), student.requires_grad_())
    with pytest.raises(ValueError, match=r"\(N, V\) and \(N,\)"):
        token_log_probs(student, ids[:2])


def test_the_expected_policy_gradient_of_the_sampled_gap_is_the_reverse_kls():
    student, teacher = pair(1, 9, dtype=torch.float64)
    z = student.requires_grad_()
    everything = torch.arange(9)
    gap = sampled_token_gap(z.expand(9, 9), teacher.expand(9, 9), everything, temperature=1.1)
    assert not gap.requires_grad
    p = (z / 1.1).softmax(-1).detach()[0]
    surrogate = -(p * gap * token_log_probs(z.expand(9, 9), everything, temperature=1.1)).sum()
    (policy,) = torch.autograd.grad(surrogate, z)
    (reverse,) = torch.autograd.grad(token_divergence(z, teacher, kind="reverse_kl", temperature=1.1).sum(), z)
    torch.testing.assert_close(policy, reverse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [teacher_topk_divergence, student_topk_divergence])
def test_the_whole_vocabulary_as_top_k_is_the_full_divergence(function, kind):
    student, teacher = pair(dtype=torch.float64)
    options = {"kind": kind, "clip": 0.05, "temperature": 1.1}
    torch.testing.assert_close(
        function(student, teacher, k=10_000, **options), token_divergence(student, teacher, **options)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_teacher_top_k_renormalises_both(kind, clip):
    student, teacher = pair(6, 30, dtype=torch.float64)
    student.requires_grad_()
    options = {"kind": kind, "clip": clip, "temperature": 1.2}
    value = teacher_topk_divergence(student, teacher, k=4, **options)
    index = teacher.topk(4).indices
    expected = naive(student.gather(1, index), teacher.gather(1, index), jsd_beta=0.5, **options)
    torch.testing.assert_close(value, expected)
    g, h = (torch.autograd.grad(x.sum(), student)[0] for x in (value, expected))
    torch.testing.assert_close(g, h)
    assert ((g != 0).sum(-1) == 4).all()


def test_teacher_top_k_against_the_students_full_probabilities():
    student, teacher = pair(6, 30, dtype=torch.float64)
    student.requires_grad_()
    value = teacher_topk_divergence(student, teacher, k=4, student_norm="full", temperature=1.2)
    top, index = teacher.topk(4)
    q = (top / 1.2).softmax(-1)
    expected = (q * (q.log() - (student / 1.2).log_softmax(-1).gather(1, index))).sum(-1)
    torch.testing.assert_close(value, expected)
    g, h = (torch.autograd.grad(x.sum(), student)[0] for x in (value, expected))
    torch.testing.assert_close(g, h)
    with pytest.raises(ValueError, match="do not sum to one"):
        teacher_topk_divergence(student, teacher, k=4, student_norm="full", kind="jsd")
    with pytest.raises(ValueError, match="k=0"):
        teacher_topk_divergence(student, teacher, k=0)


@pytest.mark.parametrize("kind", KINDS)
def test_student_top_k_has_a_bucket_for_the_rest(kind):
    student, teacher = pair(6, 30, dtype=torch.float64)
    student.requires_grad_()
    value = student_topk_divergence(student, teacher, k=4, kind=kind, temperature=1.2)
    index = student.topk(4).indices

    def bucketed(z):
        top = (z / 1.2).log_softmax(-1).gather(1, index)
        return torch.cat([top, torch.log(-torch.expm1(top.logsumexp(-1, keepdim=True)))], -1)

    expected = naive(bucketed(student), bucketed(teacher), kind=kind)
    torch.testing.assert_close(value, expected)
    g, h = (torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (value, expected))
    torch.testing.assert_close(g, h)
    # Merging tokens into a bucket loses information and never adds any.
    assert (value <= token_divergence(student, teacher, kind=kind, temperature=1.2) + 1e-9).all()
    wider = student_topk_divergence(student, teacher, k=12, kind=kind, temperature=1.2)
    assert (value <= wider + 1e-9).all() and (value < wider - 1e-6).any()


def test_the_bucket_keeps_its_digits_where_the_listed_tokens_hold_nearly_everything():
    student = torch.zeros(1, 12)
    student[0, :2] = 30.0
    teacher = student.clone()
    teacher[0, 2:] += 3.0
    z = student.clone().requires_grad_()
    value = student_topk_divergence(z, teacher, k=2, kind="forward_kl")
    value.sum().backward()
    assert value.isfinite().all() and z.grad.isfinite().all()
    # 1 − Σ p is 0 in fp32 here; the tail's gradient, of order 1e-12, is right to fp32 nevertheless.
    expected = student.double().softmax(-1) - teacher.double().softmax(-1)
    torch.testing.assert_close(z.grad[:, 2:].double(), expected[:, 2:], rtol=1e-5, atol=0)


def test_top_k_survives_extreme_logits():
    student, teacher = pair(4, 20)
    student[0, 0], teacher[1, 0] = 1e4, 1e4
    student[2, 3:] = -math.inf
    for function in (teacher_topk_divergence, student_topk_divergence):
        for kind in KINDS:
            z = student.clone().requires_grad_()
            value = function(z, teacher, k=3, kind=kind, clip=0.05)
            value.sum().backward()
            assert value.isfinite().all() and z.grad.isfinite().all()


# --- both KLs, mixed token by token -----------------------------------------------------------------------------------


def mixed(student, teacher, share, **options):
    """The mixed divergence of every token, from logits."""
    return logits_divergence(student, teacher, DivergenceSpec(MIXED, **options), forward_share=share)[0]


@pytest.mark.parametrize(("clip", "mode"), CLIPS)
@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_a_mixture_matches_naive_fp64_value_and_gradient(clip, mode, temperature):
    student, teacher = pair()
    share = torch.rand(24, generator=torch.Generator().manual_seed(2))
    weights = torch.rand(24, generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    value = mixed(student, teacher, share, clip=clip, clip_mode=mode, temperature=temperature)
    (grad,) = torch.autograd.grad((value * weights).sum(), student)
    exact = student.detach().double().requires_grad_()
    p, q = (torch.softmax(z / temperature, -1) for z in (exact, teacher.double()))
    entries = share.double()[:, None] * q * (q / p).log() + (1 - share.double()[:, None]) * p * (p / q).log()
    if clip is not None:
        entries = entries.clamp(max=clip, min=-clip if mode == "symmetric" else None)
    expected = entries.sum(-1)
    (expected_grad,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    assert relative(value.detach(), expected.detach()) < 1e-5 and relative(grad, expected_grad) < 1e-5


@pytest.mark.parametrize(("clip", "mode"), CLIPS)
@pytest.mark.parametrize(("share", "kind"), [(1.0, "forward_kl"), (0.0, "reverse_kl")])
def test_at_its_ends_a_mixture_is_one_of_the_two(share, kind, clip, mode):
    student, teacher = pair()
    student.requires_grad_()
    value = mixed(student, teacher, torch.full((24,), share), clip=clip, clip_mode=mode)
    wanted = token_divergence(student, teacher, kind=kind, clip=clip, clip_mode=mode)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(v.sum(), student)[0] for v in (value, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


def test_every_token_has_its_own_share_whatever_the_chunks():
    student, teacher = pair(rows=9)
    share = torch.linspace(0, 1, 9)
    whole = mixed(student, teacher, share)
    for chunk in (1, 2, 4):
        spec = DivergenceSpec(MIXED)
        again = logits_divergence(student, teacher, spec, forward_share=share, chunk_size=chunk)[0]
        assert torch.equal(again, whole)
    alone = [mixed(student[i : i + 1], teacher[i : i + 1], share[i : i + 1]) for i in range(9)]
    assert torch.equal(torch.cat(alone), whole)
    head = torch.randn(31, 8, generator=torch.Generator().manual_seed(3))
    hidden = [torch.randn(9, 8, generator=torch.Generator().manual_seed(i)) for i in (4, 5)]
    spec, weights = DivergenceSpec(MIXED), torch.rand(9, generator=torch.Generator().manual_seed(6))
    of_hidden = hidden_divergence(hidden[0], head, hidden[1], weights=weights, spec=spec, forward_share=share)
    of_logits = mixed(hidden[0] @ head.t(), hidden[1] @ head.t(), share)
    torch.testing.assert_close(of_hidden[0], (of_logits * weights).sum())


def test_shares_belong_to_a_mixture_and_are_one_a_token():
    student, teacher = pair(rows=3)
    for kind, share, said in (
        (MIXED, None, "belongs to kind='mixed_kl'"),
        ("forward_kl", torch.ones(3), "belongs to kind='mixed_kl'"),
        (MIXED, torch.ones(2), r"shape \(2,\)"),
        (MIXED, torch.ones(3, requires_grad=True), "constants"),
    ):
        with pytest.raises(ValueError, match=said):
            logits_divergence(student, teacher, DivergenceSpec(kind), forward_share=share)
