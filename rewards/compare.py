"""Equivalence of two answers, by math-verify.  Runs only inside a grading child: it may hang, crash or eat memory.

What is added to math-verify here: percent signs and scientific notation inside a box, number bases, lists whose order
does not matter whatever their elements, and two guards against answers it takes for equal that are not (an equation's
right-hand side alone; small numbers that agree only after rounding to six decimals).
"""

from __future__ import annotations

import cmath
import re
from functools import lru_cache
from itertools import product
from typing import Any

from rewards.normalize import canonical, is_words, plain_number, qualifiers, tidy, words_verdict
from rewards.symbols import rename_misread

_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|\\(?:text|mathrm)\{\s*(?:%|\\%|percent|pct)\s*\}|(?<=\s)percent)", re.DOTALL)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])")
_BASE = re.compile(r"([0-9A-Z]+)_\{?(\d{1,2})\}?")
_LETTER_UNIT = re.compile(r"[\d}][a-zA-Z]$")
# "2 hours 30 minutes": math-verify would drop the words and read 2.
_MIXED_UNITS = re.compile(r"\d\s*\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}\s*\d")
_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*")
# A name that an equation may give a value to: x, x_1, \\theta, AB, f(x), (x, y).
_NAME = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([^()=]*\))?|\([a-zA-Z_{}\d]+(?:,\s*[a-zA-Z_{}\d]+)+\)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MAX_ELEMENTS = 40
# Points at which two expressions are compared numerically; any generic irrational-looking values do.
_POINTS = (("0.7390851332151607", "0.1176470588235294"), ("1.3247179572447460", "0.0909090909090909"))


@lru_cache(maxsize=2)
def _targets(units: bool) -> tuple:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    normalization = NormalizationConfig(
        basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    return (LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization),)


def braces_match(text: str) -> bool:
    """Whether every brace of ``text`` that is not escaped has its partner."""
    depth = 0
    for match in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth < 0:
            return False
    return depth == 0


@lru_cache(maxsize=4096)
def parse_answer(answer: str) -> tuple:
    """Expressions math-verify reads from a tidied answer (LaTeX without delimiters), () where it reads none.

    Only the whole answer is read: looking for "some number" inside a sentence would find right answers that are not.
    A single letter directly after a number is a variable ("2t"), not a unit to drop.
    """
    from latex2sympy2_extended import normalize_latex
    from math_verify import parse
    from math_verify.parser import parse_latex_cached
    from sympy import nan, zoo

    if not braces_match(answer) or _MIXED_UNITS.search(answer):
        return ()  # only its beginning would be read

    targets = _targets(not _LETTER_UNIT.search(answer))
    parsed = parse("\\boxed{" + answer + "}", targets, fallback_mode="no_fallback", parsing_timeout=None)
    try:
        # math-verify picks a fraction out of an answer that it cannot read as a whole: "1/2, or rather \\frac{2}{3}".
        parse_latex_cached(normalize_latex(answer, targets[0].normalization_config))
    except Exception:
        return ()
    return tuple(item for item in parsed if not item.has(zoo, nan))  # a misreading, never an answer


def _numeric_values(expression: Any, other: Any) -> list[tuple[complex, complex]] | None:
    """Values of two scalar expressions at fixed points (the same for a symbol of the same name in both), else None."""
    from sympy import Expr, Float, Symbol

    if not (isinstance(expression, Expr) and isinstance(other, Expr)):
        return None
    names = sorted({symbol.name for symbol in expression.free_symbols | other.free_symbols})
    if isinstance(expression, Symbol) or isinstance(other, Symbol):
        return None  # may be a word, which math-verify compares with a product of letters
    values = []
    for start, step in _POINTS[: 2 if names else 1]:
        pair = []
        for item in (expression, other):
            point = {s: Float(start, 30) + names.index(s.name) * Float(step, 30) for s in item.free_symbols}
            value = complex(item.evalf(20, subs=point) if point else item.evalf(20))
            if not cmath.isfinite(value):
                return None
            pair.append(value)
        values.append((pair[0], pair[1]))
    return values


