"""The names of verl 0.9.1 that we use although verl does not offer them as an interface.

Imports of such names stand here; methods of verl's trainer that `recipes.common.step` overrides are listed in
`OVERRIDDEN_STAGES`.  `tests/workers/test_verl_contract.py` checks every one of them against the installed verl, so that
an upgrade fails there and not in the middle of a run.
"""

from __future__ import annotations

import os

from verl.utils import torch_functional

# Rollout adapters have a table but no function that adds to it.
from verl.workers.rollout.base import _ROLLOUT_REGISTRY as ROLLOUT_ADAPTERS

__all__ = [
    "ENGINE_ATTRIBUTES",
    "ENGINE_MEMBERS",
    "OVERRIDDEN_STAGES",
    "ROLLOUT_ADAPTERS",
    "agent_loop_worker",
    "has_exact_log_probs",
]

# Method of verl's PPOTrainer -> its parameters. We override these and call them through super().
OVERRIDDEN_STAGES: dict[str, tuple[str, ...]] = {
    "_init_resource_pool_mgr": ("self",),
    "_setup": ("self",),
    "_load_checkpoint": ("self",),
    "_save_checkpoint": ("self",),
    "_submit_batch_to_rollout": ("self", "batch"),
    "_balance_batch": ("self", "batch", "metrics", "logging_prefix", "keep_minibatch"),
    "_compute_old_log_prob": ("self", "batch", "metrics"),
    "_compute_ref_log_prob": ("self", "batch", "metrics"),
    "_compute_advantage": ("self", "batch", "metrics"),
    "_update_actor": ("self", "batch", "metrics"),
    "_compute_metrics": ("self", "batch", "metrics", "timing_raw", "global_steps", "epoch"),
    "_validate": ("self",),
    "_maybe_log_val_generations": ("self", "inputs", "outputs", "scores"),
    "_dump_generations": (
        "self",
        "inputs",
        "outputs",
        "gts",
        "scores",
        "reward_extra_infos_dict",
        "dump_path",
    ),
    "_val_metrics_update": (
        "self",
        "data_sources",
        "sample_uids",
        "reward_extra_infos_dict",
        "sample_turns",
        "expected_acc_counts",
    ),
}

# Of verl's FSDP engine, used or extended by `workers.training.engine`.
ENGINE_MEMBERS: tuple[str, ...] = (
    "_build_module",
    "_build_lora_module",
    "_build_fsdp_module",
    "initialize",
    "prepare_model_inputs",
    "prepare_model_outputs",
    "disable_adapter",
    "get_data_parallel_group",
    "forward_step",
    "infer_batch",
    "lr_scheduler_step",
    "_build_lr_scheduler",
    "save_checkpoint",
    "load_checkpoint",
    "to",
)
ENGINE_ATTRIBUTES: tuple[str, ...] = (
    "_is_lora",
    "_is_offload_param",
    "_uses_fsdp2_cpu_offload_policy",
    "_autocast_dtype",
    "rank",
    "optimizer_config",
)


def has_exact_log_probs() -> bool:
    """Whether verl takes log-probs of 16-bit logits in fp32: by flash-attn's cross-entropy, where it may."""
    found = torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE
    return found and os.environ.get("VERL_DISABLE_FLASH_ATTN_CE", "0") != "1"


def agent_loop_worker() -> type:
    """verl's `AgentLoopWorkerTQ`: the class under its `@ray.remote`, which itself cannot be extended.

    Importing that module needs Ray's decorators and TransferQueue; the training engine, which also imports from here,
    runs without them.
    """
    from verl.trainer.ppo.v1 import agent_loop_tq

    return agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__
