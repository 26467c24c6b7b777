"""Programs run against their tests, each in a sandbox of its own, behind one blocking call that any thread may make.

A program that was written by a model may do anything: it is run in Linux namespaces and under the operating system's
limits (``rewards._code_sandbox``), so that what it does ends with it. Whether the machine grants this is not supposed
but tried: before the first program, one of ours attempts each escape, and if one succeeds nothing is run, unless
``isolation="available"`` says that what there is will do.
"""

from __future__ import annotations

import atexit
import os
import sysconfig
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.pool import GradingSetupError, Nursery, Verdict, _Died

VERDICTS = ("passed", "failed", "timeout", "memory", "output", "error")
ISOLATION = ("required", "available")
MAX_REQUEST_CHARS = 64 * 2**20  # program and tests
# A supervisor that has not answered by then, on a starved machine, is killed.
ANSWER_AFTER_S = 5.0
_PROBE = Path(__file__).with_name("_code_probe.py")
_BOOT = (
    "import os, sys; root = sys.argv[2]; sys.path[:] = [root, *filter(None, sys.path)]; "
    "from rewards._code_sandbox import main; sys.path.remove(root); main(int(sys.argv[1]), sys.argv[3:])"
)


class IsolationError(GradingSetupError):
    """The machine does not hold programs back as far as was asked for."""


