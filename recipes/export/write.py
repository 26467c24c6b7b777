"""Writes a checkpoint as a folder: what can be wrong is said first, and the folder appears whole or not at all.

The folder is made beside its place, in `.<name>.incomplete-…`, written through to the disk, and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from recipes.common.checks.errors import SettingsError
from recipes.common.models import (
    ADAPTER,
    Located,
    ShardContents,
    join_adapter,
    load_tokenizer,
    locate,
    lora_alpha,
    materialize,
    shard_contents,
)
from recipes.common.record import run_dir as files
from recipes.data.store import sync
from recipes.export.card import Subject, base_of, model_card
from recipes.export.public import public_config
from recipes.report.run_data import NotARun, Run, load_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = ".incomplete-"
TRAINING_CONFIG = "training_config.yaml"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
GIVE = {
    "checkpoint": "name a run directory, …/global_step_N or an adapter's folder",
    "out": "name the folder to write, which must not exist yet",
}
HEADROOM = 1 << 26  # bytes beside the weights: tokenizer, card, file system


@dataclass(frozen=True)
class Plan:
    """An export that can be carried out.

    Attributes:
        located: the checkpoint.
        contents: of its shards; None for a PEFT adapter.
        run: the training run that it is of, up to its step; None if its directory is not at hand.
        out: where the model's folder will be; absolute.
        adapter_only: the adapter alone, instead of merged weights.
        tokenizer: with a chat template.
        base_name: hub name of the base for the card, if the user gave one.
        needed: bytes that the export takes at its largest.
    """

    located: Located
    contents: ShardContents | None
    run: Run | None
    out: Path
    adapter_only: bool
    tokenizer: PreTrainedTokenizerBase
    base_name: str | None
    needed: int


def make_plan(cfg: DictConfig) -> Plan:
    """Check the configuration and what it points to; merges nothing.

    Args:
        cfg: config/export.yaml with the user's choices.

    Raises:
        SettingsError: if the export cannot be carried out; lists every problem found.
    """
    missing = [f"{key}= is not given; {what}" for key, what in GIVE.items() if OmegaConf.is_missing(cfg, key)]
    if missing:
        raise SettingsError(missing)
    out = Path(str(cfg.out)).expanduser().resolve()
    problems = list(out_problems(str(cfg.out), out))
    try:
        plan = _checkpoint_plan(cfg, out)
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from error
    if not problems:
        place = files.closest_existing(out)
        free = shutil.disk_usage(place).free
        if free < plan.needed:
            problems.append(
                f"out={cfg.out}: needs {size_text(plan.needed)} on the way, and {place} has {size_text(free)} free; "
                "make room, or choose another out="
            )
    if problems:
        raise SettingsError(problems)
    return plan


def _checkpoint_plan(cfg: DictConfig, out: Path) -> Plan:
    name = str(cfg.checkpoint)
    if not Path(name).exists():
        raise SettingsError([f"checkpoint={name}: there is no such folder; give a run directory or …/global_step_N"])
    located = locate(name, cfg.base, option="checkpoint")
    if located.kind not in ("verl", "adapter"):
        raise SettingsError(
            [f"checkpoint={name} is a whole model already; serve it, or upload it, as it is (hf upload <name> {name})"]
        )
    contents = shard_contents(located) if located.kind == "verl" else None
    problems = list(_adapter_problems(located, contents, cfg.adapter_only))
    tokenizer, run = None, None
    try:
        tokenizer = load_tokenizer(located, cfg.tokenizer)
    except SettingsError as error:
        problems += error.problems
    try:
        run = _run_of(located)
    except NotARun as error:
        problems.append(
            f"{located}: its run cannot be described: {error}. Put it right, or export a copy of its global_step "
            "folder, whose card then says nothing of the training"
        )
    if problems or tokenizer is None:
        raise SettingsError(problems)
    return Plan(
        located=located,
        contents=contents,
        run=run,
        out=out,
        adapter_only=cfg.adapter_only,
        tokenizer=tokenizer,
        base_name=cfg.base_name,
        needed=_bytes_needed(located, contents, cfg.adapter_only) + HEADROOM,
    )


def out_problems(given: str, out: Path) -> Iterator[str]:
    """What is against writing a folder there: it is not empty, a file, or cannot be written.

    Args:
        given: as the user wrote it, for the message.
        out: the same, absolute.
    """
    if out.is_dir() and any(out.iterdir()):
        yield f"out={given} is not empty; empty it, or choose a folder that does not exist yet"
    elif out.exists() and not out.is_dir():
        yield f"out={given} is a file; choose a folder that does not exist yet"
    else:
        place = files.closest_existing(out.parent)
        try:  # permissions, read-only mounts and quotas all show here, and only here for certain
            Path(tempfile.mkdtemp(prefix=f".{out.name}{INCOMPLETE}", dir=place)).rmdir()
        except OSError as error:
            yield f"out={given}: {place} cannot be written to ({error.strerror}); choose another out="


def _adapter_problems(located: Located, contents: ShardContents | None, adapter_only: bool) -> Iterator[str]:
    if contents is None:
        if adapter_only and not (Path(located.path) / ADAPTER_WEIGHTS).exists():
            yield f"{located} has no {ADAPTER_WEIGHTS}; save it anew with a current PEFT"
        return
    if contents.adapter_elements:
        try:
            lora_alpha(located)
        except SettingsError as error:
            yield from error.problems
    elif adapter_only:
        yield f"adapter_only=true, but {located} was not trained with LoRA; leave it out"
    if not contents.elements and not adapter_only:
        yield (
            f"{located} holds the adapter only (save_lora_only); export it with adapter_only=true, and then that "
            "folder with base=<the model it was trained on>"
        )


def _run_of(located: Located) -> Run | None:
    """The run of a checkpoint, as it was when that was written.

    Raises:
        NotARun: if the run's files are damaged.
    """
    if located.kind != "verl":
        return None
    directory = Path(located.path).resolve().parents[2]  # <run>/checkpoints/global_step_N/actor
    if not (directory / files.CONFIG).exists():
        return None
    run = load_run(directory, needs_records=False)
    step = located.step
    return run if step is None else replace(run, records=[r for r in run.records if r["step"] <= step])


def _bytes_needed(located: Located, contents: ShardContents | None, adapter_only: bool) -> int:
    if contents is not None:
        adapter = 2 * contents.adapter_elements  # bfloat16
        if adapter_only:
            return 2 * adapter
        # With LoRA the joined base and the merged model are there at the same time.
        return 2 * contents.elements * (2 if contents.adapter_elements else 1) + adapter
    own = sum(f.stat().st_size for f in Path(located.path).glob("*.safetensors"))
    return own if adapter_only else _weights_of(located.base)


def _weights_of(model: Located | None) -> int:
    """Bytes of whole weights in the type that they are stored in; 0 if they are not on this disk."""
    if model is None or model.kind == "hub":
        return 0
    if model.kind == "verl":
        return 2 * _bytes_needed(model, shard_contents(model), False)
    if model.kind == "adapter":
        return 2 * _weights_of(model.base)
    return sum(f.stat().st_size for p in ("*.safetensors", "pytorch_model*.bin") for f in Path(model.path).glob(p))


def size_text(count: float) -> str:
    """Bytes as a person reads them, such as "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


