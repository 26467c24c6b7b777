"""Gives symbols that math-verify's parser misreads names that it reads rightly and fast.

The parser takes ``I`` for the imaginary unit but ``i`` for a variable, ``\\gamma`` for a function, reads "db" as a
differential, and drops strokes and what follows ``E_1``. Each would make different answers equal, or equal ones
different. A renamed symbol is an accented letter to the parser, so algebra goes on as before.
"""

from __future__ import annotations

import re

from rewards.vocabulary import GREEK

_SKIPPED = r"\\(?:text|begin|end|mathbb|operatorname)\s*\{[^{}]*\}"
_GREEK = rf"\\(?:{'|'.join(sorted(GREEK - {'infty'}, key=len, reverse=True))})(?![a-zA-Z])"
_SUBSCRIPT = r"(?: ?_\{ ?(?P<subscript>[A-Za-z0-9,]{1,12}) ?\})?(?P<strokes>'{0,3})"
_TOKEN = re.compile(rf"{_SKIPPED}|(?P<symbol>{_GREEK}|(?<!\\)[A-Za-z]){_SUBSCRIPT}|\\[A-Za-z]+")
_LETTERS, _END_LETTERS = re.compile(r"[A-Za-z]*"), re.compile(r"[A-Za-z]*$")
# A letter i of its own is the imaginary unit, unless it counts something somewhere.
_INDEX = re.compile(
    r"(?<![A-Za-z\\])i\s*(?:=|<|>|\\in(?![a-z])|\\l?eq?(?![a-z])|\\ge)|_\s*(?:i|\{[^{}]*(?<![a-z])i(?![a-z])[^{}]*\})"
)
_DIFFERENTIAL = re.compile(rf"{_SKIPPED}|\\tilde\{{[^{{}}]*\}}|\\[a-zA-Z]+|d ?(?=[a-zA-Z]|\\[a-z])")


def _is_alone(match: re.Match) -> bool:
    """Whether a letter stands in no run of three or more: "bi" is a product, "sin" is none."""
    before = match.string[max(match.start() - 2, 0) : match.start()]
    after = match.string[match.end() : match.end() + 2]
    return len(_END_LETTERS.search(before).group() + _LETTERS.match(after).group()) < 2


def _is_unit(match: re.Match) -> bool:
    return match["symbol"] == "i" and not match["subscript"] and not match["strokes"] and _is_alone(match)


def has_imaginary_unit(*texts: str) -> bool:
    """Whether i is the imaginary unit in texts that belong together.

    Args:
        *texts: tidied.
    """
    if not any("i" in text for text in texts) or any(_INDEX.search(text) for text in texts):
        return False
    return any(_is_unit(match) for text in texts for match in _TOKEN.finditer(text))


def rename_misread(text: str, imaginary: bool) -> str:
    """A text with misread symbols renamed.

    Args:
        text: tidied.
        imaginary: whether i is the imaginary unit.
    """

    def rename(match: re.Match) -> str:
        symbol, subscript, strokes = match["symbol"], match["subscript"] or "", "p" * len(match["strokes"] or "")
        if symbol is None:
            return match.group()
        if imaginary and _is_unit(match):
            return "I"
        following = match.string[match.end() : match.end() + 1]
        misread = symbol in ("I", "\\gamma") or (symbol == "\\Gamma" and following != "(")
        if not (misread or subscript or strokes):
            return match.group()
        letters = symbol.lstrip("\\") + "s" + subscript.replace(",", "c") + strokes
        name = f"\\tilde{{{letters}}}"
        return f"{{{name}}}" if following == "^" else name

    def differential(match: re.Match) -> str:
        return match.group() if match.group()[0] == "\\" else "{d} "

    renamed = _TOKEN.sub(rename, text)
    if not any(sign in renamed for sign in ("\\int", "\\frac{d", "\\partial")):
        renamed = _DIFFERENTIAL.sub(differential, renamed)
    return renamed
