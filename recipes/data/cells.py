"""Reads one cell of a dataset's row as text.

A value that can be written as text in more than one way is refused, never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from recipes.data.readers import LARGEST_EXACT, DataError


def field(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside one; None if the row lacks the column, or the value is null.

    Args:
        row: a row as its reader made it, column to value.
        name: a column, or a dotted path into a column that holds objects (`metadata.level`); a column whose whole name
            has the dots comes first.

    Raises:
        DataError: the column is there, but has no such field.
    """
    if name in row:
        return row[name]
    value: Any = row
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if value is None or (depth == 0 and part not in row):
            return None
        if not isinstance(value, dict) or part not in value:
            there = f"has the fields {sorted(value)}" if isinstance(value, dict) else f"is {str(value)[:60]!r}"
            raise DataError(f"there is no field {part!r}: {'.'.join(parts[:depth])!r} {there}")
        value = value[part]
    return value


def exact_text(value: Any) -> str:
    """A cell as text: a text as it is, a number as its shortest digits, "" for null.

    Raises:
        DataError: the value can be written in several ways, or may have lost digits before it came here; the message
            says why, and what to do.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise DataError(f"{value[:60]!r} has half of a surrogate pair, which is no character; write the text anew")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and abs(value) <= LARGEST_EXACT:
        return str(int(value)) if value.is_integer() else repr(value)
    raise DataError(_why_refused(value))


def cell(row: Mapping[str, Any], column: str | None, read: Callable[[Any], str] = exact_text) -> str:
    """The text of a row's column; "" if the row has no such column, or none is named.

    Args:
        row: column to value.
        column: its name, as in `field`; None for a column that the set does not have.
        read: makes the text of the value.

    Raises:
        DataError: the column lacks the field, or ``read`` raises it; the message names the column.
    """
    if column is None:
        return ""
    try:
        return read(field(row, column))
    except DataError as error:
        raise DataError(f"column {column!r}: {error}") from error


def cells(row: Mapping[str, Any], column: str | None) -> list[str]:
    """The texts of a row's column of lists; [] if the set has no such column, or the row no list there.

    Args:
        row: column to value.
        column: its name, as in `field`; None for a column that the set does not have.

    Raises:
        DataError: the column holds something else than a list, or a value that `exact_text` refuses; the message names
            the column.
    """
    if column is None:
        return []
    try:
        value = field(row, column)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise DataError(f"it is {str(value)[:60]!r}, where a list is needed; CSV has none, so use JSON or parquet")
        return [exact_text(part) for part in value]
    except DataError as error:
        raise DataError(f"column {column!r}: {error}") from error


def _why_refused(value: Any) -> str:
    shown = str(value)[:60]
    if isinstance(value, DataError):  # an object that the reader could not make
        return str(value)
    if isinstance(value, bool):
        return f"it is the truth value {shown.lower()}; write the word that a response has to give, as text"
    if isinstance(value, float | Decimal):
        exact = Decimal(value)
        if not exact.is_finite():
            return f"it is {shown}, which is no number; write null where there is none"
        if exact.copy_abs() > LARGEST_EXACT:
            return (
                f"it is the number {shown}, beyond 2^53, where programs that read numbers round them; write it as text"
            )
        return f"it is the decimal {shown}, whose last zeros are its column's and not its own; write it as text"
    if isinstance(value, date | time | timedelta):
        return f"it is a {type(value).__name__}, {shown}, which can be written in many ways; write it as text"
    if isinstance(value, bytes):
        return f"it is bytes, {shown}; decode them to text"
    if isinstance(value, dict):
        return f"it has the fields {list(value)}; name one of them, as in dataset.answer=column.field"
    if isinstance(value, list | tuple):
        return f"it is a list, {shown}, where one text is needed; write it as text"
    return f"it is a {type(value).__name__}, {shown}; write it as text"
