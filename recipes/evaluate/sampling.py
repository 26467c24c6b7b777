"""Sampling the responses of an evaluation: one engine for each Ray worker, any number of workers.

A call answers one problem with all of its samples.  Every response has its own seed, and with the transformers engine
a problem is a batch of its own, so a result depends neither on how many workers there are nor on what was done before
an interruption.  vLLM batches across problems, whose kernels may then differ in the last bits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from recipes.common.processes.reaper import reaper
from workers.rollout.generation import SamplingParams, generate_batch, response_seed

Task = TypeVar("Task")
RAY_STARTS = 3
Response = tuple[list[int], str]  # token ids (the stop token included), "completed" or "length"


@dataclass(frozen=True)
class EngineOptions:
    """How a model is loaded and batched; nothing here is meant to change what is sampled.

    Attributes:
        engine: "vllm" or "transformers".
        dtype: torch's name of the weights' type.
        max_model_len: vLLM's, in tokens; None for the model's own.
        tensor_parallel_size: GPUs that share a model in vLLM.
        gpu_memory_utilization: vLLM's share of a GPU's memory.
        max_num_seqs: responses at a time in vLLM.
        batch_size: responses at a time in transformers.
        gpus: for each worker.
        threads: of torch in each worker.
    """

    engine: str
    dtype: str
    max_model_len: int | None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    batch_size: int = 64
    gpus: int = 0
    threads: int = 1


def seeds_of(seed: int, problem_id: str, samples: int) -> list[int]:
    """The samples' seeds: equal for all models, so that they answer a problem with the same random numbers.

    Args:
        seed: of the evaluation.
        problem_id: the problem's.
        samples: number of responses.
    """
    return [response_seed("evaluate", seed, problem_id, number) for number in range(samples)]


class TransformersSampler:
    """A Ray actor around `workers.rollout.generation`, on a CPU or a GPU."""

    def __init__(self, model: str, stop_ids: list[int], pad_id: int, params: SamplingParams, options: EngineOptions):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=options.dtype, attn_implementation="sdpa", trust_remote_code=False
        )
        self.model = loaded.to("cuda" if options.gpus else "cpu").eval()
        if not options.gpus:
            from workers.cpu.products import use_onednn

            use_onednn(loaded.config)
        self.params, self.options, self.stop_ids, self.pad_id = params, options, stop_ids, pad_id

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def close(self) -> None:
        """Nothing outlives the actor."""

    def sample(self, prompt: list[int], seeds: list[int], params: SamplingParams | None = None) -> list[Response]:
        """Draw one response for each seed.

        Args:
            prompt: token ids.
            seeds: one a response.
            params: how; None for the worker's own.
        """
        responses: list[Response] = []
        for start in range(0, len(seeds), self.options.batch_size):
            part = seeds[start : start + self.options.batch_size]
            generated = generate_batch(
                self.model,
                [prompt] * len(part),
                params or self.params,
                part,
                stop_token_ids=self.stop_ids,
                pad_token_id=self.pad_id,
            )
            responses += [(g.token_ids, g.stop_reason) for g in generated]
        return responses


class VLLMSampler:
    """A Ray actor around vLLM's asynchronous engine: many problems are in flight at once."""

    def __init__(self, model: str, stop_ids: list[int], pad_id: int, params: SamplingParams, options: EngineOptions):
        if not options.gpus:
            from workers.cpu import VLLM_ENVIRONMENT

            for name, value in VLLM_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=model,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            tensor_parallel_size=options.tensor_parallel_size,
            # Without GPUs a share of the machine's memory, of which the cache takes a fixed part.
            gpu_memory_utilization=options.gpu_memory_utilization if options.gpus else 0.2,
            max_num_seqs=options.max_num_seqs,
            # Its build for CPUs cannot take back what a seeded request drew for a part of its prompt.
            enable_chunked_prefill=options.gpus > 0,
            skip_tokenizer_init=True,  # token ids in, token ids out
            trust_remote_code=False,
            enable_log_requests=False,
        )
        self.engine = AsyncLLM.from_engine_args(arguments)
        self.params, self.stop_ids = params, stop_ids
        self._number = itertools.count()

    async def ready(self) -> None:
        """Returns once the model is loaded."""

    async def close(self) -> None:
        """End vLLM's own processes, which hold the GPU's memory that the next model needs."""
        self.engine.shutdown()

    async def sample(self, prompt: list[int], seeds: list[int], params: SamplingParams | None = None) -> list[Response]:
        """Draw one response for each seed, all at a time.

        Args:
            prompt: token ids.
            seeds: one a response.
            params: how; None for the worker's own.
        """
        return list(await asyncio.gather(*(self._one(prompt, seed, params or self.params) for seed in seeds)))

    async def _one(self, prompt: list[int], seed: int, asked: SamplingParams) -> Response:
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.sampling_params import SamplingParams as VLLMParams

        params = VLLMParams(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            max_tokens=asked.max_tokens,
            seed=seed,
            stop_token_ids=self.stop_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        tokens = TokensPrompt(prompt_token_ids=prompt)
        async for output in self.engine.generate(tokens, params, str(next(self._number))):
            final = output
        if final is None:
            raise RuntimeError("vLLM ended a request without an output")
        completion = final.outputs[0]
        return list(completion.token_ids), "length" if completion.finish_reason == "length" else "completed"


SAMPLERS = {"vllm": VLLMSampler, "transformers": TransformersSampler}


@contextlib.contextmanager
def on_ray(workers: int, gpus: int) -> Iterator[None]:
    """Ray while the block runs: the one that runs already in this process, the cluster of RAY_ADDRESS, or processes of
    its own on this machine.

    Args:
        workers: actors at a time.
        gpus: of this machine.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers + 1, "num_gpus": gpus}
    if "RAY_ADDRESS" in os.environ:
        options = {}
    else:
        options["address"] = "local"  # never join somebody else's cluster by accident
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with reaper():
        _start_ray(options)
        try:
            yield
        finally:
            ray.shutdown()


def _start_ray(options: dict[str, Any]) -> None:
    for attempt in range(1, RAY_STARTS + 1):
        try:
            ray.init(**options)
            break
        except Exception:  # on a busy machine its processes miss Ray's fixed half minute
            ray.shutdown()
            if attempt == RAY_STARTS:
                raise
    stop_on_sigterm()  # Ray has just put a handler of its own there


def stop_on_sigterm() -> None:
    """Let a scheduler's SIGTERM end a command as Ctrl-C does, in order."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def start_workers(actor: type, count: int, options: EngineOptions, arguments: Sequence[Any]) -> list[Any]:
    """Start Ray actors, and wait until each is loaded and ready; an error of one that could not start is raised here.

    Args:
        actor: the class.
        count: number of actors.
        options: how each is loaded, and how many GPUs it takes.
        arguments: of the class.
    """
    gpus = options.gpus * options.tensor_parallel_size
    remote: Any = ray.remote(actor)
    remote = remote.options(num_gpus=gpus, num_cpus=1, max_concurrency=_concurrency(options))
    workers = [remote.remote(*arguments) for _ in range(count)]
    ray.get([worker.ready.remote() for worker in workers])
    return workers


def stop_workers(workers: Sequence[Any]) -> None:
    """Give back what the workers hold."""
    ray.get([worker.close.remote() for worker in workers])
    for worker in workers:
        ray.kill(worker)


def _concurrency(options: EngineOptions) -> int:
    # vLLM is kept full whatever the samples of a problem; a transformers worker does one problem after the other.
    return options.max_num_seqs if options.engine == "vllm" else 1


def run_on_workers(
    workers: Sequence[Any], method: str, tasks: Iterable[tuple[Task, tuple]], in_flight: int
) -> Iterator[tuple[Task, Any]]:
    """Call a method once for each task; yields (task, result) as results come.

    Args:
        workers: Ray actors.
        method: name of the method.
        tasks: (task, arguments of the call).
        in_flight: most calls at a time on one worker.

    Raises:
        ray.exceptions.RayError: if a call failed, or its worker died; what was yielded before stands.
    """
    waiting = iter(tasks)
    running: dict[Any, tuple[Task, Any]] = {}
    free = deque(worker for _ in range(in_flight) for worker in workers)
    while True:
        while free and (item := next(waiting, None)) is not None:
            task, arguments = item
            worker = free.popleft()
            running[getattr(worker, method).remote(*arguments)] = (task, worker)
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        task, worker = running.pop(done)
        free.append(worker)
        yield task, ray.get(done)
