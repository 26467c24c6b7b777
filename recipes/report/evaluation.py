"""The numbers of an evaluation's report: summary.json as figures and tables.

They are taken as summary.json has them; nothing is computed anew, so page, console and JSON cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from recipes.evaluate.names import AVERAGE, EXECUTION, EXPLORATION, Columns, accuracy_columns, main_metrics
from recipes.evaluate.plan import SETTINGS
from recipes.evaluate.summary import FORMAT, SUMMARY
from recipes.report.figures import SERIES, Line, curves, intervals, stacked_bars
from recipes.report.panels import Shown
from recipes.report.preset import Comparison, NoPreset, compare_evaluation
from recipes.report.run_data import NotARun

# Statuses of a graded response -> (heading, colour from 1), from the bottom of the figure up.
STATUSES = {
    "correct": ("right", 3),
    "wrong": ("wrong", 2),
    "no_answer": ("no answer", 4),
    "timeout": ("grading timed out", 7),
    "error": ("grading failed", 8),
}
MOST_ROWS = 40  # of a figure with numbered rows

Row = Mapping[str, Any]


def load_evaluation(directory: Path) -> dict[str, Any]:
    """An evaluation's summary.

    Raises:
        NotARun: it has none, since it never ended, or one that cannot be read.
    """
    path = directory / SUMMARY
    again = f"start the evaluation again with hydra.run.dir={directory}: what is complete is kept"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotARun(f"{directory} has no {SUMMARY}: the evaluation was killed, or still goes on; {again}") from None
    except (OSError, ValueError) as error:
        raise NotARun(f"{path} cannot be read ({error}); {again}") from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise NotARun(f"{path} is not of format {FORMAT}; {again}")
    return summary


def find_evaluations(path: Path) -> list[Path]:
    """The evaluation directories at or below a path, sorted."""
    return [path] if (path / SETTINGS).exists() else sorted(p.parent for p in path.rglob(SETTINGS))


def labels_of(summary: Row) -> list[str]:
    """The models' labels in order; a label's place is its colour."""
    return list(dict.fromkeys(row["label"] for row in summary["metrics"]))


def sets_of(summary: Row) -> list[str]:
    """The names of the sets in order, their average, if there is one, first."""
    found = list(dict.fromkeys(row["data"] for row in summary["metrics"]))
    return sorted(found, key=lambda data: data != AVERAGE)


def colour_of(summary: Row, label: str) -> int:
    """The number of a label's colour, from 1; labels that have none of their own share `SERIES` + 1.

    Args:
        summary: summary.json, whose order of labels decides.
        label: a model's.
    """
    shown = shown_labels(summary)
    return min(shown.index(label), SERIES) + 1 if label in shown else SERIES + 1


# ---------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Cell:
    """A number as text, and a smaller text below it."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class GridRow:
    """The numbers of a model on a set.

    Attributes:
        label: the model's.
        colour: number of the label's colour, from 1.
        data: the set.
        problems: how many the set has.
        cells: one for each metric of the grid.
    """

    label: str
    colour: int
    data: str
    problems: int
    cells: list[Cell]


@dataclass(frozen=True)
class Grid:
    """A table with a line for each model and set, and a column for each metric that occurs."""

    head: list[str]
    rows: list[GridRow]


def number(row: Row | None, factor: float, digits: int, *, signed: bool = False) -> str:
    """A value with half of its interval as text, such as "41.3 ± 2.0"; "–" if it is not there.

    Args:
        row: a metric's, with ``value`` and ``ci95`` (half-width of the 95 % interval, or None).
        factor: value and interval are multiplied by it, 100 for per cent.
        digits: after the point.
        signed: whether a plus sign is written too.
    """
    if row is None:
        return "–"
    text = f"{factor * row['value']:{'+' if signed else ''}.{digits}f}"
    half = "" if row["ci95"] is None else f" ± {factor * row['ci95']:.{digits}f}"
    return text.replace("-", "−") + half


