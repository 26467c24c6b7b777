"""Which curves a report shows: a table of panels, and how each becomes a figure for one run or for several.

A panel appears if a run has the metric. Those of verl's numbers are written here; those of the methods come from
`advantage.labels.Metric`, where each method declares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from advantage.labels import Metric
from recipes.common import metric_names as names
from recipes.report.figures import Line, curves, stacked_bars
from recipes.report.run_data import Run, validations

Curve = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Series:
    """A line of a panel.

    Attributes:
        label: of the line, for the legend.
        metrics: the first of these that a run has is drawn.
        compute: makes the curve of the run instead.
        dashed: a bound or quantile beside the main line.
    """

    label: str
    metrics: tuple[str, ...] = ()
    compute: Callable[[Run], Curve] | None = None
    dashed: bool = False

    def of(self, run: Run) -> Curve:
        """Steps and values of a run; both empty if it has none."""
        return self.compute(run) if self.compute else run.curve(*self.metrics)


@dataclass(frozen=True)
class Panel:
    """A figure of the report.

    Attributes:
        title: its heading.
        note: what is drawn, with its unit.
        series: its lines; the first is the one that comparisons show.
        percent: values are shares.
        limit: a level above which something is wrong.
        from_zero: the axis begins at zero.
        idle: a value that says nothing: a panel whose lines never leave it is not shown.
    """

    title: str
    note: str
    series: tuple[Series, ...]
    percent: bool = False
    limit: float | None = None
    from_zero: bool = False
    idle: float | None = None


def _gap_estimate(run: Run) -> Curve:
    """Mean of log p_S − log p_T over the sampled tokens, nats: the one-sample estimate of KL(p_S ‖ p_T)."""
    teacher = {r["step"]: r[names.TEACHER_LOG_PROB] for r in run.steps if r.get(names.TEACHER_LOG_PROB) is not None}
    steps, student = run.curve(names.STUDENT_LOG_PROB)
    kept = [(step, value - teacher[step]) for step, value in zip(steps, student, strict=True) if step in teacher]
    return [s for s, _ in kept], [v for _, v in kept]


FIRST_PANELS = (
    Panel("Reward", "mean over the step's rollouts", (Series("reward", (names.REWARD,)),)),
    Panel(
        "Entropy",
        "of the student's next token, nats",
        (
            Series("mean", (names.ENTROPY,)),
            Series("95th percentile", (names.ENTROPY_QUANTILE.format(95),), dashed=True),
        ),
        from_zero=True,
    ),
    Panel(
        "Response length",
        "tokens",
        (Series("mean", (names.LENGTH,)), Series("longest", ("response_length/max",), dashed=True)),
        from_zero=True,
    ),
    Panel(
        "Cut responses",
        "share that reached the length limit",
        (Series("share", (names.CUT_SHARE,)),),
        percent=True,
        from_zero=True,
        idle=0.0,
    ),
)
# After those of the methods.
LAST_PANELS = (
    Panel("Gradient norm", "before clipping", (Series("norm", ("actor/grad_norm",)),), from_zero=True),
    Panel(
        "KL of the update",
        "PPO's estimate between the policy before and after, nats",
        (Series("KL", ("actor/ppo_kl",)),),
        idle=0.0,
    ),
    Panel("Throughput", "tokens a second", (Series("tokens/s", (names.THROUGHPUT,)),), from_zero=True),
)
KL_ESTIMATE = Panel(
    "KL to the teacher, estimated",
    "mean of log p_S − log p_T over the sampled tokens, nats",
    (Series("estimate", compute=_gap_estimate),),
)


def panels(metrics: Iterable[Metric] = ()) -> list[Panel]:
    """All panels in their order.

    Args:
        metrics: of the methods that are shown; those that every method has are included already.
    """
    shown = dict.fromkeys((*names.SHARED, *metrics))
    return [*FIRST_PANELS, KL_ESTIMATE, *map(_panel, shown), *LAST_PANELS]


def _panel(metric: Metric) -> Panel:
    dashed = [Series(line, (name,), dashed=True) for name, line in metric.also]
    return Panel(
        metric.title,
        metric.note,
        (Series(metric.line, (metric.name,)), *dashed),
        percent=metric.percent,
        limit=metric.limit,
        from_zero=metric.from_zero,
        idle=metric.idle,
    )


# verl's names of a step's stages, in the order in which they happen, and the colours of those that most runs have.
STAGES = {
    "gen": ("rollout", 1),
    "reward": ("reward", 9),
    "old_log_prob": ("student log-probs", 5),
    "ref": ("reference log-probs", 9),
    "values": ("critic", 9),
    "teacher": ("teacher", 3),
    "adv": ("advantages", 6),
    "update_critic": ("critic update", 9),
    "update_actor": ("update", 2),
    "probe": ("probe", 9),
    "update_weights": ("weight sync", 7),
    "save_checkpoint": ("checkpoint", 8),
    "testing": ("validation", 4),
}


@dataclass(frozen=True)
class Shown:
    """A panel with its figure.

    Attributes:
        title: its heading.
        note: what is drawn, with its unit.
        figure: an <svg> element.
        legend: (label, number of the colour from 1, dashed) of each line; empty if one line needs none.
    """

    title: str
    note: str
    figure: Markup
    legend: list[tuple[str, int, bool]]


def run_panels(run: Run) -> list[Shown]:
    """The panels of one run that have something to show, validation first."""
    validation = _validation_panel(run)
    shown = [validation] if validation else []
    for panel in panels(run.asks.metrics if run.asks else ()):
        present = [(series, curve) for series in panel.series if (curve := series.of(run))[0]]
        if not present or _idle(panel, [curve for _, curve in present]):
            continue
        lines = [
            Line(curve[0], curve[1], colour=0 if series.dashed else index, dashed=series.dashed)
            for index, (series, curve) in enumerate(present)
        ]
        legend = [
            (series.label, line.colour + 1, line.dashed) for (series, _), line in zip(present, lines, strict=True)
        ]
        shown.append(_shown(panel, lines, legend if len(legend) > 1 else []))
    return shown


def group_panels(groups: Sequence[Sequence[Run]]) -> list[Shown]:
    """The panels of several groups of runs: a colour each group, a thin line each run, a thick one for their mean.

    Args:
        groups: the runs of each setting.
    """
    shown = []
    accuracy = Panel("Validation accuracy", "mean of the sets", (Series("accuracy", compute=_accuracy),), percent=True)
    of_methods = [metric for runs in groups for run in runs[:1] if run.asks for metric in run.asks.metrics]
    for panel in (accuracy, *panels(of_methods)):
        curves_of = [[c for run in runs if (c := panel.series[0].of(run))[0]] for runs in groups]
        if _idle(panel, [curve for group in curves_of for curve in group]):
            continue
        markers = panel is accuracy
        lines = [
            Line(curve[0], curve[1], colour=index, faint=len(group) > 1, markers=markers)
            for index, group in enumerate(curves_of)
            for curve in group
        ]
        for index, group in enumerate(curves_of):
            if len(group) > 1:
                steps, means = mean_curve(group)
                lines.append(Line(steps, means, colour=index, markers=markers))
        if lines:
            shown.append(_shown(panel, lines, []))
    return shown


def mean_curve(group: Sequence[Curve]) -> Curve:
    """Mean of several curves at the steps that all of them have.

    Args:
        group: (steps, values) of each; at least one.
    """
    values = [dict(zip(*curve, strict=True)) for curve in group]
    common = sorted(set.intersection(*(set(v) for v in values)))
    return common, [sum(v[step] for v in values) / len(values) for step in common]


def stage_panel(run: Run) -> tuple[Shown, list[tuple[str, int, float, float]]] | None:
    """Where the time of a step goes.

    Seconds are means over all steps, so a checkpoint every tenth step counts a tenth.

    Returns:
        The figure, and (stage, number of its colour from 1, seconds a step, share of the whole), longest first; None
        if no step was timed.
    """
    timed = [r for r in run.steps if r.get(names.STEP_SECONDS) is not None]
    if not timed:
        return None
    stages = [
        (label, colour, np.array([r.get(f"timing_s/{name}") or 0.0 for r in timed], dtype=np.float64))
        for name, (label, colour) in STAGES.items()
        if any(r.get(f"timing_s/{name}") for r in timed)
    ]
    # verl measures the validation after the step, everything else within it.
    inside = sum((seconds for label, _, seconds in stages if label != "validation"), np.zeros(len(timed)))
    rest = np.array([r[names.STEP_SECONDS] for r in timed]) - inside
    stages.append(("other", 9, rest.clip(min=0.0)))
    stages.sort(key=lambda stage: -stage[2].sum())
    total = sum(seconds.sum() for _, _, seconds in stages)
    bars: dict[int, np.ndarray] = {}
    for _, colour, seconds in stages:  # those without a colour of their own share one
        bars[colour - 1] = bars.get(colour - 1, 0.0) + seconds
    figure = stacked_bars([r["step"] for r in timed], bars)
    rows = [(label, colour, seconds.mean(), seconds.sum() / total) for label, colour, seconds in stages]
    return Shown("Time of each step", "seconds, by stage", figure, []), rows


def _validation_panel(run: Run) -> Shown | None:
    found = validations(run)
    if not found:
        return None
    steps, means = [v.step for v in found], [v.mean for v in found]
    halves = [v.half for v in found if v.half is not None]
    banded = len(halves) == len(found)
    main = Line(
        steps,
        means,
        low=[mean - half for mean, half in zip(means, halves, strict=True)] if banded else None,
        high=[mean + half for mean, half in zip(means, halves, strict=True)] if banded else None,
        markers=True,
    )
    sets = list(found[0].sets) if len(found[0].sets) > 1 else []
    lines = [
        Line([v.step for v in found if name in v.sets], [v.sets[name] for v in found if name in v.sets], colour=i)
        for i, name in enumerate(sets, 1)
    ]
    legend = [("mean of the sets", 1, False), *((name, i + 1, False) for i, name in enumerate(sets, 1))] if sets else []
    note = f"{found[0].name}; the band is the 95 % interval over problems" if banded else found[0].name
    return Shown("Validation accuracy", note, curves([*lines, main], percent=True), legend)


def _accuracy(run: Run) -> Curve:
    found = validations(run)
    return [v.step for v in found], [v.mean for v in found]


def _shown(panel: Panel, lines: list[Line], legend: list[tuple[str, int, bool]]) -> Shown:
    figure = curves(lines, percent=panel.percent, limit=panel.limit, from_zero=panel.from_zero)
    return Shown(panel.title, panel.note, figure, legend)


def _idle(panel: Panel, found: Sequence[Curve]) -> bool:
    return panel.idle is not None and all(value == panel.idle for _, values in found for value in values)
