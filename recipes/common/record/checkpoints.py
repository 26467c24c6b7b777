"""Checkpoint folders: which run one belongs to, whether it is whole, which of them may go.  Pure file work, no torch.

verl writes a step's folder (each worker its shards, then the trainer ``data.pt``) and after all of it the tracker, a
file that names the step: a crash at any moment leaves the tracker at the checkpoint before.  Here is what verl does not
look at.  ``self_distill.json``, the first file of a folder, says what run it belongs to.  And what the tracker names
may have been damaged afterwards (a full or failing disk, a machine that lost power, a copy that was cut off), or be
gone, which verl takes for "start anew".
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open

from recipes.common.method import Method
from recipes.common.record.run_dir import (
    CHECKPOINTS,
    CONFIG,
    TRACKER,
    checkpointed_step,
    has_step,
    has_validation,
    plain_numbers,
    write_atomically,
)
from workers.training.params import TRAILING_WEIGHTS

# What a checkpoint is tied to: it restores only into a run that agrees in these.
BOUND_TO = (
    "self_distill.method",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.lora_rank",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)
FINGERPRINT, RECORD, STATE = "self_distill.json", "record.json", "state.json"
SHARD, MODEL_SHARDS = "{kind}_world_size_{world}_rank_{rank}.pt", "model_world_size_*_rank_*.pt"
CREDIT_MEMORY = "credit_memory.safetensors"  # written by the trainer, of credit that follows the steps before
TEACHER_SHARD = "teacher_rank_{rank}_of_{world}.safetensors"  # written by workers.training.teacher_copy
KINDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}  # verl's contents -> its files


def write_fingerprint(folder: Path, cfg: DictConfig) -> None:
    """Say in a checkpoint's folder what run it belongs to, before verl writes its own files there.

    Args:
        folder: the checkpoint folder of one step; made if it is not there.
        cfg: the run's resolved configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = {key: OmegaConf.select(cfg, key) for key in BOUND_TO}
    versions = {name: version(name) for name in ("verl-self-distill", "verl")}
    write_atomically(folder / FINGERPRINT, json.dumps({"bound_to": told, "versions": versions}, indent=1) + "\n")


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Keep a step's record beside its weights: the run may be killed before it comes into ``metrics.jsonl``.

    Args:
        folder: the step's checkpoint folder.
        record: the step's metrics by name.
    """
    write_atomically(folder / RECORD, json.dumps(plain_numbers(record)) + "\n")


def saved_record(folder: Path) -> dict[str, Any] | None:
    """The record that `save_record` kept, JSON's null being NaN again; None in a checkpoint that has none."""
    path = folder / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return {key: math.nan if value is None else value for key, value in record.items()}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Keep what the trainer counts over a run.

    Args:
        folder: the step's checkpoint folder.
        state: what it counts and remembers, by name; plain values.
    """
    write_atomically(folder / STATE, json.dumps(state) + "\n")


def saved_state(folder: Path) -> dict[str, Any]:
    """What `save_state` kept; empty in a checkpoint of a version that kept nothing."""
    path = folder / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def safe_ground(run_dir: Path) -> str:
    """A sentence for errors: which checkpoint is complete, and how to go on from it."""
    step = checkpointed_step(run_dir)
    if step is None:
        return "No checkpoint was saved before."
    return (
        f"The checkpoint of step {step} is complete; start again with hydra.run.dir={run_dir} to go on "
        "from it, with a lower learning rate or correction (algorithm.<method>.target_ratio, or beta) if it "
        "happens again."
    )


def reason(error: Exception) -> str:
    """The cause of a failed save inside Ray's wrapping, on one line."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__


