"""Benchmark sets beyond mathematics: how their rows are read, and Knights & Knaves, which is generated.

`recipes.data.prepare` calls `read_fields` for every row of a set whose ``grader`` is not "math".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.data.sources import DatasetSpec


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


def read_fields(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """A row of a set in that set's own format.

    Args:
        seed: orders the options of multiple choice.

    Raises:
        recipes.data.sources.DataError: a column is missing.
    """
    from recipes.evaluate.sets import choice, code, knights

    return {"choice": choice.read, "code": code.read, "knights": knights.read}[spec.grader](row, spec, seed)
