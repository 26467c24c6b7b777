"""Leaves no process behind when the launcher of a run dies without a word (kill -9, the out-of-memory killer).

Ray's own processes notice a dead driver only after up to a minute, and hold memory and GPUs until then.  So the
launcher starts this module as a process that waits on a pipe: when the launcher is gone the pipe ends, and every
process that carries the run's mark in its environment is killed.  At a clean end nothing is touched.
Linux only, as is the rest; processes on other nodes are Ray's to end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "SELF_DISTILL_RUN_MARK"
SECONDS = 10.0  # how long processes are looked for: the dying start others


@contextmanager
def reaper() -> Iterator[None]:
    """Within the block, and should it never end, what this process starts does not outlive it."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.common.reaper", mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the launcher
        env={name: value for name, value in os.environ.items() if name != MARK},
    )
    os.environ[MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        try:
            process.communicate(b"clean end\n", timeout=5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()


def marked(mark: str) -> list[int]:
    """Ids of the processes that were started with that mark in their environment."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL to all of them, until none is left for a second."""
    deadline, quiet_since = time.monotonic() + SECONDS, time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - quiet_since < 1.0:
        for pid in marked(mark):
            quiet_since = time.monotonic()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


if __name__ == "__main__":
    if not sys.stdin.buffer.read():
        kill_marked(sys.argv[1])
