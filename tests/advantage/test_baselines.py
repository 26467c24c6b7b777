"""HEPO, RLSD, REOPOLD and RLCSD: by hand, at their limits, and over the global batch."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advantage
from advantage.estimators import get_estimator, params_from_config, required_signals
from tests.builders import signals
from tests.builders.signals import run

make_inputs = partial(signals.make_inputs, holes=True)
EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True)


def by_hand(entropy, gap, anchor=1.0, **changes):
    """One response without padding."""
    anchor = torch.full((1, len(gap)), anchor) if isinstance(anchor, float) else torch.tensor([anchor])
    return make_inputs(
        response_mask=torch.ones(1, len(gap), dtype=torch.bool),
        group_advantage=anchor,
        scores=torch.ones(1),
        equal_reward_rows=torch.tensor([False]),
        entropy=torch.tensor([entropy]),
        log_prob_gap=torch.tensor([gap]),
        **changes,
    )


NAMES = ("hepo", "rlsd", "reopold", "rlcsd")


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_its_content_do_not_matter(name):
    inputs = make_inputs(1, step=60)
    clean = run(name, inputs)
    changes = {}
    for key in ("entropy", "log_prob_gap", "contrast_gap"):
        changes[key] = torch.where(inputs.response_mask, getattr(inputs, key), float("nan"))
    dirty = run(name, make_inputs(1, step=60, **changes))
    assert torch.equal(dirty.advantages, clean.advantages) and dirty.metrics == clean.metrics
    assert not clean.advantages[~inputs.response_mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_non_finite_signals_and_empty_batches(name):
    for key in required_signals(name)[:2]:
        if key in ("entropy", "log_prob_gap", "contrast_gap"):
            bad = getattr(make_inputs(), key).clone()
            bad[make_inputs().response_mask] = float("nan")
            with pytest.raises(advantage.NonFiniteSignalError, match=f"{key} is not finite"):
                run(name, make_inputs(**{key: bad}, step=80))
    empty = {"response_mask": torch.zeros(4, 12, dtype=torch.bool), "group_advantage": torch.zeros(4, 12)}
    credit = run(name, make_inputs(**empty))
    assert not credit.advantages.any() and credit.metrics.keys() == run(name, make_inputs()).metrics.keys()


# ---------------------------------------------------------------- HEPO


def test_hepo_by_hand():
    inputs = by_hand([0.0, 1.0, 2.0, 3.0, 4.0], [0.0] * 5, anchor=-2.0)
    credit = run("hepo", inputs, entropy_share=0.4)  # the 0.6 quantile is 2.4
    # Two of five are kept: under the mean over all five, 5/2 of their advantage is the mean over the two.
    assert credit.advantages[0].tolist() == pytest.approx([0.0, 0.0, 0.0, -5.0, -5.0])
    assert credit.tokens["weight"].tolist() == [[0.0, 0.0, 0.0, 1.0, 1.0]]
    assert credit.metrics["credit/entropy_threshold"] == pytest.approx(2.4)
    assert credit.metrics["credit/weight/mean"] == pytest.approx(0.4)
    assert credit.metrics["credit/group_advantage/mean"] == 2.0
    soft = run("hepo", inputs, entropy_share=0.4, weighting="soft", softness=0.5).advantages[0]
    wanted = [1 / (1 + math.exp(-(h - 2.4) / 0.5)) for h in range(5)]
    assert soft.tolist() == pytest.approx([-2 * w / (sum(wanted) / 5) for w in wanted], rel=1e-5)


def test_hepo_threshold_is_the_batchs():
    mask = torch.ones(2, 4, dtype=torch.bool)
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4]])
    inputs = make_inputs(rows=2, width=4, response_mask=mask, entropy=entropy, group_advantage=torch.ones(2, 4))
    kept = run("hepo", inputs, entropy_share=0.5).advantages
    assert kept.tolist() == [[0.0] * 4, [2.0] * 4]  # a quantile per row would keep half of each


@EXAMPLES
@given(st.integers(0, 10_000))
def test_hepo_limits(seed):
    inputs = make_inputs(seed)
    assert torch.equal(run("hepo", inputs, entropy_share=1.0).advantages, inputs.group_advantage)
    hard = run("hepo", inputs)
    kept = hard.tokens["weight"].bool() & inputs.response_mask
    assert not hard.advantages[~kept].any()
    if kept.any():  # the mean over all tokens is that of A_G over the kept ones
        over_all = hard.advantages[inputs.response_mask].mean()
        torch.testing.assert_close(over_all, inputs.group_advantage[kept].mean(), rtol=1e-4, atol=1e-5)
    nearly_hard = run("hepo", inputs, entropy_share=0.5, weighting="soft", softness=1e-7).advantages
    count = int(inputs.response_mask.sum())
    if count % 2 == 0 and count:  # otherwise a token sits on the threshold itself, where the soft weight is a half
        torch.testing.assert_close(nearly_hard, run("hepo", inputs, entropy_share=0.5).advantages)


# ---------------------------------------------------------------- RLSD


def test_rlsd_by_hand():
    up = by_hand([0.0] * 4, [0.1, -0.1, 3.0, -3.0], anchor=2.0)
    wanted = [2 * (0.5 + 0.5 * w) for w in (math.exp(0.1), math.exp(-0.1), 1.2, 0.8)]
    credit = run("rlsd", up)
    assert credit.advantages[0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert credit.metrics["credit/weight/clipped_share"] == pytest.approx(0.5)
    assert credit.metrics["credit/mix"] == 0.5
    # A negative advantage turns the ratio round: what the teacher favours is blamed less.
    down = by_hand([0.0] * 4, [0.1, -0.1, 3.0, -3.0], anchor=-2.0)
    wanted = [-2 * (0.5 + 0.5 * w) for w in (math.exp(-0.1), math.exp(0.1), 0.8, 1.2)]
    assert run("rlsd", down).advantages[0].tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("step", "mix"), [(1, 0.5), (26, 0.25), (51, 0.0), (1000, 0.0)])
def test_rlsd_mix_decays(step, mix):
    assert run("rlsd", make_inputs(step=step)).metrics["credit/mix"] == pytest.approx(mix)
    (drawn,) = get_estimator("rlsd").params().schedules
    assert drawn.value(step) == pytest.approx(mix)
    assert run("rlsd", make_inputs(step=None), decay_steps=None).metrics["credit/mix"] == 0.5


@EXAMPLES
@given(st.integers(0, 10_000))
def test_rlsd_limits(seed):
    inputs = make_inputs(seed)
    anchor = inputs.group_advantage
    for same in (
        run("rlsd", inputs, mix=0.0),
        run("rlsd", inputs, weight_clip=0.0),
        run("rlsd", make_inputs(seed, step=51)),
    ):
        assert torch.equal(same.advantages, anchor)
    assert torch.equal(run("rlsd", make_inputs(seed, log_prob_gap=torch.zeros(4, 12))).advantages, anchor)
    got = run("rlsd", inputs, mix=1.0).advantages
    assert torch.equal(torch.sign(got), torch.sign(anchor))
    assert (got.abs() <= 1.2001 * anchor.abs()).all() and (got.abs() >= 0.7999 * anchor.abs()).all()


def test_rlsd_survives_huge_gaps():
    inputs = by_hand([0.0] * 2, [500.0, -500.0], anchor=1.0)
    assert run("rlsd", inputs, mix=1.0).advantages[0].tolist() == pytest.approx([1.2, 0.8])


# ---------------------------------------------------------------- REOPOLD


JENSEN, ODDS = math.log(0.1) / 0.9, math.log(0.1 / 0.9)  # -2.56 and -2.20 nats at 0.1


@pytest.mark.parametrize(("floor", "value"), [("jensen", JENSEN), ("odds", ODDS)])
def test_reopold_before_the_switch_by_hand(floor, value):
    inputs = by_hand([9.0, 9.0, 9.0, 0.0], [0.5, -0.5, -3.0, 1.0], step=50, anchor=7.0)
    credit = run("reopold", inputs, floor=floor)
    # -3 is below the floor and left out; the rest is divided by the kept share of 3/4.
    assert credit.advantages[0].tolist() == pytest.approx([0.5 / 0.75, -0.5 / 0.75, 0.0, 1.0 / 0.75])
    assert credit.metrics["credit/kept_share"] == 0.75 and credit.tokens["kept"].tolist() == [[1, 1, 0, 1]]
    kept = run("reopold", inputs, floor=floor, gap_floor=-4.0)  # kept, but clipped
    assert kept.advantages[0].tolist() == pytest.approx([0.5, -0.5, value, 1.0])


def test_reopold_reads_its_floor_in_two_ways():
    inputs = by_hand([9.0, 9.0], [-2.4, 1.0], step=1)  # between the two floors
    assert run("reopold", inputs).advantages[0].tolist() == pytest.approx([-2.4, 1.0])
    assert run("reopold", inputs, floor="odds").advantages[0].tolist() == pytest.approx([0.0, 2.0])


@EXAMPLES
@given(st.floats(0.05, 0.95), st.floats(-30, 30))
def test_the_jensen_floor_bounds_the_mixed_target(mixture, gap):
    """log(λ + (1 − λ) p_T/p_S) is never below (1 − λ) max(δ, floor)."""
    floor = math.log(mixture) / (1 - mixture)
    mixed = math.log(mixture + (1 - mixture) * math.exp(gap))
    assert mixed >= (1 - mixture) * max(gap, floor) - 1e-9


def test_reopold_after_the_switch_by_hand():
    inputs = by_hand([0.0, 1.0, 2.0, 3.0, 4.0], [0.5, -0.5, -2.0, -3.0, 1.0], step=51)
    credit = run("reopold", inputs, entropy_share=0.4)
    assert credit.advantages[0].tolist() == pytest.approx([0.0, 0.0, 0.0, JENSEN / 0.4, 1.0 / 0.4])
    (drawn,) = get_estimator("reopold").params(entropy_share=0.4).schedules
    assert drawn.value(50) == 1.0
    assert drawn.value(51) == pytest.approx(credit.metrics["credit/kept_share"]) == pytest.approx(0.4)


@EXAMPLES
@given(st.integers(0, 10_000), st.sampled_from([10, 60]))
def test_reopold_token_mean_is_the_mean_over_kept_tokens(seed, step):
    inputs = make_inputs(seed, step=step)
    advantages = run("reopold", inputs).advantages
    kept = advantages != 0
    if not kept.any():
        return
    clipped = inputs.log_prob_gap.clamp(min=JENSEN)
    over_all = advantages[inputs.response_mask].mean()
    torch.testing.assert_close(over_all, clipped[kept].mean(), rtol=1e-4, atol=1e-5)


def test_reopold_keeping_everything_is_the_sampled_form_of_opsd():
    inputs = make_inputs(4, step=80)
    everything = run("reopold", inputs, entropy_share=1.0, mixture=1e-6)
    torch.testing.assert_close(everything.advantages, run("opsd_sampled", inputs).advantages)


def test_reopold_clip_above_zero_does_not_reach_the_padding():
    inputs = make_inputs(3)
    advantages = run("reopold", inputs, mixture=0.6, floor="odds", gap_floor=-100.0).advantages
    assert not advantages[~inputs.response_mask].any() and (advantages[inputs.response_mask] > 0).all()


def test_reopold_ignores_the_verifier():
    inputs = make_inputs(2)
    other = make_inputs(2, group_advantage=torch.zeros(4, 12))
    assert torch.equal(run("reopold", inputs).advantages, run("reopold", other).advantages)


def test_reopold_keeping_nothing_is_no_update():
    inputs = by_hand([0.0, 1.0], [-5.0, -6.0], step=1)
    credit = run("reopold", inputs)
    assert not credit.advantages.any() and credit.metrics["credit/kept_share"] == 0.0


# ---------------------------------------------------------------- RLCSD and its plug-in forms


def contrasted(contrast, anchor=1.0, **changes):
    return by_hand(
        [0.0] * len(contrast), [0.0] * len(contrast), anchor, contrast_gap=torch.tensor([contrast]), **changes
    )


def test_rlcsd_by_hand():
    credit = run("rlcsd", contrasted([0.02, -0.02, 0.0, 9.0]), beta=1.0, mix=0.5, scale=0.02)
    half = 0.5 * math.tanh(1.0)
    # Three of four tokens are kept: their mean over N = 4 tokens is that over themselves, and so is the fourth's.
    wanted = [(1 + half) * 4 / 3, (1 - half) * 4 / 3, 4.0, 1.5 * 4 / 3]
    assert credit.advantages[0].tolist() == pytest.approx(wanted)
    assert credit.metrics["credit/kept_share"] == 0.75
    assert credit.tokens["correction"][0].tolist() == pytest.approx([half, -half, 0.0, 0.5])
    doubled = run("rlcsd", contrasted([0.02, -0.02, 0.0, 9.0]), kept_weight=2.0).advantages[0]
    assert doubled.tolist() == pytest.approx([2 * wanted[0], 2 * wanted[1], 4.0, 2 * wanted[3]])


def test_rlcsd_never_turns_the_verifiers_sign():
    strong = {"beta": 4.0, "mix": 1.0, "threshold": 0.0, "correction_clip": 2.0}
    assert run("rlcsd", contrasted([9.0, -9.0], 1.0), **strong).advantages.tolist() == [[3.0, 0.0]]
    assert run("rlcsd", contrasted([9.0, -9.0], -1.0), **strong).advantages.tolist() == [[0.0, -3.0]]
    equal = replace(contrasted([9.0, -9.0], 1e-3), equal_reward_rows=torch.tensor([True]))
    assert run("rlcsd", equal, **strong).advantages.tolist() == [[0.0, 0.0]]


@EXAMPLES
@given(st.integers(0, 10_000))
def test_rlcsd_without_a_kept_token_is_grpo(seed):
    inputs = make_inputs(seed)
    silent = make_inputs(seed, has_teacher=torch.zeros(4, dtype=torch.bool))
    for credit in (
        run("rlcsd", inputs, beta=0.0),
        run("rlcsd", inputs, mix=0.0),
        run("rlcsd", inputs, threshold=2.0),
        run("rlcsd", silent),
        run("rlcsd", make_inputs(seed, contrast_gap=torch.zeros(4, 12))),
    ):
        assert torch.equal(credit.advantages, inputs.group_advantage)


@EXAMPLES
@given(st.integers(0, 10_000))
def test_rlcsd_token_mean_is_the_sum_of_two_means(seed):
    """A slow reference: the paper's two averages, over kept and over other tokens."""
    inputs = make_inputs(seed)
    credit = run("rlcsd", inputs, kept_weight=0.7)
    sums = {True: [], False: []}
    for row in range(4):
        for t in range(12):
            if inputs.response_mask[row, t]:
                anchor = float(inputs.group_advantage[row, t])
                r = 0.5 * math.tanh(float(inputs.contrast_gap[row, t]) / 0.02)
                kept = abs(r) > 0.02
                moved = max(anchor + r, 0.0) if anchor > 0 else min(anchor + r, 0.0)
                sums[kept].append(moved if kept else anchor)
    wanted = sum(w * sum(v) / len(v) for w, v in ((0.7, sums[True]), (1.0, sums[False])) if v)
    if sums[True] or sums[False]:
        got = float(credit.advantages[inputs.response_mask].mean())
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_rlsd_with_the_contrast_as_evidence():
    contrast = torch.tensor([[0.1, -0.1, 3.0]])
    inputs = by_hand([0.0] * 3, [5.0, 5.0, 5.0], anchor=2.0, contrast_gap=contrast)
    other = by_hand([0.0] * 3, contrast[0].tolist(), anchor=2.0)
    assert torch.equal(run("rlsd", inputs, evidence="contrast").advantages, run("rlsd", other).advantages)


