"""The exposure policy over training: the density of the Beta that each decision was drawn from, and what was drawn.

ATESD's Figure 4 B (arXiv 2605.11458), from the parameters that each step's record has.  A density is shown by nested
intervals of exposure in which it is at least 1/4, 0.35, 1/2, …, a deeper colour for each: with a, b > 1 (Eq. 7) a Beta
has one peak, so that there is one interval for each level.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy.stats import beta

from recipes.common import metric_names as names
from recipes.report.figures import Column, density
from recipes.report.panels import Shown
from recipes.report.run_data import Run

# From a quarter of the uniform density to 32 times it; every second level is named.
LEVELS = [2.0 ** (k / 2) for k in range(-4, 11)]
LABELS = ["" if k % 2 else {-4: "¼", -2: "½"}.get(k, f"{2 ** (k // 2):g}") for k in range(-4, 11)]
LEGEND = [("density", 1, False), ("drawn, while in force", 2, False), ("policy's mean", 6, True)]
GRID = np.linspace(0.0, 1.0, 2001)


@dataclass(frozen=True)
class Held:
    """A decision while it was in force.

    Attributes:
        first, last: steps.
        a, b: of its policy.
        exposure: what was drawn.
    """

    first: int
    last: int
    a: float
    b: float
    exposure: float


def held_decisions(run: Run) -> list[Held]:
    """The exposures of a run with the policies that they were drawn from; steps in a row with one decision are one."""
    wanted = (names.EXPOSURE_A, names.EXPOSURE_B, names.EXPOSURE)
    found = [(record["step"], tuple(map(record.get, wanted))) for record in run.steps]
    steps = [(step, values) for step, values in found if all(isinstance(value, float) for value in values)]
    held = []
    # Steps that follow each other have one difference between step and place, so a gap ends a decision too.
    for (_, values), group in groupby(enumerate(steps), key=lambda at: (at[1][0] - at[0], at[1][1])):
        places = [step for _, (step, _) in group]
        held.append(Held(places[0], places[-1], *values))
    return held


def interval_above(level: float, a: float, b: float) -> tuple[float, float]:
    """The exposures at which the density of Beta(a, b), a and b above 1, is at least a level; NaN if at none.

    Args:
        level: of the density; 1 is that of the uniform distribution.
        a, b: of the policy.
    """
    inside = GRID[beta.pdf(GRID, a, b) >= level]
    return (float(inside[0]), float(inside[-1])) if len(inside) else (np.nan, np.nan)


def density_panel(run: Run) -> Shown | None:
    """The figure of one run; None where no exposure was drawn from a policy."""
    held = held_decisions(run)
    if not held:
        return None
    columns = [
        Column(
            one.first - 0.5,
            one.last + 0.5,
            [interval_above(level, one.a, one.b) for level in LEVELS],
            drawn=one.exposure,
            mean=one.a / (one.a + one.b),
        )
        for one in held
    ]
    reached = max(sum(np.isfinite(low) for low, _ in column.above) for column in columns)
    figure = density(columns, [(k, label) for k, label in enumerate(LABELS[:reached]) if label])
    note = "density of the Beta that α was drawn from, by step; 1 is uniform, each deeper colour is √2 times more"
    return Shown("Exposure policy", note, figure, LEGEND)