def disagreements(before: Any, cfg: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Where a run differs in what a checkpoint is tied to (`BOUND_TO`).

    Args:
        before: a fingerprint's keys, or the configuration of the run that wrote the checkpoint.
        cfg: the configuration of this run.

    Returns:
        An iterator of (key, value then, value now).
    """
    for key in BOUND_TO:
        was = before.get(key) if isinstance(before, dict) else OmegaConf.select(before, key)
        now = OmegaConf.select(cfg, key)
        if was is not None and was != now and not (key == "actor_rollout_ref.model.path" and _same_folder(was, now)):
            yield key, was, now


def _same_folder(one: str, other: str) -> bool:
    """Whether two spellings (relative, with ~, through a link) name one folder of this machine."""
    folders = [Path(name).expanduser() for name in (one, other)]
    return all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1])


def fingerprint(folder: Path) -> dict[str, Any] | None:
    """The keys that a checkpoint is tied to; None where it has none, or a damaged one (which `damage` reports)."""
    try:
        return json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))["bound_to"]
    except (OSError, ValueError, KeyError):
        return None


def resumed_folder(cfg: DictConfig) -> Path | None:
    """The checkpoint folder that the run starts from, there or not; None if it starts anew.

    Raises:
        ValueError: if the tracker holds no step number although there are checkpoints.
    """
    mode = cfg.trainer.get("resume_mode", "auto")
    if mode == "disable":
        return None
    if mode == "resume_path":
        path = cfg.trainer.get("resume_from_path")
        return Path(path).expanduser() if path else None
    run_dir = Path(cfg.self_distill.run_dir)
    step = checkpointed_step(run_dir)
    return None if step is None else run_dir / CHECKPOINTS / f"global_step_{step}"


def nothing_left(cfg: DictConfig, step: int | None) -> bool:
    """Whether a resumed run has neither a step nor a validation left to do.

    Args:
        cfg: the resolved configuration.
        step: the step of the checkpoint that it goes on from; None if it starts anew.
    """
    total = cfg.trainer.total_training_steps
    if step is None or total is None or step < total or cfg.trainer.resume_mode != "auto":
        return False
    return has_step(Path(cfg.self_distill.run_dir), step) and not validation_missing(cfg, step, total)


def validation_missing(cfg: DictConfig, step: int, total: int) -> bool:
    """Whether a validation is due at a step and the run ended before it was recorded.

    Args:
        cfg: the resolved configuration.
        step: the step in question.
        total: steps of the whole run; the last is always due, unless validation is off.
    """
    every = cfg.trainer.test_freq
    due = every > 0 and (step % every == 0 or step >= total)
    return due and not has_validation(Path(cfg.self_distill.run_dir), step)


def required(cfg: DictConfig, method: Method) -> list[str]:
    """Files, relative to a checkpoint's folder, that this run reads when it starts from one.

    Args:
        cfg: the resolved configuration; it says how many workers read shards, and of what.
        method: what it asks to learn; a teacher that trails the student has shards of its own.
    """
    world = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes
    contents = cfg.actor_rollout_ref.actor.checkpoint.load_contents
    kinds = [KINDS[name] for name in contents if name in KINDS]
    shards = [f"actor/{SHARD.format(kind=k, world=world, rank=r)}" for k in kinds for r in range(world)]
    if method.uses_teacher and method.weights.weights in TRAILING_WEIGHTS:
        shards += [f"actor/{TEACHER_SHARD.format(world=world, rank=r)}" for r in range(world)]
    return [*shards, *([CREDIT_MEMORY] if method.remembers else []), "data.pt"]


def damage(folder: Path, needed: list[str]) -> list[str]:
    """What is wrong with a checkpoint's files, each in a few words; [] for a whole one.

    Looks at both ends of each file and not at what is between them: a checkpoint may have a hundred GiB.

    Args:
        folder: the checkpoint folder of one step.
        needed: files that must be there, from `required`.
    """
    if not folder.is_dir():
        return ["the folder is not there"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = [f"{name} is missing" for name in needed if name not in present]
    for name in sorted(present):
        look = _LOOKS.get(Path(name).suffix)
        if look is not None and not look(folder / name):
            found.append(f"{name} is cut off or damaged")
    return found


def _whole_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _whole_safetensors(path: Path) -> bool:
    """Opening one compares its size with what its header says, and reads no tensor."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


# torch.save writes a zip archive, whose directory comes last.
_LOOKS = {".pt": zipfile.is_zipfile, ".safetensors": _whole_safetensors, ".json": _whole_json}


def steps_of(checkpoints: Path) -> list[int]:
    """Steps that have a folder, whole or not, in order."""
    found = (p.name.rpartition("_")[2] for p in checkpoints.glob("global_step_*"))
    return sorted(int(step) for step in found if step.isdigit())


def whole_steps(checkpoints: Path, needed: list[str]) -> list[int]:
    """Steps whose folder has all files, whole, in order.

    Args:
        checkpoints: the folder with a folder for each step.
        needed: files that must be in each, from `required`.
    """
    return [step for step in steps_of(checkpoints) if not damage(checkpoints / f"global_step_{step}", needed)]


def last_until(checkpoints: Path, step: int) -> int | None:
    """The last complete checkpoint of a step or one before it; None where there is none.

    Args:
        checkpoints: the folder of all checkpoints.
        step: the last step that may be taken.
    """
    complete = checkpointed_step(checkpoints.parent)
    found = [s for s in steps_of(checkpoints) if s <= step and complete is not None and s <= complete]
    return found[-1] if found else None


def prune(checkpoints: Path, step: int, keep: int, spare: int | None = None) -> None:
    """Delete the oldest checkpoints up to a step, and keep the last few.

    Folders of later steps are what an interrupted save left: not counted, or a complete one would lose its place.

    Args:
        checkpoints: the folder with a folder for each step.
        step: the one that was just saved whole.
        keep: number to keep, that step's included; 1 or more.
        spare: a step whose checkpoint is kept beside these; None for no such.
    """
    for old in [s for s in steps_of(checkpoints) if s <= step][:-keep]:
        if old == spare:
            continue
        shutil.rmtree(checkpoints / f"global_step_{old}", ignore_errors=True)


def problems(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse the checkpoint that this run would start from if it is another run's, or not whole.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn.

    Returns:
        An iterator of sentences, as every check gives.
    """
    run_dir, needed = Path(cfg.self_distill.run_dir), required(cfg, method)
    by_path = cfg.trainer.get("resume_mode", "auto") == "resume_path"
    where = "trainer.resume_from_path" if by_path else "hydra.run.dir"
    try:
        folder = resumed_folder(cfg)
    except ValueError:
        folder = None
        yield _no_tracker(run_dir, needed)
    before, source = _origin(cfg, run_dir, folder)
    found = list(disagreements(before, cfg))
    for key, was, now in found:
        yield f"{source} is of a run with {key}={was}, and this one has {key}={now}: choose another {where}"
    if found or folder is None:
        return
    workers, other = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes, written_by(model_shards(folder / "actor"))
    if other and workers not in other:
        yield (
            f"{folder} was written by {' and '.join(map(str, other))} workers, and this run has {workers}: set "
            f"trainer.n_gpus_per_node and trainer.nnodes to those of the checkpoint, or choose another {where}"
        )
        return
    if wrong := damage(folder, needed):
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        yield f"the checkpoint {folder} is not whole ({shown}): {_instead(folder.parent, needed, by_path)}"


def _origin(cfg: DictConfig, run_dir: Path, folder: Path | None) -> tuple[Any, Path]:
    """What the checkpoint says of its run, or else the configuration beside it, and which of them it is."""
    if folder is not None and (own := fingerprint(folder)) is not None:
        return own, folder
    if cfg.trainer.get("resume_mode", "auto") == "disable" or not (folder or (run_dir / CHECKPOINTS).exists()):
        return {}, run_dir
    home = run_dir if folder is None else folder.parent.parent
    return (OmegaConf.load(home / CONFIG) if (home / CONFIG).exists() else {}), home


def model_shards(actor: Path) -> list[Path]:
    """Paths of the model's shards in the folder that verl's actor writes."""
    return sorted(actor.glob(MODEL_SHARDS))


def written_by(shards: list[Path]) -> list[int]:
    """Numbers of workers that wrote the shards, from their names; more than one if sets are mixed."""
    return sorted({int(shard.name.split("_")[3]) for shard in shards})


def _no_tracker(run_dir: Path, needed: list[str]) -> str:
    tracker = run_dir / CHECKPOINTS / TRACKER
    return (
        f"{tracker} holds no step number (a crash interrupted its writing, after the checkpoint's own files): "
        f"{_instead(tracker.parent, needed, by_path=False)}"
    )


def _instead(checkpoints: Path, needed: list[str], by_path: bool) -> str:
    whole = whole_steps(checkpoints, needed)
    if by_path:
        folder = f"{checkpoints}/global_step_{whole[-1]}" if whole else "a checkpoint that is"
        return f"set trainer.resume_from_path={folder}"
    if whole:
        return f"go on from the last whole one, of step {whole[-1]}: echo {whole[-1]} > {checkpoints / TRACKER}"
    return f"there is no whole one; delete {checkpoints} to start anew, or choose another hydra.run.dir"
