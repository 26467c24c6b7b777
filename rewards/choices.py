"""Mathematical answers that are lettered choices: which letters an answer names.

An answer that names another letter besides is another answer. All texts are plain: tidied, without text commands.
"""

from __future__ import annotations

import re

_LEAD = re.compile(r"(?:the )?(?:correct |final )?(?:answer|option|choice|letter)s?\b(?: is)?:? ?", re.IGNORECASE)
_LETTER = r"\(? ?([A-J]) ?\)?"
_ONE_LETTER = re.compile(rf"{_LETTER} ?\.?")
_BETWEEN = re.compile(r"[,;&]|\b(?:and|or)\b")
# "(B) 7", "B) 7", "B. 7", "B: 7"
_LABEL = r"(?:\( ?([A-J]) ?\)|(?<![A-Za-z])([A-J]) ?[.):])"
_LABELLED = re.compile(rf"{_LABEL}(?P<content> ?\S.*)", re.DOTALL)
# A letter, and then: the end, a mark, another choice, a dash with words, a word.
_NAMED = re.compile(
    rf"{_LETTER}(?P<rest>$|[.:?!;,]? ?\(.*|[.:?!;,].*|(?<=\)).*| - ?[a-zA-Z].*| [a-zA-Z]{{2,}}.*| [A-J]\b.*)",
    re.DOTALL,
)
_SMALL = re.compile(r"\(([a-j])\)|([a-j])[.)]")
# A capital letter of its own is a choice, except as the article ("A triangle").
_OTHER_LETTER = re.compile(r"(?<![A-Za-z])(?!A (?!or\b|and\b)[a-z]{2,})([A-J])(?![A-Za-z'])")
_DENIAL = re.compile(
    r"[.:;,?! ]*(?:is|isn't|are|was|cannot|can't|not|no)\b(?! (?:solution|real|such|enough|more|less))|"
    r".*\b(?:wrong|incorrect)\b"
)
_OPERATION = re.compile(r"\s*(?:\\(?!text)[a-z]|[-+*/^_=<>!|]\s*[\d(\\A-Za-z]?$|[-+*/^_=<>]\S)")


def _capitalised(text: str) -> str:
    """Small letters that are marked as choices, "(b)" and "b)", as capitals."""
    match = _SMALL.match(text)
    return text[: match.end()].upper() + text[match.end() :] if match else text


def _listed_letters(text: str) -> frozenset[str] | None:
    """The letters of a text that consists of nothing else, "A, (B) and C"; None for others."""
    parts = [part.strip() for part in _BETWEEN.split(text)]
    matches = [_ONE_LETTER.fullmatch(part) for part in parts if part]
    letters = [match.group(1) for match in matches if match]
    return frozenset(letters) if letters and len(letters) == len(matches) else None


def _gold_letters(gold: str) -> tuple[frozenset[str], str] | None:
    """(letters, content) of a gold answer that is a choice; None for others."""
    gold = _capitalised(gold)
    if letters := _listed_letters(gold):
        return letters, ""
    labelled = _LABELLED.fullmatch(gold)
    if labelled and not _OPERATION.match(labelled["content"]):
        labels = [first or second for first, second in re.findall(_LABEL, gold)]
        return frozenset(labels), labelled["content"].strip()
    named = named_letters(gold) if _LEAD.match(gold) else None
    return (named, "") if named else None


def named_letters(answer: str) -> frozenset[str] | None:
    """The choices that an answer names.

    Args:
        answer: plain text.

    Returns:
        Their letters; empty if it names one only to deny it ("B is wrong"); None if it reads as something else.
    """
    text = _capitalised(answer)
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    if letters := _listed_letters(text):
        return letters
    match = _NAMED.fullmatch(text)
    if not match or _OPERATION.match(match["rest"]):
        return None
    if _DENIAL.match(match["rest"]):
        return frozenset()
    return frozenset(match.group(1)) | frozenset(_OTHER_LETTER.findall(match["rest"]))


def choice_verdict(gold: str, answer: str) -> bool | None:
    """Whether two answers name the same choices; None if the gold answer is no choice, or the answer names none.

    Args:
        gold: plain text.
        answer: plain text.
    """
    wanted = _gold_letters(gold)
    if wanted is None:
        return None
    named = named_letters(answer)
    return None if named is None else named == wanted[0]


def choice_content(gold: str) -> str:
    """What a labelled gold answer says besides its letter ("(B) 17" is 17); "" for others."""
    wanted = _gold_letters(gold)
    return wanted[1] if wanted else ""
