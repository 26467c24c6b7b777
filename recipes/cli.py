"""`self-distill <command> …`: the commands of this package under one name, each as `python -m` runs it.

The command is imported when it is known which: the list of them takes no time.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

# Command -> module, what it does.
COMMANDS = {
    "train": ("recipes.entry", "train with a method: self-distill train dasd experiment=starter"),
    "evaluate": ("recipes.evaluate.main", "accuracy and reasoning health of models, with intervals"),
    "report": ("recipes.report.main", "the pages of runs and evaluations, and comparisons of runs"),
    "prepare": ("recipes.data.prepare", "training and evaluation files, of the hub's sets or of your own"),
    "validate": ("recipes.data.validate", "what training would stumble over in prepared files, row by row"),
    "diagnose": ("recipes.diagnose", "the papers' diagnostics: self-distill diagnose dasd_probes"),
    "reproduce": ("recipes.reproduce.main", "the papers' tables and figures, and all methods compared"),
    "export": ("recipes.export.main", "a Hugging Face folder with a model card, of a run's checkpoint"),
    "methods": ("recipes.methods", "list the methods"),
}
DIAGNOSTICS = ("branch_viability", "dasd_probes", "exposure_sweep", "forks_and_revisions")


def page() -> str:
    """What --help prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "self-distill <command> [arguments]",
            "",
            *lines,
            "",
            "`self-distill <command> --help` has its arguments; `self-distill train <method> --help`: of a method.",
            "Each command is also a module: python -m recipes.evaluate.main",
        ]
    )


def chosen(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(module, its arguments) for a command line.

    Raises:
        ValueError: if there is no such command, method or diagnostic; the message lists those there are.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        raise ValueError(f"{name}: no such command; one of {', '.join(COMMANDS)}{_closest(name, COMMANDS)}")
    if name == "train":
        return _training(rest)
    if name == "diagnose":
        if not rest or rest[0] not in DIAGNOSTICS:
            given = f"{rest[0]}: no such diagnostic" if rest else "which diagnostic?"
            raise ValueError(f"{given}; one of {', '.join(DIAGNOSTICS)}")
        return f"recipes.diagnose.{rest[0]}", rest[1:]
    return COMMANDS[name][0], rest


def _training(rest: list[str]) -> tuple[str, list[str]]:
    """A method by its name, with its own command's defaults; without one, what `method=` says, as recipes.entry."""
    if not rest or rest[0].startswith("-") or "=" in rest[0]:
        return COMMANDS["train"][0], rest
    from recipes import methods

    names = [path.stem for path in methods.BUNDLES.glob("*.yaml")]
    if rest[0] not in names:
        raise ValueError(f"{rest[0]}: no such method{_closest(rest[0], names)}; `self-distill methods` lists them")
    module, *defaults = methods.command(rest[0]).split()[2:]  # python -m <module> [method=<name>]
    return module, [*defaults, *rest[1:]]


def _closest(name: str, names: Sequence[str] | dict[str, object]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1)
    return f"; is it {close[0]}?" if close else ""


def main() -> None:
    """The command line; exits with 2 where it is refused, and else as the command does."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from recipes.command_line.page import show

        show(page())
        return
    try:
        module, rest = chosen(arguments)
    except ValueError as error:
        print(f"{error}\n`self-distill --help` shows what there is.", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
