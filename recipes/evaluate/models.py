"""What ``model=`` may name, and how each becomes a folder that an engine can load.

hugging face     a folder with config.json and weights, or a name on the hub
adapter          a folder with adapter_config.json (PEFT LoRA): merged into its base
verl checkpoint  FSDP shards: `…/global_step_N/actor`, `…/global_step_N`; or a run directory, whose last complete
                 checkpoint is meant. verl's own merger joins the shards; it writes bfloat16.

`locate` is quick and says everything that is wrong; `materialize` does the work, once an evaluation has been accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.run_dir import CHECKPOINTS, TRACKER, checkpointed_step
from recipes.common.settings import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Located:
    """A model that exists: ``kind`` is "folder", "hub", "adapter" or "verl"; ``path`` its folder or hub name.

    ``step`` is the training step of a verl checkpoint, ``tokenizer`` where its tokenizer is, ``base`` an adapter's.
    """

    name: str
    kind: str
    path: str
    tokenizer: str
    step: int | None = None
    base: Located | None = None


def locate(name: str, base: str | None = None) -> Located:
    """Find out what a model's name means.

    Args:
        base: base model of LoRA adapters; by default the one their adapter_config.json names.

    Raises:
        SettingsError: it is not there, or is not complete; says what was looked for and how to put it right.
    """
    path = Path(name)
    if not path.exists():
        return _hub(name)
    if path.is_file():
        raise SettingsError([f"model={name} is a file; give the folder that holds the model"])
    for checkpoints in (path / CHECKPOINTS, path):
        if (checkpoints / TRACKER).exists():
            return _run(name, checkpoints)
    if (path / "actor").is_dir():
        path = path / "actor"
    if _shards(path):
        return _verl(name, path)
    if (path / ADAPTER).exists():
        return _adapter(name, path, base)
    if (path / "config.json").exists():
        if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
            raise SettingsError([f"model={name} has a config.json but no weights (*.safetensors) beside it"])
        return Located(name, "folder", str(path), _tokenizer_folder(name, path))
    if (path / "metrics.jsonl").exists() or (path / CHECKPOINTS).exists():
        raise SettingsError(
            [f"model={name} is a run directory without a complete checkpoint; train on until trainer.save_freq"]
        )
    raise SettingsError(
        [
            f"model={name} is a folder, but none of a model (config.json), an adapter ({ADAPTER}), a verl checkpoint "
            f"(model_world_size_*.pt) or a run directory ({CHECKPOINTS}/{TRACKER}); name the folder that holds one"
        ]
    )


def _hub(name: str) -> Located:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's client fails in many ways, and all end in the same advice
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError(
            [
                f"model={name} is no folder here, and the hub does not give it ({type(error).__name__}: {reason}). "
                "Check the spelling; without a network, fetch it elsewhere with `hf download` and give its folder"
            ]
        ) from error
    return Located(name, "hub", name, name)


def _run(name: str, checkpoints: Path) -> Located:
    if checkpoints.name == CHECKPOINTS:
        try:
            step = checkpointed_step(checkpoints.parent)
        except ValueError as error:
            raise SettingsError([f"model={name}: {error}"]) from error
    else:  # a plain verl run keeps its tracker wherever default_local_dir says
        text = (checkpoints / TRACKER).read_text().strip()
        step = int(text) if text.isdigit() else None
    if step is None:
        raise SettingsError([f"model={name}: {checkpoints / TRACKER} names no complete checkpoint"])
    actor = checkpoints / f"global_step_{step}" / "actor"
    if not _shards(actor):
        raise SettingsError([f"model={name}: its last complete checkpoint is step {step}, but {actor} holds no shards"])
    return _verl(name, actor)


def _shards(actor: Path) -> list[Path]:
    return sorted(actor.glob("model_world_size_*_rank_*.pt"))


def _verl(name: str, actor: Path) -> Located:
    shards = _shards(actor)
    world_sizes = {p.name.split("_")[3] for p in shards}
    if len(world_sizes) > 1:
        raise SettingsError([f"model={name}: {actor} mixes shards of {sorted(world_sizes)} workers; keep one set"])
    expected = int(world_sizes.pop())
    if len(shards) != expected:
        raise SettingsError(
            [f"model={name}: {actor} has {len(shards)} of {expected} shards; copy those of the other nodes there"]
        )
    for needed in ("fsdp_config.json", "huggingface/config.json"):
        if not (actor / needed).exists():
            raise SettingsError([f"model={name}: {actor / needed} is missing, without which verl cannot merge shards"])
    _, _, step = actor.parent.name.rpartition("_")
    return Located(
        name, "verl", str(actor), _tokenizer_folder(name, actor / "huggingface"), int(step) if step.isdigit() else None
    )


def _adapter(name: str, path: Path, base: str | None) -> Located:
    named = base or json.loads((path / ADAPTER).read_text()).get("base_model_name_or_path")
    if not named:
        raise SettingsError([f"model={name} is an adapter that names no base model; say which with base="])
    try:
        below = locate(named)
    except SettingsError as error:
        raise SettingsError(
            [f"model={name} is an adapter of {named}, which cannot be used: {p}; or set base=" for p in error.problems]
        ) from error
    tokenizer = str(path) if _has_tokenizer(path) else below.tokenizer
    return Located(name, "adapter", str(path), tokenizer, base=below)


def _has_tokenizer(path: Path) -> bool:
    return any((path / file).exists() for file in TOKENIZER_FILES)


def _tokenizer_folder(name: str, path: Path) -> str:
    return str(path) if _has_tokenizer(path) else ""


def load_tokenizer(model: Located, override: str | None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or that of ``tokenizer=``.  Raises SettingsError where there is none, or no template."""
    from transformers import AutoTokenizer

    where = override or model.tokenizer
    if not where:
        raise SettingsError(
            [
                f"model={model.name} has no tokenizer ({', '.join(TOKENIZER_FILES)}); copy its base model's files "
                "beside it, or name the base model with tokenizer="
            ]
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # corrupt files raise whatever their parser raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError([f"the tokenizer {where} of model={model.name} cannot be loaded: {reason}"]) from error
    if not tokenizer.chat_template:
        raise SettingsError(
            [f"the tokenizer {where} of model={model.name} has no chat template; name one that has with tokenizer="]
        )
    return tokenizer


def fingerprint(model: Located) -> str:
    """Twelve hex digits that tell one model's weights from another's: a hash of its files, or the hub's commit."""
    digest = hashlib.sha256()
    if model.kind == "hub":
        from transformers import AutoConfig

        commit = getattr(AutoConfig.from_pretrained(model.path, trust_remote_code=False), "_commit_hash", None)
        digest.update(f"{model.path}@{commit}".encode())
    else:
        for pattern in ("*.safetensors", "pytorch_model*.bin", "model_world_size_*_rank_*.pt", ADAPTER):
            for file in sorted(Path(model.path).glob(pattern)):
                digest.update(file.name.encode())
                with file.open("rb") as content:
                    while chunk := content.read(1 << 22):
                        digest.update(chunk)
    if model.base is not None:
        digest.update(fingerprint(model.base).encode())
    return digest.hexdigest()[:12]


def materialize(model: Located, folder: Path) -> str:
    """A folder (or hub name) with whole weights: the model itself, or ``folder`` after merging into it.

    Merging into a folder that is complete already does nothing.
    """
    if model.kind in ("folder", "hub"):
        return model.path
    if (folder / "complete").exists():
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if model.kind == "verl":
        _merge_shards(model, folder)
    elif model.base is not None:
        _merge_adapter(materialize(model.base, folder / "base"), Path(model.path), folder)
    (folder / "complete").touch()
    return str(folder)


def _merge_shards(model: Located, folder: Path) -> None:
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    actor = Path(model.path)
    merger = FSDPModelMerger(
        ModelMergerConfig(
            operation="merge",
            backend="fsdp",
            local_dir=str(actor),
            target_dir=str(folder),
            hf_model_config_path=str(actor / "huggingface"),
            trust_remote_code=False,
        )
    )
    merger.merge_and_save()
    adapter = folder / "lora_adapter"
    if adapter.exists():  # trained with LoRA: the merger keeps base and adapter apart
        if not json.loads((adapter / ADAPTER).read_text()).get("lora_alpha"):
            raise SettingsError(
                [
                    f"model={model.name}: {actor / 'lora_train_meta.json'} does not say lora_alpha, without which the "
                    "adapter would have no effect; write it there"
                ]
            )
        base = folder / "base"
        base.mkdir()
        for file in [f for f in folder.iterdir() if f.is_file()]:
            file.rename(base / file.name)
        _merge_adapter(str(base), adapter, folder)
        shutil.rmtree(base)


def _merge_adapter(base: str, adapter: Path, folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    # Added in fp32, whatever the base's type: a small update to a large bf16 weight rounds once instead of twice.
    dtype = model.dtype
    merged = PeftModel.from_pretrained(model.to(torch.float32), str(adapter)).merge_and_unload()
    with contextlib.suppress(OSError):
        merged.generation_config = GenerationConfig.from_pretrained(base)
    merged.to(dtype).save_pretrained(folder)
