"""Accuracy by what problems, responses or prompts differ in: difficulty, the response's length, the teacher's exposure.

Each function gives records like those of `estimates.summarize` with ``level``, by which they are ordered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.evaluate.estimates import Evaluation, common_ids, estimates_of, places_of, row_of
from recipes.evaluate.metrics import over_seeds, ratio

MOST_LEVELS = 20  # of difficulty that are shown as they are


def by_difficulty(
    evaluations: Sequence[Evaluation], difficulties: Mapping[str, Mapping[str, float | None]]
) -> list[dict[str, Any]]:
    """Avg@n of the problems of each difficulty, as records like those of `summarize`, with ``level``, the difficulty.

    Args:
        difficulties: set -> problem id -> difficulty.  Where a set has more than `MOST_LEVELS` different ones they are
            rounded down to whole numbers.
    """
    rows = []
    for (label, data), runs in places_of(evaluations).items():
        known = {i: d for i, d in difficulties.get(data, {}).items() if d is not None}
        if len(set(known.values())) > MOST_LEVELS:
            known = {i: float(d // 1) for i, d in known.items()}
        levels: dict[float, list[str]] = {}
        for i in common_ids(runs):
            if i in known:
                levels.setdefault(known[i], []).append(i)
        for level in sorted(levels):
            for metric, (estimate, values) in estimates_of(runs, levels[level]).items():
                if metric.startswith("avg@"):
                    row = row_of(estimate, values, label=label, data=data, metric=metric)
                    rows.append({**row, "level": level})
    return rows


def by_length(evaluations: Sequence[Evaluation], quantiles: int = 4) -> list[dict[str, Any]]:
    """Accuracy of the responses in each quantile of length, as records like those of `summarize`.

    The quantiles are those of all responses to a set, of whatever model, so that models are compared at equal lengths.
    Quantiles between which no length lies are one; where all are equally long there are none.

    Args:
        evaluations: with the lengths of their responses.
        quantiles: how many.

    Returns:
        Records with ``level``, the quantile from 1, ``range``, its tokens, and ``responses``, how many there are.
    """
    rows = []
    places = places_of(evaluations)
    for data in dict.fromkeys(data for _, data in places):
        here = {label: runs for (label, d), runs in places.items() if d == data}
        tokens = np.array([t for runs in here.values() for run in runs for r in run.lengths.values() for t, _ in r])
        if not tokens.size:
            continue
        cuts = np.unique(np.quantile(tokens, np.linspace(0, 1, quantiles + 1)[1:-1], method="inverted_cdf"))
        cuts = cuts[cuts < tokens.max()]  # a bin holds what is longer than the cut below it, and up to its own
        bins = np.searchsorted(cuts, tokens, side="left")
        if not cuts.size:
            continue  # all equally long
        ranges = [(int(tokens[bins == b].min()), int(tokens[bins == b].max())) for b in range(len(cuts) + 1)]
        for label, runs in here.items():
            ids = common_ids(runs)
            for b, (low, high) in enumerate(ranges):
                # (seed, problem, 2): right responses of this length, and all of them; problems without any are no draw.
                found = np.array([[_within(run.lengths[i], low, high) for i in ids] for run in runs])
                found = found[:, found[..., 1].sum(axis=0) > 0]
                estimates = [ratio(of_run[:, 0], of_run[:, 1]) for of_run in found]
                known = [e for e in estimates if e is not None]
                if len(known) < len(runs):
                    continue
                row = row_of(over_seeds(known), [e.value for e in known], label=label, data=data, metric="accuracy")
                what = {"level": b + 1, "range": f"{low}–{high}" if low < high else str(low)}
                rows.append({**row, **what, "responses": int(found[..., 1].sum())})
    return rows


def _within(responses: Sequence[tuple[int, bool]], low: int, high: int) -> tuple[int, int]:
    """(right ones, all) of the responses with so many tokens."""
    rights = [right for tokens, right in responses if low <= tokens <= high]
    return sum(rights), len(rights)


def by_exposure(metrics: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Order the accuracies of teachers by what they see of the solution.

    Args:
        metrics: rows of summary.json.
        runs: its entries of models; those with a ``teacher`` are teachers.

    Returns:
        Rows of Avg@n under the student's label, with ``level``, the exposure; none if a student's teacher has only one.
    """
    teachers = {run["label"]: run["teacher"] for run in runs if run.get("teacher")}
    exposures: dict[str, set[float]] = {}
    for teacher in teachers.values():
        exposures.setdefault(teacher["student"], set()).add(teacher["exposure"])
    rows = [
        {**row, "label": teachers[row["label"]]["student"], "level": teachers[row["label"]]["exposure"]}
        for row in metrics
        if row["label"] in teachers and row["metric"].startswith("avg@")
    ]
    return [row for row in rows if len(exposures[row["label"]]) > 1]