def _screen(gold: Any, answer: Any) -> bool | None:
    """False where numbers prove two expressions different, None where math-verify has to decide.

    It spares the costly simplification of wrong answers, and corrects one habit of math-verify: rounding to six
    decimals makes any two small numbers equal.
    """
    try:
        values = _numeric_values(gold, answer)
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, RecursionError):
        return None
    for left, right in values or ():
        size = max(abs(left), abs(right))
        if abs(left - right) > (1e-5 * max(1.0, size) if size > 1e-2 else 1e-3 * size):
            return False
    return None


def _is_assignment(relation: Any) -> bool:
    """Whether an equation names a value ("x = 3", "f(x) = x + 1", "AB = 5"), so that the value alone answers it."""
    from sympy import Add, Eq, Number, Pow

    return isinstance(relation, Eq) and not relation.lhs.has(Add, Pow, Number)


def _math_equal(gold: str, answer: str, unread: list[str]) -> bool:
    """Equality by math-verify; texts it cannot read are added to ``unread``."""
    from math_verify import verify
    from sympy import Set
    from sympy.core.relational import Relational

    gold_parsed, answer_parsed = parse_answer(gold), parse_answer(answer)
    if not gold_parsed or not answer_parsed:
        unread += [text for text, parsed in ((gold, gold_parsed), (answer, answer_parsed)) if not parsed]
        return False
    one_sided = isinstance(gold_parsed[0], Relational) and not isinstance(answer_parsed[0], Relational | Set)
    if one_sided and not _is_assignment(gold_parsed[0]):
        return False  # math-verify would take "5" for an answer to "x + y = 5"
    if _screen(gold_parsed[0], answer_parsed[0]) is False:
        return False
    return bool(
        verify(list(gold_parsed), list(answer_parsed), timeout_seconds=None)
        or verify(list(answer_parsed), list(gold_parsed), timeout_seconds=None)
    )


