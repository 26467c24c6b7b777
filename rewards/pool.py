"""Killable grading children behind one blocking call that any thread may make.

Every child is a fresh interpreter (no fork: neither torch nor Ray nor a lock is inherited) that speaks JSON lines over
two pipes.  An item's deadline counts from when a ready child receives it, so a queue in front of it costs it waiting
but never its verdict.  A child that misses its deadline or dies is killed and replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 120.0
MAX_TEXT_CHARS = 4096  # of either side: two texts of this length, escaped, fit a 64 KiB pipe, so a write never blocks
_BOOT = (
    "import os, sys; sys.path[:] = sys.argv[2].split(os.pathsep); "
    "from rewards._child import main; main(int(sys.argv[1]))"
)


class GradingSetupError(RuntimeError):
    """The children cannot start at all (math-verify missing, for one): a fault of the installation, not of an item."""


class _ChildDied(Exception):
    """The pipe ended: the child was killed, or crashed."""


@dataclass(frozen=True)
class Verdict:
    """One comparison: ``status`` is "correct", "wrong", "timeout" or "error"; ``how`` says what decided."""

    status: str
    how: str
    seconds: float = 0.0


def _child_path() -> str:
    """sys.path for a child: the parent's, led by this package's own root, without the package's own directory.

    The directory itself would let ``rewards/math.py`` stand in for the standard library's ``math``.
    """
    package = Path(__file__).resolve().parent
    entries = [str(package.parent)]
    for entry in sys.path:
        if entry and Path(entry).resolve() not in (package, package.parent):
            entries.append(entry)
    return os.pathsep.join(entries)


class _Child:
    def __init__(self, memory_mb: int):
        environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1")
        debug = os.environ.get("VSD_GRADING_STDERR") == "1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(memory_mb), _child_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is the trainer's affair
        )
        self.ready = False
        self._buffer = b""
        self._poll = select.poll()  # not select(): a trainer may hold more than 1024 descriptors
        self._poll.register(self.process.stdout.fileno(), select.POLLIN | select.POLLHUP)

    def _read_line(self, timeout_s: float) -> dict | None:
        """The next reply, None when ``timeout_s`` has passed.  Raises _ChildDied at the end of the pipe."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                return None
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise _ChildDied
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def wait_ready(self) -> None:
        if self.ready:
            return
        try:
            hello = self._read_line(START_TIMEOUT_S)
        except _ChildDied:
            raise GradingSetupError(
                f"a grading child ended with code {self.process.wait()} before it was ready; raise memory_mb, or set "
                "VSD_GRADING_STDERR=1 to see its messages"
            ) from None
        if hello is None or not hello["ready"]:
            why = f"it was not ready within {START_TIMEOUT_S:.0f} s" if hello is None else hello["error"]
            raise GradingSetupError(
                f"a grading child cannot work: {why}; it needs `pip install math-verify==0.9.0` in {sys.executable}"
            )
        self.ready = True

    def ask(self, gold: str, answer: str, deadline_s: float) -> dict | None:
        request = {"gold": gold, "answer": answer, "deadline_s": deadline_s}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise _ChildDied from None
        return self._read_line(deadline_s)

    def kill(self) -> None:
        self.process.kill()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's ends of the pipes, at which an idle child ends itself."""
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


class GradingPool:
    """``children`` grading processes, started when first needed.  ``memory_mb``: address-space limit of each, MiB."""

    def __init__(self, children: int = 2, memory_mb: int = 1024):
        if children < 1:
            raise ValueError(f"children={children} but at least one grading process is needed; set children=1 or more")
        if memory_mb < 256:
            raise ValueError(f"memory_mb={memory_mb} but a child needs about 100 MiB to start; set 256 or more")
        self.memory_mb = memory_mb
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # last in, first out: few children get warm
        for _ in range(children):
            self._slots.put(None)
        self._alive: set[_Child] = set()
        self._killed: list[subprocess.Popen] = []

    def _start(self) -> _Child:
        child = _Child(self.memory_mb)
        self._alive.add(child)
        return child

    def _discard(self, child: _Child) -> None:
        child.kill()
        self._alive.discard(child)
        # A killed process may take a moment to give its memory back; nobody waits for that, but all are reaped.
        self._killed = [process for process in [*self._killed, child.process] if process.poll() is None]

    def compare(self, gold: str, answer: str, deadline_s: float) -> Verdict:
        """Compare two texts of at most ``MAX_TEXT_CHARS`` in a child; blocks until the verdict.

        Raises GradingSetupError where no child can start.  A death is tried once more on a new child, since it may
        have come from outside; a second one is the item's own: status "error".
        """
        child = self._slots.get()
        try:
            for _ in range(2):
                child = child or self._start()
                child.wait_ready()
                start = time.monotonic()
                try:
                    reply = child.ask(gold, answer, deadline_s)
                except _ChildDied:
                    self._discard(child)
                    child = None
                    continue
                seconds = time.monotonic() - start
                if reply is None or reply.get("retire"):
                    self._discard(child)
                    child = self._start()  # begins to get ready while the next item is still on its way
                if reply is None:
                    return Verdict("timeout", "deadline", seconds)
                if "error" in reply:
                    return Verdict("error", reply["error"], seconds)
                return Verdict("correct" if reply["equal"] else "wrong", reply["how"], seconds)
            return Verdict("error", "child died", time.monotonic() - start)
        except BaseException:
            if child is not None:
                self._discard(child)
                child = None
            raise
        finally:
            self._slots.put(child)

    def close(self) -> None:
        """Kill the idle children.  The pool stays usable: new ones start when needed."""
        for _ in range(self._slots.qsize()):
            try:
                child = self._slots.get_nowait()
            except queue.Empty:
                return
            if child is not None:
                self._discard(child)
                child.process.wait()
            self._slots.put(None)

    def abandon(self) -> None:
        """Let go of all children without killing them: they are another process's (called in a forked child)."""
        for child in self._alive:
            child.abandon()
