"""A verl rollout over transformers generation: the engine of machines without vLLM, with or without a GPU.

Three parts, in verl's terms.  `TransformersServer` is a Ray actor that holds a copy of the policy and answers
``generate`` requests; whatever waits when it is free runs as one batch.  `TransformersReplica` starts one server beside
each training worker.  `TransformersAdapter` lives in the training worker and sends the new weights to the server after
each update.  Nothing here is for CPUs only, but on GPUs vLLM is faster: here nothing joins a batch that has begun.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name, get_resource_name
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from workers.rollout.generation import SamplingParams, generate_batch, stop_token_ids

NAME = "transformers"  # the value of actor_rollout_ref.rollout.name


def server_name(replica_rank: int) -> str:
    """Name of a replica's Ray actor; Ray's namespace, one for each run, keeps runs apart."""
    return f"transformers_server_{replica_rank}"


@dataclass
class _Request:
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    answer: asyncio.Future


class TransformersServer:
    """Answers generation requests with the policy's current weights, in batches.

    `generate_batch` takes many at a time; requests that come one by one (`generate`) are gathered by a loop, which
    takes what waits when the server is free.  Either way they are grouped by sampling parameters, at most
    ``max_num_seqs`` together, and ordered by prompt and seed, so equal sets of requests make equal batches whatever the
    order in which they came.

    Args:
        config: verl's rollout configuration.
        model_config: verl's model configuration; says where the initial weights are.
        replica_rank: number of the training worker that sends its weights.
    """

    GATHER_SECONDS = 0.02  # requests of one training step arrive in a burst: wait this long for the burst to end

    def __init__(self, config: RolloutConfig, model_config: Any, replica_rank: int):
        from transformers import AutoModelForCausalLM

        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config)
        self.replica_rank = replica_rank
        self.global_steps = 0
        tokenizer = self.model_config.tokenizer
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        stops = stop_token_ids(tokenizer, self.model_config.generation_config)
        self.stop_token_ids = [] if self.config.ignore_eos else stops
        model = AutoModelForCausalLM.from_pretrained(
            self.model_config.local_path,
            dtype=PrecisionType.to_dtype(self.config.dtype),
            attn_implementation=self.model_config.override_config.get("attn_implementation", "sdpa"),
            trust_remote_code=False,
        )
        self.model = model.to(get_device_name()).eval()
        if get_device_name() == "cpu":
            from workers.cpu.products import use_onednn

            use_onednn(model.config)
        self._weights = dict(self.model.state_dict(keep_vars=True))
        self._waiting: list[_Request] = []
        self._loop_task: asyncio.Task | None = None
        self._busy = asyncio.Lock()  # held while generating and while weights change: never both at once

    async def ready(self) -> str:
        """The server's address in verl's tables; requests go through the actor handle, so any unique name will do."""
        return server_name(self.replica_rank)

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """Generate one response; this is verl's server interface, token ids in and token ids out.

        Args:
            prompt_ids: token ids of the prompt.
            sampling_params: verl's, with "seed"; without one it is drawn.
            request_id: verl's name for the request; not needed here.
            _: what else verl sends with a request.
        """
        request = self._request(prompt_ids, sampling_params)
        self._waiting.append(request)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._serve())
        return await request.answer

    async def generate_batch(
        self, prompts: list[list[int]], sampling_params: list[dict[str, Any]]
    ) -> list[TokenOutput | Exception]:
        """Generate a response to each prompt, in batches of these prompts alone.

        Args:
            prompts: token ids of each.
            sampling_params: one for each prompt, as in `generate`.

        Returns:
            The responses in the order of the prompts, with an exception in the place of one that failed.
        """
        requests = [self._request(*request) for request in zip(prompts, sampling_params, strict=True)]
        async with self._busy:
            await self._answer_all(requests)
        return await asyncio.gather(*(request.answer for request in requests), return_exceptions=True)

    def _request(self, prompt_ids: list[int], sampling_params: dict[str, Any]) -> _Request:
        limit = self.config.max_model_len or self.config.prompt_length + self.config.response_length
        params = SamplingParams(
            temperature=sampling_params.get("temperature", 1.0),
            top_p=sampling_params.get("top_p", 1.0),
            top_k=sampling_params.get("top_k", -1) or -1,
            max_tokens=min(sampling_params.get("max_tokens") or self.config.response_length, limit - len(prompt_ids)),
            logprobs=bool(sampling_params.get("logprobs", False)),
        )
        seed = sampling_params.get("seed")
        if seed is None:
            seed = int.from_bytes(os.urandom(7), "big")
        return _Request(list(prompt_ids), params, int(seed), asyncio.get_running_loop().create_future())

    async def _serve(self) -> None:
        while self._waiting:
            count = -1
            while count != len(self._waiting):  # the burst has ended when a pause brings nothing new
                count = len(self._waiting)
                await asyncio.sleep(self.GATHER_SECONDS)
            async with self._busy:
                requests, self._waiting = self._waiting, []
                await self._answer_all(requests)

    async def _answer_all(self, requests: list[_Request]) -> None:
        groups = defaultdict(list)
        for request in requests:
            groups[request.params].append(request)
        for params, group in groups.items():
            group.sort(key=lambda request: (request.prompt_ids, request.seed))
            for start in range(0, len(group), self.config.max_num_seqs):
                await self._answer(params, group[start : start + self.config.max_num_seqs])

    async def _answer(self, params: SamplingParams, group: list[_Request]) -> None:
        step = self.global_steps
        try:
            outputs = await asyncio.to_thread(
                generate_batch,
                self.model,
                [request.prompt_ids for request in group],
                params,
                [request.seed for request in group],
                stop_token_ids=self.stop_token_ids,
                pad_token_id=self.pad_token_id,
            )
        except Exception as error:  # each caller gets the reason; the server lives on for the next batch
            for request in group:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        for request, output in zip(group, outputs, strict=True):
            if not request.answer.done():
                request.answer.set_result(
                    TokenOutput(
                        token_ids=output.token_ids,
                        log_probs=output.log_probs,
                        stop_reason=output.stop_reason,
                        extra_fields={"global_steps": step},
                    )
                )

    async def update_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None, last: bool) -> None:
        """Copy a bucket of named tensors into the model.

        Args:
            weights: full tensors by parameter name.
            global_steps: the training step that the weights are of; responses carry it once the last bucket is in.
            last: whether this is the last bucket.

        Raises:
            KeyError: if the model has no parameter of a name.
        """
        async with self._busy:
            with torch.no_grad():
                for name, tensor in weights.items():
                    target = self._weights.get(name)
                    if target is None:
                        # A tied head is sent under both of its names; the model keeps one.
                        if name == "lm_head.weight" and self.model.config.tie_word_embeddings:
                            continue
                        raise KeyError(f"weight sync sent {name!r}, which the rollout model does not have")
                    target.copy_(tensor)
            if last and global_steps is not None:
                self.global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Answer every waiting request as aborted; the one being generated finishes."""
        requests, self._waiting = self._waiting, []
        for request in requests:
            if not request.answer.done():
                request.answer.set_result(TokenOutput(token_ids=[], log_probs=[], stop_reason="aborted"))

    async def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """Sleeping, waking and cache control mean nothing here: the cache lives for one batch only."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = resume_generation = _nothing
    start_profile = stop_profile = _nothing


class TransformersReplica(RolloutReplica):
    """One `TransformersServer` on the node and device of its training worker."""

    async def launch_servers(self) -> None:
        """Start the server where its training worker is, on the same device.

        Raises:
            ValueError: if the configuration splits a model over several workers.
        """
        if self.world_size != 1:
            raise ValueError(
                f"rollout.tensor_model_parallel_size × data_parallel_size = {self.world_size}: the transformers "
                "rollout keeps a whole model in each server; set both to 1, or use rollout.name=vllm"
            )
        node_id, device = await self.workers[0].__ray_call__.remote(
            lambda worker: (
                ray.get_runtime_context().get_node_id(),
                ray.get_runtime_context().get_accelerator_ids()[get_resource_name()][0],
            )
        )
        server = (
            ray.remote(TransformersServer)
            .options(
                name=server_name(self.replica_rank),
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
                runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": device}},
                max_concurrency=self.max_concurrency,
            )
            .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
        )
        self.servers = [server]
        self._server_handle = server
        self._server_address = await server.ready.remote()


class TransformersAdapter(BaseRollout):
    """Sends the training worker's weights to its server; verl calls it after each update, on every rank."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *args: Any, **kwargs: Any):
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"])  # one replica a rank
        self._server: Any = None

    async def update_weights(
        self,
        weights: Generator[tuple[str, torch.Tensor], None, None],
        wire_format: str = "named_tensors",
        **kwargs: Any,
    ) -> None:
        """Send the weights in buckets, all ranks at the same time.

        Args:
            weights: (name, tensor) of every parameter; drawing one is a collective of all ranks.
            wire_format: verl's name for the form they come in; there is one here.
            kwargs: `global_steps`, the step that they are of; `peft_config` where they are an adapter's.

        Raises:
            ValueError: if they are an adapter's.
        """
        if kwargs.get("peft_config") is not None:
            raise ValueError(
                "the transformers rollout takes merged weights: set actor_rollout_ref.model.lora.merge=true with LoRA"
            )
        if self._server is None:
            self._server = ray.get_actor(server_name(self.replica_rank))
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        bucket: dict[str, torch.Tensor] = {}
        size = 0
        # Drawing a tensor is a collective under FSDP: each rank must exhaust the generator, none may stop early.
        for name, tensor in weights:
            tensor = tensor.detach().cpu()
            if bucket and size + tensor.nbytes > limit:
                await self._server.update_weights.remote(bucket, None, False)
                bucket, size = {}, 0
            bucket[name] = tensor
            size += tensor.nbytes
        await self._server.update_weights.remote(bucket, kwargs.get("global_steps"), True)

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing to release."""
