"""verl's agent-loop manager, for rollouts that are handled together instead of one by one.

verl's own worker instantiates an agent loop, asks a server, calls the reward worker and writes to TransferQueue once
for every response: about 20 ms of a core each.  A single-turn rollout needs nothing of its own: here one agent loop
serves all, prompts are rendered once, and the responses of a group are asked for, graded and written together.  A group
is what one batch of the transformers server holds (`rollout.max_num_seqs` responses, whole prompts), and a prompt's
responses with any other server, so that grading goes on beside generation.

What is sampled, stored and graded is what verl's worker samples, stores and grades; rows that need more than a single
turn of text (other agent loops, images, verl's distillation, full determinism) go through verl's worker.  It is chosen
by ``rollout.agent.agent_loop_manager_class``.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import torch
import transfer_queue as tq
from tensordict import NonTensorData, TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.protocol import DataProto
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, apply_greedy_sampling_params
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from workers.rollout.agent_loop import NAME, SeededSingleTurnAgentLoop
from workers.rollout.server import NAME as TRANSFORMERS
from workers.rollout.server import server_name
from workers.verl_private import agent_loop_worker

logger = logging.getLogger(__name__)

# A column of token ids that are a row's prompt in the place of its chat; they may be longer than the rollout's prompts.
PROMPT_IDS = "prompt_token_ids"


@dataclass
class Rollout:
    """One response to come.

    Attributes:
        row: the dataset's row as verl's agent loops get it.
        session: its place in its group.
        prompt_ids: token ids of the prompt.
        sampling_params: its request's, with its seed.
        output: the response, once it is there.
        error: why there is none.
    """

    row: dict[str, Any]
    session: int
    prompt_ids: list[int]
    sampling_params: dict[str, Any]
    output: AgentLoopOutput | None = None
    error: BaseException | None = None

    @property
    def stored_columns(self) -> dict[str, Any]:
        """The row's columns that verl stores with each response."""
        return {**self.row, "session_id": self.session}


AgentLoopWorkerTQ: type = agent_loop_worker()


