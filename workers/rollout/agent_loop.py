"""verl's single-turn agent loop with a seed for every response, and one that responds with the data's solution.

verl leaves sampling to the engine's own random state, so a stopped and resumed run draws other responses than one that
ran through.  Here each response's seed is a hash of what identifies it (run seed, training step, dataset row, position
in its group) and travels in the sampling parameters, which both the transformers server and vLLM honour.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from workers.rollout.generation import response_seed

NAME = "seeded_single_turn"  # the value of actor_rollout_ref.rollout.agent.default_agent_loop
REFERENCE = "reference"  # of training rows where self_distill.responses=reference


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


@register(REFERENCE)
class ReferenceAgentLoop(SingleTurnAgentLoop):
    """The row's ``solution`` in the place of a sampled response: what supervised fine-tuning trains on."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        solution = str(kwargs.get("solution") or "").strip()
        if not solution:
            raise ValueError("self_distill.responses=reference: a row has no solution to train on")
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        # The end of the turn is learned too; of a solution that is cut there is none.
        response = [*self.tokenizer.encode(solution, add_special_tokens=False), self.tokenizer.eos_token_id]
        response = response[: self.response_length]
        return AgentLoopOutput(
            prompt_ids=list(prompt),
            response_ids=response,
            response_mask=[1] * len(response),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={"global_steps": int(kwargs["global_steps"]), "turn_scores": [], "tool_rewards": []},
        )
