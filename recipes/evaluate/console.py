"""What a person sees of an evaluation: a plan, progress, tables.

On a terminal the progress line is rewritten in place; elsewhere a line is printed from time to time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from recipes.common.record.console import duration, progress_line, two_columns
from recipes.evaluate.checkpoints import selected_on
from recipes.evaluate.members import Member
from recipes.evaluate.names import BREAKDOWNS, EXECUTION, EXPLORATION, accuracy_columns, main_metrics, problems_of
from recipes.evaluate.plan import Plan
from recipes.evaluate.results import ResultsFile, corrupt_file

SECONDS_BETWEEN_LINES = 10.0
MOST_FAILURES = 5  # that are told as they happen


def plan_table(plan: Plan) -> Table:
    """What will be evaluated, on what, and how."""
    table = two_columns()
    for member in plan.members:
        located = member.located
        step = "" if located.step is None else f", step {located.step}"
        table.add_row("model", escape(f"{member.label}  ({located.kind}{step}: {located.path})"))
    for s in plan.sets:
        table.add_row("data", escape(f"{s.name}  ({len(s.problems)} problems: {s.file})"))
    p = plan.params
    top_k = f", top-k {p.top_k}" if p.top_k > 0 else ""
    table.add_row(
        "samples",
        f"{plan.samples} a problem, temperature {p.temperature:g}, top-p {p.top_p:g}{top_k}, at most {p.max_tokens} "
        f"tokens, seed{'s' * (len(plan.seeds) > 1)} {', '.join(map(str, plan.seeds))}",
    )
    if any(p.grader == "code" for s in plan.sets for p in s.problems):
        limits, open_here = plan.code.limits, plan.code.pool.missing()
        table.add_row(
            "programs",
            escape(
                f"{limits.wall_s:g} s, {limits.cpu_s:g} s of CPU, {limits.memory_mb} MiB each; "
                + (f"although {'; '.join(open_here)}" if open_here else "isolated")
            ),
        )
    for note in plan.notes:
        table.add_row("chosen", escape(note))
    if plan.server is not None:
        table.add_row("engine", escape(f"{plan.server.base_url}, at most {plan.server.concurrency} requests at a time"))
        table.add_row("output", escape(str(plan.directory)))
        return table
    device = f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}" if plan.gpus else "CPU"
    table.add_row("engine", f"{plan.engine}, {plan.workers} worker{'s' * (plan.workers > 1)}, {device}")
    table.add_row("output", escape(str(plan.directory)))
    return table


class EvaluationConsole:
    """Progress on the descriptor of a terminal or file."""

    def __init__(self, descriptor: int):
        self._stream = os.fdopen(os.dup(descriptor), "w", buffering=1)
        self.interactive = self._stream.isatty()
        self.console = Console(file=self._stream, width=None if self.interactive else 120, highlight=False)
        self._progress = progress_line(self.console, self.interactive)
        self._task: TaskID | None = None
        self._began, self._last_line = time.time(), 0.0
        self.done = self.total = self.failed = self._tokens = self._correct = self._responses = 0

    def begin(self, plan: Plan, results: ResultsFile) -> None:
        """Show the plan, and what is left of it where an evaluation goes on.

        Args:
            plan: of the whole evaluation.
            results: the file of results, with what is done already.
        """
        self.console.print(plan_table(plan))
        if results.corrupt:
            self.console.print(
                f"[yellow]warning[/] {results.corrupt} corrupt line{'s' * (results.corrupt > 1)} of "
                f"{results.path.name} moved to {corrupt_file(results.path).name}; these problems are done again"
            )
        left = sum(len(plan.tasks(member, results.done)) for member in plan.members)
        every = len(plan.members) * len(plan.seeds) * sum(len(s.problems) for s in plan.sets)
        if left < every:
            self.console.print(f"[bold]resuming[/] {every - left} of {every} problems are done")
        self._progress.start()

    def member(self, member: Member, problems: int) -> None:
        """Say that a model's turn begins.

        Args:
            member: the model.
            problems: number of problems that it is still to be asked.
        """
        self.done, self.total = 0, problems
        self._tokens = self._correct = self._responses = 0
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=problems, stage=escape(member.label), numbers="loading")
        if problems and not self.interactive:
            self.console.print(f"{escape(member.label)}: {problems} problems to sample")

    def problem_done(self, record: Mapping[str, Any], seconds: float) -> None:
        """Count a problem that was written down, and show how far the model is.

        Args:
            record: its line of results.jsonl.
            seconds: since the model was ready to sample.
        """
        self.done += 1
        self._responses += len(record["responses"])
        self._tokens += sum(r["tokens"] for r in record["responses"])
        self._correct += sum(r["status"] == "correct" for r in record["responses"])
        numbers = f"correct {self._correct / self._responses:.3f}  tokens/s {self._tokens / max(seconds, 1e-9):,.0f}"
        self._advance("", numbers)

    def problem_failed(self, reason: str) -> None:
        """A problem got no answer; counted, and asked again when the evaluation goes on."""
        self.failed += 1
        if self.failed <= MOST_FAILURES:
            last = ", further ones are only counted" if self.failed == MOST_FAILURES else ""
            self.console.print(f"[yellow]no answer[/] {escape(reason)}{last}", soft_wrap=True)

    def server_quiet(self, seconds: float, requests: int) -> None:
        """Say that the server answers nothing.

        Args:
            seconds: for how long.
            requests: number of requests that wait for an answer.
        """
        self.console.print(f"[yellow]waiting[/] nothing from the server for {seconds:.0f} s, {requests} requests open")

    def step_scoring(self, prm: str, problems: int) -> None:
        """Say that the process reward model's turn begins.

        Args:
            prm: its name.
            problems: number of problems whose steps it is still to score.
        """
        self.done, self.total = 0, problems
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=problems, stage="step scores", numbers="")
        if problems and not self.interactive:
            self.console.print(f"{escape(prm)}: steps of {problems} problems to score")

    def problem_scored(self) -> None:
        """A problem's steps were written down."""
        self.done += 1
        self._advance("steps scored", "")

    def _advance(self, what: str, numbers: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self.done, numbers=numbers)
        if self.interactive:
            return
        if self.done == self.total or time.time() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.time()
            self.console.print(f"  {what} {self.done}/{self.total}  {numbers}".rstrip())

    def finished(self, summary: Mapping[str, Any], plan: Plan) -> None:
        """Show the tables, the warnings, and where everything is.

        Args:
            summary: as summary.json has it.
            plan: of the evaluation.
        """
        self._progress.stop()
        self.console.print()
        for table in tables(summary):
            self.console.print(table)
        for entry in summary["sampled"]:
            if entry["responses"]:
                rate, seconds = entry["tokens"] / max(entry["seconds"], 1e-9), duration(entry["seconds"])
                self.console.print(f"{escape(entry['label'])}: {entry['responses']:,} responses, {entry['tokens']:,} "
                                   f"tokens in {seconds}, {rate:,.0f} tokens/s")  # fmt: skip
        for warning in summary["warnings"]:
            self.console.print(f"[yellow]warning[/] {escape(warning)}")
        self.console.print(f"done in {duration(time.time() - self._began)}; summary.json, results.jsonl: "
                           f"{escape(str(plan.directory))}")  # fmt: skip

    def report(self, text: str) -> None:
        """Where the report is, or why there is none."""
        self.console.print(f"report: {escape(text)}", soft_wrap=True)

    def stopped(self, reason: str, plan: Plan) -> None:
        """Say that the evaluation ended early, and how it goes on.

        Args:
            reason: why it ended, in rich's markup.
            plan: of the evaluation.
        """
        self._progress.stop()
        self.console.print(reason)
        self.console.print(
            f"what is complete is kept; start again with hydra.run.dir={escape(str(plan.directory))} to go on"
        )


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Accuracy, reasoning health and paired differences as tables."""
    rows = summary["metrics"]
    found = [
        _grid("Accuracy, % (± 95 % over problems; sd over seeds)", rows, accuracy_columns(rows), spread=True),
        _grid("Reasoning health: exploration", rows, EXPLORATION),
    ]
    if any(row["metric"] in EXECUTION for row in rows):
        found.append(_grid("Reasoning health: execution", rows, EXECUTION))
    found += checkpoint_tables(summary)
    for field, (heading, column, form) in BREAKDOWNS.items():
        found += breakdown_tables(summary.get(field, ()), heading, column, form)
    if summary["differences"]:
        found.append(difference_table(summary["differences"]))
    return found


def _cell(row: Mapping[str, Any] | None, factor: float, digits: int, sign: bool = False) -> str:
    if row is None:
        return "–"
    text = f"{factor * row['value']:{'+' if sign else ''}.{digits}f}"
    if row["ci95"] is not None:
        text += f" ±{factor * row['ci95']:.{digits}f}"
    return text


def _spread(row: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    return f"\n(sd {factor * row['std']:.{digits}f})" if row is not None and "std" in row else ""


def _grid(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, tuple[str, float, int]],
    *,
    spread: bool = False,
) -> Table:
    """A line for each (label, set); a column for each metric that occurs: (heading, factor, digits).

    ``spread``: show the standard deviation over seeds too; summary.json has it of every metric.
    """
    present = {row["metric"] for row in rows}
    columns = [(metric, *look) for metric, look in metrics.items() if metric in present]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("data", no_wrap=True)
    table.add_column("problems", justify="right")
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right")
    previous = None
    for (label, data), group in groupby(rows, key=lambda row: (row["label"], row["data"])):
        cells = {row["metric"]: row for row in group}
        if previous not in (None, label):
            table.add_section()
        table.add_row(
            escape(label) if label != previous else "",
            escape(data),
            str(next(iter(cells.values()))["problems"]),
            *(
                _cell(cells.get(metric), factor, digits) + _spread(cells.get(metric), factor, digits) * spread
                for metric, _, factor, digits in columns
            ),
        )
        previous = label
    return table


def difference_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Avg@n, the last Pass@k and Maj@n of every pair, in points; * where the interval leaves out 0."""
    shown = main_metrics(rows)
    table = Table(title="Paired differences, points (* the 95 % interval leaves out 0)", title_justify="left",
                  title_style="bold")  # fmt: skip
    table.add_column("models", overflow="fold")
    table.add_column("data")
    table.add_column("problems", justify="right")
    for metric in shown:
        table.add_column(metric.capitalize(), justify="right")
    for (a, b, data), group in groupby(rows, key=lambda row: (row["a"], row["b"], row["data"])):
        cells = {row["metric"]: row for row in group}
        table.add_row(
            escape(f"{a} − {b}"),
            escape(data),
            str(next(iter(cells.values()))["problems"]),
            *(_cell(cells.get(m), 100, 1, sign=True) + _star(cells.get(m)) for m in shown),
        )
    return table


