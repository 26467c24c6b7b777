"""`python -m recipes.reproduce.main table=<name>`: a paper's table or figure, or the comparison of all methods.

Trains what is missing, evaluates what is trained, writes one page and a Markdown table. Runs are shared between tables:
one that is complete is not done again, one that was interrupted goes on. Without arguments it lists what there is.
Exits with 0, 1 (runs are missing) or 2 (refused).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recipes.command_line import Command, help_asked, refused, show
from recipes.common.checks.errors import SettingsError
from recipes.common.record.console import duration
from recipes.reproduce import tables
from recipes.reproduce.tables import GPU, STARTER, Table

DEFAULTS: dict[str, Any] = {
    "table": None,
    "scale": STARTER,
    "seeds": None,
    "steps": None,
    "parallel": 1,
    "out": "outputs/reproduce",
    "overrides": [],
    "report": False,
    "dry_run": False,
}
COMMAND = Command(
    module="recipes.reproduce.main",
    what=(
        "Reproduce a table or a figure of the papers, or compare all methods: train what is missing, evaluate what is "
        "trained, and write one page with the paper's numbers beside ours. Without arguments: list what there is."
    ),
    examples=(
        ("", "list the tables and figures, what each needs and how long it takes"),
        ("table=compare_quick", "GRPO, DASD and OPSD in both embedded worlds"),
        ("table=dasd_2 seeds=[1] steps=10", "the rows of DASD's Table 2 in the embedded worlds, fewer seeds and steps"),
        ("table=dasd_2 scale=gpu", "the same in the paper's experiments, on GPUs"),
        ("table=atesd_2 report=true", "the page of what is there already"),
    ),
    keys=(
        ("table=<name>", "one of those that the list shows"),
        ("scale=starter", "starter: on a CPU, mostly in the embedded worlds; gpu: the papers' experiments"),
        ("seeds=[1,2,3]", "of training; the description's"),
        ("steps=20", "of training; the description's"),
        ("parallel=1", "runs at a time; step times mean something with 1 only"),
        ("out=outputs/reproduce", "where runs and pages are written; the runs of all tables are shared there"),
        ("overrides=[key=value]", "of every training command"),
        ("report=true", "train nothing, write the page of what is complete"),
        ("dry_run=true", "print the commands, start nothing"),
    ),
    more="What the pages show, and how a table is described: recipes/reproduce/README.md.",
    not_started="Nothing was started:",
)


def main() -> int:
    """The command line."""
    help_asked(COMMAND)
    if not sys.argv[1:]:
        show(listing())
        return 0
    try:
        options = parsed(sys.argv[1:])
        table = tables.read(options["table"])
        return reproduce(table, options)
    except SettingsError as error:
        return refused(COMMAND, error.problems)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a command line.

    Raises:
        SettingsError: if something is wrong with it; it lists every problem found.
    """
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_cli(list(arguments)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise SettingsError([f"{' '.join(arguments)}: {str(error).splitlines()[0]}"]) from error
    problems = []
    for key in given.keys() - DEFAULTS.keys():
        close = get_close_matches(key, DEFAULTS, 1)
        problems.append(f"{key}: there is no such key{f'; did you mean {close[0]}' if close else ''}")
    options = DEFAULTS | given
    if options["table"] is None:
        problems.append("table=: must be given; without any argument the command lists them")
    if options["scale"] not in tables.SCALES:
        problems.append(f"scale={options['scale']}: must be one of {', '.join(tables.SCALES)}")
    for key in ("steps", "parallel"):
        if options[key] is not None and not (_whole(options[key]) and options[key] > 0):
            problems.append(f"{key}={options[key]}: must be a whole number above 0")
    seeds = options["seeds"]
    if seeds is not None and not (
        isinstance(seeds, list) and seeds and all(map(_whole, seeds)) and len(set(seeds)) == len(seeds)
    ):
        problems.append(f"seeds={seeds}: must be a list of whole numbers, each once, such as [1,2,3]")
    if not (
        isinstance(options["overrides"], list) and all(isinstance(o, str) and "=" in o for o in options["overrides"])
    ):
        problems.append(f"overrides={options['overrides']}: must be a list such as [actor_rollout_ref.rollout.n=4]")
    for key in ("report", "dry_run"):
        if not isinstance(options[key], bool):
            problems.append(f"{key}={options[key]}: must be true or false")
    if problems:
        raise SettingsError(problems)
    return options


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---------------------------------------------------------------------- the list


def listing() -> str:
    """All tables: name, title, what each needs and how long it takes."""
    lines = []
    for name in tables.names():
        table = tables.read(name)
        lines += [f"{name}: {table.title}", *(f"    {text}" for text in describe(table))]
    lines += ["", "python -m recipes.reproduce.main table=<name> [scale=starter|gpu]"]
    return "\n".join(lines)


def describe(table: Table) -> Iterator[str]:
    """What a table needs, a line a scale, and what is not there."""
    for name, scale in table.scales.items():
        runs = len(tables.trained(table)) * len(scale.experiments) * len(scale.seeds)
        if name == STARTER:
            seconds = tables.forecast(table, scale)
            need = f"about {duration(seconds)} on two cores from nothing"
            if all(experiment.startswith("starter") for experiment in scale.experiments):  # one thread a process
                need += ", two thirds with parallel=2"
        else:
            need = f"evaluated with preset={scale.preset}; not run yet, the time of each: its command with dry_run=true"
        yield f"scale={name}: {runs} runs in {', '.join(scale.experiments)}, {need}"
    for name, commands in table.commands.items():
        modules = ", ".join(dict.fromkeys(command[0] for command in commands))
        yield f"scale={name}: {modules}, {'one to two minutes each' if name == STARTER else 'on a GPU'}"
    if table.needs:
        yield f"needs {table.needs}"
    for text in (*table.missing, *table.absent):
        yield f"not there: {text}"


# ---------------------------------------------------------------------- doing it


def reproduce(table: Table, options: Mapping[str, Any]) -> int:
    """Train the runs of a table, evaluate them, and write the page.

    Args:
        table: what is reproduced.
        options: of the command line, as `parsed` returns them.

    Returns:
        The exit code: 0, or 1 if something is not complete.

    Raises:
        SettingsError: if the table cannot be had at this scale, or on this machine.
    """
    name = options["scale"]
    if name not in table.scales and name not in table.commands:
        known = ", ".join(f"scale={scale}" for scale in [*table.scales, *table.commands])
        reason = f"it can be had with {known}" if known else " ".join(table.missing)
        raise SettingsError([f"table={table.name} scale={name}: {reason}"])
    if name == GPU and not options["dry_run"] and not options["report"]:
        from recipes.common.checks.machine import count_gpus

        if not count_gpus():
            raise SettingsError(
                ["scale=gpu: this machine has no GPU that torch can use; dry_run=true prints the commands"]
            )
    out = Path(options["out"]).resolve()
    if name not in table.scales:
        return _diagnose(table, name, out, dry_run=options["dry_run"])
    from recipes.reproduce import results, runs, settings

    scale = tables.changed(table.scales[name], seeds=options["seeds"], steps=options["steps"])
    planned = results.plan(table, scale, out, options["overrides"])
    if options["dry_run"]:
        commands = [*(job.command for job in planned.jobs.values()), *results.evaluations(planned)]
        show("\n".join(shlex.join(command) for command in commands))
        return 0
    if others := list(settings.refusals(planned.jobs.values())):
        raise SettingsError(others)
    complete = all(job.complete for job in planned.jobs.values())
    if not options["report"]:
        complete = runs.train_all(
            list(planned.jobs.values()), parallel=options["parallel"], forked=options["scale"] == "starter"
        )
        for command in results.evaluations(planned):
            complete &= subprocess.run(command).returncode == 0
    page, text = results.write(planned, name)
    show(f"{text}\n\npage: {page}\nMarkdown: {page.with_suffix('.md')}")
    return 0 if complete else 1


def _diagnose(table: Table, scale: str, out: Path, *, dry_run: bool) -> int:
    code = 0
    for number, (module, *arguments) in enumerate(table.commands[scale], 1):
        directory = out / "diagnose" / f"{table.name}_{scale}_{number}"
        command = [sys.executable, "-m", module, *arguments, f"hydra.run.dir={directory}"]
        if dry_run:
            print(shlex.join(command))
        elif subprocess.run(command).returncode:
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
