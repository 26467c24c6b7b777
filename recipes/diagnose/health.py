"""What an intervention is judged by: right steps, epistemic markers, the answer."""

from __future__ import annotations

from recipes.evaluate.health import arithmetic_verdicts, count_markers
from recipes.starter.task import PROBLEM_PREFIX


def measures(problem: str, text: str, tokens: int, correct: bool | None) -> dict[str, float | None]:
    """``step_acc`` (share of standing steps that are right; None where steps cannot be checked or there are none),
    ``e_per_1k`` (markers per 1000 tokens) and ``accuracy`` (None where the grader could not tell) of a response."""
    # Steps of other problems take a process reward model.
    verdicts = arithmetic_verdicts(problem, text) if problem.startswith(PROBLEM_PREFIX) else []
    return {
        "step_acc": sum(verdicts) / len(verdicts) if verdicts else None,
        "e_per_1k": 1000 * count_markers(text) / max(tokens, 1),
        "accuracy": None if correct is None else float(correct),
    }
