"""A reward manager of verl's that also passes the response's exact length in tokens, for the overlong component.

Use: ``reward.reward_manager.source=importlib reward.reward_manager.name=LengthRewardManager
reward.reward_manager.module.path=pkg://rewards.manager``.
"""

from __future__ import annotations

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager


class LengthRewardManager(NaiveRewardManager):
    """verl's naive manager (decode, then call the reward function) with ``extra_info["response_length"]`` filled in."""

    async def run_single(self, data: DataProto) -> dict:
        """verl's hook for one sequence, the last of ``data``; adds the tokens of its response to ``extra_info``."""
        item = data[-1:][0]
        width = item.batch["responses"].shape[-1]
        extra_info = item.non_tensor_batch.get("extra_info")
        if isinstance(extra_info, dict):
            extra_info["response_length"] = int(item.batch["attention_mask"][-width:].sum())
        return await super().run_single(data)
