"""What there is to reproduce: descriptions of tables and figures, ``config/tables/*.yaml``, read and checked.

A description names rows (a label, overrides of the training command, the paper's numbers), a baseline, and what is
measured; at ``scale=starter`` its rows are trained in the embedded worlds, at ``scale=gpu`` in the paper's experiments.
One of a diagnostic names commands instead. Rows whose method this version does not have are left out, and said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from config import CONFIG_DIR
from recipes.common.checks.errors import SettingsError
from recipes.common.method import shipped

FOLDER = CONFIG_DIR / "tables"
ALL = "all"  # rows: all methods that there are
STARTER, GPU = SCALES = ("starter", "gpu")
# Seconds of a run on two cores, for forecasts: start and end, a step, the validation at the end.
SECONDS = {"starter": (20, 1.7, 6), "starter_shortcut": (20, 1.4, 5), "smollm2_135m": (20, 105, 150)}
OTHERWISE = (20, 1.7, 6)


@dataclass(frozen=True)
class Row:
    """A method with its settings.

    Attributes:
        label: for people.
        overrides: of the training command.
        paper: experiment -> the paper's numbers, as many as the table has `sets`; None where it has none.
        control: label of the row that it is a control of: the same method, its teacher not shown the problem's own
            reference; None for the methods themselves.
    """

    label: str
    overrides: tuple[str, ...]
    paper: dict[str, list[float | None]]
    control: str | None = None

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return slug(self.overrides)


def slug(overrides: Sequence[str]) -> str:
    """A name for folders: the method, and the ends of the other keys with their values.

    Args:
        overrides: of the training command; "" for none.
    """
    parts = [override.partition("=") for override in overrides]
    method = [value for key, _, value in parts if key == "method"]
    others = [f"{'.'.join(key.split('.')[-2:])}_{value}" for key, _, value in parts if key != "method"]
    return re.sub(r"[^\w.+-]+", "_", "-".join([*method, *others])).strip("_")


@dataclass(frozen=True)
class Scale:
    """Where and how long a table's rows are trained, and how they are evaluated.

    Attributes:
        experiments: of the training command; a group of columns each.
        seeds, steps: of training; steps None: the protocol's.
        overrides: of every row, such as the protocol.
        preset: of the evaluation; None: the validation at the end of each run counts.
    """

    experiments: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int | None
    overrides: tuple[str, ...] = ()
    preset: str | None = None


@dataclass(frozen=True)
class Table:
    """One description.

    Attributes:
        name: as in ``table=<name>``.
        title: what it is, in a line.
        source: where its numbers are from.
        rows: in the order in which they are shown; the first is the baseline.
        metric, sets: of the paper's numbers: such as "Avg@16, %", and a name a column.
        scales: by name.
        commands: of a diagnostic: scale -> argument lists of ``python -m``.
        curves: whether it is a figure of curves over training: a page of them for each experiment.
        needs: what a GPU run needs beyond what the experiment says.
        missing: what cannot be had, in sentences.
        absent: rows that this version has no method for.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    metric: str
    sets: tuple[str, ...]
    scales: dict[str, Scale]
    commands: dict[str, tuple[tuple[str, ...], ...]]
    curves: bool
    needs: str
    missing: tuple[str, ...]
    absent: tuple[str, ...]


def names(folder: Path = FOLDER) -> list[str]:
    """Of all tables, in the order of the files and within them."""
    return list(_descriptions(folder))


def read(name: str, folder: Path = FOLDER) -> Table:
    """A table by its name.

    Args:
        name: of its description.
        folder: where the descriptions are.

    Raises:
        SettingsError: if there is none of that name, or its description is wrong.
    """
    found = _descriptions(folder)
    if name not in found:
        known = ", ".join(found)
        raise SettingsError([f"table={name}: there is none of that name; there are {known}"])
    return table_of(name, found[name], _methods())


@cache
def _methods() -> tuple[str, ...]:
    return tuple(method.name for method in shipped())


@cache
def _descriptions(folder: Path) -> dict[str, dict[str, Any]]:
    """Those of all files; keys that begin with _ are parts that others refer to."""
    return {
        name: description
        for path in sorted(folder.glob("*.yaml"))
        for name, description in yaml.safe_load(path.read_text(encoding="utf-8")).items()
        if not name.startswith("_")
    }


