"""The form of a tidied answer: takes lists, sets, tuples, equations, ratios and names apart, by plain string work."""

from __future__ import annotations

import re

from rewards.normalize import plain_number
from rewards.vocabulary import GREEK, is_unit

_CONNECTIVE = re.compile(r"\s*,?\s*\\text\{(?:and|or)\}\s*")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_ENVIRONMENT = "\\begin{"
_LETTER = rf"(?:\\(?:{'|'.join(sorted(GREEK - {'pi', 'infty'}, key=len, reverse=True))})(?![a-zA-Z])|[a-zA-Z])"
_ACCENT = r"\\(?:overline|vec|hat|tilde|widehat|widetilde|overrightarrow|mathbb)\{[^{}]*\}"
_BASE = rf"(?:{_ACCENT}|\\text\{{[^{{}}]*\}}|{_LETTER}(?: ?[a-zA-Z])*)"
_SCRIPTS = r"(?: ?_\{[^{}]*\}|'|\^\{(?:\\ast|\\prime)\})*"
_SYMBOL = rf"{_BASE}{_SCRIPTS}"
_OPERATOR = (
    r"(?:\\(?:angle|triangle|det|dim|deg|arg|max|min|sup|inf|Pr|Re|Im|nabla|sin|cos|tan|cot|sec|csc|gcd|lcm|operatorname|ker|rank)"
    r"(?![a-zA-Z])|\\text\{[^{}]*\}|m(?=\\angle)) ?"
)
_ARGUMENTS = r"(?:\^\{-1\})? ?(?:\((?P<arguments>[^()]*(?:\([^()]*\)[^()]*)*)\)|\[[^\[\]]*\])"
_NAME = re.compile(rf"(?:{_OPERATOR})*(?P<symbol>{_SYMBOL})?(?:{_ARGUMENTS})?")
_FUNCTION_LETTERS = frozenset("fghFGHPQERSTVNAuvwpq")
_MEASURED = re.compile(
    rf"[a-zA-Z]+(?: ?: ?[a-zA-Z]+)+|"
    rf"\\\|.+\\\||\|(?:[A-Z]+|z|{_ACCENT})(?:{_SCRIPTS})\||\[[A-Z]{{3,}}\]|{_ACCENT} ?\\(?:cdot|times) ?{_ACCENT}|"
    rf"\\frac\{{(?:\\text\{{[^{{}}]*\}}|[a-zA-Z]+|{_ACCENT})\}}\{{(?:\\text\{{[^{{}}]*\}}|[a-zA-Z]+|{_ACCENT})\}}|"
    r"\\lim(?![a-zA-Z]).*"
)
_RELATION = re.compile(
    r"\\(?:le|ge|ne|in|notin|subset|subseteq|equiv|to|Rightarrow|sim|cong)(?![a-zA-Z])|[<>]|\\approx(?![a-zA-Z])|="
)
_LABEL = re.compile(r"\\text\{(?P<words>[^{}]*)\} ?: ?(?=[^:]*$)")
_OPENING, _CLOSING = "([{", ")]}"


def split_top_level(text: str, separators: str) -> list[str]:
    """Non-empty parts of a text between separators that stand outside all brackets.

    Args:
        text: tidied.
        separators: single characters, each of which separates.
    """
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character in separators and depth == 0 and (index == 0 or text[index - 1] != "\\"):
            parts.append(text[start:index].strip())
            start = index + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _angled(text: str) -> str:
    """Vectors in angles, ⟨1,2⟩ and <1,2>, in round brackets."""
    match = re.fullmatch(r"\\langle ?(.*?) ?\\rangle|<([^<>=]*,[^<>=]*)>", text, re.DOTALL)
    return f"({match[1] or match[2]})" if match else text


