"""What an intervention is judged by: right steps, epistemic markers, the answer."""

from __future__ import annotations

import re
from typing import Any

from recipes.starter import task

# DASD names the first three; the rest is ours.
MARKERS = ("wait", "hmm", "alternatively", "perhaps", "maybe", "actually", "seems", "might", "likely", "check")
_MARKER = re.compile(r"\b(?:" + "|".join(MARKERS) + r")\b", re.IGNORECASE)


def measures(problem: str, text: str, tokens: int, correct: bool | None) -> dict[str, Any]:
    """``step_acc`` (share of standing steps that are right; None where steps cannot be checked or there are none),
    ``e_per_1k`` (markers per 1000 tokens) and ``accuracy`` (None where the grader could not tell) of a response."""
    # Steps of other problems take a process reward model.
    steps = task.step_accuracy(problem, text) if problem.startswith(task.PROBLEM_PREFIX) else None
    found = len(_MARKER.findall(text))
    return {
        "step_acc": steps,
        "e_per_1k": 1000 * found / max(tokens, 1),
        "accuracy": None if correct is None else float(correct),
    }
