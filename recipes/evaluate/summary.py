"""summary.json: the numbers of an evaluation with everything that a reader of them should know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.evaluate import checkpoints
from recipes.evaluate.breakdowns import by_difficulty, by_exposure, by_length
from recipes.evaluate.estimates import Evaluation, read_evaluations, summarize
from recipes.evaluate.members import Member
from recipes.evaluate.plan import Plan, changed_settings, read_settings
from recipes.evaluate.results import RESULTS, Incidents, read_records

FORMAT = 1
SUMMARY = "summary.json"


TRAINED = ("verl", "adapter")  # kinds of models that a training run left; the others are bases


def summary_of(
    plan: Plan,
    prm: str | None,
    threshold: float,
    incidents: Incidents,
    *,
    status: str = "done",
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that summary.json holds.

    Args:
        plan: of the evaluation.
        prm: name of the process reward model; None where there was none.
        threshold: a step is right if its score is at least this.
        incidents: what went wrong without ending the evaluation, and what was sampled.
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
            **_of_a_run(plan, m),
            **_of_a_teacher(m),
        }
        for m in plan.members
    ]
    warnings = list(plan.notes)
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
    warnings += _warnings(counts, expected, incidents)
    if any(p.grader == "code" for s in plan.sets for p in s.problems) and plan.code.isolation != "required":
        warnings += [
            f"programs were run although {what} (code.isolation=available)" for what in plan.code.pool.missing()
        ]
    trained = [run["label"] for run in runs if run.get("kind") in TRAINED]
    unpaired = _between(runs) | {run["label"] for run in runs if not run.get("comparable", True)}
    numbers = summarize(evaluations, trained, unpaired)
    curves = checkpoints.curves(numbers["metrics"], runs)
    best = checkpoints.best(curves, plan.selection, plan.trained)
    warnings += checkpoints.bias_note(best)
    return {
        "format": FORMAT,
        "status": status,
        "preset": preset,
        "config": dict(config or {}),
        "settings": plan.settings,
        "data": [{"name": s.name, "file": s.file, "sha256": s.sha256, "problems": len(s.problems)} for s in plan.sets],
        "prm": prm,
        "runs": runs,
        **numbers,
        "curves": curves,
        "best": best,
        "by_difficulty": by_difficulty(
            evaluations, {s.name: {p.id: p.difficulty for p in s.problems} for s in plan.sets}
        ),
        "by_length": by_length(evaluations),
        "by_exposure": by_exposure(numbers["metrics"], runs),
        "counts": counts,
        "corrupt_lines": dict(incidents.corrupt),
        "failures": list(incidents.failures),
        "sampled": list(incidents.sampled),
        "warnings": warnings,
    }


def _of_a_run(plan: Plan, member: Member) -> dict[str, Any]:
    """What an entry of ``runs`` says of a checkpoint on a curve."""
    if member.run is None or member.located.step is None:
        return {}
    record = plan.trained.get(member.run)
    alpha = record.exposure.get(member.located.step) if record is not None else None
    return {"run": member.run, **({"exposure": alpha} if alpha is not None else {})}


def _of_a_teacher(member: Member) -> dict[str, Any]:
    if member.privileged is None:
        return {}
    shown = {"context": member.privileged.context, "exposure": member.privileged.exposure}
    return {"teacher": {"student": member.student, **shown}}


def _between(runs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Labels of checkpoints that are not their run's last: they are on its curve, and in no pair."""
    steps: dict[str, dict[str, int]] = {}
    for run in runs:
        if run.get("run") is not None:
            steps.setdefault(run["run"], {})[run["label"]] = run["step"]
    return {label for own in steps.values() for label, step in own.items() if step < max(own.values())}


def _compared(
    place: Path, plan: Plan, prm: str | None, threshold: float, taken: set[str]
) -> tuple[list[Evaluation], list[dict[str, Any]], list[str]]:
    """(evaluations, run entries, warnings) of an earlier evaluation's directory."""
    before = read_settings(place) or {}
    differing = sorted(key for key in changed_settings(plan, before) if key != "engine")
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
        entry |= {"label": label, "directory": str(place), "comparable": not differing}
        if model.get("run") is not None:  # its curve is another than that of a run with its name here
            entry["run"] = model["run"] + label.removeprefix(model["label"])
        if record["seed"] not in entry["seeds"]:
            entry["seeds"].append(record["seed"])
    notes = [
        f"{place} was sampled with {key}={before['settings'].get(key)}, not {plan.settings[key]}: its differences "
        "would not be those of the models alone, and are left out"
        for key in differing
    ]
    ids = {s.name: {p.id for p in s.problems} for s in plan.sets}
    return read_evaluations(place, labels, ids, plan.ks, prm, threshold), list(runs.values()), notes


def _warnings(counts: Sequence[Mapping[str, Any]], expected: Mapping[str, int], incidents: Incidents) -> list[str]:
    """What a reader of the numbers should know, in sentences."""
    found = [
        f"{entry['label']}: {entry['problems']} problem{'s' * (entry['problems'] > 1)} without an answer: "
        f"{entry['reason']}"
        for entry in incidents.failures
    ]
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
    for name, lines in incidents.corrupt.items():
        if lines:
            found.append(f"{lines} corrupt line{'s' * (lines > 1)} of {name} set aside; these problems were done again")
    return found


def to_json(summary: Mapping[str, Any]) -> str:
    """summary.json's text."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"
