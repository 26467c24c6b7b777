"""Why a run failed: the first exception of its workers, and where it stands in the log.

The exception that reaches the user's process is the last one: verl's advice, or a call that found its worker gone.  Ray
copies what the workers print into the log, each line with its process before it; the first traceback there is where the
failure began.
"""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

# "\x1b[36m(WorkerDict pid=123, ip=10.0.0.2)\x1b[0m text", and what Ray appends to lines that several processes print.
_WORKER = re.compile(r"^\((?P<who>[^()]*\bpid=\d+[^()]*)\) ?(?P<text>.*)$")
_COLOUR, _REPEATED = re.compile(r"\x1b\[[0-9;]*m"), re.compile(r" \[repeated \d+x across cluster\].*$")
HEAD = "Traceback (most recent call last)"
MOST_LINES = 5  # of a message


@dataclass(frozen=True)
class Failure:
    """An exception in a log.

    Attributes:
        line: where its traceback begins, counted from 1.
        process: who printed it, as Ray names it.
        text: type and message.
    """

    line: int
    process: str
    text: str


def first_of_workers(log: Path, offset: int = 0) -> Failure | None:
    """The first traceback that a worker printed after a place in the log; None if there is none.

    Args:
        log: the run's log.
        offset: the place in bytes; what stands before it is of an earlier start of the run.
    """
    begun: dict[str, int] = {}  # process -> line of a traceback that has not come to its exception
    found: Failure | None = None
    place = 0
    with log.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            place += len(raw)
            if place <= offset:
                continue
            match = _WORKER.match(_COLOUR.sub("", raw.decode(errors="replace")).rstrip())
            if match is None:
                continue
            who, text = match["who"], _REPEATED.sub("", match["text"])
            if HEAD in text:
                begun.setdefault(who, number)
            elif who in begun and text.strip() and not text.startswith((" ", "\t", "|")):
                candidate = Failure(begun.pop(who), who, text.strip())
                if found is None or candidate.line < found.line:
                    found = candidate
            if found is not None and all(line > found.line for line in begun.values()):
                return found
    return found


def root_cause(error: BaseException) -> str:
    """The exception at the bottom of Ray's layers, in words."""
    while True:
        inner = getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or inner is error:
            break
        error = inner
    text = str(error).strip()
    if HEAD in text or "ray::" in text:
        return _innermost(text)  # Ray puts the workers' tracebacks into the message
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _innermost(text: str) -> str:
    """The exception after the last traceback in a text, with its message's first lines."""
    lines = text.splitlines()
    inside = [i for i, line in enumerate(lines) if line.startswith((" ", "ray::")) or HEAD in line]
    after = lines[inside[-1] + 1 :] if inside and inside[-1] + 1 < len(lines) else lines[-1:]
    return "\n".join(after[:MOST_LINES])


def explain(error: BaseException, log: Path, offset: int = 0) -> str:
    """Write an exception's traceback to standard error, which goes to the log, and say what failed first and where.

    Args:
        error: what ended the run.
        log: where standard error goes, and the workers' output.
        offset: size of the log in bytes when the run was started.

    Returns:
        A few lines for a person.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    first = first_of_workers(log, offset)
    with log.open("rb") as lines:
        own = sum(1 for _ in lines) + 1
    traceback.print_exception(error)
    sys.stderr.flush()
    last = root_cause(error)
    if first is None:
        return f"{last}\n(line {own} of {log.name})"
    said = f"{first.text}\n({first.process}, line {first.line} of {log.name})"
    same = first.text in last or last.splitlines()[0] in first.text
    return said if same else f"{said}\nwhich ended in: {last} (line {own})"
