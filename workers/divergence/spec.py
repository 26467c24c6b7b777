"""Which divergence is meant: its kind, its clip and its temperatures, checked when it is made.

The papers: OPSD (arXiv 2601.18734) and PW-OPSD (its eq. 1) use the forward KL with each vocabulary entry clamped from
above at 0.05 before the sum, at temperature 1.1 on both sides.  A clipped loss can be negative, and for extreme pairs
its gradient points away from the teacher: p_T = (.9, .1), p_S = (.1, .9), clip .05 gives −0.17.  That is the papers'
loss, kept as it is; clip_mode="symmetric" is the alternative.  ATESD's eq. 1 and 6 write an unclipped KL and mention
the clip in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("forward_kl", "reverse_kl", "jsd")
MIXED = "mixed_kl"  # needs the tokens' shares of the forward KL beside the logits
CLIP_MODES = ("upper", "symmetric", "none")
# What can be measured in the same pass; the last two need `token_ids`.
STATS = ("top1_disagreement", "student_entropy", "teacher_entropy", "student_logprob", "teacher_logprob")


@dataclass(frozen=True)
class DivergenceSpec:
    """Which divergence, clipped and tempered how.  Checked when made, so that a bad setting stops a run early.

        Attributes:
        kind: "forward_kl" KL(p_T ‖ p_S) (OPSD's default), "reverse_kl" KL(p_S ‖ p_T), "jsd", the generalised
            Jensen-Shannon divergence β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m), m = (1−β) p_S + β p_T (arXiv 2306.13649), or
        "mixed_kl", a_t KL(p_T ‖ p_S) + (1−a_t) KL(p_S ‖ p_T) with a share a_t in [0, 1] of each token (ours).
        jsd_beta: β in [0, 1].  At β = 0 and 1 that formula is identically zero; by the usual convention (and as in
            OPSD's own settings) 0 means the forward and 1 the reverse KL, to which JSD/β and JSD/(1−β) tend.
        clip: bound c of each vocabulary entry before the sum; None or inf is no clip.  OPSD uses 0.05.
        clip_mode: "upper" clamps entries from above (the papers'), "symmetric" to [−c, c], "none" ignores `clip`.
        temperature: divides both logits before the softmax.  OPSD uses 1.1.
        teacher_temperature: another temperature for the teacher alone, for student logits that were already divided.

    Raises:
        ValueError: if a setting is outside these.
    """

    kind: str = "forward_kl"
    jsd_beta: float = 0.5
    clip: float | None = None
    clip_mode: str = "upper"
    temperature: float = 1.0
    teacher_temperature: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, MIXED):
            raise ValueError(f"kind={self.kind!r} is not a divergence; use one of {', '.join((*KINDS, MIXED))}")
        if self.clip_mode not in CLIP_MODES:
            raise ValueError(f"clip_mode={self.clip_mode!r} is unknown; use one of {', '.join(CLIP_MODES)}")
        if not 0.0 <= self.jsd_beta <= 1.0:
            raise ValueError(f"jsd_beta={self.jsd_beta} must lie in [0, 1]: it weighs the teacher in the mixture")
        if self.clip is not None and not self.clip > 0.0:
            raise ValueError(f"clip={self.clip} must be positive; for no clipping use clip=None")
        for name in ("temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name}={value} must be a positive number; for no scaling use 1.0")

    @property
    def effective_kind(self) -> str:
        """The kind that is computed: a JSD at an endpoint of β is a KL."""
        if self.kind == "jsd" and self.jsd_beta in (0.0, 1.0):
            return "forward_kl" if self.jsd_beta == 0.0 else "reverse_kl"
        return self.kind

    @property
    def effective_clip(self) -> float | None:
        """The bound that is applied; None for no clip."""
        return None if self.clip_mode == "none" or self.clip is None or math.isinf(self.clip) else float(self.clip)
