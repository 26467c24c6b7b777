"""Methods and settings on the starter, several seeds each, on the real stack: `python -m benchmarks.starter_sweep`.

Each run is the ordinary training command in a directory of its own under --out. A run that is complete is not done
again, and one that was interrupted goes on, so the sweep can be stopped and restarted, or extended by naming more
settings. The first Ctrl-C lets the running ones end after their step, with a checkpoint; the second ends them at once.
At the end, and with --report alone, it prints the table of the recipes' READMEs: validation Avg@16 (128 problems), mean
and standard deviation over seeds, 95 % interval of the mean from Student's t; and it writes the page that compares all
runs, <out>/comparison.html. `make compare` is this with every method of the package.

    python -m benchmarks.starter_sweep --settings grpo dasd dasd_beta_0.5 --seeds 1 2 3 --steps 10 --out outputs/sweep
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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

from config import CONFIG_DIR
from recipes.common.record import run_dir as files
from recipes.common.record.console import duration, validation_accuracy
from recipes.common.teacher.decisions import CREDITS
from recipes.report.compare import estimate
from recipes.report.page import comparison_page, write_page
from recipes.report.run_data import NotARun, load_run

# Every method of the package but the one that is there to show why it fails, which has a name of its own below.
METHODS = sorted(p.stem for p in (CONFIG_DIR / "method").glob("*.yaml") if p.stem != "dasd_paper_literal")
LITERAL = ["method=dasd_paper_literal"]
NO_CLIP = "self_distill.loss.clip_mode=none"
EXPOSURES = (0, 0.25, 0.5, 0.75, 1)
SETTINGS: dict[str, list[str]] = {
    **{method: [f"method={method}"] for method in METHODS},
    "dasd_beta_0.1": ["method=dasd", "algorithm.dasd.beta=0.1"],
    "dasd_beta_0.5": ["method=dasd", "algorithm.dasd.beta=0.5"],
    "dasd_beta_2": ["method=dasd", "algorithm.dasd.beta=2"],
    "dasd_literal": LITERAL,
    "dasd_literal_clip_5": [*LITERAL, "algorithm.dasd.gap_clip=5"],
    "dasd_literal_masked": [*LITERAL, "algorithm.dasd.mask_zero_variance_groups=true"],
    "dasd_literal_beta_0.001": [*LITERAL, "algorithm.dasd.beta=0.001"],
    "dasd_gap_eps_0.1": ["method=dasd", "algorithm.dasd.gap_eps=0.1"],
    "dasd_entropy_eps_1e-6": ["method=dasd", "algorithm.dasd.entropy_eps=1.0e-6"],
    "dasd_unmasked": ["method=dasd", "algorithm.dasd.mask_zero_variance_groups=false"],
    "dasd_rho_0.8": ["method=dasd", "algorithm.dasd.router_quantile=0.8"],
    "attraction": ["method=dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=1.0"],
    "repulsion": ["method=dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=-1.0"],
    # OPSD's one-sided clip apart, because it decides the outcome on a small vocabulary.
    "opsd_symmetric": ["method=opsd", "self_distill.loss.clip_mode=symmetric"],
    "opsd_no_clip": ["method=opsd", NO_CLIP],
    "pw_opsd_no_clip": ["method=pw_opsd", NO_CLIP],
    # The other two of PW-OPSD's Table 6: weighting × reduction.
    "pw_opsd_token_mean": ["method=pw_opsd", NO_CLIP, "self_distill.loss.reduction=token_mean"],
    "opsd_sequence_mean": ["method=opsd", NO_CLIP, "self_distill.loss.reduction=sequence_mean"],
    "atesd_no_clip": ["method=atesd", NO_CLIP],
    **{
        f"exposure_{alpha}": [
            "method=atesd",
            NO_CLIP,
            "self_distill.exposure.mode=fixed",
            f"self_distill.exposure.fixed_exposure={alpha}",
        ]
        for alpha in EXPOSURES
    },
    "exposure_random": ["method=atesd", NO_CLIP, "self_distill.exposure.mode=random"],
    # The controller under each credit, as often updated as a run of some 50 steps allows: benchmarks.exposure_credit.
    **{
        f"credit_{credit}": [
            "method=atesd",
            NO_CLIP,
            # A fifth of the starter's: at that rate the unclipped loss loses in its second ten steps what it won.
            "actor_rollout_ref.actor.optim.lr=1.0e-5",
            f"self_distill.exposure.controller.credit={credit}",
            "self_distill.exposure.controller.hold=1",
            "self_distill.exposure.controller.decisions_per_update=2",
        ]
        for credit in CREDITS
    },
}


@dataclass(frozen=True)
class Job:
    """One training run of the sweep."""

    setting: str
    seed: int
    steps: int
    out: Path
    experiment: str = "starter"

    @property
    def name(self) -> str:
        return f"{self.setting} seed {self.seed}"

    @property
    def directory(self) -> Path:
        return self.out / self.setting / f"seed_{self.seed}"

    def command(self, overrides: Sequence[str]) -> list[str]:
        return [
            sys.executable,
            "-m",
            "recipes.dasd.main",  # any entry does: the setting names its method
            f"experiment={self.experiment}",
            *SETTINGS[self.setting],
            f"hydra.run.dir={self.directory}",
            f"trainer.total_training_steps={self.steps}",
            f"trainer.test_freq={self.steps}",
            f"data.seed={self.seed}",
            f"actor_rollout_ref.rollout.seed={self.seed}",
            # Step 0 depends on the seed alone: measured once, by the baseline.
            f"trainer.val_before_train={str(self.setting == 'grpo').lower()}",
            *overrides,
        ]


@dataclass
class Children:
    """The training commands that run now; a signal to the sweep is a signal to each of them."""

    running: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: list[str], console: Path) -> int | None:
        """Exit code of a command whose output is added to a file; None if the sweep was stopped before."""
        with console.open("a") as output:
            with self._lock:
                if self.stopping:
                    return None
                # In a session of its own: a terminal's Ctrl-C would reach it beside the one that `stop` sends.
                child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
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


def train(job: Job, children: Children, overrides: Sequence[str]) -> str:
    """Run one training command to its end; returns a line for the log."""
    if finished(job.directory, job.steps):
        return f"{job.name}: already complete"
    job.directory.mkdir(parents=True, exist_ok=True)
    began, console = time.time(), job.directory / "console.txt"
    code = children.run(job.command(overrides), console)
    if code is None:
        return f"{job.name}: not started"
    if code == 0 and finished(job.directory, job.steps):
        return f"{job.name}: done in {duration(time.time() - began)}"
    return f"{job.name}: {'stopped' if code == 0 else f'exit code {code}'}, see {console}"


def sweep(jobs: list[Job], *, parallel: int, overrides: Sequence[str]) -> None:
    """Run all jobs and show how far each is; returns when all have ended, or been stopped."""
    children = Children()
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
        waiting: dict[Future[str], Job] = {pool.submit(train, job, children, overrides): job for job in jobs}
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
                    if children.stopping and not finished(job.directory, job.steps):
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


def records(directory: Path) -> list[dict]:
    return list(files.read_metrics(directory))


def accuracy(directory: Path, step: int) -> float | None:
    """Validation accuracy at a step, or None if there is none."""
    found = [a[1] for r in records(directory) if r["step"] == step and (a := validation_accuracy(r))]
    return found[0] if found else None


def last_rewards(directory: Path, steps: int) -> float:
    """Mean training reward (at temperature 1, without top-p) of the last three steps."""
    return statistics.mean(
        r["critic/score/mean"] for r in records(directory) if "training/global_step" in r and r["step"] > steps - 3
    )


def finished(directory: Path, steps: int) -> bool:
    return accuracy(directory, steps) is not None


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of the mean by Student's t; 0 with fewer than two values."""
    found = estimate(values)
    return found.half or 0.0 if found else 0.0


