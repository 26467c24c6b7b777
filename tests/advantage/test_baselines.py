"""HEPO, RLSD and REOPOLD: by hand, at their limits, and over the global batch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advantage
from advantage.estimators import params_from_config, required_signals
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


@pytest.mark.parametrize("name", ["hepo", "rlsd", "reopold"])
def test_padding_and_its_content_do_not_matter(name):
    inputs = make_inputs(1, step=40)
    clean = run(name, inputs)
    changes = {}
    for key in ("entropy", "log_prob_gap"):
        changes[key] = torch.where(inputs.response_mask, getattr(inputs, key), float("nan"))
    dirty = run(name, make_inputs(1, step=40, **changes))
    assert torch.equal(dirty.advantages, clean.advantages) and dirty.metrics == clean.metrics
    assert not clean.advantages[~inputs.response_mask].any()


@pytest.mark.parametrize("name", ["hepo", "rlsd", "reopold"])
def test_non_finite_signals_and_empty_batches(name):
    for key in required_signals(name)[:2]:
        if key in ("entropy", "log_prob_gap"):
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
    assert credit.advantages.tolist() == [[0.0, 0.0, 0.0, -2.0, -2.0]]
    assert credit.metrics["credit/entropy_threshold"] == pytest.approx(2.4)
    assert credit.metrics["credit/weight/mean"] == pytest.approx(0.4)
    assert credit.metrics["credit/group_advantage/mean"] == 2.0
    soft = run("hepo", inputs, entropy_share=0.4, weighting="soft", softness=0.5).advantages[0]
    wanted = [-2 / (1 + math.exp(-(h - 2.4) / 0.5)) for h in range(5)]
    assert soft.tolist() == pytest.approx(wanted, rel=1e-5)


def test_hepo_threshold_is_the_batchs():
    mask = torch.ones(2, 4, dtype=torch.bool)
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4]])
    inputs = make_inputs(rows=2, width=4, response_mask=mask, entropy=entropy, group_advantage=torch.ones(2, 4))
    kept = run("hepo", inputs, entropy_share=0.5).advantages
    assert kept.tolist() == [[0.0] * 4, [1.0] * 4]  # a quantile per row would keep half of each


@EXAMPLES
@given(st.integers(0, 10_000))
def test_hepo_limits(seed):
    inputs = make_inputs(seed)
    assert torch.equal(run("hepo", inputs, entropy_share=1.0).advantages, inputs.group_advantage)
    hard = run("hepo", inputs).advantages
    assert ((hard == 0) | (hard == inputs.group_advantage)).all()
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


def test_reopold_first_part_by_hand():
    floor = math.log(0.3 / 0.7)
    inputs = by_hand([9.0, 9.0, 9.0, 0.0], [0.5, -0.5, -2.0, 1.0], step=29, anchor=7.0)
    credit = run("reopold", inputs)
    # -2 is below the floor of -0.85 and left out; the rest is divided by the kept share of 3/4.
    assert credit.advantages[0].tolist() == pytest.approx([0.5 / 0.75, -0.5 / 0.75, 0.0, 1.0 / 0.75])
    assert credit.metrics["credit/kept_share"] == 0.75
    kept = run("reopold", inputs, gap_floor=-3.0)  # kept, but clipped
    assert kept.advantages[0].tolist() == pytest.approx([0.5, -0.5, floor, 1.0])


def test_reopold_second_part_by_hand():
    floor = math.log(0.3 / 0.7)
    inputs = by_hand([0.0, 1.0, 2.0, 3.0, 4.0], [0.5, -0.5, -2.0, -2.0, 1.0], step=30)
    credit = run("reopold", inputs, entropy_share=0.4)
    assert credit.advantages[0].tolist() == pytest.approx([0.0, 0.0, 0.0, floor / 0.4, 1.0 / 0.4])


@EXAMPLES
@given(st.integers(0, 10_000), st.sampled_from([10, 60]))
def test_reopold_token_mean_is_the_mean_over_kept_tokens(seed, step):
    inputs = make_inputs(seed, step=step)
    advantages = run("reopold", inputs).advantages
    kept = advantages != 0
    if not kept.any():
        return
    clipped = inputs.log_prob_gap.clamp(min=math.log(0.3 / 0.7))
    over_all = advantages[inputs.response_mask].mean()
    torch.testing.assert_close(over_all, clipped[kept].mean(), rtol=1e-4, atol=1e-5)


def test_reopold_clip_above_zero_does_not_reach_the_padding():
    inputs = make_inputs(3)
    advantages = run("reopold", inputs, mixture=0.6, gap_floor=-100.0).advantages
    assert not advantages[~inputs.response_mask].any() and (advantages[inputs.response_mask] > 0).all()


def test_reopold_ignores_the_verifier():
    inputs = make_inputs(2)
    other = make_inputs(2, group_advantage=torch.zeros(4, 12))
    assert torch.equal(run("reopold", inputs).advantages, run("reopold", other).advantages)


def test_reopold_keeping_nothing_is_no_update():
    inputs = by_hand([0.0, 1.0], [-5.0, -6.0], step=1)
    credit = run("reopold", inputs)
    assert not credit.advantages.any() and credit.metrics["credit/kept_share"] == 0.0


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
        ("reopold", {"first_part": -1}, r"first_part=-1\.0"),
    ],
)
def test_wrong_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        params_from_config(name, {name: params})


def test_required_signals():
    assert required_signals("hepo") == ("entropy",)
    assert required_signals("rlsd") == ("log_prob_gap", "step")
    assert required_signals("rlsd", {"rlsd": {"decay_steps": None}}) == ("log_prob_gap",)
    assert required_signals("reopold") == ("log_prob_gap", "entropy", "step", "total_steps")
    with pytest.raises(advantage.MissingSignalError, match="step is missing"):
        run("rlsd", make_inputs(step=None))
