"""Which responses of an evaluation its report shows: a right and a wrong one of telling problems, and what went wrong.

results.jsonl may be gigabytes. It is read twice, a line at a time: first for each problem's accuracy, from which the
problems are chosen, then for the texts of those few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.evaluate.plan import read_settings
from recipes.evaluate.results import RESULTS, read_records
from recipes.report.heat import visible

PROBLEMS, MODELS = 3, 4  # shown: problems of each set, models
TROUBLES = 2  # of each kind that is not right or wrong, in all
HEAD, TAIL = 2500, 1500  # characters of a long response that are shown

# What may have happened to a response besides being right or wrong, in words.
TROUBLE = {
    "no_answer": "no answer found",
    "timeout": "grading timed out",
    "error": "grading failed",
    "length": "cut at the length limit",
}


@dataclass(frozen=True)
class Answer:
    """A response as the page shows it.

    Attributes:
        model: the model's label.
        colour: number of the label's colour, from 1; 9 for those that share the rest's.
        kind: "right", "wrong" or "trouble".
        verdict: the same in words, with what went wrong.
        extracted: the answer that was found in the response; "" if there is none.
        tokens: the response's length.
        head: the text, or its beginning if it is long.
        omitted: characters that are left out after it.
        tail: what follows them; "" if nothing is left out.
    """

    model: str
    colour: int
    kind: str
    verdict: str
    extracted: str
    tokens: int
    head: str
    omitted: int
    tail: str


@dataclass(frozen=True)
class Asked:
    """A problem with some of its responses.

    Attributes:
        data: the problem's set.
        problem: its text.
        gold: the right answer.
        note: how the models did on it, or what went wrong.
        answers: the responses shown.
    """

    data: str
    problem: str
    gold: str
    note: str
    answers: list[Answer]


def asked(directory: Path, summary: Mapping[str, Any]) -> list[Asked]:
    """The problems that a report shows, by set: those on which the models, or else a model's samples, differ most.

    Shown are responses to the first seed only, of this evaluation's own results only, and of the first few models.

    Args:
        directory: the evaluation's, with its settings and results.
        summary: its summary.json.
    """
    here = (read_settings(directory) or {"models": {}})["models"]
    own = {run["model"]: run for run in reversed(summary["runs"]) if run["model"] in here}  # the first of each
    shown = sorted(own, key=lambda model: summary["runs"].index(own[model]))[:MODELS]
    labels = list(dict.fromkeys(row["label"] for row in summary["metrics"]))
    models = {model: own[model]["label"] for model in shown}
    seeds = {model: own[model]["seeds"][0] for model in shown}

    def records() -> Iterator[dict[str, Any]]:
        for record in read_records(directory / RESULTS):
            if record is not None and record["responses"] and seeds.get(record["model"]) == record["seed"]:
                yield record

    shares: dict[tuple[str, str], dict[str, float]] = {}
    troubled: dict[str, list[tuple[str, str, str]]] = {}
    for record in records():
        place = (record["data"], record["id"])
        responses = record["responses"]
        shares.setdefault(place, {})[record["model"]] = sum(map(_right, responses)) / len(responses)
        for trouble in {t for r in responses if (t := _trouble(r))}:
            if len(found := troubled.setdefault(trouble, [])) < TROUBLES:
                found.append((*place, record["model"]))
    chosen = _telling(shares, [d["name"] for d in summary["data"]])
    extra = {key for keys in troubled.values() for key in keys}

    texts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in records():
        key = (record["data"], record["id"], record["model"])
        if key[:2] in chosen or key in extra:
            texts[key] = record

    def answer(record: Mapping[str, Any], response: Mapping[str, Any]) -> Answer:
        label = models[record["model"]]
        return _answer(response, label, labels.index(label) + 1 if label in labels else 9)

    result = []
    for place in chosen:
        found = [texts[key] for model in models if (key := (*place, model)) in texts]
        answers = [answer(record, response) for record in found for response in _right_and_wrong(record["responses"])]
        note = ", ".join(_score(record, models, len(found)) for record in found)
        result.append(Asked(place[0], found[0]["problem"], found[0]["gold"], note, answers))
    for trouble, keys in troubled.items():
        for key in keys:
            response = next(r for r in texts[key]["responses"] if _trouble(r) == trouble)
            shown = answer(texts[key], response)
            result.append(Asked(key[0], texts[key]["problem"], texts[key]["gold"], TROUBLE[trouble], [shown]))
    return result


def _telling(shares: Mapping[tuple[str, str], Mapping[str, float]], sets: Sequence[str]) -> list[tuple[str, str]]:
    """For each set the problems with the largest difference between models; of equals, the least certain ones."""

    def telling(place: tuple[str, str]) -> tuple[float, float]:
        values = shares[place].values()
        return max(values) - min(values), -abs(sum(values) / len(values) - 0.5)

    chosen = []
    for data in sets:
        chosen += sorted((p for p in shares if p[0] == data), key=telling, reverse=True)[:PROBLEMS]
    return chosen


def _score(record: Mapping[str, Any], models: Mapping[str, str], count: int) -> str:
    responses = record["responses"]
    score = f"{sum(map(_right, responses))} of {len(responses)} right"
    return f"{models[record['model']]}: {score}" if count > 1 else score


def _right(response: Mapping[str, Any]) -> bool:
    return response["status"] == "correct"


def _trouble(response: Mapping[str, Any]) -> str | None:
    if response["status"] in TROUBLE:
        return response["status"]
    return "length" if response["stop"] == "length" else None


def _right_and_wrong(responses: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    right, wrong = [r for r in responses if _right(r)], [r for r in responses if not _right(r)]
    return right[:1] + wrong[:1]


def _answer(response: Mapping[str, Any], label: str, colour: int) -> Answer:
    text, trouble = visible(response["text"]), _trouble(response)
    kind = "right" if _right(response) else "wrong" if response["status"] == "wrong" else "trouble"
    parts = [kind] * (kind != "trouble") + ([TROUBLE[trouble]] if trouble else [])
    long = len(text) > HEAD + TAIL
    return Answer(
        model=label,
        colour=min(colour, 9),
        kind=kind,
        verdict=", ".join(parts),
        extracted=str(response["extracted"] or ""),
        tokens=response["tokens"],
        head=text[:HEAD] if long else text,
        omitted=len(text) - HEAD - TAIL if long else 0,
        tail=text[-TAIL:] if long else "",
    )
