"""The process that grading children are forked from: everything imported, nothing graded, no threads.

``rewards.pool`` starts it as a fresh interpreter, so neither torch nor Ray nor a lock of the trainer gets in here, and
forking from it is safe, takes milliseconds, and shares memory. Each message on the control socket asks for one child
(whose own socket comes along) or for a child's death; if the socket ends, the nursery and all children end.

A child reads one JSON request a line and writes one JSON reply a line. Three means protect the trainer and the machine
from it, none of which needs Python to be running at the time: an address-space limit, two clocks set for each item (CPU
time and wall time) whose ringing kills by default, and the end of its socket.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable

MESSAGE = struct.Struct("!cQ")  # b"s" (spawn) or b"k" (kill), and the child's number
# sympy's caches grow, so a child asks to be replaced by size and by age.
RETIRE_AFTER_ITEMS = 20_000
RETIRE_SHARE_OF_LIMIT = 0.5
REAP_EVERY_MS = 500
# Each kind once: the parser builds its tables as it meets new forms, and children inherit them.
WARM_UP = (
    ("\\frac{1}{2}\\sqrt{3}", "x^2-1.5"),
    ("[2,\\infty)", "(1, 2)"),
    ("x+1=y", "\\{1, 2\\}"),
    ("2\\pi", "\\frac{\\sqrt{5}-1}{2}"),
    ("\\ln 3", "\\log_{2} 5"),
    ("\\sin x", "e^{2x}"),
    ("x_1 y^2-1", "n!"),
    ("\\{x \\mid x<1\\}", "1<x\\le 2"),
    ("(1+i)^2", "|x|"),
)


def _resident_bytes() -> int:
    """Memory held now; 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _serve(link: socket.socket, memory_mb: int) -> None:
    """Grade requests from ``link`` until it ends."""
    from rewards.compare import equivalent

    memory_bytes = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    stream = link.makefile("rwb")

    def send(reply: dict) -> None:
        stream.write(json.dumps(reply).encode() + b"\n")
        stream.flush()

    send({"ready": True})
    for count, line in enumerate(stream, start=1):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["deadline_s"])
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            equal, how = equivalent(request["gold"], request["answer"])
            reply = {"equal": bool(equal), "how": how}
        except MemoryError:
            reply = {"error": "memory limit", "retire": True}
        except Exception as error:  # a bug in a parser is this item's error, not the child's end
            reply = {"error": type(error).__name__}  # never str(error): it may print a tower
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if count >= RETIRE_AFTER_ITEMS or _resident_bytes() > RETIRE_SHARE_OF_LIMIT * memory_bytes:
            reply["retire"] = True
        send(reply)


def _reap(children: dict[int, int]) -> None:
    """Forget children that have ended; their numbers stay theirs until here, so no stranger is ever killed."""
    while children:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        for number in [number for number, child in children.items() if child == pid]:
            del children[number]


def main(control_fd: int, memory_mb: int) -> None:
    """Serve the control socket until it ends.

    Args:
        control_fd: descriptor of the control socket.
        memory_mb: address-space limit of each child in MiB.
    """
    control = socket.socket(fileno=control_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        from rewards.compare import equivalent

        for pair in WARM_UP:
            equivalent(*pair)
    except Exception as error:  # whatever it is, the parent must hear of it
        control.sendall(json.dumps({"ready": False, "error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        return
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every shared page
    control.sendall(b'{"ready": true}\n')
    tend(control, lambda link: _serve(link, memory_mb))


def tend(control: socket.socket, serve: Callable[[socket.socket], None], fork: Callable[[], int] = os.fork) -> None:
    """Fork a child for each order on the control socket, until its end; then end all children.

    Args:
        control: brings orders in the form of `MESSAGE`, with a socket for each new child.
        serve: what a child does, with the socket that came with its order.
        fork: as ``os.fork``.
    """
    children: dict[int, int] = {}
    orders = select.poll()
    orders.register(control, select.POLLIN)
    while True:
        while not orders.poll(REAP_EVERY_MS):
            _reap(children)
        data, descriptors, _, _ = socket.recv_fds(control, MESSAGE.size, 1)
        _reap(children)
        if len(data) < MESSAGE.size:
            break
        order, number = MESSAGE.unpack(data)
        if order == b"k" and number in children:
            os.kill(children[number], signal.SIGKILL)
        elif order == b"s":
            pid = fork()
            if pid == 0:
                control.close()
                try:
                    serve(socket.socket(fileno=descriptors[0]))
                finally:
                    os._exit(0)
            children[number] = pid
            os.close(descriptors[0])
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