@dataclass(frozen=True)
class Limits:
    """What one program may use, its tests included.

    Attributes:
        wall_s: wall time in seconds.
        cpu_s: CPU time in seconds, rounded up to whole ones.
        memory_mb: address space of each of its processes beyond the interpreter's own, MiB.
        processes: that it may have at a time, threads included.
        files_mb: size of the files it may write, MiB, all of them in memory.
        files: their number.
        output_kb: of what it prints, KiB.

    Raises:
        ValueError: a value is no number, or below the least that works.
    """

    wall_s: float = 20.0
    cpu_s: float = 10.0
    memory_mb: int = 1024
    processes: int = 8
    files_mb: int = 16
    files: int = 256
    output_kb: int = 256

    def __post_init__(self) -> None:
        for name, least in (("wall_s", 0.05), ("cpu_s", 0.05), ("memory_mb", 16), ("processes", 1), ("files_mb", 1),
                            ("files", 8), ("output_kb", 1)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise ValueError(f"{name}={value}: must be a number of at least {least}")
            if not name.endswith("_s") and int(value) != value:
                raise ValueError(f"{name}={value}: must be a whole number")


class CodePool:
    """At most ``children`` programs at a time, each in a sandbox of its own; usable from any thread.

    Args:
        children: programs at a time; None for one a CPU core.
        isolation: "required" refuses to run anything if an escape is open; "available" runs with what the machine
            grants.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(self, children: int | None = None, isolation: str = "required"):
        if isolation not in ISOLATION:
            raise ValueError(f"isolation={isolation}: must be one of {', '.join(ISOLATION)}")
        if children is not None and children < 1:
            raise ValueError(f"children={children} runs nothing; set at least 1, or null for one a CPU core")
        self._isolation = isolation
        self._places = threading.BoundedSemaphore(children or len(os.sched_getaffinity(0)))
        root = Path(__file__).resolve().parents[1]
        packages = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter may not start without it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self._nursery = Nursery(
            ["-s", "-S", "-c", _BOOT], [str(root), *packages], environment, "run on Linux, where /proc is mounted"
        )
        self._lock = threading.Lock()
        self._missing: list[str] | None = None

    def missing(self) -> list[str]:
        """What programs are not held back from, in words; empty if isolation is complete. Found by trying, once.

        Raises:
            GradingSetupError: the sandbox cannot start at all.
        """
        with self._lock:
            if self._missing is None:
                self._nursery.start()
                verdict = self._run(_PROBE.read_text(), _PROBE_TESTS, "attempt", "", Limits(wall_s=30.0, memory_mb=64))
                if verdict.status == "passed":
                    self._missing = []
                elif verdict.status == "failed" and verdict.how.startswith(_PROBE_FOUND):
                    found = verdict.how.removeprefix(_PROBE_FOUND).split(",")
                    self._missing = [OPEN[name] for name in found]
                else:
                    raise GradingSetupError(f"the sandbox's own program ended with {verdict.status}: {verdict.how}")
            return self._missing

    def check(self) -> None:
        """Refuse to go on if isolation is required and incomplete.

        Raises:
            IsolationError: an escape is open; the message says which, why and what to do.
            GradingSetupError: the sandbox cannot start at all.
        """
        missing = self.missing()
        if missing and self._isolation == "required":
            hello = self._nursery.hello or {}
            why = "; ".join(dict.fromkeys(hello.get("refusals", ()))) or "the system gave no reason"
            raise IsolationError(
                f"programs are not run, since this machine would not hold them back: {'; '.join(missing)}. The reason: "
                f"{why}. Allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_"
                "unprivileged_userns=0; in a container: --security-opt seccomp=unconfined --cap-add SYS_ADMIN), or say "
                "isolation=available (in an evaluation, code.isolation) if these programs may do that"
            )

    def run(
        self, program: str, tests: str, entry_point: str = "", limits: Limits | None = None, setup: str = ""
    ) -> Verdict:
        """Execute a program and its tests; blocks until the verdict.

        Args:
            program: source of the program.
            tests: source that raises an exception, best AssertionError, if the program is wrong. It is executed with
                the program's names; a function ``check`` that it defines is called with the entry point.
            entry_point: function that the program must define; "" for none.
            limits: None for the defaults.
            setup: source that is executed before the program, such as the imports that its problem states.

        Returns:
            ``status``: "passed"; "failed" (an assertion); "timeout", "memory", "output" (a limit); "error" (any other
            exception, no entry point, the end before the tests'). ``how``: its last line. ``seconds``: wall time.

        Raises:
            IsolationError: the machine does not hold programs back as required.
            GradingSetupError: nothing can be run here; no fault of the program.
        """
        self.check()
        if len(program) + len(tests) + len(setup) > MAX_REQUEST_CHARS:
            return Verdict("error", f"program and tests of more than {MAX_REQUEST_CHARS} characters")
        with self._places:
            return self._run(program, tests, entry_point, setup, limits or Limits())

    def _run(self, program: str, tests: str, entry_point: str, setup: str, limits: Limits) -> Verdict:
        request = {"program": program, "tests": tests, "entry_point": entry_point, "setup": setup,
                   "limits": asdict(limits)}  # fmt: skip
        for _ in range(2):  # the sandbox may be killed from outside, which is no fault of the program
            child = self._nursery.child()
            try:
                child.socket.settimeout(limits.wall_s + ANSWER_AFTER_S)
                child.write(request)
                reply = child.read(limits.wall_s + ANSWER_AFTER_S)
            except _Died:
                continue
            finally:
                self._nursery.kill(child)
            if reply is None:
                return Verdict("timeout", "its supervisor did not answer", limits.wall_s + ANSWER_AFTER_S)
            if "broken" in reply:
                raise GradingSetupError(f"a program could not be started: {reply['broken']}")
            return Verdict(reply["status"], reply["how"], reply["seconds"])
        return Verdict("error", "its sandbox died twice")

    def close(self) -> None:
        """End the sandbox and all programs in it; the pool stays usable."""
        self._nursery.close()

    def abandon(self) -> None:
        """Let go of the sandbox without ending it, since it is another process's; called in a forked child."""
        self._nursery.abandon()


_pools: dict[tuple, CodePool] = {}
_pools_lock = threading.Lock()


def shared_pool(children: int | None = None, isolation: str = "required") -> CodePool:
    """This process's pool with these settings, made when first asked for.

    Args:
        children: as in `CodePool`.
        isolation: as in `CodePool`.
    """
    with _pools_lock:
        key = (children, isolation)
        if key not in _pools:
            _pools[key] = CodePool(*key)
        return _pools[key]


def run_program(
    program: str, tests: str, entry_point: str = "", limits: Limits | None = None, isolation: str = "required"
) -> Verdict:
    """Run a program in this process's own pool, with its default number of programs at a time.

    Args:
        program: source of the program.
        tests: as in `CodePool.run`.
        entry_point: function that the program must define; "" for none.
        limits: None for the defaults.
        isolation: as in `CodePool`.

    Returns:
        As `CodePool.run`, which also says what is raised.
    """
    return shared_pool(isolation=isolation).run(program, tests, entry_point, limits)


def _close_all() -> None:
    for pool in list(_pools.values()):
        pool.close()


def _forget_after_fork() -> None:
    global _pools_lock
    _pools_lock = threading.Lock()
    for pool in _pools.values():
        pool.abandon()
    _pools.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_after_fork)


# The names of the probe's functions, and what each means to a user.
OPEN = {
    "network": "the network can be reached",
    "files": "files of this machine can be read, and written where you may",
    "signals": "processes of this machine can be seen and signalled, and what a program starts may outlive it",
    "processes": "the number of processes is not limited",
    "memory": "memory is not limited",
    "disk": "the size of files is not limited",
    "namespaces": "a program can give itself new rights in a namespace of its own",
    "environment": "this process's environment can be read",
    "libraries": "Python's own library cannot be read by programs (is it in a directory that only you may enter?)",
}
_PROBE_FOUND = "AssertionError: open: "
_PROBE_TESTS = f"""
found = attempt()
assert not found, {_PROBE_FOUND.partition(": ")[2]!r} + ",".join(found)
"""
