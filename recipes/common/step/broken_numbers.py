"""What becomes of a run whose numbers stop being numbers: a few skipped updates are survived, all else ends it."""

from __future__ import annotations

import math
from typing import Any

from workers.training.skipped_updates import SKIPPED, SKIPPED_TOTAL

LOSSES = ("actor/pg_loss", "divergence/mean")


class BrokenNumbers(FloatingPointError):
    """Log-probs, losses or gradients stopped being numbers; the last checkpoint is from before."""


def check_update(metrics: dict[str, Any], *, before: int, budget: int, step: int, safe_ground: str) -> int:
    """Skipped updates of the run so far, also written into the metrics of its last step.

    metrics: of the step, changed in place; the workers' count is in them.
    before: skipped in the steps before.  budget: how many a run may skip in all.  safe_ground: where it can go on from.

    Raises:
        BrokenNumbers: more were skipped; or an update was made although its loss is not finite.
    """
    skipped = int(metrics.pop(f"actor/{SKIPPED}"))
    total = before + skipped
    metrics.update({"training/skipped_updates": skipped, SKIPPED_TOTAL: total})
    if total > budget:
        raise BrokenNumbers(
            f"{total} updates were skipped in this run, {skipped} of them at step {step}, because their gradient is "
            f"not finite; self_distill.max_skipped_updates={budget} allows no more. {safe_ground}"
        )
    if skipped:
        return total
    for name in LOSSES:
        value = metrics.get(name)
        if value is not None and not math.isfinite(value):
            raise BrokenNumbers(
                f"{name} is {value} at step {step}, and its gradient was finite, so that the update was made. "
                f"{safe_ground}"
            )
    return total
