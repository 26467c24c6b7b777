"""Refusals of the model: where it is, and what its tokenizer can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from recipes.common.method import Method


def model(cfg: DictConfig, method: Method) -> Iterator[str]:
    path = str(cfg.actor_rollout_ref.model.path)
    expanded = Path(path).expanduser()
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") != 1
    if looks_local and not expanded.is_dir():
        yield (
            f"actor_rollout_ref.model.path={path}: no such folder; give a folder with a Hugging Face model, or a hub "
            "name"
        )
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
    if not tokenizer.chat_template and not cfg.actor_rollout_ref.model.custom_chat_template:
        yield (
            f"actor_rollout_ref.model.path={path}: its tokenizer has no chat template, so prompts cannot be "
            "rendered; use an instruction-tuned model, or set actor_rollout_ref.model.custom_chat_template"
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
