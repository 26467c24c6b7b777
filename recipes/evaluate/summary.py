"""From results on disk to numbers: means with intervals, seeds, paired differences, counts of what went wrong.

Reads results.jsonl as a stream (responses can make it gigabytes) and keeps only each problem's sums.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from recipes.evaluate import health
from recipes.evaluate.metrics import (
    Estimate,
    difference,
    finite,
    over_seeds,
    over_sets,
    pass_at_k,
    ratio,
    sample_std,
)
from recipes.evaluate.plan import Plan, changed_settings, read_settings, result_key
from recipes.evaluate.results import RESULTS, STEPS, read_records
from recipes.starter.corpus import DATA_SOURCE as STARTER_SOURCE

AVERAGE = "average"  # the name of the mean over sets
MOST_LEVELS = 20  # of difficulty that are shown as they are
FORMAT = 1
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Evaluation:
    """One label's results on one set with one model and seed: problem id -> metric -> (sum, weight)."""

    label: str
    model: str
    seed: int
    data: str
    problems: dict[str, health.Sums]
    counts: Counter


def measures(
    record: Mapping[str, Any], ks: Iterable[int], scores: Sequence[Sequence[float]] | None, threshold: float
) -> health.Sums:
    """Every metric of a problem as (sum, weight).

    Args:
        record: a line of results.jsonl.
        ks: k of Pass@k; those beyond the record's number of samples are left out.
        scores: the process reward model's, one list a response; None where there is none.
    """
    responses = record["responses"]
    n, correct = len(responses), [r["status"] == "correct" for r in responses]
    texts = [r["text"] for r in responses]
    winner = record["majority"]
    sums: health.Sums = {f"avg@{n}": (sum(correct) / n, 1.0)}
    sums |= {f"pass@{k}": (pass_at_k(n, sum(correct), k), 1.0) for k in ks if k <= n}
    if record.get("grader") != "code":
        sums[f"maj@{n}"] = (float(winner is not None and correct[winner]), 1.0)
    sums |= health.exploration(texts, [r["tokens"] for r in responses], [r["stop"] == "length" for r in responses])
    if record["source"] == STARTER_SOURCE:
        sums |= health.execution([health.arithmetic_verdicts(record["problem"], text) for text in texts])
    elif scores is not None:
        sums |= health.execution([[score >= threshold for score in response] for response in scores])
    return sums


def read_evaluations(
    directory: Path,
    labels: Mapping[tuple[str, int], str],
    ids: Mapping[str, Container[str]],
    ks: Sequence[int],
    prm: str | None,
    threshold: float,
) -> list[Evaluation]:
    """What a directory's results say about the models, seeds and problems asked for; other records are passed over.

    Args:
        labels: (model fingerprint, seed) -> label.
        ids: set -> ids of its problems.
    """
    scores = {
        result_key(r): r
        for r in read_records(directory / STEPS)
        if r is not None and prm is not None and r["prm"] == prm
    }
    found: dict[tuple[str, int, str], Evaluation] = {}
    for record in read_records(directory / RESULTS):
        if record is None or (record["model"], record["seed"]) not in labels:
            continue
        if record["id"] not in ids.get(record["data"], ()):
            continue
        key = (record["model"], record["seed"], record["data"])
        label = labels[key[:2]]
        evaluation = found.setdefault(key, Evaluation(label, *key, {}, Counter()))
        scored = scores.get(result_key(record))
        evaluation.problems[record["id"]] = measures(record, ks, scored["scores"] if scored else None, threshold)
        counts = evaluation.counts
        counts["responses"] += len(record["responses"])
        counts.update(r["status"] for r in record["responses"])
        counts.update(f"program_{r['verdict']}" for r in record["responses"] if "verdict" in r)
        counts["truncated"] += sum(r["stop"] == "length" for r in record["responses"])
        counts["tokens"] += sum(r["tokens"] for r in record["responses"])
        counts["unscored_steps"] += scored["unscored"] if scored else 0
    return list(found.values())


def estimates_of(runs: Sequence[Evaluation], ids: Sequence[str]) -> dict[str, tuple[Estimate, list[float]]]:
    """Metric -> (mean over the runs, each run's value), over the given problems, for one label on one set."""
    names = [name for name in runs[0].problems[ids[0]] if all(name in run.problems[ids[0]] for run in runs)]
    result = {}
    for name in names:
        estimates = []
        for run in runs:
            pairs = [run.problems[i].get(name, (0.0, 0.0)) for i in ids]
            estimates.append(ratio([a for a, _ in pairs], [b for _, b in pairs]))
        known = [e for e in estimates if e is not None]
        if len(known) == len(runs):
            result[name] = (over_seeds(known), [e.value for e in known])
    return result


TRAINED = ("verl", "adapter")  # kinds of models that a training run left; the others are bases


def common_ids(runs: Iterable[Evaluation]) -> list[str]:
    """Problems that all runs have answered, in order of their place in the file."""
    shared = set.intersection(*(set(run.problems) for run in runs))
    return sorted(shared, key=lambda i: (int(i.partition("-")[0]), i))


