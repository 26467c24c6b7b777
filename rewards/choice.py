"""The reward for multiple choice: ``reward.custom_reward_function.path=pkg://rewards.choice name=compute_score``.

The letter is graded. The text of an option stands for its letter if no other option has the same text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.components import format_component, mixed
from rewards.extract import MAX_RESPONSE_CHARS, after_thoughts, last_boxed
from rewards.options import MixOptions, read_options

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# "Answer: C", "the answer is (C)", "The correct answer is C.", and the same in JSON or bold.
_STATED = re.compile(r"""(?i:answer)["'*]*\s*(?:(?i:is)\b\s*:?|:)\s*(?:["'](?=([^"'\n]*)["'])|(?=([^\n]*)))""")
_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
_NAMED = re.compile(r"(?i:(?:option|choice)\s+)")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
# A letter with more behind it: a mark or a reason must follow, since "A force" begins with a letter, too.
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])(?:[.):,;]|\s+(?:because|since|as|is)\b))\s*")
_ANOTHER = re.compile(r"(?:and|or|&|/|,)?\s*\(?([A-Z])\)?(?=$|[\s.,;:)])")


def unmarked(text: str) -> str:
    """A text without markup commands, dollar signs and quotes around it."""
    for _ in range(4):
        text = _COMMAND.sub(r"\1", text)
    return text.strip(" \n\t$*\"'")


def plain(text: str) -> str:
    """A spelling in which two writings of one option agree: no markup, case or spacing, no full stop at the end."""
    return " ".join(unmarked(text).replace("$", " ").casefold().split()).rstrip(" .")


def chosen(stated: str, options: Sequence[str]) -> str | None:
    """The letter that a stated answer chooses; None if it names no option, or several.

    A letter alone comes first, even if some option's text is a letter; then an option's whole text, if no other has the
    same; then a letter with something behind it ("C) 5 N", "C because …").

    Args:
        stated: what stands in the box, or after "the answer is".
        options: texts in the order of their letters; may be empty, then only letters are read.
    """
    letters = LETTERS[: len(options)] if options else LETTERS
    stated = _NAMED.sub("", unmarked(stated), count=1) if _NAMED.match(unmarked(stated)) else unmarked(stated)
    alone = _LETTER.fullmatch(stated)
    if alone and alone[1] in letters:
        return alone[1]
    same = [letter for letter, text in zip(letters, options, strict=False) if plain(text) == plain(stated)]
    if same:
        return same[0] if len(same) == 1 else None
    first = _LETTER_FIRST.match(stated)
    if first is None:
        return None
    letter, rest = first[1] or first[2], stated[first.end() :]
    if letter not in letters:
        return None
    own_text = bool(options) and plain(rest) == plain(options[letters.index(letter)])
    another = _ANOTHER.match(rest)
    return letter if own_text or another is None or another[1] == letter else None


def extract_choice(response: str, options: Sequence[str]) -> str | None:
    """The letter of a response's last boxed answer, else of its last "the answer is …"; None if there is none.

    Args:
        response: decoded; thoughts are not read.
        options: texts in the order of their letters; may be empty.
    """
    text = after_thoughts(response[-MAX_RESPONSE_CHARS:])
    if text is None:
        return None
    boxed = last_boxed(text)
    if boxed is not None:
        return chosen(boxed, options)
    for quoted, rest in reversed(_STATED.findall(text)):
        letter = chosen(quoted or rest, options)
        if letter is not None:
            return letter
    return None


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response by the letter that it chooses.

    Args:
        data_source: the set's name.
        solution_str: the decoded response.
        ground_truth: the letter.
        extra_info: ``options``, their texts in order; may carry ``response_length`` (tokens).
        **kwargs: fields of ``MixOptions``.

    Returns:
        As `rewards.components.mixed`; ``extracted`` is the letter.

    Raises:
        ValueError: an option is unknown, or options contradict each other.
    """
    mix = read_options(MixOptions, kwargs)
    options = (extra_info or {}).get("options")
    options = [] if options is None else [str(option) for option in options]
    letter = extract_choice(solution_str, options)
    gold = str(ground_truth or "").strip()
    status = "error" if not gold else "no_answer" if letter is None else "correct" if letter == gold else "wrong"
    return mixed(status, letter, format_component(solution_str, letter is not None), solution_str, extra_info, mix)
