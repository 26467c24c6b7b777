"""From results on disk to estimates: what each model did on each problem, means with intervals, paired differences.

Reads results.jsonl as a stream (responses can make it gigabytes) and keeps only each problem's sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from recipes.evaluate.names import AVERAGE
from recipes.evaluate.plan import result_key
from recipes.evaluate.results import RESULTS, STEPS, read_records
from recipes.starter.corpus import DATA_SOURCE as STARTER_SOURCE


@dataclass(frozen=True)
class Evaluation:
    """One label's results on one set with one model and seed: problem id -> metric -> (sum, weight)."""

    label: str
    model: str
    seed: int
    data: str
    problems: dict[str, health.Sums]
    counts: Counter
    lengths: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)  # (tokens, right) of each response


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
        evaluation.lengths[record["id"]] = [(r["tokens"], r["status"] == "correct") for r in record["responses"]]
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


def common_ids(runs: Iterable[Evaluation]) -> list[str]:
    """Problems that all runs have answered, in order of their place in the file."""
    shared = set.intersection(*(set(run.problems) for run in runs))
    return sorted(shared, key=lambda i: (int(i.partition("-")[0]), i))


def places_of(evaluations: Iterable[Evaluation]) -> dict[tuple[str, str], list[Evaluation]]:
    """(label, set) -> the evaluations there, which are seeds of one another."""
    places: dict[tuple[str, str], list[Evaluation]] = {}
    for e in evaluations:
        places.setdefault((e.label, e.data), []).append(e)
    return places


def summarize(
    evaluations: Sequence[Evaluation], trained: Iterable[str] = (), unpaired: Container[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """``metrics`` and ``differences`` as flat lists of records; the fields are in the README.

    A difference is the first label's minus the second's, in the order of the evaluations, but trained − base where one
    of a pair is among `trained`.  Labels in `unpaired` are in no pair.
    """
    trained = set(trained)
    labels = list(dict.fromkeys(e.label for e in evaluations))
    sets = list(dict.fromkeys(e.data for e in evaluations))
    by_place = places_of(evaluations)

    metrics = []
    for label in labels:
        per_set = {}
        for data in sets:
            runs = by_place.get((label, data))
            ids = common_ids(runs) if runs else []
            if runs and ids:
                per_set[data] = estimates_of(runs, ids)
                metrics += [
                    row_of(e, values, label=label, data=data, metric=m) for m, (e, values) in per_set[data].items()
                ]
        metrics += [
            row_of(e, values, label=label, data=AVERAGE, metric=m) for m, (e, values) in _average(per_set).items()
        ]

    differences = []
    for pair in combinations([label for label in labels if label not in unpaired], 2):
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
                    differences.append(row_of(paired, [], a=one, b=other, data=data, metric=metric))
    return {"metrics": metrics, "differences": differences}


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


def row_of(estimate: Estimate, values: Sequence[float], **where: str) -> dict[str, Any]:
    """A record of an estimate; with its values over seeds where there are several."""
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