def test_opsd_guided_by_the_contrast():
    inputs = make_inputs(6)
    plain, contrast = run("opsd_sampled", inputs).advantages, inputs.contrast_gap * inputs.response_mask
    guided = run("opsd_sampled", inputs, guidance=0.5).advantages
    torch.testing.assert_close(guided, plain + 0.5 * contrast)


# ---------------------------------------------------------------- SFT


def test_the_gradient_of_sft_is_that_of_the_cross_entropy():
    """verl's own PPO loss at the rollout's weights, with A = 1 on every token."""
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    from verl.workers.config import ActorConfig

    inputs = make_inputs(5)
    mask = inputs.response_mask
    advantages = run("sft", inputs).advantages
    assert torch.equal(advantages, mask.float())
    log_probs = (-torch.rand(mask.shape)).requires_grad_()
    config = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    loss, _ = core_algos.compute_policy_loss_vanilla(
        log_probs.detach(), log_probs, advantages, mask.float(), "token-mean", config
    )
    (got,) = torch.autograd.grad(loss, log_probs)
    (wanted,) = torch.autograd.grad(-log_probs[mask].mean(), log_probs)
    torch.testing.assert_close(got, wanted)


# ---------------------------------------------------------------- responses without a teacher


ALL = ("dasd", "pw_opsd_sampled", "atesd_sampled", "opsd_sampled", "rlsd", "reopold", "rlcsd")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", [1, 80])
def test_a_response_without_a_teacher_gets_no_credit_from_it(name, step):
    """Whatever stands in its gap: A_G alone where the method has it, else nothing."""
    lonely = torch.tensor([True, False, True, True])
    inputs = make_inputs(7, has_teacher=lonely, step=step)
    credit = run(name, inputs)
    if get_estimator(name).uses_group:
        other = inputs.group_advantage[1]
        if name == "rlcsd":  # a token that is not kept, in the mean over those
            other = other / (1 - credit.metrics["credit/kept_share"])
        torch.testing.assert_close(credit.advantages[1], other)
    else:
        assert not credit.advantages[1].any()
    assert (credit.advantages[0] != inputs.group_advantage[0]).any() or (name == "rlsd" and step == 80)


