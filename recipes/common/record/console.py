"""What a person sees of a run: a short plan, one progress line, a short summary.

Reads the files of the run directory (`recipes.common.record.run_dir`), so it knows nothing of Ray.  On a terminal the
progress line is rewritten in place; elsewhere (a log file, CI) it is printed once a step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from advantage import correction_warning
from advantage.labels import Metric
from recipes.common import metric_names as names
from recipes.common.method import Method
from recipes.common.record import run_dir as files
from recipes.common.record.collapse import SIGNS
from rewards.metrics import reward_warnings

WIDE = 110  # columns of a terminal from which the progress line has a bar


def two_columns() -> Table:
    """An empty table of names and values, without lines."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def plan(cfg: DictConfig, method: Method, run_dir: Path) -> Table:
    """The run's plan as a table of two columns: what will run and where it writes, values as given, right or wrong.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, read from it.
        run_dir: where the run writes.
    """
    rollout, actor, data = cfg.actor_rollout_ref.rollout, cfg.actor_rollout_ref.actor, cfg.data
    table = two_columns()
    for part, value in method.rows():
        table.add_row(part, value)
    table.add_row("model", f"{cfg.actor_rollout_ref.model.path}")
    shown = data.train_files if OmegaConf.is_list(data.train_files) else [data.train_files]
    table.add_row("data", ", ".join(map(str, shown)))
    lr, gpus, nodes = actor.optim.lr, cfg.trainer.n_gpus_per_node, cfg.trainer.nnodes
    workers = f"{nodes} × {gpus}" if nodes != 1 else f"{gpus}"
    table.add_row(
        "step",
        f"{data.train_batch_size} problems × {rollout.n} rollouts, mini-batches of {actor.ppo_mini_batch_size} "
        f"problems, lr {f'{lr:g}' if isinstance(lr, float) else lr}, {rollout.name} rollouts, "
        f"{workers} {cfg.trainer.device} worker{'' if workers == '1' else 's'}",
    )
    table.add_row("output", str(run_dir))
    return table


def progress_line(console: Console, interactive: bool) -> Progress:
    """The progress line; its tasks carry the fields ``stage`` and ``numbers``.

    Args:
        console: where it is shown; its width decides whether there is a bar.
        interactive: whether this is a terminal, on which the line is rewritten in place; elsewhere it shows nothing.
    """
    # On 80 columns the numbers matter more than the bar; what does not fit is cut from the numbers' end.
    wide = console.width >= WIDE
    whole, cut = Column(no_wrap=True, min_width=5), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Progress(
        TextColumn(f"{{task.fields[stage]:<{22 if wide else 17}}}", table_column=Column(no_wrap=True)),
        *([BarColumn(bar_width=24)] if wide else []),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[numbers]}", table_column=cut),
        TimeRemainingColumn(compact=True, table_column=whole),
        console=console,
        expand=True,
        disable=not interactive,
        # What others print belongs into the log: rich would take sys.stdout's text over and show it on the terminal.
        redirect_stdout=False,
        redirect_stderr=False,
    )


