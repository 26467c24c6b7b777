"""The type that readers of sets beyond mathematics return for a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fields:
    """What a row says.

    Attributes:
        problem: what is asked.
        answer: what is graded, which may be no answer to show, such as a program's tests.
        solution: a worked solution; "" if the set has none.
        shown: the answer as it can be shown; None if there is nothing to show.
        dropped: why the row cannot be used; "" if it can.
        extra: further entries of the row's ``extra_info``.
    """

    problem: str
    answer: str = ""
    solution: str = ""
    shown: str | None = ""
    dropped: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
