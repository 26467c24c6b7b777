"""The process that programs are run in: a fresh interpreter behind Linux namespaces, from which each program is forked.

``rewards.code_pool`` starts it. Before its work it enters a user, network, mount, IPC, host name and process namespace,
imports what programs often import, so that a program starts in milliseconds, and replaces the root directory by one
that holds nothing but Python's own libraries, read-only (``rewards._code_space``).

Each order on the control socket brings a socket that asks for one program. A supervisor is forked for it, the first
process of a process namespace of the program's own, with a directory in memory for its files. It forks the program,
reads its output, holds the clock, and at the end kills all that the namespace holds. The program itself gives up every
capability first, and gets the limits of the operating system.

What is here runs with nothing but the standard library: the program can see all of it.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import math
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

from rewards._code_space import (
    BOX,
    MS_NODEV,
    MS_NOSUID,
    NEWIPC,
    NEWNS,
    NEWPID,
    NEWUSER,
    NOBODY,
    Space,
    build_root,
    call,
    enter,
    libc,
    mount,
    write,
)
from rewards._nursery import tend

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CAPABILITY_VERSION_3 = 0x20080522
SHM_INFO = 14
SHARED_MEMORY_PAGES = 4096  # of System V segments, which no limit of a process counts
PRELOADED = (
    "abc", "ast", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "inspect", "itertools", "json", "math", "numbers", "operator", "os", "pickle",
    "queue", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "typing", "unittest", "numpy",
)  # fmt: skip
HOME, WORK = "/tmp/home", "/tmp/work"  # inside the box
TAIL_BYTES = 4096  # of a program's output that is kept
DETAIL_CHARS = 300
REPLY_BYTES = 4096


class Broken(Exception):
    """A program could not be started as it should be: the machine's fault, or ours."""


# ------------------------------------------------------------------------------------------------------- the supervisor


def supervise(link: socket.socket, space: Space) -> None:
    """Run one program, and answer with its verdict as a JSON line: ``{status, how, seconds}``.

    Args:
        link: brings the request, a JSON line, and takes the answer; nobody waits any more if it ends.
        space: the namespaces that this process is in.

    Raises:
        Broken: the program could not be started, or not be given its limits.
    """
    if not space.pid:
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a program leaves behind becomes our child
    with link.makefile("rb") as stream:
        request = json.loads(stream.readline())
    work = _private_directory(space, request["limits"])
    begin = time.monotonic()
    try:
        reply = _run_and_watch(link, request, work, space)
    except Broken:
        raise
    except Exception as error:  # what a program leaves must not be taken for a fault of ours
        reply = _verdict("error", f"its end could not be read: {type(error).__name__}")
    finally:
        _kill_all(space)
        if not space.mount:
            _remove(work)
    if reply is not None:
        link.sendall(json.dumps({**reply, "seconds": time.monotonic() - begin}).encode() + b"\n")


def _run_and_watch(link: socket.socket, request: dict[str, Any], work: str, space: Space) -> dict[str, Any] | None:
    """Fork the program and return its verdict, as `_watch`."""
    output, output_end = os.pipe()
    result, result_end = os.pipe()
    token = os.urandom(16).hex()
    try:
        child = os.fork()
    except OSError as error:
        raise Broken(f"fork: {error.strerror}") from error
    if child == 0:
        try:
            _keep_only(space.null, output_end, result_end)
            try:
                _become_the_program(space, request["limits"], work)
            except Exception as error:
                os.write(3, json.dumps({"token": token, "broken": str(error)}).encode() + b"\n")
                os._exit(1)
            run(request, token)
        finally:
            os._exit(1)
    os.close(output_end)
    os.close(result_end)
    return _watch(link, child, output, result, token, request["limits"], space)


