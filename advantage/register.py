"""Registration of the estimators with verl, so that `algorithm.adv_estimator=dasd` selects one.

Importing this module is all that is needed; it is also the package's `verl.plugins` entry point, which verl imports at
the end of its own `__init__`, in every process. Registering twice is harmless. The group advantage is verl's own
`compute_grpo_outcome_advantage`; nothing of it is rewritten here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from verl.trainer.ppo import core_algos

import advantage
from advantage.checks import as_mask
from advantage.estimators import (
    ESTIMATORS,
    CreditInputs,
    correction_warning,
    equal_reward_rows,
    params_from_config,
    run_estimator,
)
from advantage.signals import TokenSignals, current_signals

logger = logging.getLogger(__name__)


def verl_estimator(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An estimator in the form verl calls: keyword arguments in, (advantages, returns) out."""

    def compute(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        config: Any = None,
        index: Any = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return compute_token_advantage(name, token_level_rewards, response_mask, config=config, index=index)

    compute.__name__ = compute.__qualname__ = f"compute_{name}_advantage"
    compute.__doc__ = f"The {name} advantage; see `advantage.{name}` and `compute_token_advantage`."
    return compute


def compute_token_advantage(
    name: str, token_level_rewards: torch.Tensor, response_mask: torch.Tensor, *, config: Any = None, index: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Group advantage by verl, token credit by the named estimator, signals from `advantage.token_signals`.

    verl is given the rewards in fp32: in bf16 a group's mean and deviation are too coarse to tell its responses apart.
    A group of two or more equal rewards has A_G = 0 exactly; verl's own mean of eight times 0.7 misses it by a rounding
    error, which the division by a deviation of about as much makes up to 0.1.

    Args:
        name: the estimator.
        token_level_rewards: (B, T) verifier rewards, as verl passes them, of any floating dtype.
        response_mask: (B, T), non-zero on valid tokens, of any dtype.
        config: the `algorithm` node; `norm_adv_by_std_in_grpo` and `algorithm.<name>` are read from it.
        index: (B,) group label of each row.

    Returns:
        (advantages, returns), (B, T) fp32; as with verl's GRPO both are the same tensor.

    Raises:
        ValueError: if there are no group labels, a parameter is bad, a signal is missing or a shape is wrong.
        NonFiniteSignalError: if rewards or signals have NaN or infinity.
    """
    if index is None:
        raise ValueError(
            f"adv_estimator={name!r} compares the responses to one prompt and needs their group labels: put `uid` into "
            "the batch's non-tensor fields"
        )
    if isinstance(index, torch.Tensor):  # its elements hash by identity, so each would be a group of its own
        index = index.cpu().numpy()
    if len(index) != len(response_mask):
        raise ValueError(
            f"index has {len(index)} group labels for {len(response_mask)} responses: it needs one for each"
        )
    params = params_from_config(name, config)
    mask = as_mask(response_mask)
    signals = current_signals() or TokenSignals()
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    rewards = token_level_rewards.to(torch.float32)
    scores = rewards.sum(dim=-1)
    equal = equal_reward_rows(scores, index)
    group_advantage, _ = core_algos.compute_grpo_outcome_advantage(
        token_level_rewards=rewards,
        response_mask=mask,
        index=index,
        norm_adv_by_std_in_grpo=by_std,
    )
    group_advantage[equal & scores.isfinite()] = 0.0  # what is not finite is refused below
    inputs = CreditInputs(
        group_advantage=group_advantage,
        response_mask=mask,
        scores=scores,
        equal_reward_rows=equal,
        **signals.checked(mask),
    )
    credit = run_estimator(name, inputs, params)
    signals.diagnostics.update(credit.metrics)
    signals.tokens.update(credit.tokens)
    signals.remembered.update(credit.memory)
    warning = correction_warning(credit.metrics)
    if warning:
        logger.warning(warning)
    return credit.advantages, credit.advantages


def register_all() -> None:
    """Register every estimator of this package with verl; those already registered by it are left alone."""
    for name in ESTIMATORS:
        present = core_algos.ADV_ESTIMATOR_REGISTRY.get(name)
        # verl raises on a second, different function of the same name. After a reload ours would be one.
        if present is not None and getattr(present, "registered_by", None) == advantage.__name__:
            continue
        function = verl_estimator(name)
        function.registered_by = advantage.__name__  # type: ignore[attr-defined]
        core_algos.register_adv_est(name)(function)


register_all()
