"""What a batch of rewards says about itself: shares of each status, means of each component, and a timeout warning."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from rewards.grader import TIMEOUT_RATE_LIMIT
from rewards.math import STATUSES

logger = logging.getLogger(__name__)

COMPONENTS = ("score", "acc", "format", "overlong")


def reward_metrics(results: Iterable[Mapping[str, Any]], prefix: str = "reward/") -> dict[str, float]:
    """Metrics of a batch of ``compute_score`` results; warns where more than 1 % of the gradings timed out.

    Returns the same keys for any batch, an empty one included: ``<prefix><status>_rate`` (of all responses),
    ``<prefix><component>`` (mean), and ``<prefix>timeout_rate_graded``, the timeouts' share of responses that had an
    answer to grade.
    """
    results = list(results)
    count = len(results) or 1
    shares = {status: sum(result["status"] == status for result in results) for status in STATUSES}
    metrics = {f"{prefix}{status}_rate": number / count for status, number in shares.items()}
    for name in COMPONENTS:
        metrics[f"{prefix}{name}"] = sum(float(result[name]) for result in results) / count
    graded = len(results) - shares["no_answer"]
    metrics[f"{prefix}timeout_rate_graded"] = rate = shares["timeout"] / graded if graded else 0.0
    if rate > TIMEOUT_RATE_LIMIT:
        logger.warning(
            "%.1f %% of %d graded answers missed the grading limits (limit %.0f %%); they got the reward of "
            "timeout_value. Look at their `extracted` text; raise cpu_s and deadline_s in reward_kwargs, or free CPU.",
            100 * rate, graded, 100 * TIMEOUT_RATE_LIMIT,
        )  # fmt: skip
    return metrics
