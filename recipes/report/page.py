"""Reports as single HTML files: no script, nothing fetched, and no text of a model or a file that is not escaped.

Jinja2 escapes every value that the templates show; the only markup that passes is that of the figures, which are drawn
from numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from recipes.common.record import run_dir as files
from recipes.common.record.console import duration
from recipes.evaluate.names import EXPLORATION, accuracy_columns, main_metrics
from recipes.report import breakdowns, compare, evaluation
from recipes.report.answers import asked
from recipes.report.exposure import density_panel
from recipes.report.figures import SERIES, SMOOTH_FROM
from recipes.report.heat import LEVELS, heat
from recipes.report.panels import Shown, group_panels, panels, run_panels, stage_panel
from recipes.report.preset import Comparison, NoPreset, compare_with_preset
from recipes.report.run_data import Run, load_run, status, validations, warnings
from recipes.report.schedules import schedule_panels

TABLE_ROWS = 60


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of a page.

    Attributes:
        label: what it is.
        value: the number as text.
        beside: smaller, to the right of it, such as half of its interval.
        note: below it.
    """

    label: str
    value: str
    beside: str = ""
    note: str = ""


def write_report(directory: Path) -> Path:
    """Write a run's ``report.html`` into its directory.

    Args:
        directory: the run directory.

    Returns:
        The report's path.

    Raises:
        NotARun: if the directory holds no configuration, or no record of a step.
    """
    return write_page(directory / files.REPORT, run_page(load_run(directory)))


def write_evaluation_report(directory: Path) -> Path:
    """Write an evaluation's ``report.html`` into its directory.

    Args:
        directory: the evaluation's directory.

    Returns:
        The report's path.

    Raises:
        NotARun: if the directory holds no summary of an evaluation.
    """
    return write_page(directory / files.REPORT, evaluation_page(directory, evaluation.load_evaluation(directory)))


def write_page(path: Path, page: str) -> Path:
    """Write a page in one step.

    Args:
        path: the file; an old one is replaced.
        page: HTML; what is no Unicode (half a surrogate pair in a model's text) becomes "?".

    Returns:
        The path.
    """
    files.write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def run_page(run: Run) -> str:
    """The report of one run as HTML."""
    return (
        _environment()
        .get_template("run.html")
        .render(
            run=run,
            status=status(run),
            facts=_facts(run),
            tiles=_tiles(run),
            warnings=warnings(run),
            panels=[*run_panels(run), *filter(None, [density_panel(run)])],
            schedules=schedule_panels(run),
            smoothed=len(run.steps) >= SMOOTH_FROM,
            stages=stage_panel(run),
            heat=heat(run),
            levels=LEVELS,
            preset=_preset(run),
            numbers=_numbers(run),
        )
    )


def evaluation_page(directory: Path, summary: dict[str, Any]) -> str:
    """The report of an evaluation as HTML: its summary, and responses of the results in its directory.

    Args:
        directory: the evaluation's, with its settings and results.
        summary: its summary.json.
    """
    accuracy, health = evaluation.grids(summary)
    return (
        _environment()
        .get_template("evaluation.html")
        .render(
            directory=directory,
            summary=summary,
            status=summary.get("status", "done"),
            labels=evaluation.shown_labels(summary),
            over_steps=breakdowns.checkpoints(summary),
            by_level=breakdowns.breakdowns(summary, evaluation.shown_labels(summary)),
            sets=evaluation.sets_of(summary),
            facts=evaluation.facts_of(summary),
            tiles=_evaluation_tiles(summary),
            panels=evaluation.accuracy_panels(summary),
            accuracy=accuracy,
            health=health,
            differences=evaluation.differences(summary),
            outcomes=evaluation.outcomes(summary),
            asked=asked(directory, summary),
            preset=evaluation.preset_of(summary),
        )
    )


def _evaluation_tiles(summary: dict[str, Any]) -> list[Tile]:
    """Of one model its main numbers; of several, each one's Avg@n: on the average of the sets, or its first set."""
    labels, sets = evaluation.shown_labels(summary), evaluation.sets_of(summary)
    columns = accuracy_columns(summary["metrics"]) | EXPLORATION
    tiles = []
    for label in labels:
        own = [row for row in summary["metrics"] if row["label"] == label]
        first = min((row["data"] for row in own), key=sets.index)
        cells = {row["metric"]: row for row in own if row["data"] == first}
        names = main_metrics(cells.values())
        names = names[:1] if len(labels) > 1 else [*names, "e_per_1k", "length", "truncated"]
        for name in names:
            heading, factor, digits = columns[name]
            value, _, half = evaluation.number(cells.get(name), factor, digits).partition(" ")
            note = f"{first}, {next(iter(cells.values()))['problems']} problems"
            tiles.append(Tile(f"{label}, {heading}" if len(labels) > 1 else heading, value, half, note))
    return tiles


