"""Kills a training run again and again, and counts what that cost: `python -m benchmarks.reliability --kills 10`.

The starter trains small steps with a checkpoint each.  At a random moment a random part of the run gets SIGKILL: the
command itself, the trainer, a training worker, the rollout server, an agent loop.  The same command is started again
until the run is done.  Counted: whether each end came by itself and how soon, whether it named what died, how many
steps had to be done again, what processes were left.  At the end every step's numbers are compared with those of a run
of the same seed that nobody disturbed.  Everything is under --out; the undisturbed run there is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from recipes.common.record import run_dir as files
from tests.builders.processes import COMPARED, SMALL, same_number

# What is killed, and the title that Ray gives its process; the command itself is the one that was started.
TARGETS = {
    "command": None,
    "trainer": "ray::SelfDistillTaskRunner",
    "training worker": "ray::WorkerDict",
    "rollout server": "ray::TransformersServer",
    "agent loop": "ray::BurstAgentLoopWorker",
}
END_SECONDS = 90.0  # a run that has not ended by then hangs
ORPHAN_SECONDS = 60.0
START_SECONDS = 300.0


@dataclass
class Kill:
    """One kill and its consequences.

    Attributes:
        target, stage, step: what was killed, and what the run said that it was doing.
        ended_after: seconds until the command had ended; None: it hung, and was ended by force.
        code: its exit code (−9 where it was the target).
        named: whether its last words name what died; None where it was itself the target.
        orphans: processes of the run that lived ORPHAN_SECONDS later.  gone_after: seconds until the last one had gone.
        checkpoint: the step that the next start goes on from.  redone: 1 where the step at hand has to be done again.
    """

    target: str
    stage: str
    step: int
    ended_after: float | None
    code: int
    named: bool | None
    orphans: int
    gone_after: float
    checkpoint: int
    redone: int


def start(directory: Path, steps: int, seed: int, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "recipes.dasd.main", *SMALL, f"hydra.run.dir={directory}"]
    command += [f"trainer.total_training_steps={steps}", "trainer.save_freq=1", f"trainer.n_gpus_per_node={workers}"]
    command += [f"data.seed={seed}", f"actor_rollout_ref.rollout.seed={seed}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps_of(directory: Path) -> dict[int, dict]:
    return {r["step"]: r for r in files.read_metrics(directory) if "training/global_step" in r}


def members(process: subprocess.Popen, directory: Path) -> list[psutil.Process]:
    """The command's descendants, and whoever has the run's directory in its environment, wherever it hangs."""
    try:
        found = {p.pid: p for p in psutil.Process(process.pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        found = {}
    mark = str(directory / "tensorboard")
    for other in psutil.process_iter():
        try:
            if other.environ().get("TENSORBOARD_DIR") == mark and other.pid != process.pid:
                found[other.pid] = other
        except psutil.Error:
            continue
    return list(found.values())


def living(family: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait(reached: Callable[[], bool], process: subprocess.Popen, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if reached():
            return True
        time.sleep(0.05)
    return False


def victim(process: subprocess.Popen, target: str) -> int | None:
    """The process to be killed, the first where there are several; None where there is none yet."""
    title = TARGETS[target]
    if title is None:
        return process.pid
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(title):
                return child.pid
        except psutil.Error:
            continue
    return None


def kill(process: subprocess.Popen, directory: Path, target: str, chance: random.Random, step_seconds: float) -> Kill:
    """Wait for a random moment, kill, and watch the run end.

    One in five is killed as it starts, as soon as there is such a process or a little later; the others within two
    steps' time from the beginning of their first.
    """
    began = time.time()

    def stage() -> dict:
        told = files.read_stage(directory)
        return told if told.get("time", 0) > began else {"stage": "starting", "step": 0}

    if chance.random() >= 0.2:
        if not wait(lambda: stage()["stage"] == "rollout", process, START_SECONDS):
            raise SystemExit(f"the run did not come to its first step:\n{process.communicate()[0]}")
        time.sleep(chance.uniform(0.0, 2 * step_seconds))
    elif wait(lambda: victim(process, target) is not None, process, START_SECONDS):
        time.sleep(chance.uniform(0.0, 5.0))
    if not wait(lambda: victim(process, target) is not None, process, START_SECONDS):
        raise SystemExit(f"there was no {target} to be killed:\n{process.communicate()[0]}")
    family, at, then = members(process, directory), time.monotonic(), stage()
    os.kill(victim(process, target) or process.pid, signal.SIGKILL)
    ended: float | None = None
    try:
        said = process.communicate(timeout=END_SECONDS)[0]
        ended = time.monotonic() - at
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0]
    known = {p.pid: p for p in [*family, *members(process, directory)]}
    while living(list(known.values())) and time.monotonic() < at + (ended or END_SECONDS) + ORPHAN_SECONDS:
        time.sleep(0.2)
    checkpoint = files.checkpointed_step(directory) or 0
    return Kill(
        target=target,
        stage=then["stage"],
        step=then["step"],
        ended_after=ended,
        code=process.returncode,
        named=None if target == "command" else "ProcessLost" in said,
        orphans=len(living(list(known.values()))),
        gone_after=time.monotonic() - at,
        checkpoint=checkpoint,
        redone=max(then["step"] - checkpoint, 0),
    )


def through(directory: Path, *settings: int) -> tuple[int, str]:
    """Start the command and let it run to its end."""
    process = start(directory, *settings)
    said = process.communicate()[0]
    return process.returncode, said


def differences(run: dict[int, dict], undisturbed: dict[int, dict]) -> dict[str, float]:
    """Largest relative difference of each number over all steps that both have."""
    return {
        key: max(
            abs(run[s][key] - undisturbed[s][key]) / max(abs(undisturbed[s][key]), 1e-12)
            for s in undisturbed
            if s in run
        )
        for key in COMPARED
    }


def table(kills: list[Kill]) -> Table:
    shown = Table(title="kills by target")
    for column in ("target", "kills", "stages", "ended by itself", "seconds to the end", "named", "redone", "orphans"):
        shown.add_column(column, justify="left" if column in ("target", "stages") else "right")
    for target in [*TARGETS, "all"]:
        own = [k for k in kills if target in (k.target, "all")]
        if not own:
            continue
        seconds = [k.ended_after for k in own if k.ended_after is not None]
        asked = [k.named for k in own if k.named is not None]
        shown.add_row(
            target,
            str(len(own)),
            "" if target == "all" else ", ".join(dict.fromkeys(k.stage for k in own)),
            f"{len(seconds)}/{len(own)}",
            f"{statistics.median(seconds):.0f} (≤ {max(seconds):.0f})" if seconds else "–",
            f"{sum(asked)}/{len(asked)}" if asked else "–",
            f"{sum(k.redone for k in own)} (≤ {max(k.redone for k in own)})",
            str(sum(k.orphans for k in own)),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the kills and of the run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/reliability"))
    options = parser.parse_args()
    console, chance = Console(width=120), random.Random(options.seed)
    settings = (2 * options.kills, options.seed, options.workers)  # at most two steps come between two kills
    folder = options.out.resolve()
    undisturbed, directory = folder / f"undisturbed_{'_'.join(map(str, settings))}", folder / "killed"

    if len(steps_of(undisturbed)) < settings[0]:
        code, said = through(undisturbed, *settings)
        if code:
            raise SystemExit(f"the undisturbed run failed:\n{said}")
    reference = steps_of(undisturbed)
    step_seconds = statistics.median(record["timing_s/step"] for record in reference.values())
    shutil.rmtree(directory, ignore_errors=True)
    targets = [list(TARGETS)[i % len(TARGETS)] for i in range(options.kills)]
    chance.shuffle(targets)
    kills: list[Kill] = []
    for number, target in enumerate(targets, start=1):
        kills.append(kill(start(directory, *settings), directory, target, chance, step_seconds))
        console.print(f"kill {number}/{options.kills}: {kills[-1]}")
    code, said = through(directory, *settings)
    if code:
        raise SystemExit(f"the last start failed:\n{said}")

    records, run = [r["step"] for r in files.read_metrics(directory)], steps_of(directory)
    apart = differences(run, reference)
    equal = run.keys() == reference.keys() and all(
        same_number(run[step][key], reference[step][key]) for step in reference for key in COMPARED
    )
    verdict = {
        "every end came by itself": all(k.ended_after is not None for k in kills),
        "every death was named": all(k.named is not False for k in kills),
        "no kill cost more than the step at hand": all(k.redone <= 1 for k in kills),
        "no process was left": not any(k.orphans for k in kills),
        "every step has one record": records == list(range(1, settings[0] + 1)),
        "all numbers are those of the undisturbed run": equal,
    }
    console.print(table(kills))
    console.print(f"{settings[0]} steps, {len(kills)} kills, {len(kills)} restarts")
    for name, value in apart.items():
        console.print(f"  {name}: largest relative difference {value:.1e}")
    for name, holds in verdict.items():
        console.print(f"[{'green' if holds else 'bold red'}]{'yes' if holds else 'NO'}[/]  {name}")
    result = {"kills": [asdict(k) for k in kills], "steps": settings[0], "differences": apart, "verdict": verdict}
    files.write_atomically(folder / "reliability.json", json.dumps(result, indent=1) + "\n")
    console.print(f"written to {folder / 'reliability.json'}")
    sys.exit(0 if all(verdict.values()) else 1)


if __name__ == "__main__":
    main()
