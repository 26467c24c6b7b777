"""The reward function verl calls: ``reward.custom_reward_function.path=pkg://rewards.math name=compute_score``."""

from __future__ import annotations

import threading
from typing import Any

from rewards.extract import extract_answer
from rewards.normalize import quick_verdict
from rewards.pool import MAX_TEXT_CHARS, GradingPool, Verdict

_lock = threading.Lock()
_pool: GradingPool | None = None


def _default_pool() -> GradingPool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = GradingPool()
        return _pool


def grade(gold: str, answer: str, deadline_s: float = 5.0) -> Verdict:
    """Whether ``answer`` equals ``gold``: at once where text decides, else in a grading child."""
    quick = quick_verdict(gold, answer)
    if quick is not None:
        return Verdict("correct" if quick else "wrong", "text")
    if len(answer) > MAX_TEXT_CHARS or len(gold) > MAX_TEXT_CHARS:
        return Verdict("wrong", "too long")
    return _default_pool().compare(gold, answer, deadline_s)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response against its ground truth; the same keys for every sample."""
    extracted = extract_answer(solution_str)
    if extracted is None:
        status = "no_answer"
    else:
        status = grade(str(ground_truth), extracted).status
    acc = float(status == "correct")
    return {
        "score": acc,
        "acc": acc,
        "extracted": extracted or "",
        "status": status,
        "timeout": float(status == "timeout"),
        "error": float(status == "error"),
    }
