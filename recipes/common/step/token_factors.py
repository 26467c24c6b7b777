"""Factors of a divergence's tokens, made by the trainer over the whole batch: workers see parts of it only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_to_nested

from advantage import TokenSignals
from advantage.token_weights import forward_shares, weigh_tokens
from recipes.common.method import Method
from recipes.common.step.signals import Rewards, Scores
from workers.training.packing import FORWARD_SHARES, WEIGHTS


@dataclass(frozen=True)
class TokenFactors:
    """A number for each token of the batch, which its divergence is multiplied or mixed by.

    Attributes:
        name: of the field in samples of responses.
        field: of the batch, where workers read it.
        values: (B, T) fp32.
        metrics: scalars of the step by name.
    """

    name: str
    field: str
    values: torch.Tensor
    metrics: dict[str, float]

    def put(self, batch: KVBatchMeta, nested_mask: torch.Tensor) -> None:
        """Write the values beside the batch's other fields.

        Args:
            batch: keys of the batch.
            nested_mask: jagged (B, T_i) response mask, whose lengths the field takes.
        """
        nested = {self.field: response_to_nested(self.values, nested_mask)}
        fields = TensorDict(nested, batch_size=len(batch.keys))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def token_weights(method: Method, signals: TokenSignals, scores: Scores, rewards: Rewards) -> TokenFactors | None:
    """The divergence's weights, 0 in responses without a teacher, whose tokens still count in the mean.

    Args:
        method: what is learned.
        signals: of the step's tokens.
        scores: of student and teacher.
        rewards: of the same rows.

    Returns:
        None where every token weighs 1. Where responses may lack a teacher they always carry weights, so that every
        step's batch looks alike.
    """
    if method.token_weight is None:
        lacking = method.loss.active and scores.has_teacher is not None
        return TokenFactors("divergence_weight", WEIGHTS, scores.taught.float(), {}) if lacking else None
    made = weigh_tokens(method.token_weight, method.weight_params, signals, **_rows(scores, rewards))
    return TokenFactors("divergence_weight", WEIGHTS, *made)


def forward_share(method: Method, signals: TokenSignals, scores: Scores, rewards: Rewards) -> TokenFactors | None:
    """The tokens' shares of the forward KL where both KLs are mixed token by token, else None.

    Args:
        method: what is learned.
        signals: of the step's tokens.
        scores: of student and teacher.
        rewards: of the same rows.
    """
    if method.mixing is None:
        return None
    made = forward_shares(method.mixing, method.mixing_params, signals, **_rows(scores, rewards))
    return TokenFactors("forward_share", FORWARD_SHARES, *made)


def _rows(scores: Scores, rewards: Rewards) -> dict[str, torch.Tensor]:
    return {"response_mask": scores.mask, "equal_reward_rows": rewards.equal_rows}