def interval(values: list[float], *, scale: float = 100) -> str:
    """`mean ± half-width` of the 95 % interval, in points unless scaled otherwise; a single value as it is."""
    digits = 1 if scale == 100 else 3
    mean = f"{scale * statistics.mean(values):.{digits}f}" if values else "–"
    return mean if len(values) < 2 else f"{mean} ± {scale * half_width(values):.{digits}f}"


def report(settings: list[str], seeds: list[int], steps: int, out: Path) -> str:
    """The table, in Markdown."""
    baseline = [a for s in seeds if (a := accuracy(out / "grpo" / f"seed_{s}", 0)) is not None]
    lines = [
        f"Before training: {interval(baseline)} (step 0, {len(baseline)} seed{'s' * (len(baseline) != 1)})",
        "",
        f"| setting | seeds | Avg@16 at step {steps} | reward, last 3 steps | correction / advantage, median (max) | "
        "positive ω | entropy, last | s a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        done = [out / setting / f"seed_{s}" for s in seeds if finished(out / setting / f"seed_{s}", steps)]
        if not done:
            continue
        steps_of = [r for d in done for r in records(d) if "training/global_step" in r]
        ratios = [r["credit/correction_ratio"] for r in steps_of if r.get("credit/correction_ratio") is not None]
        positive = [r["credit/omega/positive_share"] for r in steps_of if "credit/omega/positive_share" in r]
        last = [r["actor/entropy"] for r in steps_of if r["step"] == steps]
        seconds = statistics.median(r["timing_s/step"] for r in steps_of)
        lines.append(
            f"| {setting} | {len(done)} | {interval([a for d in done if (a := accuracy(d, steps)) is not None])} | "
            f"{interval([last_rewards(d, steps) for d in done])} | "
            + (f"{statistics.median(ratios):.2g} ({max(ratios):.2g})" if ratios else "–")
            + f" | {f'{statistics.mean(positive):.2f}' if positive else '–'} | {statistics.mean(last):.3f} | "
            f"{seconds:.1f} |"
        )
    return "\n".join(lines)


def compare(settings: list[str], seeds: list[int], out: Path) -> Path | None:
    """Write the page that compares what has been run so far; returns its path, None if nothing has a step yet."""
    runs, notices = [], []
    for directory in (out / name / f"seed_{seed}" for name in settings for seed in seeds):
        try:
            runs.append(load_run(directory))
        except NotARun as error:
            notices.append(f"left out: {error}")
    return write_page(out / "comparison.html", comparison_page(runs, notices)) if runs else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=METHODS, metavar="NAME", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--experiment", choices=("starter", "starter_shortcut"), default="starter", help="the world")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="outputs/<experiment>_sweep")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time; step times mean something with 1 only")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--report", action="store_true", help="only report on what is complete")
    options = parser.parse_args()
    out = (options.out or Path("outputs") / f"{options.experiment}_sweep").resolve()
    pairs = [(name, seed) for seed in options.seeds for name in options.settings]
    jobs = [Job(name, seed, options.steps, out, options.experiment) for name, seed in pairs]
    if not options.report:
        sweep(jobs, parallel=options.parallel, overrides=options.overrides)
    print(report(options.settings, options.seeds, options.steps, out))
    page = compare(options.settings, options.seeds, out)
    if page:
        print(f"\ncomparison: {page}")
    return 0 if all(finished(job.directory, job.steps) for job in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
