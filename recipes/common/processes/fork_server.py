"""Ray's worker processes, forked from one that has imported everything: for runs on a CPU.

A run has nine processes that import verl, at four seconds of CPU each: on two cores that is most of the time until the
first step.  Ray lets a run choose what is started in a Python interpreter's place (``py_executable``).  Here it is
`fork_client`, a few milliseconds, which has this server fork; the new process has what was imported, takes over the
client's environment, priority and output, and is Ray's ordinary worker from then on.

Ray's random identifiers, by which it knows objects, come from a generator in its C++ core that no fork reseeds: had it
been used before the fork, all workers would draw the same ones, and one would now and then be given another's object.
What draws at import is therefore given numbers of the system's, and before the first worker two forks are compared:
should they agree (another Ray), nothing is forked, and workers start as they would without a server.

A run has a server of its own, which ends with it: Ray takes the job's number and the id of its daemon out of the
environment when it is imported, so no worker can be forked from what has imported Ray before.  Runs on GPUs have none:
there the start is spent elsewhere, and CUDA and fork do not go together.

Whoever starts many runs starts them from a `command_server`, which has imported what has nothing to do with Ray: the
commands are forked from it, and so are their servers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipes.common.processes.fork_client import PASSED_ON, SERVER
from recipes.common.processes.reaper import PROCESS, temporary_prefix, write_process

# What the processes of a run import.  Ray, and what imports it, waits for the first worker's environment.
BEFORE = ("torch", "tensordict", "transformers", "datasets", "torch.distributed.fsdp", "accelerate", "scipy.stats")
WITH_RAY = (
    "ray._private.workers.default_worker",
    "transfer_queue",
    "verl.trainer.main_ppo",
    "verl.experimental.reward_loop",
    "workers.register",
    "workers.rollout.bursts",
    "workers.rollout.server",
    "workers.training.worker",
    "advantage.register",
    "recipes.common.step.trainer",
)
COMMANDS = (*BEFORE, "hydra", "matplotlib.pyplot")
SECONDS = 5.0  # for the workers to end when the run has


@contextlib.contextmanager
def fork_server() -> Iterator[str]:
    """A fork server for the workers of the run that is started in the block.

    Returns:
        A context manager that gives Ray's ``py_executable``.
    """
    given = os.environ.get(SERVER)
    with _server(_client(given) if given else [sys.executable]) as client:
        yield shlex.join(client)


def command_server() -> contextlib.AbstractContextManager[list[str]]:
    """A fork server for the commands of this package that are started in the block, on a machine without GPUs.

    Returns:
        A context manager that gives what stands in the place of Python's interpreter, before ``-m`` and a module.
    """
    return _server([sys.executable], "commands")


def _client(address: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_client.py")), address]


@contextlib.contextmanager
def _server(python: Sequence[str], *arguments: str) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        address = f"{folder}/fork"
        process = subprocess.Popen(
            [*python, "-m", "recipes.common.processes.fork_server", address, *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the launcher
        )
        try:
            while not Path(address).exists() and process.poll() is None:
                time.sleep(0.01)
            yield _client(address)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                process.communicate(timeout=2 * SECONDS)
            process.kill()


def serve(address: str, before: Sequence[str] = BEFORE, with_first: Sequence[str] = WITH_RAY) -> None:
    """Import, then fork for whoever asks, until standard input ends and the workers have.

    Args:
        address: path of the socket to be made. It is there from the beginning, so that requests wait for the imports.
        before: modules to import at once.
        with_first: modules to import in the first client's environment.
    """
    write_process(Path(address).parent)  # this process may be a fork itself, whose first environment tells nothing
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    gc.disable()  # while nothing is let go of, a collection finds nothing
    for module in before:
        importlib.import_module(module)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    events = selectors.DefaultSelector()
    for source in (server, woken, sys.stdin):
        events.register(source, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}  # by their workers' ids
    ready, apart, deadline = False, True, None
    while deadline is None or (clients and time.monotonic() < deadline):
        for key, _ in events.select(None if deadline is None else 0.2):
            if key.fileobj is server:
                client, _ = server.accept()
                request, descriptors = _received(client)
                if not ready:
                    _import(with_first, request["env"])
                    ready, apart = True, _forks_draw_apart()
                if not apart:
                    print("forks draw the same identifiers of Ray's: nothing is forked", file=sys.stderr, flush=True)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    client.close()  # it becomes the interpreter itself
                    continue
                own = [woken, wake, *(each.fileno() for each in (server, events, client, *clients.values()))]
                pid = _fork(request, descriptors, own)
                # The client may have been killed while it waited; what it asked for ends below.
                with contextlib.suppress(OSError):
                    client.send(pid.to_bytes(8, "big"))
                clients[pid] = client
                events.register(client, selectors.EVENT_READ, pid)
            elif key.fileobj == woken:
                os.read(woken, 4096)
                for pid, code in _ended():
                    if (known := clients.pop(pid, None)) is not None:
                        with contextlib.suppress(KeyError):
                            events.unregister(known)
                        with contextlib.suppress(OSError):
                            known.send(bytes([code]))
                        known.close()
            elif key.fileobj is sys.stdin:
                events.unregister(sys.stdin)
                deadline = time.monotonic() + SECONDS
            else:  # the client was killed, and the worker is meant
                events.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)
    for pid in clients:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for each in (Path(address), Path(address).with_name(PROCESS)):
        each.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # whoever made the folder may have been killed; it is left where it is not empty
        Path(address).parent.rmdir()


def _ended() -> Iterator[tuple[int, int]]:
    """Workers that have ended, with their exit codes; 128 and the signal's number as shells have it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else 128 - code


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's request, and its standard input, output and errors."""
    size, descriptors, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(size, "big"))), descriptors


