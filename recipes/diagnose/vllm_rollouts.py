"""Rollouts of a diagnostic by vLLM: the engine of recipes/evaluate, beside the model that gives the logits.

It starts with the first request and is held until `release`, since every part of a diagnostic samples.  Random numbers
are vLLM's own: a seed gives other responses than with transformers, and equal ones only as far as vLLM's batches allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from recipes.common.checks.machine import vllm_is_for_cpus
from workers.rollout.generation import SamplingParams

if TYPE_CHECKING:
    from recipes.evaluate.sampling import EngineOptions

ENGINES = ("transformers", "vllm")
_held = ExitStack()  # Ray and the worker, from the first request to `release`


@dataclass
class VLLM:
    """An engine in a Ray worker.

    Attributes:
        folder: whole weights.
        stop_ids: ids that end a response.
        pad_id: of the model.
        options: how it is loaded.
        gpus: of this machine.
        workers: the worker, once it has started.
    """

    folder: str
    stop_ids: list[int]
    pad_id: int
    options: EngineOptions
    gpus: int
    workers: list[Any] = field(default_factory=list)

    def sample(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int], limits: Sequence[int]
    ) -> list[list[int]]:
        """Draw one continuation of each prompt, as ids with the stop token if it came.

        Args:
            prompts: token ids of each.
            params: how all of them are sampled, but for
            seeds: of each, and
            limits: the longest continuation of each, tokens.

        Raises:
            ray.exceptions.RayError: if it could not start, or failed.
        """
        from recipes.evaluate.sampling import run_on_workers

        if not self.workers:
            self._start(params)
        calls = (
            (i, (list(prompts[i]), [seeds[i]], replace(params, max_tokens=limits[i]))) for i in range(len(prompts))
        )
        found: dict[int, list[int]] = {}
        for i, [(ids, _)] in run_on_workers(self.workers, "sample", calls, self.options.max_num_seqs):
            found[i] = list(ids)
        return [found[i] for i in range(len(prompts))]

    def _start(self, params: SamplingParams) -> None:
        from recipes.evaluate.sampling import SAMPLERS, on_ray, start_workers, stop_workers

        _held.enter_context(on_ray(1, self.gpus))
        arguments = (self.folder, self.stop_ids, self.pad_id, params, self.options)
        self.workers = start_workers(SAMPLERS["vllm"], 1, self.options, arguments)
        _held.callback(stop_workers, self.workers)


def vllm_of(cfg: DictConfig, stop_ids: list[int], pad_id: int, longest: int) -> VLLM:
    """The engine that a diagnostic's configuration asks for; it is started with its first request.

    Args:
        cfg: the diagnostic's configuration.
        stop_ids: ids that end a response.
        pad_id: of the model.
        longest: tokens of the longest prompt.
    """
    import torch

    from recipes.common.models import locate, materialize
    from recipes.evaluate.sampling import EngineOptions

    on_gpu = cfg.device != "cpu"
    options = EngineOptions(
        engine="vllm",
        dtype=cfg.dtype,
        max_model_len=longest + cfg.max_tokens,
        tensor_parallel_size=cfg.vllm.tensor_parallel_size if on_gpu else 1,
        gpu_memory_utilization=cfg.vllm.gpu_memory_utilization,
        max_num_seqs=cfg.vllm.max_num_seqs,
        gpus=int(on_gpu),
    )
    folder = materialize(locate(cfg.model), Path(cfg.out) / "model")
    return VLLM(str(folder), stop_ids, pad_id, options, torch.cuda.device_count())


def release() -> None:
    """End vLLM and Ray, if this process has started them."""
    _held.close()


def engine_problem(engine: str, device: str) -> str | None:
    """What is wrong with ``engine=``; None if nothing is.

    Args:
        engine: one of `ENGINES`.
        device: of the model that gives the logits.
    """
    if engine not in ENGINES:
        return f"engine={engine}: must be {' or '.join(ENGINES)}"
    if engine == "vllm" and find_spec("vllm") is None:
        return "engine=vllm, but vLLM is not installed; set engine=transformers"
    if engine == "vllm" and device == "cpu" and not vllm_is_for_cpus():
        return "engine=vllm with device=cpu, but this vLLM needs a GPU; set device=cuda, or engine=transformers"
    return None