def test_reopold_counts_only_responses_with_a_teacher():
    inputs = make_inputs(7, has_teacher=torch.tensor([True, False, True, True]), step=80)
    kept = run("reopold", inputs, entropy_share=1.0).tokens["kept"]
    assert torch.equal(kept.bool(), inputs.response_mask & torch.tensor([[True], [False], [True], [True]]))


# ---------------------------------------------------------------- DASD's neighbours


@EXAMPLES
@given(st.integers(0, 10_000))
def test_attraction_and_novelty_are_mirror_images(seed):
    inputs = make_inputs(seed)
    anchor = inputs.group_advantage
    up = run("dasd", inputs, direction="constant", constant=1.0).advantages - anchor
    down = run("dasd", inputs, direction="constant", constant=-1.0).advantages - anchor
    torch.testing.assert_close(up, -down)


def test_the_raw_form_of_proposition_1():
    inputs = make_inputs(2)
    omega = run("dasd", inputs).tokens["omega"]
    raw = run("dasd", inputs, normalise_gap=False, beta=0.5)
    torch.testing.assert_close(raw.advantages, inputs.group_advantage + 0.5 * omega * inputs.log_prob_gap)
    assert torch.equal(raw.tokens["omega"], omega)
    uniform = run("dasd", inputs, normalise_gap=False, direction="constant", beta=0.1)
    torch.testing.assert_close(uniform.advantages, run("atesd_sampled", inputs, beta=0.1).advantages)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("hepo", {"entropy_share": 0.0}, r"algorithm\.hepo\.entropy_share=0\.0: must be in \(0, 1\]; 1 is GRPO"),
        ("hepo", {"weighting": "firm"}, "weighting='firm'"),
        ("hepo", {"softness": 0.0}, r"softness=0\.0"),
        ("rlsd", {"mix": 1.5}, r"algorithm\.rlsd\.mix=1\.5"),
        ("rlsd", {"decay_steps": 0}, "decay_steps=0: must be positive, or null"),
        ("rlsd", {"decay_steps": 1.5}, r"decay_steps=1\.5: must be a whole number or null"),
        ("rlsd", {"weight_clip": 1.0}, r"weight_clip=1\.0"),
        ("reopold", {"mixture": 1.0}, r"mixture=1\.0"),
        ("reopold", {"entropy_share": 2}, r"entropy_share=2\.0"),
        ("reopold", {"switch_step": -1}, "switch_step=-1"),
        ("reopold", {"floor": "ground"}, "floor='ground'.*jensen"),
        ("rlsd", {"evidence": "none"}, "evidence='none'.*student"),
        ("opsd_sampled", {"guidance": -1}, "guidance=-1"),
        ("rlcsd", {"scale": 0}, r"algorithm\.rlcsd\.scale=0"),
        ("rlcsd", {"mix": 2}, "mix=2.*0 is GRPO"),
        ("rlcsd", {"correction_clip": 0}, "correction_clip=0"),
        ("rlcsd", {"kept_weight": -1}, "kept_weight=-1"),
    ],
)
def test_wrong_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        params_from_config(name, {name: params})


def test_required_signals():
    assert required_signals("hepo") == ("entropy",)
    assert required_signals("rlsd") == ("log_prob_gap", "step")
    assert required_signals("rlsd", {"rlsd": {"decay_steps": None}}) == ("log_prob_gap",)
    assert required_signals("rlsd", {"rlsd": {"evidence": "contrast"}}) == ("contrast_gap", "step")
    assert required_signals("opsd_sampled", {"opsd_sampled": {"guidance": 0.5}}) == ("log_prob_gap", "contrast_gap")
    assert required_signals("reopold") == ("log_prob_gap", "entropy", "step")
    assert required_signals("rlcsd") == ("contrast_gap",)
    with pytest.raises(advantage.MissingSignalError, match="step is missing"):
        run("rlsd", make_inputs(step=None))
