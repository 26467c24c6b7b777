"""What a dataset is: where it lives, and which of its columns hold what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROGRAM_COLUMNS = ("tests", "entry_point", "examples")  # that only programs have


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset (config/dataset/*.yaml): where it lives and which columns hold what.

    Columns are named as in the source, dotted for a field inside one.

    Attributes:
        name: of the folder that is written.
        hub: its name on the hub; None for a local file.
        split: of the source, such as "train".
        role: "train" or "eval".
        problem: the problem's column.
        answer: the answer's column, if the set has one.
        solution: the worked solution's column, if the set has one.
        cut_before: instructions before the problem that are not part of it.
        cut_after: likewise after it.
        optional: columns that need not be there.
        clean_answers: whether answers lose dollar signs and leading zeros; else they stay as they are written.
        grader: how a response is graded, one of `rewards.by_grader.GRADERS`.
        subset: the hub's configuration, and a part of the names of a local folder's files.
        options: for the grader "choice" the column of all options, or the columns of one each, the right one first.
        tests: for the grader "code" the column of a program's tests.
        entry_point: likewise of the name of the function that they call.
        examples: likewise of calls of that function, if no column names it.
        difficulty: a column of numbers.
        difficulty_range: (lowest, highest) difficulty of the rows that are kept.
        test_size: items of a training set that are held out for evaluation, each difficulty equally often.
        prompt: what is asked, with {problem}; None for `student_messages`.
        generate: arguments of the generator, for a set that has no file.
        published_sha256: of the file that others used.
        published_by: who they are.
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
    grader: str = "math"
    subset: str | None = None
    options: str | Sequence[str] | None = None
    tests: str | None = None
    entry_point: str | None = None
    examples: str | None = None
    difficulty: str | None = None
    difficulty_range: Sequence[float] | None = None
    test_size: int = 0
    prompt: str | None = None
    generate: Mapping[str, Any] | None = None
    published_sha256: str | None = None
    published_by: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read as text: "problem", "answer", …, "options.0" (one of several) -> its name."""
        several = () if self.options is None or isinstance(self.options, str) else self.options
        named = {role: getattr(self, role) for role in ("problem", "answer", "solution", *PROGRAM_COLUMNS)}
        named["options"] = self.options if isinstance(self.options, str) else None
        named |= {f"options.{number}": column for number, column in enumerate(several)}
        return {role: column for role, column in named.items() if column}

    @property
    def numbers(self) -> dict[str, str]:
        """The columns that are read as numbers: "difficulty" -> its name."""
        return {"difficulty": self.difficulty} if self.difficulty else {}
