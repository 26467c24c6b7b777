"""Refusals of sizes: batches that cannot be dealt to the workers, sequences too long, CPUs that verl would wait for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from recipes.common.method import Method


def batches(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse batches that cannot be cut into whole mini-batches, or mini-batches that cannot be dealt to the workers.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    n, batch = cfg.actor_rollout_ref.rollout.n, cfg.data.train_batch_size
    mini = cfg.actor_rollout_ref.actor.ppo_mini_batch_size
    workers = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes
    if workers < 1 or mini < 1:
        return  # said of the values themselves
    if mini > batch or batch % mini:
        yield (
            f"data.train_batch_size={batch} must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}; "
            "verl would fill the last mini-batch with empty rows, which dilute its mean"
        )
    if mini * n % workers:
        yield (
            f"ppo_mini_batch_size × rollout.n = {mini * n} rollouts cannot be dealt evenly to {workers} workers: "
            "make it a multiple of them"
        )


def lengths(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse limits that the longest sequence, the teacher's included, does not fit into.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; the teacher's prompts count where it uses one.
    """
    data, actor, rollout = cfg.data, cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout
    longest = data.max_prompt_length + data.max_response_length
    what = "data.max_prompt_length + data.max_response_length"
    if rollout.max_model_len is not None and rollout.max_model_len < longest:
        yield f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than {what} = {longest}"
    answered = cfg.self_distill.teacher.max_prompt_length + data.max_response_length
    if (
        cfg.self_distill.teacher.test_freq > 0
        and rollout.max_model_len is not None
        and rollout.max_model_len < answered
    ):
        yield (
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than self_distill.teacher."
            f"max_prompt_length + data.max_response_length = {answered}, which the teacher's validation needs "
            "(self_distill.teacher.test_freq)"
        )
    if method.uses_teacher:
        with_teacher = cfg.self_distill.teacher.max_prompt_length + data.max_response_length
        if with_teacher > longest:
            longest, what = with_teacher, "self_distill.teacher.max_prompt_length + data.max_response_length"
    limits = {
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu),
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        ),
    }
    for key, (used, limit) in limits.items():
        if used and limit < longest:
            yield f"{key}={limit}: a micro-batch must hold the longest sequence, {what} = {longest}; raise it to that"


def rollout(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a rollout server, an engine or a reference model that cannot work on this device or with this model.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    rollout, model = cfg.actor_rollout_ref.rollout, cfg.actor_rollout_ref.model
    if rollout.name == "transformers":
        if rollout.tensor_model_parallel_size * rollout.data_parallel_size != 1:
            yield (
                "actor_rollout_ref.rollout.name=transformers keeps a whole model in each server: set "
                "rollout.tensor_model_parallel_size=1 and rollout.data_parallel_size=1"
            )
        if model.lora_rank > 0 and not model.lora.merge:
            yield (
                "actor_rollout_ref.rollout.name=transformers takes merged weights: set "
                "actor_rollout_ref.model.lora.merge=true"
            )
    elif cfg.trainer.device == "cpu" and rollout.name != "vllm":
        yield (
            f"actor_rollout_ref.rollout.name={rollout.name} with trainer.device=cpu: set it to transformers, or to "
            "vllm (docs/cpu.md)"
        )
    if cfg.trainer.device == "cpu" and cfg.actor_rollout_ref.actor.strategy != "fsdp2":
        yield f"actor_rollout_ref.actor.strategy={cfg.actor_rollout_ref.actor.strategy} needs a GPU: set it to fsdp2"
    lora = model.lora_rank > 0
    for key in ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward"):
        if cfg.trainer.device == "cpu" and OmegaConf.select(cfg, key) is True and not lora:
            yield (
                f"{key}=true with trainer.device=cpu: verl's reference model pins its weights for a GPU; train an "
                "adapter (actor_rollout_ref.model.lora_rank=8), whose base is the reference, or set it to false"
            )


def logical_cpus_needed(cfg: DictConfig) -> int:
    """CPUs that verl's actors reserve in Ray: 3 for each worker (its bundle), and one for each helper process."""
    workers = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes
    storage = cfg.transfer_queue.backend.SimpleStorage.num_data_storage_units
    task_runner, queue_controller, router = 1, 1, 1
    agent_loops, graders = cfg.actor_rollout_ref.rollout.agent.num_workers, cfg.reward.num_workers
    return 3 * workers + storage + agent_loops + graders + task_runner + queue_controller + router


def logical_cpus(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse fewer logical CPUs than verl's processes reserve in Ray: it would wait for the missing ones for ever.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    given = cfg.ray_kwargs.ray_init.num_cpus
    if "RAY_ADDRESS" in os.environ or (cfg.dry_run and cfg.trainer.device != "cpu"):
        return
    available, needed = given if given is not None else os.cpu_count() or 1, logical_cpus_needed(cfg)
    if available < needed:
        yield (
            f"ray_kwargs.ray_init.num_cpus={given}: {available} logical CPUs, but verl's processes reserve "
            f"{needed}, and it "
            f"waits for ever for those that are missing; set ray_kwargs.ray_init.num_cpus={needed} (a booking, "
            "not a core)"
        )