def grid(summary: Row, metrics: Columns) -> Grid | None:
    """The table of some metrics; None if none of them occurs.

    Args:
        summary: summary.json.
        metrics: metric -> (heading, factor, digits); the last two as in `number`.
    """
    present = {row["metric"] for row in summary["metrics"]}
    columns = {name: look for name, look in metrics.items() if name in present}
    if not columns:
        return None
    rows = []
    for (label, data), cells in _by(summary["metrics"], "label", "data"):
        texts = [
            Cell(number(cells.get(m), factor, digits), _over_seeds(cells.get(m), factor, digits))
            for m, (_, factor, digits) in columns.items()
        ]
        problems = next(iter(cells.values()))["problems"]
        rows.append(GridRow(label, colour_of(summary, label), data, problems, texts))
    return Grid([heading for heading, _, _ in columns.values()], rows)


def grids(summary: Row) -> tuple[Grid | None, list[tuple[str, Grid]]]:
    """The tables of the page.

    Args:
        summary: summary.json.

    Returns:
        (accuracy, (name, table) of each part of reasoning health that was measured).
    """
    health = (("Exploration", EXPLORATION), ("Execution", EXECUTION))
    found = [(name, table) for name, metrics in health if (table := grid(summary, metrics))]
    return grid(summary, accuracy_columns(summary["metrics"])), found


def _over_seeds(row: Row | None, factor: float, digits: int) -> str:
    if row is None or "std" not in row:
        return ""
    return f"sd {factor * row['std']:.{digits}f}, {len(row['seeds'])} seeds"


def _by(rows: Sequence[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], dict[str, Row]]]:
    """Rows that agree in the keys, as a mapping by metric, in order."""
    for place, group in groupby(rows, key=lambda row: tuple(row[key] for key in keys)):
        yield place, {row["metric"]: row for row in group}


@dataclass(frozen=True)
class Difference:
    """A pair of models on a set.

    Attributes:
        number: of the row, from 1, as the figure numbers it.
        a: label of the first model.
        b: label of the second, which is subtracted.
        data: the set.
        problems: how many the two were compared on.
        cells: for each metric the difference as text, and whether its interval leaves out zero.
    """

    number: int
    a: str
    b: str
    data: str
    problems: int
    cells: list[tuple[str, bool]]


@dataclass(frozen=True)
class Differences:
    """Paired differences of models, a − b.

    Attributes:
        head: the metrics' headings.
        accuracies: how many of them, from the first, are accuracies.
        rows: a pair and set each.
        figure: the first metric's differences, row by row.
    """

    head: list[str]
    accuracies: int
    rows: list[Difference]
    figure: Shown


def differences(summary: Row) -> Differences | None:
    """Differences in accuracy and reasoning health of each pair of models; None with a single model."""
    rows = summary["differences"]
    accuracy = {name: (name.capitalize(), 100.0, 1) for name in main_metrics(rows)}
    present = {row["metric"] for row in rows}
    columns = {name: look for name, look in (accuracy | EXPLORATION | EXECUTION).items() if name in present}
    if not columns:
        return None
    first, found, ranges = next(iter(columns)), [], []
    for index, ((a, b, data), cells) in enumerate(_by(rows, "a", "b", "data"), 1):
        problems = next(iter(cells.values()))["problems"]
        texts = [
            (number(cells.get(m), factor, digits, signed=True), _apart(cells.get(m)))
            for m, (_, factor, digits) in columns.items()
        ]
        found.append(Difference(index, a, b, data, problems, texts))
        row = cells.get(first)
        if row is not None and index <= MOST_ROWS:
            ranges.append(tuple(None if row[k] is None else 100 * row[k] for k in ("value", "low", "high")))
    heading = columns[first][0]
    figure = Shown(
        f"Difference in {heading}",
        "points, with 95 % intervals; rows are numbered as in the table, coloured where the interval leaves out 0",
        intervals(ranges),
        [],
    )
    return Differences([h for h, _, _ in columns.values()], len(accuracy), found, figure)


def _apart(row: Row | None) -> bool:
    return row is not None and row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


# ---------------------------------------------------------------------- figures


def shown_labels(summary: Row) -> list[str]:
    """Leave out a run's checkpoints before its last, which are on its curve.

    Args:
        summary: summary.json.

    Returns:
        The labels of the models that stand for themselves, in order.
    """
    between = {p["label"] for curve in summary.get("curves") or () for p in curve["points"][:-1]}
    return [label for label in labels_of(summary) if label not in between]