def breakdown_tables(rows: Sequence[Mapping[str, Any]], heading: str, column: str, form: str) -> list[Table]:
    """For each set that has such rows, the accuracy at each level (a line) of each model (a column).

    Args:
        rows: of one breakdown in summary.json.
        heading: what the problems are told apart by, for the titles.
        column: heading of the column of levels.
        form: format of a level's number, for rows that have no ``range``.
    """
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        here = [row for row in rows if row["data"] == data]
        labels = list(dict.fromkeys(row["label"] for row in here))
        table = Table(title=f"{escape(data)} by {heading}, %", title_justify="left", title_style="bold")
        for name in (column, "problems", *map(escape, labels)):
            table.add_column(name, justify="right", overflow="fold")
        for level in sorted({row["level"] for row in here}):
            cells = {row["label"]: row for row in here if row["level"] == level}
            cell = next(iter(cells.values())).get("range") or form.format(level)
            table.add_row(cell, problems_of(cells.values()), *(_cell(cells.get(label), 100, 1) for label in labels))
        found.append(table)
    return found


def checkpoint_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The best checkpoint of each run on each set, what it was selected on, and the last one beside it."""
    rows = summary.get("best", ())
    if not rows:
        return []
    table = Table(title=f"Best checkpoints, {rows[0]['metric'].capitalize()}, %", title_justify="left",
                  title_style="bold")  # fmt: skip
    for name in ("run", "data", "of", "best step", "accuracy", "last step", "there", "selected on"):
        table.add_column(name, justify="left" if name in ("run", "data", "selected on") else "right", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row["run"]), escape(row["data"]), str(row["of"]), str(row["step"]), _cell(row, 100, 1),
            str(row["last_step"]), f"{100 * row['last_value']:.1f}",
            escape(selected_on(row)),
        )  # fmt: skip
    return [table]


def _star(row: Mapping[str, Any] | None) -> str:
    known = row is not None and row["low"] is not None
    return " *" if known and row is not None and (row["low"] > 0 or row["high"] < 0) else ""
