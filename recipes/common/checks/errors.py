"""The error that refuses a configuration."""

from __future__ import annotations


class SettingsError(ValueError):
    """A configuration that must not be started; the message lists every problem found.

    Args:
        problems: one sentence each, with the value, the rule and the fix.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"- {p}" for p in problems))
