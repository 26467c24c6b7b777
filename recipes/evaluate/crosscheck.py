"""The responses of an evaluation graded once more by an established harness: both verdicts, each difference explained.

    python -m recipes.evaluate.crosscheck <evaluation> --harness lm_eval --python <an interpreter that has it>

The harness runs in a process of its own, with the interpreter that has it: lm-eval and inspect-ai want other versions
of what this project pins.  A verdict that takes longer than `DEADLINE_S` ends that process; it counts as the harness's
failure, and a new one goes on.  Writes ``crosscheck_<harness>.jsonl`` beside the results: a line a response.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipes.command_line import Command, help_asked, refused
from recipes.common.record.run_dir import write_atomically
from recipes.evaluate import _harness
from recipes.evaluate.metrics import difference, ratio
from recipes.evaluate.results import RESULTS, read_records

HARNESSES = tuple(dict.fromkeys(harness for harness, _ in _harness.GRADES))
DEADLINE_S = 60.0  # of one verdict
START_S = 180.0  # they import for long
SHOWN = 5  # differences of each kind on the console

COMMAND = Command(
    module="recipes.evaluate.crosscheck",
    what=(
        "Grade the responses of an evaluation once more with lm-eval or inspect-ai, and explain each difference. "
        "Needs an interpreter where the harness is installed; an environment of its own is best."
    ),
    examples=(
        ("outputs/evaluate/<evaluation> --harness lm_eval --python <venv>/bin/python", "all sets it can grade"),
        ("outputs/evaluate/<evaluation> --harness inspect_ai --python <venv>/bin/python --data math_500", "one set"),
    ),
    keys=(
        ("<directory>", "of an evaluation: its results.jsonl"),
        ("--harness <name>", " | ".join(HARNESSES)),
        ("--python <interpreter>", "that has the harness; this one"),
        ("--data <set>", "only this set; all that the harness has a grader for"),
    ),
    more="What the harnesses compare, and what was found: recipes/evaluate/README.md.",
    not_started="Nothing was compared:",
)

Row = dict[str, Any]


class HarnessError(RuntimeError):
    """The harness cannot be used here."""


class Harness:
    """A harness's grader in a process of its own; a context manager, for its process must not outlive us."""

    def __init__(self, python: str, harness: str, grader: str):
        """Remember what to start; it is started when first needed.

        Args:
            python: interpreter that has the harness.
            harness: one of `HARNESSES`.
            grader: of the set; (harness, grader) is one of `_harness.GRADES`.
        """
        self._command = [python, "-I", _harness.__file__, harness, grader]
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise HarnessError(f"{self._command[0]} cannot be started: {error}") from error
        self._process, self._lines = process, queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True).start()
        said: list[str] = []
        threading.Thread(target=_keep_last, args=(process.stderr, said), daemon=True).start()
        if not self._reply(START_S):
            process.kill()
            process.wait()
            why = said[-1] if said else f"it was not ready within {START_S:.0f} s"
            self._process = None
            raise HarnessError(f"{self._command[3]} cannot be used with {self._command[0]}: {why}; install it there")

    def _reply(self, seconds: float) -> Row | None:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return json.loads(line) if line else None

    def grade(self, text: str, gold: str) -> Row:
        """Grade one response.

        Args:
            text: the response.
            gold: the right answer.

        Returns:
            ``{right, answer, error}``; with an error the harness has no verdict.

        Raises:
            HarnessError: if the harness cannot be started.
        """
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"text": text, "gold": gold}) + "\n")
            self._process.stdin.flush()
            reply = self._reply(DEADLINE_S)
        except OSError:
            reply = None
        if reply is None:
            self._end()
            return {"right": False, "answer": None, "error": f"no verdict within {DEADLINE_S:.0f} s"}
        return reply


