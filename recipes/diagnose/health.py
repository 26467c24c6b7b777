"""What an intervention is judged by: the share of right steps, markers of doubt, the answer."""

from __future__ import annotations

from recipes.evaluate.health import arithmetic_verdicts, count_markers
from recipes.starter.task import PROBLEM_PREFIX


def measures(problem: str, text: str, tokens: int, correct: bool | None) -> dict[str, float | None]:
    """What is measured of a response.

    Args:
        problem: text of the problem; steps are checked only in the starter's problems.
        text: text of the response.
        tokens: its length.
        correct: the grader's verdict; None if it could not tell.

    Returns:
        ``step_acc``, the share of standing steps that are right (None where steps cannot be checked or there are none),
        ``e_per_1k``, epistemic markers per 1000 tokens, and ``accuracy``, 0 or 1 (None if the grader could not tell).
    """
    # Steps of other problems take a process reward model.
    verdicts = arithmetic_verdicts(problem, text) if problem.startswith(PROBLEM_PREFIX) else []
    return {
        "step_acc": sum(verdicts) / len(verdicts) if verdicts else None,
        "e_per_1k": 1000 * count_markers(text) / max(tokens, 1),
        "accuracy": None if correct is None else float(correct),
    }
