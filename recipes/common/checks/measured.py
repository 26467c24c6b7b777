"""Refusals of token signals that only our engine's pass over the student's tokens measures, where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from recipes.common.method import Method
from workers.training.packing import ATTENTION_ENTROPY, ATTENTION_LAYERS


def measured(cfg: DictConfig, method: Method) -> Iterator[str]:
    """The norm of the log-prob's gradient and the attention's entropy: engine, layout and model."""
    if method.attention_layers not in ATTENTION_LAYERS:
        known = ", ".join(ATTENTION_LAYERS)
        yield f"self_distill.attention_entropy_layers={method.attention_layers}: must be one of {known}"
    if not method.measured:
        return
    what = f"the credit reads {' and '.join(method.measured)}, measured over packed rows"
    actor, arr = cfg.actor_rollout_ref.actor, "actor_rollout_ref"
    if actor.strategy != "fsdp2":
        yield f"{arr}.actor.strategy={actor.strategy}: {what} by our engine, which is FSDP2's; set it to fsdp2"
    engine = actor.get("fsdp_config", {})
    for where, node in (("actor", actor), ("actor.fsdp_config", engine)):
        shards = int(node.get("ulysses_sequence_parallel_size", 1) or 1)
        if shards > 1:
            yield f"{arr}.{where}.ulysses_sequence_parallel_size={shards}: {what}, whole on each rank; set it to 1"
    if engine.get("pad_to_length", False):
        yield f"{arr}.actor.fsdp_config.pad_to_length=true: {what}; set it to false"
    path = cfg.actor_rollout_ref.model.path
    config = _model_config(str(path))
    if config is None:  # the engine will see what it is, and refuse it
        return
    from workers.training.attention_entropy import attention_entropy_problems
    from workers.training.head import after_the_head

    reason = after_the_head(config)
    if reason:
        yield f"{arr}.model.path={path}: {reason}, and {what} needs them as they are; choose another router"
    if ATTENTION_ENTROPY in method.measured:
        override = cfg.actor_rollout_ref.model.get("override_config") or {}
        chosen = str(override.get("attn_implementation", "flash_attention_2"))
        for problem in attention_entropy_problems(config, chosen):
            yield f"{arr}.model.override_config.{problem}" if problem.startswith("attn") else problem


def _model_config(path: str) -> Any:
    """A model's transformers configuration, if it is on this machine."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        return None
