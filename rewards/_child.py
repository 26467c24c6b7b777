"""A grading child: reads one JSON request a line on stdin, writes one JSON reply a line, dies of EOF, alarm or limit.

Started by ``rewards.pool``.  It protects its parent and the machine by three means of its own, none of which needs
Python to be running at the time: an address-space limit; an alarm clock with the default action (death) armed for
every item, so that it cannot outlive its work even where the parent was killed; and the end of its input.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import BinaryIO

# The parent kills at the deadline; the alarm is for a child whose parent is gone.
ALARM_SLACK_S = 1.0
# sympy's caches and fragmentation grow over time, so a child asks to be replaced by size and by age.
RETIRE_AFTER_ITEMS = 20_000
RETIRE_SHARE_OF_LIMIT = 0.5


def _resident_bytes() -> int:
    """Memory held now (not ru_maxrss: it carries over the parent's peak), 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _serve(requests: BinaryIO, replies: BinaryIO, memory_bytes: int) -> None:
    from rewards.compare import equivalent

    for count, line in enumerate(requests, start=1):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["deadline_s"] + ALARM_SLACK_S)
        try:
            equal, how = equivalent(request["gold"], request["answer"])
            reply = {"equal": bool(equal), "how": how}
        except MemoryError:
            reply = {"error": "memory limit", "retire": True}
        except Exception as error:  # a bug in a parser is this item's error, not the child's end
            reply = {"error": type(error).__name__}  # never str(error): it may print a tower
        signal.setitimer(signal.ITIMER_REAL, 0)
        heavy = memory_bytes and _resident_bytes() > RETIRE_SHARE_OF_LIMIT * memory_bytes
        if heavy or count >= RETIRE_AFTER_ITEMS:
            reply["retire"] = True
        _send(replies, reply)


def _send(replies: BinaryIO, reply: dict) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def main(memory_mb: int) -> None:
    """Serve until stdin ends.  ``memory_mb``: limit of this process's address space in MiB (0 for none)."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    memory_bytes = memory_mb * 2**20
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Replies go to a private copy of stdout, so that a library's print cannot be taken for one.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        from rewards.compare import equivalent

        equivalent("\\sqrt{2}", "[x,\\infty)")  # builds the parser's tables before the first deadline
    except Exception as error:  # whatever it is, the parent must hear of it
        _send(replies, {"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    _send(replies, {"ready": True})
    _serve(sys.stdin.buffer, replies, memory_bytes)
