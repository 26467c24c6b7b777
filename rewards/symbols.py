"""Rename the symbols that math-verify's parser misreads, in both answers alike, before it sees them.

The parser takes ``I`` for the imaginary unit but ``i`` for a variable, ``\\gamma`` for a function, reads "db" as a
differential, and drops strokes and what follows ``E_1``.  Each would make different answers equal, or equal ones
different.  A renamed symbol is an ordinary subscripted letter, so algebra goes on as before.
"""

from __future__ import annotations

import re

_SKIPPED = r"\\(?:text|begin|end|mathbb|operatorname)\s*\{[^{}]*\}"
_GREEK = r"\\(?:gamma|Gamma)(?![a-zA-Z])"
_SUBSCRIPT = r"(?: ?_\{ ?(?P<subscript>[A-Za-z0-9,]{1,12}) ?\})?(?P<strokes>'{0,3})"
_TOKEN = re.compile(rf"{_SKIPPED}|(?P<symbol>{_GREEK}|(?<!\\)[A-Za-z]){_SUBSCRIPT}|\\[A-Za-z]+")
_LETTERS, _END_LETTERS = re.compile(r"[A-Za-z]*"), re.compile(r"[A-Za-z]*$")
# A letter i of its own is the imaginary unit, unless it counts something somewhere.
_INDEX = re.compile(
    r"(?<![A-Za-z\\])i\s*(?:=|<|>|\\in(?![a-z])|\\l?eq?(?![a-z])|\\ge)|_\s*(?:i|\{[^{}]*(?<![a-z])i(?![a-z])[^{}]*\})"
)
_DIFFERENTIAL = re.compile(rf"{_SKIPPED}|\\[a-zA-Z]+|d ?(?=[a-zA-Z]|\\[a-z])")


def rename_misread(gold: str, answer: str) -> tuple[str, str]:
    """Both texts (tidied) with misread symbols renamed."""
    imaginary = not (_INDEX.search(gold) or _INDEX.search(answer))

    def rename(match: re.Match) -> str:
        symbol, subscript = match.group("symbol"), match.group("subscript") or ""
        if symbol is None:
            return match.group()
        strokes = "p" * len(match.group("strokes"))
        following = match.string[match.end() : match.end() + 1]
        if symbol == "i" and imaginary and not subscript and not strokes:
            around = (
                match.string[max(match.start() - 2, 0) : match.start()],
                match.string[match.end() : match.end() + 2],
            )
            if len(_END_LETTERS.search(around[0]).group() + _LETTERS.match(around[1]).group()) < 2:  # "bi", no word
                return "I"
        subscript = subscript.replace(",", "c")
        if symbol == "\\gamma" or (symbol == "\\Gamma" and following != "("):
            return f"g_{{{symbol[1:]}{subscript}{strokes}}}"
        if symbol == "I":
            return f"w_{{capitali{subscript}{strokes}}}"
        if symbol in "Ee" and (subscript or strokes):
            return f"w_{{{symbol}{subscript}{strokes}}}"
        if strokes:
            return f"{symbol}_{{{subscript}{strokes}}}"
        return match.group()

    def differential(match: re.Match) -> str:
        return match.group() if match.group()[0] == "\\" else "d\\cdot "

    renamed = [_TOKEN.sub(rename, text) for text in (gold, answer)]
    if not any(sign in text for text in renamed for sign in ("\\int", "\\frac{d", "\\partial")):
        renamed = [_DIFFERENTIAL.sub(differential, text) for text in renamed]
    return renamed[0], renamed[1]
