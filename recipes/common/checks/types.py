"""Refusals of values of a type that a key cannot have: text for a number, a number for a switch, a value for a mapping.

A key's type is that of its default.  Where the default is null it says nothing, and the key needs a rule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

NAMES = {"whole": "a whole number", "number": "a number", "bool": "true or false", "text": "text"}


def wrong_types(given: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Find every value that is not of its default's type.

    Args:
        given: the configuration, as plain nested mappings.
        default: the same keys with their defaults; keys that only one of the two has are passed over.
        prefix: what the keys begin with, its dot included.

    Returns:
        An iterator of (key, sentence).
    """
    for key, usual in default.items():
        if key not in given or usual is None or usual == "???" or str(usual).startswith("${"):
            continue
        value, name = given[key], f"{prefix}{key}"
        if isinstance(usual, Mapping):
            if isinstance(value, Mapping):
                yield from wrong_types(value, usual, f"{name}.")
            elif value is not None:
                such = f", such as {name}.{next(iter(usual))}" if usual else ": {key: value}"
                yield name, f"{name}={shown(value)}: must hold keys of its own{such}"
            continue
        problem = wrong_type(value, type_of(usual))
        if problem:
            yield name, f"{name}={shown(value)}: {problem}, such as {shown(usual)}"


def type_of(usual: Any) -> str:
    """Name of a default's type: whole, number, bool, text, or any."""
    if isinstance(usual, bool):
        return "bool"
    if isinstance(usual, int):
        return "number" if usual in (0, 1) else "whole"  # verl writes 0 and 1 where fractions are meant
    return "number" if isinstance(usual, float) else "text" if isinstance(usual, str) else "any"


def wrong_type(value: Any, kind: str) -> str:
    """What a value must be, if it is not; empty if it is.

    Args:
        value: what was given.
        kind: name of a type, from `type_of`; null passes where text does, and so does a list of texts.
    """
    fits = {
        "whole": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        "bool": isinstance(value, bool),
        "text": value is None or isinstance(value, str | list),
    }
    if fits.get(kind, True):
        return ""
    quoted = f"; quote it: \"'{value}'\"" if kind == "text" and not isinstance(value, Mapping) else ""
    return f"must be {NAMES[kind]}{quoted}"


def shown(value: Any) -> str:
    """A value as a command line writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
