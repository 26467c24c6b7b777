"""What ``model=`` (or ``checkpoint=``) may name, and how each becomes a folder that an engine can load.

- Hugging Face model: a folder with config.json and weights, or a name on the hub.
- adapter: a folder with adapter_config.json (PEFT LoRA); it is merged into its base model.
- verl checkpoint: FSDP shards, named as `…/global_step_N/actor` or `…/global_step_N`, or by a run directory, whose last
  complete checkpoint is meant. verl's own merger joins the shards; it writes bfloat16.

`locate` is quick and says everything that is wrong; `materialize` does the work, once a command has been accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.checks.errors import SettingsError
from recipes.common.record.checkpoints import MODEL_SHARDS, model_shards, written_by
from recipes.common.record.run_dir import CHECKPOINTS, TRACKER, checkpointed_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
ADAPTER = "adapter_config.json"
LORA_FOLDER = "lora_adapter"  # where verl's merger puts an adapter


@dataclass(frozen=True)
class Located:
    """A model that exists.

    Attributes:
        name: as it was given.
        kind: "folder", "hub", "adapter" or "verl"; an evaluation also has "server".
        path: its folder or hub name; of a server, its address and its name there.
        tokenizer: folder or hub name of its tokenizer; empty if it has none.
        step: training step of a verl checkpoint.
        base: the base model of an adapter.
        option: the command's key that named it, for messages.
    """

    name: str
    kind: str
    path: str
    tokenizer: str
    step: int | None = None
    base: Located | None = None
    option: str = "model"

    def __str__(self) -> str:
        return f"{self.option}={self.name}"


def locate(name: str, base: str | None = None, option: str = "model") -> Located:
    """Find out what a model's name means.

    Args:
        name: a folder or a name on the hub.
        base: base model of LoRA adapters; by default the one their adapter_config.json names.
        option: the command's key that named it, for messages.

    Raises:
        SettingsError: if it is not there or not complete; says what was looked for and how to put it right.
    """
    path = Path(name)
    if not path.exists():
        return _hub(name, option)
    if path.is_file():
        raise SettingsError([f"{option}={name} is a file; give the folder that holds the model"])
    checkpoints = checkpoints_folder(path)
    if checkpoints is not None:
        return _run(name, checkpoints, option)
    if (path / "actor").is_dir():
        path = path / "actor"
    if model_shards(path):
        return _verl(name, path, option)
    if (path / ADAPTER).exists():
        return _adapter(name, path, base, option)
    if (path / "config.json").exists():
        if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
            raise SettingsError([f"{option}={name} has a config.json but no weights (*.safetensors) beside it"])
        return Located(name, "folder", str(path), _tokenizer_folder(path), option=option)
    if (path / "metrics.jsonl").exists() or (path / CHECKPOINTS).exists():
        raise SettingsError(
            [f"{option}={name} is a run directory without a complete checkpoint; train on until trainer.save_freq"]
        )
    raise SettingsError(
        [
            f"{option}={name} is a folder, but none of a model (config.json), an adapter ({ADAPTER}), a verl "
            f"checkpoint (model_world_size_*.pt) or a run directory ({CHECKPOINTS}/{TRACKER}); name the folder "
            "that holds one"
        ]
    )


def checkpoints_folder(path: Path) -> Path | None:
    """Where a run keeps its checkpoints; None for a path that is no run."""
    return next((folder for folder in (path / CHECKPOINTS, path) if (folder / TRACKER).exists()), None)


def _hub(name: str, option: str) -> Located:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's client fails in many ways, and all end in the same advice
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError(
            [
                f"{option}={name} is no folder here, and the hub does not give it ({type(error).__name__}: {reason}). "
                "Check the spelling; without a network, fetch it elsewhere with `hf download` and give its folder"
            ]
        ) from error
    return Located(name, "hub", name, name, option=option)


def tracked_step(name: str, checkpoints: Path, option: str = "model") -> int:
    """Step of the last complete checkpoint of a run.

    Args:
        name: of the run, as the command has it.
        checkpoints: folder where the run keeps its checkpoints and the tracker that names the last complete one.
        option: the key of the command that named it, for the message.

    Raises:
        SettingsError: if there is none, or the tracker does not say.
    """
    if checkpoints.name == CHECKPOINTS:
        try:
            step = checkpointed_step(checkpoints.parent)
        except ValueError as error:
            raise SettingsError([f"{option}={name}: {error}"]) from error
    else:  # a plain verl run keeps its tracker wherever default_local_dir says
        text = (checkpoints / TRACKER).read_text().strip()
        step = int(text) if text.isdigit() else None
    if step is None:
        raise SettingsError([f"{option}={name}: {checkpoints / TRACKER} names no complete checkpoint"])
    return step


def _run(name: str, checkpoints: Path, option: str) -> Located:
    step = tracked_step(name, checkpoints, option)
    actor = checkpoints / f"global_step_{step}" / "actor"
    if not model_shards(actor):
        raise SettingsError(
            [f"{option}={name}: its last complete checkpoint is step {step}, but {actor} holds no shards"]
        )
    return _verl(name, actor, option)


def _verl(name: str, actor: Path, option: str) -> Located:
    shards = model_shards(actor)
    expected, *others = written_by(shards)
    if others:
        raise SettingsError([f"{option}={name}: {actor} mixes shards of {[expected, *others]} workers; keep one set"])
    if len(shards) != expected:
        raise SettingsError(
            [f"{option}={name}: {actor} has {len(shards)} of {expected} shards; copy those of the other nodes there"]
        )
    for needed in ("fsdp_config.json", "huggingface/config.json"):
        if not (actor / needed).exists():
            raise SettingsError(
                [f"{option}={name}: {actor / needed} is missing, without which verl cannot merge shards"]
            )
    _, _, last = actor.parent.name.rpartition("_")
    step = int(last) if last.isdigit() else None
    return Located(name, "verl", str(actor), _tokenizer_folder(actor / "huggingface"), step, option=option)


def _adapter(name: str, path: Path, base: str | None, option: str) -> Located:
    named = base or json.loads((path / ADAPTER).read_text()).get("base_model_name_or_path")
    if not named:
        raise SettingsError([f"{option}={name} is an adapter that names no base model; say which with base="])
    try:
        below = locate(named)
    except SettingsError as error:
        raise SettingsError(
            [
                f"{option}={name} is an adapter of {named}, which cannot be used: {p}; or set base="
                for p in error.problems
            ]
        ) from error
    tokenizer = str(path) if _has_tokenizer(path) else below.tokenizer
    return Located(name, "adapter", str(path), tokenizer, base=below, option=option)


def _has_tokenizer(path: Path) -> bool:
    return any((path / file).exists() for file in TOKENIZER_FILES)


def _tokenizer_folder(path: Path) -> str:
    return str(path) if _has_tokenizer(path) else ""


def load_tokenizer(model: Located, override: str | None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or that of ``tokenizer=``.

    Args:
        model: a model that was located.
        override: the value of ``tokenizer=``, a folder or a name on the hub; None for the model's own.

    Raises:
        SettingsError: if there is no tokenizer, it cannot be loaded, or it has no chat template.
    """
    from transformers import AutoTokenizer

    where = override or model.tokenizer
    if not where:
        raise SettingsError(
            [
                f"{model} has no tokenizer ({', '.join(TOKENIZER_FILES)}); copy its base model's files "
                "beside it, or name the base model with tokenizer="
            ]
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # corrupt files raise whatever their parser raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SettingsError([f"the tokenizer {where} of {model} cannot be loaded: {reason}"]) from error
    if not tokenizer.chat_template:
        raise SettingsError(
            [f"the tokenizer {where} of {model} has no chat template; name one that has with tokenizer="]
        )
    return tokenizer


def fingerprint(model: Located) -> str:
    """Twelve hex digits that tell one model's weights from another's: a hash of its files, or the hub's commit."""
    digest = hashlib.sha256()
    if model.kind == "hub":
        from transformers import AutoConfig

        commit = getattr(AutoConfig.from_pretrained(model.path, trust_remote_code=False), "_commit_hash", None)
        digest.update(f"{model.path}@{commit}".encode())
    elif model.kind == "server":  # its weights cannot be seen
        digest.update(model.path.encode())
    else:
        for pattern in ("*.safetensors", "pytorch_model*.bin", MODEL_SHARDS, ADAPTER):
            for file in sorted(Path(model.path).glob(pattern)):
                digest.update(file.name.encode())
                with file.open("rb") as content:
                    while chunk := content.read(1 << 22):
                        digest.update(chunk)
    if model.base is not None:
        digest.update(fingerprint(model.base).encode())
    return digest.hexdigest()[:12]


def materialize(model: Located, folder: Path) -> str:
    """Make whole weights of a model, unless it has them; a folder that is complete already is used as it is.

    Args:
        model: a model that was located.
        folder: where adapters and shards are merged; whatever an interrupted merge left there is deleted.

    Returns:
        Folder or hub name of the whole weights: the model's own, or ``folder``.
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
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    merger = FSDPModelMerger(_merger_config(model, folder))
    # The attention that training chose is the machine's affair: another may not know it.
    merger.model_config._attn_implementation = None
    vars(merger.model_config).pop("attn_implementation", None)
    merger.merge_and_save()
    adapter = folder / LORA_FOLDER
    if adapter.exists():  # trained with LoRA: the merger keeps base and adapter apart
        lora_alpha(model)
        base = folder / "base"
        base.mkdir()
        for file in [f for f in folder.iterdir() if f.is_file()]:
            file.rename(base / file.name)
        _merge_adapter(str(base), adapter, folder)
        shutil.rmtree(base)


def join_adapter(model: Located, folder: Path) -> Path:
    """Join the shards of the LoRA adapter in a verl checkpoint into a PEFT adapter, without its base.

    Args:
        model: a verl checkpoint that was trained with LoRA.
        folder: where verl's merger writes.

    Returns:
        The adapter's folder, below ``folder``.
    """
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    class AdapterMerger(FSDPModelMerger):
        def save_hf_model_and_tokenizer(self, state_dict: dict[str, Any]) -> None:
            self.save_lora_adapter(state_dict)

    lora_alpha(model)
    AdapterMerger(_merger_config(model, folder)).merge_and_save()
    return folder / LORA_FOLDER


def _merger_config(model: Located, folder: Path) -> Any:
    from verl.model_merger.base_model_merger import ModelMergerConfig

    return ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=model.path,
        target_dir=str(folder),
        hf_model_config_path=str(Path(model.path) / "huggingface"),
        trust_remote_code=False,
    )


def lora_alpha(model: Located) -> int:
    """Alpha (LoRA's scale) of the adapter in a verl checkpoint.

    Raises:
        SettingsError: if it is not written down.
    """
    path = Path(model.path) / "lora_train_meta.json"
    alpha = json.loads(path.read_text()).get("lora_alpha") if path.exists() else None
    if not alpha:
        raise SettingsError(
            [f"{model}: {path} does not say lora_alpha, without which the adapter would have no effect; write it there"]
        )
    return int(alpha)


@dataclass(frozen=True)
class ShardContents:
    """What FSDP shards hold.

    Attributes:
        workers: number of those that wrote them.
        elements: parameters of the whole model, without an adapter.
        adapter_elements: parameters of a LoRA adapter; 0 if there is none.
    """

    workers: int
    elements: int
    adapter_elements: int


def shard_contents(model: Located) -> ShardContents:
    """Count what the shards of a verl checkpoint hold, without reading the weights.

    Raises:
        SettingsError: if a shard is cut off, or is no state dict of tensors.
    """
    import torch
    import torch.distributed.tensor  # lets weights_only read DTensors

    shards = model_shards(Path(model.path))
    elements = adapter = 0
    for shard in shards:
        try:  # the index stands at the end of the file: a shard that was not copied to its end has none
            with _silent_meshes():
                state = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
            counts = {name: tensor.numel() for name, tensor in state.items()}  # of a DTensor: the whole tensor's
        except Exception as error:  # a file of any content
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise SettingsError([f"{model}: {shard} cannot be read ({reason}); copy it again"]) from error
        adapter = sum(count for name, count in counts.items() if "lora_" in name)
        elements = sum(counts.values()) - adapter
    return ShardContents(len(shards), elements, adapter)


@contextlib.contextmanager
def _silent_meshes() -> Iterator[None]:
    """torch warns that a shard's process group is not there, which only those who compute with shards need."""
    log = logging.getLogger("torch.distributed.device_mesh")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


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
