"""The token signals of an advantage estimator, and how they are handed over beside verl's call.

verl calls an estimator with rewards, the mask, the config and the group index, and with nothing else. What these
estimators need besides (entropies, the teacher's log-probability gap, ...) is set around that call:

    with advantage.token_signals(entropy=entropy, log_prob_gap=gap) as signals:
        data = compute_advantage(data, adv_estimator="dasd", config=config.algorithm)
    metrics.update(signals.diagnostics)

The hand-over is a context variable: concurrent threads and asyncio tasks each see their own, and nothing is left behind
after the block.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from advantage.checks import check_shape

_PER_TOKEN = {"per_token": True}


class MissingSignalError(ValueError):
    """An estimator was called without a signal that it needs."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What is known of a batch's tokens. The one list of signals: names, shapes and units.

    Signals per token are (B, T), padded like the batch that verl passes and with its rows in the same order.

    Attributes:
        entropy: H_t of the student over the full vocabulary at the sampling temperature, (B, T) nats.
        log_prob_gap: delta_t = log p_T(o_t) - log p_S(o_t), (B, T) nats, both at the rollout's weights.
        contrast_gap: log p_T(o_t) minus the log of the mean probability of o_t under other contexts of the teacher
            (RLCSD's e_t: a right hint against wrong ones), (B, T) nats.
        teacher_entropy: H_T of the teacher over the full vocabulary at the same temperature, (B, T) nats, at the
            rollout's weights; 0 in responses without a teacher.
        has_teacher: (B,) bool, rows that the teacher had something to be shown for; None: all. Gaps of others are 0.
        token_ids: (B, T) the responses' token ids.
        gradient_norm: norm of the gradient of log p_S(o_t) by the output head's weight, (B, T).
        attention_entropy: mean over heads of the entropy of the student's attention where it predicts o_t, (B, T) nats.
        router_signal: (B, T) any other quantity to route on instead of entropy (`router=external`).
        token_counts: (V,) how often each token id occurs in the training corpus.
        step: the current training step, from 1, for estimators with a schedule.
        total_steps: the last training step.
        memory: what the estimator left in `TokenSignals.remembered` a step before, name to tensor; None at the start.
    """

    entropy: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    log_prob_gap: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    contrast_gap: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    teacher_entropy: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    has_teacher: torch.Tensor | None = None
    token_ids: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    gradient_norm: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    attention_entropy: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    router_signal: torch.Tensor | None = field(default=None, metadata=_PER_TOKEN)
    token_counts: torch.Tensor | None = None
    step: int | None = None
    total_steps: int | None = None
    memory: Mapping[str, torch.Tensor] | None = None

    def signal(self, name: str) -> Any:
        """The named signal.

        Raises:
            MissingSignalError: if it was not supplied.
        """
        value = getattr(self, name)
        if value is None:
            raise MissingSignalError(f"the estimator needs the signal {name!r}, which was not supplied")
        return value

    def taught(self, response_mask: torch.Tensor) -> torch.Tensor:
        """The mask's tokens whose response has a teacher, (B, T) bool."""
        if self.has_teacher is None:
            return response_mask
        return response_mask & self.has_teacher.to(response_mask.device)[:, None]

    def checked(self, response_mask: torch.Tensor) -> dict[str, Any]:
        """The signals by name, those per token on the mask's device.

        Raises:
            ValueError: if the shape of a signal per token is not the mask's, or there is not one `has_teacher` a row.
        """
        values = {f.name: getattr(self, f.name) for f in fields(Signals)}
        for f in fields(Signals):
            if f.metadata.get("per_token") and values[f.name] is not None:
                check_shape(f"token_signals({f.name}=...)", values[f.name], response_mask)
                values[f.name] = values[f.name].to(response_mask.device)
        if self.has_teacher is not None and self.has_teacher.shape != response_mask.shape[:1]:
            raise ValueError(
                f"token_signals(has_teacher=...) has shape {tuple(self.has_teacher.shape)} but there are "
                f"{len(response_mask)} responses: it needs one truth value for each"
            )
        return values


@dataclass(frozen=True, kw_only=True)
class TokenSignals(Signals):
    """The signals in force, and what the estimator leaves behind.

    Attributes:
        diagnostics: metric name to float.
        tokens: what a token's credit was made of, name to (B, T); see `advantage.estimators.Credit`.
        remembered: what it wants to be handed as `memory` in the next step; empty for those that remember nothing.
    """

    diagnostics: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    remembered: dict[str, torch.Tensor] = field(default_factory=dict)


_current: contextvars.ContextVar[TokenSignals | None] = contextvars.ContextVar("token_signals", default=None)


@contextmanager
def token_signals(**signals: Any) -> Iterator[TokenSignals]:
    """Supply token signals to the estimators that are called within the block; see the module's example.

    Args:
        signals: fields of `Signals` by name.

    Yields:
        The `TokenSignals`, whose `diagnostics`, `tokens` and `remembered` hold what the estimator leaves.

    Raises:
        TypeError: if a name is no signal.
    """
    in_force = TokenSignals(**signals)
    token = _current.set(in_force)
    try:
        yield in_force
    finally:
        _current.reset(token)


def current_signals() -> TokenSignals | None:
    """The signals of the innermost `token_signals` block around the caller, or None."""
    return _current.get()
