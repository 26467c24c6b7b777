"""What a refusal is made of: the error that lists the problems, and the name that may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SettingsError(ValueError):
    """A configuration that must not be started; the message lists every problem found.

    Args:
        problems: one sentence each, with the value, the rule and the fix.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"- {p}" for p in problems))


def closest(name: str, there_are: Iterable[str]) -> str:
    """The end of a sentence that names what may have been meant, ``; the closest is …``; empty where nothing is close.

    Args:
        name: as it was given.
        there_are: the names that exist.
    """
    found = get_close_matches(name, list(there_are), n=1, cutoff=0.5)
    return f"; the closest is {found[0]}" if found else ""
