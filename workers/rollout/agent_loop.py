"""verl's single-turn agent loop with a seed for every response.

verl leaves sampling to the engine's own random state, so a stopped and resumed run draws other responses than one that
ran through.  Here each response's seed is a hash of what identifies it (run seed, training step, dataset row, position
in its group) and travels in the sampling parameters, which both the transformers server and vLLM honour.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from workers.rollout.generation import response_seed

NAME = "seeded_single_turn"  # the value of actor_rollout_ref.rollout.agent.default_agent_loop


@register(NAME)
class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """One prompt, one response, one seed."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        seed = response_seed(
            self.rollout_config.seed,
            int(kwargs["global_steps"]),
            int(kwargs.get("index", 0)),
            int(kwargs["session_id"]),
            [message["content"] for message in kwargs["raw_prompt"]],
        )
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **kwargs)