def summarize(evaluations: Sequence[Evaluation], trained: Iterable[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """``metrics`` and ``differences`` as flat lists of records; the fields are in the README.

    A difference is the first label's minus the second's, in the order of the evaluations, but trained − base where one
    of a pair is among `trained`.
    """
    trained = set(trained)
    labels = list(dict.fromkeys(e.label for e in evaluations))
    sets = list(dict.fromkeys(e.data for e in evaluations))
    by_place: dict[tuple[str, str], list[Evaluation]] = {}
    for e in evaluations:
        by_place.setdefault((e.label, e.data), []).append(e)

    metrics = []
    for label in labels:
        per_set = {}
        for data in sets:
            runs = by_place.get((label, data))
            ids = common_ids(runs) if runs else []
            if runs and ids:
                per_set[data] = estimates_of(runs, ids)
                metrics += [
                    _row(e, values, label=label, data=data, metric=m) for m, (e, values) in per_set[data].items()
                ]
        metrics += [
            _row(e, values, label=label, data=AVERAGE, metric=m) for m, (e, values) in _average(per_set).items()
        ]

    differences = []
    for pair in combinations(labels, 2):
        one, other = sorted(pair, key=lambda label: label not in trained)
        pairs: tuple[dict, dict] = ({}, {})
        for data in sets:
            sides = by_place.get((one, data)), by_place.get((other, data))
            ids = common_ids([*sides[0], *sides[1]]) if sides[0] and sides[1] else []
            if not ids:
                continue
            for side, runs in zip(pairs, sides, strict=True):
                side[data] = estimates_of(runs or [], ids)
        for side in pairs:
            averages = _average(side)
            if averages:
                side[AVERAGE] = averages
        for data in pairs[0]:
            for metric in pairs[0][data]:
                if metric in pairs[1].get(data, {}):
                    paired = difference(pairs[0][data][metric][0], pairs[1][data][metric][0])
                    differences.append(_row(paired, [], a=one, b=other, data=data, metric=metric))
    return {"metrics": metrics, "differences": differences}


def by_difficulty(
    evaluations: Sequence[Evaluation], difficulties: Mapping[str, Mapping[str, float | None]]
) -> list[dict[str, Any]]:
    """Avg@n of the problems of each difficulty, as records like those of `summarize`, with ``difficulty``.

    Args:
        difficulties: set -> problem id -> difficulty.  Where a set has more than `MOST_LEVELS` different ones they are
            rounded down to whole numbers.
    """
    by_place: dict[tuple[str, str], list[Evaluation]] = {}
    for e in evaluations:
        by_place.setdefault((e.label, e.data), []).append(e)
    rows = []
    for (label, data), runs in by_place.items():
        known = {i: d for i, d in difficulties.get(data, {}).items() if d is not None}
        if len(set(known.values())) > MOST_LEVELS:
            known = {i: float(d // 1) for i, d in known.items()}
        levels: dict[float, list[str]] = {}
        for i in common_ids(runs):
            if i in known:
                levels.setdefault(known[i], []).append(i)
        for level in sorted(levels):
            for metric, (estimate, values) in estimates_of(runs, levels[level]).items():
                if metric.startswith("avg@"):
                    row = _row(estimate, values, label=label, data=data, metric=metric)
                    rows.append({**row, "difficulty": level})
    return rows


def _average(per_set: Mapping[str, Mapping[str, tuple[Estimate, list[float]]]]) -> dict[str, tuple[Estimate, list]]:
    """The mean over sets of the metrics that all of them have, where there are several sets; seed by seed."""
    if len(per_set) < 2:
        return {}
    columns = list(per_set.values())
    result = {}
    for name in columns[0]:
        if all(name in column for column in columns):
            values = [column[name][1] for column in columns]
            seeds = {len(v) for v in values}
            by_seed = [sum(v) / len(v) for v in zip(*values, strict=True)] if len(seeds) == 1 else []
            result[name] = (over_sets([column[name][0] for column in columns]), by_seed)
    return result


def _row(estimate: Estimate, values: Sequence[float], **where: str) -> dict[str, Any]:
    half = estimate.half_width
    row: dict[str, Any] = {
        **where,
        "value": estimate.value,
        "ci95": finite(half),
        "low": finite(estimate.value - half),
        "high": finite(estimate.value + half),
        "problems": estimate.problems,
    }
    if len(values) > 1:
        row |= {"seeds": list(values), "std": sample_std(values)}
    return row


def summary_of(
    plan: Plan,
    prm: str | None,
    threshold: float,
    corrupt: Mapping[str, int],
    *,
    status: str = "done",
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that summary.json holds.

    Args:
        corrupt: lines that were set aside, by file.
        status: "done", or "stopped" or "failed" where results may be missing.
        preset, config: what the evaluation was started with, for its report.
    """
    labels = {(m.fingerprint, seed): m.label for m in plan.members for seed in plan.seeds}
    ids = {s.name: {p.id for p in s.problems} for s in plan.sets}
    evaluations = read_evaluations(plan.directory, labels, ids, plan.ks, prm, threshold)
    order = {(m.fingerprint, m.label): number for number, m in enumerate(plan.members)}
    evaluations.sort(key=lambda e: (order[e.model, e.label], e.seed, [s.name for s in plan.sets].index(e.data)))
    runs = [
        {
            "label": m.label,
            "model": m.fingerprint,
            "name": m.located.name,
            "kind": m.located.kind,
            "step": m.located.step,
            "seeds": list(plan.seeds),
            "directory": str(plan.directory),
        }
        for m in plan.members
    ]
    warnings = []
    taken = {m.label for m in plan.members}
    for place in plan.compare:
        others, other_runs, notes = _compared(place, plan, prm, threshold, taken)
        taken |= {run["label"] for run in other_runs}
        evaluations += others
        runs += other_runs
        warnings += notes
    expected = {s.name: len(s.problems) for s in plan.sets}
    counts = [
        {"label": e.label, "model": e.model, "seed": e.seed, "data": e.data, "problems": len(e.problems), **e.counts}
        for e in evaluations
    ]
    warnings += _warnings(counts, expected, corrupt)
    if any(p.grader == "code" for s in plan.sets for p in s.problems) and plan.code.isolation != "required":
        warnings += [
            f"programs were run although {what} (code.isolation=available)" for what in plan.code.pool.missing()
        ]
    return {
        "format": FORMAT,
        "status": status,
        "preset": preset,
        "config": dict(config or {}),
        "settings": plan.settings,
        "data": [{"name": s.name, "file": s.file, "sha256": s.sha256, "problems": len(s.problems)} for s in plan.sets],
        "prm": prm,
        "runs": runs,
        **summarize(evaluations, [run["label"] for run in runs if run.get("kind") in TRAINED]),
        "by_difficulty": by_difficulty(
            evaluations, {s.name: {p.id: p.difficulty for p in s.problems} for s in plan.sets}
        ),
        "counts": counts,
        "corrupt_lines": dict(corrupt),
        "warnings": warnings,
    }


def _compared(
    place: Path, plan: Plan, prm: str | None, threshold: float, taken: set[str]
) -> tuple[list[Evaluation], list[dict[str, Any]], list[str]]:
    """(evaluations, run entries, warnings) of an earlier evaluation's directory."""
    before = read_settings(place) or {}
    labels: dict[tuple[str, int], str] = {}
    runs: dict[str, dict[str, Any]] = {}
    for record in read_records(place / RESULTS):
        if record is None:
            continue
        model = before["models"].get(record["model"], {"label": record["model"]})
        choices = (model["label"], f"{model['label']} ({place.name})", f"{model['label']} ({place})")
        label = next((c for c in choices if c not in taken), choices[-1])
        labels[record["model"], record["seed"]] = label
        entry = runs.setdefault(record["model"], {**model, "model": record["model"], "seeds": []})
        entry |= {"label": label, "directory": str(place)}
        if record["seed"] not in entry["seeds"]:
            entry["seeds"].append(record["seed"])
    differing = sorted(key for key in changed_settings(plan, before) if key != "engine")
    notes = [
        f"{place} was sampled with {key}={before['settings'].get(key)}, not {plan.settings[key]}: its differences are "
        "not those of the models alone"
        for key in differing
    ]
    ids = {s.name: {p.id for p in s.problems} for s in plan.sets}
    return read_evaluations(place, labels, ids, plan.ks, prm, threshold), list(runs.values()), notes


def _warnings(
    counts: Sequence[Mapping[str, Any]], expected: Mapping[str, int], corrupt: Mapping[str, int]
) -> list[str]:
    """What a reader of the numbers should know, in sentences."""
    found = []
    for row in counts:
        where = f"{row['label']} on {row['data']}, seed {row['seed']}"
        if row["problems"] < expected.get(row["data"], 0):
            found.append(f"{where}: {row['problems']} of {expected[row['data']]} problems")
        failed = row.get("timeout", 0) + row.get("error", 0)
        if failed:
            found.append(
                f"{where}: {failed} of {row['responses']} responses could not be graded within the limits and count "
                "as not correct"
            )
        stopped = {v: row.get(f"program_{v}", 0) for v in ("timeout", "memory", "output")}
        if sum(stopped.values()) > 0.05 * row["responses"]:
            named = ", ".join(f"{v} {number}" for v, number in stopped.items() if number)
            found.append(
                f"{where}: {sum(stopped.values())} of {row['responses']} programs reached a limit ({named}) and count "
                "as wrong; code.wall_s, cpu_s, memory_mb and output_kb set them"
            )
        if row.get("truncated", 0) > 0.05 * row["responses"]:
            found.append(
                f"{where}: {row['truncated']} of {row['responses']} responses reached the length limit (max_tokens)"
            )
        if row.get("unscored_steps"):
            found.append(
                f"{where}: {row['unscored_steps']} steps lie beyond the process reward model's context and were left "
                "out of StepAcc, FES and CSR"
            )
    for name, lines in corrupt.items():
        if lines:
            found.append(f"{lines} corrupt line{'s' * (lines > 1)} of {name} set aside; these problems were done again")
    return found


def to_json(summary: Mapping[str, Any]) -> str:
    """summary.json's text."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"
