"""Counts the updates that verl skipped: it takes no optimiser step where the norm of the gradient is not finite.

The norm is of the global mini-batch, so all workers skip the same ones, and the weights and the optimiser's state stay
as they were.  What is left to do is to say so, and to keep one such mini-batch from making the step's means NaN.
"""

from __future__ import annotations

import math
from typing import Any

SKIPPED = "skipped_updates"  # in the workers' metrics of a step


def count_skipped(metrics: dict[str, Any]) -> int:
    """Write the number of skipped updates into the metrics of a step, and leave the skipped ones out of its means.

    Args:
        metrics: those of verl's `train_mini_batch`, changed in place: `grad_norm` has one number for each mini-batch,
            the others lists of numbers of mini- or micro-batches.  A list without any finite number stays as it is:
            nothing was updated.

    Returns:
        The number of skipped updates.
    """
    norms = metrics["grad_norm"]
    skipped = sum(not math.isfinite(norm) for norm in norms)
    if skipped:
        for name, values in metrics.items():
            if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
                metrics[name] = [value for value in values if math.isfinite(value)] or values
    metrics[SKIPPED] = [float(skipped)]
    return skipped
