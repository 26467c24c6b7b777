"""Multiple choice: the options in an order drawn from a seed, the letter of the right one as the answer."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.data.cells import cell, cells, field
from recipes.data.readers import DataError
from recipes.data.sets.fields import Fields
from recipes.data.spec import DatasetSpec
from rewards.choice import LETTERS, plain

REPEATED = "with the right option twice"
WITHOUT = "without an answer among the options"
NO_CHOICE = "with fewer than two options"


def options_of(row: Mapping[str, Any], spec: DatasetSpec) -> tuple[list[str], int | None]:
    """The options of a question in the set's order, and which one is right.

    Args:
        row: column to value.
        spec: ``spec.options`` is a column that holds all options (the answer column then has the right one's letter,
            number from 0, or text), or the columns that hold one each, the right one first.

    Returns:
        (options, index of the right one from 0; None if there is none).

    Raises:
        DataError: if a value cannot be read as text; or the answer is both the number of one option and the text of
            another, which a file in which numbers are text cannot tell apart.
    """
    if not isinstance(spec.options, str):
        texts = [cell(row, name).strip() for name in spec.options or ()]
        return [text for text in texts if text], 0 if texts and texts[0] else None
    texts = [text.strip() for text in cells(row, spec.options)]
    stated = cell(row, spec.answer).strip()
    if len(stated) == 1 and stated in LETTERS[: len(texts)]:
        return texts, LETTERS.index(stated)
    # JSON and CSV are read as the text that they are written in, so 1 may be "1".
    number = int(stated) if re.fullmatch("[0-9]{1,2}", stated) and int(stated) < len(texts) else None
    as_text = texts.index(stated) if stated in texts else None
    typed = isinstance(field(row, spec.answer), int) if spec.answer else False
    if typed or as_text is None:
        return texts, number
    if number is not None and number != as_text:
        raise DataError(
            f"column {spec.answer!r}: {stated} is the number (from 0) of the option {texts[number]!r} and the text of "
            "another option; write the right one's letter"
        )
    return texts, as_text


def shuffled(options: Sequence[str], right: int, question: str, seed: int) -> tuple[list[str], str]:
    """Put options into an order that depends on seed and question only, not on the order of rows.

    Args:
        options: in the set's order, at most as many as there are letters.
        right: index of the right one, from 0.
        question: its text, so that each question has an order of its own.
        seed: other seeds give other orders.

    Returns:
        (options in the order shown, letter of the right one).
    """
    digest = hashlib.sha256(f"{seed}\0{question}".encode("utf-8", "surrogatepass")).digest()
    order = list(range(len(options)))
    random.Random(int.from_bytes(digest, "big")).shuffle(order)
    return [options[place] for place in order], LETTERS[order.index(right)]


def read(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """A question with its options.

    A question is dropped if its right option occurs twice, since no single letter is right then.

    Args:
        row: column to value.
        spec: which columns hold the question, options, answer and reasons.
        seed: orders the options.
    """
    question = cell(row, spec.problem).strip()
    options, right = options_of(row, spec)
    if not 2 <= len(options) <= len(LETTERS):
        return Fields(question, dropped=NO_CHOICE)
    if right is None:
        return Fields(question, dropped=WITHOUT)
    if sum(plain(text) == plain(options[right]) for text in options) > 1:
        return Fields(question, dropped=REPEATED)
    options, letter = shuffled(options, right, question, seed)
    listed = "\n".join(f"({mark}) {text}" for mark, text in zip(LETTERS, options, strict=False))
    reasons = cell(row, spec.solution).strip()
    return Fields(
        problem=f"{question}\n\nChoices:\n{listed}",
        answer=letter,
        shown=letter,
        solution=f"{reasons}\n\n\\boxed{{{letter}}}" if reasons else "",
        extra={"options": options},
    )
