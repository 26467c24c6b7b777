"""Reads a run directory for the reports, also of a run that still goes on, was killed, or was started again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recipes.common import metric_names as names
from recipes.common.method import Method, read
from recipes.common.record import run_dir as files
from recipes.common.record.console import warnings_of

if TYPE_CHECKING:
    import pandas as pd


class NotARun(ValueError):
    """A path that holds no run to report on."""


@dataclass(frozen=True)
class Run:
    """What a run left, or has left so far.

    Attributes:
        directory: the run directory.
        config: its resolved configuration.
        records: of metrics.jsonl, ascending steps.
        samples: of samples.jsonl, ascending steps: some responses with what each of their tokens earned.
        stage: of stage.json; empty if there is none.
        unreadable: lines of the two files that are no JSON objects with a step.
    """

    directory: Path
    config: DictConfig
    records: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    stage: dict[str, Any]
    unreadable: int

    @property
    def name(self) -> str:
        """The last two parts of the path, since seeds and time stamps alone say little."""
        return "/".join(self.directory.parts[-2:])

    @property
    def method(self) -> str:
        """The method's name; "?" if the configuration does not say it."""
        return str(OmegaConf.select(self.config, "self_distill.method", default="?"))

    @cached_property
    def asks(self) -> Method | None:
        """What its configuration asks to learn; None if that cannot be told any more."""
        try:
            return read(self.config)
        except OmegaConfBaseException:
            return None

    @property
    def seed(self) -> Any:
        """The seed of the data's order; None if there is none."""
        return OmegaConf.select(self.config, "data.seed", default=None)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Records of training steps: all but that of the validation before the first."""
        return [r for r in self.records if names.TRAINED in r]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The records as a table: a row a step (index ``step``; 0 is the validation before the first), a column a
        metric. NaN where a step has no such number."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records, index="step") if self.records else pd.DataFrame()

    @cached_property
    def responses(self) -> pd.DataFrame:
        """The samples as a table: a row a response, with ``step``, ``problem``, ``reward``, ``tokens`` (their texts),
        ``omitted`` (tokens left out of the middle), and a column of lists for each of the method's token fields."""
        import pandas as pd

        rows = [
            {"step": record["step"], **{k: v for k, v in sample.items() if k != "fields"}, **sample.get("fields", {})}
            for record in self.samples
            for sample in record["samples"]
        ]
        return pd.DataFrame.from_records(rows)

    @property
    def planned_steps(self) -> int | None:
        """The last step that was asked for; None if the configuration leaves it open."""
        return OmegaConf.select(self.config, "trainer.total_training_steps", default=None)

    def curve(self, *names: str) -> tuple[list[int], list[float]]:
        """Steps and values of the first of these metrics that the run has; steps without a number are left out.

        Args:
            *names: of metrics in metrics.jsonl, in the order of preference.
        """
        for name in names:
            points = [(r["step"], float(r[name])) for r in self.records if _is_number(r.get(name))]
            if points:
                steps, values = zip(*points, strict=True)
                return list(steps), list(values)
        return [], []


