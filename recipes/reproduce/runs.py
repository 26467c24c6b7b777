"""Many training runs, one after another or a few at a time: skipped where complete, resumed where interrupted.

Each is the ordinary training command in a directory of its own.  The first Ctrl-C lets the running ones end after their
step, with a checkpoint; the second ends them at once.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from recipes.common.processes.fork_server import command_server
from recipes.common.record import run_dir as files
from recipes.common.record.console import duration

CONSOLE = "console.txt"  # what a run's command printed, in its directory


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: for people.
        directory: of the run.
        steps: after which it is complete, with a validation; None: as many as it is configured for.
        overrides: of the training command; those that every run has are added by `command`.
    """

    name: str
    directory: Path
    steps: int | None
    overrides: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The command that trains it, or goes on with it."""
        steps = (f"trainer.total_training_steps={self.steps}", f"trainer.test_freq={self.steps}") if self.steps else ()
        return [sys.executable, "-m", "recipes.entry", *self.overrides, f"hydra.run.dir={self.directory}", *steps]

    @property
    def complete(self) -> bool:
        """Whether the run is done, as its directory says."""
        if self.steps is None:
            return files.read_stage(self.directory).get("stage") == files.DONE
        return files.has_validation(self.directory, self.steps)


def seeded(seed: int) -> tuple[str, ...]:
    """Overrides that give a run its seed: the order of problems, and the sampling."""
    return (f"data.seed={seed}", f"actor_rollout_ref.rollout.seed={seed}")


@dataclass
class Children:
    """The training commands that run now; a signal to this process is a signal to each of them.

    Attributes:
        python: what stands in the place of Python's interpreter in their commands.
        running: their processes.
        stopping: whether they were told to stop, so that none is started any more.
    """

    python: Sequence[str] = (sys.executable,)
    running: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: Sequence[str], console: Path) -> int | None:
        """Run a command to its end.

        Args:
            command: Python's interpreter and its arguments.
            console: file that its output is added to.

        Returns:
            Its exit code; None if all was stopped before it began.
        """
        with console.open("a") as output:
            with self._lock:
                if self.stopping:
                    return None
                # In a session of its own: a terminal's Ctrl-C would reach it beside the one that `stop` sends.
                child = subprocess.Popen(
                    [*self.python, *command[1:]], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
                self.running.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self.running.discard(child)

    def stop(self, *_: object) -> None:
        """Signal handler: start nothing more, and pass the signal on."""
        self.stopping = True
        for child in list(self.running):
            child.send_signal(signal.SIGINT)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM call `stop`."""
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def train(job: Job, children: Children) -> str:
    """Run one training command to its end.

    Args:
        job: the run.
        children: the processes that are stopped together.

    Returns:
        A line for the log.
    """
    if job.complete:
        return f"{job.name}: already complete"
    job.directory.mkdir(parents=True, exist_ok=True)
    began, console = time.time(), job.directory / CONSOLE
    code = children.run(job.command, console)
    if code is None:
        return f"{job.name}: not started"
    if code == 0 and job.complete:
        return f"{job.name}: done in {duration(time.time() - began)}"
    return f"{job.name}: {'stopped' if code == 0 else f'exit code {code}'}, see {console}"


def train_all(jobs: Sequence[Job], *, parallel: int = 1, forked: bool = False) -> bool:
    """Run all jobs and show how far each is.

    Args:
        jobs: the runs, in the order in which they start.
        parallel: runs at a time; step times mean something with 1 only.
        forked: import what they have in common once for all; for runs without GPUs.

    Returns:
        Whether all of them are complete.
    """
    server = command_server() if forked and not all(job.complete for job in jobs) else nullcontext((sys.executable,))
    with server as python:
        return _train_all(jobs, Children(python), parallel)


def _train_all(jobs: Sequence[Job], children: Children, parallel: int) -> bool:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    progress = Progress(*columns)
    progress.disable = not progress.console.is_terminal  # elsewhere the lines below are enough
    with children.signals(), ThreadPoolExecutor(parallel) as pool, progress:
        waiting: dict[Future[str], Job] = {pool.submit(train, job, children): job for job in jobs}
        whole = progress.add_task("[bold]runs", total=len(jobs), stage="")
        bars: dict[Job, TaskID] = {}
        told = False
        while waiting:
            if children.stopping and not told:
                told = True
                progress.console.print("stopping after the running step, with a checkpoint; once more: at once")
            for future, job in list(waiting.items()):
                if future.done():
                    del waiting[future]
                    if job in bars:
                        progress.remove_task(bars.pop(job))
                    if children.stopping and not job.complete:
                        progress.console.print(future.result(), markup=False)
                        continue
                    progress.update(whole, advance=1)
                    progress.console.print(f"[{len(jobs) - len(waiting)}/{len(jobs)}] {future.result()}", markup=False)
                elif future.running():
                    if job not in bars:
                        bars[job] = progress.add_task(job.name, total=job.steps, stage="starting")
                        if progress.disable:
                            print(f"{job.name}: starting", flush=True)
                    stage = files.read_stage(job.directory)
                    progress.update(bars[job], completed=stage.get("step", 0), stage=stage.get("stage", "starting"))
            time.sleep(0.5)
    if children.stopping:
        print("stopped; start again with the same arguments to go on")
    return all(job.complete for job in jobs)
