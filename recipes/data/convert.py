"""One row of any dataset -> problem, solution, answer -> one row of verl's format.  The only user of the prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.common.teacher.prompts import student_messages
from recipes.data.cells import exact_text, field
from recipes.data.readers import DataError
from recipes.data.sources import DatasetSpec
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
    boxed: bool = False  # whether the answer is the solution's last box


def clean_answer(answer: Any) -> str:
    """A gold answer as it can stand in a box: one text, no dollar signs, no leading zeros ("033" -> "33")."""
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


def _cell(row: dict[str, Any], column: str | None, read: Callable[[Any], str]) -> str:
    if column is None:
        return ""
    try:
        return read(field(row, column))
    except DataError as error:
        raise DataError(f"column {column!r}: {error}") from error


def to_item(row: dict[str, Any], spec: DatasetSpec, source_index: int) -> Item:
    """Read a dataset's row.  The answer is the answer column's, else the last box of the solution, else "".

    White space around a text goes; nothing else changes but what ``spec`` says (``cut_*``, ``clean_answers``).

    Raises:
        DataError: a value has no one text; names the column.
    """
    problem, unwrapped = _unwrap(_cell(row, spec.problem, _problem_text), spec)
    solution = _cell(row, spec.solution, _solution_text)
    clean = clean_answer if spec.clean_answers else str.strip
    given = clean(_cell(row, spec.answer, _answer_text))
    answer = given or clean(last_boxed(solution) or "")
    return Item(problem, answer, solution, source_index, unwrapped, boxed=bool(answer and not given))


def problem_key(problem: str) -> str:
    """Two problems with the same key are the same text: white space and composed accents aside.

    Not NFKC: 2⁵ and 25 are two problems.
    """
    return " ".join(unicodedata.normalize("NFC", problem).split())


def to_row(item: Item, name: str, split: str, index: int) -> dict[str, Any]:
    """verl's columns, and ``problem``, ``solution``, ``answer`` for the privileged prompt."""
    return {
        "data_source": name,
        "prompt": student_messages(item.problem),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "problem": item.problem,
        "solution": item.solution,
        "answer": item.answer,
        "extra_info": {"index": index, "split": split, "source_index": item.source_index},
    }