def _private_directory(space: Space, limits: dict[str, Any]) -> str:
    """Where the program's files go: memory if mounting is allowed, else a temporary directory."""
    if not space.mount:
        work = tempfile.mkdtemp(prefix="program-")
        for name in ("home", "work"):
            os.mkdir(f"{work}/{name}")
        if os.geteuid() == 0:
            for path in (work, f"{work}/home", f"{work}/work"):
                with contextlib.suppress(OSError):
                    os.chown(path, NOBODY, NOBODY)
        return work
    call("unshare", NEWNS | (NEWIPC if space.ipc else 0))
    options = f"size={limits['files_mb']}m,nr_inodes={limits['files']},mode=777"
    mount("tmpfs", BOX + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.umask(0)
    for path in (HOME, WORK):
        os.mkdir(BOX + path, 0o777)
    os.umask(0o077)
    return BOX + "/tmp"


def _remove(directory: str) -> None:
    """Remove a directory, whatever a program did to the rights of what is in it."""
    waiting = [directory]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
            waiting += [entry.path for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)]
    shutil.rmtree(directory, ignore_errors=True)


def _watch(
    link: socket.socket,
    child: int,
    output: int,
    result: int,
    token: str,
    limits: dict[str, Any],
    space: Space,
) -> dict[str, Any] | None:
    """The verdict of a program that runs; None if nobody waits for it any more.

    Raises:
        Broken: the program could not be given its limits.
    """
    deadline = time.monotonic() + limits["wall_s"]
    written, tail, answer = 0, b"", b""
    poll = select.poll()
    for descriptor in (output, result, link.fileno()):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    done, ended = False, -1
    while not done:
        left = deadline - time.monotonic()
        if left <= 0:
            return _verdict("timeout", f"still running after {limits['wall_s']:g} s")
        if space.ipc and _shared_pages() > SHARED_MEMORY_PAGES:
            return _verdict("memory", "shared memory segments")
        # The end of the result's pipe says that the program ended, unless it left processes behind: look at both.
        for descriptor, _ in poll.poll(min(left, 0.05) * 1000):
            if descriptor == link.fileno():
                return None
            chunk = _read(descriptor)
            if descriptor == output:
                written += len(chunk)
                tail = (tail + chunk)[-TAIL_BYTES:]
                if not chunk:
                    poll.unregister(output)
            else:
                answer += chunk
                done = not chunk or b"\n" in answer or len(answer) > REPLY_BYTES
        if written > limits["output_kb"] * 1024:
            return _verdict("output", f"more than {limits['output_kb']} KiB of output")
        if not done:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                done, ended = True, status
                answer += _read(result)
    while len(chunk := _read(output)):
        written += len(chunk)
        tail = (tail + chunk)[-TAIL_BYTES:]
    if written > limits["output_kb"] * 1024:
        return _verdict("output", f"more than {limits['output_kb']} KiB of output")
    told = _told(answer, token)
    if "broken" in told:
        raise Broken(told["broken"])
    if told:
        return _verdict(told["status"], told["how"])
    if ended < 0:
        ended = _wait(child, min(deadline, time.monotonic() + 1.0))
    return _ended(ended, tail, limits)


def _told(answer: bytes, token: str) -> dict[str, str]:
    """The line that a program's process wrote at its end; {} for anything that does not carry the token."""
    try:
        told = json.loads(answer.partition(b"\n")[0][:REPLY_BYTES])
        return dict(told) if told["token"] == token else {}
    except Exception:  # a program may write there, too: nesting, numbers of a million digits, ...
        return {}