def _read(stream: Any, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")  # the end


def _keep_last(stream: Any, said: list[str]) -> None:
    for line in stream:
        if line.strip():
            said[:] = [line.strip()[:300]]


def why(grader: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Explain what two verdicts differ in.

    Args:
        grader: of the set.
        ours: a response of results.jsonl: ``status, extracted``.
        theirs: of `Harness.grade`.

    Returns:
        A few words; "" if they agree.
    """
    right = ours["status"] == "correct"
    if right == theirs["right"] and not theirs["error"]:
        return ""
    if theirs["error"]:
        return "the harness failed"
    if ours["status"] in ("timeout", "error"):
        return "ours ended without a verdict"
    if ours["status"] == "no_answer":
        return "the harness finds an answer where ours finds none"
    if theirs["answer"] is None:
        return "the harness finds no answer"
    if "".join(str(ours["extracted"]).split()) != "".join(str(theirs["answer"]).split()):
        return "they read different answers"
    return f"the same answer, ours {'equal' if right else 'not equal'} to the gold one"


def compared(records: Iterable[Row | None], harness: Harness, grader: str, data: str) -> Iterator[Row]:
    """Grade every response to a set once more.

    Args:
        records: of results.jsonl; those of other sets, and corrupt ones, are passed over.
        harness: the other grader.
        grader: of the set.
        data: its name.

    Yields:
        Both verdicts on a response, and why they differ.
    """
    for record in records:
        if record is None or record["data"] != data:
            continue
        for number, response in enumerate(record["responses"]):
            theirs = harness.grade(response["text"], record["gold"])
            yield {
                **{key: record[key] for key in ("model", "seed", "data", "id")},
                "response": number,
                "gold": record["gold"],
                "ours": {"right": response["status"] == "correct", "status": response["status"],
                         "answer": response["extracted"]},
                "theirs": theirs,
                "why": why(grader, response, theirs),
            }  # fmt: skip


def accuracies(rows: Iterable[Row]) -> Row:
    """Compare two graders on the same responses.

    Args:
        rows: of `compared`, at least one.

    Returns:
        ``ours, theirs, difference`` (ours − theirs, paired by problem) and ``ci95``, half of its interval; shares of 1.
    """
    problems: dict[tuple, list[tuple[bool, bool]]] = {}
    for row in rows:
        key = (row["model"], row["seed"], row["id"])
        problems.setdefault(key, []).append((row["ours"]["right"], row["theirs"]["right"]))
    sides = [ratio([sum(pair[i] for pair in p) / len(p) for p in problems.values()]) for i in (0, 1)]
    ours, theirs = sides
    assert ours is not None and theirs is not None  # a mean over problems, of which there is one at least
    paired = difference(ours, theirs)
    return {"ours": ours.value, "theirs": theirs.value, "difference": paired.value, "ci95": paired.half_width}


def show(console: Console, data: str, rows: list[Row], harness: str) -> None:
    """Print the numbers of a set, and its differences by what explains them.

    Args:
        console: where.
        data: the set's name.
        rows: of `compared`.
        harness: its name.
    """
    found = accuracies(rows)
    differing = Counter(row["why"] for row in rows if row["why"])
    console.print(
        f"[bold]{escape(data)}[/]: {len(rows):,} responses, right {100 * found['ours']:.2f} % by ours, "
        f"{100 * found['theirs']:.2f} % by {harness}, difference {100 * found['difference']:+.2f} ± "
        f"{100 * found['ci95']:.2f} points; {sum(differing.values())} verdicts differ"
    )
    if not differing:
        return
    table = Table(title="The verdicts that differ", title_justify="left")
    for heading in ("why", "responses", "gold", "ours", harness):
        table.add_column(heading, overflow="fold", justify="right" if heading == "responses" else "left")
    for reason, count in differing.most_common():
        examples = [row for row in rows if row["why"] == reason][:SHOWN]
        for number, row in enumerate(examples):
            verdicts = [
                f"{'right' if side['right'] else 'wrong'}: {side.get('error') or side['answer']}"
                for side in (row["ours"], row["theirs"])
            ]
            first = (reason, f"{count:,}") if number == 0 else ("", "")
            table.add_row(*map(escape, (*first, *(text[:80] for text in (row["gold"], *verdicts)))))
    console.print(table)


def main() -> int:
    help_asked(COMMAND)
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND.module}", add_help=False)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--harness", choices=HARNESSES, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--data")
    options = parser.parse_args()
    results = options.directory / RESULTS
    if not results.exists():
        return refused(COMMAND, [f"{results} is not there: give the directory of an evaluation"])
    graders = {r["data"]: r.get("grader", "math") for r in read_records(results) if r is not None}
    if options.data is not None and options.data not in graders:
        return refused(COMMAND, [f"--data {options.data}: the evaluation has {', '.join(graders)}"])
    wanted = {data: g for data, g in graders.items() if options.data in (None, data)}
    possible = {data: g for data, g in wanted.items() if (options.harness, g) in _harness.GRADES}
    if not possible:
        named = ", ".join(f"{data} ({g})" for data, g in wanted.items())
        return refused(COMMAND, [f"--harness {options.harness} has no grader here for {named}"])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for data in wanted.keys() - possible.keys():
        console.print(f"{escape(data)} is left out: {options.harness} has no grader here for {wanted[data]}")
    written: list[Row] = []
    try:
        for data, grader in possible.items():
            with Harness(options.python, options.harness, grader) as harness:
                rows = list(compared(read_records(results), harness, grader, data))
            written += rows
            show(console, data, rows, options.harness)
    except HarnessError as error:
        return refused(COMMAND, [str(error)])
    path = options.directory / f"crosscheck_{options.harness}.jsonl"
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in written))
    console.print(f"every verdict: {escape(str(path))}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