KEYS = {
    "title",
    "source",
    "rows",
    "controls",
    "metric",
    "sets",
    "starter",
    "gpu",
    "commands",
    "curves",
    "needs",
    "missing",
}
ROW_KEYS = {"label", "overrides", "paper", "of"}


def table_of(name: str, description: Mapping[str, Any], methods: Collection[str]) -> Table:
    """A table from its description.

    Args:
        name: the table's.
        description: as its YAML file has it.
        methods: names of those that there are.

    Raises:
        SettingsError: if something is wrong with it; it lists every problem found.
    """
    problems = [
        f"tables: {name} has no key {key!r}; there are {', '.join(sorted(KEYS))}" for key in description.keys() - KEYS
    ]
    given = description.get("rows", [])
    if given == ALL:
        order = sorted(methods, key=lambda method: method != "grpo")  # the baseline first
        given = [{"label": method, "overrides": [f"method={method}"]} for method in order]
    sets = tuple(description.get("sets", ()))
    rows, absent = [], []
    for entry in [*given, *description.get("controls", [])]:
        problems += [f"tables: {name}, row {entry.get('label')}: no key {key!r}" for key in entry.keys() - ROW_KEYS]
        row = Row(entry["label"], tuple(entry.get("overrides", ())), dict(entry.get("paper", {})), entry.get("of"))
        for experiment, numbers in row.paper.items():
            if len(numbers) != len(sets):
                problems.append(
                    f"tables: {name}, {row.label}, {experiment}: {len(numbers)} numbers of {len(sets)} sets"
                )
        method = next((o.partition("=")[2] for o in row.overrides if o.startswith("method=")), None)
        if method is not None and method not in methods:
            absent.append(f"{row.label}: this version has no method={method}")
        else:
            rows.append(row)
    labels = {row.label for row in rows}
    problems += [
        f"tables: {name}, {row.label}: of={row.control} is no row of it"
        for row in rows
        if row.control is not None and row.control not in labels
    ]
    # A row without overrides is a model before training: it has the paper's numbers only.
    trained = [row for row in rows if row.overrides]
    slugs = [row.slug for row in trained]
    problems += [
        f"tables: {name}: two rows would share the folder {s}" for s in sorted({s for s in slugs if slugs.count(s) > 1})
    ]
    if problems:
        raise SettingsError(problems)
    commands = {
        scale: tuple(tuple(command.split()) for command in lines)
        for scale, lines in description.get("commands", {}).items()
    }
    scales = {}
    if trained:
        scales[STARTER] = _scale(
            {"experiments": ["starter", "starter_shortcut"], "seeds": [1, 2, 3], "steps": 20}
            | description.get("starter", {})
        )
        if "gpu" in description:
            scales[GPU] = _scale({"seeds": [1], "steps": None} | description["gpu"])
    return Table(
        name=name,
        title=description["title"],
        source=description.get("source", ""),
        rows=tuple(rows),
        metric=description.get("metric", ""),
        sets=sets,
        scales=scales,
        commands=commands,
        curves=description.get("curves", False),
        needs=description.get("needs", ""),
        missing=tuple(description.get("missing", ())),
        absent=tuple(absent),
    )


def _scale(values: Mapping[str, Any]) -> Scale:
    lists = {key: tuple(values.get(key, ())) for key in ("experiments", "seeds", "overrides")}
    return Scale(**lists, steps=values["steps"], preset=values.get("preset"))


def changed(scale: Scale, *, seeds: list[int] | None, steps: int | None) -> Scale:
    """A scale with the user's seeds and steps, where there are any.

    Args:
        scale: the table's own.
        seeds, steps: of the user; None keeps the scale's.
    """
    return replace(scale, seeds=tuple(seeds) if seeds else scale.seeds, steps=steps or scale.steps)


def trained(table: Table) -> list[Row]:
    """The rows that are trained: all but the model before training."""
    return [row for row in table.rows if row.overrides]


def forecast(table: Table, scale: Scale) -> float:
    """Seconds that a table takes on two cores from nothing, without a GPU.

    Args:
        table: what is reproduced.
        scale: how large.
    """
    total = 0.0
    for experiment in scale.experiments:
        start, step, validation = SECONDS.get(experiment, OTHERWISE)
        total += start + step * (scale.steps or 0) + validation
    return total * len(scale.seeds) * len(trained(table))
