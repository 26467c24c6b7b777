"""How strong the teacher's correction is beside the verifier's advantage: a weight that follows a ratio.

A fixed weight beta means something else to every model, because the correction's field is made of its log-probs and its
entropies: the same beta can be the whole update of one model and nothing to another. Here beta is what brings mean
|beta * field| to a share of mean |A_G|, both over all valid tokens of the global batch and over the steps so far:

    beta_k = target * sum_j d^(k-j) mean|A_G|_j / sum_j d^(k-j) mean|field|_j

Ours; no paper has it. The two sums are all that a run remembers, so that a resumed run goes on as if it had not ended.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from advantage.segments import batch_abs_mean

FIELD, ANCHOR = "scale/field", "scale/group_advantage"  # in the memory: the two sums, scalars in fp64


def aimed_beta(
    field: torch.Tensor,
    group_advantage: torch.Tensor,
    response_mask: torch.Tensor,
    memory: Mapping[str, torch.Tensor] | None,
    *,
    target: float,
    decay: float,
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """The beta of this step, which its own means are part of.

    A step without any field (no response has a teacher, or teacher and student agree everywhere) says nothing about its
    size and leaves the sums as they are. Where no step has had one yet, beta is 0.

    Args:
        field: (B, T) fp32, zero outside the mask: what beta multiplies, before any group is masked.
        group_advantage: (B, T) A_G, zero outside the mask.
        response_mask: (B, T), non-zero on valid tokens.
        memory: what the step before returned, or None.
        target: the ratio that is aimed at.
        decay: d in [0, 1), what a step leaves of the weight of those before it.

    Returns:
        beta; the memory for the next step; the metrics `credit/beta` and `credit/target_ratio`, and
        `credit/correction_ratio_before_mask`, this step's ratio at that beta (0 where all A_G are zero).
    """
    sums = {name: float(memory[name]) if memory and name in memory else 0.0 for name in (FIELD, ANCHOR)}
    size, anchor = batch_abs_mean(field, response_mask), batch_abs_mean(group_advantage, response_mask)
    if size > 0:
        sums = {FIELD: decay * sums[FIELD] + size, ANCHOR: decay * sums[ANCHOR] + anchor}
    beta = target * sums[ANCHOR] / sums[FIELD] if sums[FIELD] > 0 else 0.0
    metrics = {
        "credit/beta": beta,
        "credit/target_ratio": target,
        "credit/correction_ratio_before_mask": beta * size / anchor if anchor > 0 else 0.0,
    }
    return beta, {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}, metrics
