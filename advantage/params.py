"""Parameters from a configuration: a dataclass whose field defaults are the only place where defaults are kept."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np


class Params(Protocol):
    """A dataclass that can say what is wrong with its values."""

    def validate(self) -> None:
        """Refuse parameters that are not usable.

        Raises:
            ValueError: if one of them, or a combination, is not usable; states value, rule and fix.
        """


ParamsT = TypeVar("ParamsT", bound=Params)


def load_params(params: type[ParamsT], node: Any, *, where: str) -> ParamsT:
    """Build and validate a parameter dataclass from a config node.

    Args:
        params: the dataclass.
        node: a mapping (an OmegaConf node is one), an instance of `params`, or None for defaults.
        where: the node's path in the config, for messages.

    Raises:
        ValueError: if a key is unknown, a type is wrong or a value is outside its range; states value, rule and fix.
    """
    if isinstance(node, params):
        node.validate()
        return node
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ValueError(f"{where}={node!r}: must be a mapping of {', '.join(_field_types(params))}")
    known = _field_types(params)
    values = {}
    for key, value in node.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{where}.{key}={value!r}: no such parameter{hint} There are: {', '.join(known)}")
        values[key] = _converted(f"{where}.{key}", value, known[key])
    try:
        built = params(**values)
        built.validate()
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    return built


def require_one(params: Any, given: str, instead: str) -> None:
    """Refuse that two parameters, of which one is in force, are both given.

    `given` is in force where it is not null, and `instead` where it is; the default of `instead` may stand beside it.

    Args:
        params: a dataclass's instance.
        given: name of the one that is null unless it is wanted.
        instead: name of the one that is in force otherwise.

    Raises:
        ValueError: if both are given, or both are null.
    """
    first, second = getattr(params, given), getattr(params, instead)
    default = next(field.default for field in dataclasses.fields(params) if field.name == instead)
    require(first is not None or second is not None, given, first, f"a number where {instead} is null")
    require(
        first is None or second in (None, default),
        instead,
        second,
        f"left alone with {given}={first!r}, which holds; set {given}=null for {instead}",
    )


def require(holds: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a value that breaks a rule.

    Args:
        holds: whether the rule holds.
        name: the parameter.
        value: what was given.
        rule: what must hold, to follow "must be".

    Raises:
        ValueError: if the rule does not hold; says `name=value: must be rule`.
    """
    if not holds:
        raise ValueError(f"{name}={value!r}: must be {rule}")


def _field_types(params: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(params)
    return {field.name: hints[field.name] for field in dataclasses.fields(params)}


def _converted(where: str, value: Any, kind: Any) -> Any:
    """A config value as the field's type: ints become floats, everything else must already be of that type."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    if bool in options:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
    elif isinstance(value, bool):
        _wrong_type(where, value, options)
    elif float in options and isinstance(value, (int, float)):
        if math.isnan(value):
            _wrong_type(where, value, options)
        return float(value)
    elif int in options and isinstance(value, int):
        return value
    elif str in options and isinstance(value, str):
        return value
    _wrong_type(where, value, options)


def _wrong_type(where: str, value: Any, options: Sequence[type]) -> NoReturn:
    names = {bool: "true or false", float: "a number", int: "a whole number", str: "a word", type(None): "null"}
    hint = "; YAML reads 1e-6 as text, write 1.0e-6" if isinstance(value, str) and float in options else ""
    raise ValueError(f"{where}={value!r}: must be {' or '.join(names[option] for option in options)}{hint}")
