"""Makes our attention, rollout, agent loop and engines known to verl in the process that imports this.

Configured as ``actor_rollout_ref.model.external_lib``, which verl imports in the trainer, the training workers, the
agent-loop workers and the rollout servers.
"""

from __future__ import annotations

import verl.utils.torch_functional
from verl.utils.device import get_device_name
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead
from verl.workers.rollout.replica import RolloutReplicaRegistry

# These register themselves.
import workers.attention
import workers.rollout.agent_loop  # noqa: F401
from workers import log_probs
from workers.verl_private import ROLLOUT_ADAPTERS


def _load_replica() -> type:
    from workers.rollout.server import (
        TransformersReplica,  # imports transformers' models: only where a rollout is built
    )

    return TransformersReplica


def _load_vllm_replica() -> type:
    from workers.cpu.vllm import CPUvLLMReplica

    return CPUvLLMReplica


verl.utils.torch_functional.logprobs_from_logits_v2 = log_probs.from_logits  # of runs without flash-attn
RolloutReplicaRegistry.register("transformers", _load_replica)
ROLLOUT_ADAPTERS[("transformers", "async")] = "workers.rollout.server.TransformersAdapter"
if get_device_name() == "cpu":
    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)
    # verl offers its FSDP2 engine for cuda and npu only, though nothing in it names either.
    EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
