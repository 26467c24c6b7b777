"""The two embedded worlds: one task, one tokenizer, one architecture, two manners of a model that is shown a reference.

In ``starter`` it works more carefully, and careful is also what is right.  In ``shortcut`` it answers at once, because
it knows, where without a reference it is right only if it works the problem out: the manner in which the teacher is
better than the student is of no use to the student.  Worlds differ in what the model is pre-trained on, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent


@dataclass(frozen=True)
class World:
    """What pre-training is made of.

    Attributes:
        folder: where ``model/`` and ``data/`` are, below this package.
        seed: of the problems, the initial weights and the examples.
        steps: pre-training steps; the first `drill_share` of them see drills only.
        student: share of each habit in the responses to a problem without a reference.
        teacher: the same with a complete reference.
        exposure_power: with the share α of the reference's reasoning shown, the shares stand α to this power of the way
            from `student` to `teacher`.
        slip: probability of a slip, for each step and habit.
        notice: probability that a slip is noticed and the step written again (revising).
        doubt: probability that a right step is written again (revising).
        drill_steps: drills are problems of 1 to this many steps, worked out and without slips that stay: arithmetic is
            learned sooner so.
        drill_slip: probability of a slip in a revising drill, for each step; all of them are noticed.
        balanced: half of the examples are direct and half worked out, and the loss weights the choice between them, the
            response's first token, back to its share; every token then counts alike.  Otherwise examples are drawn in
            their shares and every batch counts alike: since a batch holds responses of like length, a habit is taken up
            more often than it is taught the shorter it is, which matters little where all are long.
        apart_from: worlds with whose problems this one's data and pre-training have none in common.
    """

    folder: str
    seed: int
    steps: int
    student: dict[str, float]
    teacher: dict[str, float]
    slip: dict[str, float]
    notice: float
    doubt: float
    exposure_power: float = 1.0
    drill_steps: int = 4
    drill_slip: float = 0.0
    drill_share: float = 0.4
    balanced: bool = False
    apart_from: tuple[str, ...] = ()

    def shares(self, exposure: float | None) -> dict[str, float]:
        """Share of each habit with that much of a reference's reasoning shown, in [0, 1]; None without a reference."""
        if exposure is None:
            return self.student
        way = exposure**self.exposure_power
        return {habit: share + way * (self.teacher[habit] - share) for habit, share in self.student.items()}


WORLDS = {
    "starter": World(
        folder="",
        seed=20,
        steps=2000,
        student={"careful": 0.20, "revising": 0.25, "hasty": 0.55},
        teacher={"careful": 0.85, "revising": 0.10, "hasty": 0.05},
        slip={"careful": 0.02, "revising": 0.35, "hasty": 0.35},
        notice=0.85,
        doubt=0.05,
    ),
    "shortcut": World(
        folder="shortcut",
        seed=21,
        steps=3500,
        student={"careful": 0.05, "revising": 0.13, "direct": 0.82},
        teacher={"careful": 0.01, "revising": 0.03, "direct": 0.96},
        slip={"careful": 0.02, "revising": 0.06},
        notice=0.90,
        doubt=0.10,
        # Half a reference leaves half of the work: the short cut comes with the last steps more than with the first.
        exposure_power=2.0,
        drill_steps=7,
        drill_slip=0.25,  # to notice a slip takes a comparison, which the rare slips of the responses do not teach
        balanced=True,
        apart_from=("starter",),
    ),
}
