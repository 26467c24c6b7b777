"""verl's single-turn agent loop with a seed for every response, and one that responds with the data's solution.

verl leaves sampling to the engine's own random state, so a stopped and resumed run draws other responses than one that
ran through.  Here each response's seed is a hash of what identifies it (run seed, training step, dataset row, position
in its group) and travels in the sampling parameters, which both the transformers server and vLLM honour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

from workers.rollout.generation import response_seed
from workers.rollout.thinking import with_thinking_closed

NAME = "seeded_single_turn"  # the value of actor_rollout_ref.rollout.agent.default_agent_loop
REFERENCE = "reference"  # of training rows where self_distill.responses=reference


class ClosedThinkingAgentLoop(SingleTurnAgentLoop):
    """verl's single turn, whose prompts end outside of a thinking block where thinking is off."""

    def close_thinking(self, prompt_ids: Sequence[int]) -> list[int]:
        """A prompt's ids, with the thinking closed where it should be off."""
        return with_thinking_closed(self.tokenizer, prompt_ids, self.apply_chat_template_kwargs)

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """verl's, with the thinking closed where it should be off."""
        return self.close_thinking(await super().ct_build_initial_tokens(*args, **kwargs))


@register(NAME)
class SeededSingleTurnAgentLoop(ClosedThinkingAgentLoop):
    """One prompt, one response, one seed.

    `run` is verl's, for its own worker.  `workers.rollout.bursts` takes many at a time and calls the parts of it that
    text needs: `prompt_ids`, `seed`, `output`.
    """

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """verl's run, with the response's seed among the sampling parameters.

        Args:
            sampling_params: verl's for this response.
            priority: the request's at the server.
            kwargs: columns of the dataset's row.
        """
        return await super().run({**sampling_params, "seed": self.seed(kwargs)}, priority=priority, **kwargs)

    def seed(self, row: Mapping[str, Any]) -> int | None:
        """The seed of one response; None if `self_distill.seeded_rollouts` is false.

        Args:
            row: the dataset's, with ``global_steps`` and ``session_id``.
        """
        if not OmegaConf.select(self.config, "self_distill.seeded_rollouts", default=True):
            return None
        return response_seed(
            self.rollout_config.seed,
            int(row["global_steps"]),
            int(row.get("index", 0)),
            int(row["session_id"]),
            [message["content"] for message in row["raw_prompt"]],
        )

    def prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of the prompt, cut to the rollout's prompt length as verl cuts them."""
        ids = self.continuous_token_builder.build_initial_tokens(list(messages))
        return self.close_thinking(self._cap_text_prompt_length(ids))

    def output(self, prompt_ids: Sequence[int], answer: TokenOutput, seconds: float) -> AgentLoopOutput:
        """The output that `run` makes of a server's answer.

        Args:
            prompt_ids: the prompt that was sent.
            answer: what the server gave.
            seconds: how long it took.
        """
        builder, has_log_probs = self.continuous_token_builder, bool(answer.log_probs)
        merged = builder.merge_assistant_tokens(list(prompt_ids), answer.token_ids)
        mask, log_probs = builder.align_response_metadata(
            merged, [], [] if has_log_probs else None, assistant_logprobs=answer.log_probs if has_log_probs else None
        )
        split, limit = len(merged.token_ids) - len(mask), self.response_length
        steps = answer.extra_fields.get("global_steps")
        fields = {"min_global_steps": steps, "max_global_steps": steps, **answer.extra_fields}
        return AgentLoopOutput(
            prompt_ids=merged.token_ids[:split],
            response_ids=merged.token_ids[split:][:limit],
            response_mask=mask[:limit],
            response_logprobs=log_probs[:limit] if log_probs else None,
            routed_experts=None if answer.routed_experts is None else answer.routed_experts[: split + limit],
            multi_modal_data={},
            mm_processor_kwargs={},
            mm_processor_output=None,
            num_turns=2,
            metrics=AgentLoopMetrics(
                generate_sequences=seconds,
                num_preempted=-1 if answer.num_preempted is None else answer.num_preempted,
            ),
            extra_fields={**fields, "turn_scores": [], "tool_rewards": []},
        )


@register(REFERENCE)
class ReferenceAgentLoop(ClosedThinkingAgentLoop):
    """The row's ``solution`` in the place of a sampled response: what supervised fine-tuning trains on."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """The row's solution and the end of its turn, cut to the response length, in the form of a sampled response.

        Args:
            sampling_params: not needed, nothing is sampled.
            priority: not needed.
            kwargs: columns of the dataset's row.

        Raises:
            ValueError: if the row has no solution.
        """
        solution = str(kwargs.get("solution") or "").strip()
        if not solution:
            raise ValueError("self_distill.responses=reference: a row has no solution to train on")
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        # The end of the turn is learned too; of a solution that is cut there is none.
        response = [*self.tokenizer.encode(solution, add_special_tokens=False), self.tokenizer.eos_token_id]
        response = response[: self.response_length]
        step = int(kwargs["global_steps"])
        # verl counts a response's staleness by the last two.
        steps = {"global_steps": step, "min_global_steps": step, "max_global_steps": step}
        return AgentLoopOutput(
            prompt_ids=list(prompt),
            response_ids=response,
            response_mask=[1] * len(response),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={**steps, "turn_scores": [], "tool_rewards": []},
        )
