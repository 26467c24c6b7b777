"""`self-distill`: each command reaches its module with its arguments, and what hides a package is seen at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import _shadowed, cli
from recipes.common.method import shipped
from tests.builders.configs import ROOT


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)  # a traceback would be printed instead of what is wrong
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_every_command_has_a_module():
    for name, (module, said) in cli.COMMANDS.items():
        path = ROOT / module.replace(".", "/")
        assert said and (path.is_dir() or path.with_suffix(".py").exists()), name
    found = {
        path.stem for path in (ROOT / "recipes" / "diagnose").glob("*.py") if "__main__" in path.read_text("utf-8")
    }
    assert set(cli.DIAGNOSTICS) == found


@pytest.mark.parametrize(
    ("given", "module", "rest"),
    [
        ("train dasd experiment=starter -m", "recipes.dasd.main", ["experiment=starter", "-m"]),
        ("train pw_opsd_sampled a=1", "recipes.pw_opsd.main", ["method=pw_opsd_sampled", "a=1"]),
        ("train attraction", "recipes.entry", ["method=attraction"]),
        ("train method=dasd a=1", "recipes.entry", ["method=dasd", "a=1"]),
        ("train --help", "recipes.entry", ["--help"]),
        ("diagnose dasd_probes limit=4", "recipes.diagnose.dasd_probes", ["limit=4"]),
        ("report runs/a --out x.html", "recipes.report.main", ["runs/a", "--out", "x.html"]),
    ],
)
def test_what_a_command_line_runs(given, module, rest):
    assert cli.chosen(given.split()) == (module, rest)


def test_every_method_can_be_named():
    for method in shipped():
        assert cli.chosen(["train", method.name])[0].startswith("recipes.")


@pytest.mark.parametrize(
    ("given", "said"),
    [("trian dasd", "is it train?"), ("train dsad", "is it dasd?"), ("diagnose", "which diagnostic?; one of branch")],
)
def test_what_there_is_not_is_refused_with_what_there_is(given, said, tmp_path):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        cli.chosen(given.split())


def test_a_command_runs_as_its_module_does(tmp_path):
    done = command(tmp_path, "-m", "recipes.cli", "train", "dasd", "experiment=starter", "dry_run=true")
    assert done.returncode == 0 and "credit dasd" in done.stdout, done.stderr
    refused = command(tmp_path, "-m", "recipes.cli", "train", "dasd", "experiment=nowhere")
    assert refused.returncode == 2 and "there is no such experiment" in refused.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- packages that are hidden


def test_here_nothing_is_hidden():
    assert list(_shadowed.hiding()) == [] and _shadowed.sentences(ROOT) == []


def test_a_file_and_a_folder_that_hide_packages_are_named(tmp_path):
    (tmp_path / "config.py").touch()
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").touch()
    assert dict(_shadowed.hiding(tmp_path)) == {"config": tmp_path / "config.py", "rewards": tmp_path / "rewards"}
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("safe_path", [False, True], ids=["found first", "found first by Ray alone"])
def test_a_hidden_package_is_refused_with_the_path_that_hides_it(tmp_path, safe_path):
    hiding = tmp_path / "config.py"
    hiding.touch()
    options = ["-P"] if safe_path and sys.version_info >= (3, 11) else []
    done = command(tmp_path, *options, "-m", "recipes.dasd.main", "experiment=starter", "dry_run=true")
    assert done.returncode == (2 if options else 1)
    assert f"{hiding} hides the package 'config' of verl-self-distill" in done.stderr
