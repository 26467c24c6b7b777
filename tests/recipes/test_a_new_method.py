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

from recipes import _shadowed
from tests.builders.configs import ROOT
from tests.builders.processes import SMALL

STEPS = "trainer.total_training_steps=2"
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


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python(
        tree, "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), ".",
        timeout=120,
    )  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_contains_it_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
        (scripts,) = [archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    assert {"advantage/mine.py", "config/method/mine.yaml", "recipes/report/templates/run.html"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(_shadowed.NAMES)
    assert any(re.search(r"\.dist-info/(licenses/)?LICENSE$", name) for name in names)
    assert "self-distill = recipes.cli:main" in scripts and "self_distill = advantage.register" in scripts
    for line in ("Project-URL: verl, https://", "License: Apache-2.0", "Description-Content-Type: text/markdown"):
        assert line in metadata
    assert "# verl-self-distill" in metadata  # the README


@pytest.mark.slow
def test_from_the_wheel_it_trains_anywhere_and_its_report_has_its_own_fields(wheel, tmp_path):
    """Installed beside nothing but what it depends on, by its console command, in a folder without a checkout."""
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    done = subprocess.run(
        [str(installed / "bin" / "self-distill"), "train", "mine", *SMALL, "hydra.run.dir=run", STEPS],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    console, run = done.stdout + done.stderr, elsewhere / "run"
    assert done.returncode == 0 and str(installed / "recipes" / "starter" / "model") in console, console
    assert re.search(r"step 2/2 .*corr/adv \S+  pull 0\.\d+", console), console
    (first, *_) = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    pulls = [value for sample in first["samples"] for value in sample["fields"]["pull"] if value is not None]
    assert pulls and max(map(abs, pulls)) <= 1.0
    page = (run / "report.html").read_text()
    assert "mean |tanh(k δ)|" in page and "squashed gap: positive where the teacher prefers the token" in page