class RunConsole:
    """Shows one run on a terminal or in a file; a context manager around the training call.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, read from it.
        run_dir: the run's directory, whose files are followed.
        descriptor: the open file or terminal to write to.
        resumed_from: step of the checkpoint that the run goes on from; None if it starts anew.

    Attributes:
        ended_early: whether the run was asked to stop after its step.
    """

    def __init__(self, cfg: DictConfig, method: Method, run_dir: Path, descriptor: int, resumed_from: int | None):
        self.run_dir, self.method = run_dir, method
        self._stream: TextIO = os.fdopen(os.dup(descriptor), "w", buffering=1)
        self.interactive = self._stream.isatty()
        self.console = Console(file=self._stream, width=None if self.interactive else 120, highlight=False)
        self._offset = (run_dir / files.METRICS).stat().st_size if (run_dir / files.METRICS).exists() else 0
        self._start_step = resumed_from or 0
        self._total: int | None = cfg.trainer.total_training_steps
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._warned: set[str] = set()
        self._stall_minutes = cfg.self_distill.stall_minutes
        self._stalls: set[float] = set()
        self._last: dict[str, Any] = {}
        self._stage, self._trained = "", False
        self._began = time.time()
        self.ended_early = False
        self.console.print(plan(cfg, method, run_dir))
        if resumed_from is not None:
            self.console.print(f"[bold]resuming[/] after step {resumed_from}")
        self.console.print(f"Ray's and verl's messages go to {escape(str(run_dir / files.LOG))}", style="dim")

    # ------------------------------------------------------------------ life

    def __enter__(self) -> RunConsole:
        self._progress = progress_line(self.console, self.interactive)
        self._task = self._progress.add_task(
            "", total=self._total, completed=self._start_step, stage="starting", numbers=""
        )
        self._progress.start()
        if not self.interactive:
            self.console.print("starting Ray and the workers", style="dim")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()
        self._progress.stop()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self._read()
            stage = files.read_stage(self.run_dir)
            if stage and stage["time"] >= self._began:
                self._progress.update(self._task, stage=stage["stage"])
                self._say_stage(stage)
                self._warn_of_stall(stage)

    def _say_stage(self, stage: dict[str, Any]) -> None:
        """Without a terminal: each stage as it begins, until the first step is done and has a line of its own."""
        if not self.interactive and not self._trained and stage["stage"] != self._stage:
            self._stage = stage["stage"]
            self.console.print(f"{duration(time.time() - self._began):>7}  {escape(self._stage)}", style="dim")

    def _warn_of_stall(self, stage: dict[str, Any]) -> None:
        minutes = (time.time() - stage["time"]) / 60
        if minutes > self._stall_minutes and stage["time"] not in self._stalls:
            self._stalls.add(stage["time"])  # once for each stage that lasts
            self.console.print(
                f"[yellow]warning[/] no progress for {minutes:.0f} min: step {stage['step']}, stage "
                f"{escape(stage['stage'])}. {escape(str(self.run_dir / files.LOG))} has what the workers said last; "
                "Ctrl-C twice ends the run, and the same command goes on from its last checkpoint"
            )

    def _read(self) -> None:
        path = self.run_dir / files.METRICS
        if not path.exists():
            return
        if path.stat().st_size < self._offset:  # records of steps to be done again were dropped
            self._offset = path.stat().st_size
        for record, offset in files.metrics_from(path, self._offset):
            self._offset = offset
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        self._last = record
        step, numbers = record["step"], progress_numbers(record, self.method.metrics)
        if names.TRAINED in record:
            self._trained = True
            self._progress.update(self._task, completed=step, numbers=numbers.replace("  ", " "))
            if not self.interactive:
                self.console.print(f"step {step}{f'/{self._total}' if self._total else ''}  {numbers}")
        accuracy = validation_accuracy(record)
        if accuracy is not None:
            self.console.print(f"step {step:>4}  validation {accuracy[0]} [bold]{accuracy[1]:.3f}[/]")
        if record.get(names.TEACHER_VALIDATION) is not None:
            self.console.print(
                f"step {step:>4}  validation of the teacher [bold]{record[names.TEACHER_VALIDATION]:.3f}[/]"
            )
        for kind, text in warnings_of(record):
            if kind not in self._warned:  # once a run: the metrics have every step
                self._warned.add(kind)
                self.console.print(f"[yellow]warning[/] step {step}: {escape(text)}")

    # ------------------------------------------------------------------ endings

    def stopping(self) -> None:
        """Say that the run ends after this step, and remember that it was asked to."""
        self.ended_early = True
        self.console.print("[yellow]stopping[/] after this step, with a checkpoint; once more Ctrl-C to stop at once")

    def stopped_at_once(self) -> None:
        """End the progress line, and say that the run was stopped and how to go on."""
        self.__exit__()
        self.console.print(f"[yellow]stopped at once[/]; {self._how_to_resume()}")

    def failed(self, reason: str) -> None:
        """End the progress line, and say why the run failed and how to go on."""
        self.__exit__()
        self.console.print("[bold red]failed[/]")
        self.console.print(escape(reason))
        self.console.print(f"details: {escape(str(self.run_dir / files.LOG))}", style="dim")
        if files.checkpointed_step(self.run_dir) is not None:
            self.console.print(self._how_to_resume())

    def _how_to_resume(self) -> str:
        step = files.checkpointed_step(self.run_dir)
        if step is None:
            return "no checkpoint was saved yet"
        return f"start again with hydra.run.dir={escape(str(self.run_dir))} to go on after step {step}"

    def summary(self) -> None:
        """Print how the run ended: accuracy from first to last validation, seconds a step, place of its files."""
        records = list(files.read_metrics(self.run_dir))
        steps = [r for r in records if names.TRAINED in r]
        scored = [(r["step"], *a) for r in records if (a := validation_accuracy(r)) is not None]
        self.console.print()
        if collapse := self.collapse():
            self.console.print(f"[bold red]collapsed[/] {escape(collapse)}")
        if self.ended_early or collapse:
            self.console.print(
                f"[bold yellow]stopped[/] after step {steps[-1]['step'] if steps else 0}; {self._how_to_resume()}"
            )
        elif steps and steps[-1]["step"] <= self._start_step:
            self.console.print(f"nothing left to do: the run was complete at step {self._start_step}")
        else:
            self.console.print(f"[bold green]done[/] in {duration(time.time() - self._began)}")
        if scored:
            (first, name, start), (last, _, end) = scored[0], scored[-1]
            best = max(scored, key=lambda item: item[2])
            text = f"validation {name}: [bold]{end:.3f}[/] (step {last})"
            if len(scored) > 1:
                text = (
                    f"validation {name}: [bold]{start:.3f}[/] (step {first}) → [bold]{end:.3f}[/] (step {last}), "
                    f"best {best[2]:.3f} (step {best[0]})"
                )
            self.console.print(text)
        if steps:
            seconds = [r[names.STEP_SECONDS] for r in steps if r.get(names.STEP_SECONDS) is not None]
            self.console.print(f"{sum(seconds) / max(len(seconds), 1):.2f} s a step over {len(seconds)} steps")
        self.console.print(f"metrics, configuration and checkpoints: {escape(str(self.run_dir))}")

    def collapse(self) -> str | None:
        """Why the run ended before its last step, if it did because it fell apart, and how to go on."""
        if not self._last.get(names.COLLAPSE_STOPS):
            return None
        why = "; ".join(collapse_warning(self._last, sign) for sign in _collapsed(self._last))
        good = self._last[names.LAST_GOOD_CHECKPOINT]
        tracker = self.run_dir / files.CHECKPOINTS / files.TRACKER
        back = f". To go back to it: echo {good} > {tracker}, and start again with hydra.run.dir={self.run_dir}"
        return f"self_distill.collapse.stop=true: {why}{back if good >= 0 else ''}"

    def report(self, text: str) -> None:
        """Say where the run's report is, or why there is none."""
        self.console.print(f"report: {escape(text)}")


