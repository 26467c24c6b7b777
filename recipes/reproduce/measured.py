"""From runs to the cells of a table: values with intervals, and paired differences to the baseline.

At ``scale=starter`` the responses of the validation at the end of each run are measured, as an evaluation would
(`recipes.evaluate`); their steps are in the embedded worlds, whose arithmetic is checked. With two seeds or more,
intervals and differences are over seeds, by Student's t, paired by seed; with one they are over problems, paired by
problem, and say nothing about another run. At ``scale=gpu`` they are those of an evaluation's summary, over problems.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.evaluate import health
from recipes.evaluate.metrics import Estimate, difference, pass_at_k, ratio
from recipes.report.compare import LAST_STEPS
from recipes.report.compare import estimate as over_seeds
from recipes.starter import task

VALIDATION = "validation"  # verl writes the responses of a validation there, a file a step

SEEDS, PROBLEMS = "seeds", "problems"


@dataclass(frozen=True)
class Measure:
    """What a column shows.

    Attributes:
        name: of the measure in `Measured` and in the keys of cells.
        title: of the column; {n} is the number of responses to each problem.
        factor: 100 for shares in per cent.
        digits: shown after the point.
        explained: what it is, for the page.
    """

    name: str
    title: str
    factor: float
    digits: int
    explained: str


MEASURES = (
    Measure("avg", "Avg@{n}", 100, 1, "share of right responses, per cent"),
    Measure("pass", "Pass@{n}", 100, 1, "share of problems with a right response among {n}, per cent"),
    Measure("entropy", "entropy", 1, 3, "of the student's next token in training, nats, mean of the last 3 steps"),
    Measure("markers", "markers", 1, 2, "epistemic markers (wait, hmm, …) a response"),
    Measure("steps", "StepAcc", 100, 1, "share of right steps, mean over responses that have steps, per cent"),
)


@dataclass(frozen=True)
class Cell:
    """A number with its interval.

    Attributes:
        value: the number.
        half: half the width of its 95 % interval; None if not known.
        over: of what the interval is, "seeds" or "problems".
        count: number of runs behind it.
    """

    value: float
    half: float | None
    over: str
    count: int

    @property
    def side(self) -> int | None:
        """1 where the whole interval lies above 0, -1 below, 0 where it holds 0; None where it is not known."""
        if self.half is None:
            return None
        bound = self.half + 1e-12  # equal runs differ by rounding
        return (self.value > bound) - (self.value < -bound)


@dataclass(frozen=True)
class Measured:
    """What one run left.

    Attributes:
        estimates: by measure, over problems.
        entropy: of the student's next token at the end of training, in nats; None if not recorded.
        samples: number of responses to each problem.
    """

    estimates: dict[str, Estimate]
    entropy: float | None
    samples: int


def measure(directory: Path, step: int) -> Measured | None:
    """Measure the responses of a run's validation.

    Args:
        directory: of the run.
        step: the validation's.

    Returns:
        None where there was no validation at that step.
    """
    path = directory / VALIDATION / f"{step}.jsonl"
    if not path.exists():
        return None
    responses: dict[str, list[tuple[str, bool]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        responses.setdefault(record["input"], []).append((record["output"], record["score"] > 0))
    columns: dict[str, list[tuple[float, float]]] = {}
    for prompt in sorted(responses):  # so that the problems of all runs stand in one order
        texts, right = zip(*responses[prompt], strict=True)
        n = len(right)
        sums = {
            "avg": (sum(right), n),
            "pass": (pass_at_k(n, sum(right), n), 1.0),
            "markers": (sum(map(health.count_markers, texts)), n),
        }
        if (problem := problem_in(prompt)) is not None:
            verdicts = [health.arithmetic_verdicts(problem, text) for text in texts]
            sums["steps"] = health.execution(verdicts)["step_acc"]
        for name, pair in sums.items():
            columns.setdefault(name, []).append(pair)
    estimates = {name: ratio(*zip(*pairs, strict=True)) for name, pairs in columns.items()}
    return Measured(
        estimates={name: estimate for name, estimate in estimates.items() if estimate is not None},
        entropy=_entropy(directory, step),
        samples=max(map(len, responses.values())),
    )


def problem_in(prompt: str) -> str | None:
    """The embedded worlds' problem in a decoded prompt; None where there is none of theirs."""
    lines = [line for line in prompt.splitlines() if task.PROBLEM_PREFIX in line]
    return lines[0][lines[0].index(task.PROBLEM_PREFIX) :] if lines else None


