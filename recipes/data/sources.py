"""Rows of a dataset, from the hub, from local files or generated, and what identifies the input."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

from recipes.data.readers import FORMATS, DataError, Place, Row, first_line, refuse_narrow_floats, rows_of, suffix_of
from recipes.data.sets import knights, words
from recipes.data.spec import PROGRAM_COLUMNS, DatasetSpec
from rewards.by_grader import GRADERS

_BATCH = 1000
# Raise it when the same arguments give other problems.
GENERATOR_VERSION = 1
_SPLIT_WORD = re.compile(r"(?<![a-z])(?:train|test|validation)(?![a-z])")
# What generates the sets of a grader, and its arguments.
GENERATORS: dict[str, tuple[Callable[..., Iterator[Row]], tuple[str, ...]]] = {
    "knights": (knights.generate, ("size", "people", "seed")),
    "math": (words.generate, ("size", "steps", "seed")),
}
_TEXTS = ("hub", "answer", "solution", "cut_before", "cut_after", "subset", *PROGRAM_COLUMNS, "difficulty", "prompt",
          "published_sha256", "published_by")  # fmt: skip
# What public sets call these columns, for a suggestion if spelling is no help.
_ALSO_CALLED = {
    "problem": ("question", "prompt", "input", "query", "instruction", "messages"),
    "answer": ("final_answer", "expected_answer", "ground_truth", "target", "label", "gold", "final"),
    "solution": ("rationale", "reasoning", "explanation", "generated_solution", "output", "response"),
}


def spec_of(node: Mapping[str, Any]) -> DatasetSpec:
    """The dataset that a YAML describes.

    Args:
        node: the keys and values of the YAML; see config/dataset/local.yaml.

    Raises:
        DataError: if a key is unknown or missing, or a value is of a wrong type or out of its range.
    """
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
    for name in _TEXTS:
        if not isinstance(node.get(name), str | None):
            raise DataError(f"dataset.{name}={node[name]}: must be a text, or null for none")
    if not _texts(node.get("optional", ())):
        raise DataError(f"dataset.optional={node['optional']}: must be a list of column names")
    if not isinstance(node.get("clean_answers", True), bool):
        raise DataError(f"dataset.clean_answers={node['clean_answers']}: must be true or false")
    if node["role"] not in ("train", "eval"):
        raise DataError(f"dataset.role={node['role']}: must be train or eval; see config/dataset/*.yaml")
    if Path(node["name"]).name != node["name"] or node["name"].startswith("."):
        raise DataError(f"dataset.name={node['name']}: names a folder in out=, so it must be a plain name")
    for name, holds, rule in _beyond_mathematics(node):
        if not holds:
            raise DataError(f"dataset.{name}={node.get(name)}: must be {rule}")
    return DatasetSpec(**{**node, "optional": tuple(node.get("optional", ()))})


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


def _beyond_mathematics(node: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """(key, whether it holds, rule) of how rows are graded, held out and asked."""
    grader, options, size = node.get("grader", "math"), node.get("options"), node.get("test_size", 0)
    bounds, generate = node.get("difficulty_range"), node.get("generate")
    yield "grader", grader in GRADERS, f"one of {', '.join(GRADERS)}"
    yield "options", isinstance(options, str | None) or _texts(options), "a column, a list of columns, or null for none"
    if grader == "choice":
        yield "options", bool(options), "the column of a question's options, or their columns, the right one first"
        yield (
            "answer",
            bool(node["answer"]) or not isinstance(options, str),
            "the column that says which option is right",
        )
    if grader == "code":
        yield "tests", bool(node.get("tests")), "the column of a program's tests"
    whole = isinstance(size, int) and not isinstance(size, bool)
    yield "test_size", whole and size >= 0, "a whole number, 0 or more"
    fits = bounds is None or (
        isinstance(bounds, list | tuple)
        and len(bounds) == 2
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
        and bounds[0] <= bounds[1]
        and bool(node.get("difficulty"))
    )
    yield "difficulty_range", fits, "null, or [lowest, highest] of a set with dataset.difficulty"
    yield "prompt", "{problem}" in (node.get("prompt") or "{problem}"), "null or contain {problem}"
    given = set(generate) if isinstance(generate, Mapping) else None
    arguments = GENERATORS[grader][1] if grader in GENERATORS else ()
    rule = f"null, or {{{', '.join(f'{name}: …' for name in arguments)}}}" if arguments else "null with this grader"
    yield "generate", generate is None or (bool(arguments) and given == set(arguments)), rule


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def local_files(source: Path, split: str, subset: str | None = None) -> list[Path]:
    """Data files of a local source: the file itself, or those files of a folder that belong to a split.

    Args:
        source: a file with a suffix of `FORMATS`, or a folder, which is searched with all below it.
        split: kept are files with this word in their path, as on the hub; if there are none, those that name no split.
        subset: if paths of the folder contain it, only these are looked at.

    Raises:
        DataError: if there is no file of a known format and of the split, or the split's files differ in format.
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
    if subset is not None:
        files = {path: where for path, where in files.items() if subset in str(where)} or files
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
    """What tells one input from another: hashes of local files, the revision on the hub, or a generator's settings.

    Args:
        spec: the dataset.
        source: a local file or folder in place of the hub.
        revision: branch, tag or commit on the hub, as asked for; None for the newest.

    Raises:
        DataError: if the local source has no file of the split.
    """
    if spec.generate is not None and source is None:
        return {"generator": GENERATOR_VERSION, **spec.generate}
    if source is None:
        return {"hub": spec.hub, "split": spec.split, "revision": revision}
    files = local_files(source, spec.split, spec.subset)
    distinct = len({path.name for path in files}) == len(files)
    return {"files": {path.name if distinct else str(path.relative_to(source)): file_sha256(path) for path in files}}


