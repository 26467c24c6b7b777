"""Whether what is in a run's directory was trained by the settings that a table asks for now.

A directory is named by what the table and the user say. What they do not say, the defaults of this version, may have
been others when the run was made; shown in one matrix, or resumed, such a run would pass for what it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from advantage.estimators import ESTIMATORS, params_from_config
from recipes.common.record.run_dir import CONFIG
from recipes.report.preset import composed, flat, shown
from recipes.reproduce.runs import Job

# Of the configuration: what decides what is learned, and how it is validated. How it is computed, and where things lie,
# may change.
SECTIONS = (
    "algorithm.",
    "self_distill.exposure.",
    "self_distill.loss.",
    "self_distill.teacher.",
    "actor_rollout_ref.actor.optim.",
    "actor_rollout_ref.rollout.val_kwargs.",
)
KEYS = {
    "self_distill.responses",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.rollout.top_p",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
}
APART = {"self_distill.exposure.probe_file", "self_distill.exposure.controller.seed"}  # a place; the run's own seed
OF_ONE_RUN = ("data.seed=", "actor_rollout_ref.rollout.seed=", "trainer.validation_data_dir=")


def refusals(jobs: Iterable[Job]) -> Iterator[str]:
    """A sentence for each run that was trained by other settings than its job asks for.

    A key that one of the two does not have is of another version of the package and is passed over.

    Args:
        jobs: the runs of a table; one without a configuration in its directory has not begun.

    Raises:
        NoPreset: if a job's overrides cannot be composed.
    """
    asked: dict[tuple[str, ...], dict[str, Any]] = {}  # once for all seeds of a row: it takes half a second
    for job in jobs:
        path = job.directory / CONFIG
        if not path.exists():
            continue
        there = flat(OmegaConf.load(path))
        overrides = tuple(override for override in job.overrides if not override.startswith(OF_ONE_RUN))
        if overrides not in asked:
            asked[overrides] = composed("train", overrides, there, Path.cwd())
        found = _differences(there, asked[overrides])
        if found:
            told = ", ".join(f"{key}={was} (asked for: {now})" for key, was, now in found[:3])
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            yield f"{job.directory} is a run with {told}{more}: move it away, or choose another out="


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    apart = APART | (_idle(there) & _idle(now))
    keys = [key for key in there if key in now and (key in KEYS or key.startswith(SECTIONS)) and key not in apart]
    triples = [(key, shown(key, there), shown(key, now)) for key in keys]
    return [(key, was, asked) for key, was, asked in triples if was != asked]


def _idle(values: Mapping[str, Any]) -> set[str]:
    """Keys of the credit's parameters that have no effect beside the others."""
    credit = values["algorithm.adv_estimator"]
    if credit not in ESTIMATORS:
        return set()
    prefix = f"algorithm.{credit}."
    own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return {prefix + name for name in params_from_config(credit, {credit: own}).idle}
