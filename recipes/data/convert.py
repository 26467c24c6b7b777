"""One row of any dataset -> problem, solution, answer -> one row of verl's format.  The only user of the prompt."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from recipes.common.teacher.prompts import student_messages
from recipes.data.sources import DatasetSpec, field
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


def to_item(row: dict[str, Any], spec: DatasetSpec, source_index: int) -> Item:
    """Read a dataset's row.  The answer is the answer column's, else the last box of the solution, else "".

    Raises DataError where a column is missing.
    """
    problem, unwrapped = _unwrap(_problem_text(field(row, spec.problem)), spec)
    solution = field(row, spec.solution) if spec.solution else ""
    if isinstance(solution, list):
        solution = "\n\n".join(part for part in solution if part)
    solution = (solution or "").strip()
    answer = clean_answer(field(row, spec.answer)) if spec.answer else ""
    answer = answer or clean_answer(last_boxed(solution) or "")
    return Item(problem, answer, solution, source_index, unwrapped)


def problem_key(problem: str) -> str:
    """Two problems with the same key are the same text: white space and Unicode forms aside."""
    return " ".join(unicodedata.normalize("NFKC", problem).split())


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
