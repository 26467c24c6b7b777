"""Rows of a local file, every value as it stands there: nothing is guessed, rounded or repaired on the way.

JSON and CSV are read by Python's own `json` and `csv`, parquet by pyarrow, one row or batch at a time. Readers that
infer a type for each column would make 0.5 of ``0.50``, a date of ``2024-01``, and a double, which cannot hold it, of
an integer beyond 2^53 that stands beside a fraction. A file that is damaged anywhere is refused there, with the line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

# The suffixes that are read, and what reads them.
FORMATS = {
    ".parquet": "parquet",
    **{suffix + packed: kind for suffix, kind in ((".jsonl", "json"), (".json", "json"), (".csv", "csv"))
       for packed in ("", ".gz")},
}  # fmt: skip
# Beyond it a double does not hold every integer, and JSON's readers may have rounded the number before (RFC 8259, 6).
LARGEST_EXACT = 2**53
_BATCH = 1000
_LONGEST_CELL = 1 << 30  # of a CSV file; the csv module would refuse a solution above 128 KiB


class DataError(Exception):
    """Something about the data or its whereabouts that the user has to put right; the message says how."""


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
        file: the file's name, or the set's on the hub.
        row: the row's number there, from 0.
        line: of a text file the line, from 1, on which the row ends.
    """

    file: str
    row: int
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}" + ("" if self.line is None else f" (line {self.line})")


Row = dict[str, Any]
# Looks at the names of a file's columns, once they are known; raises DataError if one is missing.
Check = Callable[[Sequence[str]], None]


def suffix_of(path: Path) -> str | None:
    """The suffix of `FORMATS` that a file's name ends in, ``.jsonl.gz`` too; None if it ends in none."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def rows_of(
    path: Path, wanted: Sequence[str], check: Check, numbers: Sequence[str] = ()
) -> Iterator[tuple[Place, Row]]:
    """The rows of a file, in order; a JSON row need not have every column.

    Numbers of JSON and CSV are the text that they are written in. Values that JSON cannot be trusted with are passed on
    in a form that the caller can refuse by its column: a number beyond `LARGEST_EXACT`, NaN or Infinity as a Decimal,
    an object with a key twice as a DataError. Parquet's values are Python's.

    Args:
        path: a file with a suffix of `FORMATS`.
        wanted: the columns that are used, dotted for a field inside one.
        check: called with the names of the file's columns before the first row.
        numbers: the columns that are used as numbers, for which floats of any width will do.

    Raises:
        DataError: the file is not of its format, or damaged; or ``check`` raises it.
    """
    kind = FORMATS[suffix_of(path) or ""]
    if kind == "parquet":
        return _parquet_rows(path, wanted, check, numbers)
    return (_json_rows if kind == "json" else _csv_rows)(path, check)


def first_line(error: BaseException) -> str:
    """An error's class and the first line of its message, short enough for a message of ours."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def _lines(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line ending) of each line of a UTF-8 file, without a byte order mark."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path} cannot be read as {kind}: UnicodeDecodeError on line {number}: its byte "
                        f"{error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; save the file as UTF-8, as "
                        "iconv -f latin1 -t utf-8 does"
                    ) from error
    except EOFError as error:
        raise DataError(f"{path} cannot be read as {kind}: its compressed data are cut off; copy it again") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as {kind}: {first_line(error)}") from error


# --- JSON ---


def _number(text: str) -> str | Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent of 19 digits
        value = Decimal("Infinity")
    return text if value.is_finite() and value.copy_abs() <= LARGEST_EXACT else value


def _object(pairs: list[tuple[str, Any]]) -> Row | DataError:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    return DataError(
        f"the key {_repeated([name for name, _ in pairs])!r} occurs twice; one of its values would be lost"
    )


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


def _refuse_namesakes(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns are called {_repeated(names)!r}; rename one")


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_number, parse_float=_number, parse_constant=Decimal)


def _json_rows(path: Path, check: Check) -> Iterator[tuple[Place, Row]]:
    rows = _json_objects(path)
    head = list(islice(rows, _BATCH))
    check(list(dict.fromkeys(name for _, row in head for name in row)))
    yield from chain(head, rows)


def _json_objects(path: Path) -> Iterator[tuple[Place, Row]]:
    for place, value in _json_values(path):
        if isinstance(value, DataError):
            raise DataError(f"{place}: {value}")
        if not isinstance(value, dict):
            raise DataError(f"{place} is no JSON object but {str(value)[:60]!r}; a row is {{column: value, …}}")
        yield place, value


