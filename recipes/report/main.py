"""Rebuild the reports of runs and evaluations, and compare runs: `python -m recipes.report.main <directories…>`.

Each argument is the directory of a training run or of an evaluation, or one with such below it. The report.html of each
is written anew; several runs are also put side by side in one page (--out). Evaluations are compared by
`recipes.evaluate.main` with compare=.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.report.evaluation import find_evaluations
from recipes.report.page import comparison_page, write_evaluation_report, write_page, write_report
from recipes.report.run_data import NotARun, find_runs, load_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "places", nargs="+", type=Path, metavar="DIRECTORY", help="of a run or an evaluation, or with such below it"
    )
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="where the comparison is written")
    options = parser.parse_args()
    places = [path.resolve() for path in options.places]
    evaluations = list(dict.fromkeys(d for path in places for d in find_evaluations(path)))
    try:
        # A folder of evaluations alone needs no run in it.
        runs = list(dict.fromkeys(d for path in places for d in find_runs(path, needed=not find_evaluations(path))))
    except NotARun as error:
        print(error, file=sys.stderr)
        return 2
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
        print(write_page(options.out, comparison_page([load_run(d) for d in readable], notices)))
    return 0 if readable or evaluated else 2


if __name__ == "__main__":
    sys.exit(main())
