"""Colours the tokens of sampled responses by what each earned: the fields shown, their scales, each token's level.

A field's scale is one for all samples of a page, so colours compare across responses: full colour is the 95th
percentile of |value| (1 for ω and the like, which are bounded by it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from advantage.labels import TokenField
from recipes.common.record.samples import FIELDS, HEAD
from recipes.report.run_data import Run

LEVELS = 5
RECORDS = 3  # of a run: the first, the middle and the last


@dataclass(frozen=True)
class Token:
    """A token as the page shows it.

    Attributes:
        text: with marks for line breaks.
        classes: CSS classes, ``f<i>p<level>`` or ``f<i>n<level>`` for each field i of the page with colour.
        title: the values of its fields, shown on hovering.
    """

    text: str
    classes: str
    title: str


@dataclass(frozen=True)
class Response:
    """A response as the page shows it.

    Attributes:
        problem: its text.
        reward: that the response earned.
        tokens: those that were kept.
        gap: index of the token before which tokens were left out; None if there are all.
        omitted: how many were left out.
    """

    problem: str
    reward: float
    tokens: list[Token]
    gap: int | None
    omitted: int


@dataclass(frozen=True)
class Heat:
    """The samples of a page.

    Attributes:
        fields: the fields that are shown, each with its scale, the value of full colour.
        records: (step, responses), newest first.
    """

    fields: list[tuple[TokenField, float]]
    records: list[tuple[int, list[Response]]]


def heat(run: Run) -> Heat | None:
    """The samples that a report shows, without those of another form; None if the run kept none."""
    records = [(r["step"], kept) for r in run.samples if (kept := [s for s in r["samples"] if _well_formed(s)])]
    if not records:
        return None
    records = [records[i] for i in sorted({0, len(records) // 2, len(records) - 1}, reverse=True)][:RECORDS]
    samples = [sample for _, found in records for sample in found]
    fields = [
        (field, field.scale or scale)
        for field in (*(run.asks.token_fields if run.asks else ()), *FIELDS)
        if (scale := _scale([v for s in samples for v in s["fields"].get(field.name, ()) if v is not None]))
    ]
    return Heat(fields, [(step, [_response(s, fields) for s in found]) for step, found in records])


def level(value: float, scale: float) -> int:
    """How strong the colour of a value is.

    Args:
        value: of a token's field.
        scale: the value of full colour, positive.

    Returns:
        A whole number in [-`LEVELS`, `LEVELS`]; 0 if |value| is below half a level.
    """
    share = min(1.0, abs(value) / scale)
    return int(np.sign(value)) * int(share * LEVELS + 0.5)


def _scale(values: Sequence[float]) -> float:
    """95th percentile of |value|, or the largest if that is 0; 0.0 without values."""
    if not values:
        return 0.0
    sizes = np.abs(np.asarray(values, dtype=np.float64))
    return float(np.quantile(sizes, 0.95)) or float(sizes.max())


def _response(sample: Mapping[str, Any], fields: Sequence[tuple[TokenField, float]]) -> Response:
    tokens = []
    for place, text in enumerate(sample["tokens"]):
        classes, title = [], []
        for index, (field, scale) in enumerate(fields):
            value = sample["fields"][field.name][place] if field.name in sample["fields"] else None
            if value is None:
                continue
            title.append(f"{field.label} {value:+.3g}".replace("-", "−"))
            step = level(value, scale)
            if step:
                classes.append(f"f{index}{'p' if step > 0 else 'n'}{abs(step)}")
        tokens.append(Token(visible(text), " ".join(classes), "  ".join(title)))
    omitted = sample.get("omitted") or 0
    return Response(sample["problem"], sample["reward"], tokens, _gap_index(tokens) if omitted else None, omitted)


def visible(text: str) -> str:
    """Line breaks as marks, and one break for several: a page of blank lines hides the answer."""
    return re.sub(r"\n+", lambda breaks: "↵" * len(breaks[0]) + "\n", text)


def _gap_index(tokens: Sequence[Token]) -> int:
    return min(HEAD, len(tokens))


def _well_formed(sample: Any) -> bool:
    if not isinstance(sample, dict) or not isinstance(sample.get("problem"), str):
        return False
    tokens, fields, reward = sample.get("tokens"), sample.get("fields"), sample.get("reward")
    if not isinstance(tokens, list) or not isinstance(fields, dict) or not isinstance(reward, int | float):
        return False
    numbers_only = all(
        isinstance(column, list)
        and len(column) == len(tokens)
        and all(value is None or isinstance(value, int | float) for value in column)
        for column in fields.values()
    )
    return numbers_only and all(isinstance(token, str) for token in tokens)
