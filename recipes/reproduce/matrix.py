"""A table's cells, laid out: rows, groups of columns, and each cell with its difference; as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipes.reproduce.measured import Cell
from recipes.reproduce.tables import Row


@dataclass(frozen=True)
class Column:
    """One measure in one group (a world or an experiment).

    Attributes:
        group: name of the group.
        title: of the column.
        explained: what the measure is, for the page.
        factor: what values are multiplied by for the reader, such as 100 for per cent.
        digits: shown after the point.
        key: of its cells.
    """

    group: str
    title: str
    explained: str
    factor: float
    digits: int
    key: str


@dataclass(frozen=True)
class Shown:
    """A cell as text.

    Attributes:
        value: the number with its interval.
        difference: likewise, or "".
        side: of the difference, as `Cell.side`; None where there is none.
    """

    value: str
    difference: str
    side: int | None


@dataclass(frozen=True)
class Matrix:
    """All cells of a table.

    Attributes:
        baseline: label of the row that the others are compared with.
        rows: from above.
        columns: from the left; those of one group stand together.
        cells, differences: (row's label, column's group, column's key) -> cell.
        worth: (control's label, group) -> difference in accuracy of the method that it is a control of to the control.
    """

    baseline: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    differences: Mapping[tuple[str, str, str], Cell]
    worth: Mapping[tuple[str, str], Cell]

    @property
    def groups(self) -> list[str]:
        """The groups of columns, from the left."""
        return list(dict.fromkeys(column.group for column in self.columns))

    def shown(self, row: Row, column: Column) -> Shown:
        """The texts of a cell; a dash where there is no number.

        Args:
            row: its row.
            column: its column.
        """
        place = (row.label, column.group, column.key)
        found, difference = self.cells.get(place), self.differences.get(place)
        if difference is None:
            return Shown(text(found, column), "", None)
        # A difference too small for the digits that are shown is not marked as one.
        rounded = round(column.factor * difference.value, column.digits)
        return Shown(text(found, column), text(difference, column, signed=True), difference.side if rounded else 0)

    def by_row(self, key: str) -> dict[str, dict[str, Cell | None]]:
        """group -> row's label -> difference in one measure."""
        return {
            group: {row.label: self.differences.get((row.label, group, key)) for row in self.rows}
            for group in self.groups
        }


def text(cell: Cell | None, column: Column, *, signed: bool = False) -> str:
    """A number with its interval in the column's unit.

    Args:
        cell: the number; None gives a dash.
        column: where it stands.
        signed: whether positive numbers have a sign too.
    """
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
