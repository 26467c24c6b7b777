"""A weight that follows a ratio: by hand, over steps, at its limits, and under a change of the gaps' scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import advantage
from advantage.dasd import direction_coefficient
from advantage.estimators import CreditInputs, params_from_config, run_estimator
from advantage.scale import ANCHOR, FIELD, aimed_beta
from tests.builders.signals import make_inputs, run

EXAMPLES = settings(deadline=None, max_examples=30, derandomize=True)
ADDITIVE = ("dasd", "pw_opsd_sampled", "atesd_sampled")
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_by_hand_over_three_steps():
    field, anchor = (
        torch.tensor([[1.0, -1.0, 9.0], [2.0, -2.0, 4.0]]),
        torch.tensor([[1.0, 1.0, 9.0], [-1.0, -1.0, 0.5]]),
    )
    # Over the five valid tokens mean |field| is 10/5 = 2 and mean |A_G| 4.5/5 = 0.9.
    beta, memory, metrics = aimed_beta(field, anchor, MASK, None, target=0.1, decay=0.5)
    assert beta == pytest.approx(0.1 * 0.9 / 2)
    assert metrics["credit/correction_ratio_before_mask"] == pytest.approx(0.1)
    # Twice the field, a third of A_G: the sums are 0.5 * 2 + 4 = 5 and 0.5 * 0.9 + 0.3 = 0.75.
    beta, memory, metrics = aimed_beta(2 * field, anchor / 3, MASK, memory, target=0.1, decay=0.5)
    assert (float(memory[FIELD]), float(memory[ANCHOR])) == pytest.approx((5.0, 0.75))
    assert beta == metrics["credit/beta"] == pytest.approx(0.1 * 0.75 / 5)
    assert metrics["credit/correction_ratio_before_mask"] == pytest.approx(0.015 * 4 / 0.3)
    # A step in which all A_G are zero lowers it: 0.5 * 5 + 2 = 4.5 and 0.5 * 0.75 = 0.375.
    beta, memory, metrics = aimed_beta(field, 0 * anchor, MASK, memory, target=0.1, decay=0.5)
    assert beta == pytest.approx(0.1 * 0.375 / 4.5) and metrics["credit/correction_ratio_before_mask"] == 0.0


def test_without_decay_each_step_has_its_ratio():
    _, memory, _ = aimed_beta(torch.full((2, 3), 7.0), torch.ones(2, 3), MASK, None, target=1.0, decay=0.0)
    beta, _, metrics = aimed_beta(torch.full((2, 3), 4.0), torch.ones(2, 3), MASK, memory, target=0.2, decay=0.0)
    assert beta == pytest.approx(0.05) and metrics["credit/correction_ratio_before_mask"] == pytest.approx(0.2)


def test_a_step_without_a_field_says_nothing_of_its_size():
    beta, nothing, _ = aimed_beta(torch.zeros(2, 3), torch.ones(2, 3), MASK, None, target=0.1, decay=0.9)
    assert beta == 0.0 and float(nothing[FIELD]) == float(nothing[ANCHOR]) == 0.0
    _, memory, _ = aimed_beta(torch.ones(2, 3), torch.ones(2, 3), MASK, None, target=0.1, decay=0.9)
    beta, after, _ = aimed_beta(torch.zeros(2, 3), torch.ones(2, 3), MASK, memory, target=0.1, decay=0.9)
    assert beta == pytest.approx(0.1) and after == memory


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_credit_has_the_ratio_before_groups_are_masked(name):
    inputs = make_inputs(3, equal_reward_rows=torch.tensor([True, False, False, False]))
    plain = run(name, inputs, beta=1.0, mask_zero_variance_groups=False)
    aimed = run(name, inputs, beta=None, target_ratio=0.25, mask_zero_variance_groups=False)
    assert aimed.metrics["credit/correction_ratio"] == pytest.approx(0.25, rel=1e-5)
    beta = aimed.metrics["credit/beta"]
    assert beta == pytest.approx(0.25 / plain.metrics["credit/correction_ratio"], rel=1e-5)
    masked = run(name, inputs, beta=None, target_ratio=0.25)
    assert masked.metrics["credit/beta"] == beta  # of the batch before masking
    assert masked.metrics["credit/correction_ratio_before_mask"] == pytest.approx(0.25, rel=1e-5)
    assert masked.metrics["credit/correction_ratio"] < 0.25
    assert torch.equal(masked.advantages[0], inputs.group_advantage[0])
    assert torch.equal(masked.advantages[1:], aimed.advantages[1:])


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_given_beta_holds_and_remembers_nothing(name):
    inputs = make_inputs(5)
    fixed = run(name, inputs, beta=0.3, target_ratio=None)
    assert torch.equal(fixed.advantages, run(name, inputs, beta=0.3).advantages)
    assert fixed.memory == {} and "credit/beta" not in fixed.metrics
    assert not params_from_config(name, {name: {"beta": 0.1}}).remembers
    assert params_from_config(name, {name: {"beta": None, "target_ratio": 0.1}}).remembers
    none = run(name, inputs, beta=None, target_ratio=0.0).advantages
    assert torch.equal(none, inputs.group_advantage)
    aimed = run(name, inputs, beta=None, target_ratio=0.1)
    assert torch.equal(aimed.advantages, run(name, inputs, beta=aimed.metrics["credit/beta"]).advantages)


@EXAMPLES
@given(
    st.integers(0, 10_000), st.sampled_from([2.0**-20, 0.25, 8.0]), st.sampled_from(["tanh", "constant"]), st.booleans()
)
def test_the_scale_of_the_gaps_drops_out(seed, factor, direction, normalise):
    inputs = make_inputs(seed, holes=True)
    scaled = make_inputs(seed, holes=True, log_prob_gap=factor * inputs.log_prob_gap)
    options = {"target_ratio": 0.05, "gap_eps_share": 0.1, "direction": direction, "normalise_gap": normalise}
    # Powers of two scale exactly, so equality is to the last bit where the gaps are in units of themselves.
    first, second = run("dasd", inputs, **options), run("dasd", scaled, **options)
    assert first.tokens.keys() == second.tokens.keys()
    assert torch.equal(first.tokens["omega"], second.tokens["omega"])
    torch.testing.assert_close(first.advantages, second.advantages, rtol=1e-6, atol=1e-7)
    # And a floor in nats, or a fixed beta of the raw gap, does not have that.
    nats = {**options, "gap_eps_share": None, "gap_eps": 1.0}
    changed = [run("dasd", each, **nats).tokens["omega"] for each in (inputs, scaled)]
    assert direction == "constant" or not torch.equal(*changed)


def test_the_floor_is_a_share_of_the_batchs_mean_gap():
    gap = torch.tensor([[2.0, -1.0, 0.5, 99.0], [4.0, -1.0, 0.5, 99.0]])  # the second row has no teacher
    mask = torch.tensor([[True, True, True, False]] * 2)
    inputs = make_inputs(0, 2, 4, response_mask=mask, log_prob_gap=gap, has_teacher=torch.tensor([True, False]))
    got = run("dasd", inputs, gap_eps_share=0.6)
    # mean |delta| of the first row is 3.5 / 3, so the floor is 0.7.
    wanted, _ = direction_coefficient(inputs.entropy[:1], gap[:1], mask[:1], gap_eps=0.7, entropy_eps=0.1)
    torch.testing.assert_close(got.tokens["omega"][:1], wanted)
    assert got.metrics["credit/gap_scale/below_eps_share"] == 0.0  # its median is 1
    assert run("dasd", inputs, gap_eps_share=0.9).metrics["credit/gap_scale/below_eps_share"] == 1.0


def test_a_batch_without_gaps_has_no_correction():
    inputs = make_inputs(0, log_prob_gap=torch.zeros(4, 12))
    credit = run("dasd", inputs, target_ratio=0.1, gap_eps_share=0.5)
    assert torch.equal(credit.advantages, inputs.group_advantage) and credit.metrics["credit/beta"] == 0.0


def test_memory_is_handed_on_from_call_to_call():
    first, second = make_inputs(1), make_inputs(2)
    params = params_from_config("dasd", {"dasd": {"target_ratio": 0.1}})
    one = run_estimator("dasd", first, params)
    two = run_estimator("dasd", make_inputs(2, memory=one.memory), params)
    assert two.metrics["credit/beta"] != run_estimator("dasd", second, params).metrics["credit/beta"]
    with advantage.token_signals(memory=one.memory) as signals:
        assert (
            CreditInputs(
                group_advantage=MASK, response_mask=MASK, scores=MASK, equal_reward_rows=MASK, **signals.checked(MASK)
            ).memory
            == one.memory
        )


def test_what_a_checkpoint_keeps_continues_a_run_to_the_last_bit(tmp_path):
    params = params_from_config("dasd", {"dasd": {"target_ratio": 0.07}})
    through: dict[str, torch.Tensor] = {}
    resumed: dict[str, torch.Tensor] = {}
    for seed in range(5):
        whole = run_estimator("dasd", make_inputs(seed, memory=through), params)
        parted = run_estimator("dasd", make_inputs(seed, memory=resumed), params)
        assert torch.equal(whole.advantages, parted.advantages)
        through = whole.memory
        save_file(parted.memory, tmp_path / "memory.safetensors")
        resumed = load_file(tmp_path / "memory.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ratio": -0.1}, r"target_ratio=-0\.1: must be finite, 0 or more"),
        ({"target_ratio": float("inf")}, "target_ratio=inf"),
        ({"ratio_decay": 1.0}, r"ratio_decay=1\.0: must be in \[0, 1\)"),
        ({"gap_eps_share": 0.0}, r"gap_eps_share=0\.0: must be positive"),
    ],
)
def test_values_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        params_from_config("dasd", {"dasd": options})


@pytest.mark.parametrize("name", ["pw_opsd_sampled", "atesd_sampled"])
def test_a_ratio_beside_a_beta_is_refused(name):
    with pytest.raises(ValueError, match=r"target_ratio=0\.1: must be left alone with beta=0\.1, .* set beta=null"):
        params_from_config(name, {name: {"target_ratio": 0.1}})
