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

# The parent kills at the deadline; the alarm is for a child whose parent is gone.
ALARM_SLACK_S = 1.0


def _serve(requests, replies) -> None:
    from rewards.compare import equivalent

    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["deadline_s"] + ALARM_SLACK_S)
        try:
            equal, how = equivalent(request["gold"], request["answer"])
            reply = {"id": request["id"], "equal": bool(equal), "how": how}
        except MemoryError:
            reply = {"id": request["id"], "error": "memory limit"}
        except Exception as error:  # a bug in a parser is this item's error, not the end of the child
            reply = {"id": request["id"], "error": type(error).__name__}  # never str(error): it may print a tower
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def main(memory_mb: int) -> None:
    """Serve until stdin ends.  ``memory_mb``: limit of this process's address space in MiB (Linux; 0 for none)."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if memory_mb > 0:
        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Replies go to a private copy of stdout, so that a library's print cannot be taken for one.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        import math_verify  # noqa: F401
        from rewards import compare

        compare.equivalent("\\frac{1}{2}", "0.5")  # builds the parser's tables and regexes before the first deadline
        hello = {"ready": True}
    except Exception as error:
        hello = {"ready": False, "error": f"{type(error).__name__}: {error}"}
    replies.write(json.dumps(hello).encode() + b"\n")
    replies.flush()
    if hello["ready"]:
        _serve(sys.stdin.buffer, replies)
