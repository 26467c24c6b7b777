"""Rows of a dataset, from the hub or from local files, and what identifies them."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from recipes.data.readers import FORMATS, DataError, Place, Row, first_line, refuse_narrow_floats, rows_of, suffix_of

_BATCH = 1000
_SPLIT_WORD = re.compile(r"(?<![a-z])(?:train|test|validation)(?![a-z])")
# What public sets call these columns, for a suggestion where spelling is no help.
_ALSO_CALLED = {
    "problem": ("question", "prompt", "input", "query", "instruction", "messages"),
    "answer": ("final_answer", "expected_answer", "ground_truth", "target", "label", "gold", "final"),
    "solution": ("rationale", "reasoning", "explanation", "generated_solution", "output", "response"),
}


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset (config/dataset/*.yaml): where it lives and which columns hold what.

    ``hub`` is its name on the hub, None where it is a local file only.  ``problem``, ``answer``, ``solution`` are
    column names, dotted for a field inside one; those in ``optional`` need not be there.  ``role`` is "train" or
    "eval".  ``cut_before`` and ``cut_after`` are instructions wrapped around the problem that are not part of it.
    ``clean_answers``: answers lose dollar signs and leading zeros; else they stay as they are written.
    """

    name: str
    hub: str | None
    split: str
    role: str
    problem: str
    answer: str | None
    solution: str | None
    cut_before: str | None = None
    cut_after: str | None = None
    optional: Sequence[str] = ()
    clean_answers: bool = True

    @property
    def columns(self) -> dict[str, str]:
        """The column's name of each of "problem", "answer", "solution" that the set has."""
        named = {"problem": self.problem, "answer": self.answer, "solution": self.solution}
        return {role: column for role, column in named.items() if column}


def spec_of(node: Mapping[str, Any]) -> DatasetSpec:
    """The dataset that a YAML describes.  Raises DataError for an unknown or missing key, or a value that cannot be."""
    known = {f.name: f for f in fields(DatasetSpec)}
    unknown = [key for key in node if key not in known]
    if unknown:
        closest = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; is it {closest[0]}?" if closest else ""
        raise DataError(f"dataset.{unknown[0]}: no such key{hint} A set has {', '.join(known)}")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in node]
    if missing:
        raise DataError(f"dataset.{missing[0]} is missing; config/dataset/local.yaml has every key of a set")
    for name in ("name", "split", "problem", "role"):
        if not isinstance(node[name], str) or not node[name]:
            raise DataError(f"dataset.{name}={node[name]}: must be a text")
    for name in ("hub", "answer", "solution", "cut_before", "cut_after"):
        if not isinstance(node.get(name), str | None):
            raise DataError(f"dataset.{name}={node[name]}: must be a text, or null for none")
    optional = node.get("optional", ())
    if not isinstance(optional, list | tuple) or not all(isinstance(name, str) for name in optional):
        raise DataError(f"dataset.optional={optional}: must be a list of column names")
    if not isinstance(node.get("clean_answers", True), bool):
        raise DataError(f"dataset.clean_answers={node['clean_answers']}: must be true or false")
    if node["role"] not in ("train", "eval"):
        raise DataError(f"dataset.role={node['role']}: must be train or eval; see config/dataset/*.yaml")
    if Path(node["name"]).name != node["name"] or node["name"].startswith("."):
        raise DataError(f"dataset.name={node['name']}: names a folder in out=, so it must be a plain name")
    return DatasetSpec(**{**node, "optional": tuple(optional)})


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def local_files(source: Path, split: str) -> list[Path]:
    """Data files of a local source: the file itself, or a folder's files of the split (by name, as the hub does).

    Raises DataError where there is none, or the format is not known.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give a file or a folder of {', '.join(FORMATS)} files")
    if not source.is_dir():
        if not suffix_of(source):
            raise DataError(f"{source} is no {', '.join(FORMATS)} file; convert it to one of these")
        return [source]
    files = {path: path.relative_to(source) for path in sorted(source.rglob("*")) if suffix_of(path) and path.is_file()}
    files = {path: where for path, where in files.items() if not any(part.startswith(".") for part in where.parts)}
    if not files:
        raise DataError(f"{source} holds no {', '.join(FORMATS)} file; is it the dataset's folder?")
    labels = {path: set(_SPLIT_WORD.findall(str(where).lower())) for path, where in files.items()}
    chosen = [path for path in files if split in labels[path]] or [path for path in files if not labels[path]]
    if not chosen:
        raise DataError(
            f"{source} holds {[str(where) for where in files.values()]}, none of split {split!r}; name the file"
        )
    suffixes = {suffix_of(path) or "" for path in chosen}
    if len(suffixes) > 1:
        raise DataError(f"{source} mixes {sorted(suffixes)} files of split {split!r}; name one of them")
    return chosen


def identity(spec: DatasetSpec, source: Path | None, revision: str | None) -> dict[str, Any]:
    """What tells one input from another: hashes of local files, or the hub's id and the revision asked for."""
    if source is None:
        return {"hub": spec.hub, "split": spec.split, "revision": revision}
    files = local_files(source, spec.split)
    distinct = len({path.name for path in files}) == len(files)
    return {"files": {path.name if distinct else str(path.relative_to(source)): file_sha256(path) for path in files}}


