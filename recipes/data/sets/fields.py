"""What is read of a row of a set beyond mathematics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fields:
    """What a row says.

    ``answer`` is what is graded, also where it is no answer to show (a program's tests), then ``shown`` is None.
    ``dropped``: why the row cannot be used, "" where it can.  ``extra``: for ``extra_info``.
    """

    problem: str
    answer: str = ""
    solution: str = ""
    shown: str | None = ""
    dropped: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
