"""The problems of an evaluation: prepared sets by name, or parquet files of the same format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import CONFIG_DIR
from recipes.common.checks.errors import SettingsError
from recipes.data.readers import DataError
from recipes.data.sources import file_sha256
from recipes.data.validate import read_rows
from rewards.by_grader import GRADERS, grader_of
from rewards.choice import LETTERS, plain
from rewards.code import task_of
from rewards.grader import gold_text

KNOWN_SETS = CONFIG_DIR / "dataset"
OWN_FILES = "local"  # configuration of a file of one's own, which is no set


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
    grader: str = "math"  # one of rewards.by_grader.GRADERS
    extra_info: Mapping[str, Any] = field(default_factory=dict)  # the row's, for the grader
    solution: str = ""  # the row's, for the privileged teacher

    @property
    def difficulty(self) -> float | None:
        """The row's difficulty, where its set has one."""
        return self.extra_info.get("difficulty")


@dataclass(frozen=True)
class ProblemSet:
    """A named file of problems, in the file's order."""

    name: str
    file: str
    sha256: str
    problems: tuple[Problem, ...]


def load_sets(
    entries: Sequence[str], data_dir: str, limit: int | None, prompts: Mapping[str, str] | None = None
) -> list[ProblemSet]:
    """The sets named by ``data=``, each the first ``limit`` problems.

    Args:
        prompts: set's or grader's name -> what is asked instead of the prepared prompt, with {problem}.

    Raises:
        SettingsError: every unknown name, unprepared set, unreadable file and unusable row, in one list.
    """
    sets: list[ProblemSet] = []
    wrong: list[str] = []
    for entry in entries:
        try:
            loaded = load_set(entry, data_dir, limit, prompts)
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


def load_set(entry: str, data_dir: str, limit: int | None, prompts: Mapping[str, str] | None = None) -> ProblemSet:
    """One set; see `load_sets`.  Raises SettingsError or DataError where it is not there or cannot be used."""
    path = find_file(entry, data_dir)
    problems = []
    for index, row in enumerate(read_rows(path)):
        if limit is not None and index >= limit:
            break
        problems.append(_problem(index, row, path, prompts or {}))
    if not problems:
        raise SettingsError([f"data={entry}: {path} has no rows; prepare it again with recipes.data.prepare"])
    sources = {problem.source for problem in problems}
    name = sources.pop() if len(sources) == 1 else path.stem
    return ProblemSet(name, str(path), file_sha256(path), tuple(problems))


def known_sets() -> list[str]:
    """Names of the sets that `recipes.data.prepare` knows."""
    return sorted(p.stem for p in KNOWN_SETS.glob("*.yaml") if p.stem != OWN_FILES)


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
    known = known_sets()
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


def prompt_problems(prompts: Mapping[str, Any], sets: Sequence[ProblemSet]) -> Iterator[str]:
    """What is wrong with ``prompts=``, in sentences."""
    names = {s.name for s in sets} | set(GRADERS) | set(known_sets())
    for name, template in prompts.items():
        if name not in names:
            known = f"neither a set ({', '.join(s.name for s in sets)}) nor a grader ({', '.join(GRADERS)})"
            yield f"prompts.{name}: {known}"
        if not isinstance(template, str) or "{problem}" not in template:
            yield f"prompts.{name}={template!r}: must be a text that contains {{problem}}"


def _problem(index: int, row: dict[str, Any], path: Path, prompts: Mapping[str, str]) -> Problem:
    prompt, reward_model = row.get("prompt"), row.get("reward_model") or {}
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    try:
        grader = grader_of(extra)
    except ValueError as error:
        raise SettingsError([f"{path}, row {index}: {error}"]) from error
    gold = gold_text(reward_model.get("ground_truth")) if isinstance(reward_model, dict) else ""
    prompt = prompt if isinstance(prompt, list) else []
    sound = bool(prompt) and all(isinstance(m, dict) and m.get("content") for m in prompt)
    what = ""
    if not sound:
        what = "no chat in its prompt, so it cannot be asked"
    elif not gold or (grader == "code" and task_of(gold) is None):
        what = "no ground truth, so it cannot be graded"
    elif grader == "choice":
        what = _wrong_options(extra.get("options") or [], gold)
    if what:
        raise SettingsError(
            [f"{path}, row {index}: {what}; `python -m recipes.data.validate file={path}` lists all such rows"]
        )
    source = str(row.get("data_source") or path.stem)
    template = prompts.get(source, prompts.get(grader))
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    if template is not None:
        if not row.get("problem"):
            raise SettingsError([f"{path}, row {index}: no problem column, so prompts={source} has nothing to show"])
        messages = [{"role": "user", "content": template.replace("{problem}", row["problem"])}]
    digest = hashlib.sha256(json.dumps([messages, gold]).encode()).hexdigest()
    return Problem(
        index=index,
        id=f"{index}-{digest[:12]}",
        messages=messages,
        gold=gold,
        text=row.get("problem") or messages[-1]["content"],
        source=source,
        grader=grader,
        extra_info=extra,
        solution=str(row.get("solution") or ""),
    )


def _wrong_options(options: Sequence[str], letter: str) -> str:
    """What is wrong with a row of multiple choice, "" where nothing is."""
    letters = LETTERS[: len(options)]
    if len(options) < 2 or len(letter) != 1 or letter not in letters:
        return f"its answer {letter!r} is none of its {len(options)} options"
    right = plain(options[letters.index(letter)])
    if sum(plain(text) == right for text in options) > 1:
        return f"its right option {options[letters.index(letter)]!r} occurs twice, so there is no single letter"
    return ""
