"""The page of a table: the matrix, what to conclude, the paper's numbers, what cannot be had, and the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.report.page import render_page
from recipes.reproduce.conclusions import conclusions
from recipes.reproduce.matrix import Matrix, overs
from recipes.reproduce.tables import Table


@dataclass(frozen=True)
class Published:
    """The paper's numbers of one experiment: a row a method."""

    experiment: str
    head: list[str]
    rows: list[tuple[str, list[str]]]


def published(table: Table) -> list[Published]:
    """The paper's numbers, as far as the description has them."""
    experiments = list(dict.fromkeys(experiment for row in table.rows for experiment in row.paper))
    return [
        Published(
            experiment,
            list(table.sets),
            _aligned({row.label: row.paper[experiment] for row in table.rows if experiment in row.paper}),
        )
        for experiment in experiments
    ]


def _aligned(numbers: dict[str, list[float | None]]) -> list[tuple[str, list[str]]]:
    """Numbers as text, a column with as many digits as its longest has."""
    digits = [
        max((len(f"{number:g}".partition(".")[2]) for number in column if number is not None), default=0)
        for column in zip(*numbers.values(), strict=True)
    ]
    return [
        (label, ["–" if n is None else f"{n:.{d}f}".replace("-", "−") for n, d in zip(row, digits, strict=True)])
        for label, row in numbers.items()
    ]


def sentences(matrix: Matrix) -> list[str]:
    """What to conclude from a matrix whose columns have "avg", and where there are some, "markers"."""
    others = [row for row in matrix.rows if row.label != matrix.baseline]
    return conclusions(
        matrix.groups,
        matrix.baseline,
        [row.label for row in others if not row.control],
        [row.label for row in others if row.control],
        matrix.by_row("avg"),
        matrix.by_row("markers"),
        matrix.worth,
    )


def intervals_of(matrix: Matrix) -> str:
    """A sentence: of what the intervals are."""
    kinds = overs([*matrix.cells.values(), *matrix.differences.values()])
    seeds = "over seeds, by Student's t, and differences are paired by seed"
    problems = (
        "over problems, and differences are paired by problem: of one run each, so that they do not contain the luck "
        "of a training run"
    )
    said = {
        ("seeds",): f"Intervals are 95 %, {seeds}.",
        ("problems",): f"Intervals are 95 %, {problems}.",
        ("problems", "seeds"): f"Intervals are 95 %: of rows with several seeds {seeds}; of the others {problems}.",
    }
    return said.get(tuple(kinds), "There are no intervals yet.")


def render(
    table: Table,
    matrix: Matrix | None,
    *,
    scale: str,
    facts: Sequence[str],
    notices: Sequence[str],
    curves: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        matrix: None where nothing was measured.
        facts: how it was made, for the line under the title.
        notices: sentences that a reader must see first, such as runs that failed.
        curves: names of the pages of curves beside it.
    """
    return render_page(
        "reproduce.html",
        table=table,
        matrix=matrix,
        scale=scale,
        facts=facts,
        notices=notices,
        curves=curves,
        sentences=sentences(matrix) if matrix else [],
        intervals=intervals_of(matrix) if matrix else "",
        published=published(table),
    )
