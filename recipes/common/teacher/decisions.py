"""What ATESD's exposure controller is given, decides and remembers: settings, observations, decisions, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advantage.labels import STEP, UPDATE, Schedule

MODES = ("learned", "fixed", "random")
CREDITS = ("one_step", "delayed", "discounted", "discounted+grounded", "counterfactual")
PROGRESS_SIGNALS = ("training_loss", "fixed_exposure_probe")
AVERAGED = ("loss", "mismatch", "probe_nll")
FEATURES = ("progress", "previous_exposure", "loss_ema", "mismatch_ema", "probe_nll_ema", "confidence")


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller; the paper's section beside each, "ours" where it is silent.

    Attributes:
        total_steps: student updates T of the run, for the progress feature and the entropy schedule.
        mode: learned; fixed (always `fixed_exposure`); random (uniform on the range, redrawn every hold): Table 2 B.
        credit: one_step | delayed | discounted | discounted+grounded: Table 2 A.  counterfactual (ours; §6 names it as
            future work): the probe's loss after a decision's first update, made at `counterfactual_exposure` instead,
            minus that after the update that was kept, on the same batch.
        progress_signal: which loss ℓ is (see the header of `recipes.common.teacher.controller`).  training_loss is the
            paper's.  Not read by counterfactual.
        counterfactual_exposure: what the exposure would have been without the decision (ours 1: all of the reference).
        fixed_exposure: α of mode=fixed, in [0, 1].
        hold: H, updates for which an exposure holds (ours 5).
        lookahead: L, updates that a decision is credited by (§5.1: 20).
        decisions_per_update: B, completed decisions that the policy learns from at a time (ours 4).
        gamma: γ of eq. 8 (ours .95).
        lambda_gt: λ_gt of eq. 8 (ours .1).
        exposure_min, exposure_max: the clip of eq. 7 (ours 0, 1).
        learning_rate: of Adam (ours 1e-2).
        hidden: width of the MLP (ours 32).  Its head starts at zero: Beta(1.693, 1.693).
        entropy_target: H_target (ours −.5).  A Beta's entropy is at most 0.
        entropy_coef: the final c_t (ours .1).
        entropy_start: share of the run before which c_t is 0; from there it grows linearly (ours .3).
        ema: decay of the averages (ours .9); the first value starts them.
        feature_scales: one factor per feature of `FEATURES` (ours 1: as measured).
        advantage_eps: ε of eq. 9.
        seed: of the controller's own generator.
    """

    total_steps: int
    mode: str = "learned"
    credit: str = "discounted+grounded"
    progress_signal: str = "training_loss"
    counterfactual_exposure: float = 1.0
    fixed_exposure: float = 1.0
    hold: int = 5
    lookahead: int = 20
    decisions_per_update: int = 4
    gamma: float = 0.95
    lambda_gt: float = 0.1
    exposure_min: float = 0.0
    exposure_max: float = 1.0
    learning_rate: float = 1e-2
    hidden: int = 32
    entropy_target: float = -0.5
    entropy_coef: float = 0.1
    entropy_start: float = 0.3
    ema: float = 0.9
    feature_scales: tuple[float, ...] = (1.0,) * len(FEATURES)
    advantage_eps: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_scales", tuple(float(scale) for scale in self.feature_scales))
        self.validate()

    def validate(self) -> None:
        """Refuse a setting that is not usable.

        Raises:
            ValueError: if there is one; the message has value and rule.
        """
        for name, allowed in (("mode", MODES), ("credit", CREDITS), ("progress_signal", PROGRESS_SIGNALS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}")
        for name, least in (
            ("total_steps", 1),
            ("hold", 1),
            ("lookahead", 1),
            ("decisions_per_update", 2),
            ("hidden", 1),
        ):
            if getattr(self, name) < least:
                why = "; with one decision the standardised advantage is 0" if name == "decisions_per_update" else ""
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}{why}")
        for name, low, high in (
            ("fixed_exposure", 0.0, 1.0),
            ("counterfactual_exposure", 0.0, 1.0),
            ("exposure_min", 0.0, 1.0),
            ("exposure_max", 0.0, 1.0),
            ("gamma", 0.0, 1.0),
            ("entropy_start", 0.0, 1.0),
            ("ema", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [{low:g}, {high:g}]")
        if self.exposure_min > self.exposure_max:
            raise ValueError(
                f"exposure_min={self.exposure_min} exceeds exposure_max={self.exposure_max}; the range would be empty"
            )
        for name in ("lambda_gt", "entropy_coef", "learning_rate", "advantage_eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}={value} must be a number >= 0")
        if len(self.feature_scales) != len(FEATURES):
            raise ValueError(
                f"feature_scales has {len(self.feature_scales)} entries, expected one for each of {', '.join(FEATURES)}"
            )

    @property
    def window(self) -> int:
        """Updates after which a decision is credited."""
        return {"one_step": 1, "delayed": self.hold, "counterfactual": 1}.get(self.credit, self.lookahead)

    @property
    def delay(self) -> int:
        """Updates from ℓ_t to the observation that tells it: update t + 1's own forward pass has the loss after t."""
        return 0 if self.measures_probe_loss else 1

    @property
    def measures_probe_loss(self) -> bool:
        """Whether decisions are credited by the probe's loss."""
        return self.progress_signal == "fixed_exposure_probe" or self.counterfactual

    @property
    def counterfactual(self) -> bool:
        """Whether decisions are credited by what another exposure would have done."""
        return self.credit == "counterfactual"

    @property
    def credited_after(self) -> int:
        """Updates after which a decision's reward is known."""
        return self.window + self.delay

    @property
    def window_gamma(self) -> float:
        """Discount inside that window; one_step and delayed have none."""
        return self.gamma if self.credit.startswith("discounted") else 1.0

    @property
    def grounded(self) -> bool:
        """Whether the teacher-grounded score enters the reward."""
        return self.credit == "discounted+grounded"

    def entropy_coefficient_at(self, step: float) -> float:
        """c_t of eq. 9: 0 up to `entropy_start` of the run, then linear up to `entropy_coef` at its end.

        Args:
            step: updates seen.
        """
        progress = min(1.0, max(0.0, step) / self.total_steps)
        if progress <= self.entropy_start:
            return 0.0
        return self.entropy_coef * (progress - self.entropy_start) / (1.0 - self.entropy_start)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The credit that reaches a decision, and the weight of the entropy's cap; none where nothing is learned."""
        if self.mode != "learned":
            return ()
        credit = (
            f"of what the i-th update after a decision brings, by i: γ^(i−1), γ = {self.window_gamma:g}, over "
            f"{self.window} update{'s' if self.window > 1 else ''}; a decision holds for {self.hold}"
        )
        cap = "c_t, weight of what the exposure policy's entropy has above its target, by step"
        return (
            # One update more, so that the end of the window is seen.
            Schedule("Credit of an exposure", credit, UPDATE, self.credit_at, last=self.window + 1),
            Schedule("Cap on the exposure policy's entropy", cap, STEP, self.entropy_coefficient_at),
        )

    def credit_at(self, update: float) -> float:
        """γ^(i−1), the weight of the i-th update after a decision in its reward (eq. 8); 0 after the window.

        Args:
            update: i.
        """
        return self.window_gamma ** (update - 1) if update <= self.window else 0.0


@dataclass(frozen=True)
class Observation:
    """What one student update showed.  None is "not measured at this step": averages keep their value.

    Attributes:
        loss: distillation loss in the update's own forward pass, so of the weights before it: that of update t is
            ℓ_{t−1}.
        mismatch: top-1 disagreement of teacher and student (or another mismatch).
        probe_nll: the student's NLL of the held-out probe.
        confidence: mean student log-probability of sampled tokens.
        grounded: mean log-probability that the exposed teacher gives to verified reference tokens.
        probe_loss: distillation loss of the probe at a fixed exposure, with the weights after the update: ℓ_t, for
            progress_signal = fixed_exposure_probe.
        counterfactual_loss: the same had the update been made at `counterfactual_exposure`.
    """

    loss: float | None = None
    mismatch: float | None = None
    probe_nll: float | None = None
    confidence: float | None = None
    grounded: float | None = None
    probe_loss: float | None = None
    counterfactual_loss: float | None = None


@dataclass
class Decision:
    """A decision of the policy.

    Attributes:
        step: updates that had been seen when it was made.
        features: the state it was made in, as `FEATURES` names it.
        raw, exposure: the sample, before and after the clip to the exposure range.
        a, b: of the policy's Beta.
        reward: R of eq. 8; reward_progress and reward_grounded are its two terms.  None until its window is complete.
    """

    step: int
    features: list[float]
    raw: float
    exposure: float
    a: float
    b: float
    reward: float | None = None
    reward_progress: float | None = None
    reward_grounded: float | None = None


@dataclass
class Memory:
    """Everything that the controller remembers beside its network, optimiser and generator; JSON-able.

    Attributes:
        step: updates seen; −1 before the first call.
        exposure: the one in force.
        decided_at: the step since which it is.
        loss, mismatch, probe_nll: moving averages.
        confidence: the last one seen.
        progress_loss: the last value of the signal whose decrease is progress.
        gain: of the last update, what its exposure did for the probe's loss that another would not have done.
        series_start: step of the observation of the first entry of losses and grounded, of which only what open windows
            need is kept.
        open: decisions whose window is not complete.
        completed: those that wait for an update of the policy.
        decided: all completed decisions, oldest first.
        updates: of the policy.
        dropped_values: observations that were no numbers.
        dropped_decisions: those whose counterfactual could not be measured, so that nothing was learned from them.
        policy, last_update: numbers to log.
    """

    step: int = -1
    exposure: float | None = None
    decided_at: int | None = None
    loss: float | None = None
    mismatch: float | None = None
    probe_nll: float | None = None
    confidence: float | None = None
    progress_loss: float | None = None
    gain: float | None = None
    series_start: int = 0
    losses: list[float | None] = field(default_factory=list)
    grounded: list[float | None] = field(default_factory=list)
    open: list[Decision] = field(default_factory=list)
    completed: list[Decision] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    updates: int = 0
    dropped_values: int = 0
    dropped_decisions: int = 0
    policy: dict[str, float] = field(default_factory=dict)
    last_update: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Memory:
        """What `dataclasses.asdict` made of a memory."""
        decisions = {name: [Decision(**entry) for entry in values[name]] for name in ("open", "completed", "decided")}
        return cls(**{**values, **decisions})