def read_rows(
    spec: DatasetSpec, source: Path | None, revision: str | None, *, answers: bool = True
) -> Iterator[tuple[Place, Row]]:
    """Rows of the dataset in order, with their places.

    source: a local file or folder in place of the hub.  answers: whether a set without any column for an answer is
    refused.
    Raises DataError where the dataset cannot be had (naming the local-file option), or lacks a column.
    """
    wanted = list(spec.columns.values())
    if source is not None:
        for path in local_files(source, spec.split):
            check = partial(check_columns, spec=spec, where=str(path), answers=answers)
            yield from rows_of(path, wanted, check)
        return
    dataset = _from_hub(spec, revision)
    check_columns(dataset.column_names, spec, str(spec.hub), answers)
    refuse_narrow_floats(dataset.features.arrow_schema, wanted, str(spec.hub))
    number = 0
    for batch in dataset.iter(batch_size=_BATCH):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield Place(str(spec.hub), number), dict(zip(columns, values, strict=True))
            number += 1


def _from_hub(spec: DatasetSpec, revision: str | None) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(spec.hub, split=spec.split, revision=revision)
    except Exception as error:  # the hub's client fails in many ways, and all end in the same advice
        raise DataError(
            f"{spec.hub} could not be had from the hub ({first_line(error.__cause__ or error)}). Without a network: "
            f"fetch it elsewhere with `hf download {spec.hub} --repo-type dataset --local-dir DIR`, and run again with "
            "source=DIR"
        ) from error


def check_columns(present: Sequence[str], spec: DatasetSpec, where: str, answers: bool = True) -> None:
    """Raise DataError where a set's columns are not all ``present``; names those there are and the closest.

    where: the file, for the message.  answers: as in `read_rows`.
    """

    def there(column: str) -> bool:
        return column in present or column.split(".")[0] in present

    lacking = {role: name for role, name in spec.columns.items() if not there(name) and name not in spec.optional}
    if answers and not any(there(name) for role, name in spec.columns.items() if role != "problem"):
        lacking.setdefault("answer", spec.answer or "answer")
    if not lacking:
        return
    lower = {name.lower(): name for name in present}
    closest = []
    for role, name in lacking.items():
        spelled = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
        closest += [f"dataset.{role}={lower[other]}" for other in (*spelled, *_ALSO_CALLED[role]) if other in lower][:1]
    missing = ", ".join(f"column {name!r} is missing" for name in lacking.values())
    raise DataError(
        f"{where}: {missing}; there are {sorted(present)}. "
        + (f"The closest: {' '.join(closest)}. " if closest else "")
        + "Is this the right dataset? If columns have other names here, say so: dataset.problem=… dataset.answer=… "
        "dataset.solution=… (null for none)"
    )
