"""The reward for Knights & Knaves: ``reward.custom_reward_function.path=pkg://rewards.knights name=compute_score``.

An answer says of every person what they are; it is right if it says so of each one, rightly and once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rewards.choice import unmarked
from rewards.components import format_component, mixed
from rewards.extract import MAX_RESPONSE_CHARS, after_thoughts, last_boxed
from rewards.options import MixOptions, read_options

ROLES = ("knight", "knave")
# "Ann: knight", "Ann is a knave", "(1) Ann = Knight"; several of them separated by anything.
_SAID = re.compile(r"\b([A-Z][a-z]+)\b\s*(?:\bis\b|:|=|\\to|->|→|-)?\s*(?:\ban?\s+)?\b((?i:knights?|knaves?))\b")
_CONCLUSION = re.compile(r"(?i:conclusion)\s*:?")


def answer_text(roles: Mapping[str, str]) -> str:
    """An assignment as gold answers write it: "Ann: knight, Bob: knave"."""
    return ", ".join(f"{name}: {role}" for name, role in roles.items())


def read_roles(text: str) -> dict[str, str] | None:
    """The assignment that a text states, name to role; None if it states none.

    Of somebody who is said to be both the role is "both".
    """
    roles: dict[str, str] = {}
    for name, role in _SAID.findall(text):
        role = role.lower().rstrip("s")
        roles[name] = role if roles.get(name, role) == role else "both"
    return roles or None


def extract_roles(response: str) -> dict[str, str] | None:
    """The assignment of a response's last box, else of what stands behind its last "Conclusion"; None for none."""
    text = after_thoughts(response[-MAX_RESPONSE_CHARS:])
    if text is None:
        return None
    boxed = last_boxed(text)
    if boxed is not None:
        return read_roles(" ".join(map(unmarked, re.split(r"\\\\|\n", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", boxed)))))
    parts = _CONCLUSION.split(text)
    return read_roles(parts[-1]) if len(parts) > 1 else None


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response by the assignment that it states.

    Args:
        data_source: the set's name.
        solution_str: the decoded response.
        ground_truth: the unique solution, as `answer_text` writes it.
        extra_info: may carry ``response_length`` (tokens).
        **kwargs: fields of ``MixOptions``.

    Returns:
        As `rewards.components.mixed`; ``extracted`` is the assignment, people in alphabetical order.

    Raises:
        ValueError: an option is unknown, or options contradict each other.
    """
    mix = read_options(MixOptions, kwargs)
    gold, said = read_roles(str(ground_truth or "")), extract_roles(solution_str)
    status = "error" if gold is None else "no_answer" if said is None else "correct" if said == gold else "wrong"
    extracted = answer_text(dict(sorted(said.items()))) if said else None
    return mixed(status, extracted, format_component(solution_str, said is not None), solution_str, extra_info, mix)
