"""Says what is wrong with a command line, in sentences: what was given, what there is, what is closest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config import CONFIG_DIR
from recipes.common.checks.errors import closest

_OVERRIDE = re.compile(r"^[+~]*(?P<key>[^=@]+)(?:@[^=]*)?(?:=(?P<value>.*))?$", re.DOTALL)


# Hydra's options that take the next argument.
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
ABOUT = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what --info may be followed by


def sorted_arguments(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate overrides from options, since Hydra's parser takes overrides in one stretch only.

    Args:
        given: the command line.

    Returns:
        (overrides, options with their values), each in the order given.
    """
    overrides: list[str] = []
    options: list[str] = []
    before = ""
    for argument in given:
        is_value = before in WITH_VALUE or (before in ("--info", "-i") and argument in ABOUT)
        (options if is_value or argument.startswith("-") else overrides).append(argument)
        before = "" if is_value else argument
    return overrides, options


def split_override(argument: str) -> tuple[str, str] | None:
    """(key, value) of an override, without ``+``, ``++`` or ``~`` before it; None for an option."""
    match = None if argument.startswith("-") else _OVERRIDE.match(argument)
    return (match["key"].strip(), (match["value"] or "").strip()) if match else None


def renamed_arguments(given: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """A sentence for every argument that uses an old name.

    Args:
        given: the command line.
        renamed: old name -> new name; ``key=value`` for a choice, also as one of several in a sweep; ``key`` for a key,
            or for a node with all below it.
    """
    found = []
    for argument in given:
        parts = split_override(argument)
        if parts is None:
            continue
        key, value = parts
        choices = [choice.strip(" '\"()[]") for choice in re.sub(r"^\w+\(", "", value).split(",")]
        for old, new in renamed.items():
            if "=" in old:
                if key == old.split("=")[0] and old.split("=")[1] in choices:
                    found.append(
                        f"{argument}: {old} is called {new} now" if argument != old else f"{old} is called {new} now"
                    )
            elif key == old or key.startswith(f"{old}."):
                found.append(f"{argument}: {key} is called {new}{key.removeprefix(old)} now")
    return found


def explained(error: Exception, given: Sequence[str], config_name: str | None, *, begun: bool) -> list[str]:
    """What Hydra refused, as sentences; empty if the error is not about the arguments.

    Args:
        error: what Hydra raised.
        given: the command line, with the defaults.
        config_name: of the primary configuration; None if its keys cannot be looked up.
        begun: whether a run or a sweep had been composed, so that the error may be the job's.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return [_unknown_choice(error)]
    if isinstance(error, OverrideParseException):
        reason = " ".join(error.message.split())
        return [f"{error.override}: cannot be read ({reason}); values with special characters need quotes: \"key='…'\""]
    text = one_line(error)
    match = re.match(r"You must specify '([^']+)'", text)
    if match:
        return [f"{match[1]}=: must be given; one of {', '.join(options(match[1]))}"]
    match = re.match(r"Could not (?:override|delete from config\.) '?([^'\s]+)'", text)
    if match and ("not in struct" in text or "No match in the defaults list" in text):
        return [_unknown_key(match[1], given, config_name)]
    if isinstance(error, HydraException | OmegaConfBaseException):
        return [text]
    if isinstance(error, OSError) and begun and error.filename is not None and _before_job(error):
        return [
            f"hydra.run.dir: {error.filename} cannot be made or written ({error.strerror}); choose another "
            "hydra.run.dir (of a sweep: hydra.sweep.dir)"
        ]
    if isinstance(error, ValueError) and not begun:
        return [text]
    return []


def _before_job(error: BaseException) -> bool:
    """Whether an error was raised by Hydra itself, and not by what it ran."""
    trace = error.__traceback__
    while trace is not None:
        if (
            trace.tb_frame.f_code.co_name == "task"
            and trace.tb_frame.f_globals.get("__name__") == "recipes.command_line"
        ):
            return False
        trace = trace.tb_next
    return True


def one_line(error: BaseException) -> str:
    """An error's text, and that of an OmegaConf error behind it, without line breaks, stars and internal names."""
    lines = str(error).splitlines()
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        lines += str(cause).splitlines()
    kept = [line.strip() for line in lines if line.strip() and not re.match(r"\s*(object_type|reference_type)=", line)]
    return "; ".join(dict.fromkeys(line.replace("full_key: ", "key: ").rstrip(";") for line in kept))


def options(group: str) -> list[str]:
    """Names of a configuration group's choices, sorted."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if not path.stem.startswith("_"))


def _unknown_choice(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file)
    group, _, name = missing.rpartition("/")
    there_are = options(group) if group else []
    if not there_are:
        return one_line(error)
    group = group.lstrip("/")
    return f"{group}={name}: there is no such {group}; one of {', '.join(there_are)}{closest(name, there_are)}"


def _unknown_key(key: str, given: Sequence[str], config_name: str | None) -> str:
    known = _keys(given, config_name) if config_name else []
    last = key.rpartition(".")[2]
    same_end = [name for name in known if name.rpartition(".")[2] == last]
    # Of the keys that end alike those that share the most with what was given.
    if same_end:
        ranked = sorted(same_end, key=lambda name: -len(set(name.split(".")) & set(key.split("."))))
        hint = f"; is it {' or '.join(ranked[:2])}?"
    else:
        hint = closest(key, known) or closest(last, known)
    return f"{key}: there is no such key{hint} (+{key}=… adds one that is not there)"


def _keys(given: Sequence[str], config_name: str) -> list[str]:
    """All keys, and the groups, of the configuration that the choices on a command line lead to."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and not path.name.startswith("_")]
    chosen = []
    for argument in given:
        parts = split_override(argument)
        if parts and parts[0] in groups and parts[1] in options(parts[0]):
            chosen.append(f"{parts[0]}={parts[1]}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            cfg = compose(config_name, overrides=chosen)
    except HydraException:  # the choices themselves do not go together; that is not what was asked
        return []
    return [*_flat(cfg), *groups]


def _flat(node: DictConfig, prefix: str = "") -> list[str]:
    plain: Any = OmegaConf.to_container(node, resolve=False)
    found: list[str] = []
    stack = [(prefix, plain)]
    while stack:
        before, value = stack.pop()
        for key, below in value.items():
            found.append(f"{before}{key}")
            if isinstance(below, dict):
                stack.append((f"{before}{key}.", below))
    return found
