"""Rebuilds the reports of runs and evaluations, and compares runs: `python -m recipes.report.main <directories…>`.

Each argument is the directory of a training run or of an evaluation, or one with such below it. The report.html of each
is written anew; several runs are also put side by side in one page (--out), where `name=directory` gives the runs of a
directory a name. Evaluations are compared by `recipes.evaluate.main` with compare=.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.command_line import Command, help_asked, refused
from recipes.report.evaluation import find_evaluations
from recipes.report.page import comparison_page, write_evaluation_report, write_page, write_report
from recipes.report.run_data import NotARun, find_runs, load_run

COMMAND = Command(
    module="recipes.report.main",
    what=(
        "Write the report.html of training runs and evaluations anew, also while they run. Several runs are put side "
        "by side in one page: settings with their seeds, intervals and paired differences."
    ),
    examples=(
        ("outputs/starter/dasd/<run>", "a run's report"),
        ("outputs/starter/dasd outputs/starter/grpo", "all runs below, and their comparison"),
        ("baseline=runs/grpo mine=runs/dasd", "the comparison with names of your own"),
        ("outputs/starter_sweep --out sweep.html", "where the comparison is written"),
        ("outputs/evaluate/<evaluation>", "an evaluation's report, from its summary.json"),
    ),
    keys=(
        ("<directory>", "of a run or an evaluation, or with such below it; any number of them"),
        ("<name>=<directory>", "the same; its runs have this name in the comparison"),
        ("--out <file>", "where the comparison of several runs is written; comparison.html"),
    ),
    more="What the pages show: recipes/report/README.md.",
    not_started="No report was written:",
)


def named_place(text: str) -> tuple[str | None, Path]:
    """Read an argument of the command line.

    Args:
        text: ``name=directory`` or a directory, which may have an equals sign in its name too.

    Returns:
        (name, None if there is none; the directory, absolute).
    """
    name, equals, place = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        return None, Path(text).resolve()
    return name, Path(place).resolve()


def main() -> int:
    """The command line.

    Returns:
        The exit code: 0; 2 if an argument is wrong or no report could be written.
    """
    help_asked(COMMAND)
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND.module}", add_help=False)
    parser.add_argument("places", nargs="+", type=named_place, metavar="DIRECTORY or NAME=DIRECTORY")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"))
    options = parser.parse_args()
    places = [path for _, path in options.places]
    named = {path: name for name, path in options.places if name is not None}
    if "" in named.values():
        return refused(
            COMMAND, [f"={path}: there is no name before the equals sign" for path, n in named.items() if not n]
        )
    evaluations = list(dict.fromkeys(d for path in places for d in find_evaluations(path)))
    try:
        # A folder of evaluations alone needs no run in it.
        runs = list(dict.fromkeys(d for path in places for d in find_runs(path, needed=not find_evaluations(path))))
    except NotARun as error:
        return refused(COMMAND, [str(error)])
    readable, notices, evaluated = [], [], 0
    for directory in runs:
        try:
            print(write_report(directory))
            readable.append(directory)
        except NotARun as error:
            notices.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
    for directory in evaluations:
        try:
            print(write_evaluation_report(directory))
            evaluated += 1
        except NotARun as error:
            print(f"left out: {error}", file=sys.stderr)
    if len(readable) > 1:
        compared = [load_run(directory) for directory in readable]
        names = {run.directory: _name_of(run.directory, named) for run in compared}
        page = comparison_page(compared, notices, {place: name for place, name in names.items() if name})
        print(write_page(options.out, page))
    return 0 if readable or evaluated else 2


def _name_of(directory: Path, named: dict[Path, str]) -> str | None:
    """The name that was given to a run's directory, or to the closest one above it."""
    return next((named[path] for path in (directory, *directory.parents) if path in named), None)


if __name__ == "__main__":
    sys.exit(main())