def split_brackets(text: str) -> tuple[str, list[str]] | None:
    """("(]", elements) of a tuple, point, vector or interval of at least two elements; None for anything else."""
    text = _angled(text)
    if len(text) < 5 or text[0] not in "([" or text[-1] not in ")]":
        return None
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and index < len(text) - 1:
            return None  # "(1,2),(3,4)"
    elements = split_top_level(text[1:-1], ",;")
    return (text[0] + text[-1], elements) if depth == 0 and len(elements) > 1 else None


def is_set(text: str) -> bool:
    """Whether a text is one set in braces, ``\\{1, 2\\}``."""
    return text.startswith("\\{") and text.endswith("\\}") and text.count("\\{") == 1


def split_elements(text: str) -> list[str]:
    """Elements of a list or set written at top level: "1, 2 and 3", "\\{1, 2\\}"; a tuple or interval is one element.

    ``a \\pm b`` with a single sign counts as two elements, and a union of intervals as its parts.
    """
    text = text.strip()
    if is_set(text):
        text = text[2:-2].strip()
    if plain_number(text) or _ENVIRONMENT in text:  # "1,234"
        return [text]
    elements = split_top_level(_CONNECTIVE.sub(",", text), ",;")
    if len(elements) == 1 and "=" not in text:
        elements = [part.strip() for part in _CUP.split(elements[0])]
    return [branch for element in elements for branch in _branches(element)]


def _branches(element: str) -> list[str]:
    signs = ("\\pm", "\\mp")
    if sum(element.count(sign) for sign in signs) != 1:
        return [element]
    sign = signs[0] if signs[0] in element else signs[1]
    return [element.replace(sign, "+").strip(), element.replace(sign, "-").strip()]


def split_chain(text: str) -> tuple[list[str], bool] | None:
    """The sides of a chain of equations "a = b = c".

    Returns:
        (sides, whether some are only approximate); ([text], False) without an equation; None if another relation stands
        beside or in place of the equals sign.
    """
    sides, depth, start, approximate = [], 0, 0, False
    for match in re.finditer(rf"[{re.escape(_OPENING + _CLOSING)}]|{_RELATION.pattern}", text):
        token = match.group()
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
        elif depth == 0:
            if token not in ("=", "\\approx"):
                return None
            sides.append(text[start : match.start()].strip())
            start, approximate = match.end(), approximate or token != "="
    sides.append(text[start:].strip())
    if approximate and not sides[0]:  # "\\approx 2.5"
        sides = sides[1:]
    return (sides, approximate) if all(sides) else None


def is_name(text: str) -> bool:
    """Whether a text names a quantity, so that an equation gives it a value: x, ``\\theta``, AB, f(2), P(A), a text.

    What is computed from one, 2x, x+1, ``\\sqrt{x}``, is no name.
    """
    if _MEASURED.fullmatch(text):
        return True
    match = _NAME.fullmatch(text) if text else None
    if not match:
        return False
    symbol, arguments = match["symbol"] or "", match["arguments"]
    if arguments is not None and len(symbol) == 1 and symbol not in _FUNCTION_LETTERS:
        return bool(re.fullmatch(r" ?(?:[a-zA-Z]|-?\d+) ?", arguments))  # "x(x+1)" is a product
    return True


def without_label(text: str) -> str:
    """A tidied answer without a label in words, "Area: 5"; a word that judges or counts is none."""
    label = _LABEL.match(text)
    return (
        text[label.end() :]
        if label and is_unit(label["words"].lower().removesuffix("answer") + " units", True)
        else text
    )


def base_name(name: str) -> str:
    """A name without its subscripts and strokes: x of x_{1}."""
    return re.sub(r" ?_\{[^{}]*\}|'", "", name)


def split_ratio(text: str) -> list[str]:
    """Terms of a ratio "1:2:3" or "3 to 2"; [text] of anything else."""
    terms = split_top_level(text.replace("\\text{to}", ":"), ":")
    return terms if len(terms) > 1 and text.count(":") + text.count("\\text{to}") == len(terms) - 1 else [text]
