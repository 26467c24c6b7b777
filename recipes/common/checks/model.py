"""Refusals of the model: no such folder, a tokenizer without a template, an attention that cannot compute it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from recipes.common.method import Method

# Folders that experiments expect, by their last two parts, and what makes them.
_MADE_BY = {
    ("smollm2", "converted"): "python -m recipes.smollm2.convert",
    ("smollm2", "warm"): "make smollm2, or the commands in recipes/smollm2/README.md",
}


def model(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a model that cannot be found, has no tokenizer for chats, or that the chosen attention cannot compute.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    path = str(cfg.actor_rollout_ref.model.path)
    expanded = Path(path).expanduser()
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") != 1
    if looks_local and not expanded.is_dir():
        made_by = _MADE_BY.get(expanded.parts[-2:])
        fix = f"made by: {made_by}" if made_by else "give a folder with a Hugging Face model, or a hub name"
        yield f"actor_rollout_ref.model.path={path}: no such folder; {fix}"
        return
    from transformers import AutoTokenizer

    source = str(expanded) if looks_local else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as local_error:
        unreachable = None if looks_local else _hub_unreachable(path)
        if looks_local or unreachable:
            reason = unreachable or (str(local_error).strip().splitlines() or [type(local_error).__name__])[0]
            yield (
                f"actor_rollout_ref.model.path={path}: its tokenizer cannot be loaded ({reason}); give a folder with a "
                "complete model, or download it where there is a network"
            )
            return
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    yield from _architecture(cfg, method, source)
    if not tokenizer.chat_template and not cfg.actor_rollout_ref.model.custom_chat_template:
        yield (
            f"actor_rollout_ref.model.path={path}: its tokenizer has no chat template, so prompts cannot be "
            "rendered; use an instruction-tuned model, or set actor_rollout_ref.model.custom_chat_template"
        )


def _architecture(cfg: DictConfig, method: Method, source: str) -> Iterator[str]:
    """What the model's configuration rules out: an attention, and a teacher of mixed logits."""
    implementation = cfg.actor_rollout_ref.model.override_config.get("attn_implementation", "flash_attention_2")
    mixes = method.uses_teacher and method.weights.passes > 1
    if implementation == "flash_attention_2" and not mixes:  # verl's default; `machine.software` looks for it
        return
    from transformers import AutoConfig

    from workers.attention import attention_problems
    from workers.training.head import after_the_head

    try:
        model_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield f"actor_rollout_ref.model.path={source}: config.json cannot be loaded ({reason}); give a complete model"
        return
    if implementation != "flash_attention_2":
        yield from attention_problems(model_config, str(implementation), str(cfg.trainer.device))
    obstacle = after_the_head(model_config) if mixes else None
    if obstacle is not None:
        yield (
            f"self_distill.teacher.weights={method.weights.weights}: it mixes the logits of two passes, and "
            f"this model cannot be scored from its head's inputs: {obstacle}; set it to ema or frozen"
        )


def _hub_unreachable(name: str) -> str | None:
    """Why a model cannot be had from the hub, or None; asks once, where transformers would retry for a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "not in the local cache, and HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(f"{constants.ENDPOINT}/{name}", timeout=10).status_code
    except Exception:  # no network, no name service, a proxy's refusal: each library behind this has its own classes
        return f"not in the local cache, and {constants.ENDPOINT} does not answer"
    return f"the hub knows no such model (status {status})" if status == 404 else None
