"""One row of any dataset -> problem, solution, answer -> one row of verl's format.  The only user of the prompt."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.common.prompts import student_messages
from recipes.data.sources import DatasetSpec
from recipes.data.sources import field as column
from recipes.evaluate.sets import read_fields
from rewards.extract import last_boxed
from rewards.grader import gold_text

_DOLLAR = re.compile(r"(?<!\\)\$")
_LEADING_ZEROS = re.compile(r"^0+(?=\d)")


@dataclass(frozen=True)
class Item:
    """A problem with its gold answer and, where the set has one, a worked solution (else "")."""

    problem: str
    answer: str
    solution: str
    source_index: int
    unwrapped: bool = True  # False where instructions around the problem were expected and not found
    gold: str | None = None  # what is graded where that is not the answer, such as a program's tests
    dropped: str = ""  # why the row cannot be used
    extra: Mapping[str, Any] = field(default_factory=dict)  # for extra_info


def clean_answer(answer: Any) -> str:
    """A gold answer as it can stand in a box: one text, no dollar signs, no leading zeros ("033" -> "33")."""
    text = _DOLLAR.sub("", gold_text(answer)).strip()
    return _LEADING_ZEROS.sub("", text) if text.isdigit() else text


def _problem_text(value: Any) -> str:
    """The problem's text from a string, or from the last user turn of a chat."""
    if isinstance(value, str):
        return value
    turns = [turn["content"] for turn in value or [] if isinstance(turn, dict) and turn.get("role") == "user"]
    return turns[-1] if turns else ""


def _unwrap(text: str, spec: DatasetSpec) -> tuple[str, bool]:
    found = True
    text = text.strip()
    if spec.cut_before is not None:
        found &= text.startswith(spec.cut_before)
        text = text.removeprefix(spec.cut_before).strip()
    if spec.cut_after is not None:
        found &= text.endswith(spec.cut_after)
        text = text.removesuffix(spec.cut_after).strip()
    return text, found


def _difficulty(row: dict[str, Any], spec: DatasetSpec) -> dict[str, float]:
    """The row's difficulty, where its set has one and it is a number."""
    if spec.difficulty is None:
        return {}
    try:
        value = float(column(row, spec.difficulty))
    except (TypeError, ValueError):
        return {}
    return {"difficulty": value} if math.isfinite(value) else {}


def _outside(extra: Mapping[str, Any], spec: DatasetSpec) -> str:
    if spec.difficulty_range is None:
        return ""
    low, high = spec.difficulty_range
    return "" if low <= extra.get("difficulty", math.nan) <= high else "outside the difficulty range"


def to_item(row: dict[str, Any], spec: DatasetSpec, source_index: int, seed: int = 1) -> Item:
    """Read a dataset's row.  The answer is the answer column's, else the last box of the solution, else "".

    ``seed`` orders the options of multiple choice.  Raises DataError where a column is missing.
    """
    extra = _difficulty(row, spec)
    if spec.grader != "math":
        read = read_fields(row, spec, seed)
        extra = {**extra, **read.extra, "grader": spec.grader}
        gold = read.answer if read.shown is None else None
        dropped = read.dropped or _outside(extra, spec)
        return Item(read.problem, read.shown or "", read.solution, source_index, True, gold, dropped, extra)
    problem, unwrapped = _unwrap(_problem_text(column(row, spec.problem)), spec)
    solution = column(row, spec.solution) if spec.solution else ""
    if isinstance(solution, list):
        solution = "\n\n".join(part for part in solution if part)
    solution = (solution or "").strip()
    answer = clean_answer(column(row, spec.answer)) if spec.answer else ""
    answer = answer or clean_answer(last_boxed(solution) or "")
    return Item(problem, answer, solution, source_index, unwrapped, dropped=_outside(extra, spec), extra=extra)


def problem_key(problem: str) -> str:
    """Two problems with the same key are the same text: white space and Unicode forms aside."""
    return " ".join(unicodedata.normalize("NFKC", problem).split())


def prompt_messages(problem: str, template: str | None = None) -> list[dict[str, str]]:
    """What is asked: a template with {problem} in its place as one user turn, else ``student_messages``."""
    if template is None:
        return student_messages(problem)
    return [{"role": "user", "content": template.replace("{problem}", problem)}]


ABILITIES = {"math": "math", "choice": "knowledge", "code": "code", "knights": "logic"}


def to_row(item: Item, name: str, split: str, index: int, template: str | None = None) -> dict[str, Any]:
    """verl's columns, and ``problem``, ``solution``, ``answer`` for the privileged prompt."""
    return {
        "data_source": name,
        "prompt": prompt_messages(item.problem, template),
        "ability": ABILITIES[item.extra.get("grader", "math")],
        "reward_model": {"style": "rule", "ground_truth": item.answer if item.gold is None else item.gold},
        "problem": item.problem,
        "solution": item.solution,
        "answer": item.answer if item.gold is None else None,
        "extra_info": {"index": index, "split": split, "source_index": item.source_index, **item.extra},
    }
