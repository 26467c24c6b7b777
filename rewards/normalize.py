"""Text of answers: tidying, canonical spelling, and the verdicts that need no algebra.

Everything here is plain string work on bounded input, so it may run in the trainer's own process. Numbers stay
strings of digits for as long as they can: a response may hold one of any length.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rewards.characters import ascii_latex
from rewards.choices import choice_verdict
from rewards.latex import Unreadable, plain_latex
from rewards.measures import time_verdict
from rewards.vocabulary import SCALES

_QUOTES = ("**", "*", "``", "`", '"', "'", "__")
_DOLLARS = re.compile(r"(?<![a-zA-Z\\])(?:US|HK|NT|AU|CA|NZ|SG|[ACRS])\s*\\?\$")
_NUMPY = re.compile(r"(?<![a-zA-Z])np\.(?=[a-z])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SCALE = re.compile(rf"\\text\{{((?:(?:{'|'.join(SCALES)}|dozen)s?\b ?)+)([^{{}}]*)\}}")
_MIXED = re.compile(
    r"(?P<before>\\text\{[^{}]*\} ?|(?<![\d.^_a-zA-Z)}]))(\d{1,30})"
    r"(?: ?\\frac\{(\d{1,30})\}\{(\d{1,30})\}| (\d{1,30}) ?/ ?(\d{1,30})(?![\d/.]))"
)
_TIMES_TEN = re.compile(r"(?<=\d) ?x ?(?=10\^)")
_BARE_POINT = re.compile(r"(?<=\d)\.(?=\s*(?:[/)]|$))")
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\(?:overline|dot)\{(\d{1,9})\}")
_COMMA_NUMBER = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"([+-]?) ?(\d*)(?:\.(\d*))?")
_RATIO = re.compile(r"([+-]?) ?(?:(\d{1,30}) ?/ ?(\d{1,30})|\\frac\{([+-]?\d{1,30})\}\{(\d{1,30})\})")
_PLAIN_INTEGER = re.compile(r"[1-9]\d{0,40}", re.ASCII)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’\-]*(?: [A-Za-z'’\-]+)*")
_BETWEEN_DIGITS = re.compile(r"(?<=[\d.]) (?=[\d.])")
_LOOSE_MARK = re.compile(r" (?=[.,:;)])|(?<=\() ")
MAX_CANONICAL_CHARS = 20_000
_CACHED_CHARS = 300
UNREADABLE = "\0"
ROUNDED = Fraction(1, 10**6)  # decimals agree within it; below 0.01 within a thousandth of their size


def _unquote(text: str) -> str:
    """``text`` without white space, quotation marks and Markdown around all of it."""
    text = text.strip()
    while True:
        for mark in _QUOTES:
            inside = text[len(mark) : -len(mark)]
            if inside and text.startswith(mark) and text.endswith(mark) and mark not in inside:
                text = inside.strip()
                break
        else:
            return text


def _without_end_marks(text: str) -> str:
    """``text`` without what ends sentences and proofs; what begins them is a stray comma or a sign of conclusion."""
    while True:
        before = text
        text = text.strip().removesuffix("\\blacksquare").lstrip(",").rstrip()
        if text.startswith("\\{") and "\\}" not in text:  # the brace before a system of equations
            text = text[2:].lstrip()
        if text.endswith((".", ",", ";", ":")) and not text.endswith(".."):
            text = text[:-1].rstrip()
        if text == before:
            return text


def _tidy(text: str) -> str:
    text = _DOLLARS.sub(r"\\text{USD} ", _unquote(_NUMPY.sub(r"\\", ascii_latex(text))))
    try:
        text = plain_latex(text)
    except Unreadable:
        return UNREADABLE + " ".join(text.split())
    text = _TIMES_TEN.sub(r"\\times ", _BARE_POINT.sub("", _without_end_marks(text)))
    text = _REPEATING.sub(_repeating_fraction, _SCALE.sub(_scale, text))
    return " ".join(_MIXED.sub(_mixed_number, text).split())


_tidy_short = lru_cache(maxsize=8192)(_tidy)


def tidy(text: str) -> str:
    """A text as LaTeX in one spelling: no markup, no Unicode signs, words in ``\\text{…}``, numbers joined.

    Mixed numbers and repeating decimals become fractions ("2 1/4" is ``\\frac{9}{4}``), scale words powers of ten.
    Text that is not well-formed comes back as it is behind ``UNREADABLE``: it can be spelled alike, and no more.
    """
    return _tidy_short(text) if len(text) <= _CACHED_CHARS else _tidy(text)


def _scale(match: re.Match) -> str:
    words, rest = match.groups()
    power, factor = 0, 1
    for word in words.split():
        factor, power = (12 * factor, power) if word.startswith("dozen") else (factor, power + SCALES[word.rstrip("s")])
    product = "".join([f" \\times{factor}" * (factor > 1), f" \\times10^{{{power}}}" * (power > 0)])
    return product + (f" \\text{{{rest}}}" if rest.strip() else "")


def _repeating_fraction(match: re.Match) -> str:
    whole, fixed, period = match.group(1) or "0", match.group(2), match.group(3)
    value = Fraction(int(whole + fixed + period) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed_number(match: re.Match) -> str:
    whole, above, below = int(match[2]), int(match[3] or match[5]), int(match[4] or match[6])
    if not 0 < above < below:
        return match.group()
    return f"{match['before']}\\frac{{{whole * below + above}}}{{{below}}}"


def plain_text(text: str) -> str:
    """A tidied answer without its text commands."""
    while "\\text{" in text and (bare := _TEXT.sub(r" \1 ", text)) != text:
        text = bare
    return _LOOSE_MARK.sub("", " ".join(text.split()))


def spelling(text: str) -> str:
    """A tidied answer without spacing and text commands, words in lower case: equal for two forms of one answer."""
    words = plain_text(text)
    if len(words) > 1 and _WORDS.fullmatch(words):  # single letters and products of symbols keep their case
        return words.lower()
    return _BETWEEN_DIGITS.sub("\0", words).replace(" ", "").replace("\0", " ")  # "1 2" is not "12"


def canonical(text: str) -> str:
    """A spelling in which two forms of one answer agree; see ``spelling``."""
    return spelling(tidy(text))


class Number(NamedTuple):
    """A plain decimal.

    Attributes:
        digits: in their canonical form, "-7.5".
        decimal: whether they have a decimal point in the original spelling.
    """

    digits: str
    decimal: bool


def plain_number(text: str) -> Number | None:
    """The decimal number that a tidied text spells: "-007.50" is "-7.5", "1,234" is "1234"; None for anything else.

    Works on characters: ``int()`` of a million digits would be slow, and Python refuses it.
    """
    if _COMMA_NUMBER.fullmatch(text):
        text = text.replace(",", "")
    match = _NUMBER.fullmatch(text)
    if not match or not (match.group(2) or match.group(3)):
        return None
    sign, whole, decimals = match.group(1), match.group(2).lstrip("0") or "0", (match.group(3) or "").rstrip("0")
    digits = f"{whole}.{decimals}" if decimals else whole
    return Number("-" + digits if sign == "-" and digits != "0" else digits, match.group(3) is not None)


def simple_fraction(text: str) -> Fraction | None:
    """The exact value of a short integer, decimal or fraction (``a/b``, ``\\frac{a}{b}``), tidied; None for others."""
    match = _RATIO.fullmatch(text)
    if match:
        numerator, denominator = match.group(2, 3) if match.group(2) else match.group(4, 5)
        if int(denominator) == 0:
            return None
        value = Fraction(int(numerator), int(denominator))
        return -value if match.group(1) == "-" else value
    number = plain_number(text)
    return Fraction(number.digits) if number and len(number.digits) <= 40 else None


def agree_rounded(one: Fraction, other: Fraction) -> bool:
    """Whether two values, one of them a decimal, agree: within ``ROUNDED``, below 0.01 to a thousandth of the size.

    Args:
        one: either of them.
        other: the other one.
    """
    size = max(abs(one), abs(other))
    return abs(one - other) < (ROUNDED if size > Fraction(1, 100) else size / 1000) or one == other


def is_words(text: str) -> bool:
    """Whether an answer is words rather than mathematics: all of it in a text command, or with a plain word in it."""
    return _are_words(tidy(text))


def _are_words(text: str) -> bool:
    if "\\text{" not in text or "\\text{and}" in text or "\\text{or}" in text:
        return False
    return bool(_WORDS.fullmatch(plain_text(text).strip("() .")))


def words_verdict(gold: str, answer: str) -> bool:
    """Whether two answers in words agree, up to case, spacing and brackets around them.

    Args:
        gold: the gold answer, as it stands in the data.
        answer: the response's.
    """
    return canonical(gold).strip("()") == canonical(answer).strip("()")


def text_verdict(gold: str, answer: str) -> bool | None:
    """What the wording of two answers decides; None if it decides nothing.

    Choices, times and dates, and a gold answer in words are settled by it alone.

    Args:
        gold: tidied.
        answer: tidied.
    """
    spelled = spelling(gold), spelling(answer)
    if spelled[0] == spelled[1] != "":
        return True
    plain = plain_text(gold), plain_text(answer)
    for check in (choice_verdict, time_verdict):
        verdict = check(*plain)
        if verdict is not None:
            return verdict
    if _are_words(gold):
        return spelled[0].strip("()") == spelled[1].strip("()")
    return None


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether an answer equals the gold answer, if text alone decides it; None if algebra is needed.

    Right: equal spellings, the same choices, equal numbers or simple fractions. Wrong: other choices; a gold answer in
    words that the answer does not repeat; two different numbers (of which decimals are rounded).

    Args:
        gold: the gold answer, as it stands in the data.
        answer: the response's.
    """
    if _PLAIN_INTEGER.fullmatch(gold) and _PLAIN_INTEGER.fullmatch(answer):
        return gold == answer
    if len(answer) > MAX_CANONICAL_CHARS:
        return None
    gold_text, answer_text = tidy(gold), tidy(answer)
    verdict = text_verdict(gold_text, answer_text)
    if verdict is not None:
        return verdict
    gold_number, answer_number = plain_number(gold_text), plain_number(answer_text)
    if gold_number and answer_number and gold_number.digits == answer_number.digits:
        return True
    gold_value, answer_value = simple_fraction(gold_text), simple_fraction(answer_text)
    if gold_value is None or answer_value is None:
        return False if gold_value is not None and _are_words(answer_text) else None
    if any(number and number.decimal for number in (gold_number, answer_number)):
        return agree_rounded(gold_value, answer_value)
    return gold_value == answer_value
