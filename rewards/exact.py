"""Whether two parsed numbers or expressions are equal, decided without rounding if neither is a decimal.

Rationals are compared as fractions. Other constants are equal if no digit of their difference can be found: sympy
raises its precision as far as the size of the numbers in them can push two different values together (so
``ln(2^100 + 1)`` and ``100 ln 2`` differ). Expressions with symbols are compared so at several points. What is too
big to be written out, a tower of powers, is no answer here. Runs only inside a grading child.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from sympy import (
    Abs,
    Add,
    Basic,
    Expr,
    Mul,
    Pow,
    Rational,
    UnevaluatedExpr,
    binomial,
    ceiling,
    factorial,
    floor,
    nan,
    oo,
    zoo,
)

from rewards.normalize import ROUNDED, agree_rounded

MAX_BITS = 1 << 20  # of an integer that is written out
MAX_DIGITS = 12_000  # to which a difference is looked into
_SPARE_DIGITS = 60
# Where expressions in symbols are compared: any values that answers do not contain.  (first, step) for x, y, …
_POINTS = (
    (Rational(739085, 999983), Rational(117647, 999979)),
    (Rational(2324717, 999961), Rational(590909, 999959)),
    (Rational(-1618033, 999953), Rational(1324717, 999931)),
    (Rational(-271828, 999917), Rational(-314159, 999907)),
)


class TooLarge(ArithmeticError):
    """A number in an expression has more than ``MAX_BITS`` bits."""


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _bounded(bits: float) -> None:
    if bits > MAX_BITS:
        raise TooLarge


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    if base == 0 and exponent <= 0:
        raise ZeroDivisionError
    if base in (0, 1):
        return base
    _bounded(_bits(base) * abs(exponent))
    return base ** int(exponent)


def exact_value(expression: Basic) -> Fraction | None:
    """The rational number that an expression (evaluated or not) is; None if it is none that arithmetic finds.

    Raises:
        TooLarge: the number cannot be written out.
        ZeroDivisionError: the expression divides by zero.
    """
    if isinstance(expression, Rational):
        return Fraction(expression.p, expression.q)
    if isinstance(expression, UnevaluatedExpr):
        return exact_value(expression.args[0])
    if not isinstance(expression, Add | Mul | Pow | factorial | binomial | floor | ceiling | Abs):
        return None
    values = []
    for argument in expression.args:
        value = exact_value(argument)
        if value is None:
            return None
        values.append(value)
    if isinstance(expression, Add | Mul):
        _bounded(sum(map(_bits, values)))
        return sum(values, Fraction(0)) if isinstance(expression, Add) else math.prod(values)
    if isinstance(expression, Pow):
        return _power(*values)
    first = values[0]
    if isinstance(expression, Abs):
        return abs(first)
    if isinstance(expression, floor | ceiling):
        return Fraction(math.floor(first) if isinstance(expression, floor) else math.ceil(first))
    if any(value.denominator != 1 or value < 0 for value in values):
        return None
    _bounded(first.numerator * max(first.numerator.bit_length(), 1) / 2)
    return Fraction(math.factorial(int(first)) if isinstance(expression, factorial) else math.comb(*map(int, values)))


def _height(expression: Basic) -> float:
    """Digits by which two different values built of these numbers may agree, roughly.

    Raises:
        TooLarge: a number cannot be written out.
    """
    value = exact_value(expression)
    if value is not None:
        return _bits(value) * 0.302
    if isinstance(expression, Pow):
        exponent = exact_value(expression.exp)
        if exponent is not None:
            height = max(abs(exponent), 1) * _height(expression.base)
        else:
            height = _height(expression.base) * (1 + _height(expression.exp))
    else:
        height = 1 + sum(map(_height, expression.args))
        if expression.is_Function and len(expression.args) == 1 and expression.func.__name__ in ("exp", "sinh", "cosh"):
            exponent = exact_value(expression.args[0])
            height += float(abs(exponent)) if exponent is not None and abs(exponent) < MAX_BITS else 0
    _bounded(height)
    return height


def _found(part: Expr) -> bool:
    """Whether evaluation found a digit of a number other than zero."""
    return bool(part.is_Number) and part != 0 and getattr(part, "_prec", 2) > 1


@lru_cache(maxsize=4096)
def _parts(side: Expr, point: tuple, digits: int) -> tuple[Expr, Expr]:
    """Real and imaginary part to 15 digits at a point ((symbol, value), …)."""
    return side.evalf(15, subs=dict(point), maxn=digits).as_real_imag()


def _difference(gold: Expr, answer: Expr, point: dict, digits: int) -> bool | None:
    """Whether the two differ at ``point``; None if that cannot be said, or only one of them is real there."""
    try:
        parts = [_parts(side, tuple(point.items()), digits) for side in (gold, answer)]
        if not all(part.is_Number and part.is_finite for pair in parts for part in pair):
            return None
        if point and _found(parts[0][1]) != _found(parts[1][1]):
            return None
        apart = [abs(one - other) > 1e-9 * max(abs(one), abs(other)) for one, other in zip(*parts, strict=True)]
        if any(away and (_found(one) or _found(other)) for away, one, other in zip(apart, *parts, strict=True)):
            return True
        real, imaginary = (
            Add(gold, Mul(-1, answer, evaluate=False), evaluate=False).evalf(2, subs=point, maxn=digits).as_real_imag()
        )
        return _found(real) or _found(imaginary)
    except (TypeError, ValueError, AttributeError, NotImplementedError, ArithmeticError):
        return None


def _agree_rounded(gold: Expr, answer: Expr, point: dict) -> bool | None:
    try:
        values = [complex(side.evalf(25, subs=point)) for side in (gold, answer)]
    except (TypeError, ValueError, AttributeError, NotImplementedError, ArithmeticError):
        return None
    if not all(math.isfinite(value.real) and math.isfinite(value.imag) for value in values):
        return None
    size = max(map(abs, values))
    return abs(values[0] - values[1]) < (float(ROUNDED) if size > 1e-2 else 1e-3 * size) or values[0] == values[1]


def equal_expressions(gold: Expr, answer: Expr, rounded: bool = False) -> bool | None:
    """Whether two scalar expressions are equal; None if evaluation cannot tell (unknown functions, no numbers).

    Args:
        gold: of the gold answer.
        answer: of the response's answer.
        rounded: one of them is a decimal, which stands for what it was rounded from.

    Raises:
        TooLarge: they are not spelled alike but cannot be written out.
    """
    if gold == answer:
        return None if gold.has(nan, zoo) else True
    if gold.has(nan, zoo) or answer.has(nan, zoo):
        return False
    if gold in (oo, -oo) or answer in (oo, -oo):
        return False
    try:
        values = exact_value(gold), exact_value(answer)
    except ZeroDivisionError:
        return False
    if values[0] is not None and values[1] is not None:
        return agree_rounded(*values) if rounded else values[0] == values[1]
    digits = min(int(_SPARE_DIGITS + 3 * (_height(gold) + _height(answer))), MAX_DIGITS)
    names = sorted({symbol.name for symbol in gold.free_symbols | answer.free_symbols})
    verdicts = []
    for first, step in _POINTS[: len(_POINTS) if names else 1]:
        point = {symbol: first + names.index(symbol.name) * step for symbol in gold.free_symbols | answer.free_symbols}
        if rounded:
            verdict = _agree_rounded(gold, answer, point)
        else:
            differ = _difference(gold, answer, point, digits)
            verdict = None if differ is None else not differ
        if verdict is False:
            return False
        verdicts.append(verdict)
    return True if verdicts.count(True) >= min(len(verdicts), 2) else None
