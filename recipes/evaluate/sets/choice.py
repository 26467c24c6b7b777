"""Multiple choice: options in an order drawn from a seed, the letter of the right one as the answer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.data.sources import DatasetSpec, field
from recipes.evaluate.sets import Fields
from rewards.choice import LETTERS, plain

REPEATED = "with the right option twice"
WITHOUT = "without an answer among the options"
NO_CHOICE = "with fewer than two options"


def options_of(row: Mapping[str, Any], spec: DatasetSpec) -> tuple[list[str], int | None]:
    """(options, index of the right one, None where there is none) as the set has them.

    ``spec.options`` is a column that holds them all (the answer column then has the right one's letter, number from 0,
    or text), or the columns that hold one each, the right one first.
    """
    if not isinstance(spec.options, str):
        columns = list(spec.options or ())
        texts = [str(value).strip() if (value := field(row, name)) is not None else "" for name in columns]
        return [text for text in texts if text], 0 if texts and texts[0] else None
    texts = [str(text).strip() for text in field(row, spec.options) or ()]
    answer = field(row, spec.answer) if spec.answer else None
    if isinstance(answer, int) and not isinstance(answer, bool):
        return texts, answer if 0 <= answer < len(texts) else None
    stated = str(answer or "").strip()
    if len(stated) == 1 and stated in LETTERS[: len(texts)]:
        return texts, LETTERS.index(stated)
    return texts, texts.index(stated) if stated in texts else None


def shuffled(options: Sequence[str], right: int, question: str, seed: int) -> tuple[list[str], str]:
    """(options in the order shown, letter of the right one); of seed and question, whatever the order of rows."""
    digest = hashlib.sha256(f"{seed}\0{question}".encode("utf-8", "surrogatepass")).digest()
    order = list(range(len(options)))
    random.Random(int.from_bytes(digest, "big")).shuffle(order)
    return [options[place] for place in order], LETTERS[order.index(right)]


def read(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """A question with its options; one whose right option occurs twice has no single letter and is dropped."""
    question = str(field(row, spec.problem) or "").strip()
    options, right = options_of(row, spec)
    if not 2 <= len(options) <= len(LETTERS):
        return Fields(question, dropped=NO_CHOICE)
    if right is None:
        return Fields(question, dropped=WITHOUT)
    if sum(plain(text) == plain(options[right]) for text in options) > 1:
        return Fields(question, dropped=REPEATED)
    options, letter = shuffled(options, right, question, seed)
    listed = "\n".join(f"({mark}) {text}" for mark, text in zip(LETTERS, options, strict=False))
    reasons = str(field(row, spec.solution) or "").strip() if spec.solution else ""
    return Fields(
        problem=f"{question}\n\nChoices:\n{listed}",
        answer=letter,
        shown=letter,
        solution=f"{reasons}\n\n\\boxed{{{letter}}}" if reasons else "",
        extra={"options": options},
    )
