"""Every key of the configuration: type, default, meaning, and where its values are from.

Made of what is there: comments and values of config/*.yaml, and the dataclasses that check them, with their docstrings.
A test fails where a key has no meaning or a method's value no source.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advantage.estimators import ESTIMATORS, EstimatorParams
from advantage.token_weights import TOKEN_WEIGHTS
from config import CONFIG_DIR
from docs.generate.comments import Entry, ended, entries
from docs.generate.text import cell, code, table
from recipes.common.checks.types import NAMES, type_of
from recipes.common.teacher.decisions import ControllerConfig
from recipes.common.teacher.exposure import ExposureParams
from recipes.methods import BUNDLES
from recipes.report.preset import sourced_values
from rewards.code import CodeOptions
from rewards.options import MixOptions, RewardOptions
from workers.training.params import LossParams, TeacherWeights

WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
# Dataclasses that check a node of train.yaml; their field types say more than a default can.
CHECKED: Mapping[str, Any] = {
    "self_distill.loss": LossParams,
    "self_distill.teacher": TeacherWeights,
    "self_distill.exposure": ExposureParams,
    "self_distill.exposure.controller": ControllerConfig,
}
# Commands with a primary configuration of their own, and what they are called.
COMMANDS = {
    "evaluate": "recipes.evaluate.main",
    "prepare": "recipes.data.prepare",
    "export": "recipes.export.main",
    "diagnose": "all of recipes.diagnose",
    "diagnose_branches": "recipes.diagnose.branch_viability",
    "diagnose_dasd": "recipes.diagnose.dasd_probes",
    "diagnose_forks": "recipes.diagnose.forks_and_revisions",
    "diagnose_exposure": "recipes.diagnose.exposure_sweep",
}
GROUPS_OF_VALUES = ("protocol", "problems", "base_model", "hardware")


# An entry of a docstring's section: names, a colon, and text that goes on in lines further in.
_FIELD = re.compile(r"^(?P<in> *)(?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n(?P=in) +\S.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Key:
    """A key as the reference shows it.

    Attributes:
        name: dotted.
        kind: its type, in words.
        default: as a command line has it.
        meaning: what it does, with units and choices.
        source: where the default is from: a section of a paper, or "ours"; "" where a key only chooses or names.
    """

    name: str
    kind: str
    default: str
    meaning: str
    source: str = ""


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value == "???":
        return "must be given"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def kind_of_default(value: Any) -> str:
    """The type of a key, told by its default; null and what must be given say nothing."""
    if isinstance(value, list):
        return "list"
    if isinstance(value, Mapping):
        return "keys"
    if value is None or value == "???":
        return "null or a value" if value is None else "a value"
    return NAMES[type_of(value)].removeprefix("a ")


def kind_of_field(hint: Any) -> str:
    """A dataclass field's type in words: "number or null"."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(
        WORDS.get(option, getattr(typing.get_origin(option) or option, "__name__", "")) for option in options
    )


def meanings(kind: type[Any]) -> dict[str, str]:
    """Field -> what its class's docstring says of it, or a base's, under ``Attributes:`` or ``Keys``."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        doc = base.__dict__.get("__doc__") or ""
        _, _, section = doc.partition("Attributes:") if "Attributes:" in doc else doc.partition("----\n")
        for match in _FIELD.finditer(section):
            for name in match["names"].split(", "):
                found[name] = ended(" ".join(match["text"].split()))
    return found


def fields_of(kind: type[Any]) -> Iterator[tuple[str, str, Any, str]]:
    """(name, type in words, default, meaning) of a dataclass's fields."""
    hints, said = typing.get_type_hints(kind), meanings(kind)
    for field in dataclasses.fields(kind):
        default = field.default if field.default is not dataclasses.MISSING else None
        yield field.name, kind_of_field(hints[field.name]), default, said.get(field.name, "")


# ---------------------------------------------------------------------- the parts of the reference


