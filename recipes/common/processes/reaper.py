"""A process that leaves nothing behind: no process if the launcher dies suddenly, no shared memory however a run ends.

Ray's own processes notice a dead driver (kill -9, the out-of-memory killer) only after up to a minute, and hold memory
and GPUs until then.  So the launcher starts this module as a process that waits on a pipe: when the launcher is gone
the pipe ends, and every process that carries the run's mark in its environment is killed.  At a clean end no process is
touched.  In both cases named shared memory of the run's processes is removed: Ray ends its actors without their exit
handlers, and vLLM, for one, would leave hundreds of megabytes taken after each run.  So are temporary folders whose
names begin with `temporary_prefix`, as their makers may have been killed.
Linux only, as is the rest; processes on other nodes are Ray's to end.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "SELF_DISTILL_RUN_MARK"
PROCESS = "process"  # a file in a temporary folder of the run: one of its processes, by `write_process`
LOOK_SECONDS = 2.0  # between two looks at who belongs to the run
SECONDS = 10.0  # how long processes are looked for: the dying start others
# What Python's multiprocessing names so, where it is mapped and not yet removed.
SHARED_MEMORY = re.compile(rb"/dev/shm/(?:psm_|sem\.mp-)\S+$", re.MULTILINE)


@contextmanager
def reaper() -> Iterator[None]:
    """Make sure that what this process starts in the block does not outlive it, even if the process is killed there."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.common.processes.reaper", mark],
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


def temporary_prefix() -> str:
    """What a temporary folder's name begins with, for the reaper of this process's run to remove what is left of it."""
    return _prefix(os.environ.get(MARK, ""))


def _prefix(mark: str) -> str:
    return f"self_distill_{mark}_"


def write_process(folder: Path) -> None:
    """Make this process known to the reaper, for what was not started with the run's mark but forked.

    Args:
        folder: one of the run's, whose name begins with `temporary_prefix`.
    """
    (folder / PROCESS).write_text(f"{os.getpid()} {started(os.getpid())}")


def marked(mark: str) -> list[int]:
    """Ids of the processes that were started with that mark in their environment, or are known by `write_process`."""
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
    for file in Path(tempfile.gettempdir()).glob(f"{_prefix(mark)}*/{PROCESS}"):
        try:
            pid, _, began = file.read_text().partition(" ")
        except OSError:  # ended meanwhile
            continue
        if began and started(int(pid)) == began:
            found.append(int(pid))
    return found


def _family(mark: str) -> set[int]:
    """Ids of the run's processes and of all that descend from them."""
    own = set(marked(mark))
    return own | children_of(own)


def kill_marked(mark: str, known: dict[int, str]) -> None:
    """Send SIGKILL to the run's processes until none is left for a second, or `SECONDS` are over.

    Args:
        mark: value of the run's mark in their environment.
        known: process id -> `started` of processes that were seen to belong to the run before.
    """
    deadline, quiet_since = time.monotonic() + SECONDS, time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - quiet_since < 1.0:
        for pid in _family(mark) | {pid for pid, began in known.items() if started(pid) == began}:
            quiet_since = time.monotonic()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def started(pid: int) -> str | None:
    """When a living process was started, in the kernel's ticks, as text; None if it is gone.

    With it a process is told apart from a later one that was given the same id.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def children_of(pids: set[int]) -> set[int]:
    """Ids of the given processes' descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        for child in parents.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def shared_memory_of(pids: set[int]) -> set[str]:
    """Paths of named shared memory that the given processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        try:
            mapped = Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:
            continue
        found.update(os.fsdecode(name) for name in SHARED_MEMORY.findall(mapped))
    return found


def main(mark: str) -> None:
    """Wait for the launcher's word or its death; remember meanwhile who belongs to the run.

    A process that gives itself a title overwrites its environment, mark and all, as Ray's agents do: they are known by
    their parents, which may be gone first.
    """
    known: dict[int, str] = {}
    shared: set[str] = set()
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known = {pid: began for pid in _family(mark) if (began := started(pid))} | {
            pid: began for pid, began in known.items() if started(pid) == began
        }
        shared |= shared_memory_of(set(known))
    if not sys.stdin.buffer.read():
        kill_marked(mark, known)
    for name in shared:
        Path(name).unlink(missing_ok=True)  # the run's own have mostly removed theirs
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix(mark)}*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
