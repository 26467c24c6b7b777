"""`compute_token_advantage` called directly: dtypes of rewards and mask, and groups without a difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advantage
from advantage.estimators import ESTIMATORS, CreditInputs, params_from_config, run_estimator

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")

from advantage.register import compute_token_advantage  # noqa: E402

MASK_DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float32)
ROWS, WIDTH = 4, 5
PER_ROW = ("log_prob_gap", "contrast_gap", "entropy", "token_ids", "has_teacher")
UID = np.array(["a", "a", "b", "b"], dtype=object)


def mask_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]).to(dtype)


def rewards_of(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rewards = torch.zeros(len(values), WIDTH, dtype=dtype)
    rewards[:, 0] = torch.tensor(values).to(dtype)
    return rewards


def signals() -> dict:
    generator = torch.Generator().manual_seed(7)
    gap, entropy = torch.randn(ROWS, WIDTH, generator=generator), torch.rand(ROWS, WIDTH, generator=generator)
    ids, counts = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH), torch.ones(ROWS * WIDTH)
    tokens = {"log_prob_gap": gap, "contrast_gap": gap, "entropy": entropy, "token_ids": ids, "token_counts": counts}
    return {**tokens, "has_teacher": torch.tensor([True, False, True, False]), "step": 3, "total_steps": 9}


def advantages(name: str, rewards: torch.Tensor, mask: torch.Tensor, uid: np.ndarray = UID) -> torch.Tensor:
    with advantage.token_signals(**signals()):
        return compute_token_advantage(name, rewards, mask, index=uid)[0]


def group_advantage(rewards: torch.Tensor) -> torch.Tensor:
    """A_G alone, (B,): every estimator that adds to it gives it back where it adds nothing."""
    rows = len(rewards)
    with advantage.token_signals(log_prob_gap=torch.zeros(rows, WIDTH)):
        result = compute_token_advantage(
            "atesd_sampled", rewards, torch.ones(rows, WIDTH), index=np.zeros(rows, dtype=int)
        )[0]
    assert torch.equal(result, result[:, :1].expand(-1, WIDTH))
    return result[:, 0]


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_every_estimator_takes_a_mask_of_any_dtype(name, dtype):
    rewards = rewards_of([1.0, 0.0, 0.25, 1.0])
    wanted = advantages(name, rewards, mask_of(torch.bool))
    got = advantages(name, rewards, mask_of(dtype))
    assert wanted.any() and got.dtype == torch.float32
    assert torch.equal(got, wanted) and not got[~mask_of(torch.bool)].any()


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_run_estimator_takes_a_mask_and_an_advantage_of_any_dtype(name, dtype):
    def run(mask: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        inputs = CreditInputs(
            group_advantage=anchor,
            response_mask=mask,
            scores=torch.ones(ROWS),
            equal_reward_rows=torch.zeros(ROWS, dtype=torch.bool),
            **signals(),
        )
        return run_estimator(name, inputs, params_from_config(name, None)).advantages

    anchor = torch.tensor([[0.5], [-0.5], [1.0], [-1.0]]).expand(-1, WIDTH)
    wanted = run(mask_of(torch.bool), anchor * mask_of(torch.bool))
    assert torch.equal(run(mask_of(dtype), anchor.to(torch.bfloat16)), wanted)


def test_rewards_in_half_precision_lose_nothing_to_the_group_statistics():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]  # nine: their mean is no bf16 number
    wanted = (torch.tensor(values) - torch.tensor(values).mean()) / (torch.tensor(values).std() + 1e-6)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.testing.assert_close(group_advantage(rewards_of(values, dtype)), wanted, rtol=1e-6, atol=0)


def test_close_rewards_in_half_precision_stay_apart():
    rewards = rewards_of([0.25, 0.25, 0.25, 0.251953125], torch.bfloat16)  # neighbours in bf16
    got = group_advantage(rewards)
    torch.testing.assert_close(got, torch.tensor([-0.5, -0.5, -0.5, 1.5]), rtol=2e-3, atol=0)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(-4, 4, width=32), st.integers(2, 16), st.sampled_from([torch.float32, torch.bfloat16]))
def test_equal_rewards_give_no_advantage_at_all(reward, size, dtype):
    assert not group_advantage(rewards_of([reward] * size, dtype)).any()


@pytest.mark.parametrize("reward", [0.7, -0.9])
@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_eight_equal_rewards_have_no_advantage_where_verls_rounding_error_has_one(name, reward):
    rewards, mask, one = rewards_of([reward] * 8), torch.ones(8, WIDTH), np.array(["a"] * 8, dtype=object)
    assert core_algos.compute_grpo_outcome_advantage(rewards, mask, one)[0].abs().max() > 0.05
    seen = {}

    def spy(name: str, inputs: CreditInputs, params) -> object:
        seen["anchor"] = inputs.group_advantage
        return run_estimator(name, inputs, params)

    values = {key: torch.cat([value, value]) if key in PER_ROW else value for key, value in signals().items()}
    with pytest.MonkeyPatch.context() as patch, advantage.token_signals(**values):
        patch.setattr("advantage.register.run_estimator", spy)
        compute_token_advantage(name, rewards, mask, index=one)
    assert seen["anchor"].shape == mask.shape and not seen["anchor"].any()


@pytest.mark.parametrize("reward", [0.7, -0.9, 0.1, 1 / 3])
def test_equal_rewards_of_one_group_leave_the_other_to_verl(reward):
    rewards = rewards_of([reward, reward, 1.0, 0.0])
    got = advantages("atesd_sampled", rewards, torch.ones(ROWS, WIDTH))
    with advantage.token_signals(log_prob_gap=torch.zeros(ROWS, WIDTH)):
        anchor = compute_token_advantage("atesd_sampled", rewards, torch.ones(ROWS, WIDTH), index=UID)[0]
    assert not anchor[:2].any() and not got[:2].any()
    verl, _ = core_algos.compute_grpo_outcome_advantage(rewards, torch.ones(ROWS, WIDTH), UID)
    assert torch.equal(anchor[2:], verl[2:])


def test_a_group_of_one_keeps_its_reward():
    assert group_advantage(rewards_of([0.7])).tolist() == [pytest.approx(0.7)]
