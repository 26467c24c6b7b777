"""Metrics as people read them, on the console and on the page: headings, units, digits, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Columns = dict[str, tuple[str, float, int]]  # metric -> (heading, factor, digits)

AVERAGE = "average"  # the name of the mean over sets

EXPLORATION: Columns = {
    "e_per_1k": ("E(y) / 1k", 1.0, 2),
    "e_per_response": ("E(y) / response", 1.0, 2),
    "rev_rate": ("RevRate", 1.0, 2),
    "dist_3": ("Dist-3", 1.0, 2),
    "length": ("tokens", 1.0, 0),
    "truncated": ("truncated %", 100.0, 1),
}
EXECUTION: Columns = {
    "step_acc": ("StepAcc %", 100.0, 1),
    "csr": ("CSR %", 100.0, 1),
    "fes": ("FES", 1.0, 1),
    "error_free": ("error-free %", 100.0, 1),
}

# Field of summary.json -> (heading, column, form of a level): accuracy where problems or responses fall into levels.
BREAKDOWNS = {
    "by_difficulty": ("difficulty", "difficulty", "{:g}"),
    "by_length": ("quarter of the response's length", "tokens", "{:g}"),
    "by_exposure": ("the teacher's exposure", "α", "{:g}"),
}


def accuracy_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Avg@n, Pass@k by k, Maj@n, as far as they occur; without Pass@1, which is Avg@n."""
    split = {tuple(row["metric"].split("@")) for row in rows if "@" in row["metric"]}
    order = ("avg", "pass", "maj")
    names = sorted((order.index(kind), int(k)) for kind, k in split if (kind, k) != ("pass", "1"))
    return [f"{order[kind]}@{k}" for kind, k in names]


def accuracy_columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """The accuracies that occur, in per cent."""
    return {name: (name.capitalize(), 100.0, 1) for name in accuracy_names(rows)}


def main_metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Avg@n, the last Pass@k and Maj@n: the accuracies in which models are compared."""
    names = accuracy_names(rows)
    passes = [name for name in names if name.startswith("pass@")]
    return [name for name in names if name not in passes[:-1]]


def problems_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many problems rows stand on: a number, or a range where models differ, as they do by length."""
    counts = sorted({row["problems"] for row in rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
