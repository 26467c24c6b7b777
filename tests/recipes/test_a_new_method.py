"""CONTRIBUTING's example, word for word, in a copy of the tree: a method is one module, one YAML and one README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.builders.configs import ROOT
from tests.builders.processes import SMALL

FILE = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what is in the repository, with the example's files beside it."""
    copy = tmp_path_factory.mktemp("tree") / "package"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    examples = FILE.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert [name for name, _ in examples] == ["advantage/mine.py", "config/method/mine.yaml", "recipes/mine/README.md"]
    for name, text in examples:
        assert not (copy / name).exists()
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    return copy


def python(tree: Path, *arguments: str, timeout: float = 60) -> str:
    """What a command prints that runs in the copy, whatever is installed."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_checked_and_planned(tree):
    assert re.search(r"^mine +the teacher's gap, squashed", python(tree, "recipes.methods"), re.MULTILINE)
    assert "`python -m recipes.entry method=mine` | A_G + β·tanh(kδ)" in python(tree, "recipes.methods", "--markdown")
    shown = python(tree, "recipes.entry", "method=mine", "experiment=starter", "dry_run=true")
    assert "mine  (credit mine, beta=0.1, sharpness=2.0)" in shown


def test_its_files_keep_the_houses_rules(tree):
    for command in (["check"], ["format", "--check"]):
        python(tree, "ruff", *command, "advantage/mine.py")
    python(tree, "pytest", "-q", "-p", "no:cacheprovider", "tests/config/test_config.py", "-k", "mine", timeout=120)


def test_a_wheel_contains_it(tree, tmp_path):
    python(
        tree, "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), ".",
        timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert {"advantage/mine.py", "config/method/mine.yaml"} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_it_trains_and_its_report_has_its_own_fields(tree, tmp_path):
    run = tmp_path / "run"
    console = python(
        tree, "recipes.entry", "method=mine", *SMALL, f"hydra.run.dir={run}", "trainer.total_training_steps=2",
        timeout=600,
    )  # fmt: skip
    assert re.search(r"step 2/2 .*corr/adv \S+  pull 0\.\d+", console), console
    (first, *_) = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    pulls = [value for sample in first["samples"] for value in sample["fields"]["pull"] if value is not None]
    assert pulls and max(map(abs, pulls)) <= 1.0
    page = (run / "report.html").read_text()
    assert "mean |tanh(k δ)|" in page and "squashed gap: positive where the teacher prefers the token" in page
