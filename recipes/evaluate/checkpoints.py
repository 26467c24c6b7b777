"""A run's checkpoints: which are evaluated, accuracy against step, and the best of them with what it was chosen on.

The best of several checkpoints on the problems that chose it is biased upwards: of K equal ones the luckiest is taken.
Every row here therefore says on what it was selected, and whether that is what it is reported on.  Choosing on one set
(or by the validation of training) and reporting on others has no such bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from recipes.common.checks.errors import SettingsError
from recipes.common.models import checkpoints_folder, tracked_step
from recipes.common.record.checkpoints import steps_of
from recipes.common.record.console import validation_accuracy
from recipes.common.record.run_dir import CHECKPOINTS, read_metrics
from recipes.evaluate.names import AVERAGE, accuracy_names

CHOICES = ("last", "all", "best")
VALIDATION = "val"  # of `selection=`: the validation that the run did while it trained
EXPOSURE = "exposure/alpha"

Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A model to evaluate: what it is called, and where it is.

    Attributes:
        label: in tables and figures.
        name: as ``model=`` takes it.
        run: label of the run whose checkpoint it is, where its checkpoints make a curve; runs of one label are seeds.
    """

    label: str
    name: str
    run: str | None = None


@dataclass(frozen=True)
class Trained:
    """What a run's own record says of its steps.

    Attributes:
        accuracy: step -> validation accuracy, averaged over the run's validation sets.
        sets: names of these sets.
        exposure: step -> α in force, where the run had one.
    """

    accuracy: Mapping[int, float]
    sets: frozenset[str]
    exposure: Mapping[int, float]


def trained(name: str) -> Trained | None:
    """Read what a run recorded of its own steps.

    Args:
        name: of a run directory, or of a checkpoint in one.

    Returns:
        Its record; None if it has neither validations nor exposures.
    """
    accuracy, exposure, sets = {}, {}, set()
    for record in read_metrics(_home(name)):
        found = validation_accuracy(record)
        if found is not None:
            accuracy[record["step"]] = found[1]
            sets |= {key.split("/")[1] for key in record if key.startswith("val-core/")}
        if record.get(EXPOSURE) is not None:
            exposure[record["step"]] = record[EXPOSURE]
    return Trained(accuracy, frozenset(sets), exposure) if accuracy or exposure else None


def trained_runs(places: Iterable[tuple[str, str]]) -> dict[str, Trained]:
    """Read what several runs recorded of their own steps.

    Args:
        places: (run's label, name of a checkpoint or run directory).

    Returns:
        The record of each label; of several runs under one label the mean, at steps that all of them have.
    """
    found: dict[str, dict[Path, Trained]] = {}
    for label, name in places:
        record = trained(name)
        if record is not None:
            found.setdefault(label, {})[_home(name)] = record
    return {
        label: Trained(
            _means([record.accuracy for record in records.values()]),
            frozenset().union(*(record.sets for record in records.values())),
            _means([record.exposure for record in records.values()]),
        )
        for label, records in found.items()
    }


def _means(columns: Sequence[Mapping[int, float]]) -> dict[int, float]:
    shared = set.intersection(*map(set, columns))
    return {step: sum(column[step] for column in columns) / len(columns) for step in sorted(shared)}


def _home(name: str) -> Path:
    """The run directory of a run's or a checkpoint's name."""
    path = Path(name).resolve()
    return next((p.parent for p in (path, *path.parents) if p.name == CHECKPOINTS), path)


def chosen_models(models: Iterable[tuple[str, str]], choice: str) -> tuple[list[Chosen], list[str]]:
    """Choose the checkpoints of the runs among some models.

    Args:
        models: (label, name) as ``model=`` has them; what is no run directory is left as it is.
        choice: "last" for the last complete checkpoint of each run, "all" for every one, "best" for the one that the
            run's own validation puts first.

    Returns:
        The models to evaluate, and sentences about how they were chosen.

    Raises:
        SettingsError: if there is no run among them, or no complete checkpoint, or none that was validated.
    """
    found: list[Chosen] = []
    notes: list[str] = []
    wrong: list[str] = []
    runs = 0
    for label, name in models:
        folder = checkpoints_folder(Path(name))
        if choice == "last" or folder is None:
            found.append(Chosen(label, name))
            continue
        runs += 1
        try:
            last = tracked_step(name, folder)
            # A folder of a later step is what an interrupted save left.
            steps = [step for step in steps_of(folder) if step <= last]
            if choice == "best":
                steps, note = _best_validated(label, name, steps)
                notes.append(note)
        except SettingsError as error:
            wrong += error.problems
            continue
        for step in steps:
            place = str(folder / f"global_step_{step}")
            found.append(Chosen(label, place) if choice == "best" else Chosen(f"{label}, step {step}", place, label))
    if choice != "last" and not runs:
        wrong.append(f"checkpoints={choice}: none of the models is a run directory; give one, or checkpoints=last")
    if wrong:
        raise SettingsError(wrong)
    return found, notes


