"""Find the final answer in a response: the last brace-matched box, or DAPO's ``Answer:`` line."""

from __future__ import annotations

import re

_BOX_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
# An escaped character (so that \{ and \} are no braces), a box's opening, or a bare brace.
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
MAX_RESPONSE_CHARS = 1_000_000  # several times what 40,000 tokens decode to; of more, only the end is read
_ANSWER_LINE = re.compile(r"(?i)(?<![a-z])answer\s*:[ \t]*([^\n]+)")


def _close_of(text: str, start: int) -> int:
    """Index of the brace that closes a group whose content begins at ``start``, or -1 where it never closes."""
    depth = 1
    for match in _TOKEN.finditer(text, start):
        token = match.group()
        if token.endswith("{") and token != "\\{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def _closed_boxes(text: str) -> list[tuple[int, int]]:
    """(start, end) of the content of every box that closes, found in one pass over ``text``."""
    stack: list[int] = []  # content start of an open box, or -1 for another group
    boxes = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "}":
            if stack and (start := stack.pop()) >= 0:
                boxes.append((start, match.start()))
        elif token == "{":
            stack.append(-1)
        elif token.startswith(("\\boxed", "\\fbox")):
            stack.append(match.end())
    return boxes


def last_boxed(text: str) -> str | None:
    """Content of the last brace-matched, non-empty ``\\boxed{…}`` (or ``\\fbox{…}``), None where there is none.

    A box that never closes (a response cut at the length limit) and an empty one (the instruction quoted back) are
    passed over.  Of nested boxes the inner one counts.  Runs in time linear in ``len(text)``, whatever the text.
    """
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if last < 0:
        return None
    opening = _BOX_OPENING.match(text, last)
    if opening:  # nearly always the last box is sound, and only its own text needs a scan
        end = _close_of(text, opening.end())
        if end >= 0 and (content := text[opening.end() : end].strip()):
            return content
    found = [(start, end) for start, end in _closed_boxes(text) if text[start:end].strip()]
    if not found:
        return None
    start, end = max(found)
    return text[start:end].strip()


def last_answer_line(text: str) -> str | None:
    """Content of the last ``Answer: …`` line (DAPO's form), without dollar signs, asterisks and a final full stop."""
    content = None
    for match in _ANSWER_LINE.finditer(text):
        content = match.group(1)
    if content is None:
        return None
    content = content.strip().strip("*").strip()
    if content.endswith("."):
        content = content[:-1].rstrip()
    if len(content) > 1 and content.startswith("$") and content.endswith("$"):
        content = content.strip("$").strip()
    return content or None


def after_thoughts(text: str) -> str | None:
    """What a response says after its thoughts, None where they never end; all of it where there are none."""
    _, closing, after = text.rpartition("</think>")
    if closing:
        return after
    return None if "<think>" in text else text


def extract_answer(text: str, answer_line: bool = False) -> str | None:
    """A response's final answer: its last box, else (where ``answer_line``) its last ``Answer:`` line, else None."""
    text = text[-MAX_RESPONSE_CHARS:]
    boxed = last_boxed(text)
    if boxed is None and answer_line:
        return last_answer_line(text)
    return boxed
