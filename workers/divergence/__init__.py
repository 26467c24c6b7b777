"""Divergences between a student and its privileged teacher: pure torch, without verl or Ray.

`token_divergence` is the plain entry: (N, V) logits to (N,) losses.  For training use `logits_divergence` (student
logits already in the graph, as verl's logits hook gives them) or `hidden_divergence` (from hidden states and heads);
`hidden_statistics` gives log-probs and entropies without either.
`reduction_weights` turns token losses into the mean over a global batch.
"""

from workers.divergence.full import hidden_divergence, hidden_statistics, logits_divergence, token_divergence
from workers.divergence.reduction import REDUCTIONS, reduction_count, reduction_weights
from workers.divergence.spec import CLIP_MODES, KINDS, MIXED, STATS, DivergenceSpec
from workers.divergence.top_k import (
    sampled_token_gap,
    student_topk_divergence,
    teacher_topk_divergence,
    token_log_probs,
)

__all__ = [
    "CLIP_MODES",
    "KINDS",
    "MIXED",
    "REDUCTIONS",
    "STATS",
    "DivergenceSpec",
    "hidden_divergence",
    "hidden_statistics",
    "logits_divergence",
    "reduction_count",
    "reduction_weights",
    "sampled_token_gap",
    "student_topk_divergence",
    "teacher_topk_divergence",
    "token_divergence",
    "token_log_probs",
]
