"""Killable grading children behind one blocking call that any thread may make.

Children are forked from a nursery (``rewards._nursery``), a fresh interpreter of its own, so that a replacement takes
milliseconds. An item's limits count from when a ready child receives it: a queue in front costs it waiting, never its
verdict. There are two: of CPU time, which a hostile answer uses up at once, and of wall time, which is longer, so that
an ordinary answer is not given up because the machine is busy with something else. A child that reaches one dies of
its own clock, by default of the operating system, and one that outlives them is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards._nursery import MESSAGE

START_TIMEOUT_S = 120.0
KILL_AFTER_S = 0.25  # past the deadline, for a child whose alarm did not ring (a starved machine)
MAX_TEXT_CHARS = 4096  # of either side: two such texts, escaped, fit a socket's buffer, so a write never blocks
_BOOT = (
    "import os, sys; sys.path[:] = sys.argv[3].split(os.pathsep); "
    "from rewards._nursery import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class GradingSetupError(RuntimeError):
    """Children cannot start at all (math-verify missing, for one): a fault of the installation, not of an item."""


class _Died(Exception):
    """A socket ended: the process behind it was killed, or crashed."""


@dataclass(frozen=True)
class Verdict:
    """How one item was judged.

    Attributes:
        status: of a comparison "correct", "wrong", "timeout" or "error"; of a program see `rewards.code_pool`.
        how: what decided.
        seconds: wall time; 0 if no child was asked.
    """

    status: str
    how: str
    seconds: float = 0.0


def _import_path() -> str:
    """sys.path for the nursery: this process's, led by this package's root, without the package's own directory.

    That directory would let ``rewards/math.py`` stand in for the standard library's ``math``.
    """
    package = Path(__file__).resolve().parent
    entries = [str(package.parent)]
    for entry in sys.path:
        if entry and Path(entry).resolve() not in (package, package.parent):
            entries.append(entry)
    return os.pathsep.join(entries)


class _Link:
    """This process's end of a socket that brings JSON lines."""

    def __init__(self, end: socket.socket):
        self.socket = end
        self._buffer = b""
        self._poll = select.poll()  # not select(): a trainer may hold more than 1024 descriptors
        self._poll.register(end.fileno(), select.POLLIN | select.POLLHUP)

    def read(self, timeout_s: float) -> dict | None:
        """The next message; None after ``timeout_s``, but one that is already there is read even then.

        Raises:
            _Died: the socket ended.
        """
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            if not self._poll.poll(max(end - time.monotonic(), 0.0) * 1000):
                return None
            try:
                chunk = self.socket.recv(65536)
            except OSError:
                chunk = b""
            if not chunk:
                raise _Died
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def write(self, message: dict) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise _Died from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


class _Child(_Link):
    """A grading child: its number in the nursery, and the link to it."""

    def __init__(self, end: socket.socket, number: int):
        super().__init__(end)
        self.number = number

    @property
    def at_rest(self) -> bool:
        """Whether it is alive and owes nothing: an end of its socket or a late message would both be there to read."""
        return not self._poll.poll(0)


class Nursery:
    """The process that forks children, started (and, should it die, restarted) when a child is asked for.

    Args:
        command: options of Python up to its ``-c`` program, which gets the control socket's number as first argument.
        arguments: further arguments of the program.
        environment: of the process; None for this process's own.
        advice: what a user can do if it cannot start.

    Attributes:
        hello: the process's first message; None before it has started.
    """

    def __init__(
        self, command: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str] | None, advice: str
    ):
        self._command, self._arguments = command, arguments
        self._environment, self._advice = environment, advice
        self.hello: dict | None = None  # its first message
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._link: _Link | None = None
        self._numbers = itertools.count()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        debug = os.environ.get("VSD_GRADING_STDERR") == "1"
        self._process = subprocess.Popen(
            [sys.executable, *self._command, str(theirs.fileno()), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # libraries print
            stderr=None if debug else subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**(os.environ if self._environment is None else self._environment), **_ONE_THREAD},
            start_new_session=True,  # Ctrl-C in a terminal is the trainer's affair
        )
        theirs.close()
        self._link = _Link(ours)
        try:
            hello = self._link.read(START_TIMEOUT_S)
        except _Died:
            hello = {"ready": False, "error": f"it ended with code {self._process.wait()}"}
        if hello is None or not hello["ready"]:
            why = f"it was not ready within {START_TIMEOUT_S:.0f} s" if hello is None else hello["error"]
            self._stop()
            raise GradingSetupError(
                f"the grading process of {sys.executable} cannot work: {why}; {self._advice}, or set "
                "VSD_GRADING_STDERR=1 to see its messages"
            )
        self.hello = hello

    def _stop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._process.kill()
            self._process.wait()
            self._link = self._process = None

    def start(self) -> None:
        """Start the process if it does not run.

        Raises:
            GradingSetupError: it cannot start.
        """
        with self._lock:
            if self._link is None:
                self._start()

    def child(self) -> _Child:
        """A new child, perhaps still starting.

        Raises:
            GradingSetupError: the process cannot start, or died twice in a row.
        """
        with self._lock:
            for attempt in range(2):
                if self._link is None:
                    self._start()
                ours, theirs = socket.socketpair()
                number = next(self._numbers)
                try:
                    socket.send_fds(self._link.socket, [MESSAGE.pack(b"s", number)], [theirs.fileno()])
                except OSError:
                    ours.close()
                    self._stop()
                    if attempt:
                        raise GradingSetupError("the grading process died twice in a row; is memory short?") from None
                else:
                    return _Child(ours, number)
                finally:
                    theirs.close()
        raise AssertionError("unreachable")

    def kill(self, child: _Child) -> None:
        """End a child, whatever it is doing."""
        child.close()
        with self._lock:
            if self._link is not None:
                with contextlib.suppress(OSError):
                    self._link.socket.sendall(MESSAGE.pack(b"k", child.number))

    def close(self) -> None:
        """End the process and, with it, all children; it starts again when a child is asked for."""
        with self._lock:
            self._stop()

    def abandon(self) -> None:
        """Close this process's end of the control socket; the nursery belongs to another process."""
        if self._link is not None:
            self._link.close()


