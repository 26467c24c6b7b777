"""What a run leaves on disk, and how its processes speak through it.

A run directory holds ``config.yaml`` (resolved), ``metrics.jsonl`` (one record a step), ``samples.jsonl`` (a few
responses with their token credit), ``train.log`` (everything that Ray and verl print), ``checkpoints/``, ``stage.json``
(what the run does right now, or how it ended), ``wandb_id`` where it is logged there, and ``report.html``.  The
trainer, deep inside Ray, writes; the console, in the user's process, reads.  Files survive both, so a run can be
watched or resumed from elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

METRICS, STAGE, STOP, LOG, CONFIG = "metrics.jsonl", "stage.json", "stop_requested", "train.log", "config.yaml"
SAMPLES, REPORT = "samples.jsonl", "report.html"
DONE, STOPPED, FAILED = ENDINGS = ("done", "stopped", "failed")  # the last stage of a run that could say how it ended
WANDB_ID = "wandb_id"
CHECKPOINTS, TRACKER = "checkpoints", "latest_checkpointed_iteration.txt"


def closest_existing(path: Path) -> Path:
    """The path, or the closest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's contents in one step: a reader, or a crash, sees the old text or the new, never half of it.

    Args:
        path: the file; its folder must exist.
        text: all that it will hold, written as UTF-8.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def set_stage(run_dir: Path, stage: str, step: int, reason: str = "") -> None:
    """Say what the run is doing, for the console to show.

    Args:
        run_dir: the run's directory.
        stage: a few words for people; at the run's end one of `ENDINGS`.
        step: the step that it is in.
        reason: why the run failed.
    """
    state = {"stage": stage, "step": step, "time": time.time(), **({"reason": reason} if reason else {})}
    write_atomically(run_dir / STAGE, json.dumps(state))


def read_stage(run_dir: Path) -> dict[str, Any]:
    """The last `set_stage` as a dict of stage, step, time and perhaps reason; empty before the first."""
    try:
        return json.loads((run_dir / STAGE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def wandb_id(run_dir: Path) -> str:
    """The run's name at Weights & Biases: drawn when the run is first started, and kept in its directory."""
    path = run_dir / WANDB_ID
    if not path.exists():
        write_atomically(path, f"{secrets.token_hex(4)}\n")
    return path.read_text().strip()


def require_shared(run_dir: Path, read: Callable[[str], Sequence[tuple[str, str | None]]]) -> None:
    """Refuse a run whose nodes do not see one run directory: each would keep its own part of every checkpoint.

    Args:
        run_dir: the run's directory.
        read: asks every worker for a file's text, by its path: (the worker's node, the text or None).

    Raises:
        RuntimeError: if a node has another folder, or none, at that path.
    """
    path, token = run_dir / f".shared-{secrets.token_hex(4)}", secrets.token_hex(16)
    path.write_text(token, encoding="utf-8")
    try:
        strangers = sorted({node for node, text in read(str(path)) if text != token})
    finally:
        path.unlink()
    if strangers:
        raise RuntimeError(
            f"hydra.run.dir={run_dir} is not the same folder on {', '.join(strangers)}: each node would keep its own "
            "part of a checkpoint, and none could be resumed; set hydra.run.dir to a file system that all nodes share"
        )


def checkpointed_step(run_dir: Path) -> int | None:
    """Step of the last complete checkpoint; None if there is none.

    verl writes the tracker last, so a step named there is complete. A tracker that a crash left empty counts as none
    only if no checkpoint folder is there; otherwise it is an error that names the file.

    Raises:
        ValueError: if the tracker holds no step number although there are checkpoints.
    """
    folder = run_dir / CHECKPOINTS
    tracker = folder / TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text().strip()
    if text.isdigit():
        return int(text)
    steps = sorted(int(p.name.rpartition("_")[2]) for p in folder.glob("global_step_*"))
    if not steps:
        return None
    raise ValueError(
        f"{tracker} holds {text!r} instead of a step number: a crash interrupted its writing. Write the last complete "
        f"step into it (folders are there for {steps}; the newest may be incomplete), or delete it to start anew"
    )


class MetricsFile:
    """Appends one JSON record a step to ``metrics.jsonl``; plugs into verl's ``Tracking`` beside its other loggers.

    Args:
        run_dir: the run's directory; what a crash left of a last line is cut off.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / METRICS
        drop_torn_line(self.path)
        # Line-buffered: a record is on disk when the step is over.
        self._file = self.path.open("a", buffering=1)

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append a record.

        Args:
            data: numbers by name; those that are not finite become null.
            step: the step that they are of.
        """
        self._file.write(json.dumps({"step": int(step), "time": time.time(), **plain_numbers(data)}) + "\n")

    def finish(self, *_: Any, **__: Any) -> None:
        """Close the file; verl's ``Tracking`` calls it, with arguments that are not needed."""
        self._file.close()


def drop_torn_line(path: Path) -> None:
    """Cut off what a crash left of a last line: a record appended after it would be lost with it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def plain_numbers(data: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON has: non-finite numbers become null, other numbers Python's, the rest text."""
    return {key: _number(value) for key, value in data.items()}


def _number(value: Any) -> Any:
    if isinstance(value, bool | str) or value is None:
        return value
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # an array of several numbers
            return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def metrics_from(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the complete records of a metrics file from a place on.

    Args:
        path: the file.
        offset: the place in bytes, the beginning of a line.

    Returns:
        An iterator of (record, offset after it).
    """
    with path.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if not line.endswith(b"\n"):  # still being written
                return
            offset += len(line)
            yield json.loads(line), offset


def read_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The records written so far, in order; a last line that is still being written is left out."""
    path = run_dir / METRICS
    if path.exists():
        for record, _ in metrics_from(path, 0):
            yield record


def has_step(run_dir: Path, step: int) -> bool:
    """Whether the training record of a step is there.

    Args:
        run_dir: the run's directory.
        step: the step in question.
    """
    return any(record["step"] == step and "training/global_step" in record for record in read_metrics(run_dir))


def has_validation(run_dir: Path, step: int) -> bool:
    """Whether the validation of a step is there.

    Args:
        run_dir: the run's directory.
        step: the step in question.
    """
    return any(r["step"] == step and any(key.startswith("val-") for key in r) for r in read_metrics(run_dir))


def forget_metrics_after(run_dir: Path, step: int) -> int:
    """Drop the records, and the samples, of steps that a resumed run will do again.

    Args:
        run_dir: the run's directory.
        step: the last to keep.

    Returns:
        How many records of metrics were dropped.
    """
    dropped = 0
    for name in (SAMPLES, METRICS):
        path = run_dir / name
        records = [record for record, _ in metrics_from(path, 0)] if path.exists() else []
        kept = [r for r in records if r["step"] <= step]
        dropped = len(records) - len(kept)
        if dropped:
            write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept))
    return dropped
