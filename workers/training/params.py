"""Parameters of the self-distillation loss and of the teacher's weights, as training workers need them.

They are read from `self_distill` of a configuration.  Plain dataclasses without verl, so that a wrong setting is
refused before anything starts, and picklable, so that they travel to the workers as they are.  Field defaults here and
in config/train.yaml are compared by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from advantage.params import load_params, require
from advantage.token_weights import TOKEN_WEIGHTS
from workers.divergence import CLIP_MODES, KINDS, MIXED, REDUCTIONS, DivergenceSpec

TOP_K_BY = ("teacher", "student")
STUDENT_NORMS = ("renormalised", "full")
TEACHER_WEIGHTS = ("current", "frozen", "ema", "snapshot", "trust_region")
# Teachers that are a second set of weights, which moves behind the student's.
TRAILING_WEIGHTS = ("ema", "snapshot")


@dataclass(frozen=True)
class LossParams:
    """`self_distill.loss`: the full-vocabulary divergence that is trained, alone or beside the PPO clip.

    Attributes:
        kind: "none" trains the PPO clip only; the others are the divergences of `DivergenceSpec`.
        jsd_beta: β of kind "jsd", see `DivergenceSpec`.
        clip: bound of each vocabulary entry, see `DivergenceSpec`; None is no clip.
        clip_mode: "upper", "symmetric" or "none".
        mixing: with kind="mixed_kl", each token's share of the forward KL: "constant" is `forward_share`, every other
            name one of `advantage.token_weights` whose values are shares.
        forward_share: only with mixing="constant".
        temperature: divides both sides' logits; None takes the rollout's.
        top_k: compare that many tokens only instead of the vocabulary; None: all.
        top_k_by: whose likeliest tokens: "teacher" (renormalised over them) or "student" (all others in one bucket).
        student_norm: with top_k_by="teacher", "renormalised" over the same tokens (OPSD) or "full" (EOPD).
        weighting: factor of each token: "uniform" is 1, every other name is one of `advantage.token_weights`.
        reduction: "token_mean" pools the tokens of the global mini-batch, "sequence_mean" averages within each response
            and then over responses.
        coefficient: factor of the divergence.
        importance_clip: bound of the factor p_S(o_t) / p_old(o_t) on each token's divergence, a constant to the
            gradient (SDPO: 2); None: no such factor.
        ppo: whether verl's PPO clip on the advantages is added to it.
        from_hidden: compute the divergence from hidden states where the model's head and the loss allow it (no bias,
            nothing after the head, no top_k, no ppo), without logits of a whole micro-batch; false: never.
    """

    kind: str = "none"
    jsd_beta: float = 0.5
    mixing: str = "constant"
    forward_share: float = 0.5
    clip: float | None = None
    clip_mode: str = "upper"
    temperature: float | None = None
    top_k: int | None = None
    top_k_by: str = "teacher"
    student_norm: str = "renormalised"
    weighting: str = "uniform"
    reduction: str = "token_mean"
    coefficient: float = 1.0
    importance_clip: float | None = None
    ppo: bool = True
    from_hidden: bool = True

    @property
    def mixed(self) -> bool:
        """Whether both KLs are mixed token by token."""
        return self.kind == MIXED

    @property
    def active(self) -> bool:
        """Whether there is a divergence, and so a teacher in the training worker."""
        return self.kind != "none"

    @property
    def logits_because(self) -> str | None:
        """Why this loss needs logits, whatever the model; None if hidden states may do."""
        if not self.from_hidden:
            return "from_hidden=false"
        if self.ppo:
            return "ppo=true, and the clip needs log-probs with a gradient of their own"
        if self.importance_clip is not None:
            return f"importance_clip={self.importance_clip:g}, and the factor needs log-probs before the loss"
        return None if self.top_k is None else f"top_k={self.top_k}"

    def validate(self) -> None:
        """Refuse parameters that are not usable.

        Raises:
            ValueError: if one of them, or a combination, is not usable; states value and rule.
        """
        kinds = ("none", *KINDS, MIXED)
        require(self.kind in kinds, "kind", self.kind, f"one of {', '.join(kinds)}")
        mixings = ("constant", *(name for name, weight in TOKEN_WEIGHTS.items() if weight.share))
        require(self.mixing in mixings, "mixing", self.mixing, f"one of {', '.join(mixings)}")
        require(self.mixed or self.mixing == "constant", "mixing", self.mixing, f"constant, unless kind={MIXED}")
        require(0.0 <= self.forward_share <= 1.0, "forward_share", self.forward_share, "in [0, 1]")
        require(self.clip_mode in CLIP_MODES, "clip_mode", self.clip_mode, f"one of {', '.join(CLIP_MODES)}")
        weightings = ("uniform", *TOKEN_WEIGHTS)
        require(self.weighting in weightings, "weighting", self.weighting, f"one of {', '.join(weightings)}")
        require(self.reduction in REDUCTIONS, "reduction", self.reduction, f"one of {', '.join(REDUCTIONS)}")
        require(0.0 < self.coefficient < math.inf, "coefficient", self.coefficient, "positive and finite")
        if self.importance_clip is not None:
            require(
                1.0 <= self.importance_clip < math.inf,
                "importance_clip",
                self.importance_clip,
                "finite, 1 or more, for at the rollout's weights the ratio is 1; null leaves the factor out",
            )
            require(self.active, "importance_clip", self.importance_clip, "null where kind=none: choose a kind")
        require(
            self.ppo or self.active,
            "ppo",
            self.ppo,
            "true where kind=none, or there is nothing to train: choose a kind",
        )
        require(self.top_k_by in TOP_K_BY, "top_k_by", self.top_k_by, f"one of {', '.join(TOP_K_BY)}")
        require(
            self.student_norm in STUDENT_NORMS, "student_norm", self.student_norm, f"one of {', '.join(STUDENT_NORMS)}"
        )
        if self.top_k is not None:
            require(not self.mixed, "top_k", self.top_k, f"null where kind={MIXED}, which is over the full vocabulary")
            require(self.top_k >= 1, "top_k", self.top_k, "1 or more, or null for the full vocabulary")
            require(
                self.active,
                "top_k",
                self.top_k,
                "null where kind=none: its expected policy gradient is zero, so it cannot be an advantage",
            )
            require(
                self.student_norm == "renormalised" or (self.top_k_by == "teacher" and self.kind == "forward_kl"),
                "student_norm",
                self.student_norm,
                "renormalised, unless top_k_by=teacher and kind=forward_kl",
            )
        if self.active:
            self.spec(rollout_temperature=1.0)

    def spec(self, *, rollout_temperature: float, divided_by: float = 1.0) -> DivergenceSpec:
        """The divergence; its temperature is the rollout's where `temperature` is None.

        Args:
            rollout_temperature: what responses are sampled at.
            divided_by: what the student's logits, and they alone, were divided by before.
        """
        wanted = rollout_temperature if self.temperature is None else self.temperature
        return DivergenceSpec(
            kind=self.kind,
            jsd_beta=self.jsd_beta,
            clip=self.clip,
            clip_mode=self.clip_mode,
            temperature=wanted / divided_by,
            teacher_temperature=wanted,
        )


@dataclass(frozen=True)
class TeacherWeights:
    """Whose weights the teacher has: the part of `self_distill.teacher` that the training worker uses.

    Attributes:
        weights: "current": the student's own, under the other prompt. "frozen": the initial policy (with LoRA the
            adapter is switched off, else a copy). "ema": moving average. "snapshot": the student of some steps ago.
            "trust_region": logits between those of the initial policy and the student's own (SDPO).
        ema_decay: share of the old average that a step keeps.
        snapshot_every: steps between two snapshots.
        trust_region_mix: the student's share in the logits of a "trust_region" teacher.
    """

    weights: str = "current"
    ema_decay: float = 0.999
    snapshot_every: int = 10
    trust_region_mix: float = 0.05

    def validate(self) -> None:
        """Refuse parameters that are not usable.

        Raises:
            ValueError: if one of them is outside its range; states value and rule.
        """
        require(self.weights in TEACHER_WEIGHTS, "weights", self.weights, f"one of {', '.join(TEACHER_WEIGHTS)}")
        require(0.0 <= self.ema_decay < 1.0, "ema_decay", self.ema_decay, "in [0, 1); 0 is the current policy")
        require(self.snapshot_every >= 1, "snapshot_every", self.snapshot_every, "1 or more")
        require(
            0.0 <= self.trust_region_mix <= 1.0,
            "trust_region_mix",
            self.trust_region_mix,
            "in [0, 1]; 0 is the frozen policy, 1 the current one",
        )

    @property
    def keeps_initial(self) -> bool:
        """Whether the initial policy has a part in it: with LoRA the adapter is switched off, else it is a copy."""
        return self.weights in ("frozen", "trust_region")

    @property
    def passes(self) -> int:
        """Forward passes that the teacher's logits take."""
        return 2 if self.weights == "trust_region" else 1

    def needs_copy(self, *, lora: bool) -> bool:
        """Whether these weights are a second set of parameters.

        Args:
            lora: whether an adapter is trained, without which the model is the initial policy.
        """
        return self.weights in TRAILING_WEIGHTS or (self.keeps_initial and not lora)


def loss_params(self_distill: Any) -> LossParams:
    """`self_distill.loss` of a configuration, checked.

    Raises:
        ValueError: if a key, a type or a value is wrong.
    """
    return load_params(LossParams, self_distill.get("loss"), where="self_distill.loss")


def teacher_weights(self_distill: Any) -> TeacherWeights:
    """The weights' part of `self_distill.teacher`, checked.

    Raises:
        ValueError: if a type or a value is wrong.
    """
    names = [field.name for field in fields(TeacherWeights)]
    teacher = self_distill.get("teacher") or {}
    return load_params(
        TeacherWeights, {name: teacher[name] for name in names if name in teacher}, where="self_distill.teacher"
    )
