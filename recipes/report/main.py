"""Rebuild the reports of runs, and compare them: `python -m recipes.report.main <runs…>`.

Each argument is a run directory or a directory with runs below it. Every run's report.html is written anew; several
runs are also put side by side in one page (--out).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.report.page import comparison_page, write_page, write_report
from recipes.report.run_data import NotARun, find_runs, load_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or one with runs below it")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="where the comparison is written")
    options = parser.parse_args()
    try:
        directories = list(dict.fromkeys(d.resolve() for path in options.runs for d in find_runs(path)))
    except NotARun as error:
        print(error, file=sys.stderr)
        return 2
    readable, notices = [], []
    for directory in directories:
        try:
            print(write_report(directory))
            readable.append(directory)
        except NotARun as error:
            notices.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
    if len(readable) > 1:
        print(write_page(options.out, comparison_page([load_run(d) for d in readable], notices)))
    return 0 if readable else 2


if __name__ == "__main__":
    sys.exit(main())
