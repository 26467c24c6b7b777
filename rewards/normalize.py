"""Text normalisation, and the verdicts that need no algebra: equal strings, and plain numbers."""

from __future__ import annotations

import re

_WRAPPERS = (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SPACING = re.compile(r"\\[,;:!> ]|\\q?quad(?![a-zA-Z])|~|\s+")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|bigl|bigr|big|Bigl|Bigr|Big)(?![a-zA-Z])\.?")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[a-zA-Z]{2,}")
_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")


def strip_wrappers(text: str) -> str:
    """``text`` without surrounding white space, dollar signs, ``\\(…\\)`` or ``\\[…\\]``, or a final full stop."""
    text = text.strip()
    if text.endswith(".") and not text.endswith("\\."):
        text = text[:-1].rstrip()
    changed = True
    while changed:
        changed = False
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                if left not in inner and not (left == "$" and inner.endswith("\\")):
                    text, changed = inner.strip(), True
    return text


def canonical(text: str) -> str:
    """A form in which two spellings of one answer agree: no spacing, sizing or text commands, words in lower case."""
    text = strip_wrappers(text)
    text = _FRACTION.sub(r"\\frac", _DROPPED.sub("", text))
    previous = None
    while previous != text:
        previous, text = text, _TEXT.sub(r"\1", text)
    text = _SPACING.sub("", text).replace("−", "-")
    if _WORDS.fullmatch(text):  # only whole words: single letters and products of symbols keep their case
        text = text.lower()
    return text


def number_text(text: str) -> str | None:
    """Canonical digits of a plain decimal number ("-007.50" -> "-7.5"; "1,234" -> "1234"), None for anything else.

    Works on characters, since a response may hold a number of any length and ``int()`` of it would be slow or refused.
    """
    text = strip_wrappers(text).replace("−", "-").replace("\\!", "").replace(" ", "")
    if _THOUSANDS.fullmatch(text):
        text = text.replace("{,}", "").replace(",", "")
    if not _DECIMAL.fullmatch(text):
        return None
    sign = "-" if text[0] == "-" else ""
    whole, _, decimals = text.lstrip("+-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    digits = f"{whole}.{decimals}" if decimals else whole
    return digits if digits == "0" else sign + digits


def quick_verdict(gold: str, answer: str) -> bool | None:
    """True or False where text alone decides whether ``answer`` equals ``gold``, None where algebra is needed.

    Equal spellings and equal plain numbers are right; two different plain integers are wrong.  Two different decimals
    are left to the comparison, which knows about rounding.
    """
    if canonical(gold) == canonical(answer) != "":
        return True
    gold_number, answer_number = number_text(gold), number_text(answer)
    if gold_number is None or answer_number is None:
        return None
    if gold_number == answer_number:
        return True
    if _INTEGER.fullmatch(gold_number) and _INTEGER.fullmatch(answer_number):
        return False
    return None


__all__ = ["canonical", "number_text", "quick_verdict", "strip_wrappers"]
