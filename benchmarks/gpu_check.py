"""What no CPU can show, on one GPU in five minutes: `python -m benchmarks.gpu_check`, or `make gpu-check`.

Seven parts, each in a process of its own with a time budget of its own, so that none can hide another: a part that
fails, dies or runs out of time leaves the rows it had.  One table comes last; `--json PATH` keeps it.  Needed are
torch, Triton, transformers and a few small wheels (docs/gpu.md), no Ray, no vLLM, no flash-attn and no network.

A row is judged against a bound (wrong numbers, memory the plan did not foresee: exit code 1 where one is missed) or an
aim (speed: shown, but no failure), or is a measurement to read.  What was not measured is a row with its reason.
`--rehearse` runs the same code on a CPU with small shapes; speed and memory are not judged there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
GRACE = 15.0  # seconds that a part may take to end by itself after its budget
STATUSES = ("ok", "missed", "error", "aim missed", "skipped", "measured")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """title: what it shows; where: module:function, called with a `Report`; needs: imports; budgets in seconds."""

    title: str
    where: str
    needs: tuple[str, ...]
    seconds: float
    rehearsal: float


PARTS = {
    1: Part("the engine's gradients", "benchmarks.gpu_check_engine:gradients", ("verl", "tensordict", "peft"), 75, 120),
    2: Part("real width: memory and time", "benchmarks.gpu_check_engine:real_width", ("verl", "tensordict"), 60, 40),
    3: Part("speed of the divergence", "benchmarks.gpu_check_numbers:divergence", (), 50, 40),
    4: Part("numerical noise", "benchmarks.gpu_check_numbers:noise", (), 30, 30),
    5: Part("seeded rows in a sampler", "benchmarks.gpu_check_numbers:seeded_rows", (), 15, 10),
    6: Part("compiling the entropy", "benchmarks.gpu_check_numbers:compiled_entropy", ("verl",), 40, 60),
    7: Part("seeds and batches in generation", "benchmarks.gpu_check_numbers:generation", (), 25, 30),
}
BUDGET = 300.0


@dataclass(frozen=True)
class Row:
    part: int
    check: str
    status: str  # of STATUSES
    value: float | None = None
    unit: str = ""
    bound: str = ""
    note: str = ""


class Report:
    """Where a part writes its rows, at once, and how much time it has left."""

    def __init__(self, part: int, file: Path, seconds: float, rehearse: bool, model: Path | None = None):
        self.part, self.file, self.rehearse, self.model = part, file, rehearse, model
        self.device = "cpu" if rehearse else "cuda"
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds of the part's budget that are left; negative after it."""
        return self._end - time.monotonic()

    def _write(self, check: str, status: str, **fields: Any) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(asdict(Row(self.part, check, status, **fields))) + "\n")

    def bound(
        self, check: str, value: float, *, at_most: float = math.inf, at_least: float = -math.inf, **more: str
    ) -> None:
        """A row that fails the run where the value is outside; NaN is outside.  more: `unit`, `note`."""
        inside = at_least <= value <= at_most
        self._write(check, "ok" if inside else "missed", value=value, bound=_interval(at_least, at_most), **more)

    def aim(
        self, check: str, value: float, *, at_most: float = math.inf, at_least: float = -math.inf, **more: str
    ) -> None:
        """A row of speed or memory: shown beside its aim; in a rehearsal not judged."""
        inside = "ok" if at_least <= value <= at_most else "aim missed"
        status = "measured" if self.rehearse else inside
        self._write(check, status, value=value, bound=_interval(at_least, at_most), **more)

    def measured(self, check: str, value: float, **more: str) -> None:
        """A row to read.  more: `unit`, `note`."""
        self._write(check, "measured", value=value, **more)

    def skip(self, check: str, why: str) -> None:
        """A row that could not be measured."""
        self._write(check, "skipped", note=why)

    @contextmanager
    def attempt(self, check: str) -> Iterator[None]:
        """Within it an exception becomes a row, and the part goes on."""
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self._write(check, "error", note=f"{type(error).__name__}: {lines[0][:300]}")
            traceback.print_exc()

    def each(self, items: Mapping[str, Item]) -> Iterator[tuple[str, Item]]:
        """The items while there is time; a row for each that is left out."""
        for name, item in items.items():
            if self.left() > 0:
                yield name, item
            else:
                self.skip(name, "the part's time was spent")


def _interval(low: float, high: float) -> str:
    return " ".join([f"≥ {low:g}"] * math.isfinite(low) + [f"≤ {high:g}"] * math.isfinite(high))


def run_part(where: str, report: Report) -> None:
    """Body of a part's process."""
    if report.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from benchmarks.without_ray import stub

    stub()
    module, function = where.split(":")
    getattr(importlib.import_module(module), function)(report)


