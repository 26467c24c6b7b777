"""What all command lines have in common: the defaults of their arguments, the page of --help, and plain error messages.

`run` starts a command that Hydra configures. Commands with options of their own (argparse) call `help_asked`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config import CONFIG_DIR
from recipes import _shadowed
from recipes.command_line import directories, refusals
from recipes.command_line.page import Command, page, show

__all__ = ["Command", "help_asked", "refused", "run", "show"]

Job = Callable[[DictConfig], int | None]


def help_asked(command: Command) -> None:
    """Print the page and end the process if the arguments ask for it."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        show(page(command))
        sys.exit(0)


def run(
    command: Command,
    job: Job,
    config_name: str,
    *,
    defaults: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    stored: bool = False,
) -> None:
    """Run a command; ends the process if its code is not 0, with 2 if it is refused.

    Args:
        command: for --help, and for what is said of it.
        job: does the work, given the composed configuration; returns its exit code, or None for 0.
        config_name: of the primary configuration.
        defaults: overrides for what the user's arguments leave open; they go before them, whose last may be an
            option's.
        renamed: what a command line may still say, and what it is called now; see `refusals.renamed_arguments`.
        stored: the configuration is in Hydra's store, not in the folder `config`.
    """
    help_asked(command)
    given = sys.argv[1:]
    problems = _shadowed.sentences(Path.cwd())  # Ray puts this folder first in the path of its processes
    problems += refusals.renamed_arguments(given, renamed or {})
    if problems:
        sys.exit(refused(command, problems))

    @functools.wraps(job)  # Hydra names the job after the module of what is wrapped
    def task(cfg: DictConfig) -> None:
        code = _checked(command, job, cfg)
        made.forget_job(code=code, dry=bool(cfg.get("dry_run", False)))
        if code:
            sys.exit(code)

    chosen = {parts[0] for argument in given if (parts := refusals.split_override(argument))}
    defaults = [default for default in defaults if default.split("=")[0] not in chosen]
    made = directories.Made()
    directories.WATCHED[:] = [made]
    overrides, options = refusals.sorted_arguments(given)
    sys.argv[1:] = [*defaults, directories.CALLBACK, *overrides, *options]
    config_path = None if stored else str(CONFIG_DIR)
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors are raised then, and not printed
    try:
        hydra.main(config_path=config_path, config_name=config_name, version_base="1.3")(task)()
    except Exception as error:
        problems = refusals.explained(error, [*defaults, *given], None if stored else config_name, begun=made.noted)
        if not problems or wanted == "1":
            raise
        sys.exit(refused(command, problems))
    finally:
        made.forget_sweep()
        if wanted is None:  # whoever called this from Python keeps the environment that they had
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = wanted


def _checked(command: Command, job: Job, cfg: DictConfig) -> int:
    """The job's exit code; 2 if values are missing, of a wrong type, or refer to what is not there."""
    from recipes.common.checks.errors import SettingsError  # seconds, which --help does not need

    problems: list[str] = []
    try:
        missing = [key for key in sorted(OmegaConf.missing_keys(cfg)) if not key.startswith(tuple(command.may_lack))]
        problems += (f"{key}=: must be given{_described(command, key)}" for key in missing)
        problems += _wrong_types(command, cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    except OmegaConfBaseException as error:
        problems.append(refusals.one_line(error))
    if problems:
        return refused(command, problems)
    try:
        return job(cfg) or 0
    except SettingsError as error:
        return refused(command, error.problems)


def _wrong_types(command: Command, given: dict[str, Any]) -> Iterator[str]:
    """Values that are not of the type of the configuration's own; training has checks of its own."""
    from recipes.common.checks.types import shown, wrong_type, wrong_types

    for key, kind in command.types.items():
        value = _at(given, key)
        if value is not None and (problem := wrong_type(value, kind)):
            yield f"{key}={shown(value)}: {problem}, or null"
    if command.checks_types and GlobalHydra.instance().is_initialized():  # a launcher's processes have none
        chosen = [f"{group}={HydraConfig.get().runtime.choices[group]}" for group in command.groups]
        usual = compose(HydraConfig.get().job.config_name, overrides=chosen)
        for key, problem in wrong_types(given, cast(dict[str, Any], OmegaConf.to_container(usual))):
            if key not in command.types:  # told above, and null is allowed
                yield problem


def _at(given: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where it is not there."""
    node: Any = given
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _described(command: Command, key: str) -> str:
    return next((f", {text}" for name, text in command.keys if name.split("=")[0] == key), "")


def refused(command: Command, problems: Sequence[str]) -> int:
    """Say what is wrong with a command's arguments.

    Args:
        command: whose arguments they are.
        problems: a sentence each.

    Returns:
        The exit code, 2.
    """
    listed = "\n".join(f"- {problem}" for problem in problems)
    print(f"{command.not_started}\n{listed}\n`python -m {command.module} --help` shows what there is.", file=sys.stderr)
    return 2
