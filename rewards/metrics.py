"""Metrics of a batch of rewards: shares of each status, means of each component, and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rewards.components import STATUSES
from rewards.grader import TIMEOUT_RATE_LIMIT

COMPONENTS = ("score", "acc", "format", "overlong")
TIMEOUT_RATE = "reward/timeout_rate_graded"
ERROR_RATE = "reward/error_rate"


def reward_metrics(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of a batch of responses.

    Args:
        results: what ``compute_score`` returned for each response.

    Returns:
        The same keys for any batch, an empty one included: ``reward/<status>_rate`` (of all responses),
        ``reward/<component>`` (mean), and ``reward/timeout_rate_graded``, the timeouts' share of responses that had an
        answer to grade.
    """
    results = list(results)
    count = len(results) or 1
    shares = {status: sum(result["status"] == status for result in results) for status in STATUSES}
    metrics = {f"reward/{status}_rate": number / count for status, number in shares.items()}
    for name in COMPONENTS:
        metrics[f"reward/{name}"] = sum(float(result[name]) for result in results) / count
    graded = len(results) - shares["no_answer"]
    metrics[TIMEOUT_RATE] = shares["timeout"] / graded if graded else 0.0
    return metrics


def reward_warnings(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """(kind, sentence) of what a person should know of a step's ``reward_metrics``.

    Args:
        metrics: of a step, other metrics included.
    """
    found = []
    timeouts, errors = metrics.get(TIMEOUT_RATE) or 0.0, metrics.get(ERROR_RATE) or 0.0
    if timeouts > TIMEOUT_RATE_LIMIT:
        found.append(
            (
                "grading timeouts",
                f"{timeouts:.1%} of the answers were not graded in time (limit {TIMEOUT_RATE_LIMIT:.0%}) and got the "
                "reward of timeout_value; if they are no towers of powers and the like, free CPU or raise cpu_s and "
                "deadline_s (reward.custom_reward_function.reward_kwargs)",
            )
        )
    for name, value in metrics.items():
        if name.startswith("val-aux/") and "/timeout/mean@" in name and (value or 0.0) > TIMEOUT_RATE_LIMIT:
            found.append(
                (
                    f"validation timeouts {name}",
                    f"{value:.1%} of the answers to {name.split('/')[1]} were not graded in time and count as wrong",
                )
            )
    if errors > 0:
        found.append(
            (
                "grading errors",
                f"{errors:.1%} of the responses could not be graded: no ground truth, or more than memory_mb; "
                "python -m recipes.data.validate tells which",
            )
        )
    return found
