"""recipes.common.teacher.controller: rewards by hand, the policy's direction, and resume that equals a run without."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.teacher.controller import ExposureController
from recipes.common.teacher.credit import concentrations, controller_loss, lookahead_reward, standardise
from recipes.common.teacher.decisions import CREDITS, PROGRESS_SIGNALS, ControllerConfig, Observation


def observations(count, seed=0):
    """What a run might show: a falling noisy loss and the other statistics, some of them not measured at every step."""
    rng = random.Random(seed)
    return [
        Observation(
            loss=1.0 / (t + 1) + rng.gauss(0, 0.05),
            mismatch=rng.random(),
            probe_nll=1.0 + rng.random() if t % 3 == 0 else None,
            confidence=-rng.random(),
            grounded=-1.0 - rng.random() if t % 2 == 0 else None,
            probe_loss=rng.random() if t % 4 < 2 else None,
            counterfactual_loss=rng.random() if t % 4 == 1 else None,
        )
        for t in range(count)
    ]


def run(controller, seen):
    return [controller.step(observation) for observation in seen]


# --- reward (eq. 8) ---------------------------------------------------------------------------------------------------


def test_reward_by_hand():
    losses = [1.0, 0.8, 0.9, 0.5]  # drops .2, (rises), .4
    progress, grounded = lookahead_reward(losses, [-1.0, -2.0, -4.0], gamma=0.5)
    assert progress == pytest.approx(0.2 + 0.25 * 0.4)
    assert grounded == pytest.approx((-1.0 - 0.5 * 2.0 - 0.25 * 4.0) / 1.75)
    assert lookahead_reward(losses, [None, -2.0, None], gamma=0.5)[1] == pytest.approx(-2.0)
    assert lookahead_reward(losses, [None] * 3, gamma=0.5)[1] is None
    # Nothing is known before the first loss; a gap's progress falls to where the loss is next measured.
    assert lookahead_reward([None, 0.8, None, 0.5], [None] * 3, gamma=0.5)[0] == pytest.approx(0.25 * 0.3)
    assert lookahead_reward([1.0, 1.2, 1.4], [None] * 2, gamma=1.0)[0] == 0.0


@pytest.mark.parametrize("credit", CREDITS)
def test_the_credit_that_is_drawn_is_the_reward_of_progress_at_that_update(credit):
    config = ControllerConfig(total_steps=100, credit=credit, hold=3, lookahead=5, gamma=0.9)
    drawn = config.schedules[0]
    for update in range(1, config.window + 1):
        losses = [1.0] * update + [0.0] * (config.window + 1 - update)  # all progress is the update's
        progress, _ = lookahead_reward(losses, [None] * config.window, config.window_gamma)
        assert drawn.value(update) == pytest.approx(progress)
    assert drawn.last == config.window + 1 and drawn.value(drawn.last) == 0.0
    assert ControllerConfig(total_steps=1, mode="random").schedules == ()


LOSSES = [1.0, 0.9, 0.7, 0.8, 0.4, 0.3, 0.3, 0.1]  # ℓ_0, before training, to ℓ_7
GROUNDED = [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]  # g_1, after the first update, to g_7
BY_HAND = [
    ("one_step", 0.1, 0.0),  # ℓ0 − ℓ1 ; ℓ2 − ℓ3 < 0
    ("delayed", 0.1 + 0.2, 0.4),  # the two updates of the hold window, no discount
    ("discounted", 0.1 + 0.5 * 0.2 + 0.125 * 0.4, 0.5 * 0.4 + 0.25 * 0.1),
    (
        "discounted+grounded",
        0.1 + 0.5 * 0.2 + 0.125 * 0.4 + 0.1 * -(1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 4) / 1.875,
        0.5 * 0.4 + 0.25 * 0.1 + 0.1 * -(3 + 0.5 * 4 + 0.25 * 5 + 0.125 * 6) / 1.875,
    ),
]


def told(signal):
    """The observations of a run with `LOSSES` and `GROUNDED`: of update t, its own pass has ℓ_{t−1}, a probe ℓ_t."""
    if signal == "fixed_exposure_probe":
        return [Observation(loss=0.0, probe_loss=a, grounded=g) for a, g in zip(LOSSES, GROUNDED, strict=True)]
    of_updates = zip(LOSSES, [*GROUNDED[1:], -8.0], strict=True)
    return [Observation(), *(Observation(loss=a, grounded=g) for a, g in of_updates)]


@pytest.mark.parametrize("signal", PROGRESS_SIGNALS)
@pytest.mark.parametrize(("credit", "first", "second"), BY_HAND)
def test_credit_of_a_short_run_by_hand(credit, first, second, signal):
    config = ControllerConfig(
        total_steps=8,
        hold=2,
        lookahead=4,
        gamma=0.5,
        lambda_gt=0.1,
        credit=credit,
        progress_signal=signal,
        decisions_per_update=50,
    )
    controller = ExposureController(config)
    exposures = run(controller, told(signal))
    decisions = controller.memory.decided
    assert [d.step for d in decisions[:2]] == [0, 2]
    assert [d.reward for d in decisions[:2]] == pytest.approx([first, second])
    assert exposures[0] == exposures[1] != exposures[2] == exposures[3] != exposures[4]
    assert [d.exposure for d in decisions[:2]] == [exposures[0], exposures[2]]
    assert len(decisions) == (7 - config.window) // 2 + 1  # ℓ_7 is the last that is known, whenever it was told
    assert config.credited_after == config.window + (signal == "training_loss")


@pytest.mark.parametrize("signal", PROGRESS_SIGNALS)
def test_the_credit_of_one_step_is_what_its_own_decision_did(signal):
    """A student whose loss falls by an amount that only the exposure of the update decides."""
    fall = lambda alpha: alpha**2 + 0.1  # noqa: E731
    config = ControllerConfig(
        total_steps=40, hold=1, credit="one_step", progress_signal=signal, decisions_per_update=99, seed=5
    )
    controller = ExposureController(config)
    loss, exposure = 0.0, controller.step(Observation(probe_loss=0.0))
    for _ in range(40):
        before, loss = loss, loss - fall(exposure)
        exposure = controller.step(Observation(loss=before, probe_loss=loss))
    decided = controller.memory.decided
    assert len(decided) == (39 if signal == "training_loss" else 40)
    assert [d.reward for d in decided] == pytest.approx([fall(d.exposure) for d in decided])


def test_the_counterfactual_credit_by_hand():
    """ℓ' − ℓ of a decision's first update; what later updates show, and the loss of training, have no part in it."""
    config = ControllerConfig(total_steps=9, hold=2, lookahead=9, credit="counterfactual", decisions_per_update=9)
    controller = ExposureController(config)
    controller.step()
    due, pairs = [], [(0.9, 0.7), (0.1, 0.9), (0.5, 0.8), (None, 0.2), (None, 0.3), (None, 0.1), (0.4, 0.4)]
    for tried, kept in pairs:
        due.append(controller.counterfactual_due)
        controller.step(Observation(loss=7.0, probe_loss=kept, counterfactual_loss=tried))
    assert due == [True, False, True, False, True, False, True]
    assert [d.reward for d in controller.memory.decided] == pytest.approx([0.2, -0.3, 0.0])
    assert controller.metrics()["exposure/dropped_decisions"] == 1.0  # the third, whose other update moved nothing
    assert config.credited_after == 1
    assert not ExposureController(ControllerConfig(total_steps=9, credit="one_step")).counterfactual_due


def test_a_window_whose_first_loss_is_unknown_counts_from_the_first_one_that_is_known():
    config = ControllerConfig(total_steps=8, hold=2, lookahead=4, gamma=0.5, credit="discounted")
    controller = ExposureController(config)
    controller.step()
    run(controller, [Observation(loss=a) for a in [None, *LOSSES[1:5]]])
    assert controller.memory.decided[0].reward == pytest.approx(0.5 * 0.2 + 0.125 * 0.4)


def test_the_fixed_exposure_probe_is_what_is_credited_and_holds_between_measurements():
    config = ControllerConfig(
        total_steps=8, hold=1, lookahead=4, gamma=0.5, credit="discounted", progress_signal="fixed_exposure_probe"
    )
    controller = ExposureController(config)
    probe = [1.0, None, 0.6, None, 0.5, 0.2]
    run(controller, [Observation(loss=10.0 - t, probe_loss=p) for t, p in enumerate(probe)])
    # The second decision falls where nothing was measured: it starts from the value that still stands, 1.0.
    rewards = [decision.reward for decision in controller.memory.decided]
    assert rewards == pytest.approx([0.5 * 0.4 + 0.125 * 0.1, 0.4 + 0.25 * 0.1 + 0.125 * 0.3])


# --- policy -----------------------------------------------------------------------------------------------------------


def test_it_starts_as_beta_1_693_with_mean_one_half():
    controller = ExposureController(ControllerConfig(total_steps=10))
    controller.step()
    metrics = controller.metrics()
    expected = 1.0 + math.log(2.0)
    assert metrics["exposure/a"] == metrics["exposure/b"] == pytest.approx(expected, rel=1e-12)
    assert metrics["exposure/mean"] == 0.5
    log_beta = 2 * math.lgamma(expected) - math.lgamma(2 * expected)
    digamma = [torch.digamma(torch.tensor(x, dtype=torch.float64)).item() for x in (expected, 2 * expected)]
    by_hand = log_beta - 2 * (expected - 1) * digamma[0] + (2 * expected - 2) * digamma[1]
    assert metrics["exposure/entropy"] == pytest.approx(by_hand, rel=1e-9)
    assert metrics["exposure/entropy"] == pytest.approx(-0.0775, abs=1e-4)


def test_standardised_rewards_use_the_populations_deviation():
    rewards = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert standardise(rewards, 0.0).tolist() == [-1.0, 1.0]
    assert standardise(rewards, 1.0).tolist() == [-0.5, 0.5]
    assert standardise(torch.full((3,), 2.0), 1e-6).tolist() == [0.0, 0.0, 0.0]


def test_the_gradient_raises_what_was_rewarded():
    outputs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    raw = torch.tensor([0.9, 0.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss = controller_loss(outputs, raw, advantages, entropy_coef=0.0, entropy_target=-0.5)
    loss.backward()
    moved = outputs.detach() - 0.1 * outputs.grad
    (a, b), (a0, b0) = concentrations(moved), concentrations(torch.zeros(2, 2, dtype=torch.float64))
    assert (a / (a + b) > a0 / (a0 + b0)).all()  # towards .9, which did well, and away from .1, which did not
    density = torch.distributions.Beta(a0, b0)
    assert loss.item() == pytest.approx(-(advantages * density.log_prob(raw)).mean().item())


def test_raw_samples_at_the_ends_are_clamped():
    outputs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    at_ends, inside = (
        controller_loss(outputs, torch.tensor(x, dtype=torch.float64), advantages, entropy_coef=0.0, entropy_target=0.0)
        for x in ([1.0, 0.0], [1 - 1e-4, 1e-4])
    )
    assert at_ends.isfinite() and at_ends.item() == inside.item()


def test_the_entropy_term_is_a_cap_not_a_bonus():
    zero = torch.zeros(1, dtype=torch.float64)

    def penalty(output, target):
        outputs = torch.tensor([[output, output]], dtype=torch.float64, requires_grad=True)
        loss = controller_loss(outputs, zero + 0.5, zero, entropy_coef=2.0, entropy_target=target)
        loss.backward()
        return loss.item(), outputs.grad.sum().item()

    value, slope = penalty(0.0, -0.5)
    assert value == pytest.approx(2.0 * (-0.0774593 + 0.5) ** 2, rel=1e-4)
    assert slope < 0  # descent raises both concentrations: a narrower policy
    assert penalty(0.0, 0.5) == (0.0, 0.0)  # below the target nothing pushes


def test_the_entropy_coefficient_starts_late_and_ends_at_its_value():
    controller = ExposureController(ControllerConfig(total_steps=100))
    coefficients = []
    for observation in observations(111):
        controller.step(observation)
        coefficients.append(controller.entropy_coefficient())
    assert coefficients[:31] == [0.0] * 31
    assert coefficients[65] == pytest.approx(0.05) and coefficients[100] == coefficients[110] == pytest.approx(0.1)
    assert sorted(coefficients) == coefficients


def test_it_learns_the_exposure_that_makes_the_loss_fall():
    """A student that progresses the more, the nearer the exposure is to 0.9."""
    config = ControllerConfig(
        total_steps=600,
        hold=1,
        lookahead=1,
        credit="discounted",
        decisions_per_update=8,
        entropy_coef=0.0,
        feature_scales=(1, 1, 0, 1, 1, 1),
        seed=1,
    )
    controller = ExposureController(config)
    loss = 0.0
    exposure = controller.step()
    for _ in range(600):
        before, loss = loss, loss - math.exp(-((exposure - 0.9) ** 2) / 0.05)
        exposure = controller.step(Observation(loss=before))
    assert controller.metrics()["exposure/mean"] > 0.7
    assert controller.metrics()["exposure/updates"] == 599 // 8


def test_the_state_that_is_seen_has_the_six_features():
    config = ControllerConfig(total_steps=10, hold=1, ema=0.75, feature_scales=(1, 1, 10, 1, 1, 2))
    controller = ExposureController(config)
    first = controller.step()
    controller.step(Observation(loss=0.2, mismatch=0.4, confidence=-0.5))
    controller.step(Observation(loss=0.4, mismatch=None, probe_nll=3.0))
    at_start, _, last = (decision.features for decision in controller.memory.open)
    assert at_start == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert last[0] == 0.2 and last[1] != first and 0.0 < last[1] < 1.0
    assert last[2:] == pytest.approx([10 * 0.25, 0.4, 3.0, 2 * -0.5])


# --- modes and settings -----------------------------------------------------------------------------------------------


def test_fixed_and_random():
    fixed = ExposureController(ControllerConfig(total_steps=10, mode="fixed", fixed_exposure=0.25))
    assert set(run(fixed, observations(12))) == {0.25}
    config = ControllerConfig(total_steps=10, mode="random", hold=3, exposure_min=0.2, exposure_max=0.6)
    chosen = run(ExposureController(config), observations(300))
    assert all(len(set(chosen[i : i + 3])) == 1 for i in range(0, 300, 3))
    distinct = chosen[::3]
    assert len(set(distinct)) == 100 and min(distinct) >= 0.2 and max(distinct) <= 0.6
    assert sum(distinct) / 100 == pytest.approx(0.4, abs=0.05)
    assert max(distinct) > 0.57 and min(distinct) < 0.23
    # The uncontrolled modes need no observations beyond their presence, and keep nothing that grows.
    other = ExposureController(config)
    assert run(other, [Observation()] * 300) == chosen
    assert len(other.memory.losses) <= 3


def test_the_exposure_is_clipped_but_the_raw_sample_is_learned_from():
    config = ControllerConfig(
        total_steps=10, hold=1, lookahead=2, exposure_min=0.45, exposure_max=0.55, decisions_per_update=50
    )
    controller = ExposureController(config)
    chosen = run(controller, observations(19))
    assert min(chosen) >= 0.45 and max(chosen) <= 0.55 and {0.45, 0.55} <= set(chosen)
    raw = [decision.raw for decision in controller.memory.completed]
    assert min(raw) < 0.45 and max(raw) > 0.55


def test_own_generator():
    config = ControllerConfig(total_steps=20, hold=1, seed=3)
    torch.manual_seed(0)
    first = run(ExposureController(config), observations(10))
    before = torch.get_rng_state()
    torch.manual_seed(99)
    second = run(ExposureController(config), observations(10))
    assert first == second
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())  # the global generator was not touched
    assert run(ExposureController(ControllerConfig(total_steps=20, hold=1, seed=4)), observations(10)) != first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "learnt"}, "learned, fixed, random"),
        ({"credit": "lookahead"}, "discounted\\+grounded"),
        ({"progress_signal": "reward"}, "training_loss"),
        ({"hold": 0}, "at least 1"),
        ({"decisions_per_update": 1}, "at least 2"),
        ({"gamma": 1.5}, r"\[0, 1\]"),
        ({"fixed_exposure": 2.0}, r"\[0, 1\]"),
        ({"counterfactual_exposure": -1.0}, r"\[0, 1\]"),
        ({"exposure_max": float("nan")}, r"\[0, 1\]"),
        ({"exposure_max": 0.5, "exposure_min": 0.6}, "empty"),
        ({"learning_rate": -1.0}, ">= 0"),
        ({"feature_scales": (1.0, 2.0)}, "previous_exposure"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(options, said):
    with pytest.raises(ValueError, match=said) as error:
        ControllerConfig(**{"total_steps": 10, **options})
    assert list(options)[-1] in str(error.value)


def test_missing_observations_are_refused():
    controller = ExposureController(ControllerConfig(total_steps=10))
    with pytest.raises(RuntimeError, match="call step"):
        _ = controller.exposure
    controller.step()
    with pytest.raises(ValueError, match="pass what the update showed"):
        controller.step()
    controller = ExposureController(ControllerConfig(total_steps=10, hold=2, lookahead=3))
    with pytest.raises(ValueError, match="no grounded score"):
        run(controller, [Observation(loss=1.0)] * 5)


def test_one_non_finite_value_does_not_poison_the_averages():
    controller = ExposureController(ControllerConfig(total_steps=50, lookahead=5))
    seen = observations(50)
    seen[7] = Observation(loss=float("nan"), mismatch=0.1, probe_nll=float("inf"), grounded=float("-inf"))
    exposures = run(controller, seen)
    assert all(0.0 <= value <= 1.0 for value in exposures)
    assert controller.metrics()["exposure/dropped_values"] == 3.0
    assert all(math.isfinite(value) for value in controller.metrics().values())


# --- checkpoints ------------------------------------------------------------------------------------------------------

SHORT = {"total_steps": 40, "hold": 2, "lookahead": 6, "decisions_per_update": 3}


@settings(max_examples=40, deadline=None)
@given(
    stop=st.integers(1, 39),
    credit=st.sampled_from(CREDITS),
    signal=st.sampled_from(PROGRESS_SIGNALS),
    mode=st.sampled_from(["learned", "random", "fixed"]),
)
def test_resuming_at_any_step_equals_the_uninterrupted_run(stop, credit, signal, mode):
    options = {**SHORT, "credit": credit, "progress_signal": signal, "mode": mode}
    config = ControllerConfig(**options)
    seen = observations(40)
    whole = ExposureController(config)
    expected = run(whole, seen)
    first = ExposureController(config)
    before = run(first, seen[:stop])
    state = json.loads(json.dumps(first.state_dict()["values"])), first.state_dict()["tensors"]
    second = ExposureController(ControllerConfig(**options, seed=77))
    second.load_state_dict({"values": state[0], "tensors": state[1]})
    assert second.exposure == first.exposure
    run(first, seen[stop:])  # the first one going on must not reach into the second
    assert before + run(second, seen[stop:]) == expected
    for name, tensor in whole.state_dict()["tensors"].items():
        assert torch.equal(tensor, second.state_dict()["tensors"][name]), name
    assert whole.state_dict()["values"]["memory"] == second.state_dict()["values"]["memory"]
    assert whole.metrics() == second.metrics() and whole.memory.decided == second.memory.decided
    if mode == "learned":
        assert whole.metrics()["exposure/updates"] >= 3
        assert (whole.memory.dropped_decisions > 0) == (credit == "counterfactual")


def test_files(tmp_path):
    config = ControllerConfig(**SHORT)
    seen = observations(40)
    expected = run(ExposureController(config), seen)
    first = ExposureController(config)
    run(first, seen[:25])
    first.save(tmp_path / "step")
    assert {path.name for path in (tmp_path / "step").iterdir()} == {
        "exposure_controller.json",
        "exposure_controller.safetensors",
    }
    second = ExposureController(config)
    second.load(tmp_path / "step")
    assert run(second, seen[25:]) == expected[25:]

    # Files of two saves are told apart, and a missing one is named.
    first.step(seen[25])
    first.save(tmp_path / "later")
    (tmp_path / "later" / "exposure_controller.json").replace(tmp_path / "step" / "exposure_controller.json")
    with pytest.raises(ValueError, match="of step 24"):
        second.load(tmp_path / "step")
    (tmp_path / "step" / "exposure_controller.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors is missing"):
        second.load(tmp_path / "step")


def test_resuming_under_other_settings_is_refused_where_it_matters():
    first = ExposureController(ControllerConfig(**SHORT))
    run(first, observations(20))
    other = ExposureController(ControllerConfig(**{**SHORT, "hold": 4}))
    with pytest.raises(ValueError, match="hold=4, but the saved controller ran with 2"):
        other.load_state_dict(first.state_dict())
    longer = ExposureController(ControllerConfig(**{**SHORT, "total_steps": 80, "learning_rate": 0.5}))
    longer.load_state_dict(first.state_dict())
    assert longer._optimizer.param_groups[0]["lr"] == 0.5
    run(longer, observations(60)[20:])
    state = first.state_dict()
    state["values"]["version"] = 1
    with pytest.raises(ValueError, match="version"):
        longer.load_state_dict(state)
