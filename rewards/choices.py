"""Lettered choices: which letters an answer names.  An answer that names another letter besides is another answer."""

from __future__ import annotations

import re

_LEAD = re.compile(r"(?:the )?(?:correct |final )?(?:answer|option|choice|letter)s?\b(?: is)?:? ?", re.IGNORECASE)
_LETTER = r"\(? ?([A-J]) ?\)?"
_ONLY_LETTERS = re.compile(rf"{_LETTER}\.?(?: ?(?:,|;|,? ?\b(?:and|or)\b|&) ?{_LETTER}\.?)*")
# "(B) 7", "B) 7", "B. 7", "B: 7"
_LABELLED = re.compile(r"(?:\( ?([A-J]) ?\)|([A-J]) ?[.):])(?P<content> ?\S.*)", re.DOTALL)
_NAMED = re.compile(
    rf"{_LETTER}(?P<rest>$|[.:?!;,]? ?\(.*|[.:?!;,].*|(?<=\)).*| - ?[a-zA-Z].*| [a-zA-Z]{{2,}}.*| [A-J]\b.*)", re.DOTALL
)
_SMALL = re.compile(r"\(([a-j])\)|([a-j])[.)]")
# A capital letter of its own is a choice, except as the article ("A triangle").
_OTHER_LETTER = re.compile(r"(?<![A-Za-z])(?!A (?!or\b|and\b)[a-z]{2,})([A-J])(?![A-Za-z'])")
_DENIAL = re.compile(
    r"[.:;,?! ]*(?:is|isn't|are|was|cannot|can't|not|no)\b(?! (?:solution|real|such|enough|more|less))|.*\b(?:wrong|incorrect)\b"
)
_OPERATION = re.compile(r"\s*(?:\\(?!text)[a-z]|[-+*/^_=<>!|]\s*[\d(\\A-Za-z]?$|[-+*/^_=<>]\S)")


def _capitalised(text: str) -> str:
    """Small letters that are marked as choices, "(b)" and "b)", as capitals."""
    match = _SMALL.match(text)
    return text[: match.end()].upper() + text[match.end() :] if match else text


def _gold_letters(gold: str) -> tuple[frozenset[str], str] | None:
    """(letters, content) of a gold answer that is a choice, None for others."""
    gold = _capitalised(gold)
    if _ONLY_LETTERS.fullmatch(gold):
        return frozenset(re.findall(r"[A-J]", gold)), ""
    labelled = _LABELLED.fullmatch(gold)
    if labelled and not _OPERATION.match(labelled["content"]):
        return frozenset(labelled.group(1) or labelled.group(2)), labelled["content"].strip()
    return None


def named_letters(answer: str) -> frozenset[str] | None:
    """The choices that ``answer`` (plain text) names, None where it reads as something else.

    Empty where it names one only to deny it ("B is wrong").
    """
    text = _capitalised(answer)
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    if _ONLY_LETTERS.fullmatch(text):
        return frozenset(re.findall(r"[A-J]", text))
    match = _NAMED.fullmatch(text)
    if not match or _OPERATION.match(match["rest"]):
        return None
    if _DENIAL.match(match["rest"]):
        return frozenset()
    return frozenset(match.group(1)) | frozenset(_OTHER_LETTER.findall(match["rest"]))


def choice_verdict(gold: str, answer: str) -> bool | None:
    """Whether two plain texts name the same choices; None where the gold answer is none, or the answer reads as another.

    A gold answer that is a letter with its content, "(B) 17", is left open for an answer that names no letter.
    """
    wanted = _gold_letters(gold)
    if wanted is None:
        return None
    named = named_letters(answer)
    return None if named is None else named == wanted[0]


def choice_content(gold: str) -> str:
    """What a labelled gold answer says besides its letter ("(B) 17" is 17), "" for others."""
    wanted = _gold_letters(gold)
    return wanted[1] if wanted else ""