def _ended(status: int, tail: bytes, limits: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a program that ended without telling how its tests went."""
    lines = tail.decode(errors="replace").strip().splitlines()
    last = f"; its last line: {lines[-1]}" if lines else ""
    if status < 0:
        return _verdict("error", f"closed its result before its tests had ended{last}")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if number == signal.SIGXCPU or used.ru_utime + used.ru_stime >= limits["cpu_s"]:
            return _verdict("timeout", f"used {limits['cpu_s']:g} s of CPU time")
        names = {s.value: s.name for s in signal.Signals}
        return _verdict("error", f"killed by {names.get(number, f'signal {number}')}{last}")
    return _verdict("error", f"ended with code {os.WEXITSTATUS(status)} before its tests had{last}")


def _verdict(status: str, how: str) -> dict[str, Any]:
    return {"status": status, "how": how[:DETAIL_CHARS]}


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def _wait(child: int, deadline: float) -> int:
    """A child's status; -1 if it has not ended by the deadline."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > deadline:
            return -1
        time.sleep(0.002)


def _shared_pages() -> int:
    """Pages in System V segments of our IPC namespace (shmctl SHM_INFO: used_ids, shm_tot, ...)."""
    info = (ctypes.c_ulong * 8)()
    return info[1] if libc.shmctl(0, SHM_INFO, info) >= 0 else 0


def _kill_all(space: Space) -> None:
    """End every process of the program, whatever it has forked; on return none is left."""
    while True:
        if space.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # we are the first process here: all of this namespace but ourselves
        else:
            for order in (signal.SIGSTOP, signal.SIGKILL):
                for pid in _descendants(os.getpid()):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, order)
        try:
            while os.waitpid(-1, 0 if space.pid else os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _descendants(pid: int) -> list[int]:
    """All below a process; without a namespace of its own, orphans are ours too, since we are their reaper."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *_descendants(child)]
    return found


# ---------------------------------------------------------------------------------------------------------- the program


def _keep_only(null: int, output: int, result: int) -> None:
    """Standard input, output and error, the result as descriptor 3, and nothing else that is open here."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (null, output, output, result)]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target)
    os.closerange(4, 65536)


def _become_the_program(space: Space, limits: dict[str, Any], work: str) -> None:
    """Set a program's limits, and give up every right that could lift them.

    Raises:
        OSError: the system refuses one of them.
    """
    os.setsid()
    if space.user:
        # Processes are counted for each user of each user namespace: one of its own makes the count the program's.
        # Where the machine allows no second one, all programs share a count; the probe looks at it.
        with contextlib.suppress(OSError):
            call("unshare", NEWUSER)
    if space.mount:
        os.chroot(BOX)  # also forbids to create user namespaces, in which every capability would be back
        home, work = HOME, WORK
    else:
        home, work = f"{work}/home", f"{work}/work"
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.chdir(work)
    if not space.user and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    cpu = math.ceil(limits["cpu_s"])
    memory = space.inherited_bytes + limits["memory_mb"] * 2**20
    for kind, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, limits["files_mb"] * 2**20, limits["files_mb"] * 2**20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        allowed = resource.getrlimit(kind)[1]
        if allowed != resource.RLIM_INFINITY:  # a limit can be lowered only
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(kind, (soft, hard))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update({"HOME": home, "TMPDIR": work, "PATH": "", "LANG": "C.UTF-8"})
    tempfile.tempdir = None


def run(request: dict[str, Any], token: str) -> None:
    """Execute the program, then its tests, and tell how that went on descriptor 3; ends the process.

    The tests find the program's names but none of its replacements for builtins, so that a program cannot redefine
    ``zip`` and so skip them. A function ``check`` that they define is called with the entry point (HumanEval's form).

    Args:
        request: the sources ``setup``, ``program`` and ``tests``, and the name ``entry_point``, "" for none.
        token: goes with the answer as a proof that it is not the program's own.
    """
    status, how = "error", ""
    write_out, leave, dumps, pristine = os.write, os._exit, json.dumps, dict(vars(builtins))
    try:
        try:
            _execute(request, pristine)
            status = "passed"
        finally:
            _restore_builtins(pristine)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
    except MemoryError:
        status, how = "memory", "MemoryError"
    except BaseException as error:
        status = "failed" if isinstance(error, AssertionError) else "error"
        how = _last_line(error, request["tests"])
    try:
        reply = dumps({"token": token, "status": status, "how": how})
    except MemoryError:
        reply = '{"token": "' + token + '", "status": "memory", "how": "MemoryError"}'
    write_out(3, reply.encode() + b"\n")
    leave(0)


def _restore_builtins(pristine: dict[str, Any]) -> None:
    """Undo what a program did to them: its tests, and what judges these, use them too."""
    names = vars(builtins)
    for name in names.keys() - pristine.keys():
        del names[name]
    names.update(pristine)


def _execute(request: dict[str, Any], pristine: dict[str, Any]) -> None:
    entry = request["entry_point"]
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for name in ("setup", "program"):
        exec(compile(request[name], f"<{name}>", "exec"), vars(module))
    _restore_builtins(pristine)
    names = {k: v for k, v in vars(module).items() if k not in pristine and not k.startswith("__") and k != "check"}
    if entry:
        if not callable(vars(module).get(entry)):
            raise NameError(f"the program has no function {entry!r}")
        names[entry] = _guarded(vars(module)[entry])
    scope = {"__name__": "tests", **names}
    exec(compile(request["tests"], "<tests>", "exec"), scope)
    if entry and entry != "check" and callable(scope.get("check")):
        scope["check"](scope[entry])


def _guarded(function: Any) -> Any:
    """The entry point, whose results must not be objects of the program's own making that equal everything."""
    if isinstance(function, type):
        return function

    def call(*arguments: Any, **named: Any) -> Any:
        value = function(*arguments, **named)
        waiting, seen = [value], 0
        while waiting and seen < 10_000:
            item, seen = waiting.pop(), seen + 1
            if type(item).__module__ == "solution" and _equals_anything(item):
                raise AssertionError("the program returned an object that equals everything")
            if isinstance(item, list | tuple | set | frozenset):
                waiting += list(item)[:10_000]
            elif isinstance(item, dict):
                waiting += [*item.keys(), *item.values()][:10_000]
        return value

    return call


def _equals_anything(item: Any) -> bool:
    try:
        return bool(item == object())
    except Exception:
        return False


def _last_line(error: BaseException, tests: str) -> str:
    """ "Type: message" of an exception, or of a bare assertion the line of the tests that it stands in."""
    try:
        text = traceback.format_exception_only(error)[-1].strip()
        if type(error) is AssertionError and not error.args:
            places = [f.tb_lineno for f in _frames(error) if f.tb_frame.f_code.co_filename == "<tests>"]
            if places:
                text = f"AssertionError: {tests.splitlines()[places[-1] - 1].strip()}"
        return text[:DETAIL_CHARS]
    except BaseException as nested:  # a message may be code, too
        return type(nested).__name__


def _frames(error: BaseException) -> list[types.TracebackType]:
    found, frame = [], error.__traceback__
    while frame is not None:
        found.append(frame)
        frame = frame.tb_next
    return found


# ------------------------------------------------------------------------------------------------------------ the start


def main(control_fd: int, packages: list[str]) -> None:
    """Enter the namespaces, import, and serve the control socket until it ends.

    Args:
        control_fd: descriptor of the control socket.
        packages: directories of installed packages that programs may import.
    """
    control = socket.socket(fileno=control_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a program may send it to its supervisor
    with contextlib.suppress(OSError):  # if the machine runs short of memory, programs are the first to go
        write("/proc/self/oom_score_adj", "1000")
    space = Space(null=os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    try:
        sys.path += packages
        enter(space)
        for name in PRELOADED:  # before the root directory goes
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        space.inherited_bytes = _address_space()
        if space.mount:
            space.mount = space.attempt(lambda: build_root(space, packages))
        if space.pid:
            call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    except Exception as error:  # whatever it is, the parent must hear of it
        control.sendall(json.dumps({"ready": False, "error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        return
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), errors="replace")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="replace")
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every shared page
    control.sendall(json.dumps({"ready": True, "refusals": space.refusals}).encode() + b"\n")
    tend(control, lambda link: _serve(link, space), lambda: _fork(space))


def _serve(link: socket.socket, space: Space) -> None:
    try:
        supervise(link, space)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:DETAIL_CHARS]
        with contextlib.suppress(OSError):
            link.sendall(json.dumps({"broken": text}).encode() + b"\n")


def _fork(space: Space) -> int:
    """Fork; the child is the first process of a new process namespace, if there can be one."""
    if not space.pid:
        return os.fork()
    call("unshare", NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            call("setns", space.own_pid, NEWPID)
    return pid


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
