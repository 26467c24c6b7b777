"""Run directories for the tests of reports: written by hand, so that every number in them is known."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.common.record import run_dir as files
from tests.builders.configs import composed


def record(step: int, **metrics: Any) -> dict[str, Any]:
    """A training step's record; `__` in a name stands for `/`."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {"step": step, "training/global_step": step, "timing_s/step": 4.0, "timing_s/gen": 1.0, **named}


def validated(step: int, mean: float, half: float = 0.05, source: str = "set") -> dict[str, Any]:
    return {"step": step, f"val-core/{source}/acc/mean@16": mean, f"val-core/{source}/acc/ci95@16": half}


@lru_cache
def _config(*overrides: str) -> DictConfig:
    return composed(*overrides, run_dir=Path("elsewhere"))


def write_run(
    directory: Path,
    records: list[dict[str, Any]],
    *overrides: str,
    method: str = "dasd",
    samples: list[dict[str, Any]] | None = None,
    ending: str | None = files.DONE,
    reason: str = "",
    seed: int | None = None,
    experiment: str = "starter",
    protocol: str = "dasd",
) -> Path:
    """A run directory as a training command leaves it. `protocol` is what it says of its choice, and no more."""
    directory.mkdir(parents=True)
    config = _config(f"method={method}", f"experiment={experiment}", *overrides).copy()
    config.self_distill.run_dir = str(directory)
    config.trainer.default_local_dir = f"{directory}/checkpoints"
    if seed is not None:
        config.data.seed = config.actor_rollout_ref.rollout.seed = seed
    (directory / files.CONFIG).write_text(OmegaConf.to_yaml(config))
    (directory / ".hydra").mkdir()
    choices = {"method": method, "experiment": experiment, "protocol": protocol}
    (directory / ".hydra" / "hydra.yaml").write_text(
        OmegaConf.to_yaml({"hydra": {"runtime": {"choices": choices}, "run": {"dir": "${now:%Y}"}}})
    )
    (directory / files.METRICS).write_text("".join(json.dumps(r) + "\n" for r in records))
    if samples is not None:
        (directory / files.SAMPLES).write_text("".join(json.dumps(s) + "\n" for s in samples))
    if ending is not None:
        files.set_stage(directory, ending, records[-1]["step"], reason)
    return directory


def response(
    tokens: list[str], reward: float = 1.0, problem: str = "1+1", **fields: list[float | None]
) -> dict[str, Any]:
    return {"problem": problem, "reward": reward, "tokens": tokens, "omitted": 0, "fields": fields}
