"""What a YAML says of its keys in comments: beside a value, or above it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode


@dataclass(frozen=True)
class Entry:
    """A key of a YAML that holds a value, and not keys of its own.

    Attributes:
        key: dotted.
        value: as YAML reads it.
        above: the comment above the key, or above the run of keys without a blank line or a comment that it is in; of a
            key without any comment, that of the node it is in.
        beside: the comment on its line.
        shared: whether `above` stands over other keys too.
    """

    key: str
    value: Any
    above: str
    beside: str
    shared: bool = False

    @property
    def meaning(self) -> str:
        """All that is said of it, as sentences."""
        return " ".join(ended(text) for text in (self.above, self.beside) if text)


def ended(text: str) -> str:
    """A comment as a sentence, with its full stop."""
    text = text.strip()
    return text if not text or text[-1] in ".:?!" else f"{text}."


def entries(path: Path) -> Iterator[Entry]:
    """Every key of a YAML with its comments, in order; Hydra's `defaults` and `hydra` apart."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)

    def walk(node: MappingNode, prefix: str, of_node: str) -> Iterator[Entry]:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if name in ("defaults", "hydra"):
                continue
            above = _above(lines, key.start_mark.line, key.start_mark.column)
            if isinstance(value, MappingNode) and value.value:
                yield from walk(value, f"{name}.", above or of_node)
            else:
                beside = _after(lines, value)
                yield Entry(name, _plain(value), above or ("" if beside else of_node), beside)

    found = list(walk(root, "", "")) if isinstance(root, MappingNode) else []
    times = Counter(entry.above for entry in found)
    yield from (replace(entry, shared=times[entry.above] > 1) for entry in found)


def _plain(node: Node) -> Any:
    if isinstance(node, ScalarNode):
        return yaml.safe_load(node.value) if node.style is None else node.value
    return yaml.safe_load(yaml.serialize(node))


def _after(lines: list[str], node: Node) -> str:
    end = node.end_mark
    rest = lines[end.line][end.column :] if end.line < len(lines) else ""
    return rest.partition("#")[2].strip()


def _above(lines: list[str], line: int, column: int) -> str:
    """The comment over the run of neighbours that a key stands in; '' where a blank line or another key is nearer."""
    at = line - 1
    while at >= 0 and lines[at].strip() and not lines[at].lstrip().startswith("#"):
        if len(lines[at]) - len(lines[at].lstrip()) != column or lines[at].rstrip().endswith(":"):
            return ""
        at -= 1
    found: list[str] = []
    while at >= 0 and lines[at].lstrip().startswith("#") and not lines[at].startswith("# @"):
        found.insert(0, lines[at].lstrip().removeprefix("#").strip())
        at -= 1
    text = ""
    for line in found:
        # Choices that follow each other, "name: what it does", have no sign between them at the end of a line.
        choice = text and text[-1] not in ".,;:|" and re.match(r"[\w-]+( \([^)]*\))?: ", line)
        text += f" | {line}" if choice else f" {line}"
    return text.strip()
