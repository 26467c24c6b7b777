"""Whether two answers are equal. Runs only inside a grading child: it may hang, crash or eat memory.

An answer is taken apart as far as its form says (choices, words, times, lists, tuples, named values, equations, ratios,
sets of reals, units), and its values are compared exactly (``rewards.exact``). What is left, equations in general,
inequalities and functions, is asked of math-verify.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from math_verify import verify
from sympy import Expr, MatrixBase, Rational, solve
from sympy.core.relational import Eq, Relational

from rewards.choices import choice_content
from rewards.exact import TooLarge, equal_expressions
from rewards.forms import (
    base_name,
    is_name,
    is_set,
    split_brackets,
    split_chain,
    split_elements,
    split_ratio,
    without_label,
)
from rewards.measures import split_percent, split_unit
from rewards.normalize import plain_text, spelling, text_verdict, tidy
from rewards.reading import read
from rewards.regions import ascending, is_builder, may_be_region, open_builder, read_region, same_region
from rewards.symbols import has_imaginary_unit
from rewards.vocabulary import GREEK

_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])")
# A decimal, with a power of ten or as hundredths; "0.5^{100}" is a number to compute with.
_DECIMAL = re.compile(r"(?:\\frac\{)?[+-]? ?\d*\.\d+ ?(?:\\(?:times|cdot) ?10\^\{[+-]?\d+\}|\}\{100\})?", re.DOTALL)
_BASE = re.compile(r"([0-9A-Z]+)_\{(\d{1,2})\}")
_WITHOUT_COMMANDS = re.compile(r"\\text\{[^{}]*\}|\\[a-zA-Z]+")
_GREEK_SYMBOL = re.compile(rf"\\(?:{'|'.join(GREEK - {'pi', 'infty'})})(?![a-zA-Z])")
_MEMBER = re.compile(r"^[a-zA-Z](?: ?_\{\w+\})? ?\\in ?(?=\\\{)")  # x \in \{1, 2\}
_MAX_ELEMENTS = 40
_PLACES = re.compile(r"[+-]? ?\d+(?:\.(\d+))?")
_NEAR = 0.01  # relative distance up to which "a \\approx b" is no contradiction if neither is a decimal
Named = list[tuple[str, str]]


class _Comparison:
    """One question: whether i is the imaginary unit in it, and what could not be read."""

    def __init__(self, imaginary: bool):
        self.imaginary = imaginary
        self.unread: list[str] = []
        self.too_large = False

    # --- lists ---

    def same(self, gold: str, answer: str) -> bool:
        """Whether two tidied answers are equal, taken apart as far as their form allows."""
        if spelling(gold) == spelling(answer):
            return True
        if all(map(may_be_region, (gold, answer))) or any(map(is_builder, (gold, answer))):
            verdict = self.same_regions(gold, answer)
            if verdict is not None:
                return verdict
        gold, answer = (_MEMBER.sub("", without_label(open_builder(text)[0])) for text in (gold, answer))
        named = _named_values(gold), _named_values(answer)
        if named[0] or named[1]:
            return self.same_named(gold, answer, *named)
        tuples = split_brackets(gold), split_brackets(answer)
        if tuples[0] and tuples[1]:
            if tuples[0][0] != tuples[1][0]:
                return False
            return self.same_in_order(tuples[0][1], tuples[1][1])
        elements = split_elements(gold), split_elements(answer)
        for bracketed, other, listed in ((tuples[0], answer, elements[1]), (tuples[1], gold, elements[0])):
            if bracketed and len(listed) > 1:
                # A list without brackets may be a tuple, one in braces is a set.
                if is_set(other) or bracketed[0] not in ("()", "[]") or (bracketed[0] == "[]" and len(listed) < 3):
                    return False
                return self.same_in_order(
                    *((bracketed[1], listed) if bracketed is tuples[0] else (listed, bracketed[1]))
                )
        if len(elements[0]) > 1 or len(elements[1]) > 1:
            return self.same_in_any_order(*elements)
        if elements[0] and elements[1] and (elements[0][0], elements[1][0]) != (gold, answer):
            return self.same(elements[0][0], elements[1][0])
        return self.same_value(gold, answer)

    def same_in_order(self, gold: list[str], answer: list[str]) -> bool:
        return len(gold) == len(answer) and all(map(self.same, gold, answer))

    def same_in_any_order(self, gold: list[str], answer: list[str]) -> bool:
        if len(gold) != len(answer) or len(gold) > _MAX_ELEMENTS:
            return False
        left = list(answer)
        for element in gold:  # greedy matching is enough, equality being transitive
            match = next((other for other in left if self.same(element, other)), None)
            if match is None:
                return False
            left.remove(match)
        return True

    def same_named(self, gold: str, answer: str, gold_named: Named | None, answer_named: Named | None) -> bool:
        """Values with names, "x=1, y=2" or "(x,y)=(1,2)", against others with names, a tuple in their order, a list."""
        if gold_named and answer_named:
            names = [sorted(name for name, _ in named) for named in (gold_named, answer_named)]
            if names[0] == names[1] and len(set(names[0])) == len(names[0]) and not _one_base(gold_named):
                values = dict(answer_named)
                return all(self.same_value(value, values[name]) for name, value in gold_named)
            if _one_base(gold_named) != _one_base(answer_named) or not _one_base(gold_named):
                return False
            return self.same_in_any_order([value for _, value in gold_named], [value for _, value in answer_named])
        named, other, swapped = (gold_named, answer, False) if gold_named else (answer_named, gold, True)
        brackets = split_brackets(other)
        listed = brackets[1] if brackets else split_elements(other)
        in_order = [value for _, value in sorted(named, key=lambda pair: _name_order(pair[0]))]
        sides = (listed, in_order) if swapped else (in_order, listed)
        if _one_base(named):
            return self.same_in_order(*sides) if brackets else self.same_in_any_order(*sides)
        if is_set(other) or (brackets and brackets[0] != "()"):
            return False
        return self.same_in_order(*sides)

    # --- regions, equations, ratios ---

    def same_regions(self, gold: str, answer: str) -> bool | None:
        brackets = split_brackets(gold), split_brackets(answer)
        if brackets[0] and brackets[1]:
            return None  # element by element: they may be points
        regions = read_region(gold), read_region(answer)
        if regions[0] is None or regions[1] is None:
            return None
        return same_region(regions[0], regions[1])

    def same_value(self, gold: str, answer: str) -> bool:
        """Equality of two single answers, equations among them."""
        if spelling(gold) == spelling(answer):
            return True
        chains = split_chain(gold), split_chain(answer)
        if chains[0] is None or chains[1] is None:
            return self.by_math_verify(gold, answer)
        if len(chains[0][0]) == len(chains[1][0]) == 1:
            return self.same_ratio(gold, answer)
        meanings = self.meaning(*chains[0]), self.meaning(*chains[1])
        (gold_name, gold_values), (answer_name, answer_values) = meanings
        if gold_values is None or answer_values is None:  # an equation that gives no value to a name
            if len(chains[0][0]) != 2 or len(chains[1][0]) != 2:
                return False
            return self.by_math_verify(gold, answer)
        if not gold_values or not answer_values:
            return False  # a false equation
        if _are_other_names(gold_name, answer_name):
            symbolic = any(_symbols(value) for value in gold_values + answer_values)
            return symbolic and len(chains[0][0]) == len(chains[1][0]) == 2 and self.by_math_verify(gold, answer)
        return any(self.same(one, other) for one, other in product(gold_values, answer_values))

    def meaning(self, sides: list[str], approximate: bool) -> tuple[str, list[str] | None]:
        """(name, values) that a chain of equations gives: [] if it is false, None if it gives none.

        The value is the last side (the first if the name stands last); of an approximate chain it is the first exact
        side, and the decimal that this is rounded to is one, too.
        """
        if len(sides) == 1:
            return "", sides
        names, values = [], list(sides)
        while len(values) > 1 and is_name(values[0]):
            names.append(values.pop(0))
        if not names and is_name(values[-1]):
            names.append(values.pop())
            values.reverse()
        constants = [value for value in values if not _symbols(value)]
        if not names and len(constants) < len(values):
            return "", None
        if any(not self.consistent(one, constants[-1], approximate) for one in constants[:-1]):
            return "", []
        if approximate:
            exact = [value for value in values if not _PLACES.fullmatch(value)]
            decimals = [value for value in values if _DECIMAL.fullmatch(value)]
            values = exact[:1] + decimals[-1:] if exact else values[:1]
        return (names[0] if names else ""), (values if approximate else values[-1:])

    def consistent(self, one: str, other: str, approximate: bool) -> bool:
        """Whether two sides of an equation in numbers agree; if it is approximate, one may be the other rounded."""
        if not approximate:
            return self.same(one, other)
        one, other = split_unit(one, False), split_unit(other, False)
        values = read(one, self.imaginary), read(other, self.imaginary)
        if not all(isinstance(value, Expr) and not value.free_symbols for value in values):
            return False
        try:
            first, second = (complex(value.evalf(15)) for value in values)
        except (TypeError, ValueError, ArithmeticError):
            return False
        places = [len(match[1] or "") for match in map(_PLACES.fullmatch, (one, other)) if match]
        near = 10.0 ** -min(places) if places else _NEAR * max(abs(first), abs(second))
        return abs(first - second) <= near

    def same_ratio(self, gold: str, answer: str) -> bool:
        """Ratios term by term, or one of two terms against a fraction; other values as numbers with units."""
        terms = split_ratio(gold), split_ratio(answer)
        if len(terms[0]) > 1 and len(terms[1]) > 1:
            if len(terms[0]) != len(terms[1]):
                return False
            crossed = [
                (f"({one})\\cdot({other_next})", f"({other})\\cdot({one_next})")
                for one, one_next, other, other_next in zip(
                    terms[0], terms[0][1:], terms[1], terms[1][1:], strict=False
                )
            ]
            return all(self.same_number(*pair) for pair in crossed)
        if max(len(terms[0]), len(terms[1])) > 2:
            return False
        gold, answer = (f"\\frac{{{t[0]}}}{{{t[1]}}}" if len(t) == 2 else t[0] for t in terms)
        return self.same_quantity(gold, answer)

    # --- numbers ---

    def same_quantity(self, gold: str, answer: str) -> bool:
        """Numbers with units, which do not count, and percent signs: "50 %" answers both 50 and 0.5."""
        bases = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
        if any(bases):
            digits = [base.group(1) if base else text for base, text in zip(bases, (gold, answer), strict=True)]
            return digits[0] == digits[1] and (not all(bases) or bases[0].group(2) == bases[1].group(2))
        gold, answer = (
            split_unit(gold, not _symbols(answer), any_noun=True),
            split_unit(answer, not _symbols(gold)),
        )
        if spelling(gold) == spelling(answer):
            return True
        (gold, gold_percent), (answer, answer_percent) = split_percent(gold), split_percent(answer)
        golds, answers = _readings(gold), _readings(answer)
        if gold_percent and not answer_percent:
            golds += [f"\\frac{{{gold}}}{{100}}"]
        if answer_percent and not gold_percent:
            answers += [f"\\frac{{{answer}}}{{100}}"]
        return any(self.same_number(one, other) for one, other in product(golds, answers))

    def same_number(self, gold: str, answer: str) -> bool:
        values = self.read(gold), self.read(answer)
        if values[0] is None or values[1] is None:
            return False
        if isinstance(values[0], MatrixBase) and isinstance(values[1], MatrixBase):
            rounded = "." in gold + answer
            return values[0].shape == values[1].shape and all(
                self.equal(one, other, rounded) is True
                for one, other in zip(values[0].flat(), values[1].flat(), strict=True)
            )
        if isinstance(values[0], Expr) and isinstance(values[1], Expr):
            rounded = any(_DECIMAL.fullmatch(text) for text in (gold, answer))
            verdict = self.equal(values[0], values[1], rounded)
            if verdict is not None:
                return verdict
        return _ask_math_verify(*values)

    def by_math_verify(self, gold: str, answer: str) -> bool:
        """Relations and equations: proportional ones are the same, of others math-verify knows more."""
        values = self.read(ascending(gold)), self.read(ascending(answer))
        if values[0] is None or values[1] is None:
            return False
        if isinstance(values[0], Relational) != isinstance(values[1], Relational):
            return False  # math-verify would take "5" for an answer to "x + y = 5"
        if isinstance(values[0], Eq) and isinstance(values[1], Eq):
            return self.same_equation(*values)
        return _ask_math_verify(*values)

    def same_equation(self, gold: Eq, answer: Eq) -> bool:
        """Equations in the same symbols that are multiples of each other or, of one symbol, have the same solutions."""
        symbols = gold.free_symbols
        if {symbol.name for symbol in symbols} != {symbol.name for symbol in answer.free_symbols} or not symbols:
            return False
        if not all(isinstance(side, Expr) for equation in (gold, answer) for side in equation.args):
            return _ask_math_verify(gold, answer)
        zeros = [equation.lhs - equation.rhs for equation in (gold, answer)]
        point = {symbol: Rational(3 + index, 1009) for index, symbol in enumerate(sorted(symbols, key=str))}
        there = [zero.subs(point) for zero in zeros]
        if all(value.is_number and value != 0 for value in there) and self.equal(
            zeros[0] * there[1], zeros[1] * there[0]
        ):
            return True
        if len(symbols) > 1:
            return _ask_math_verify(gold, answer)
        try:
            roots = [solve(zero, *symbols) for zero in zeros]
        except (NotImplementedError, ValueError, TypeError, ArithmeticError):  # sympy knows no method for one of them
            return False
        left = list(roots[1])
        for root in roots[0]:
            match = next((other for other in left if self.equal(root, other)), None)
            if match is None:
                return False
            left.remove(match)
        return bool(roots[0]) and not left

    def equal(self, gold: Expr, answer: Expr, rounded: bool = False) -> bool | None:
        try:
            return equal_expressions(gold, answer, rounded)
        except TooLarge:
            self.too_large = True
            return False

    def read(self, text: str) -> Any:
        value = read(text, self.imaginary)
        if value is None:
            self.unread.append(text)
        return value


def _ask_math_verify(gold: Any, answer: Any) -> bool:
    """math-verify follows the form of its first argument, so both directions are tried."""
    return bool(verify([gold], [answer], timeout_seconds=None) or verify([answer], [gold], timeout_seconds=None))


def _symbols(text: str) -> bool:
    """Whether a tidied text has a letter that may be a variable, e and i aside."""
    letters = set(re.findall("[a-zA-Z]", _WITHOUT_COMMANDS.sub(" ", text)))
    return bool(letters - {"e", "i"} or _GREEK_SYMBOL.search(text))


def _are_other_names(one: str, other: str) -> bool:
    """Whether two names cannot mean the same; a name in words may mean anything, as may none at all."""
    return bool(one and other) and spelling(one) != spelling(other) and "\\text{" not in one + other


def _named_values(text: str) -> Named | None:
    """(name, value) of each of at least two named values: "x=1, y=2", "x=1 or 2", "(x,y)=(1,2)"; else None."""
    chain = split_chain(text)
    if chain and len(chain[0]) == 2:
        names, values = split_brackets(chain[0][0]), split_brackets(chain[0][1])
        if names and values and len(names[1]) == len(values[1]) and all(map(is_name, names[1])):
            return list(zip(map(spelling, names[1]), values[1], strict=True))
    elements = split_elements(text)
    if len(elements) < 2:
        return None
    named: Named = []
    for element in elements:
        parts = split_chain(element)
        if parts is None:
            return None
        sides = parts[0]
        if len(sides) == 2 and is_name(sides[0]):
            named.append((spelling(sides[0]), sides[1]))
        elif len(sides) == 2 and is_name(sides[1]):
            named.append((spelling(sides[1]), sides[0]))
        elif len(sides) == 1 and named:
            named.append((named[-1][0], sides[0]))
        else:
            return None
    return named


def _one_base(named: Named) -> bool:
    """Whether all values are values of one quantity: x_1 and x_2, or x and x."""
    return len({base_name(name) for name, _ in named}) == 1


def _name_order(name: str) -> tuple:
    """A sorting key: letters by the alphabet, Greek after Latin ones, subscripts by their number."""
    parts = re.findall(r"\d+|\D", name)
    return name.startswith("\\"), [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _readings(text: str) -> list[str]:
    """Ways to read an answer: as it stands, and with "1.4e3" as scientific notation rather than Euler's number."""
    scientific = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return [text] if scientific == text else [scientific, text]


def equivalent(gold: str, answer: str) -> tuple[bool, str]:
    """Whether two answers are equal.

    Args:
        gold: the gold answer, LaTeX with or without delimiters.
        answer: likewise, as a response has it.

    Returns:
        (equal, what decided): "text", "math", "too large" if a number cannot be written out, or "unparsed" if nothing
        could be made of one of them, so that only their spelling was compared.
    """
    gold, answer = tidy(gold), tidy(answer)
    verdict = text_verdict(gold, answer)
    if verdict is not None:
        return verdict, "text"
    gold = choice_content(plain_text(gold)) or gold
    comparison = _Comparison(has_imaginary_unit(gold, answer))
    if comparison.same(gold, answer):
        return True, "math"
    if comparison.too_large:
        return False, "too large"
    return False, "unparsed" if comparison.unread else "math"
