"""The problems of an evaluation: prepared sets by name, or parquet files of the same format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config as config_package
from recipes.common.checks.errors import SettingsError
from recipes.data.sources import DataError, file_sha256
from recipes.data.validate import read_rows
from rewards.grader import gold_text

KNOWN_SETS = Path(config_package.__file__).resolve().parent / "dataset"


@dataclass(frozen=True)
class Problem:
    """A row to answer.  ``id`` is made of its place in the file and a hash of prompt and answer: the same row of the
    same set has the same id in every evaluation, which is what pairs them."""

    index: int
    id: str
    messages: list[dict[str, str]]
    gold: str
    text: str  # the bare problem, for step checkers
    source: str  # the row's data_source


@dataclass(frozen=True)
class ProblemSet:
    """A named file of problems, in the file's order."""

    name: str
    file: str
    sha256: str
    problems: tuple[Problem, ...]


def load_sets(entries: Sequence[str], data_dir: str, limit: int | None) -> list[ProblemSet]:
    """The sets named by ``data=``, each the first ``limit`` problems.

    Raises:
        SettingsError: every unknown name, unprepared set, unreadable file and unusable row, in one list.
    """
    sets: list[ProblemSet] = []
    wrong: list[str] = []
    for entry in entries:
        try:
            loaded = load_set(entry, data_dir, limit)
        except (DataError, SettingsError) as error:
            wrong.append(str(error).removeprefix("- "))
            continue
        twin = next((s for s in sets if s.name == loaded.name), None)
        if twin:
            wrong.append(f"data={entry} has the same name, {loaded.name}, as {twin.file}; give each set once")
        sets.append(loaded)
    if wrong:
        raise SettingsError(wrong)
    return sets


def load_set(entry: str, data_dir: str, limit: int | None) -> ProblemSet:
    """One set.  Raises SettingsError or DataError where it is not there or cannot be used."""
    path = find_file(entry, data_dir)
    problems = []
    for index, row in enumerate(read_rows(path)):
        if limit is not None and index >= limit:
            break
        problems.append(_problem(index, row, path))
    if not problems:
        raise SettingsError([f"data={entry}: {path} has no rows; prepare it again with recipes.data.prepare"])
    sources = {problem.source for problem in problems}
    name = sources.pop() if len(sources) == 1 else path.stem
    return ProblemSet(name, str(path), file_sha256(path), tuple(problems))


def find_file(entry: str, data_dir: str) -> Path:
    """The parquet file of a set's name, a folder or a file.  Raises SettingsError saying what to do instead."""
    path = Path(entry)
    if path.suffix == ".parquet" or path.is_file():
        if not path.is_file():
            raise SettingsError([f"data={entry}: no such file"])
        return path
    for folder in (path, Path(data_dir) / entry):
        if (folder / "test.parquet").is_file():
            return folder / "test.parquet"
    known = sorted(p.stem for p in KNOWN_SETS.glob("*.yaml"))
    if entry in known:
        raise SettingsError(
            [
                f"data={entry} is not prepared: {Path(data_dir) / entry / 'test.parquet'} is not there. Prepare it "
                f"with `python -m recipes.data.prepare dataset={entry} out={data_dir}`, or say where it is with "
                "data_dir="
            ]
        )
    raise SettingsError(
        [
            f"data={entry}: neither a parquet file, a folder with test.parquet, nor a known set "
            f"({', '.join(known)}); give one of these"
        ]
    )


def _problem(index: int, row: dict[str, Any], path: Path) -> Problem:
    prompt, reward_model = row.get("prompt"), row.get("reward_model") or {}
    gold = gold_text(reward_model.get("ground_truth")) if isinstance(reward_model, dict) else ""
    prompt = prompt if isinstance(prompt, list) else []
    sound = bool(prompt) and all(isinstance(m, dict) and m.get("content") for m in prompt)
    if not sound or not gold:
        what = "no ground truth, so it cannot be graded" if sound else "no chat in its prompt, so it cannot be asked"
        raise SettingsError(
            [f"{path}, row {index}: {what}; `python -m recipes.data.validate file={path}` lists all such rows"]
        )
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    digest = hashlib.sha256(json.dumps([messages, gold]).encode()).hexdigest()
    return Problem(
        index=index,
        id=f"{index}-{digest[:12]}",
        messages=messages,
        gold=gold,
        text=row.get("problem") or messages[-1]["content"],
        source=str(row.get("data_source") or path.stem),
    )