def training() -> list[Key]:
    """The keys of train.yaml that are this package's: `dry_run` and all of `self_distill`."""
    checked = {
        f"{node}.{name}": (kind, meaning)
        for node, params in CHECKED.items()
        for name, kind, _, meaning in fields_of(params)
    }
    said = values_of_bundles("self_distill.")
    found = []
    for entry in entries(CONFIG_DIR / "train.yaml"):
        if not entry.key.startswith("self_distill.") and entry.key != "dry_run":
            continue
        kind, documented = checked.get(entry.key, (kind_of_default(entry.value), ""))
        # Of keys under one comment the dataclass says which is which; the comment has the source.
        meaning, sources = (documented, [entry.above]) if entry.shared and documented else (entry.meaning, [])
        sources += said.get(entry.key, [])
        found.append(Key(entry.key, kind, shown(entry.value), meaning, "; ".join(sources)))
    return found


def values_of_bundles(prefix: str) -> dict[str, list[str]]:
    """Key -> "method: value (source)" of every bundle that sets it itself, in words."""
    found: dict[str, list[str]] = {}
    for path in sorted(BUNDLES.glob("*.yaml")):
        for entry in entries(path):
            if entry.key.startswith(prefix) and not entry.key.startswith(("self_distill.about", "self_distill.method")):
                source = f" ({entry.beside or entry.above})" if entry.beside or entry.above else ""
                found.setdefault(entry.key, []).append(f"{path.stem}: {shown(entry.value)}{source}")
    return found


def estimators() -> Iterator[tuple[str, list[Key]]]:
    """(node, keys) of `algorithm.<name>` of every estimator and token weight."""
    nodes: dict[str, type[EstimatorParams]] = {name: estimator.params for name, estimator in ESTIMATORS.items()}
    nodes |= {weight.node: weight.params for weight in TOKEN_WEIGHTS.values() if weight.node not in nodes}
    sources = sources_of_parameters()
    for name, params in sorted(nodes.items()):
        keys = [
            Key(
                f"algorithm.{name}.{field}", kind, shown(default), meaning, sources.get(f"algorithm.{name}.{field}", "")
            )
            for field, kind, default, meaning in fields_of(params)
        ]
        if keys:
            yield name, keys


def sources_of_parameters() -> dict[str, str]:
    """`algorithm.<name>.<key>` -> the comment beside it in the bundle of that name, or else in any other."""
    found: dict[str, str] = {}
    for path in sorted(BUNDLES.glob("*.yaml")):
        for key, (_, comment) in sourced_values("method", path.stem).items():
            if key.startswith("algorithm.") and comment and (key not in found or path.stem == key.split(".")[1]):
                found[key] = comment
    return found


def of_command(config: str) -> list[Key]:
    """The keys of a command's own configuration, config/<config>.yaml."""
    return [keyed(entry) for entry in entries(CONFIG_DIR / f"{config}.yaml")]


def of_dataset() -> list[Key]:
    """`dataset.*` of prepare, as config/dataset/local.yaml has all of them."""
    own = [keyed(entry) for entry in entries(CONFIG_DIR / "dataset" / "local.yaml")]
    return [dataclasses.replace(key, name=f"dataset.{key.name}") for key in own]


def keyed(entry: Entry) -> Key:
    """A key whose type is that of its default."""
    return Key(entry.key, kind_of_default(entry.value), shown(entry.value), entry.meaning)


def rewards() -> Iterator[tuple[str, list[Key]]]:
    """(grader, keys) of `reward.custom_reward_function.reward_kwargs`."""
    for grader, options in (("math", RewardOptions), ("choice, knights", MixOptions), ("code", CodeOptions)):
        yield grader, [Key(name, kind, shown(default), meaning) for name, kind, default, meaning in fields_of(options)]