def _json_values(path: Path) -> Iterator[tuple[Place, Any]]:
    """The values of a file with one on each line, or of one list."""
    lines = ((number, text) for number, text in _lines(path, "json") if text.strip())
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} cannot be read as json: it is empty")
    number, text = first
    if text.lstrip().startswith("["):
        whole = text + "".join(line for _, line in lines)
        for row, value in enumerate(_decoded(whole, path, number)):
            yield Place(path.name, row), value
        return
    for row, (number, text) in enumerate(chain([first], lines)):
        yield Place(path.name, row, number), _decoded(text, path, number)


def _decoded(text: str, path: Path, line: int) -> Any:
    try:
        return _JSON.decode(text.strip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} cannot be read as json: line {line + error.lineno - 1}, character {error.colno}: {error.msg}. "
            "A file is one row on each line, or one list of rows"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path} cannot be read as json: line {line} is nested too deeply") from error


# --- CSV ---


def _csv_rows(path: Path, check: Check) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((text for _, text in _lines(path, "csv")), strict=True)
    rows = (cells for cells in reader if cells)  # an empty line is no row
    try:
        names = next(rows, None)
        if names is None:
            raise DataError(f"{path} cannot be read as csv: it is empty")
        _refuse_namesakes(path, names)
        if len(names) == 1 and (other := next((mark for mark in ";\t" if mark in names[0]), None)):
            raise DataError(f"{path}: its cells are separated by {other!r}; save it with commas between them")
        check(names)
        for number, cells in enumerate(rows):
            place = Place(path.name, number, reader.line_num)
            if len(cells) != len(names):
                raise DataError(
                    f"{place} has {len(cells)} cells, and the header {len(names)}: a cell with a comma or a line break "
                    "must stand in double quotes"
                )
            yield place, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as csv: line {reader.line_num}: {error}. A cell with a comma, a quote or a line "
            'break must stand in double quotes, a quote inside it written twice ("")'
        ) from error


# --- parquet ---


def _parquet_rows(
    path: Path, wanted: Sequence[str], check: Check, numbers: Sequence[str]
) -> Iterator[tuple[Place, Row]]:
    """Batch by batch: a training set of millions of rows never stands in memory as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            schema = table.schema_arrow
            _refuse_namesakes(path, schema.names)
            check(schema.names)
            refuse_narrow_floats(schema, wanted, str(path))
            # A name with a dot may be a column's whole name.
            columns = {name if name in schema.names else name.split(".")[0] for name in (*wanted, *numbers)}
            columns &= set(schema.names)
            for batch in table.iter_batches(batch_size=_BATCH, columns=sorted(columns), use_threads=False):
                try:
                    rows = batch.to_pylist()
                except (ValueError, OverflowError) as error:
                    raise _unreadable(batch, path, number) from error
                for row in rows:
                    yield Place(path.name, number), row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {first_line(error)}") from error


def refuse_narrow_floats(schema: Any, wanted: Sequence[str], where: str) -> None:
    """Refuse a column of 16- or 32-bit floats, whose 0.1 would become 0.10000000149011612.

    Args:
        schema: pyarrow's schema of the file.
        wanted: columns as in `rows_of`; one that is not there is passed over.
        where: the file or set, for the message.

    Raises:
        DataError: one of the columns, or the numbers of a list in it, are such floats.
    """
    import pyarrow as pa

    for name in wanted:
        path = [name] if name in schema.names else name.split(".")
        kind: Any = pa.struct(list(schema))
        for part in path:
            if kind is not None:
                there = pa.types.is_struct(kind) and kind.get_field_index(part) >= 0
                kind = kind.field(part).type if there else None
        while kind is not None and pa.types.is_nested(kind) and not pa.types.is_struct(kind):
            kind = kind.value_type if hasattr(kind, "value_type") else None
        if kind is not None and (pa.types.is_float16(kind) or pa.types.is_float32(kind)):
            raise DataError(
                f"{where}: column {name!r} is of type {kind}, whose decimals have no one text; make it text"
            )


def _unreadable(batch: Any, path: Path, before: int) -> DataError:
    """What to say of a batch, ``before`` rows into its file, with a value that Python cannot have (text not UTF-8)."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for number, value in enumerate(column):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                return DataError(f"{Place(path.name, before + number)}, column {name!r}: {first_line(error)}")
    return DataError(f"{path} holds a value that cannot be read")
