"""ATESD's exposure in a training run (arXiv 2605.11458): what is set, what is in force, what each step reports back.

`self_distill.exposure` names who decides how much of the reference the teacher sees: `full` (all of it, every other
method of the family), a `fixed` share, a `random` one, or the `learned` controller of
recipes/common/teacher/controller.py. `ExposureLoop` joins that controller to the trainer: it gives every response its
exposure before the teacher's prompts are rendered, and after each update hands the controller what the paper's state
and reward are made of.

In both homes.  With a divergence, ℓ is the loss that was trained and mismatch the top-1 disagreement (§3.2).  In the
PPO clip there is no full vocabulary, so ℓ is −mean δ, the one-sample estimate of KL(p_S ‖ p_T), and mismatch mean |δ|:
ours.  Per-sample exposure by difficulty is the paper's future work, in a form of our own: a running accuracy of each
problem (recipes/common/teacher/difficulty.py), and `difficulty_exposures` of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advantage.params import load_params, require
from recipes.common.teacher.controller import ExposureController
from recipes.common.teacher.decisions import MODES, ControllerConfig, Observation
from recipes.common.teacher.difficulty import ProblemAccuracy
from recipes.common.teacher.reference import difficulty_exposures

EXPOSURE_MODES = ("full", *MODES)
FOLDER = "exposure"  # in a checkpoint


@dataclass(frozen=True)
class ExposureParams:
    """`self_distill.exposure` without its node `controller`, which is `ControllerConfig`.

    Attributes:
        mode: "full", or one of the controller's modes.
        fixed_exposure: only with mode="fixed": 0 shows the answer alone, 1 all of the reference.
        difficulty_strength: 0 gives all responses one exposure (the paper); above 0, problems that the student fails
            show less and those that it solves more.
        difficulty_memory, difficulty_prior: of the running accuracy that says which those are (`ProblemAccuracy`).
        separator: between the shown part of the reasoning and the answer.
        probe_file: prepared parquet of held-out problems with solutions; the controller's state and reward need it.
        probe_size: how many of its first rows.
        probe_every: updates between two measurements of the probe.
    """

    mode: str = "full"
    fixed_exposure: float = 1.0
    difficulty_strength: float = 0.0
    difficulty_memory: float = 0.9
    difficulty_prior: float = 2.0
    separator: str = ""
    probe_file: str | None = None
    probe_size: int = 32
    probe_every: int = 1

    @property
    def active(self) -> bool:
        """Whether references are truncated at all."""
        return self.mode != "full"

    def validate(self) -> None:
        """Raise ValueError, with value and rule, on a setting that is not usable."""
        require(self.mode in EXPOSURE_MODES, "mode", self.mode, f"one of {', '.join(EXPOSURE_MODES)}")
        require(self.difficulty_strength >= 0.0, "difficulty_strength", self.difficulty_strength, "0 or more")
        require(0.0 <= self.difficulty_memory <= 1.0, "difficulty_memory", self.difficulty_memory, "in [0, 1]")
        require(0.0 <= self.difficulty_prior < math.inf, "difficulty_prior", self.difficulty_prior, "0 or more")
        require(self.probe_size >= 1, "probe_size", self.probe_size, "1 or more")
        require(self.probe_every >= 1, "probe_every", self.probe_every, "1 or more")


def exposure_params(self_distill: Any) -> ExposureParams:
    """`self_distill.exposure` but for its node `controller`, checked.  Raises ValueError."""
    node = {key: value for key, value in (self_distill.get("exposure") or {}).items() if key != "controller"}
    return load_params(ExposureParams, node, where="self_distill.exposure")


def controller_config(self_distill: Any, params: ExposureParams) -> ControllerConfig:
    """`self_distill.exposure.controller`, checked, for a run of one step; `dataclasses.replace` sets `total_steps`.

    Args:
        params: of the same configuration; its mode must not be "full".  Raises ValueError.
    """
    given = {"total_steps": 1, "mode": params.mode, "fixed_exposure": params.fixed_exposure}
    node = self_distill.exposure.get("controller") or {}
    return load_params(ControllerConfig, {**node, **given}, where="self_distill.exposure.controller")


class ExposureLoop:
    """The exposure of a run, from step to step."""

    def __init__(self, params: ExposureParams, config: ControllerConfig) -> None:
        self.params = params
        self.controller = ExposureController(config)
        self.accuracy: ProblemAccuracy | None = None  # where exposure is conditioned on difficulty
        if params.difficulty_strength > 0.0:
            self.accuracy = ProblemAccuracy(params.difficulty_memory, params.difficulty_prior)

    def current(self) -> float:
        """α of the update to come; the first call of a run makes the first decision."""
        if not self.controller.started:
            self.controller.step()
        return self.controller.exposure

    def of_responses(self, problems: Sequence[str | None], correct: Sequence[bool]) -> list[float]:
        """α of each response, from its problem's running accuracy where exposure is conditioned on difficulty.

        Once a step: the responses are counted.

        Args:
            problems, correct: (B,) as in `ProblemAccuracy.visit`.
        """
        alpha = self.current()
        if self.accuracy is None:
            return [alpha] * len(problems)
        config = self.controller.config
        return difficulty_exposures(
            alpha,
            1.0 - self.accuracy.visit(problems, correct),
            strength=self.params.difficulty_strength,
            exposure_min=config.exposure_min,
            exposure_max=config.exposure_max,
        ).tolist()

    def observe(self, observation: Observation) -> dict[str, float]:
        """Tell the controller what an update showed; returns the metrics of the decision under which it was made."""
        decided = {f"exposure/{name}" for name in ("alpha", "a", "b", "mean", "entropy")}
        in_force = {key: value for key, value in self.controller.metrics().items() if key in decided}
        self.controller.step(observation)
        return {**self.controller.metrics(), **in_force}

    def probe_due(self, step: int) -> bool:
        """Whether the probe is to be measured after the update of this step."""
        asked = step % self.params.probe_every == 0 or self.controller.counterfactual_due
        return self.params.probe_file is not None and asked

    def save(self, checkpoint: Path) -> None:
        """Everything that the controller remembers, into a checkpoint's folder."""
        self.controller.save(checkpoint / FOLDER)
        if self.accuracy is not None:
            self.accuracy.save(checkpoint / FOLDER)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint.  Raises RuntimeError where it does not hold what this run needs."""
        try:
            self.controller.load(checkpoint / FOLDER)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{checkpoint} has no exposure controller ({error}): it was saved with "
                "self_distill.exposure.mode=full. Resume with that, or choose another hydra.run.dir"
            ) from error
        if self.accuracy is None:
            return
        try:
            self.accuracy.load(checkpoint / FOLDER)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{checkpoint} has no accuracies of problems ({error}): it was saved with "
                "self_distill.exposure.difficulty_strength=0. Resume with that, or choose another hydra.run.dir"
            ) from error