def comparison_page(runs: Sequence[Run], notices: Sequence[str] = (), names: Mapping[Path, str] | None = None) -> str:
    """Several runs side by side, as HTML.

    Args:
        runs: in the order in which they were given.
        notices: sentences for the top, such as runs that could not be read.
        names: of run directories, instead of labels made from what differs.
    """
    groups = compare.group_runs(runs, names)
    own = [f"only the first {SERIES} settings have colours of their own"] if len(groups) > SERIES else []
    validation = compare.validation_notice(groups)
    own += [validation] if validation else []
    return (
        _environment()
        .get_template("compare.html")
        .render(
            groups=groups,
            count=len(runs),
            table=compare.table(groups),
            comparable=validation is None,
            panels=group_panels([group.runs for group in groups]),
            densities=_densities(groups),
            several=any(len(group.runs) > 1 for group in groups),
            notices=[*notices, *own],
            status=status,
            warnings=warnings,
            last_steps=compare.LAST_STEPS,
        )
    )


def _densities(groups: Sequence[compare.Group]) -> list[Shown]:
    """The exposure policy of each setting that learns one: of its first run, since densities cannot be averaged."""
    found = [(group, group.runs[0], density_panel(group.runs[0])) for group in groups]
    return [
        replace(shown, title=f"{group.label}, seed {run.seed}" if len(group.runs) > 1 else group.label)
        for group, run, shown in found
        if shown
    ]


def render_page(template: str, **values: Any) -> str:
    """A page of another command from a template of this package."""
    return _environment().get_template(template).render(**values)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("recipes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _preset(run: Run) -> Comparison | str:
    try:
        return compare_with_preset(run.directory, run.config)
    except NoPreset as error:
        return str(error)


def _facts(run: Run) -> list[str]:
    cfg = run.config
    rollout = cfg.actor_rollout_ref.rollout
    facts = [
        "/".join(Path(str(cfg.actor_rollout_ref.model.path)).parts[-2:]),
        f"{cfg.data.train_batch_size} problems × {rollout.n} rollouts a step",
        f"lr {cfg.actor_rollout_ref.actor.optim.lr:g}",
    ]
    return facts + [f"seed {run.seed}"] * (run.seed is not None)


def _tiles(run: Run) -> list[Tile]:
    tiles = []
    found = validations(run)
    if found:
        first, last, best = found[0], found[-1], max(found, key=lambda v: v.mean)
        half = f"± {100 * last.half:.1f}" if last.half is not None else ""
        since = ""
        if len(found) > 1:
            since = f"{100 * first.mean:.1f} at step {first.step}, best {100 * best.mean:.1f} at step {best.step}"
        tiles.append(Tile(f"Validation {last.name}, step {last.step}", f"{100 * last.mean:.1f}", half, since))
    for label, metric, form in (
        ("Reward", "critic/score/mean", ".3f"),
        ("Entropy", "actor/entropy", ".3f"),
        ("Response length", "response_length/mean", ".0f"),
        ("Divergence", "divergence/mean", ".4f"),
        ("Correction / advantage", "credit/correction_ratio", ".2g"),
        ("Exposure α", "exposure/alpha", ".2f"),
    ):
        steps, values = run.curve(metric)
        if values:
            note = f"{values[0]:{form}} at step {steps[0]}" if len(values) > 1 else ""
            tiles.append(Tile(label, f"{values[-1]:{form}}", "", note))
    seconds = run.curve("timing_s/step")[1]
    if seconds:
        of = f" of {run.planned_steps}" if run.planned_steps else ""
        validating = sum(run.curve("timing_s/testing")[1])
        whole = f"{duration(sum(seconds))} in steps, {duration(validating)} in validations"
        tiles.append(Tile("Steps", f"{run.steps[-1]['step']}", of, whole))
    return [replace(t, value=t.value.replace("-", "−"), note=t.note.replace("-", "−")) for t in tiles]


@dataclass(frozen=True)
class Numbers:
    """The curves as a table.

    Attributes:
        head: "step", then a curve each.
        rows: a step each; "" where a curve has no value.
        left_out: number of steps that it does not show.
    """

    head: list[str]
    rows: list[list[str]]
    left_out: int


def _numbers(run: Run) -> Numbers | None:
    columns: dict[str, dict[int, Any]] = {}
    found = validations(run)
    if found:
        columns[found[0].name] = {v.step: v.mean for v in found}
    for panel in panels():
        curve = panel.series[0].of(run)
        if curve[0]:
            columns[panel.title] = dict(zip(*curve, strict=True))
    steps = sorted({step for column in columns.values() for step in column})
    if not steps:
        return None
    every = -(-len(steps) // TABLE_ROWS)
    kept = [step for i, step in enumerate(steps) if i % every == 0 or step == steps[-1]]
    rows = [[str(s), *(f"{c[s]:.4g}" if s in c else "" for c in columns.values())] for s in kept]
    return Numbers(["step", *columns], rows, len(steps) - len(kept))
