"""Inputs of an advantage estimator, drawn from a seed."""

from __future__ import annotations

from typing import Any

import torch

from advantage.estimators import Credit, CreditInputs, params_from_config, run_estimator


def make_inputs(seed: int = 0, rows: int = 4, width: int = 12, *, holes: bool = False, **changes: Any) -> CreditInputs:
    """(rows, width) inputs with every signal that tests of several estimators use.

    holes: valid tokens anywhere in a row, with wider gaps; else each row is valid up to a length of its own.
    changes: fields that replace the drawn ones.
    """
    generator = torch.Generator().manual_seed(seed)
    if holes:
        mask = torch.rand(rows, width, generator=generator) > 0.3
    else:
        mask = torch.arange(width) < torch.randint(1, width + 1, (rows,), generator=generator).unsqueeze(-1)
    values = {
        "group_advantage": torch.randn(rows, 1, generator=generator) * mask,
        "response_mask": mask,
        "scores": torch.randn(rows, generator=generator),
        "equal_reward_rows": torch.zeros(rows, dtype=torch.bool),
        "entropy": torch.rand(rows, width, generator=generator),
        "log_prob_gap": (2 if holes else 1) * torch.randn(rows, width, generator=generator),
        "contrast_gap": torch.randn(rows, width, generator=generator),
    }
    if holes:
        values |= {"step": 1, "total_steps": 90}
    return CreditInputs(**{**values, **changes})


def run(name: str, inputs: CreditInputs, **params: Any) -> Credit:
    """The credit of the named estimator under these parameters."""
    return run_estimator(name, inputs, params_from_config(name, {name: params}))