def _import(modules: Sequence[str], environment: dict[str, str]) -> None:
    _take_over(environment)
    for module in modules:
        importlib.import_module(module)
        if "ray.actor" in sys.modules:
            sys.modules["ray.actor"].ActorClassID = SimpleNamespace(from_random=_class_id)
    gc.collect()
    gc.freeze()  # a collection would write to every page that the workers share
    gc.enable()


def _class_id() -> Any:
    """An identifier for a class that becomes an actor, as Ray's but from the system's numbers."""
    kind = sys.modules["ray"].ActorClassID
    return kind(os.urandom(kind.size()))


def _forks_draw_apart() -> bool:
    """Whether two forks of this process draw different identifiers of Ray's; true where Ray was not imported."""
    if "ray" not in sys.modules:
        return True
    drawn = []
    for _ in range(2):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, sys.modules["ray"].ObjectID.from_random().binary())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            drawn.append(stream.read())
        os.waitpid(pid, 0)
    return drawn[0] != drawn[1] and all(drawn)


def _take_over(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _fork(request: dict[str, Any], descriptors: list[int], own: list[int]) -> int:
    """The id of a new process that does what was requested.

    Args:
        request: see `fork_client.own`.
        descriptors: its standard input, output and errors; closed here.
        own: descriptors that are not for it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # a fork of Python's forgets what came meanwhile
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in own:
            os.close(descriptor)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        code = _run(request, mask)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(request: dict[str, Any], mask: set[int]) -> int:
    """A Python script, or a module after ``-m``, as if it had been started with an interpreter of its own.

    Args:
        request: see `fork_client.own`.
        mask: the signals that it is to block; until it starts it blocks those that are passed on.

    Returns:
        Its exit code.
    """
    os.setpgid(0, 0)  # Ray ends what a worker has left behind by its process group
    with contextlib.suppress(OSError):  # more than the server's may need a privilege that Ray's daemon has
        Path("/proc/self/oom_score_adj").write_text(request["oom_score_adj"])
    os.setpriority(os.PRIO_PROCESS, 0, max(request["niceness"], os.getpriority(os.PRIO_PROCESS, 0)))
    _take_over(request["env"])
    if "ray" in sys.modules:
        sys.modules["ray._raylet"].Config.initialize("")  # its settings are read out of the environment again
    if "torch" in sys.modules and (threads := request["env"].get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(int(threads))  # it read the server's when it was imported
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(None)
    random.seed()
    os.chdir(request["cwd"])
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if request["argv"][0] == "-m":
            _, module, *arguments = request["argv"]
            sys.argv = [module, *arguments]
            sys.path[0] = request["cwd"]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            script, *_ = sys.argv = request["argv"]
            sys.path[0] = str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    location, *kind = sys.argv[1:]
    serve(location, *((COMMANDS, ()) if kind else ()))
