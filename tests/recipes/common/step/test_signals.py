"""What the trainer knows of a step's rewards."""

from __future__ import annotations

import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from recipes.common.step.signals import GROUP_RELATIVE, Rewards


def rewards(scores: list[float], groups: list[str]) -> Rewards:
    empty = [{} for _ in scores]
    return Rewards(torch.tensor(scores), groups, [s > 0 for s in scores], ["" for _ in scores], empty)


def test_rows_whose_group_mean_may_be_rounded():
    found = rewards([0.7] * 3 + [1.0] * 2 + [0.7, -0.9] + [-0.9], [*"aaabbcc", "d"])
    assert found.equal_rows.tolist() == [True] * 5 + [False] * 3  # a group of one is compared with nothing
    assert found.rounded_rows.tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize("name", GROUP_RELATIVE, ids=str)
@pytest.mark.parametrize("score", [0.7, -0.9, 1.0, 0.0, -1.0])
def test_verls_estimators_leave_a_rest_in_those_rows_alone(name, score):
    """What is not silenced must be exact already: verl's A_G of equal rewards, where they are whole numbers, is 0."""
    of = rewards([score] * 8, ["a"] * 8)
    token_rewards = torch.zeros(8, 3)
    token_rewards[:, -1] = score
    found = get_adv_estimator_fn(name)(
        token_level_rewards=token_rewards, response_mask=torch.ones(8, 3), index=torch.zeros(8, dtype=int).numpy()
    )[0]
    assert bool(found[~of.rounded_rows].eq(0).all())
    assert bool(of.rounded_rows.all()) == (score in (0.7, -0.9))