def read_rows(
    spec: DatasetSpec, source: Path | None, revision: str | None, *, answers: bool = True
) -> Iterator[tuple[Place, Row]]:
    """Rows of the dataset in order, with their places.

    Args:
        spec: the dataset.
        source: a local file or folder in place of the hub.
        revision: branch, tag or commit on the hub; None for the newest.
        answers: whether a set without any column for an answer is refused.

    Raises:
        DataError: if the dataset cannot be had (the message names the local-file option), or lacks a column.
    """
    wanted = list(spec.columns.values())
    if source is not None:
        for path in local_files(source, spec.split, spec.subset):
            check = partial(check_columns, spec=spec, where=str(path), answers=answers)
            yield from rows_of(path, wanted, check, list(spec.numbers.values()))
        return
    if spec.generate is not None:
        generator, _ = GENERATORS[spec.grader]
        for number, row in enumerate(generator(**spec.generate)):
            yield Place("generated", number), row
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
        return load_dataset(spec.hub, spec.subset, split=spec.split, revision=revision)
    except Exception as error:  # the hub's client fails in many ways, and all end in the same advice
        raise DataError(
            f"{spec.hub} could not be had from the hub ({first_line(error.__cause__ or error)}). Without a network: "
            f"fetch it elsewhere with `hf download {spec.hub} --repo-type dataset --local-dir DIR`, and run again with "
            "source=DIR"
        ) from error


def check_columns(present: Sequence[str], spec: DatasetSpec, where: str, answers: bool = True) -> None:
    """Refuse a set that lacks a column, naming those that are there and the closest.

    Args:
        present: the columns that are there.
        spec: the dataset, with the columns that are wanted.
        where: the file or set, for the message.
        answers: whether a mathematics set with columns for neither answer nor solution is refused.

    Raises:
        DataError: if a column is missing that is not optional.
    """

    def there(column: str) -> bool:
        return column in present or column.split(".")[0] in present

    read = spec.columns | spec.numbers
    lacking = {role: name for role, name in read.items() if not there(name) and name not in spec.optional}
    answered = any(column and there(column) for column in (spec.answer, spec.solution))
    if answers and spec.grader == "math" and not answered:
        lacking.setdefault("answer", spec.answer or "answer")
    if not lacking:
        return
    lower = {name.lower(): name for name in present}
    closest = []
    for role, name in lacking.items():
        spelled = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
        closest += [
            f"dataset.{role}={lower[other]}" for other in (*spelled, *_ALSO_CALLED.get(role, ())) if other in lower
        ][:1]
    missing = ", ".join(f"column {name!r} is missing" for name in lacking.values())
    raise DataError(
        f"{where}: {missing}; there are {sorted(present)}. "
        + (f"The closest: {' '.join(closest)}. " if closest else "")
        + "Is this the right dataset? If columns have other names here, say so: dataset.problem=… dataset.answer=… "
        "dataset.solution=… (null for none)"
    )
