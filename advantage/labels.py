"""How people are shown what a method produces: labels and units of its metrics, its tokens' fields, its schedules.

A method declares them where it declares its rule. Console, report and model card read them here and know no method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

STEP, POSITION, UPDATE = "step", "position", "update"  # what a schedule is over


@dataclass(frozen=True)
class Metric:
    """A number of each training step.

    Attributes:
        name: its key in ``metrics.jsonl``.
        title: heading of its panel in a report.
        note: what it is, with its unit.
        line: what its line in the panel is called.
        also: (name, line) of other metrics that are drawn dashed in the same panel.
        short: its name on the progress line; None leaves it out there.
        form: how the progress line writes it.
        percent: a share.
        limit: a level above which something is wrong.
        from_zero: the panel's axis begins at zero.
        idle: a value that says nothing; a panel that never leaves it is not shown.
    """

    name: str
    title: str
    note: str
    line: str = "mean"
    also: tuple[tuple[str, str], ...] = ()
    short: str | None = None
    form: str = "{:.3f}"
    percent: bool = False
    limit: float | None = None
    from_zero: bool = False
    idle: float | None = None


@dataclass(frozen=True)
class TokenField:
    """A number of each token of a sampled response, shown as heat over the text.

    Attributes:
        name: its key in ``samples.jsonl``, and in `advantage.estimators.Credit.tokens`.
        label: one or two characters.
        meaning: what it is, with its unit and what its sign says.
        scale: |value| that has full colour; None takes it from the values.
    """

    name: str
    label: str
    meaning: str
    scale: float | None = None


@dataclass(frozen=True)
class Schedule:
    """A number that a configuration fixes before a run, and that changes over its course or over that of a response.

    Attributes:
        title: heading of its figure in a report.
        note: what it is, with its unit, and what it is over.
        over: `STEP`, a training step, counted from 1; `POSITION`, a relative position in a response, in [0, 1];
            `UPDATE`, an update after a decision, counted from 1.
        value: from a place on that axis to the number that is in force there.
        line: what its line is called where others stand beside it.
        beside: (line, value) of others that could be in force, to compare with.
        last: the last place, where it is over `UPDATE`.
    """

    title: str
    note: str
    over: str
    value: Callable[[float], float]
    line: str = "in force"
    beside: tuple[tuple[str, Callable[[float], float]], ...] = ()
    last: int | None = None
