"""Finds the final answer in a response: the last brace-matched box, or DAPO's ``Answer:`` line."""

from __future__ import annotations

import re

from rewards.boxes import last_box

MAX_RESPONSE_CHARS = 1_000_000  # several times what 40,000 tokens decode to; of more, only the end is read
_MARKDOWN = " \t*`"
# "Answer: 5", "**Answer**: 5", "**Final answer:**" with the answer on the next line.
_ANSWER_LINE = re.compile(r"(?i)(?<![a-z])answer[*_`}]{0,4}\s{0,2}[:：][\s*_`}]*([^\n]+)")


def last_boxed(text: str) -> str | None:
    """Content of the last box that closes and is not empty; None if there is none; see ``rewards.boxes``."""
    box = last_box(text)
    return box.content if box else None


def last_answer_line(text: str) -> str | None:
    """Content of the last ``Answer: …`` (DAPO's form); None if there is none.

    Markdown around the word or the answer, dollar signs around the whole answer and a final full stop do not belong to
    the content.
    """
    for match in reversed(list(_ANSWER_LINE.finditer(text))):
        content = match.group(1).strip(_MARKDOWN).removesuffix(".").rstrip(_MARKDOWN)
        if len(content) > 1 and content.startswith("$") and content.endswith("$"):
            content = content.strip("$").strip()
        if content:
            return content
    return None


def after_thoughts(text: str) -> str | None:
    """What a response says after its thoughts: all of it if it has none; None if they never end."""
    _, closing, after = text.rpartition("</think>")
    if closing:
        return after
    return None if "<think>" in text else text


def extract_answer(text: str, answer_line: bool = False) -> str | None:
    """A response's final answer: its last box, else its last ``Answer:`` line, else None.

    Args:
        text: the response; of a very long one only the end is read (`MAX_RESPONSE_CHARS`).
        answer_line: whether the ``Answer:`` line counts.
    """
    text = text[-MAX_RESPONSE_CHARS:]
    boxed = last_boxed(text)
    if boxed is None and answer_line:
        return last_answer_line(text)
    return boxed