def _best_validated(label: str, name: str, steps: Sequence[int]) -> tuple[list[int], str]:
    record = trained(name)
    validated = {} if record is None else {step: record.accuracy[step] for step in steps if step in record.accuracy}
    if record is None or not validated:
        raise SettingsError(
            [
                f"checkpoints=best: no checkpoint of model={name} (steps {', '.join(map(str, steps))}) was validated; "
                "train with trainer.test_freq, or evaluate checkpoints=all"
            ]
        )
    step = max(validated, key=lambda s: (validated[s], -s))
    sets = ", ".join(sorted(record.sets))
    return [step], (
        f"{label}: step {step} is the best of {len(validated)} checkpoints by the run's own validation on {sets} "
        f"({100 * validated[step]:.1f} %), where its accuracy is therefore biased upwards"
    )


def curves(metrics: Sequence[Row], runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Order the accuracies of runs' checkpoints by step.

    Args:
        metrics: rows of summary.json.
        runs: its entries of models; those with a ``run`` are checkpoints.

    Returns:
        For each run and set ``{run, data, metric, points}``. Points, by step, are rows ``{step, label, value, ci95,
        low, high, problems}`` and, where known, ``exposure``.
    """
    places = {run["label"]: run for run in runs if run.get("run") is not None}
    rows = []
    for metric in accuracy_names(metrics)[:1]:
        points = [
            {
                "run": places[row["label"]]["run"],
                "data": row["data"],
                "step": places[row["label"]]["step"],
                **{key: row[key] for key in ("label", "value", "ci95", "low", "high", "problems")},
                **({"exposure": alpha} if (alpha := places[row["label"]].get("exposure")) is not None else {}),
            }
            for row in metrics
            if row["label"] in places and row["metric"] == metric
        ]
        order = {name: number for number, name in enumerate(dict.fromkeys((p["run"], p["data"]) for p in points))}
        points.sort(key=lambda p: (order[p["run"], p["data"]], p["step"]))
        for (run, data), group in groupby(points, key=lambda p: (p["run"], p["data"])):
            own = [{key: value for key, value in p.items() if key not in ("run", "data")} for p in group]
            rows.append({"run": run, "data": data, "metric": metric, "points": own})
    return rows


def best(drawn: Sequence[Mapping[str, Any]], selection: str | None, recorded: Mapping[str, Trained]) -> list[Row]:
    """Find the best checkpoint of each run on each set, with what it was selected on.

    Args:
        drawn: of `curves`.
        selection: None to choose on each set itself, a set's name to choose on that one, `VALIDATION` to choose by the
            run's validation.
        recorded: run -> its own record, for its validation.

    Returns:
        Rows with ``run, data, metric, selected_on, biased`` (whether problems that chose it are among those that it is
        reported on), ``of`` (number of checkpoints), ``last_step, last_value`` and the chosen point's fields.  A run
        whose selection is not known has no rows.
    """
    rows = []
    for curve in drawn:
        run, data = curve["run"], curve["data"]
        points = {p["step"]: p for p in curve["points"]}
        record = recorded.get(run)
        scores: Mapping[int, float] = {}
        if selection == VALIDATION:
            scores, chose = (record.accuracy, record.sets) if record is not None else ({}, frozenset())
            on = f"the run's validation ({', '.join(sorted(chose))})"
        else:
            on = selection or data
            chose = frozenset({on})
            same = [c["points"] for c in drawn if (c["run"], c["data"]) == (run, on)]
            scores = {p["step"]: p["value"] for own in same for p in own}
        usable = [step for step in points if step in scores]
        if not usable:
            continue
        step = max(usable, key=lambda s: (scores[s], -s))  # of equals the earlier
        last = max(points)
        averaged = {c["data"] for c in drawn if data == AVERAGE}
        rows.append(
            {
                "run": run,
                "data": data,
                "metric": curve["metric"],
                "selected_on": on,
                "biased": bool(chose & {data, *averaged}),
                "of": len(usable),
                "last_step": last,
                "last_value": points[last]["value"],
                **points[step],
            }
        )
    return rows


def selected_on(row: Mapping[str, Any]) -> str:
    """Say what a best checkpoint was selected on.

    Args:
        row: of `best`.

    Returns:
        A few words.
    """
    what = "these problems" if row["selected_on"] == row["data"] else row["selected_on"]
    return what + (", biased" if row["biased"] else "")


def bias_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which best checkpoints look better than they are.

    Args:
        rows: of `best`.

    Returns:
        One sentence, or [] if nothing is biased.
    """
    biased = [row for row in rows if row["biased"] and row["of"] > 1 and row["data"] != AVERAGE]
    if not biased:
        return []
    sets = ", ".join(dict.fromkeys(row["data"] for row in biased))
    return [
        f"the best checkpoint on {sets} was selected on the problems that it is reported on, of "
        f"{max(row['of'] for row in biased)}: its accuracy is biased upwards; selection=<set> or selection=val chooses "
        "on others"
    ]
