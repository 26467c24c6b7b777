"""Text of answers: tidying, canonical spelling, and the verdicts that need no algebra.

Everything here is plain string work on bounded input, so it may run in the trainer's own process.  Numbers stay
strings of digits for as long as they can: a response may hold one of any length.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_SIZING = re.compile(r"\\(?:left|right|m?left|[bB]igg?[lrm]?)(?![a-zA-Z])|\\(?:displaystyle|textstyle)(?![a-zA-Z])")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_THIN_SPACE = re.compile(r"\\[,;:!> ]|\\q?quad(?![a-zA-Z])|~|\s")
_TEXT_COMMAND = r"\\(?:text|textrm|textbf|textit|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)"
_TEXT = re.compile(_TEXT_COMMAND + r"\s*\{([^{}]*)\}")
_CONSTANT = re.compile(r"\\(?:mathrm|operatorname|text)\s*\{\s*([ie])\s*\}")
_BLACKBOARD = re.compile(r"\\mathbb\s*([A-Z])")
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE_WORDS = "|".join([*_POWERS_OF_TEN, "dozen"])
_SCALE = re.compile(rf"{_TEXT_COMMAND}\s*\{{\s*({_SCALE_WORDS})s?\b([^{{}}]*)\}}")
# "5 dollars", "\\text{5 cm}": what a number counts goes into a text command, which math-verify reads as a unit.
_COUNTED = re.compile(
    rf"(?P<bare>.*[\d}}])\s+(?P<words>{_SCALE_WORDS}|(?:(?:{_SCALE_WORDS}) )?(?:[a-z]{{3,}}s|people)(?: [a-z]{{2,}})*)|"
    r"\\text\{\s*(?P<number>[\d.,/]+)\s+(?P<unit>[a-zA-Z]+(?: [a-z]+)*)\s*\}",
    re.DOTALL,
)
_NO_UNIT = re.compile(
    r"(?<![a-zA-Z\\])(more|less|fewer|greater|smaller|least|most|than|not|no|never|except|without|above|below|over|under|"
    r"remainder|mod|modulo|squared|cubed|factorial|root|negative|minus|plus|divided|halves|thirds|fourths|fifths|sixths|"
    rf"sevenths|eighths|ninths|tenths|hundredths|thousandths|{_SCALE_WORDS})s?(?![a-zA-Z])"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{?\s*" + _TEXT_COMMAND + r"\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?")
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "∞": "\\infty ",
        "°": "^{\\circ}", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
        "∅": "\\emptyset ", "±": "\\pm ", "ℝ": "\\mathbb{R}", "％": "\\%", "，": ",", "\u00a0": " ", "\u2009": " ",
        "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
        # Full-width letters and digits; marks without width, which a reader cannot see.
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()},
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff", None),
    }
)  # fmt: skip
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_ROOT_SIGN = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+|[a-z]))")
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|\\!,|,\\!|\\,|\\!|\\ |~|\s)(?=\d{3}(?!\d))")
_LEADING_GROUP = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\{,\}|\\!,|,\\!|\\,|\\!|\\ |~|\s)\d{3})+(?!\d)")
_COMMA_NUMBER = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\(?:overline|bar|dot)\s*\{(\d{1,9})\}")
_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_RATIO = re.compile(r"([+-]?)(?:(\d{1,30})/(\d{1,30})|\\frac\{([+-]?\d{1,30})\}\{(\d{1,30})\}|\\frac(\d)(\d))")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’\-]*(?: [A-Za-z'’\-]+)*")
_CHOICE = re.compile(r"\(?([A-J])\)?(?:[.):,\s].*)?", re.DOTALL)
_MARKED_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[.):])(?:\s.*)?", re.DOTALL)
_BARE_POINT = re.compile(r"(?<=\d)\.(?=\s*(?:[/)]|$))")
_EXTREME_INDEX = re.compile(r"_\s*(?:\{\s*\\(max|min)\s*\}|\\(max|min)(?![a-zA-Z]))")
MAX_CANONICAL_CHARS = 20_000


def strip_wrappers(text: str) -> str:
    """``text`` without surrounding white space, math delimiters, and a final full stop or comma."""
    text = text.strip()
    while True:
        before = text
        if text.endswith((".", ",", ";")) and not text.endswith(("\\,", "\\;", "..")):
            text = text[:-1].rstrip()
        for left, right in (("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(left) and text.endswith(right):
                text = text[2:-2].strip()
        if text == before:
            return text


def tidy(text: str) -> str:
    """``text`` as LaTeX that math-verify reads rightly.

    Removes dollar signs, sizing commands and thousands spacing (``1\\,234`` would be read as the mixed number 1 234),
    rewrites Unicode signs, ``\\varnothing`` and repeating decimals (``0.\\overline{3}``), and keeps everything else.
    """
    text = re.sub(r"\\?\$", "", text.translate(_UNICODE))
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match.group().translate(_SUPERSCRIPT_DIGITS)}}}", text)
    text = _ROOT_SIGN.sub(lambda match: f"\\sqrt{{{match[1] or match[2] or match[3] or ''}}}", text)
    text = re.sub(r"(?<=\})\s+(?=\^)", "", text)
    text = _BLACKBOARD.sub(r"\\mathbb{\1}", _CONSTANT.sub(r" \1 ", _ORDINAL.sub("", text)))
    text = _FRACTION.sub(r"\\frac", _SIZING.sub("", strip_wrappers(text)))
    text = _EXTREME_INDEX.sub(lambda match: f"_{{{match.group(1) or match.group(2)}}}", text.replace("np.", "\\"))
    text = _BARE_POINT.sub("", text)  # "-1./3"
    text = text.replace("\\varnothing", "\\emptyset").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = _LEADING_GROUP.sub(lambda match: _SEPARATOR.sub("", match.group()), text)
    counted = _COUNTED.fullmatch(text.strip())
    if counted:
        text = f"{counted['bare'] or counted['number']} \\text{{{counted['words'] or counted['unit']}}}"
    text = _SCALE.sub(_scale, text)
    return _REPEATING.sub(_repeating_fraction, text).strip()


def _scale(match: re.Match) -> str:
    word, unit = match.groups()
    factor = "12" if word == "dozen" else f"10^{{{_POWERS_OF_TEN[word]}}}"
    return f" \\times {factor}" + (f" \\text{{{unit}}}" if unit.strip() else "")


def qualifiers(text: str) -> list[str]:
    """Words of a tidied answer that change its meaning, in order: "5 or more" is not 5, though "5 days" is."""
    return _NO_UNIT.findall(text)


def _repeating_fraction(match: re.Match) -> str:
    whole, fixed, period = match.group(1) or "0", match.group(2), match.group(3)
    value = Fraction(int(whole + fixed + period) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def canonical(text: str) -> str:
    """A spelling in which two forms of one answer agree: no spacing, no text commands, words in lower case."""
    text = tidy(text)
    for _ in range(4):  # nested text commands, as deep as anyone writes them
        text = _TEXT.sub(r"\1", text)
    words = " ".join(_THIN_SPACE.sub(" ", text).split())
    if len(words) > 1 and _WORDS.fullmatch(words):  # single letters and products of symbols keep their case
        return words.lower().strip(" .")
    text = re.sub(r"(?<=\d)(?:\\?\s)+(?=\d)", "\0", text)  # "1 2" is not "12"
    return _THIN_SPACE.sub("", text).replace("{}", "")


class Number(NamedTuple):
    """A plain decimal: canonical digits ("-7.5"), and whether they have a decimal point in the original spelling."""

    digits: str
    decimal: bool


def plain_number(text: str) -> Number | None:
    """The decimal number that ``text`` (tidied) spells, None for anything else: "-007.50" -> "-7.5", "1,234" -> "1234".

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
    """The exact value of a short integer, decimal or simple fraction (``a/b``, ``\\frac{a}{b}``), None for others."""
    match = _RATIO.fullmatch(text)
    if match:
        numerator, denominator = match.group(2, 3) if match.group(2) else match.group(4, 5)
        if numerator is None:
            numerator, denominator = match.group(6, 7)
        if int(denominator) == 0:
            return None
        value = Fraction(int(numerator), int(denominator))
        return -value if match.group(1) == "-" else value
    number = plain_number(text)
    return Fraction(number.digits) if number and len(number.digits) <= 40 else None


