"""Benchmark sets beyond mathematics: how their rows are read, and Knights & Knaves, which is generated.

`recipes.data.convert` calls `read_fields` for every row of a set whose ``grader`` is not "math".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.data.sets import choice, code, knights
from recipes.data.sets.fields import Fields
from recipes.data.spec import DatasetSpec

_READ = {"choice": choice.read, "code": code.read, "knights": knights.read}


def read_fields(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """Read a row of a set beyond mathematics, in that set's own format.

    Args:
        row: column to value, as its reader made it.
        spec: the dataset; its ``grader`` ("choice", "code" or "knights") says how to read it.
        seed: orders the options of multiple choice.

    Raises:
        DataError: if a value cannot be read as text; the message names the column.
    """
    return _READ[spec.grader](row, spec, seed)
