"""Makes of a row of any dataset a problem with its solution and answer, and of these a row of verl's format.

No other module of the preparation writes the prompt that the student is asked.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.common.teacher.prompts import student_messages
from recipes.data.cells import cell, exact_text
from recipes.data.cells import field as value_of
from recipes.data.readers import DataError
from recipes.data.sets import read_fields
from recipes.data.spec import DatasetSpec
from rewards.extract import last_boxed
from rewards.grader import gold_text

_DOLLAR = re.compile(r"(?<!\\)\$")
_LEADING_ZEROS = re.compile(r"^0+(?=\d)")


@dataclass(frozen=True)
class Item:
    """A problem with its gold answer and, if the set has one, a worked solution.

    Attributes:
        problem: its text.
        answer: the gold answer.
        solution: the worked solution, or "".
        source_index: place of its row in the source.
        unwrapped: False if instructions around the problem were expected and not found.
        boxed: whether the answer is the solution's last box.
        gold: what is graded if that is not the answer, such as a program's tests.
        dropped: why the row cannot be used, or "".
        extra: further fields for extra_info.
    """

    problem: str
    answer: str
    solution: str
    source_index: int
    unwrapped: bool = True
    boxed: bool = False
    gold: str | None = None
    dropped: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def clean_answer(answer: Any) -> str:
    """A gold answer as it can stand in a box: one text, no dollar signs, no leading zeros ("033" -> "33").

    Args:
        answer: a text, a number, or what else `rewards.grader.gold_text` reads.
    """
    text = _DOLLAR.sub("", gold_text(answer)).strip()
    return _LEADING_ZEROS.sub("", text) if text.isdigit() else text


def _problem_text(value: Any) -> str:
    """The problem's text from a string, or from the one user turn of a chat."""
    if not isinstance(value, list):
        return exact_text(value)
    if not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value):
        raise DataError(
            f"it is the list {str(value)[:60]}, and no chat of {{role, content}}; write the problem as text"
        )
    roles = [turn["role"] for turn in value]
    if not value:
        return ""
    if roles[0] != "user" or "user" in roles[1:] or "system" in roles:
        raise DataError(
            f"it is a chat of {roles}, and only one user turn, with the assistant's after it, is a problem; write the "
            "problem as text"
        )
    return exact_text(value[0]["content"])


def _answer_text(value: Any) -> str:
    """The answer's text; several answers, all of which are required, become one."""
    if isinstance(value, list):
        return ", ".join(text for part in value if (text := exact_text(part).strip()))
    return exact_text(value).strip()


def _solution_text(value: Any) -> str:
    """The solution's text; parts of one are paragraphs."""
    if isinstance(value, list):
        return "\n\n".join(text for part in value if (text := exact_text(part))).strip()
    return exact_text(value).strip()


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
    """The row's difficulty, if its set has one and it is a number."""
    if spec.difficulty is None:
        return {}
    try:
        value = float(value_of(row, spec.difficulty))
    except (TypeError, ValueError, OverflowError):
        return {}
    return {"difficulty": value} if math.isfinite(value) else {}


def _outside(extra: Mapping[str, Any], spec: DatasetSpec) -> str:
    if spec.difficulty_range is None:
        return ""
    low, high = spec.difficulty_range
    return "" if low <= extra.get("difficulty", math.nan) <= high else "outside the difficulty range"


def to_item(row: dict[str, Any], spec: DatasetSpec, source_index: int, seed: int = 1) -> Item:
    """Read a dataset's row.

    White space around a text goes. Nothing else changes but what ``spec`` says: ``cut_*``, ``clean_answers``, and for
    graders other than "math" what `read_fields` makes of the row.

    Args:
        row: column to value, as its reader made it.
        spec: the dataset: which columns hold what.
        source_index: number of the row in the source, from 0.
        seed: orders the options of multiple choice.

    Returns:
        The item; its answer is the answer column's, else the last box of the solution, else "".

    Raises:
        DataError: if a value cannot be read as text; the message names the column.
    """
    extra = _difficulty(row, spec)
    dropped = _outside(extra, spec)
    if spec.grader != "math":
        read = read_fields(row, spec, seed)
        return Item(
            read.problem,
            read.shown or "",
            read.solution,
            source_index,
            gold=read.answer if read.shown is None else None,
            dropped=read.dropped or dropped,
            extra={**extra, **read.extra, "grader": spec.grader},
        )
    problem, unwrapped = _unwrap(cell(row, spec.problem, _problem_text), spec)
    solution = cell(row, spec.solution, _solution_text)
    clean = clean_answer if spec.clean_answers else str.strip
    given = clean(cell(row, spec.answer, _answer_text))
    answer = given or clean(last_boxed(solution) or "")
    boxed = bool(answer and not given)
    return Item(problem, answer, solution, source_index, unwrapped, boxed, dropped=dropped, extra=extra)


def problem_key(problem: str) -> str:
    """A text that two problems share if they differ in nothing but white space and composed accents.

    Unicode is normalised to NFC and not to NFKC, for which 2⁵ and 25 would be one problem.
    """
    return " ".join(unicodedata.normalize("NFC", problem).split())


def prompt_messages(problem: str, template: str | None = None) -> list[dict[str, str]]:
    """The chat that the student is asked, one user turn.

    Args:
        problem: replaces {problem} in the template.
        template: the turn's text; None for the prompt of `student_messages`.
    """
    if template is None:
        return student_messages(problem)
    return [{"role": "user", "content": template.replace("{problem}", problem)}]


ABILITIES = {"math": "math", "choice": "knowledge", "code": "code", "knights": "logic"}


def to_row(item: Item, name: str, split: str, index: int, template: str | None = None) -> dict[str, Any]:
    """A row of a prepared file: verl's columns, and ``problem``, ``solution``, ``answer`` for the privileged prompt.

    Args:
        item: the problem with its answer and solution.
        name: the dataset's, which becomes ``data_source``.
        split: "train", "probe", "val" or "test".
        index: the row's number in its file, from 0.
        template: as in `prompt_messages`.
    """
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
