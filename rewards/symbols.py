"""Rename the symbols that math-verify's parser misreads, in both answers alike, before it sees them.

The parser folds letters to lower case (``M/m`` becomes 1), takes ``I`` for the imaginary unit but ``i`` for a variable,
``\\gamma`` for a function, and drops what follows ``E_1``.  Each would make different answers equal, or equal ones
different.  A renamed symbol is an ordinary subscripted letter, so algebra goes on as before.
"""

from __future__ import annotations

import re

_SKIPPED = r"\\(?:text|mathrm|operatorname|begin|end)\s*\{[^{}]*\}"
_GREEK = r"\\(?:gamma|Gamma)(?![a-zA-Z])"
_SUBSCRIPT = r"(?:\s*_\s*(?:\{\s*(?P<long>[A-Za-z0-9]{1,12})\s*\}|(?P<short>[A-Za-z0-9])))?"
_TOKEN = re.compile(rf"{_SKIPPED}|(?P<symbol>{_GREEK}|(?<!\\)[A-Za-z]){_SUBSCRIPT}|\\[A-Za-z]+")
_CAPITAL_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTERS, _END_LETTERS = re.compile(r"[A-Za-z]*"), re.compile(r"[A-Za-z]*$")
# A letter i of its own is the imaginary unit, unless it counts something somewhere.
_INDEX = re.compile(r"(?<![A-Za-z\\])i\s*(?:=|<|>|\\in(?![a-z])|\\l?eq?(?![a-z])|\\ge)|_\s*(?:i|\{[^{}]*i[^{}]*\})")


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]", _CAPITAL_COMMAND.sub(" ", re.sub(_SKIPPED, " ", text))))


def rename_misread(gold: str, answer: str) -> tuple[str, str]:
    """Both texts with misread symbols renamed; capitals only where their small letter occurs in either text too."""
    letters = _letters(gold) | _letters(answer)
    imaginary = not (_INDEX.search(gold) or _INDEX.search(answer))
    capitals = {letter for letter in letters if letter.isupper() and letter.lower() in letters} | {"I"}

    def rename(match: re.Match) -> str:
        symbol, subscript = match.group("symbol"), match.group("long") or match.group("short") or ""
        if symbol is None:
            return match.group()
        following = match.string[match.end() : match.end() + 1]
        if symbol == "i" and imaginary and not subscript:
            around = (
                match.string[max(match.start() - 2, 0) : match.start()],
                match.string[match.end() : match.end() + 2],
            )
            if len(_END_LETTERS.search(around[0]).group() + _LETTERS.match(around[1]).group()) < 2:  # "bi", no word
                return "I"
        if symbol == "\\gamma" or (symbol == "\\Gamma" and following != "("):
            return f"g_{{{symbol[1:]}{subscript}}}"
        if symbol in capitals:
            return f"{symbol.lower()}_{{cap{subscript}}}"
        if symbol in "Ee" and subscript:
            return f"w_{{{symbol}{subscript}}}"
        return match.group()

    return _TOKEN.sub(rename, gold), _TOKEN.sub(rename, answer)
