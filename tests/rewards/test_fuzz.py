"""The comparison under random answers: exact numbers, their spellings, collections of them, and hostile text."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rewards.compare import equivalent
from rewards.grader import Grader
from rewards.normalize import canonical, tidy
from rewards.pool import KILL_AFTER_S

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
Exact = tuple[str, Fraction]  # LaTeX, and the number that it is


def _whole(value: int) -> Exact:
    return str(value), Fraction(value)


def _in_brackets(text: str) -> str:
    return f"({text})"


@st.composite
def combined(draw: st.DrawFn, parts: st.SearchStrategy[Exact]) -> Exact:
    """Two numbers joined by an operation, spelled in one of its ways."""
    (one, first), (other, second) = draw(parts), draw(parts)
    kind = draw(st.sampled_from(["+", "-", "\\cdot", "()()", "\\frac", "/", "^", "!", "binom"]))
    if kind == "+":
        return f"{one}+{_in_brackets(other)}", first + second
    if kind == "-":
        return f"{one}-{_in_brackets(other)}", first - second
    if kind == "\\cdot":
        return f"{_in_brackets(one)} \\cdot {_in_brackets(other)}", first * second
    if kind == "()()":
        return f"{_in_brackets(one)}{_in_brackets(other)}", first * second
    if kind in ("\\frac", "/"):
        assume(second != 0)
        text = f"\\frac{{{one}}}{{{other}}}" if kind == "\\frac" else f"{_in_brackets(one)}/{_in_brackets(other)}"
        return text, first / second
    if kind == "^":
        power = draw(st.integers(-40, 400))
        assume(first != 0 and abs(first.numerator) < 10**6 and first.denominator < 10**6)
        return f"{_in_brackets(one)}^{{{power}}}", first**power
    top = draw(st.integers(0, 60))
    if kind == "!":
        return f"{top}!", Fraction(math.factorial(top))
    bottom = draw(st.integers(0, 60))
    return f"\\binom{{{top}}}{{{bottom}}}", Fraction(math.comb(top, bottom))


exact_numbers = st.recursive(st.integers(-50, 50).map(_whole), combined, max_leaves=5)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Exact, Exact]:
    """A number, and one that differs by less than a double or a rounding can tell, or not at all."""
    text, value = draw(exact_numbers)
    power = draw(st.integers(7, 5000))
    sign = draw(st.sampled_from(["+", "-"]))
    base = draw(st.sampled_from([2, 10]))
    step = Fraction(1, base**power)
    other = draw(
        st.sampled_from(
            [
                (f"{text}{sign}{base}^{{-{power}}}", value + step if sign == "+" else value - step),
                (
                    f"({text})(1{sign}\\frac{{1}}{{{base}^{{{power}}}}})",
                    value * (1 + step if sign == "+" else 1 - step),
                ),
                (f"({text})+0^{{{power}}}", value),
            ]
        )
    )
    return (text, value), other


@FUZZ
@given(exact_numbers, exact_numbers)
def test_two_exact_numbers_are_equal_where_their_values_are(one, other):
    assert equivalent(one[0], other[0])[0] == (one[1] == other[1])


@FUZZ
@given(neighbours())
def test_numbers_that_nearly_agree_are_told_apart(pair):
    (one, first), (other, second) = pair
    assert equivalent(one, other)[0] == equivalent(other, one)[0] == (first == second)


@FUZZ
@given(exact_numbers, st.sampled_from(["\\sqrt{2}", "\\pi", "e", "\\ln 3", "x", "3i", "\\sqrt[3]{5}"]))
def test_an_exact_factor_is_told_apart_beside_what_is_not_rational(number, other):
    text, value = number
    assume(value != 0 and abs(value) < 10**30)
    assert equivalent(f"({text})\\cdot {other}", f"{other}\\cdot ({value})")[0]
    close = value * (1 + Fraction(1, 10**25))
    assert not equivalent(f"({text})\\cdot {other}", f"{other}\\cdot ({close})")[0]


def spellings(value: Fraction) -> list[str]:
    """Ways to write one number."""
    number = f"{abs(value.numerator)}" if value.denominator == 1 else None
    sign = "-" if value < 0 else ""
    fraction = f"{abs(value.numerator)}/{value.denominator}"
    ways = [f"{sign}{fraction}", f"{sign}\\frac{{{fraction.replace('/', '}{')}}}", f"$ {sign}{fraction} $"]
    whole, rest = divmod(abs(value.numerator), value.denominator)
    if number:
        ways = [f"{sign}{number}", f"{sign}{number}.0", f"{sign}{int(number):,}", f"\\mathbf{{{sign}{number}}}"]
        ways += [
            f"{sign}{number}\\text{{ cm}}",
            f"x={sign}{number}",
            f"{sign}{number} students",
            f"−{number}" if sign else number,
        ]
    elif whole:
        ways += [f"{sign}{whole} {rest}/{value.denominator}", f"{sign}{whole}\\frac{{{rest}}}{{{value.denominator}}}"]
    return ways


rationals = st.fractions(min_value=-3000, max_value=3000, max_denominator=60)


@FUZZ
@given(rationals, rationals, st.data())
def test_every_spelling_of_a_number_is_that_number(one, other, data):
    first, second = (data.draw(st.sampled_from(spellings(value))) for value in (one, other))
    assert equivalent(first, second)[0] == equivalent(second, first)[0] == (one == other)
    assert equivalent(first, data.draw(st.sampled_from(spellings(one))))[0]


@FUZZ
@given(st.lists(rationals, min_size=2, max_size=4), st.data())
def test_order_counts_in_tuples_and_not_in_sets(values, data):
    shuffled = data.draw(st.permutations(values))
    first, second = (
        ", ".join(data.draw(st.sampled_from(spellings(value)[:2])) for value in some) for some in (values, shuffled)
    )
    assert equivalent(f"\\{{{first}\\}}", f"\\{{{second}\\}}")[0] and equivalent(first, second)[0]
    assert equivalent(f"({first})", f"({second})")[0] == (list(shuffled) == values)
    assert not equivalent(f"({first})", f"\\{{{second}\\}}")[0]
    named = ", ".join(f"{name}={value}" for name, value in zip("abcd", shuffled, strict=False))
    assert equivalent(f"({first})", named)[0] == (list(shuffled) == values)


TOKENS = [
    "1", "2", "17", "0.5", "x", "y", "n", "e", "i", "\\pi", "\\sqrt", "\\frac", "{", "}", "(", ")", "[", "]", "|",
    "^", "_", "+", "-", "=", "<", ",", ";", ":", "/", "*", "!", " ", "\\quad ", "\\text{", " or ", " cm", "\\%",
    "$", "\\ln ", "sin", "\\{", "\\}", "\\le ", "\\infty", "\\cup ", "\\pm ", "\\binom", "\\sum", "\\int", "&",
    "\\\\", "\\begin{matrix}", "\\end{matrix}", "°", "½", "，", "A", "B", "PM", "\\boxed", "'", "\"", "9^{9^{9}}",
    "…",
]  # fmt: skip
garbage = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=14).map("".join)


@settings(FUZZ, max_examples=400)
@given(garbage)
def test_any_text_is_tidied_once_and_for_all(text):
    tidied = tidy(text)
    assert isinstance(tidied, str) and len(tidied) <= 12 * len(text) + 60
    assert tidy(text) == tidied and canonical(text) == canonical(f"  {text} ")


def towers() -> list[str]:
    return [f"{base}^{{{base}^{{{base}^{{{base}}}}}}}{end}" for base in (7, 8, 9) for end in ("", "+x", "!", "\\pi")]


@pytest.mark.parametrize("golds", [("6", "\\sqrt{2}", "x+1", "(0,1)")])
def test_no_verdict_comes_after_its_deadline(golds):
    cases: list[tuple[str, str]] = [(golds[0], tower) for tower in towers()]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(golds), garbage)
    def collect(gold: str, text: str) -> None:
        cases.append((gold, text))

    collect()
    grader = Grader(deadline_s=2.0, cpu_s=0.4, children=2)
    begin = time.monotonic()
    try:
        with ThreadPoolExecutor(4) as threads:
            verdicts = list(threads.map(lambda case: grader.grade(*case), cases))
    finally:
        grader.close()
    assert time.monotonic() - begin < 60
    assert (
        max(verdict.seconds for verdict in verdicts) < grader.deadline_s + KILL_AFTER_S + 1.0
    )  # a second for the machine
    wrong = {gold: verdict.status for (gold, _), verdict in zip(cases[: len(towers())], verdicts, strict=False)}
    assert set(wrong.values()) <= {"wrong", "timeout"}
