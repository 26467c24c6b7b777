"""From a table and a scale to its runs, to its matrix, to its page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common.record import run_dir as files
from recipes.report.page import comparison_page, write_page
from recipes.report.run_data import NotARun, load_run
from recipes.reproduce import measured, page
from recipes.reproduce.matrix import Column, Matrix, markdown
from recipes.reproduce.measured import MEASURES, VALIDATION, Measured
from recipes.reproduce.runs import CONSOLE, Job, seeded
from recipes.reproduce.tables import STARTER, Scale, Table, slug, trained

AVERAGE = "average"
Place = tuple[str, str, int]  # row's label, experiment, seed


@dataclass(frozen=True)
class Planned:
    """A table at a scale.

    Attributes:
        table: what is reproduced.
        scale: how large.
        out: where everything is written.
        jobs: the runs, each in its place.
    """

    table: Table
    scale: Scale
    out: Path
    jobs: dict[Place, Job]

    def evaluation(self, experiment: str) -> Path:
        """Directory of the evaluation of all runs in an experiment."""
        return self.out / "evaluations" / f"{self.table.name}-{experiment}"


def plan(table: Table, scale: Scale, out: Path, overrides: Sequence[str] = ()) -> Planned:
    """The runs of a table, seed by seed, so that a table that was interrupted has all rows with the first seeds.

    Args:
        table: what is reproduced.
        scale: how large.
        out: where everything is written.
        overrides: of the user, for every run.
    """
    jobs = {}
    of_all = (*scale.overrides, *overrides)
    shared = "-".join(filter(None, [f"{scale.steps}_steps" if scale.steps else "whole", slug(of_all)]))
    for seed in scale.seeds:
        for experiment in scale.experiments:
            for row in trained(table):
                directory = out / "runs" / shared / experiment / row.slug / f"seed_{seed}"
                jobs[row.label, experiment, seed] = Job(
                    name=f"{row.label}, {experiment}, seed {seed}",
                    directory=directory,
                    steps=scale.steps,
                    overrides=(
                        f"experiment={experiment}",
                        *row.overrides,
                        *seeded(seed),
                        f"trainer.validation_data_dir={directory / VALIDATION}",
                        *(("trainer.val_before_train=false",) if scale.preset is None else ()),
                        *of_all,
                    ),
                )
    return Planned(table, scale, out, jobs)


def evaluations(planned: Planned) -> Iterator[list[str]]:
    """The commands that evaluate what is trained; none where the validation of the runs counts."""
    if planned.scale.preset is None:
        return
    for experiment in planned.scale.experiments:
        models = []
        for row in trained(planned.table):
            places = [(row.label, experiment, seed) for seed in planned.scale.seeds]
            # Named by slugs: Hydra reads no quoted keys.
            models.append(f"{row.slug}:[{','.join(json.dumps(str(planned.jobs[p].directory)) for p in places)}]")
        yield [
            *(sys.executable, "-m", "recipes.evaluate.main", f"preset={planned.scale.preset}"),
            f"model={{{','.join(models)}}}",
            f"hydra.run.dir={planned.evaluation(experiment)}",
        ]


def matrix(planned: Planned) -> Matrix | None:
    """The cells of what is complete; None where nothing is."""
    made = _of_runs(planned) if planned.scale.preset is None else _of_summaries(planned)
    return made if made.cells else None


def _of_runs(planned: Planned) -> Matrix:
    found: dict[tuple[str, str], dict[int, Measured]] = {}
    for (label, experiment, seed), job in planned.jobs.items():
        one = measured.measure(job.directory, job.steps) if job.steps and job.complete else None
        if one is not None:
            found.setdefault((label, experiment), {})[seed] = one
    samples = max((run.samples for runs in found.values() for run in runs.values()), default=0)
    rows = tuple(trained(planned.table))
    cells, differences = {}, {}
    for (label, experiment), runs in found.items():
        baseline = found.get((rows[0].label, experiment), {})
        for measure in MEASURES:
            place = (label, experiment, measure.name)
            cell = measured.cell(runs, measure.name)
            difference = measured.paired(runs, baseline, measure.name) if label != rows[0].label else None
            if cell is not None:
                cells[place] = cell
            if difference is not None:
                differences[place] = difference
    columns = tuple(
        Column(experiment, m.title.format(n=samples), m.explained.format(n=samples), m.factor, m.digits, m.name)
        for experiment in planned.scale.experiments
        for m in MEASURES
        if any((row.label, experiment, m.name) in cells for row in rows)
    )
    worth = {
        (row.label, experiment): cell
        for row in rows
        for experiment in planned.scale.experiments
        if row.control is not None
        and (cell := measured.paired(*(found.get((name, experiment), {}) for name in (row.control, row.label)), "avg"))
    }
    return Matrix(rows[0].label, rows, columns, cells, differences, worth)


def _of_summaries(planned: Planned) -> Matrix:
    """Avg@n on each set and their average, and exploration on the average where it was measured."""
    rows, columns, cells, differences = tuple(trained(planned.table)), [], {}, {}
    for experiment in planned.scale.experiments:
        path = planned.evaluation(experiment) / "summary.json"
        if not path.exists():
            continue
        summary: dict[str, Any] = json.loads(path.read_text())
        metric = next(row["metric"] for row in summary["metrics"] if row["metric"].startswith("avg@"))
        sets = list(dict.fromkeys(row["data"] for row in summary["metrics"]))
        whole = AVERAGE if AVERAGE in sets else sets[0]
        wanted = [(name, metric, name, 100.0, 1, "avg" if name == whole else name) for name in sets]
        wanted += [(whole, "e_per_response", "E(y)", 1.0, 2, "markers")]
        for data, metric_name, title, factor, digits, key in wanted:
            columns.append(Column(experiment, title, metric_name, factor, digits, key))
            for row in rows:
                cell = measured.cell_of_summary(summary, row.slug, data, metric_name)
                difference = measured.paired_of_summary(summary, row.slug, rows[0].slug, data, metric_name)
                if cell is not None:
                    cells[row.label, experiment, key] = cell
                if difference is not None:
                    differences[row.label, experiment, key] = difference
    return Matrix(rows[0].label, rows, tuple(columns), cells, differences, {})


def write(planned: Planned, scale: str) -> tuple[Path, str]:
    """Write page and Markdown.

    Args:
        planned: the runs.
        scale: name of the scale.

    Returns:
        The page's path, and the Markdown with what to conclude.
    """
    table, found = planned.table, matrix(planned)
    facts = [f"scale={scale}", f"{len(planned.scale.seeds)} seeds" if len(planned.scale.seeds) > 1 else "one seed"]
    facts += [f"{planned.scale.steps} steps"] if planned.scale.steps else []
    complete = sum(job.complete for job in planned.jobs.values()) if scale == STARTER else None
    facts += [f"{complete} of {len(planned.jobs)} runs"] if complete is not None else []
    target = planned.out / f"{table.name}_{scale}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    curves = _curves(planned, target) if table.curves else []
    write_page(
        target, page.render(table, found, scale=scale, facts=facts, notices=list(_notices(planned)), curves=curves)
    )
    text = "nothing has been measured yet"
    if found is not None:
        text = f"{markdown(found)}\n\n" + "\n".join(f"{i}. {s}" for i, s in enumerate(page.sentences(found), 1))
    files.write_atomically(target.with_suffix(".md"), f"{text}\n")
    return target, text


def _curves(planned: Planned, beside: Path) -> list[str]:
    """Write a page of curves for each experiment; returns the names of the files."""
    written = []
    for experiment in planned.scale.experiments:
        names = {job.directory: label for (label, of, _), job in planned.jobs.items() if of == experiment}
        runs = []
        for directory in names:
            with suppress(NotARun):  # not begun: the table says how many are complete
                runs.append(load_run(directory))
        if runs:
            path = beside.with_name(f"{beside.stem}_{experiment}_curves.html")
            written.append(write_page(path, comparison_page(runs, names=names)).name)
    return written


def _notices(planned: Planned) -> Iterator[str]:
    """Runs that began and are not complete: how they ended."""
    for job in planned.jobs.values():
        stage = files.read_stage(job.directory)
        if job.directory.exists() and not job.complete:
            ended = stage.get("reason") or stage.get("stage")
            said = f"{ended}, step {stage.get('step', 0)}" if ended else _last_line(job.directory / CONSOLE)
            yield f"{job.name} is not complete ({said}); {job.directory}"


def _last_line(path: Path) -> str:
    """What a command said last: what was wrong with it, where it was refused."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
    refusals = [line for line in lines if line.startswith("- ")]
    return [*lines, *refusals][-1][:200] if lines else "it printed nothing"
