"""What a reader should conclude from a matrix, in three sentences that are computed from its numbers.

A row is ahead of the baseline, or behind it, where the interval of its paired difference lies on one side of 0; the
intervals are not corrected for their number, and the last words say how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from recipes.reproduce.measured import PROBLEMS, Cell

Differences = Mapping[str, Mapping[str, Cell | None]]  # group -> row's label -> difference to the baseline


def side(difference: Cell | None) -> int | None:
    """`Cell.side` of a difference; None where there is none."""
    return None if difference is None else difference.side


def conclusions(
    groups: Sequence[str],
    baseline: str,
    methods: Sequence[str],
    controls: Sequence[str],
    accuracy: Differences,
    markers: Differences,
    worth: Mapping[tuple[str, str], Cell],
) -> list[str]:
    """Three sentences, or the one that there is nothing to conclude yet.

    Args:
        groups: names of the worlds or experiments.
        baseline: the row that the others are compared with.
        methods, controls: labels of the rows that are one or the other, without the baseline.
        accuracy, markers: differences to the baseline.
        worth: (control's label, group) -> accuracy of its method minus its own.
    """
    groups = [group for group in groups if any(side(cell) is not None for cell in accuracy[group].values())]
    known = [row for row in methods if any(side(accuracy[group].get(row)) is not None for group in groups)]
    if not known:
        return [f"There is nothing to conclude yet: no row has a difference to {baseline} with an interval."]
    return [
        " ".join(_ahead_and_behind(groups, baseline, known, accuracy)),
        _survivors(groups, baseline, known, accuracy),
        _controls(groups, controls, worth) if controls else _markers(groups, baseline, known, markers),
    ]


def _ahead_and_behind(groups: Sequence[str], baseline: str, rows: Sequence[str], found: Differences) -> Iterator[str]:
    parts = []
    for group in groups:
        sides = {row: side(found[group].get(row)) for row in rows}
        ahead, behind = ([row for row in rows if sides[row] == sign] for sign in (1, -1))
        of = sum(value is not None for value in sides.values())
        parts.append(f"in {group} {_counted(ahead)} ahead of {baseline} and {_counted(behind)} behind it, of {of}")
    comparisons = sum(side(found[group].get(row)) is not None for group in groups for row in rows)
    text = "; ".join(parts)
    kinds = {cell.over for group in groups for row in rows if (cell := found[group].get(row)) is not None}
    single = ", of one run each" if kinds == {PROBLEMS} else ""
    several = f"; {comparisons} comparisons, not corrected" if comparisons > 1 else ""
    yield f"{text[:1].upper()}{text[1:]} (95 % intervals{single}{several})."


def _survivors(groups: Sequence[str], baseline: str, rows: Sequence[str], found: Differences) -> str:
    sides = {row: [side(found[group].get(row)) for group in groups] for row in rows}
    everywhere = "anywhere" if len(groups) > 1 else f"in {groups[0]}"
    never = [row for row in rows if None not in sides[row] and -1 not in sides[row]]
    best = [row for row in never if 1 in sides[row]]
    if not never:
        return (
            f"No row that was measured in full keeps up with {baseline}{' in all of them' if len(groups) > 1 else ''}."
        )
    ahead = f"; of these {_named(best)} {_is(best)} ahead of it somewhere" if best else "; none of these is ahead of it"
    return f"Not shown to be behind {baseline} {everywhere}: {_named(never)}{ahead}."


def _controls(groups: Sequence[str], rows: Sequence[str], worth: Mapping[tuple[str, str], Cell]) -> str:
    parts = []
    for row in rows:
        shown = [f"{_points(worth[row, group])} in {group}" for group in groups if (row, group) in worth]
        if shown:
            parts.append(f"over \u201c{row}\u201d {' and '.join(shown)}")
    if not parts:
        return "The controls have not been measured, so what the teacher's reference is worth is open."
    return f"The problem's own reference, shown to the teacher, is worth to its method {'; '.join(parts)}."


def _markers(groups: Sequence[str], baseline: str, rows: Sequence[str], found: Differences) -> str:
    parts = []
    for group in groups:
        fewer = [row for row in rows if side(found[group].get(row)) == -1]
        more = [row for row in rows if side(found[group].get(row)) == 1]
        parts.append(f"in {group} {_counted(fewer)} below {baseline} and {_counted(more)} above")
    return f"In epistemic markers a response, {'; '.join(parts)}."


def _points(cell: Cell) -> str:
    half = "" if cell.half is None else f" ± {100 * cell.half:.1f}"
    return f"{100 * cell.value:+.1f}{half} points".replace("-", "−")


def _is(rows: Sequence[str]) -> str:
    return "is" if len(rows) == 1 else "are"


def _named(rows: Sequence[str]) -> str:
    return rows[0] if len(rows) == 1 else f"{', '.join(rows[:-1])} and {rows[-1]}"


def _counted(rows: Sequence[str]) -> str:
    if not rows:
        return "none is"
    return f"{len(rows)} ({_named(rows)}) {_is(rows)}"