def verls() -> dict[str, list[tuple[str, str, str]]]:
    """verl's keys that this package sets: key -> (file below config, value, source)."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    files = [CONFIG_DIR / "train.yaml", *(p for g in GROUPS_OF_VALUES for p in sorted((CONFIG_DIR / g).glob("*.yaml")))]
    for path in files:
        for entry in entries(path):
            if not entry.key.startswith("self_distill.") and entry.key != "dry_run":
                where = str(path.relative_to(CONFIG_DIR).with_suffix(""))
                found.setdefault(entry.key, []).append((where, shown(entry.value), entry.beside or entry.above))
    return found


# ---------------------------------------------------------------------- the page


def page() -> str:
    """The reference as one Markdown page."""
    parts = [INTRODUCTION, "## Training"]
    for node, keys in _by_node(training()):
        parts += [f"### `{node}`" if node else "", keys_table(keys, sourced="source; methods that set it", below=node)]
    parts += ["## Credit: `algorithm.<estimator>`", ALGORITHM]
    for name, keys in estimators():
        node = f"algorithm.{name}"
        parts += [f"### `{node}`", keys_table(keys, sourced="source of the default", below=node)]
    parts += ["## verl's keys that are set here", VERL]
    rows = (
        (code(key) if not number else "", code(where), code(value), cell(source))
        for key, of_key in sorted(verls().items())
        for number, (where, value, source) in enumerate(of_key)
    )
    parts.append(table(("key", "set by", "value", "source"), rows))
    for config, module in COMMANDS.items():
        parts += [f"## `{module}`", f"[config/{config}.yaml](../config/{config}.yaml)", keys_table(of_command(config))]
        if config == "prepare":
            local = "[config/dataset/local.yaml](../config/dataset/local.yaml) has every key."
            parts += ["### `dataset`", local, keys_table(of_dataset(), below="dataset")]
    parts += ["## Reward: `reward.custom_reward_function.reward_kwargs`", REWARD]
    for grader, keys in rewards():
        parts += [f"### {grader}", keys_table(keys)]
    return '<div class="keys" markdown>\n\n' + "\n\n".join(parts) + "\n\n</div>\n"


INTRODUCTION = """# Every key

What can be set on a command line, made of the comments in `config/` and of the dataclasses that check values. A key is
given as `key=value`; `--help` of a command lists those that people change, `--cfg job` prints what all of them come
to."""
ALGORITHM = """Each estimator has a node of its own, and only that of the chosen one is read. Defaults are those of the
dataclass; bundles repeat them with the paper's section, or "ours" where the paper leaves a value open."""
VERL = """Every key of verl keeps its name and meaning (its documentation has them all). These are the ones to which
this package gives a value, by which file, and why: a method chooses its `protocol`, an experiment its `base_model`,
`problems` and `hardware`."""
REWARD = """Options of the graders, such as `+reward.custom_reward_function.reward_kwargs.answer_line=true`; of an
evaluation `reward_kwargs={answer_line: true}`."""


def keys_table(keys: list[Key], *, sourced: str = "", below: str = "") -> str:
    """A table of keys, with a last column of sources, called `sourced`, where there are any.

    below: a node that is left out of names.
    """
    sourced = sourced if any(key.source for key in keys) else ""
    head = ("key", "type", "default", "meaning", *([sourced] if sourced else []))
    rows = (
        (
            code(key.name.removeprefix(f"{below}.")),
            cell(key.kind),
            code(key.default),
            cell(key.meaning),
            *([cell(key.source)] if sourced else []),
        )
        for key in keys
    )
    return table(head, rows)


def _by_node(keys: list[Key]) -> Iterator[tuple[str, list[Key]]]:
    """Keys in order of their nodes: (node, its keys); a node that keys interrupt comes once."""
    nodes: dict[str, list[Key]] = {}
    for key in keys:
        nodes.setdefault(key.name.rpartition(".")[0], []).append(key)
    yield from nodes.items()
