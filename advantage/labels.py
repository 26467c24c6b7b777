"""How people are shown what a method produces: labels, meanings and units of its metrics and of its tokens' fields.

A method declares them where it declares its rule. Console, report and model card read them here and know no method.
"""

from __future__ import annotations

from dataclasses import dataclass


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
