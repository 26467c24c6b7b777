"""What the diagnostics' commands share: measuring part by part, going on after an interruption, and the results' files.

A diagnostic is `measure(seed, problems) -> records` and `summarise(records, cfg) -> Findings`.  The problems are
measured in fixed chunks, and each chunk of each seed is one file under ``parts/``, written when it is complete.
Starting again with the same ``hydra.run.dir`` measures only what is missing; more seeds may be added, other settings
are refused.  Of several data files the problems are pooled, and summarised by file too.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from recipes.command_line import Command
from recipes.common.checks.errors import SettingsError
from recipes.common.processes.launch import output_into
from recipes.common.record.run_dir import write_atomically
from recipes.diagnose.statistics import Interval
from recipes.diagnose.vllm_rollouts import engine_problem, release

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.diagnose.engine import Problem

SETTINGS, PARTS, LOG = "settings.json", "parts", "diagnose.log"
# Keys that do not change what is measured: seeds are parts of their own, the rest is about speed, place or evaluation.
FREE_KEYS = ("seeds", "device", "tokens_per_pass", "summary", "vllm")

Records = list[dict[str, Any]]


def command(module: str, what: str, keys: Sequence[tuple[str, str]]) -> Command:
    """What a diagnostic's ``--help`` says.

    Args:
        module: its name in `recipes.diagnose`.
        what: what it measures, in a sentence.
        keys: (key=value, meaning) of its own, beside those that all diagnostics have.
    """
    return Command(
        module=f"recipes.diagnose.{module}",
        what=f"{what} The same hydra.run.dir goes on after an interruption.",
        examples=(
            ("", "the embedded model on its validation problems, on a CPU"),
            ("limit=8 rollouts=2 seeds=[1]", "a short try"),
            ("model=outputs/starter/dasd/<run>", "a training run's last checkpoint"),
            ("model=Qwen/Qwen3-1.7B data=data/math_500/test.parquet max_tokens=4096 device=cuda", "a larger model"),
            ("hydra.run.dir=<directory> seeds=[1,2,3,4]", "more seeds of one that was measured before"),
        ),
        keys=(
            ("model=<path or name>", "a folder, hub name, adapter, checkpoint or run directory"),
            ("data=<file>", "a prepared set or parquet file with problem, answer and solution; a list is pooled"),
            ("limit=64", "only the first problems of each file; null: all"),
            ("rollouts=4", "of each problem and seed"),
            ("seeds=[1,2,3]", "each measures anew; intervals pool them"),
            ("max_tokens=96", "of a response"),
            ("teacher.context=solution", "what the teacher is shown: solution | answer"),
            ("device=cuda", "cpu | cuda; dtype= and tokens_per_pass= go with it"),
            ("engine=vllm", "samples with vLLM; vllm.* say how"),
            ("hydra.run.dir=<directory>", "where results go"),
            *keys,
        ),
        types={"limit": "whole", "step.lr": "number", "prm": "text", "prm_device": "text"},
        more="Every key with what it means: config/diagnose*.yaml; the results: recipes/diagnose/README.md.",
        not_started="This diagnostic was not started:",
    )


@dataclass
class Findings:
    """What a diagnostic found.

    Attributes:
        tables: (title, columns, rows), for people.
        results: for programs: JSON, with `Interval` where a number has one.
        notes: sentences that a reader must not miss.
    """

    tables: list[tuple[str, list[str], list[list[str]]]]
    results: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def rounded(values: Iterable[float]) -> list[float]:
    """The numbers as a record keeps them: six significant digits are more than fp32 log-probs have."""
    return [float(f"{float(value):.6g}") for value in values]


def shown(interval: Interval, form: str = "{:.3f}") -> str:
    """An interval as ``value [low, high]``; the value alone if it has no bounds, a dash if there is nothing to show.

    Args:
        interval: the interval.
        form: how each of its numbers is written.
    """
    if isnan(interval.value):
        return "–"
    if isnan(interval.low):
        return form.format(interval.value)
    numbers = [form.format(x) for x in (interval.value, interval.low, interval.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def execute(
    name: str,
    cfg: DictConfig,
    prepare: Callable[[DictConfig], tuple[Sequence[Problem], Callable[[int, Sequence[Problem]], Records]]],
    summarise: Callable[[Records, DictConfig], Findings],
    draw: Callable[[Findings, Records, DictConfig], Figure],
) -> int:
    """Run a diagnostic's command to its files.

    Args:
        name: the diagnostic's; its files are called so too.
        cfg: its configuration.
        prepare: checks the settings and loads what is needed; returns the problems and ``measure(seed, problems)``,
            whose records must be JSON-serialisable and carry ``problem`` (its index); ``seed`` is added here.
        summarise: makes findings of all records.
        draw: makes the figure.

    Returns:
        The exit code: 0, or 130 if it was stopped.

    Raises:
        SettingsError: if the settings, or those that the directory was begun with, do not allow it.
    """
    console = _console()
    out = Path(cfg.out).resolve()
    try:
        check_common(cfg)
        problems, measure = prepare(cfg)
        claim(out, name, cfg)
        with ExitStack() as held:
            if cfg.engine == "vllm":  # which, with Ray, says hundreds of lines
                terminal = held.enter_context(output_into(out / LOG))
                console = _console(terminal)
                console.print(f"vLLM's output: {out / LOG}")
            held.callback(release)
            records = measure_all(cfg, out, problems, measure, console)
    except KeyboardInterrupt:
        console.print(f"[yellow]stopped[/]; what is measured is kept: start again with hydra.run.dir={cfg.out}")
        return 130
    write_findings(name, cfg, out, records, summarise, draw, console)
    return 0


def _console(descriptor: int | None = None) -> Console:
    """On a descriptor, or on the standard output."""
    console = Console(
        file=None if descriptor is None else os.fdopen(os.dup(descriptor), "w", buffering=1), highlight=False
    )
    if not console.is_terminal:  # a log file: wide enough for every table
        console.width = 160
    return console


def check_common(cfg: DictConfig) -> None:
    """Refuse what is wrong among the keys that all diagnostics have.

    Raises:
        SettingsError: if anything is; lists all of it.
    """
    wrong = []
    for key in ("rollouts", "chunk", "max_tokens", "tokens_per_pass"):
        if cfg[key] < 1:
            wrong.append(f"{key}={cfg[key]}: must be at least 1")
    if cfg.limit is not None and cfg.limit < 1:
        wrong.append(f"limit={cfg.limit}: must be at least 1, or null for all")
    seeds = list(cfg.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        wrong.append(f"seeds={seeds}: give at least one, each once")
    if cfg.summary.resamples < 100:
        wrong.append(
            f"summary.resamples={cfg.summary.resamples}: a percentile interval needs at least 100 (paper: 1000)"
        )
    if not cfg.temperature > 0:
        wrong.append(
            f"temperature={cfg.temperature}: must be above 0: without sampling a problem's rollouts are all alike"
        )
    if not 0 < cfg.top_p <= 1:
        wrong.append(f"top_p={cfg.top_p}: must be in (0, 1]")
    if (engine := engine_problem(cfg.engine, cfg.device)) is not None:
        wrong.append(engine)
    if wrong:
        raise SettingsError(wrong)


def claim(out: Path, name: str, cfg: DictConfig) -> None:
    """Make the directory this diagnostic's, or check that it is.

    Args:
        out: the directory.
        name: the diagnostic's.
        cfg: its configuration; `FREE_KEYS` may differ from what the directory was begun with.

    Raises:
        SettingsError: if other keys differ; names each of them.
    """
    settings = {"diagnostic": name, **_flat({k: v for k, v in _plain(cfg).items() if k not in (*FREE_KEYS, "out")})}
    path = out / SETTINGS
    if path.exists():
        before = json.loads(path.read_text())
        differing = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
        if differing:
            raise SettingsError(
                [f"{out} was measured with {k}={before.get(k)}, not {settings.get(k)}; use another hydra.run.dir"
                 for k in differing]
            )  # fmt: skip
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings, indent=2) + "\n")


def measure_all(
    cfg: DictConfig,
    out: Path,
    problems: Sequence[Problem],
    measure: Callable[[int, Sequence[Problem]], Records],
    console: Console,
) -> Records:
    """Measure the parts that are not there yet.

    Args:
        cfg: the diagnostic's configuration.
        out: its directory.
        problems: all of them.
        measure: makes the records of a seed and a chunk.
        console: shows the progress.

    Returns:
        All records, those of before too, in order of seeds and problems, each with its problem's ``source``.

    Raises:
        SettingsError: if a part was measured on other problems.
    """
    chunks = [problems[i : i + cfg.chunk] for i in range(0, len(problems), cfg.chunk)]
    sources = {problem.index: problem.source for problem in problems}
    work = [(seed, number, chunk) for seed in cfg.seeds for number, chunk in enumerate(chunks)]
    records: Records = []
    began, kept = time.time(), 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("measuring", total=len(work))
        for done, (seed, number, chunk) in enumerate(work, 1):
            path = out / PARTS / f"seed_{seed}_chunk_{number}.json"
            # The same rows, or the data file has changed under a directory that is half measured.
            rows = hashlib.sha256(json.dumps([[p.index, p.prompt] for p in chunk]).encode()).hexdigest()
            part = _read_part(path)
            if part is None:
                found = [{"seed": seed, **record} for record in measure(seed, chunk)]
                part = {"rows": rows, "records": found}
                write_atomically(path, json.dumps(part))
            elif part["rows"] != rows:
                raise SettingsError(
                    [f"{path} holds other problems than data={cfg.data} now; use another hydra.run.dir"]
                )
            else:
                kept += 1
            records += [{"source": sources[record["problem"]], **record} for record in part["records"]]
            progress.update(task, advance=1, description=f"seed {seed}")
            if not console.is_terminal:
                console.print(f"{done}/{len(work)} parts, {time.time() - began:.0f} s")
    if kept:
        console.print(f"{kept} of {len(work)} parts were measured before and are kept")
    return records


def read_records(out: Path, name: str) -> Records:
    """All records that a diagnostic's directory has.

    Args:
        out: the directory.
        name: the diagnostic's.

    Raises:
        SettingsError: if it is no directory of that diagnostic, or nothing is measured in it.
    """
    settings = _read_part(out / SETTINGS) or {}
    if settings.get("diagnostic") != name:
        raise SettingsError([f"{out}: no directory of recipes.diagnose.{name}"])
    parts = [part for path in sorted((out / PARTS).glob("*.json")) if (part := _read_part(path)) is not None]
    if not parts:
        raise SettingsError([f"{out}: nothing is measured in it yet"])
    return [record for part in parts for record in part["records"]]


def _read_part(path: Path) -> dict[str, Any] | None:
    """A finished part; None where there is none, or one that a full disk has cut (it is measured again)."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_findings(
    name: str,
    cfg: DictConfig,
    out: Path,
    records: Records,
    summarise: Callable[[Records, DictConfig], Findings],
    draw: Callable[[Findings, Records, DictConfig], Figure],
    console: Console,
) -> None:
    """Write ``<name>.json``, ``<name>.md`` and ``<name>.png`` into the directory, and the tables on the console.

    Args:
        name: the diagnostic's.
        cfg: its configuration.
        out: its directory.
        records: all of them.
        summarise: makes findings of them.
        draw: makes the figure.
        console: shows the tables.
    """
    findings = summarise(records, cfg)
    by_source = summaries_by_source(records, cfg, summarise)
    if by_source:
        findings.results["by_source"] = {source: of_one.results for source, of_one in by_source.items()}
    document = {"diagnostic": name, "settings": _plain(cfg), "results": findings.results, "notes": findings.notes}
    write_atomically(out / f"{name}.json", json.dumps(document, indent=2, default=Interval.as_json) + "\n")
    text = "".join(f"\n## {source}\n\n{markdown(of_one)}" for source, of_one in by_source.items())
    write_atomically(out / f"{name}.md", markdown(findings) + text)
    figure = draw(findings, records, cfg)
    temporary = out / f".{name}.png"
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(out / f"{name}.png")
    for title, columns, rows in findings.tables:
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for note in findings.notes:
        console.print(f"[yellow]note[/] {note}")
    if by_source:
        console.print(
            f"pooled over {len(by_source)} files ({', '.join(by_source)}); each alone is in the .md", markup=False
        )
    console.print(f"{out}/{name}.json, .md, .png")


def summaries_by_source(
    records: Records, cfg: DictConfig, summarise: Callable[[Records, DictConfig], Findings]
) -> dict[str, Findings]:
    """What is found in each data file alone; empty where there is only one.

    Args:
        records: of all files, with their ``source``.
        cfg: the diagnostic's configuration.
        summarise: makes findings of records.
    """
    sources = list(dict.fromkeys(record["source"] for record in records))
    if len(sources) < 2:
        return {}
    return {source: summarise([r for r in records if r["source"] == source], cfg) for source in sources}


def markdown(findings: Findings) -> str:
    """The tables and notes as Markdown."""
    lines: list[str] = []
    for title, columns, rows in findings.tables:
        lines += [f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in findings.notes)]) + "\n"


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
