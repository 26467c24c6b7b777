"""Parts for tests of `benchmarks.gpu_check`'s supervision: each is run in a process of its own."""

from __future__ import annotations

import os
import time

from benchmarks.gpu_check import Report


def good(report: Report) -> None:
    report.bound("two is at most three", 2.0, at_most=3.0, unit="of three")
    report.aim("two is at most one", 2.0, at_most=1.0)
    report.measured("seven", 7.0)


def wrong(report: Report) -> None:
    report.bound("four is at most three", 4.0, at_most=3.0)
    report.bound("nan is at most three", float("nan"), at_most=3.0)


def one_failure(report: Report) -> None:
    with report.attempt("the first"):
        raise RuntimeError("broken\nsecond line")
    report.bound("the second", 1.0, at_most=1.0)


def dies(report: Report) -> None:
    report.bound("before", 1.0, at_most=1.0)
    with report.file.open("a") as out:
        out.write('{"part": 1, "check": "half a row')
    os._exit(7)


def sleeps(report: Report) -> None:
    report.bound("before", 1.0, at_most=1.0)
    time.sleep(60)


def slow_items(report: Report) -> None:
    for name, seconds in report.each({"a": 0.6, "b": 0.6, "c": 0.6}):
        time.sleep(seconds)
        report.measured(name, seconds)