def progress_numbers(record: dict[str, Any], metrics: Sequence[Metric] = ()) -> str:
    """Reward, entropy, response length and speed of a step, then what its method shows, for the progress line.

    Args:
        record: the step's record from ``metrics.jsonl``.
        metrics: the method's own; those that every method may have come by themselves.
    """
    parts = [
        ("reward", record.get(names.REWARD), "{:.3f}"),
        ("entropy", record.get(names.ENTROPY), "{:.3f}"),
        ("length", record.get(names.LENGTH), "{:.0f}"),
        ("tok/s", record.get(names.THROUGHPUT), "{:,.0f}"),
        *((m.short, record.get(m.name), m.form) for m in (*metrics, *names.SHARED) if m.short),
        ("skipped", record.get(names.SKIPPED_TOTAL) or None, "{:.0f}"),
    ]
    return "  ".join(f"{name} {form.format(value)}" for name, value, form in parts if value is not None)


def validation_accuracy(record: dict[str, Any]) -> tuple[str, float] | None:
    """Accuracy averaged over the validation sets of a record, as ("mean@16", value); None if it has none."""
    means = {k: v for k, v in record.items() if k.startswith("val-core/") and "/mean@" in k and v is not None}
    if not means:
        return None
    return next(iter(means)).rpartition("/")[2], sum(means.values()) / len(means)


def warnings_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person should know of a step's record, as (kind, sentence)."""
    found = []
    correction = correction_warning({k: v for k, v in record.items() if v is not None})
    if correction:
        found.append(("correction", correction))
    found += reward_warnings(record)
    found += [(f"collapse {sign}", collapse_warning(record, sign)) for sign in _collapsed(record)]
    if record.get(names.ROLLOUTS_MISSING):
        found.append(
            ("missing", f"{record[names.ROLLOUTS_MISSING]:.0f} rollouts failed and were left out; see train.log")
        )
    if record.get(names.SKIPPED):
        found.append(
            (
                "skipped",
                f"{record[names.SKIPPED]:.0f} updates skipped, {record[names.SKIPPED_TOTAL]:.0f} in this run: "
                "their gradient was not finite, and the weights are as before; more than "
                "self_distill.max_skipped_updates end the run",
            )
        )
    if (record.get(names.FORCED_FULL) or 0) > 0.05:
        found.append(
            (
                "forced_full",
                f"{record[names.FORCED_FULL]:.0%} of the references have no boxed answer and no answer column, "
                "so they were shown whole at any exposure; `python -m recipes.data.validate` names the rows",
            )
        )
    if (record.get(names.PROMPT_TRUNCATED) or 0) > 0.05:
        found.append(
            (
                "truncated",
                f"{record[names.PROMPT_TRUNCATED]:.0%} of the references did not fit into the teacher's "
                "prompt and were cut; raise self_distill.teacher.max_prompt_length",
            )
        )
    return found


def _collapsed(record: dict[str, Any]) -> list[str]:
    return [sign for sign in SIGNS if record.get(names.COLLAPSED.format(sign))]


def collapse_warning(record: dict[str, Any], sign: str) -> str:
    """A sentence about a sign that has left its band: since when, from where, and what was saved before.

    Args:
        record: the step's metrics.
        sign: one of `SIGNS`.
    """
    steps, level = record[names.COLLAPSED.format(sign)], record[names.COLLAPSE_LEVEL.format(sign)]
    value, checkpoint = record.get(SIGNS[sign]), record[names.LAST_GOOD_CHECKPOINT]
    saved = f"the last checkpoint from before is of step {checkpoint}" if checkpoint >= 0 else "no checkpoint is older"
    now = "" if value is None else f" {value:.3g}"
    return f"{sign}{now} has been outside its band around {level:.3g} for {steps} steps; {saved}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``43 s``, ``7 min 05 s`` from a minute on, ``4 h 25 min`` from an hour on."""
    if round(seconds) >= 3600:
        return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
