"""What a person sees of a run on a real terminal: the progress line, and nothing of what others print."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import termios
import time

import pytest

from recipes.common.method import read
from recipes.common.record import run_dir as files
from recipes.common.record.console import RunConsole

RECORD = {
    "training/global_step": 1,
    "critic/score/mean": 0.5,
    "actor/entropy": 0.125,
    "response_length/mean": 33.0,
    "perf/throughput": 1900.0,
}


@pytest.fixture(params=[80, 150])
def terminal(request):
    """(our end, the program's end) of a pseudo-terminal of that many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, request.param, 0, 0))
    os.set_blocking(ours, False)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def everything(descriptor: int) -> str:
    """What waits at our end: a terminal hands out a few kilobytes at a time."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def test_chatter_does_not_reach_the_terminal(compose_config, tmp_path, terminal, capfd):
    """Ray prints its workers' output through this process's sys.stdout, which rich would show on the terminal."""
    ours, theirs = terminal
    cfg = compose_config("experiment=starter", "method=dasd")
    console = RunConsole(cfg, read(cfg), tmp_path, theirs, resumed_from=None)
    assert console.interactive
    metrics = files.MetricsFile(tmp_path)
    with console:
        print("(WorkerDict pid=1) chatter")
        print("(WorkerDict pid=1) warning", file=sys.stderr)
        metrics.log(RECORD, step=1)
    shown = everything(ours)
    assert "1/30" in shown and "reward 0.500 entropy 0.125 length 33 tok/s 1,900" in shown
    assert "WorkerDict" not in shown
    printed = capfd.readouterr()
    assert "WorkerDict" in printed.out and "WorkerDict" in printed.err


def test_a_run_that_stands_still_is_named_with_its_stage_once(compose_config, tmp_path, terminal):
    ours, theirs = terminal
    cfg = compose_config("experiment=starter", "method=dasd", "self_distill.stall_minutes=0.01")
    console = RunConsole(cfg, read(cfg), tmp_path, theirs, resumed_from=None)
    with console:
        files.set_stage(tmp_path, "rollout", 3)
        time.sleep(0.4)
        before = everything(ours)
        time.sleep(1.2)
    after = everything(ours)
    assert "no progress" not in before
    assert after.count("no progress") == 1 and "step 3, stage rollout" in " ".join(after.split())
