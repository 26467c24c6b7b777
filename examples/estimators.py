"""Every estimator on the same few tokens: what a method makes of one right and one wrong answer.

    python examples/estimators.py

Three tokens each: one that is certain, a fork where the student is uncertain and the teacher disagrees, and a last one.
Estimators are pure functions of tensors; a signal that one needs and does not get is named in the error.
"""

from __future__ import annotations

import torch

from advantage import CreditInputs, MissingSignalError, equal_reward_rows, params_from_config, run_estimator
from advantage.estimators import ESTIMATORS

MASK = torch.tensor([[True, True, True], [True, True, True]])
REWARDS = torch.tensor([1.0, 0.0])
INPUTS = CreditInputs(
    group_advantage=torch.tensor([[0.7], [-0.7]]) * MASK,  # GRPO's A_G: the same for every token of a response
    response_mask=MASK,
    scores=REWARDS,
    equal_reward_rows=equal_reward_rows(REWARDS, ["problem", "problem"]),
    entropy=torch.tensor([[0.01, 1.10, 0.05], [0.02, 1.30, 0.04]]),  # of the student, nats
    log_prob_gap=torch.tensor([[0.0, -1.5, 0.2], [0.0, -2.5, -0.3]]),  # log p_T - log p_S of the sampled token, nats
    contrast_gap=torch.tensor([[0.0, 1.0, 0.1], [0.0, -2.0, -0.2]]),  # of a right hint against wrong ones, nats
    step=1,
    total_steps=100,
)


def main() -> None:
    print(f"{'':<18} {'right: sure, fork, end':>28} {'wrong: sure, fork, end':>28}")
    print(f"{'A_G (grpo)':<18} {row(INPUTS.group_advantage[0])} {row(INPUTS.group_advantage[1])}")
    for name in sorted(ESTIMATORS):
        try:
            credit = run_estimator(name, INPUTS, params_from_config(name, {}))
        except MissingSignalError as error:
            print(f"{name:<18} {str(error).partition(':')[0]}")
            continue
        print(f"{name:<18} {row(credit.advantages[0])} {row(credit.advantages[1])}")

    without = run_estimator("dasd", INPUTS, params_from_config("dasd", {"dasd": {"target_ratio": 0.0}}))
    assert torch.equal(without.advantages, INPUTS.group_advantage)
    print("\ndasd with target_ratio=0 is A_G, bit for bit")
    try:
        params_from_config("dasd", {"dasd": {"betta": 0.1}})
    except ValueError as error:
        print(f"refused: {error}")


def row(advantages: torch.Tensor) -> str:
    return "".join(f"{value:>9.3f}" for value in advantages.tolist()).rjust(28)


if __name__ == "__main__":
    main()
