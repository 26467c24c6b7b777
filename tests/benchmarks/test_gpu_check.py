"""The one-GPU check: what it says of parts that fail, and the whole of it on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Part, Report
from benchmarks.without_ray import UNUSED
from tests.builders.configs import ROOT


def part(name: str, *, needs: tuple[str, ...] = (), seconds: float = 20.0) -> Part:
    return Part(name, f"tests.benchmarks.gpu_check_parts:{name}", needs, seconds, seconds)


@pytest.fixture
def supervised(tmp_path):
    """Statuses by check, and notes, of one part of tests/benchmarks/gpu_check_parts.py."""

    def run(name: str, **options) -> tuple[dict[str, str], dict[str, str]]:
        (tmp_path / name).mkdir()
        seconds = options.get("seconds", 20.0)
        rows = gpu_check.supervise(part(name, **options), 1, tmp_path / name, seconds, rehearse=True)
        return {row.check: row.status for row in rows}, {row.check: row.note for row in rows}

    return run


def test_rows_are_judged_by_bounds_and_only_shown_beside_aims(supervised):
    statuses, _ = supervised("good")
    assert statuses == {"two is at most three": "ok", "two is at most one": "measured", "seven": "measured"}
    statuses, _ = supervised("wrong")
    assert set(statuses.values()) == {"missed"}  # also what is no number


def test_a_failing_check_leaves_the_others_and_its_reason(supervised):
    statuses, notes = supervised("one_failure")
    assert statuses == {"the first": "error", "the second": "ok"}
    assert notes["the first"] == "RuntimeError: broken"


def test_a_part_that_dies_leaves_the_rows_it_had(supervised):
    statuses, notes = supervised("dies")
    assert statuses == {"before": "ok", "dies": "error"}
    assert "ended with code 7" in notes["dies"]


def test_a_part_that_does_not_end_is_stopped(supervised, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1.0)
    statuses, notes = supervised("sleeps", seconds=8.0)
    assert statuses == {"before": "ok", "sleeps": "error"}
    assert "stopped 1 s after its budget of 8 s" in notes["sleeps"]


def test_a_part_without_its_packages_is_skipped_and_says_which(supervised):
    statuses, notes = supervised("good", needs=("torch", "no_such_package"))
    assert statuses == {"good": "skipped"} and "no_such_package" in notes["good"]


def test_a_part_leaves_out_what_there_is_no_time_for(tmp_path):
    from tests.benchmarks.gpu_check_parts import slow_items

    slow_items(Report(1, tmp_path / "rows", 1.0, rehearse=True))
    statuses = [(row.check, row.status) for row in gpu_check._read(tmp_path / "rows")]
    assert statuses == [("a", "measured"), ("b", "measured"), ("c", "skipped")]


def test_aims_are_judged_on_a_gpu(tmp_path):
    report = Report(1, tmp_path / "rows", 1.0, rehearse=False)
    report.aim("slow", 2.0, at_most=1.0, unit="ms")
    report.aim("fast", 0.5, at_most=1.0, unit="ms")
    assert [row.status for row in gpu_check._read(tmp_path / "rows")] == ["aim missed", "ok"]


def test_the_budget_of_all_parts_is_kept():
    rows = gpu_check.check({1: part("good"), 2: part("good")}, budget=gpu_check.GRACE, rehearse=True)
    assert [row.status for row in rows] == ["skipped", "skipped"] and "budget" in rows[0].note


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_the_command_refuses_what_it_cannot_do():
    assert "no part 9" in command("--parts", "1,9", "--rehearse").stderr
    without_gpu = command("--parts", "5", CUDA_VISIBLE_DEVICES="")
    assert without_gpu.returncode == 2 and "--rehearse" in without_gpu.stderr


def test_exit_codes_and_the_table(monkeypatch, capsys, tmp_path):
    for name, code in (("good", 0), ("wrong", 1), ("one_failure", 1)):
        monkeypatch.setattr(gpu_check, "PARTS", {1: part(name)})
        monkeypatch.setattr(sys, "argv", ["gpu_check", "--rehearse", "--parts", "1", "--json", str(tmp_path / name)])
        assert gpu_check.main() == code, name
    shown = capsys.readouterr().out
    assert "four is at most three" in shown and "≤ 3" in shown and "0 ok, 2 missed" in shown
    record = json.loads((tmp_path / "good").read_text())
    assert record["counts"]["ok"] == 1 and record["rows"][0]["bound"] == "≤ 3" and "torch" in record["environment"]


def test_nothing_but_skips_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "PARTS", {1: part("good", needs=("no_such_package",))})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--rehearse", "--parts", "1"])
    assert gpu_check.main() == 1


def test_the_parts_fit_the_budget():
    assert sum(p.seconds for p in PARTS.values()) <= gpu_check.BUDGET


@pytest.fixture
def without_ray(tmp_path) -> dict[str, str]:
    """The environment of a Python that has all packages of this one but Ray and its like."""
    folder = tmp_path / "site"
    folder.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if entry.name.split(".")[0].split("-")[0] not in UNUSED and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def test_the_engine_trains_without_ray(without_ray, tmp_path):
    program = f"""
import importlib.util
from benchmarks.without_ray import UNUSED, NotInstalled, stub
assert [n for n in UNUSED if importlib.util.find_spec(n)] == []
print("stubbed", *stub())
import ray
try:
    ray.get(ray.put(1))
except NotInstalled as error:
    print(error)
from pathlib import Path
from benchmarks.gpu_check import Report
from benchmarks import gpu_check_engine as part
from benchmarks.engine_cases import CASES
few = {{n: {{**CASES[n][1], "dtype": "fp32"}} for n in ("opsd", "frozen copy", "lora, adapter off")}}
part.cases = lambda rehearse: few
part.gradients(Report(1, Path({str(tmp_path / "rows")!r}), 100.0, rehearse=True))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, env=without_ray, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stubbed ray transfer_queue datasets pandas dill PIL" in done.stdout
    assert "ray.put is a stub here" in done.stdout
    rows = gpu_check._read(tmp_path / "rows")
    assert [row.status for row in rows] == ["ok"] * len(rows) and len(rows) >= 3


def test_a_stub_lets_modules_be_imported_and_nothing_else():
    from benchmarks.without_ray import NotInstalled, _StubModule

    stubbed = _StubModule("absent")
    function = lambda: 3  # noqa: E731
    assert stubbed.remote(function) is function and stubbed.remote(num_cpus=1)(function) is function

    class Derived(stubbed.Base):
        field: stubbed.Type | None = None

    assert Derived.__mro__ == (Derived, object) and not isinstance(3, stubbed.Base)
    for misuse in (lambda: stubbed.get(3), lambda: stubbed.init(), lambda: stubbed.nested.call("a", "b")):
        with pytest.raises(NotInstalled, match="absent"):
            misuse()


@pytest.mark.slow
def test_the_nodes_training_commands_are_composed_checked_and_planned():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_node", "--dry", "--gpus", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("4 cuda workers") == 2 and "adapter of rank 8" in done.stdout


def test_the_node_check_refuses_a_machine_without_cards():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_node"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "2 GPUs or more" in done.stderr


@pytest.mark.slow
def test_the_rehearsal_measures_every_part(tmp_path):
    done = command("--rehearse", "--json", str(tmp_path / "found.json"), OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert {row["part"] for row in rows if row["status"] in ("ok", "measured")} == set(PARTS)
    assert sum(row["status"] == "ok" for row in rows) > 40