def accuracy_panels(summary: Row) -> list[Shown]:
    """For each set a figure of Pass@k over k with the band of its interval, and Maj@n as a diamond to the right."""
    labels = shown_labels(summary)
    panels = []
    for data in sets_of(summary):
        lines, ks, legend = [], set(), []
        for place, label in enumerate(labels):
            cells = {r["metric"]: r for r in summary["metrics"] if (r["label"], r["data"]) == (label, data)}
            points = sorted((int(name[5:]), row) for name, row in cells.items() if name.startswith("pass@"))
            if not points:
                continue
            ks |= {k for k, _ in points}
            lines.append(interval_line([k for k, _ in points], [row for _, row in points], place))
            majority = [row for name, row in cells.items() if name.startswith("maj@")]
            right = points[-1][0] * 2 ** (0.35 + 0.12 * place)
            lines += [interval_line([right], [row], place, symbol="D") for row in majority]
            legend.append((label, min(place, SERIES) + 1, False))
        if lines:
            name = "Average of the sets" if data == AVERAGE else data
            figure = curves(lines, percent=True, doubling=sorted(ks))
            panels.append(Shown(name, "Pass@k over k; diamond: Maj@n", figure, legend if len(labels) > 1 else []))
    return panels


def interval_line(
    x: Sequence[float], rows: Sequence[Row], colour: int, symbol: str = "o", *, band: bool = True
) -> Line:
    """A line through rows of the summary, which are shares, with a band of their intervals where all have one."""
    known = band and all(row["low"] is not None for row in rows)
    return Line(
        x,
        [row["value"] for row in rows],
        colour=colour,
        low=[max(0.0, row["low"]) for row in rows] if known else None,
        high=[min(1.0, row["high"]) for row in rows] if known else None,
        markers=True,
        symbol=symbol,
    )


@dataclass(frozen=True)
class Outcomes:
    """What became of the responses.

    Attributes:
        head: headings of the statuses that occur.
        rows: for each model, seed and set.
        figure: the shares of the statuses, row by row.
    """

    head: list[str]
    rows: list[tuple[int, int, Row, list[str]]]  # number, colour of the label, the counts, a text each status
    figure: Shown


def outcomes(summary: Row) -> Outcomes | None:
    """Counts of every status; None if nothing was answered."""
    counts = summary["counts"]
    if not counts:
        return None
    present = {status: look for status, look in STATUSES.items() if any(row.get(status) for row in counts)}
    rows = [
        (index, colour_of(summary, row["label"]), row, [f"{row.get(status, 0):,}" for status in present])
        for index, row in enumerate(counts, 1)
    ]
    shown = counts[:MOST_ROWS]
    parts = {
        colour - 1: np.array([100 * row.get(status, 0) / max(1, row["responses"]) for row in shown])
        for status, (_, colour) in present.items()
    }
    figure = Shown(
        "Outcomes",
        "per cent of the responses; columns are numbered as the table's rows",
        stacked_bars(list(range(1, len(shown) + 1)), parts),
        [(heading, colour, False) for heading, colour in present.values()],
    )
    return Outcomes([heading for heading, _ in present.values()], rows, figure)


# ---------------------------------------------------------------------- what was asked


def preset_of(summary: Row) -> Comparison | str:
    """What differs from the preset, or a sentence that says why that is not known."""
    if not summary.get("preset"):
        return f"{SUMMARY} does not say which preset the evaluation was started with"
    try:
        return compare_evaluation(summary["preset"], summary["config"])
    except NoPreset as error:
        return str(error)


def facts_of(summary: Row) -> list[str]:
    """What every number of the page depends on, such as "temperature 0.6", a few words each."""
    s = summary["settings"]
    top_k = [f"top-k {s['top_k']}"] if s["top_k"] > 0 else []
    return [
        f"{s['samples']} samples a problem",
        f"temperature {s['temperature']:g}",
        f"top-p {s['top_p']:g}",
        *top_k,
        f"at most {s['max_tokens']:,} tokens",
        f"{s['engine']}, {s['dtype']}",
    ]