def _entropy(directory: Path, step: int) -> float | None:
    from recipes.common.record.run_dir import read_metrics

    values = [
        record["actor/entropy"]
        for record in read_metrics(directory)
        if step - LAST_STEPS < record["step"] <= step and isinstance(record.get("actor/entropy"), float)
    ]
    return sum(values) / len(values) if values else None


def cell(runs: Mapping[int, Measured], name: str) -> Cell | None:
    """A measure of one row.

    Args:
        runs: the row's runs by seed.
        name: of the measure.

    Returns:
        None if no run has it.
    """
    values = _values(runs, name)
    found = over_seeds(list(values.values()))
    if found is None:
        return None
    if found.half is not None:
        return Cell(found.mean, found.half, SEEDS, found.count)
    estimate = next(iter(runs.values())).estimates.get(name)
    return Cell(found.mean, _half(estimate), PROBLEMS, 1)


def paired(runs: Mapping[int, Measured], baseline: Mapping[int, Measured], name: str) -> Cell | None:
    """A measure's difference to the baseline's, over the seeds that both have; over problems where that is one.

    Args:
        runs: the row's runs by seed.
        baseline: the baseline's runs by seed.
        name: of the measure.

    Returns:
        None if there is no seed for which both have it.
    """
    mine, others = _values(runs, name), _values(baseline, name)
    shared = [seed for seed in mine if seed in others]
    found = over_seeds([mine[seed] - others[seed] for seed in shared])
    if found is None:
        return None
    if found.half is not None:
        return Cell(found.mean, found.half, SEEDS, found.count)
    one, other = (side[shared[0]].estimates.get(name) for side in (runs, baseline))
    if one is None or other is None or one.problems != other.problems:
        return Cell(found.mean, None, PROBLEMS, 1)
    return Cell(found.mean, _half(difference(one, other)), PROBLEMS, 1)


def _values(runs: Mapping[int, Measured], name: str) -> dict[int, float]:
    if name == "entropy":
        return {seed: run.entropy for seed, run in runs.items() if run.entropy is not None}
    return {seed: run.estimates[name].value for seed, run in runs.items() if name in run.estimates}


def _half(estimate: Estimate | None) -> float | None:
    return None if estimate is None or math.isnan(estimate.half_width) else estimate.half_width


# ---------------------------------------------------------------------- an evaluation's summary


def cell_of_summary(summary: Mapping[str, Any], label: str, data: str, metric: str) -> Cell | None:
    """A model's metric on a set, from an evaluation.

    Args:
        summary: as summary.json has it.
        label: the model's.
        data: name of the set.
        metric: name of the metric.

    Returns:
        None if the summary has no such number.
    """
    return _cell(_find(summary["metrics"], label=label, data=data, metric=metric))


def paired_of_summary(summary: Mapping[str, Any], label: str, baseline: str, data: str, metric: str) -> Cell | None:
    """A model's difference to the baseline; the summary may have it in the other order, and it is turned then.

    Args:
        summary: as summary.json has it.
        label: the model's.
        baseline: the label of the baseline.
        data: name of the set.
        metric: name of the metric.

    Returns:
        None if the summary has no such number.
    """
    found = _cell(_find(summary["differences"], a=label, b=baseline, data=data, metric=metric))
    if found is not None:
        return found
    turned = _cell(_find(summary["differences"], a=baseline, b=label, data=data, metric=metric))
    return None if turned is None else Cell(-turned.value, turned.half, turned.over, turned.count)


def _find(rows: Sequence[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def _cell(row: Mapping[str, Any] | None) -> Cell | None:
    return None if row is None else Cell(row["value"], row["ci95"], PROBLEMS, 1)