def _split_top_level(text: str, separators: str) -> list[str]:
    """Non-empty parts of ``text`` between separators (single characters) that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth == 0 and (index == 0 or text[index - 1] != "\\"):
            parts.append(text[start:index].strip())
            start = index + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def split_brackets(text: str) -> tuple[str, list[str]] | None:
    """("(]", elements) of a tuple, point or interval of at least two elements, None for anything else."""
    if len(text) < 5 or text[0] not in "([" or text[-1] not in ")]":
        return None
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and index < len(text) - 1:
            return None  # "(1,2),(3,4)"
    elements = _split_top_level(text[1:-1], ",")
    return (text[0] + text[-1], elements) if depth == 0 and len(elements) > 1 else None


def split_elements(text: str) -> list[str]:
    """Elements of a list or set written at top level: "1, 2 and 3", "\\{1, 2\\}"; a tuple or interval is one element.

    ``a \\pm b`` with a single sign counts as two elements, and a union of intervals as its parts.
    """
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}") and text.count("\\{") == 1:
        text = text[2:-2]
    if plain_number(text):  # "1,234"
        return [text]
    elements = _split_top_level(_AND.sub(",", text), ",;")
    if len(elements) == 1:
        elements = [part.strip() for part in re.split(r"\\cup(?![a-zA-Z])", elements[0])]
    signs = ("\\pm", "\\mp")
    if len(elements) == 1 and sum(elements[0].count(sign) for sign in signs) == 1:
        sign = signs[0] if signs[0] in elements[0] else signs[1]
        elements = [elements[0].replace(sign, "+"), elements[0].replace(sign, "-")]
    return elements


def split_equation(text: str) -> tuple[str, str] | None:
    """(left, right) of a text with exactly one equals sign that is no part of another relation, else None."""
    left, sign, right = text.partition("=")
    if not sign or "=" in right or left.endswith(("<", ">", "!", ":", "\\")) or not left.strip() or not right.strip():
        return None
    return left.strip(), right.strip()


def _same(gold: str, answer: str, unread: list[str]) -> bool:
    """Whether two tidied answers are equal, taken apart as far as their form allows.

    Taking lists and tuples apart here is both surer than math-verify (which pairs a set's elements after sorting them)
    and faster: its grammar needs 50 ms and more for a bracketed pair, and a few for each element.
    """
    if canonical(gold) == canonical(answer):
        return True
    gold_tuple, answer_tuple = split_brackets(gold), split_brackets(answer)
    if gold_tuple and answer_tuple:
        if gold_tuple[0] != answer_tuple[0] or len(gold_tuple[1]) != len(answer_tuple[1]):
            return False
        return all(_same(one, other, unread) for one, other in zip(gold_tuple[1], answer_tuple[1], strict=True))
    gold_elements, answer_elements = split_elements(gold), split_elements(answer)
    if len(gold_elements) == len(answer_elements) and 1 < len(gold_elements) <= _MAX_ELEMENTS:
        left, unread_before = list(answer_elements), len(unread)
        for element in gold_elements:  # greedy matching is enough, equality being transitive
            match = next((other for other in left if _same(element, other, unread)), None)
            if match is None:
                break
            left.remove(match)
        else:
            return True
        if len(unread) == unread_before:
            return False
    gold_sides, answer_sides = split_equation(gold), split_equation(answer)
    if gold_sides and answer_sides and canonical(gold_sides[0]) == canonical(answer_sides[0]):
        return _same(gold_sides[1], answer_sides[1], unread)
    if gold_sides and not answer_sides and _NAME.fullmatch(gold_sides[0]):
        return _same(gold_sides[1], answer, unread)
    if answer_sides and not gold_sides and _NAME.fullmatch(answer_sides[0]):
        return _same(gold, answer_sides[1], unread)
    return _math_equal(gold, answer, unread)


def _readings(text: str) -> list[str]:
    """Ways to read an answer: as it stands, and with "1.4e3" as scientific notation rather than Euler's number."""
    scientific = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return [text] if scientific == text else [scientific, text]


def _split_percent(text: str) -> tuple[str, bool]:
    match = _PERCENT.fullmatch(text)
    return (match.group(1), True) if match and match.group(1) else (text, False)


def equivalent(gold: str, answer: str) -> tuple[bool, str]:
    """Whether ``answer`` equals ``gold`` (LaTeX, delimiters allowed), and what decided.

    The second value is "text", "math", or "unparsed" where math-verify could make nothing of one of them, so that only
    their spelling was compared.  math-verify follows the form of its first argument, so both directions are tried.
    """
    if canonical(gold) == canonical(answer):
        return True, "text"
    if is_words(gold):
        return words_verdict(gold, answer), "text"
    gold, answer = tidy(gold), tidy(answer)
    gold_base, answer_base = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if gold_base and answer_base:
        return gold_base.groups() == answer_base.groups(), "text"
    if qualifiers(gold) != qualifiers(answer):
        return False, "text"
    (gold, gold_percent), (answer, answer_percent) = _split_percent(gold), _split_percent(answer)
    golds, answers = _readings(gold), _readings(answer)
    # "50 %" answers both 50 (the question asked for a percentage) and 0.5.
    if gold_percent and not answer_percent:
        golds += [f"\\frac{{{gold}}}{{100}}"]
    if answer_percent and not gold_percent:
        answers += [f"\\frac{{{answer}}}{{100}}"]
    unread: list[str] = []
    pairs = [rename_misread(one, other) for one, other in product(golds, answers)]
    if any(_same(one, other, unread) for one, other in pairs):
        return True, "math"
    return False, "unparsed" if unread else "math"
