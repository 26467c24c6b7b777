"""Training commands as processes: started, watched, waited for, and what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from recipes.common.record import run_dir as files
from tests.builders import forked
from tests.builders.configs import ROOT


class Run:
    """A finished training command: exit code, console text, records of metrics.jsonl."""

    def __init__(self, directory: Path, code: int, console: str, seconds: float):
        self.directory, self.code, self.console, self.seconds = directory, code, console, seconds

    @property
    def records(self) -> list[dict]:
        return list(files.read_metrics(self.directory))

    @property
    def steps(self) -> dict[int, dict]:
        return {r["step"]: r for r in self.records if "training/global_step" in r}

    @property
    def log(self) -> str:
        path = self.directory / files.LOG
        return path.read_text(errors="replace") if path.exists() else ""


# Small steps for tests that train: the shape of the run stays, its size does not.
SMALL = (
    "experiment=starter",
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
)


# What must come out equal when two runs did the same work. Log-probs and losses to float32 rounding.
COMPARED = (
    "critic/score/mean",
    "response_length/mean",
    "actor/entropy",
    "actor/grad_norm",
    "actor/pg_loss",
    "student/log_prob/mean",
)


def same_number(a: float, b: float, rel: float = 1e-3) -> bool:
    """Equal to float32's rounding, as it adds up over a few updates."""
    return a == pytest.approx(b, rel=rel, abs=1e-5)


def start(method: str, directory: Path, *overrides: str, python: Sequence[str] = (sys.executable,)) -> subprocess.Popen:
    command = [*python, "-m", f"recipes.{method}.main", *SMALL, f"hydra.run.dir={directory}", *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def train(method: str, directory: Path, *overrides: str, timeout: float = 300) -> Run:
    """Run a training command to its end; on time-out kill it and what it started, and fail."""
    began = time.time()
    process = start(method, directory, *overrides, python=forked.python())
    console = console_of(process, directory / files.LOG, timeout)
    return Run(directory, process.returncode, console, time.time() - began)


def console_of(process: subprocess.Popen, log: Path, timeout: float) -> str:
    """What a command printed until it ended; on time-out kill its process group and fail with the log's end."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        console, _ = process.communicate()
        said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        pytest.fail(f"no end after {timeout:.0f} s; console:\n{console}\nlog:\n{said}")


def wait_for_step(directory: Path, step: int, process: subprocess.Popen, timeout: float = 240) -> None:
    """Return when metrics.jsonl has a record of that step."""
    _wait(
        lambda: any(r["step"] >= step and "training/global_step" in r for r in files.read_metrics(directory)),
        f"step {step}",
        process,
        timeout,
    )


def wait_for_stage(directory: Path, stage: str, process: subprocess.Popen, timeout: float = 240) -> None:
    """Return when the run says that it is in that stage."""
    _wait(lambda: files.read_stage(directory).get("stage") == stage, f"stage {stage!r}", process, timeout)


def _wait(reached: Callable[[], bool], what: str, process: subprocess.Popen, timeout: float) -> None:
    deadline = time.time() + timeout
    while time.time() < deadline:
        if reached():
            return
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before {what}: {process.stdout.read()}")
        time.sleep(0.02)
    pytest.fail(f"{what} did not come within {timeout:.0f} s")


def descendants(pid: int) -> list[int]:
    """Process ids of all live descendants."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent, state = line.split()
        if not state.startswith("Z"):
            children.setdefault(int(parent), []).append(int(child))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def alive(pids: list[int]) -> list[int]:
    states = subprocess.run(["ps", "-o", "pid=,stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True)
    return [int(line.split()[0]) for line in states.stdout.splitlines() if not line.split()[1].startswith("Z")]


def gone(pids: list[int], seconds: float) -> bool:
    """Whether all of them end within that time."""
    deadline = time.time() + seconds
    while alive(pids) and time.time() < deadline:
        time.sleep(0.5)
    return alive(pids) == []


def title(pid: int) -> str:
    """What a process calls itself; '' where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # ended meanwhile
        return ""


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