class GradingPool:
    """At most ``children`` comparisons at a time, each in a process of its own, started when first needed.

    Args:
        children: processes, at least 1.
        memory_mb: address-space limit of each in MiB, at least 256.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(self, children: int = 2, memory_mb: int = 1024):
        if children < 1:
            raise ValueError(f"children={children} but at least one grading process is needed; set children=1 or more")
        if memory_mb < 256:
            raise ValueError(f"memory_mb={memory_mb} but a child needs about 100 MiB to start; set 256 or more")
        self._places = threading.BoundedSemaphore(children)
        self._nursery = Nursery(["-c", _BOOT], [str(memory_mb), _import_path()], None, "install math-verify 0.9 there")
        self._lock = threading.Lock()
        self._idle: list[_Child] = []  # used from its end, so that few children get warm
        self._alive: set[_Child] = set()

    def _take(self) -> _Child:
        """A child that waits for an item.

        Raises:
            GradingSetupError: none gets ready.
        """
        while True:
            with self._lock:
                if not self._idle:
                    break
                child = self._idle.pop()
            if child.at_rest:
                return child
            self._discard(child)  # killed while it was idle
        for _ in range(2):
            child = self._nursery.child()
            with self._lock:
                self._alive.add(child)
            with contextlib.suppress(_Died):
                if child.read(START_TIMEOUT_S) is not None:
                    return child
            self._discard(child)
        raise GradingSetupError(
            f"no grading child got ready, each within {START_TIMEOUT_S:.0f} s; is memory short, or memory_mb too low?"
        )

    def _discard(self, child: _Child) -> None:
        self._nursery.kill(child)
        with self._lock:
            self._alive.discard(child)

    def compare(self, gold: str, answer: str, deadline_s: float, cpu_s: float) -> Verdict:
        """Compare two texts in a child; blocks until the verdict.

        A death before either limit is tried once more on a new child, since it may have come from outside, in what is
        left of the deadline; a second one is the item's own: status "error".

        Args:
            gold: the gold answer, at most ``MAX_TEXT_CHARS`` characters.
            answer: likewise the response's.
            deadline_s: wall time in seconds.
            cpu_s: CPU time in seconds.

        Raises:
            GradingSetupError: no child can start.
        """
        seconds = 0.0
        with self._places:
            for _ in range(2):
                child = self._take()
                left_s, start = deadline_s - seconds, time.monotonic()
                try:
                    child.write({"gold": gold, "answer": answer, "deadline_s": left_s, "cpu_s": cpu_s})
                    reply = child.read(left_s + KILL_AFTER_S)
                except _Died:
                    self._discard(child)
                    took = time.monotonic() - start
                    seconds += took
                    if took < min(left_s, cpu_s):  # its clocks cannot have rung yet
                        continue
                    return Verdict("timeout", "deadline", seconds)
                except BaseException:
                    self._discard(child)
                    raise
                seconds += time.monotonic() - start
                if reply is None:
                    self._discard(child)
                    return Verdict("timeout", "deadline", seconds)
                if reply.get("retire"):
                    self._discard(child)
                else:
                    with self._lock:
                        self._idle.append(child)
                if "error" in reply:
                    return Verdict("error", reply["error"], seconds)
                return Verdict("correct" if reply["equal"] else "wrong", reply["how"], seconds)
        return Verdict("error", "child died", seconds)

    def close(self) -> None:
        """End the nursery and, with it, all children; the pool stays usable, since both start again when needed."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._alive.difference_update(idle)
        for child in idle:
            child.close()
        self._nursery.close()

    def abandon(self) -> None:
        """Let go of everything without ending it, since it is another process's; called in a forked child."""
        for child in self._alive:
            child.close()
        self._nursery.abandon()