def load_run(directory: str | Path, *, needs_records: bool = True) -> Run:
    """Read a run directory, also while the run goes on.

    Args:
        directory: the run directory.
        needs_records: whether a run without a record of a step is refused.

    Raises:
        NotARun: if there is no configuration that can be read, or no record although one is needed.
    """
    directory = Path(directory).resolve()
    try:
        config = OmegaConf.load(directory / files.CONFIG)
    except FileNotFoundError:
        raise NotARun(f"{directory} has no {files.CONFIG}: give the directory of a run") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise NotARun(f"{directory / files.CONFIG} is not YAML that can be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise NotARun(f"{directory / files.CONFIG} holds no mapping, so it is not a run's configuration")
    records, bad_records = _json_records(directory / files.METRICS)
    samples, bad_samples = _json_records(directory / files.SAMPLES)
    if needs_records and not records:
        raise NotARun(f"{directory / files.METRICS} has no record: the run ended, or is, before its first step")
    return Run(
        directory=directory,
        config=config,
        records=_last_life(records),
        samples=[s for s in _last_life(samples) if isinstance(s.get("samples"), list)],
        stage=files.read_stage(directory),
        unreadable=bad_records + bad_samples,
    )


def find_runs(path: str | Path, *, needed: bool = True) -> list[Path]:
    """The run directories at or below a path, sorted.

    Args:
        path: a run directory, or a folder that is searched with all below it.
        needed: whether it is an error if there is none.

    Raises:
        NotARun: if there is none, although one is needed.
    """
    path = Path(path)
    found = [path] if (path / files.CONFIG).exists() else sorted(p.parent for p in path.rglob(files.METRICS))
    if needed and not found:
        raise NotARun(
            f"{path}: no run here or below, and no evaluation; a run directory holds {files.CONFIG} and {files.METRICS}"
        )
    return found


def _json_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file of JSON lines, and how many of its lines are none; a last, torn line counts as neither."""
    if not path.exists():
        return [], 0
    records, unreadable = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:  # also of wrong UTF-8
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            unreadable += 1
    return records, unreadable


def _last_life(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the steps that a later start of the same run did again."""
    kept: list[dict[str, Any]] = []
    for record in records:
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------- validation


@dataclass(frozen=True)
class Validation:
    """The accuracy of a validation, in shares.

    Attributes:
        step: after which it was measured.
        name: of the accuracy, such as "mean@16".
        mean: of the data sets.
        half: half-width of its 95 % interval over problems; None if it is not known.
        sets: data set -> accuracy.
    """

    step: int
    name: str
    mean: float
    half: float | None
    sets: dict[str, float]


def validations(run: Run) -> list[Validation]:
    """The validations of a run, in order.

    The interval of a mean over several sets takes the sets as independent: half-widths add in squares.
    """
    found = []
    for record in run.records:
        means = {k: v for k, v in record.items() if k.startswith("val-core/") and "/mean@" in k and _is_number(v)}
        if not means:
            continue
        halves = [h for k in means if _is_number(h := record.get(k.replace("/mean@", "/ci95@")))]
        known = len(halves) == len(means)
        found.append(
            Validation(
                step=record["step"],
                name=next(iter(means)).rpartition("/")[2],
                mean=sum(means.values()) / len(means),
                half=math.hypot(*halves) / len(halves) if known else None,
                sets={k.split("/")[1]: v for k, v in means.items()},
            )
        )
    return found


# ---------------------------------------------------------------------- endings and warnings


@dataclass(frozen=True)
class Status:
    """How a run ended.

    Attributes:
        kind: "done", "stopped", "failed" or "unfinished".
        text: the same in a sentence, with the step.
    """

    kind: str
    text: str


def status(run: Run) -> Status:
    """How a run ended, from its last stage; one that was killed could not write it and counts as unfinished."""
    last = run.records[-1]["step"]
    of = f" of {run.planned_steps}" if run.planned_steps else ""
    kind = run.stage.get("stage")
    if kind == files.DONE:
        return Status("done", f"finished after step {last}")
    if kind == files.STOPPED:
        why = run.stage.get("reason")
        return Status("stopped", f"stopped after step {last}{of}{f': {why}' if why else ''}")
    if kind == files.FAILED:
        return Status("failed", f"failed after step {last}{of}: {run.stage.get('reason') or 'see train.log'}")
    seen = f"; last seen in {kind}, step {run.stage.get('step')}" if kind else ""
    return Status("unfinished", f"running, or killed, after step {last}{of}{seen}")


@dataclass(frozen=True)
class Warned:
    """Something a person should know of a run.

    Attributes:
        text: what happened.
        where: in which of its steps.
    """

    text: str
    where: str


def warnings(run: Run) -> list[Warned]:
    """What the console warns of, with its extent, and what was skipped, cut or unreadable, with its count."""
    occurrences: dict[str, list[tuple[int, str]]] = {}
    for record in run.records:
        for kind, text in [*warnings_of(record), *_skipped(record)]:
            occurrences.setdefault(kind, []).append((record["step"], text))
    found = [Warned(steps[0][1], _extent(run, [s for s, _ in steps])) for steps in occurrences.values()]
    missing = sum(int(r.get(names.ROLLOUTS_MISSING) or 0) for r in run.records)
    if missing:
        found.append(Warned(f"{missing} rollouts of the whole run failed and were left out", "all steps"))
    if run.unreadable:
        found.append(Warned(f"{run.unreadable} lines of the run's files could not be read and are not shown", "files"))
    return found


def _skipped(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    nulls = [name for name, value in record.items() if value is None]
    if nulls:
        more = f" and {len(nulls) - 3} more" if len(nulls) > 3 else ""
        yield "null", f"not a number: {', '.join(nulls[:3])}{more}"
    for name, value in record.items():
        if "/timeout/mean@" in name and value:
            where = name.split("/")[1]
            yield f"timeout {where}", f"grading timed out for {value:.1%} of the validation responses of {where}"
    cut = record.get(names.CUT_SHARE) or 0
    if cut > 0.05:
        yield "cut", f"{cut:.0%} of the responses were cut at the length limit (data.max_response_length)"


def _extent(run: Run, steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    return f"{len(steps)} of {len(run.records)} records, steps {steps[0]} to {steps[-1]}"
