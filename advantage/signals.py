"""The token signals of an advantage estimator, handed over beside verl's call.

verl calls an estimator with rewards, the mask, the config and the group index, and with nothing else. What these
estimators need besides (entropies, the teacher's log-probability gap, ...) is set around that call:

    with advantage.token_signals(entropy=entropy, log_prob_gap=gap) as signals:
        data = compute_advantage(data, adv_estimator="dasd", config=config.algorithm)
    metrics.update(signals.diagnostics)

Tensors are (B, T), padded as the batch that verl passes and with its rows in the same order. The hand-over is a context
variable: concurrent threads and asyncio tasks each see their own, and nothing is left behind after the block.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from advantage.checks import check_shape
from advantage.estimators import SIGNALS, TOKEN_SHAPED_SIGNALS


@dataclass
class TokenSignals:
    """The signals in force, and what the estimator leaves: `diagnostics`, metric name to float, and `tokens`, what a
    token's credit was made of, name to (B, T) (see `Credit`).

    The other fields are those of `advantage.estimators.CreditInputs` of the same name.
    """

    entropy: torch.Tensor | None = None
    log_prob_gap: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    router_signal: torch.Tensor | None = None
    token_counts: torch.Tensor | None = None
    step: int | None = None
    total_steps: int | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)

    def as_inputs(self, response_mask: torch.Tensor) -> dict[str, Any]:
        """The signals as keyword arguments of `CreditInputs`, on the mask's device.

        Raises:
            ValueError: a token signal's shape is not the mask's.
        """
        values = {name: getattr(self, name) for name in SIGNALS}
        for name in TOKEN_SHAPED_SIGNALS:
            if values[name] is not None:
                check_shape(f"token_signals({name}=...)", values[name], response_mask)
                values[name] = values[name].to(response_mask.device)
        return values


_current: contextvars.ContextVar[TokenSignals | None] = contextvars.ContextVar("token_signals", default=None)


@contextmanager
def token_signals(
    *,
    entropy: torch.Tensor | None = None,
    log_prob_gap: torch.Tensor | None = None,
    token_ids: torch.Tensor | None = None,
    router_signal: torch.Tensor | None = None,
    token_counts: torch.Tensor | None = None,
    step: int | None = None,
    total_steps: int | None = None,
) -> Iterator[TokenSignals]:
    """Supply token signals to the estimators called within the block; see the module's example.

    Args:
        entropy: H_t, (B, T) nats, student, full vocabulary, at the sampling temperature.
        log_prob_gap: delta_t = log p_T(o_t) - log p_S(o_t), (B, T) nats.
        token_ids: (B, T) response token ids.
        router_signal: (B, T) any per-token quantity for `router=external`.
        token_counts: (V,) corpus counts for `router=token_frequency`.
        step: the current training step, from 1, for estimators with a schedule.
        total_steps: the last training step.

    Yields:
        The `TokenSignals`, whose `diagnostics` and `tokens` hold what the estimator leaves after the call.
    """
    signals = TokenSignals(
        entropy=entropy,
        log_prob_gap=log_prob_gap,
        token_ids=token_ids,
        router_signal=router_signal,
        token_counts=token_counts,
        step=step,
        total_steps=total_steps,
    )
    token = _current.set(signals)
    try:
        yield signals
    finally:
        _current.reset(token)


def current_signals() -> TokenSignals | None:
    """The signals of the innermost `token_signals` block around the caller, or None."""
    return _current.get()
