"""Makes our attention, rollout, agent loops and engines known to verl in the process that imports this.

It is the value of ``actor_rollout_ref.model.external_lib``, which verl imports in the trainer, the training workers,
the agent-loop workers and the rollout servers.
"""

from __future__ import annotations

import verl.utils.torch_functional
from torch import Tensor
from verl.utils.device import get_device_name
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead
from verl.workers.rollout.replica import RolloutReplicaRegistry

# These register themselves.
import workers.attention
import workers.rollout.agent_loop  # noqa: F401
from workers.divergence import token_log_probs
from workers.verl_private import ROLLOUT_ADAPTERS


def _load_replica() -> type:
    from workers.rollout.server import TransformersReplica  # imports transformers' models: only to build a rollout

    return TransformersReplica


def _load_vllm_replica() -> type:
    from workers.cpu.vllm import CPUvLLMReplica

    return CPUvLLMReplica


def log_probs_of(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) under softmax(logits), in fp32; differentiable.

    verl's own, where flash-attn is absent, takes one row of the logits at a time and rounds to the logits' 16 bits.

    Args:
        logits: (..., V).
        labels: (...) token ids.

    Returns:
        (...) fp32.
    """
    return token_log_probs(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)).view(labels.shape)


verl.utils.torch_functional.logprobs_from_logits_v2 = log_probs_of
RolloutReplicaRegistry.register("transformers", _load_replica)
ROLLOUT_ADAPTERS[("transformers", "async")] = "workers.rollout.server.TransformersAdapter"
if get_device_name() == "cpu":
    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)
    # verl offers its FSDP2 engine for cuda and npu only, though nothing in it names either.
    EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
