"""Refusals of what a run reads: the model and its tokenizer, and prepared data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from recipes.common.method import Method
from recipes.common.teacher.contexts import ALWAYS_THERE

OWN_REWARDS = "pkg://rewards.math"


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


def data(cfg: DictConfig, method: Method) -> Iterator[str]:
    for key in ("train_files", "val_files"):
        for file in _as_list(cfg.data[key]):
            path = Path(file).expanduser()
            if not path.exists():
                yield (
                    f"data.{key}: {file} does not exist; prepare it with python -m recipes.data.prepare, or "
                    f"point data.{key} "
                    "at a parquet file"
                )
            elif path.suffix == ".parquet":
                yield from _columns(cfg, method, key, path)


def _columns(cfg: DictConfig, method: Method, key: str, path: Path) -> Iterator[str]:
    import pyarrow.parquet as parquet

    try:
        present = parquet.read_schema(path).names
    except Exception as error:
        yield f"data.{key}: {path} cannot be read as parquet ({str(error).splitlines()[0]})"
        return
    required = [cfg.data.prompt_key, cfg.data.reward_fn_key, "reward_model"]
    shown: set[str] = set()
    if key == "train_files" and method.uses_teacher:
        shown = set(method.contexts.named)
    if "answer" not in present:  # it is the verifier's ground truth then
        shown.discard("answer")
    if cfg.reward.custom_reward_function.path != OWN_REWARDS:  # another reward function may give feedback itself
        shown.discard("feedback")
    if key == "train_files" and method.trains_references:
        shown.add("solution")
    required += sorted(shown & {"solution", "answer", "hint", "feedback"})
    absent = [name for name in required if name not in present]
    if absent:
        hint = ""
        if "solution" in absent and method.trains_references:
            hint = "; supervised fine-tuning needs worked solutions, as experiment=qwen3_1_7b_openthoughts has"
        elif "solution" in absent:
            hint = "; without worked solutions, show the teacher the answer: self_distill.teacher.context=answer"
        if "feedback" in absent:
            hint = "; rewards.math says nothing in words, so feedback is a column or another reward function's"
        yield f"data.{key}: {path} has no column {', '.join(absent)} (it has {', '.join(present)}){hint}"
        return
    for context in required[3:]:
        column = parquet.read_table(path, columns=[context])[context].to_pylist()
        empty = [row for row, text in enumerate(column) if not str(text or "").strip()]
        if len(empty) == len(column):
            yield f"data.{key}: {path} has an empty {context} in every row: the teacher has nothing to show"
        elif empty and context in ALWAYS_THERE:  # of the others, rows without one have no teacher and are counted
            rows = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
            yield (
                f"data.{key}: {path} has an empty {context} in {len(empty)} of {len(column)} rows (rows {rows}), "
                f"and the teacher has nothing to show there: fill or remove them"
            )


def _as_list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | ListConfig) else [value]
