"""The privileged teacher as a model of its own: what it answers when it is shown the reference, in whole or in part.

Where a problem is asked as in training, the teacher reads training's own privileged prompt
(`recipes.common.teacher.prompts`).  A set that asks otherwise (options, programs, `prompts=`) keeps its question, and
the reference stands after it in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from recipes.common.teacher.contexts import MissingReference, reference_of
from recipes.common.teacher.prompts import REFERENCE, student_messages, teacher_messages
from recipes.common.teacher.reference import truncate_reference
from recipes.evaluate.problems import Problem, ProblemSet

CONTEXTS = ("solution", "answer")


@dataclass(frozen=True)
class Privileged:
    """What a teacher is shown.

    Attributes:
        context: one of `CONTEXTS`.
        exposure: share of a solution's reasoning, from 0 to 1 (ATESD's α).
    """

    context: str
    exposure: float = 1.0

    @property
    def mark(self) -> str:
        """Tells results with this prompt from those of the student: part of a fingerprint, and of nothing else."""
        return f"+{self.context}" + (f"@{self.exposure:g}" if self.exposure < 1 else "")

    @property
    def title(self) -> str:
        """Part of a label."""
        return "teacher" + (f" α={self.exposure:g}" if self.exposure < 1 else "")


def privileged_messages(problem: Problem, shown: Privileged, tokenizer: Any) -> list[dict[str, str]]:
    """Make the teacher's chat for a problem.

    Args:
        problem: with its reference.
        shown: what of it.
        tokenizer: counts the reference's tokens where only a part of it is shown (ATESD eq. 2).

    Returns:
        Turns of ``role`` and ``content``.

    Raises:
        MissingReference: if the row has no such reference.
    """
    text = reference_of(_row(problem), shown.context)
    if shown.context == "solution" and shown.exposure < 1:
        text, _ = truncate_reference(tokenizer, text, shown.exposure, problem.gold)
    if problem.messages == student_messages(problem.text):
        return teacher_messages(problem.text, text)
    *before, question = problem.messages
    return [*before, {**question, "content": f"{question['content']}\n\n{REFERENCE.block(text)}"}]


def _row(problem: Problem) -> dict[str, Any]:
    # The ground truth of a program is its tests, which are no answer to show.
    answer = "" if problem.grader == "code" else problem.gold
    return {"problem": problem.text, "solution": problem.solution, "answer": answer}


def teacher_problems(context: Any, exposures: Any, sets: Iterable[ProblemSet]) -> Iterator[str]:
    """Check the keys ``teacher.context`` and ``teacher.exposures``.

    Args:
        context: as given; None for no teacher.
        exposures: as given.
        sets: whose problems need references.

    Yields:
        A sentence for each thing that is wrong.
    """
    if context is None:
        return
    if context not in CONTEXTS:
        yield f"teacher.context={context}: must be {' or '.join(CONTEXTS)}, or null for no teacher"
        return
    values = list(exposures)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values)
    if not values or not numbers or len(set(values)) < len(values):
        yield f"teacher.exposures={values}: give numbers from 0 to 1, each once (1.0 shows all)"
    elif context == "answer" and values != [1]:
        yield f"teacher.exposures={values} with teacher.context=answer: only a solution can be shown in part; use [1.0]"
    for problem_set in sets:
        without = [problem.index for problem in problem_set.problems if not _has(problem, context)]
        if without:
            yield (
                f"teacher.context={context}: {len(without)} of {len(problem_set.problems)} rows of {problem_set.file} "
                f"have none, the first is row {without[0]}; leave the set out, or use teacher.context="
                f"{CONTEXTS[1 - CONTEXTS.index(context)]}"
            )


def _has(problem: Problem, context: str) -> bool:
    try:
        return bool(reference_of(_row(problem), context))
    except MissingReference:
        return False
