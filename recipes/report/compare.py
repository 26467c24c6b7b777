"""Compares runs: which of them are seeds of one setting, their numbers over seeds, and paired differences.

Two runs are seeds of one setting if their configurations are equal but for seeds, places and how often they validate
and save. Intervals are over seeds, by Student's t; a setting with one seed has none, and the page says so.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from recipes.report.preset import flat, shown
from recipes.report.run_data import Run, validations

# Keys that may differ between seeds of one setting.
_INCIDENTAL = (
    "data.seed",
    "actor_rollout_ref.rollout.seed",
    "self_distill.run_dir",
    "self_distill.keep_checkpoints",
    "self_distill.exposure.controller.seed",
    "trainer.default_local_dir",
    "trainer.experiment_name",
    "trainer.validation_data_dir",
    "trainer.val_before_train",
    "trainer.test_freq",
    "trainer.save_freq",
    "trainer.logger",
    "ray_kwargs.",
)
# Keys by which settings are told apart but that say little to a person: what a method says about itself, and verl's
# copies of other keys. They are in a label only if nothing else differs.
_TELLS_LITTLE = ("self_distill.about.", "self_distill.method")
_COPIES = re.compile(
    r"^(critic|reward\.reward_model|actor_rollout_ref\.ref)\.|\.(rollout_n|prompt_length|response_length|n_gpus_per_node|max_model_len)$"
    r"|\.(log_prob_use_dynamic_bsz|log_prob_max_token_len_per_gpu|load_contents)$|\.profiler\."
)
LAST_STEPS = 3  # training rewards are averaged over the last few


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: in the unit of the values.
        half: half-width of its 95 % interval; None below two seeds.
        count: how many seeds.
    """

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """The runs of one setting, ascending by seed."""

    label: str
    runs: list[Run]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and interval of numbers, one of each seed; None without numbers."""
    if not values:
        return None
    half = None
    if len(values) > 1:
        half = float(student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))
    return Estimate(statistics.mean(values), half, len(values))


def paired_difference(
    group: Sequence[Run], baseline: Sequence[Run], measure: Callable[[Run], float | None]
) -> Estimate | None:
    """Mean of (group − baseline) over the seeds that both have; None if there is no such seed.

    Seeds are paired because equal seeds see the same problems in the same order.

    Args:
        group: the runs of one setting.
        baseline: the runs of the setting that it is compared with.
        measure: the number of a run that is compared; None if the run lacks it.
    """
    others = {run.seed: value for run in baseline if (value := measure(run)) is not None}
    return estimate(
        [value - others[run.seed] for run in group if run.seed in others and (value := measure(run)) is not None]
    )


def group_runs(runs: Sequence[Run], names: Mapping[Path, str] | None = None) -> list[Group]:
    """The settings that runs belong to, in the order in which they first occur, but those without a teacher first.

    Args:
        runs: in the order in which they were given.
        names: names that the user gave to run directories; runs of different names are different settings.

    Returns:
        The settings, labelled with the given names, else with the method and the keys in which settings of that method
        differ.
    """
    names = names or {}
    settings: dict[str, list[Run]] = {}
    configs: dict[str, dict[str, str]] = {}
    for run in runs:
        values = flat(run.config)
        config = {key: shown(key, values) for key in sorted(values) if not key.startswith(_INCIDENTAL)}
        name = names.get(run.directory)
        key = repr((name, config))
        settings.setdefault(key, []).append(run)
        configs[key] = config
    groups = [
        Group(
            names.get(found[0].directory) or _label(key, configs, found[0].method),
            sorted(found, key=lambda run: str(run.seed)),
        )
        for key, found in settings.items()
    ]
    # The baseline, which has no teacher, first.
    return sorted(groups, key=lambda group: group.runs[0].asks is None or group.runs[0].asks.uses_teacher)


def _label(key: str, configs: dict[str, dict[str, str]], method: str) -> str:
    """The method, and the keys in which settings of that method differ."""
    same = [c for c in configs.values() if c.get("self_distill.method") == configs[key].get("self_distill.method")]
    found = sorted({name for config in same for name in config})
    differing = [name for name in found if len({config.get(name) for config in same}) > 1]
    telling = [
        name
        for name in differing
        if not name.startswith(_TELLS_LITTLE)
        and not _COPIES.search(name)
        and not all(config.get(name, "/").startswith(("/", "['/")) for config in same)  # where files lie
    ]
    own = [f"{_short(name)}={_end(configs[key].get(name, 'unset'))}" for name in telling or differing]
    return f"{method} ({', '.join(own)})" if own else method


def _end(value: str) -> str:
    """A value as a label has it: of a path, its last two parts."""
    return "/".join(Path(value).parts[-2:]) if value.startswith("/") else value


def validation_notice(groups: Sequence[Group]) -> str | None:
    """A sentence that says in what validations differed; None if all settings were validated in the same way."""
    prefixes = ("data.val_", "actor_rollout_ref.rollout.val_kwargs.")
    configs = [flat(group.runs[0].config) for group in groups]
    names = sorted({name for config in configs for name in config if name.startswith(prefixes)})
    differing = [name for name in names if len({shown(name, config) for config in configs}) > 1]
    if not differing:
        return None
    return f"accuracies are not comparable: the settings were validated with different {', '.join(differing)}"


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


# ---------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """A setting in the table.

    Attributes:
        label: the setting's.
        seeds: of its runs.
        accuracy: of the validation, a share.
        problems_half: with one seed the half-width of the 95 % interval over problems.
        difference: of the accuracy to the first setting's; None for that one, if no seed is shared, and if accuracies
            are not comparable.
        reward: mean of the last few steps.
        entropy: likewise, in nats.
        length: likewise, tokens of a response.
        correction: median of the ratio of correction to advantage.
        seconds: median of a step.
    """

    label: str
    seeds: list[Any]
    accuracy: Estimate | None
    problems_half: float | None
    difference: Estimate | None
    reward: Estimate | None
    entropy: Estimate | None
    length: Estimate | None
    correction: float | None
    seconds: float | None


@dataclass(frozen=True)
class Table:
    """The settings side by side.

    Attributes:
        step: at which accuracies are compared; None for each run's last.
        name: of the accuracy, such as "mean@16".
        rows: a setting each.
    """

    step: int | None
    name: str
    rows: list[Row]


def table(groups: Sequence[Group]) -> Table:
    """The settings' numbers.

    Accuracies are of the last step at which every run was validated. If they are not comparable (`validation_notice`),
    there are no differences.

    Args:
        groups: the settings, the baseline first.
    """
    comparable = validation_notice(groups) is None
    runs = [run for group in groups for run in group.runs]
    validated = [{v.step for v in validations(run)} for run in runs]
    common = set.intersection(*validated) if validated else set()
    step = max(common) if common else None

    def accuracy(run: Run) -> float | None:
        found = {v.step: v.mean for v in validations(run)}
        return found.get(step if step is not None else max(found, default=0))

    def of(group: Group, measure: Callable[[Run], float | None]) -> Estimate | None:
        return estimate([v for run in group.runs if (v := measure(run)) is not None])

    rows = []
    for index, group in enumerate(groups):
        single = [v for v in validations(group.runs[0]) if v.step == step] if len(group.runs) == 1 else []
        ratios = [v for run in group.runs for v in run.curve("credit/correction_ratio")[1]]
        seconds = [v for run in group.runs for v in run.curve("timing_s/step")[1]]
        rows.append(
            Row(
                label=group.label,
                seeds=[run.seed for run in group.runs],
                accuracy=of(group, accuracy),
                problems_half=single[0].half if single else None,
                difference=paired_difference(group.runs, groups[0].runs, accuracy) if index and comparable else None,
                reward=of(group, lambda run: _last_mean(run, "critic/score/mean")),
                entropy=of(group, lambda run: _last_mean(run, "actor/entropy")),
                length=of(group, lambda run: _last_mean(run, "response_length/mean")),
                correction=statistics.median(ratios) if ratios else None,
                seconds=statistics.median(seconds) if seconds else None,
            )
        )
    names = [v.name for run in runs for v in validations(run)[:1]]
    return Table(step, names[0] if names else "accuracy", rows)


def _last_mean(run: Run, metric: str) -> float | None:
    values = run.curve(metric)[1][-LAST_STEPS:]
    return statistics.mean(values) if values else None