# ---------------------------------------------------------------------- the work


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """An empty folder to write in, which is at `out` once the block ends; whatever ends it early leaves nothing there.

    Args:
        out: what `out_problems` has nothing against. Folders above it are made.

    Yields:
        The folder `model` in a folder that is deleted at the end: beside it is room for intermediate results.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}{INCOMPLETE}", dir=out.parent))
    try:
        model = building / "model"
        model.mkdir()
        yield model
        _settle(model)
        model.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def export(plan: Plan) -> None:
    """Write the folder; whatever ends this before its end leaves nothing at `plan.out`."""
    with appearing(plan.out) as model:
        building = model.parent
        if plan.adapter_only:
            _write_adapter(plan, building, model)
        else:
            merged = Path(materialize(plan.located, building / "merged"))
            for file in [f for pattern in MODEL_FILES for f in merged.glob(pattern)]:
                file.rename(model / file.name)
        plan.tokenizer.save_pretrained(model)
        if plan.run is not None:
            config = yaml.safe_dump(public_config(plan.run.config), sort_keys=False, allow_unicode=True)
            (model / TRAINING_CONFIG).write_text(config, encoding="utf-8")
        model_card(_subject(plan, model)).save(model / "README.md")


def leftovers(plan: Plan) -> list[Path]:
    """Folders that other exports to the same place left because they were killed, or still write."""
    return sorted(plan.out.parent.glob(f".{plan.out.name}{INCOMPLETE}*"))


def _write_adapter(plan: Plan, building: Path, model: Path) -> None:
    source = Path(plan.located.path)
    if plan.located.kind == "verl":
        source = join_adapter(plan.located, building / "merged")
    shutil.copy(source / ADAPTER_WEIGHTS, model / ADAPTER_WEIGHTS)
    config = json.loads((source / ADAPTER).read_text())
    # PEFT loads the base from here; verl leaves it open, and a path of this machine helps nobody.
    config["base_model_name_or_path"] = base_of(plan.located, plan.run, plan.base_name).shown
    config["inference_mode"] = True
    (model / ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _subject(plan: Plan, model: Path) -> Subject:
    config = model / "config.json"
    lora = plan.contents is None or bool(plan.contents.adapter_elements)
    return Subject(
        name=plan.out.name,
        base=base_of(plan.located, plan.run, plan.base_name),
        step=plan.located.step,
        lora=lora,
        adapter_only=plan.adapter_only,
        dtype=_adapter_dtype(model) if plan.adapter_only else str(json.loads(config.read_text())["dtype"]),
        rank=json.loads((model / ADAPTER).read_text())["r"] if plan.adapter_only else None,
        run=plan.run,
    )


def _adapter_dtype(model: Path) -> str:
    from safetensors import safe_open

    with safe_open(model / ADAPTER_WEIGHTS, framework="pt") as tensors:
        name = next(iter(tensors.keys()))
        return str(tensors.get_tensor(name).dtype).removeprefix("torch.")


def _settle(folder: Path) -> None:
    """Give the files the rights that the user's umask gives, not a temporary file's, and wait for the disk."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [*folder.iterdir(), folder]:
        path.chmod((0o777 if stat.S_ISDIR(path.stat().st_mode) else 0o666) & ~mask)
        sync(path)
