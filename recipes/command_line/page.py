"""The page that --help prints: what a command does, examples, choices with a line each, the keys people change."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import CONFIG_DIR

WIDTH = 100


@dataclass(frozen=True)
class Command:
    """What a command says of itself.

    Attributes:
        module: as `python -m` takes it.
        what: what it does, in a few sentences.
        examples: (arguments, what they do).
        keys: those that people change: (key or option, with an example of its value; what it is).
        groups: the configuration groups whose choices are listed.
        types: of (dotted) keys that may be null "whole", "number", "bool" or "text".
        checks_types: whether values are compared with their defaults' types here, and not by the job.
        may_lack: keys (or nodes) that may stay without a value.
        more: tells where the rest is described.
        not_started: first line of a refusal.
    """

    module: str
    what: str
    examples: Sequence[tuple[str, str]]
    keys: Sequence[tuple[str, str]]
    groups: Sequence[str] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    checks_types: bool = True
    may_lack: Sequence[str] = ()
    more: str = ""
    not_started: str = "This command was not started:"


def show(text: str) -> None:
    """Print a page; a reader who has seen enough (`| head`) ends the printing, and nothing else.

    Args:
        text: the page.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:  # what Python still holds would fail once more as it ends, and be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def page(command: Command) -> str:
    """The whole page; only commands and names, which are never broken, make a line wider than `WIDTH` columns."""
    parts = [textwrap.fill(command.what, WIDTH), "", "Examples"]
    for arguments, text in command.examples:
        parts += [f"  python -m {command.module} {arguments}".rstrip(), f"      {text}"]
    for group in command.groups:
        parts += ["", f"{group}=", *_columns(choices(group))]
    parts += ["", "Keys that people change", *_columns(command.keys)]
    if command.more:
        parts += ["", textwrap.fill(command.more, WIDTH, break_on_hyphens=False, break_long_words=False)]
    return "\n".join(parts)


def choices(group: str) -> list[tuple[str, str]]:
    """(name, one line) of every choice of a configuration group, a folder of `config` such as "method"."""
    if group == "method":
        from recipes.common.method import shipped

        return [(about.name, about.description) for about in shipped()]
    files = sorted((CONFIG_DIR / group).glob("*.yaml"))
    return [(path.stem, first_comment(path)) for path in files if not path.stem.startswith("_")]


def first_comment(path: Path) -> str:
    """The first sentence of a YAML's first comment that is not a directive (`# @…`); "" if there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return re.split(r"(?<!App)\. (?=[A-Z])", line.lstrip("# "))[0].rstrip(".:")
    return ""


def _columns(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    wide = min(max((len(name) for name, _ in rows), default=0), 42)
    for name, text in rows:
        first, *rest = textwrap.wrap(text, WIDTH - wide - 4, break_on_hyphens=False) or [""]
        if len(name) > wide:
            yield f"  {name}"
            name = ""
        yield f"  {name:<{wide}}  {first}".rstrip()
        yield from (f"  {'':<{wide}}  {line}" for line in rest)
