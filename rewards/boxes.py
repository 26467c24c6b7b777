r"""The one parser of ``\boxed{…}``: what a box is, which is the last, and where it begins and ends.

* ``\boxed`` and ``\fbox`` are the same; white space may stand before the brace; ``\\boxed`` (escaped twice) is a box.
* Braces are matched; ``\{`` and ``\}`` are no braces. A box that never closes (a response cut at the length limit) and
  an empty one (the instruction quoted back) are none.
* Without braces, ``\boxed 2``, a box holds what follows up to the end of the formula (``$``, ``\)`` or ``\]``), and
  outside of formulas one number, letter or command with its arguments. ``\boxed`` before prose is a mention, no box.
* Of nested boxes the innermost (the last that opens) has the content, and the outermost the span.

Everything runs in time linear in the text, whatever the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# A box with its brace, a box without one, an escaped character, a bare brace.
_TOKEN = re.compile(r"\\\\?(?:boxed|fbox)(?:\s*(?P<brace>\{)|(?P<bare>(?![a-zA-Z])))|\\.|[{}]", re.DOTALL)
_FORMULA_END = re.compile(r"\$|\\\)|\\\]|\n")
_BARE_LIMIT = 200  # characters of a box without braces
_FORMULA = re.compile(r"\s*[\w\\+(\[|-]|\s*\.\d")  # how a formula begins
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z}])")
_BARE_ITEM = re.compile(
    r"[+-]?(?:\d+(?:[.,]\d+)*(?:/\d+)?|\\[a-zA-Z]+(?:\s*\[[^\[\]{}\n]*\])?(?:\s*\{[^{}\n]*\}|\d)*|"
    r"[a-zA-Z](?![a-zA-Z]| [a-z]{2}))|\([^(){}\n]*\)"
)


class Box(NamedTuple):
    """The last box of a text.

    Attributes:
        start: index of the outermost box's backslash.
        end: index after its closing brace.
        content: of the innermost box, without white space around it.
    """

    start: int
    end: int
    content: str


def _bare_end(text: str, start: int) -> int:
    """Where the content of a box without braces ends that begins at ``start``; ``start`` if there is none."""
    window = text[start : start + _BARE_LIMIT]
    closing = _FORMULA_END.search(window)
    if closing and closing.group() != "\n":
        formula, depth = window[: closing.start()], 0
        for match in _TOKEN.finditer(formula):  # a formula inside an outer group ends with that group
            depth += {"{": 1, "}": -1}.get(match.group()[-1], 0) if not match.group().startswith("\\") else 0
            if depth < 0:
                formula = formula[: match.start()]
                break
        prose = not _FORMULA.match(formula) or _PROSE.search(formula) or formula.count("(") != formula.count(")")
        if not prose and "\\boxed" not in formula:
            return start + len(formula.rstrip(" \t.,;:"))
    space = len(window) - len(window.lstrip(" \t"))
    item = _BARE_ITEM.match(window, space)
    return start + item.end() if item else start


def last_box(text: str) -> Box | None:
    """The last box of a text that closes and is not empty; None if there is none."""
    first = min((index for name in ("\\boxed", "\\fbox") if (index := text.find(name)) >= 0), default=-1)
    if first < 0:
        return None
    # Of an even run of backslashes the last two are one escaped box; what is before the first box does not matter.
    before = first - len(text[:first].rstrip("\\"))
    position = first - before % 2
    boxes: list[tuple[int, int, int, int]] = []  # start, end, content start, content end
    stack: list[list] = []  # start of an open box (-1 for another group), content start, whether there is any content
    seen = position
    for match in _TOKEN.finditer(text, position):
        token = match.group()
        if match.start() < seen:
            continue  # inside a box without braces
        if stack and text[seen : match.start()].strip():
            stack[-1][2] = True
        seen = match.end()
        if token == "{" or match["brace"]:
            stack.append([match.start() if match["brace"] else -1, match.end(), False])
        elif token == "}":
            if not stack:
                continue
            start, content, filled = stack.pop()
            if start >= 0 and filled:
                boxes.append((start, match.end(), content, match.start()))
            if filled and stack:
                stack[-1][2] = True
        elif match["bare"] is not None:
            end = _bare_end(text, match.end())
            if end > match.end():
                boxes.append((match.start(), end, match.end(), end))
                seen = end
            if stack:
                stack[-1][2] = True
        elif stack:
            stack[-1][2] = True
    if not boxes:
        return None
    innermost = max(boxes)
    outermost = min(box for box in boxes if box[1] >= innermost[1])
    return Box(outermost[0], outermost[1], text[innermost[2] : innermost[3]].strip())
