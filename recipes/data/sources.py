"""Rows of a dataset, from the hub or from local files of the same format, and what identifies them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The suffixes that are read, and what reads them.
FORMATS = {
    ".parquet": "parquet",
    **{suffix + packed: kind for suffix, kind in ((".jsonl", "json"), (".json", "json"), (".csv", "csv"))
       for packed in ("", ".gz")},
}  # fmt: skip
_BATCH = 1000
# Raise it when the same arguments give other puzzles.
GENERATOR_VERSION = 1
_SPLIT_WORD = re.compile(r"(?<![a-z])(?:train|test|validation)(?![a-z])")


class DataError(Exception):
    """Something about the data or its whereabouts that the user has to put right; the message says how."""


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset (config/dataset/*.yaml): where it lives and which columns hold what.

    ``problem``, ``answer``, ``solution`` are column names, dotted for a field inside a column.  ``role`` is "train" or
    "eval".  ``cut_before`` and ``cut_after`` are instructions wrapped around the problem that are not part of it.

    ``grader``: how a response is graded, one of ``rewards.by_grader.GRADERS``; the columns that it needs besides are
    ``options`` (choice: one column, or a list of them, the right one first), ``tests``, ``entry_point``, ``examples``
    (code).  ``subset``: the hub's configuration, and a part of the names of a local folder's files.  ``difficulty``: a
    column of numbers; ``difficulty_range`` keeps rows within it.  ``test_size``: items of a training set that are held
    out for evaluation, each difficulty equally often.  ``prompt``: what is asked, with {problem}; null for
    ``student_messages``.  ``generate``: arguments of the generator, for a set that has no file.  ``published_sha256``:
    of a file, and ``published_by`` whom.
    """

    name: str
    hub: str
    split: str
    role: str
    problem: str
    answer: str | None
    solution: str | None
    cut_before: str | None = None
    cut_after: str | None = None
    grader: str = "math"
    subset: str | None = None
    options: str | list[str] | None = None
    tests: str | None = None
    entry_point: str | None = None
    examples: str | None = None
    difficulty: str | None = None
    difficulty_range: list[float] | None = None
    test_size: int = 0
    prompt: str | None = None
    generate: dict[str, Any] | None = None
    published_sha256: str | None = None
    published_by: str | None = None


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _suffix(path: Path) -> str:
    """ ".jsonl" of x.jsonl, ".jsonl.gz" of x.jsonl.gz; "" where no format has it."""
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    return suffix if suffix in FORMATS else ""


def local_files(source: Path, split: str, subset: str | None = None) -> list[Path]:
    """Data files of a local source: the file itself, or a folder's files of the split (by name, as the hub does).

    Of a set with several subsets, only files with its subset's name in theirs are looked at, where there are any.
    Raises DataError where there is none, or the format is not known.
    """
    if not source.exists():
        raise DataError(f"source={source} does not exist; give a file or a folder of {', '.join(FORMATS)} files")
    if source.is_file():
        if not _suffix(source):
            raise DataError(f"source={source} is no {', '.join(FORMATS)} file; convert it to one of these")
        return [source]
    files = {path: path.relative_to(source) for path in sorted(source.rglob("*")) if _suffix(path)}
    files = {path: where for path, where in files.items() if not any(part.startswith(".") for part in where.parts)}
    if not files:
        raise DataError(f"source={source} holds no {', '.join(FORMATS)} file; is it the dataset's folder?")
    if subset is not None:
        files = {path: where for path, where in files.items() if subset in str(where)} or files
    labels = {path: set(_SPLIT_WORD.findall(str(where).lower())) for path, where in files.items()}
    chosen = [path for path in files if split in labels[path]] or [path for path in files if not labels[path]]
    if not chosen:
        raise DataError(
            f"source={source} holds {[str(where) for where in files.values()]}, none of split {split!r}; name the file"
        )
    suffixes = {_suffix(path) for path in chosen}
    if len(suffixes) > 1:
        raise DataError(f"source={source} mixes {sorted(suffixes)} files of split {split!r}; name one of them")
    return chosen


def identity(spec: DatasetSpec, source: str | None, revision: str | None) -> dict[str, Any]:
    """What tells one input from another: hashes of local files, or the hub's id and the revision asked for."""
    if spec.generate is not None and source is None:
        return {"generator": GENERATOR_VERSION, **spec.generate}
    if source is None:
        return {"hub": spec.hub, "split": spec.split, "revision": revision}
    files = local_files(Path(source), spec.split, spec.subset)
    return {"files": {path.name: file_sha256(path) for path in files}}


def read_rows(spec: DatasetSpec, source: str | None, revision: str | None) -> Iterator[dict[str, Any]]:
    """Rows of the dataset in order.  Raises DataError where it cannot be had, naming the local-file option."""
    from datasets import load_dataset

    if source is not None:
        yield from _local_rows(spec, local_files(Path(source), spec.split, spec.subset))
        return
    if spec.generate is not None:
        from recipes.evaluate.sets.knights import generate

        yield from generate(**spec.generate)
        return
    try:
        dataset = load_dataset(spec.hub, spec.subset, split=spec.split, revision=revision)
    except Exception as error:  # the hub's client fails in many ways, and all end in the same advice
        raise DataError(
            f"{spec.hub} could not be had from the hub ({_reason(error)}). Without a network: fetch it elsewhere with "
            f"`hf download {spec.hub} --repo-type dataset --local-dir DIR`, and run again with source=DIR"
        ) from error
    yield from _rows(dataset)


def _local_rows(spec: DatasetSpec, files: list[Path]) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset, logging
    from datasets.exceptions import DatasetGenerationError

    kind, names = FORMATS[_suffix(files[0])], [str(file) for file in files]
    # Text as it stands: guessing types would make numbers of answers ("0.50"), and nothing of "None" or "NA".
    texts = {
        "converters": dict.fromkeys(text_columns(spec), str),
        "keep_default_na": False,
    }
    logging.set_verbosity(logging.CRITICAL)  # it would say everything twice
    try:
        if kind == "parquet":
            yield from _parquet_rows(names)
        else:
            options = texts if kind == "csv" else {}
            yield from _rows(
                load_dataset(kind, data_files={spec.split: names}, split=spec.split, streaming=True, **options)
            )
    except StopIteration as error:  # how the reader of JSON takes an empty file
        raise DataError(f"{files[0]} is empty") from error
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(f"{files[0]} cannot be read as {kind}: {_reason(error)}") from error


def text_columns(spec: DatasetSpec) -> list[str]:
    """The columns that a set reads, but for those of numbers."""
    options = [spec.options] if isinstance(spec.options, str) else list(spec.options or ())
    names = [spec.problem, spec.answer, spec.solution, spec.tests, spec.entry_point, spec.examples, *options]
    return [name for name in names if name]


def _parquet_rows(files: list[str]) -> Iterator[dict[str, Any]]:
    """Rows batch by batch: a training set of millions of rows never stands in memory as a whole."""
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
                yield from batch.to_pylist()


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else ''}"[:300]


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter(batch_size=_BATCH):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def field(row: dict[str, Any], name: str) -> Any:
    """The value of a column, or of a dotted field inside one.  Raises DataError naming the columns there are."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(
                f"column {name!r} is missing; the rows have {sorted(row)}. Is this the right dataset? If columns have "
                "other names here, say so: dataset.problem=… dataset.answer=… dataset.solution=… (null for none)"
            )
        value = value[part]
    return value
