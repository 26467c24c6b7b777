"""What an evaluation's page shows beside its main numbers: accuracy over a run's checkpoints, and by what varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.evaluate.checkpoints import selected_on
from recipes.evaluate.names import AVERAGE, BREAKDOWNS, problems_of
from recipes.report.evaluation import interval_line, number
from recipes.report.figures import SERIES, curves
from recipes.report.panels import Shown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: its headings.
        rows: (name, note below it, numbers).
    """

    head: list[str]
    rows: list[tuple[str, str, list[str]]]


@dataclass(frozen=True)
class Checkpoints:
    """Accuracy over runs' checkpoints.

    Attributes:
        metric: its heading.
        panels: a figure for each set.
        best: the best checkpoints.
        biased: whether some of them are reported on what selected them.
        points: every point of the figures.
    """

    metric: str
    panels: list[Shown]
    best: Table
    biased: bool
    points: Table


@dataclass(frozen=True)
class Breakdown:
    """Accuracy by one quantity.

    Attributes:
        heading: names the quantity.
        parts: a figure and a table for each set.
    """

    heading: str
    parts: list[tuple[Shown, Table]]


def checkpoints(summary: Row) -> Checkpoints | None:
    """Make the section of runs' checkpoints.

    Args:
        summary: summary.json.

    Returns:
        The section; None if no run's checkpoints were evaluated.
    """
    drawn = summary.get("curves") or []
    if not drawn:
        return None
    runs = list(dict.fromkeys(curve["run"] for curve in drawn))
    best = summary.get("best") or []
    metric = drawn[0]["metric"].capitalize()
    panels = []
    for data in sorted(dict.fromkeys(c["data"] for c in drawn), key=lambda d: d != AVERAGE):
        lines, legend = [], []
        for place, run in enumerate(runs):
            points = next((c["points"] for c in drawn if (c["run"], c["data"]) == (run, data)), [])
            if not points:
                continue
            lines.append(interval_line([p["step"] for p in points], points, min(place, SERIES)))
            chosen = [row for row in best if (row["run"], row["data"]) == (run, data)]
            lines += [interval_line([row["step"]], [row], min(place, SERIES), symbol="D", band=False) for row in chosen]
            legend.append((run, min(place, SERIES) + 1, False))
        steps = sorted({x for line in lines for x in line.x})
        figure = curves(lines, percent=True, ticks=steps if len(steps) < 8 else ())
        name = "Average of the sets" if data == AVERAGE else data
        panels.append(Shown(name, f"{metric} over steps; diamond: the best", figure, legend if len(runs) > 1 else []))
    rows = [
        (
            row["run"],
            f"{row['data']}, selected on {selected_on(row)}",
            [
                str(row["of"]),
                str(row["step"]),
                number(row, 100, 1),
                str(row["last_step"]),
                f"{100 * row['last_value']:.1f}",
            ],
        )
        for row in best
    ]
    table = Table(["Run, data", "checkpoints", "best step", metric, "last step", "there"], rows)
    exposed = any("exposure" in p for c in drawn for p in c["points"])
    points = [
        (
            c["run"],
            c["data"],
            [
                str(p["step"]),
                number(p, 100, 1),
                str(p["problems"]),
                *([f"{p['exposure']:.2f}" if "exposure" in p else ""] if exposed else []),
            ],
        )
        for c in drawn
        for p in c["points"]
    ]
    head = ["Run, data", "step", metric, "problems", *(["exposure α"] if exposed else [])]
    return Checkpoints(metric, panels, table, any(row["biased"] for row in best), Table(head, points))


def breakdowns(summary: Row, shown: Sequence[str]) -> list[Breakdown]:
    """Make the sections of accuracy by difficulty, length and exposure, as far as the summary has them.

    Args:
        summary: summary.json.
        shown: labels of the models that are shown.

    Returns:
        The sections.
    """
    found = []
    for field, (heading, column, form) in BREAKDOWNS.items():
        rows = [row for row in summary.get(field) or [] if row["label"] in shown]
        parts = []
        for data in dict.fromkeys(row["data"] for row in rows):
            here = [row for row in rows if row["data"] == data]
            labels = [label for label in shown if any(row["label"] == label for row in here)]
            levels = sorted({row["level"] for row in here})
            by_place = {(row["label"], row["level"]): row for row in here}
            lines, legend = [], []
            for label in labels:
                place = min(list(shown).index(label), SERIES)
                points = [by_place[label, level] for level in levels if (label, level) in by_place]
                lines.append(interval_line([row["level"] for row in points], points, place))
                legend.append((label, place + 1, False))
            figure = curves(lines, percent=True, ticks=levels if len(levels) < 12 else ())
            note = f"accuracy by {heading}"
            panel = Shown(data, note, figure, legend if len(labels) > 1 else [])
            texts = []
            for level in levels:
                cells = [by_place.get((label, level)) for label in labels]
                first = next(cell for cell in cells if cell is not None)
                name = first.get("range") or form.format(level)
                problems = problems_of(cell for cell in cells if cell is not None)
                texts.append((name, "", [problems, *(number(cell, 100, 1) for cell in cells)]))
            parts.append((panel, Table([column, "problems", *labels], texts)))
        if parts:
            found.append(Breakdown(f"By {heading}", parts))
    return found