def _read(file: Path) -> list[Row]:
    """The whole rows of a file; one that a killed process left half-written is dropped."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return rows


def supervise(
    part: Part, number: int, folder: Path, seconds: float, rehearse: bool, model: Path | None = None
) -> list[Row]:
    """Run a part in a process of its own and read its rows; what is wrong with the process is a row too."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        why = f"not installed: {', '.join(missing)} (docs/gpu.md lists the wheels)"
        return [Row(number, part.title, "skipped", note=why)]
    file, log = folder / f"part_{number}.jsonl", folder / f"part_{number}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    command += ["--part", str(number), "--where", part.where, "--rows", str(file)]
    command += ["--seconds", str(seconds), *["--rehearse"] * rehearse]
    command += ["--model", str(model)] if model else []
    environment = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout=seconds + GRACE)
            trouble = "" if code == 0 else f"its process ended with code {code}"
        except subprocess.TimeoutExpired:
            trouble = f"stopped {GRACE:.0f} s after its budget of {seconds:.0f} s"
        finally:
            process.kill()
            process.wait()
    rows = _read(file)
    if trouble:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        rows.append(Row(number, part.title, "error", note=": ".join([trouble, *said[-1:]])[:400]))
    if not rows:
        rows.append(Row(number, part.title, "error", note="measured nothing"))
    return rows


def environment(rehearse: bool) -> dict[str, str]:
    """Card, driver and versions that figures belong to."""
    import torch

    found = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "transformers", "verl", "tensordict", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if rehearse:
        return {"device": f"CPU, {torch.get_num_threads()} threads (a rehearsal)", **found}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB",
        "cuda": str(torch.version.cuda),
        **found,
    }


def table(rows: list[Row], parts: Mapping[int, Part]) -> str:
    """One line a row, parts apart; a check's name and note are as long as they are."""
    width = max(len(row.check) for row in rows)
    lines = []
    for number in dict.fromkeys(row.part for row in rows):
        lines.append(f"\n{number}. {parts[number].title}")
        for row in (row for row in rows if row.part == number):
            value = "" if row.value is None else f"{row.value:.4g} {row.unit}".strip()
            line = f"  {row.check:{width}}  {row.status:10}  {value:>16}  {row.bound:16}  {row.note}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def summary(rows: list[Row]) -> dict[str, int]:
    return {status: sum(row.status == status for row in rows) for status in STATUSES}


def check(parts: Mapping[int, Part], budget: float, rehearse: bool = False, model: Path | None = None) -> list[Row]:
    """All rows of the parts, in order; the budget is for all of them, whatever their own ones say."""
    end, rows = time.monotonic() + budget, []
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        for number, part in parts.items():
            left = end - time.monotonic()
            seconds = min(part.rehearsal if rehearse else part.seconds, left - GRACE)
            if seconds <= 0:
                found = [Row(number, part.title, "skipped", note=f"the budget of {budget:.0f} s was spent")]
            else:
                found = supervise(part, number, Path(folder), seconds, rehearse, model)
            counts = ", ".join(f"{count} {status}" for status, count in summary(found).items() if count)
            print(f"{number}. {part.title}: {counts} ({left - (end - time.monotonic()):.0f} s)", flush=True)
            rows += found
    return rows


def run(parser: argparse.ArgumentParser, options: argparse.Namespace, parts: Mapping[int, Part]) -> int:
    """The parts that `options.parts` names, the table and the JSON; the exit code."""
    wanted = options.parts.split(",")
    unknown = [name for name in wanted if name not in map(str, parts)]
    if unknown:
        parser.error(f"--parts {options.parts}: no part {', '.join(unknown)}; there are {', '.join(map(str, parts))}")
    rehearse, model = getattr(options, "rehearse", False), getattr(options, "model", None)
    where = environment(rehearse)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    rows = check({int(name): parts[int(name)] for name in wanted}, options.budget, rehearse, model)
    counts = summary(rows)
    print(table(rows, parts))
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"environment": where, "counts": counts, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 1 if counts["missed"] or counts["error"] or counts["skipped"] == len(rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(map(str, PARTS)), help="which, e.g. 1,3; default all")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts (default %(default)g)")
    parser.add_argument("--json", type=Path, help="also write environment, rows and counts here")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small shapes")
    parser.add_argument("--model", type=Path, help="folder of a real model, for part 4")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--where", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        file, seconds, model = options.rows, options.seconds, options.model
        run_part(options.where, Report(options.part, file, seconds, options.rehearse, model))
        return 0
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --rehearse runs the same code on the CPU with small shapes")
    return run(parser, options, PARTS)


if __name__ == "__main__":
    sys.exit(main())
