"""A table's cells, laid out: rows, groups of columns, and each cell with its difference; as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipes.reproduce.measured import Cell
from recipes.reproduce.tables import Row


@dataclass(frozen=True)
class Column:
    """One measure in one group (a world or an experiment). `key`: of its cells."""

    group: str
    title: str
    explained: str
    factor: float
    digits: int
    key: str


@dataclass(frozen=True)
class Shown:
    """A cell as text: `value` with its interval, `difference` with its own, or ""; `side`: of the difference."""

    value: str
    difference: str
    side: int | None


@dataclass(frozen=True)
class Matrix:
    """`cells`, `differences`: (row's label, column's group, column's key) -> cell; `worth`: (control's label, group) ->
    difference in accuracy of the method that it is a control of to the control."""

    baseline: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    differences: Mapping[tuple[str, str, str], Cell]
    worth: Mapping[tuple[str, str], Cell]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(column.group for column in self.columns))

    def shown(self, row: Row, column: Column) -> Shown:
        """The texts of a cell; a dash where there is no number."""
        place = (row.label, column.group, column.key)
        found, difference = self.cells.get(place), self.differences.get(place)
        return Shown(
            value=text(found, column),
            difference="" if difference is None else text(difference, column, signed=True),
            side=None if difference is None else difference.side,
        )

    def by_row(self, key: str) -> dict[str, dict[str, Cell | None]]:
        """group -> row's label -> difference in one measure."""
        return {
            group: {row.label: self.differences.get((row.label, group, key)) for row in self.rows}
            for group in self.groups
        }


def text(cell: Cell | None, column: Column, *, signed: bool = False) -> str:
    """A number with its interval in the column's unit."""
    if cell is None:
        return "–"
    form = f"{'+' if signed else ''}.{column.digits}f"
    half = "" if cell.half is None else f" ± {column.factor * cell.half:.{column.digits}f}"
    return f"{column.factor * cell.value:{form}}{half}".replace("-", "−")


def markdown(matrix: Matrix) -> str:
    """One table a group, each cell `value ± half (difference ± half)`; for READMEs."""
    parts = []
    for group in matrix.groups:
        columns = [column for column in matrix.columns if column.group == group]
        lines = []
        for row in matrix.rows:
            shown = [matrix.shown(row, column) for column in columns]
            if all(cell.value == "–" for cell in shown):
                continue
            cells = [f"{cell.value}{f' ({cell.difference})' if cell.difference else ''}" for cell in shown]
            lines.append(f"| {row.label} | {' | '.join(cells)} |")
        if lines:
            head = f"| {group} | {' | '.join(column.title for column in columns)} |"
            parts.append("\n".join([head, f"|---{'|---' * len(columns)}|", *lines]))
    return "\n\n".join(parts)


def overs(cells: Sequence[Cell]) -> list[str]:
    """Of what the intervals are: "seeds", "problems", both or neither."""
    return sorted({cell.over for cell in cells if cell.half is not None})
