"""Evaluation directories for the tests of reports: written by hand, so that every number in them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.common.models import Located
from recipes.common.record.run_dir import write_atomically
from recipes.evaluate.members import Member
from recipes.evaluate.plan import Plan, write_settings
from recipes.evaluate.problems import Problem, ProblemSet
from recipes.evaluate.results import RESULTS, Incidents, encode
from recipes.evaluate.summary import SUMMARY, summary_of, to_json
from workers.rollout.generation import SamplingParams

SETTINGS = {"samples": 4, "temperature": 1.0, "top_p": 0.9, "top_k": -1, "max_tokens": 96, "engine": "transformers",
            "dtype": "float32"}  # fmt: skip


def response(
    status: str = "correct", text: str = "so \\boxed{7}", stop: str = "completed", extracted: str = "7"
) -> dict:
    return {"text": text, "tokens": 9, "stop": stop, "status": status, "extracted": extracted}


def answers(statuses: str) -> list[dict[str, Any]]:
    """Responses from letters: r(ight), w(rong), n(o answer), t(imeout), e(rror), c(ut and wrong)."""
    kinds = {"r": "correct", "w": "wrong", "n": "no_answer", "t": "timeout", "e": "error", "c": "wrong"}
    return [response(kinds[s], f"text {s}", "length" if s == "c" else "completed") for s in statuses]


def _member(label: str, run: str | None, step: int | None) -> Member:
    kind = "folder" if step is None else "verl"
    return Member(label, Located(f"models/{label}", kind, label, label, step), f"weights of {label}", None, run)


def write_evaluation(
    directory: Path,
    results: Mapping[str, Mapping[str, Mapping[int, Sequence[list[dict[str, Any]]]]]],
    *,
    problem: str = "What is 3+4?",
    summarised: bool = True,
    steps: Mapping[str, tuple[str, int]] | None = None,
    incidents: Incidents | None = None,
    **options: Any,
) -> Path:
    """An evaluation as its command leaves it.

    Args:
        results: label -> set -> seed -> the responses of each problem.
        steps: label -> (run, step) of those that are a run's checkpoints.
        options: for `summary_of`.
    """
    directory.mkdir(parents=True)
    names = list(dict.fromkeys(name for sets in results.values() for name in sets))
    count = {n: max(len(p) for sets in results.values() if n in sets for p in sets[n].values()) for n in names}
    sets = tuple(
        ProblemSet(
            n,
            f"{n}.parquet",
            "0" * 64,
            tuple(Problem(i, f"{i}-x", [], "7", f"{problem} ({i})", n) for i in range(count[n])),
        )
        for n in names
    )
    members = tuple(_member(label, *(steps or {}).get(label, (None, None))) for label in results)
    seeds = tuple(sorted({seed for by_set in results.values() for runs in by_set.values() for seed in runs}))
    plan = Plan(
        directory, members, sets, seeds, 4, SamplingParams(1.0, 0.9, -1, 96, logprobs=False), {}, {}, (1, 2, 4),
        "transformers", 1, "float32", 0, SETTINGS, (),
    )  # fmt: skip
    with (directory / RESULTS).open("wb") as file:
        for member in members:
            for problem_set in sets:
                for seed, problems in results[member.label].get(problem_set.name, {}).items():
                    for p, responses in zip(problem_set.problems, problems, strict=False):
                        record = {
                            "model": member.fingerprint, "seed": seed, "data": problem_set.name, "index": p.index,
                            "id": p.id, "problem": p.text, "source": p.source, "gold": p.gold,
                            "responses": responses, "majority": 0,
                        }  # fmt: skip
                        file.write(encode(record))
    write_settings(plan)
    if summarised:
        write_atomically(directory / SUMMARY, to_json(summary_of(plan, None, 0.5, incidents or Incidents(), **options)))
    return directory
