"""What stands around a number without being part of it: units, currencies and percent signs; also times and dates."""

from __future__ import annotations

import math
import re

from rewards.vocabulary import CURRENCIES, is_unit

_TAIL_CHARS = 120  # a unit is no longer than that
# The last factor of a unit: "/ \\text{s}^{2}", "(\\text{days})", "\\mu\\text{m}", "k\\Omega", a letter.
_FACTOR = re.compile(
    r"(?P<sign> ?(?:/|\\cdot|\\times)? ?)(?P<open>[(\[]? ?)(?:(?:\\mu ?)?\\text\{(?P<words>[^{}]*)\}|"
    r"(?P<ohm>(?:[kM]|\\text\{[kM]\})? ?\\Omega)|(?:(?<=[\s/])|(?<=\\cdot)|\\mu ?)(?P<letter>[a-zA-Z]))"
    r"(?P<power> ?\^\{-?\d\})?(?: ?[)\]])?$"
)
_FRACTION = re.compile(r" ?\\frac\{(?P<above>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\{(?P<below>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}$")
_DEGREES = re.compile(r" ?\^\{\\circ\} ?(?:\\text\{ ?(?:[CFK]|[Cc]elsius|[Ff]ahrenheit)\}|[CFK])?$")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")  # of which degrees are an argument
_CURRENCY = re.compile(r"(?P<sign>[+-]? ?)\\text\{(?P<words>[^{}]*)\} ?(?=[+\d\\.(-])")
_ABOUT = re.compile(r"(?:\\approx|\\text\{(?:about|approximately|approx|roughly|around)\}) ?")
_PERCENT = re.compile(r"(.*?) ?(?:\\%|\\text\{(?:percent|percentage|pct|per cent)\})", re.DOTALL)
_OPERATION_END = re.compile(r"(?:[-+/*=<>^_(,]|\\(?:cdot|times|div|le|ge|ne|approx|pm|to))$")
_CLOCK = re.compile(r"(\d{1,2})(?: ?: ?([0-5]\d))?(?: ?: ?([0-5]\d))? ?(am|pm|a\.m\.?|p\.m\.?)?", re.IGNORECASE)
_DATE = re.compile(r"(\d{1,4})/(\d{1,2})/(\d{1,4})|(\d{4})-(\d{1,2})-(\d{1,2})")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH, _DAY, _YEAR = (
    rf"(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?",
    r"(?P<day>\d{1,2}) ?(?:st|nd|rd|th)?",
    r"(?:,? ?(?P<year>\d{4}))?",
)
_WRITTEN_DATES = [
    re.compile(form, re.IGNORECASE) for form in (f"{_MONTH} ?{_DAY}{_YEAR}", f"{_DAY} ?(?:of )?{_MONTH}{_YEAR}")
]


def _only_units(text: str) -> bool:
    return bool(text.strip()) and split_unit("1 " + text.strip(), True) == "1"


def split_unit(text: str, letters: bool, any_noun: bool = False) -> str:
    """A tidied answer without the unit, the degree sign or the currency of its number; unchanged if there is none.

    Args:
        text: "5 \\text{cm}^{2}", "\\text{USD} 5", "35 m/s".
        letters: whether bare letters may be units ("5 m"); not if the other answer has letters, too.
        any_noun: see ``rewards.vocabulary.is_unit``.
    """
    about = _ABOUT.match(text)
    text = text[about.end() :] if about else text
    currency = _CURRENCY.match(text)
    if currency and currency["words"].strip(". ") in CURRENCIES:
        text = currency["sign"] + text[currency.end() :]
    value = text
    degrees = _DEGREES.search(value, max(len(value) - _TAIL_CHARS, 0))
    if degrees and value[: degrees.start()] and not TRIGONOMETRY.search(value):
        return value[: degrees.start()]
    fraction = _FRACTION.search(value, max(len(value) - _TAIL_CHARS, 0))
    if fraction and fraction.start() and _only_units(fraction["above"]) and _only_units(fraction["below"]):
        return value[: fraction.start()]
    while True:
        factor = _FACTOR.search(value, max(len(value) - _TAIL_CHARS, 0))
        if not factor or (factor["letter"] and not (letters and is_unit(factor["letter"]))):
            break
        if factor["words"] is not None and not is_unit(factor["words"], any_noun):
            break
        rest = value[: factor.start()].rstrip()
        if not rest or (rest.endswith("\\circ}") and not (factor["words"] or "").lower().startswith("degree")):
            break
        value = rest
    return text if _OPERATION_END.search(value) else value


def split_percent(text: str) -> tuple[str, bool]:
    """(number, True) of a tidied percentage, (text, False) of anything else."""
    match = _PERCENT.fullmatch(text)
    return (match.group(1), True) if match and match.group(1) else (text, False)


def _clock(text: str) -> tuple[int, str, str, str] | None:
    """(hour, minute, second, "a" or "p" or "") of a time of day; None for others."""
    match = _CLOCK.fullmatch(text)
    if not match or not (match[2] or match[4]) or int(match[1]) > 24:
        return None
    return int(match[1]), match[2] or "00", match[3] or "00", (match[4] or "")[:1].lower()


def _minutes(time: tuple[int, str, str, str]) -> tuple[int, str]:
    hour, minute, second, half = time
    hour = hour % 12 + 12 * (half == "p") if half else hour % 24
    return 60 * hour + int(minute), second


def _date(text: str) -> tuple | None:
    """The parts of a date, in numbers as they stand or with the month in words; None for others."""
    match = _DATE.fullmatch(text)
    if match:
        return tuple(int(part) for part in match.groups() if part)
    for form in _WRITTEN_DATES:
        if match := form.fullmatch(text):
            return match["month"].lower(), int(match["day"]), match["year"]
    return None


def time_verdict(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same time of day or date; None if neither of them is one.

    "3:30" alone may be a ratio, but not as a gold answer that is not in lowest terms.

    Args:
        gold: plain text.
        answer: plain text.
    """
    dates = _date(gold), _date(answer)
    if any(dates):
        return dates[0] == dates[1]
    times = _clock(gold), _clock(answer)
    certain = [time is not None and bool(time[3] or time[1].startswith("0")) for time in times]
    if times[0] and not certain[0]:
        certain[0] = math.gcd(times[0][0], int(times[0][1])) > 1
    if not any(certain):
        return None
    if times[0] is None or times[1] is None:
        return False
    if bool(times[0][3]) != bool(times[1][3]):  # 3:30 pm is 15:30, and 3:30 may be another
        other = times[1] if times[0][3] else times[0]
        if 1 <= other[0] <= 12:
            return False
    return _minutes(times[0]) == _minutes(times[1])