def is_words(text: str) -> bool:
    """Whether an answer is words rather than mathematics: all of it inside a text command, or long plain words."""
    bare = strip_wrappers(text)
    inside = _TEXT.fullmatch(bare)
    content = (inside.group(1) if inside else bare).strip().strip("()").strip(" .")
    if not _WORDS.fullmatch(content):
        return False
    return bool(inside) or any(len(word) > 3 for word in content.split())  # "xyz" may be a product


def _plain_text(text: str) -> str:
    return " ".join(_THIN_SPACE.sub(" ", _TEXT.sub(r"\1", tidy(text))).split())


def words_verdict(gold: str, answer: str) -> bool:
    """Whether two answers in words agree; a lettered choice agrees with its letter followed by its content."""
    gold_text, answer_text = canonical(gold).strip("()"), canonical(answer).strip("()")
    if gold_text == answer_text:
        return True
    if len(gold_text) == 1 and gold_text in "ABCDEFGHIJ":
        choice = _CHOICE.fullmatch(_plain_text(answer))
        return bool(choice) and choice.group(1) == gold_text
    return False


def quick_verdict(gold: str, answer: str) -> bool | None:
    """True or False where text alone decides whether ``answer`` equals ``gold``, None where algebra is needed.

    Right: equal spellings, equal plain numbers, equal simple fractions.  Wrong: two different exact rationals; a gold
    answer in words that the answer does not repeat.  A decimal that differs from a fraction is left to algebra, which
    knows about rounding.
    """
    if len(answer) > MAX_CANONICAL_CHARS:
        return None
    if canonical(gold) == canonical(answer) != "":
        return True
    if is_words(gold):
        return words_verdict(gold, answer)
    gold_text, answer_text = tidy(gold), tidy(answer)
    marked = _MARKED_CHOICE.fullmatch(_plain_text(answer)) if gold_text in tuple("ABCDEFGHIJ") else None
    if marked:  # "(A) 5" for A, which without its mark may be a variable
        return (marked.group(1) or marked.group(2)) == gold_text
    gold_number, answer_number = plain_number(gold_text), plain_number(answer_text)
    if gold_number and answer_number:
        if gold_number.digits == answer_number.digits:
            return True
        return None if gold_number.decimal or answer_number.decimal else False
    gold_value, answer_value = simple_fraction(gold_text), simple_fraction(answer_text)
    if gold_value is not None and is_words(answer):
        return False  # not worth a parser's reading of a sentence as a product of letters
    if gold_value is None or answer_value is None:
        return None
    if gold_value == answer_value:
        return True
    decimal = any(number and number.decimal for number in (gold_number, answer_number))
    return None if decimal else False
