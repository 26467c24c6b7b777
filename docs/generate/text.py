"""Markdown of plain text: cells that cannot break a table, code that cannot end early."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_SPECIAL = re.compile(r"([\\*_\[\]<>#~$])")


def cell(text: str) -> str:
    """Plain text, with `code` in it, as a cell of a table."""
    parts = _CODE.split(" ".join(text.split()))
    escaped = [part if number % 2 else _SPECIAL.sub(r"\\\1", part) for number, part in enumerate(parts)]
    return "".join(escaped).replace("|", "\\|")


def code(text: str) -> str:
    """Text as code in a cell of a table; nothing for ''."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
