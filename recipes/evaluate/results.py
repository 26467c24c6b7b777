"""Results on disk: one JSON line a problem, written when the problem is complete, checked when it is read.

Each line ends with the CRC-32 of the rest of it.  A line that was cut by a crash, or damaged since, is moved to
``<name>.corrupt``, counted, and its problem counts as not done; nothing that was written is ever deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.common.checks.errors import SettingsError

RESULTS, STEPS = "results.jsonl", "steps.jsonl"

Record = dict[str, Any]
_CHECK = ', "crc32": "'


@dataclass
class Incidents:
    """What went wrong without ending an evaluation, written down as it happens: it is known whatever ends it.

    Attributes:
        corrupt: lines that were set aside, by file.
        failures: ``{label, model, problems, reason}``: problems that a model could not be asked, or gave no answer to.
        sampled: ``{label, model, responses, tokens, seconds}`` of this start, for throughput.
    """

    corrupt: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    sampled: list[dict[str, Any]] = field(default_factory=list)

    def failed(self, label: str, model: str, reason: str, problems: int = 1) -> None:
        """Count problems without an answer; those of one model that failed alike are one entry.

        Args:
            label: the model's, in tables.
            model: its fingerprint.
            reason: why, in words.
            problems: how many.
        """
        for entry in self.failures:
            if (entry["model"], entry["reason"]) == (model, reason):
                entry["problems"] += problems
                return
        self.failures.append({"label": label, "model": model, "problems": problems, "reason": reason})


def encode(record: Record) -> bytes:
    """One line, with its checksum as the last field."""
    body = json.dumps(record)[:-1]
    return f'{body}{_CHECK}{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> Record | None:
    """The record of a line without its checksum, or None where the line is incomplete or damaged."""
    body, mark, tail = line.rpartition(_CHECK.encode())
    if not mark or tail != f'{zlib.crc32(body):08x}"}}\n'.encode():
        return None
    try:
        return json.loads(body + b"}")
    except ValueError:
        return None


def read_records(path: Path) -> Iterator[Record | None]:
    """The records of a file in order, None for each corrupt line; nothing where there is no file.

    A record whose problem occurs again later is still yielded; `ResultsFile` never writes one twice.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield decode(line)


class ResultsFile:
    """Appends records to a file that one process at a time may have open.

    Attributes:
        corrupt: number of lines that were set aside on opening.
        done: keys of the records that are there.
    """

    def __init__(self, path: Path, key: Callable[[Record], Any]):
        """Open the file, and read what is there.

        Args:
            path: the file; it is made if need be.
            key: what names a record.

        Raises:
            SettingsError: if another process has the file open.
        """
        self.path, self._key = path, key
        self.done: set[Any] = set()
        self.corrupt = 0
        self._lock = path.with_name(f".{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise SettingsError(
                [f"{path.parent}: another evaluation writes there now; wait for it, or choose another hydra.run.dir"]
            ) from None
        self._set_aside_corrupt_lines()
        for record in read_records(path):
            if record is not None:
                self.done.add(key(record))
        self._file = path.open("ab")

    def _set_aside_corrupt_lines(self) -> None:
        self.corrupt = sum(record is None for record in read_records(self.path))
        if not self.corrupt:
            return
        sound = self.path.with_name(f".{self.path.name}.sound")
        with self.path.open("rb") as lines, sound.open("wb") as kept, corrupt_file(self.path).open("ab") as aside:
            for line in lines:
                (kept if decode(line) is not None else aside).write(line if line.endswith(b"\n") else line + b"\n")
            for file in (kept, aside):
                file.flush()
                os.fsync(file.fileno())
        sound.replace(self.path)

    def append(self, record: Record) -> None:
        """Write a record; it is on disk when this returns."""
        self._file.write(encode(record))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(self._key(record))

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()


def corrupt_file(path: Path) -> Path:
    """Where the corrupt lines of a results file go."""
    return path.with_name(f"{path.name}.corrupt")