class BurstAgentLoopWorker(AgentLoopWorkerTQ):
    """verl's agent-loop worker, which takes single-turn rows together."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop = SeededSingleTurnAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=self.llm_client,
            tokenizer=self.tokenizer,
            processor=self.processor,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            hf_model_type=self.hf_model_type,
        )
        trainer = self.config.trainer
        self.servers = (
            [ray.get_actor(server_name(rank)) for rank in range(trainer.n_gpus_per_node * trainer.nnodes)]
            if self.rollout_config.name == TRANSFORMERS
            else []
        )

    async def generate_sequences(self, batch: TensorDict) -> None:
        """Start the rollouts of a batch of prompts; their results go to TransferQueue.

        Args:
            batch: verl's, one row for each prompt; "validate" among its non-tensors chooses `rollout.val_kwargs`.
        """
        validate = "validate" in batch and bool(batch["validate"])
        rows = rows_of(batch.exclude("validate"))
        if not self._are_single_turns(rows):
            if any(PROMPT_IDS in row for row in rows):
                raise ValueError(f"verl's agent-loop worker renders prompts itself and would not read {PROMPT_IDS}")
            await super().generate_sequences(batch)
            return
        task = asyncio.create_task(self._burst(rows, validate))
        self.background_tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self.background_tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log([task.exception()], ["of a batch"])

    async def wait(self) -> None:
        """Return once everything that was started is in TransferQueue."""
        while self.background_tasks:
            await asyncio.wait(self.background_tasks)

    def _are_single_turns(self, rows: Sequence[dict[str, Any]]) -> bool:
        loops = {row.get("agent_name", self.rollout_config.agent.default_agent_loop) for row in rows}
        return not (
            loops - {NAME} or self.processor or self.distillation_enabled or self.rollout_config.full_determinism
        )

    async def _burst(self, rows: Sequence[dict[str, Any]], validate: bool) -> None:
        prompts: list[list[Rollout]] = []
        for row in rows:
            try:
                prompts.append(self._rollouts(row, validate))
            except Exception as error:
                _log([error], [row["uid"]])
                await _publish([row["uid"]], "failure", validate)
            else:
                if not prompts[-1]:  # a row may ask for none
                    await _publish([row["uid"]], "finished", validate)
        prompts = [rollouts for rollouts in prompts if rollouts]
        # Equal sets of prompts make equal batches, whatever the order of the rows.
        prompts.sort(key=lambda rollouts: (rollouts[0].prompt_ids, str(rollouts[0].row.get("index"))))
        size = self._prompts_of_a_group(prompts)
        groups = [list(chain(*prompts[start : start + size])) for start in range(0, len(prompts), size)]
        await asyncio.gather(*(self._group(group, number, validate) for number, group in enumerate(groups)))

    def _prompts_of_a_group(self, prompts: Sequence[Sequence[Rollout]]) -> int:
        if not self.servers or not prompts:
            return 1
        responses = max(len(rollouts) for rollouts in prompts)
        share = -(-len(prompts) // len(self.servers))
        return max(min(self.rollout_config.max_num_seqs // responses, share), 1)

    def _rollouts(self, row: dict[str, Any], validate: bool) -> list[Rollout]:
        """The prompt's rollouts: the keys of the row that verl consumes are taken out."""
        row.pop("agent_name", None)
        config = self.rollout_config
        sampling, count = (config.val_kwargs, config.val_kwargs.n) if validate else (config, config.n)
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": 1.0,
            "logprobs": config.calculate_log_probs,
        }
        count = int(row.pop("__rollout_n__", count))
        if not row.pop("__do_sample__", True) and not validate:
            apply_greedy_sampling_params(params)
        given = row.pop(PROMPT_IDS, None)
        prompt_ids = self.agent_loop.prompt_ids(row["raw_prompt"]) if given is None else [int(i) for i in given]
        if given is not None:  # servers would take what is longer than the rollout's prompts off the response
            params["max_tokens"] = config.response_length
        return [
            Rollout(row, session, prompt_ids, {**params, "seed": self.agent_loop.seed({**row, "session_id": session})})
            for session in range(count)
        ]

    async def _group(self, group: Sequence[Rollout], number: int, validate: bool) -> None:
        """From requests to stored, graded responses, and the status of every prompt of the group."""
        uids = list(dict.fromkeys(rollout.row["uid"] for rollout in group))
        try:
            await self._respond(group, number)
            await self._grade([rollout for rollout in group if rollout.error is None])
            await _store([rollout for rollout in group if rollout.error is None], validate)
        except Exception as error:
            for rollout in group:
                rollout.error = rollout.error or error
        failed = {rollout.row["uid"] for rollout in group if rollout.error is not None}
        if failed:
            _log([rollout.error for rollout in group if rollout.error is not None], sorted(failed))
        for status, keys in (("failure", failed), ("finished", set(uids) - failed)):
            if keys:
                await _publish([uid for uid in uids if uid in keys], status, validate)

    async def _respond(self, group: Sequence[Rollout], number: int) -> None:
        """Fill in `output`, or `error` where a request failed."""
        start = time.perf_counter()
        if self.servers:
            answers: Sequence[Any] = await self.servers[number % len(self.servers)].generate_batch.remote(
                [rollout.prompt_ids for rollout in group], [rollout.sampling_params for rollout in group]
            )
        else:
            answers = await asyncio.gather(
                *(
                    self.llm_client.generate(
                        request_id=uuid4().hex, prompt_ids=rollout.prompt_ids, sampling_params=rollout.sampling_params
                    )
                    for rollout in group
                ),
                return_exceptions=True,
            )
        seconds = time.perf_counter() - start
        for rollout, answer in zip(group, answers, strict=True):
            if isinstance(answer, BaseException):
                rollout.error = answer
            else:
                rollout.output = self.agent_loop.output(rollout.prompt_ids, answer, seconds)

    async def _grade(self, group: Sequence[Rollout]) -> None:
        """Fill in rewards, or `error` where the reward function raised."""
        if not group or self.reward_loop_worker_handles is None:
            return
        start = time.perf_counter()
        share = -(-len(group) // len(self.reward_loop_worker_handles))
        parts = [group[first : first + share] for first in range(0, len(group), share)]
        graded = await asyncio.gather(
            *(_grades(handle, part) for handle, part in zip(self.reward_loop_worker_handles, parts, strict=False))
        )
        seconds = time.perf_counter() - start
        for rollout, result in zip(group, (result for part in graded for result in part), strict=True):
            if isinstance(result, BaseException):
                rollout.error = result
            else:
                rollout.output.reward_score = result["reward_score"]
                rollout.output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
                rollout.output.metrics.compute_score = seconds


class BurstAgentLoopManager(AgentLoopManagerTQ):
    """The manager that verl's trainer talks to, over `BurstAgentLoopWorker`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(BurstAgentLoopWorker)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Start the rollouts of a batch of prompts, and wait for those of a validation.

        verl's trainer would do nothing meanwhile but look for results.
        """
        validate = "validate" in prompts
        super().generate_sequences(prompts)
        if validate:
            self.wait()

    def wait(self) -> None:
        """Return once everything that was started is in TransferQueue; an error that ended a worker comes up here."""
        ray.get([worker.wait.remote() for worker in self.agent_loop_workers])


def rows_of(batch: TensorDict) -> list[dict[str, Any]]:
    """The rows of a batch as dictionaries; a non-tensor of the whole batch is in each."""
    columns: dict[str, Sequence[Any]] = {}
    for name, column in batch.items():
        if isinstance(column, torch.Tensor):
            columns[name] = list(column)
        else:
            columns[name] = [column.data] * len(batch) if isinstance(column, NonTensorData) else column.tolist()
    return [{name: column[i] for name, column in columns.items()} for i in range(len(batch))]


async def _grades(reward_worker: Any, group: Sequence[Rollout]) -> list[Any]:
    """What the reward worker says of each response; an exception where it raised."""
    data = reward_data(group)
    try:
        return await reward_worker.compute_score_batch.remote(data)
    except Exception:  # of one response, perhaps: the others keep their rewards
        calls = [reward_worker.compute_score.remote(data[i : i + 1]) for i in range(len(group))]
        return await asyncio.gather(*calls, return_exceptions=True)


def reward_data(group: Sequence[Rollout]) -> DataProto:
    """The batch that verl's reward managers read: padded (B, ...) tensors, and the rows' columns as objects."""
    prompts = [torch.tensor(rollout.output.prompt_ids, dtype=torch.int64) for rollout in group]
    responses = [torch.tensor(rollout.output.response_ids, dtype=torch.int64) for rollout in group]
    sides = {"left": prompts, "right": responses}  # verl's: prompts end where responses begin
    ids = [pad_sequence(rows, batch_first=True, padding_side=side) for side, rows in sides.items()]
    masks = [
        pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        for side, rows in sides.items()
    ]
    mask = torch.cat(masks, dim=1)
    tensors = {
        "prompts": ids[0],
        "responses": ids[1],
        "input_ids": torch.cat(ids, dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    objects: dict[str, list[Any]] = {
        # A copy for each response: reward managers write into `extra_info`, and several run at a time.
        name: [copy.deepcopy(rollout.stored_columns[name]) for rollout in group]
        for name in group[0].stored_columns
    }
    objects["__num_turns__"] = [rollout.output.num_turns for rollout in group]
    objects["tool_extra_fields"] = [rollout.output.extra_fields for rollout in group]
    objects["prompt_len"] = [len(prompt) for prompt in prompts]
    objects["response_len"] = [len(response) for response in responses]
    return DataProto(
        batch=TensorDict(tensors, batch_size=len(group)),
        non_tensor_batch={name: _object_array(values) for name, values in objects.items()},
    )


def _object_array(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def stored_fields(rollout: Rollout) -> dict[str, Any]:
    """The fields of a response in TransferQueue, as verl's worker stores them."""
    fields = {**rollout.output.as_dict(), **rollout.stored_columns}
    fields.pop("multi_modal_data", None)
    fields["loss_mask"] = fields["response_mask"]
    fields["input_ids"] = torch.cat([fields["prompts"], fields["responses"]])
    fields["position_ids"] = torch.arange(len(fields["input_ids"]))
    fields["multi_modal_inputs"] = {}
    return fields


async def _store(group: Sequence[Rollout], validate: bool) -> None:
    if not group:
        return
    fields = [stored_fields(rollout) for rollout in group]
    tags = [
        {
            "status": "success",
            "prompt_len": len(field["prompts"]),
            "response_len": len(field["responses"]),
            "seq_len": len(field["input_ids"]),
            "global_steps": field["global_steps"],
            "min_global_steps": field["extra_fields"].get("min_global_steps"),
            "max_global_steps": field["extra_fields"].get("max_global_steps"),
        }
        for field in fields
    ]
    await tq.async_kv_batch_put(
        keys=[f"{rollout.row['uid']}_{rollout.session}_0" for rollout in group],
        fields=list_of_dict_to_tensordict(fields),
        tags=tags,
        partition_id=_partition(validate),
    )


async def _publish(uids: Sequence[str], status: str, validate: bool) -> None:
    """Tell verl's replay buffer that prompts are done."""
    tags = [{"status": status} for _ in uids]
    await tq.async_kv_batch_put(keys=list(uids), tags=tags, partition_id=_partition(validate))


def _partition(validate: bool) -> str:
    return "val" if validate else "train"


def _log(errors: Sequence[BaseException | None], uids: Sequence[str]) -> None:
    error = next(error for error in errors if error is not None)
    logger.error(
        "%d rollouts of the prompts %s failed, the first with:",
        len(errors),
        ", ".join(uids),
        exc_info=(type(error), error, error.__traceback__),
    )
