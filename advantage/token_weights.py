"""Factors of the tokens' divergences: a table like that of the estimators, for losses over the full vocabulary.

A weight is computed once a step for the global batch, from what student and teacher say at the rollout's weights, and
held over its mini-batches.  Each stands in the module of its method, beside the estimator and the parameters that it
shares with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from advantage.estimators import EstimatorParams, Needs, needs_of
from advantage.params import load_params
from advantage.segments import batch_mean
from advantage.signals import MissingSignalError, Signals

WeightFn = Callable[[Signals, torch.Tensor, torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class TokenWeight:
    """A registered weight.

    Attributes:
        name: what `self_distill.loss.weighting` selects it by.
        weigh: (signals, response_mask (B, T) bool, equal_reward_rows (B,) bool, params) to factors (B, T) fp32, zero
            outside the mask.
        params: its parameters' dataclass.
        node: the key under `algorithm` that its parameters stand at.
        needs: maps its parameters to the names of the signals that they require.
        share: its values lie in [0, 1], so that it can also mix two divergences.
    """

    name: str
    weigh: WeightFn
    params: type[EstimatorParams]
    node: str
    needs: Callable[[Any], tuple[str, ...]]
    share: bool = False

    def params_from(self, algorithm: Any) -> EstimatorParams:
        """The parameters from the `algorithm` node of a configuration.

        Raises:
            ValueError: if a key is unknown, a type is wrong or a value is outside its range.
        """
        node = None if algorithm is None else algorithm.get(self.node, None)
        return load_params(self.params, node, where=f"algorithm.{self.node}")


TOKEN_WEIGHTS: dict[str, TokenWeight] = {}


def token_weight(
    name: str, *, params: type[EstimatorParams], node: str | None = None, needs: Needs = (), share: bool = False
) -> Callable[[WeightFn], WeightFn]:
    """Enter a function into `TOKEN_WEIGHTS`.

    Args:
        name: what `self_distill.loss.weighting` selects it by.
        params: its parameters' dataclass.
        node: the key under `algorithm` that its parameters stand at; None for `name`.
        needs: the signals it requires, or a function of the parameters that returns them.
        share: whether its values lie in [0, 1], so that it can also mix two divergences.

    Returns:
        A decorator that returns the function as it is.
    """

    def enter(fn: WeightFn) -> WeightFn:
        TOKEN_WEIGHTS[name] = TokenWeight(name, fn, params, node or name, needs_of(needs), share)
        return fn

    return enter


def weigh_tokens(
    weight: TokenWeight,
    params: EstimatorParams,
    signals: Signals,
    *,
    response_mask: torch.Tensor,
    equal_reward_rows: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Factors (B, T) fp32, zero outside the mask and in responses without a teacher, and their metrics.

    Args:
        weight: the entry of `TOKEN_WEIGHTS`.
        params: its parameters.
        signals: those that `weight.needs(params)` names, (B, T) each.
        response_mask: (B, T) bool.
        equal_reward_rows: (B,) bool, rows of groups whose rewards are all equal.

    Raises:
        MissingSignalError: if signals are missing; lists them.
    """
    _check_signals(weight, params, signals)
    factors = weight.weigh(signals, response_mask, equal_reward_rows, params) * signals.taught(response_mask)
    return factors, {
        "divergence/weight/mean": batch_mean(factors, response_mask),
        "divergence/weight/positive_share": batch_mean(factors > 0, response_mask),
    }


def forward_shares(
    weight: TokenWeight,
    params: EstimatorParams,
    signals: Signals,
    *,
    response_mask: torch.Tensor,
    equal_reward_rows: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Shares of the forward KL (B, T) fp32 in [0, 1] where two KLs are mixed token by token, and their mean.

    Args:
        weight: the entry of `TOKEN_WEIGHTS`; its `share` is true.
        params: its parameters.
        signals: those that `weight.needs(params)` names, (B, T) each.
        response_mask: (B, T) bool.
        equal_reward_rows: (B,) bool, rows of groups whose rewards are all equal.

    Raises:
        MissingSignalError: if signals are missing; lists them.
    """
    _check_signals(weight, params, signals)
    shares = weight.weigh(signals, response_mask, equal_reward_rows, params)
    return shares, {"divergence/forward_share/mean": batch_mean(shares, response_mask)}


def _check_signals(weight: TokenWeight, params: EstimatorParams, signals: Signals) -> None:
    missing = [name for name in weight.needs(params) if getattr(signals, name) is None]
    if missing:
        raise MissingSignalError(f"token weight {weight.name!r} needs the signals {', '.join(missing)}")
