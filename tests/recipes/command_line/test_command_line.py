"""Command lines: where options stand, the page of --help, refusals without a traceback, and what they leave behind."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys

import pytest

from config import CONFIG_DIR
from recipes import entry
from recipes.command_line.page import choices
from recipes.common.method import shipped
from tests.builders.configs import ROOT
from tests.builders.forked import command

METHODS = [about.name for about in shipped()]
ENTRIES = {
    "recipes.evaluate.main": "COMMAND",
    "recipes.diagnose.dasd_probes": "COMMAND",
    "recipes.diagnose.branch_viability": "COMMAND",
    "recipes.diagnose.forks_and_revisions": "COMMAND",
    "recipes.diagnose.exposure_sweep": "COMMAND",
    "recipes.export.main": "COMMAND",
    "recipes.report.main": "COMMAND",
    "recipes.reproduce.main": "COMMAND",
    "recipes.data.prepare": "COMMAND",
    "recipes.data.validate": "COMMAND",
    "recipes.starter.build": "COMMAND",
}
TRAIN = ("recipes.entry", *(f"recipes.{name}.main" for name in ("dasd", "pw_opsd", "atesd", "opsd", "grpo")))


@pytest.fixture
def dasd(tmp_path, monkeypatch, capsys):
    """DASD's command line in this process and a folder of its own: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Hydra's handlers keep the output of an earlier test

    def started(*arguments: str, method: str | None = "dasd") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code = 0
        try:
            entry.main(method)
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert "HYDRA_FULL_ERROR" not in os.environ
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return code, said.out, said.err

    return started


@pytest.mark.parametrize(
    "arguments",
    [
        ("experiment=starter", "trainer.n_gpus_per_node=2", "--cfg", "job", "--package", "trainer"),
        ("--cfg", "job", "--package", "trainer", "experiment=starter", "trainer.n_gpus_per_node=2"),
        ("experiment=starter", "--cfg", "job", "trainer.n_gpus_per_node=2", "-p", "trainer"),
    ],
)
def test_the_configuration_is_shown_wherever_the_option_stands(dasd, arguments):
    code, out, _ = dasd(*arguments)
    assert code == 0 and "n_gpus_per_node: 2" in out


def test_info_at_the_end(dasd):
    code, out, _ = dasd("experiment=starter", "--info", "defaults")
    assert code == 0 and "method/dasd" in out


def test_the_users_choice_beats_the_commands(dasd):
    code, out, _ = dasd("method=grpo", "experiment=starter", "--cfg", "job", "-p", "self_distill.method")
    assert (code, out.split()[-1]) == (0, "grpo")


def test_a_sweep_checks_every_job_and_leaves_nothing(dasd, tmp_path):
    code, out, _ = dasd("experiment=starter", "dry_run=true", "-m", "algorithm.dasd.beta=0.03,0.1")
    assert code == 0 and "beta=0.03" in out and "beta=0.1" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TRAIN)
def test_each_trainings_page(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", ["main", "experiment=starter", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main(*([name.split(".")[1]] if name != "recipes.entry" else []))
    page = capsys.readouterr().out
    assert not ended.value.code
    for method, line in choices("method"):
        assert f"  {method} " in page and line.split()[0] in page
    for experiment, _ in choices("experiment"):
        assert f"  {experiment} " in page
    assert page.count(f"  python -m {name} ") == 5


@pytest.mark.parametrize("name", ENTRIES)
def test_each_page_says_what_and_how(name):
    said = importlib.import_module(name).COMMAND
    assert said.module == name and len(said.examples) == 5 and said.more


def test_help_of_a_command_of_its_own(tmp_path):
    """In a process: the page comes before anything is asked for, read or made."""
    for name in ("recipes.data.prepare", "recipes.report.main", "recipes.starter.build"):
        for option in ("--help", "-h"):
            done = command(name, option, cwd=tmp_path)
            assert done.returncode == 0 and f"python -m {name}" in done.stdout and not done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("recipes.reproduce.main",), ("recipes.methods",), ("recipes.cli",), ("recipes.entry", "--help")]
)
def test_a_reader_who_has_seen_enough_is_no_error(arguments):
    """As `| head -1` is: the pipe is closed before all is written."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], stdout=write, stderr=subprocess.PIPE, env=environment, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_choice_has_a_line():
    for group in ("method", "experiment", "preset", "dataset"):
        for name, line in choices(group):
            assert len(line) > 10 and not line.endswith(("App", "§")), (group, name, line)


def test_examples_can_be_composed(dasd):
    """What the page shows is what the command takes."""
    for arguments, _ in entry.command_of("dasd", {}).examples:
        shown = re.sub(r" -m | --cfg job", " ", f"{arguments} ").replace("3e-5,5e-5", "3e-5").split()
        code, out, err = dasd(*shown, "--cfg", "job")
        assert code == 0 and "self_distill" in out, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=dsad"], r"method=dsad: there is no such method; one of atesd, .*; the closest is dasd"),
        (["experiment=starer"], "experiment=starer: .*starter_vllm; the closest is starter"),
        (["experiment=starter", "algorithm.dasd.bet=1"], "no such key; the closest is algorithm.dasd.beta"),
        (["experiment=starter", "beta=1"], r"beta: there is no such key; is it algorithm\.dasd\.beta"),
        (["experiment=starter", "trainer.total_training_step=1"], "the closest is trainer.total_training_steps"),
        (["methd=dasd"], "methd: there is no such key; the closest is method"),
        (["experiment=starter", "data.seed=[1"], r"data\.seed=\[1: cannot be read"),
        (["experiment=starter", "data.seed=1,2"], "Ambiguous value"),
        (["experiment=starter", "data.seed=${nothing}"], "nothing"),
        (["--cfg", "job", "-m"], "Only one of"),
        (["method=pw_opsd_ppo"], "method=pw_opsd_ppo is called method=pw_opsd_sampled now"),
        (["-m", "method=dasd,atesd_ppo"], "method=atesd_ppo is called method=atesd_sampled now"),
        *(
            ([f"{form}self_distill.exposure.hold=3"], r"is called self_distill\.exposure\.controller\.hold now")
            for form in ("", "+", "++", "~")
        ),
        (["-m", "self_distill.exposure.credit=one_step,delayed"], r"called self_distill\.exposure\.controller\.credit"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(dasd, tmp_path, arguments, said):
    code, _, err = dasd(*arguments)
    assert code == 2 and re.search(said, err), err
    assert err.startswith("This configuration was not started:\n- ")
    assert list(tmp_path.iterdir()) == []


def test_a_command_line_without_a_method(dasd):
    code, _, err = dasd("experiment=starter", method=None)
    assert code == 2 and "method=: must be given; one of atesd" in err


def test_a_run_directory_that_cannot_be_made(dasd, tmp_path):
    (tmp_path / "file").write_text("kept")
    code, _, err = dasd("experiment=starter", f"hydra.run.dir={tmp_path}/file/run")
    assert code == 2 and "file/run" in err and "choose another hydra.run.dir" in err
    code, _, err = dasd("experiment=starter", f"hydra.run.dir={tmp_path}/file")
    assert code == 2 and "choose another hydra.run.dir" in err
    code, _, err = dasd("experiment=starter", "-m", "data.seed=1,2", f"hydra.sweep.dir={tmp_path}/file/s")
    assert code == 2 and "hydra.sweep.dir" in err
    assert (tmp_path / "file").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------- what is left behind


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


REFUSED = ("experiment=starter", "algorithm.dasd.beta=-1")
DRY = ("experiment=starter", "dry_run=true")


@pytest.mark.parametrize(("arguments", "code"), [(DRY, 0), (REFUSED, 2)])
@pytest.mark.parametrize("sweep", [(), ("-m", "data.seed=1,2")])
def test_nothing_is_left_behind(dasd, tmp_path, arguments, code, sweep):
    assert dasd(*arguments, *sweep)[0] == code
    assert tree(tmp_path) == {}
    (tmp_path / "outputs").mkdir()  # was there before, if empty
    assert dasd(*arguments, *sweep)[0] == code
    assert list(tree(tmp_path)) == [(tmp_path / "outputs").relative_to(tmp_path)]


@pytest.mark.parametrize(("arguments", "code"), [(DRY, 0), (REFUSED, 2)])
def test_what_a_run_holds_is_left_as_it_was(dasd, tmp_path, arguments, code):
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "hydra.yaml").write_text("as the run was started")
    (run / "metrics.jsonl").write_text("{}")
    (run / "empty").mkdir()
    before = tree(tmp_path)
    assert dasd(*arguments, f"hydra.run.dir={run}")[0] == code
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("arguments", "code"), [(DRY, 0), (REFUSED, 2)])
def test_what_a_sweep_holds_is_left_as_it_was(dasd, tmp_path, arguments, code):
    done = tmp_path / "sweep" / "0"
    (done / ".hydra").mkdir(parents=True)
    (done / ".hydra" / "overrides.yaml").write_text("[]")
    (done / "metrics.jsonl").write_text("{}")
    (tmp_path / "sweep" / "multirun.yaml").write_text("as it was started")
    before = tree(tmp_path)
    assert dasd(*arguments, "-m", "data.seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")[0] == code
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("recipes.evaluate.main", ["model=x", "data=nowhere", "samples=many"], "samples=many: must be a whole number"),
        ("recipes.evaluate.main", [], "model=: must be given"),
        ("recipes.evaluate.main", ["preset=starter", "limit=few"], "limit=few: must be a whole number, or null"),
        # Null is a value of theirs: only what is wrong besides is said.
        ("recipes.diagnose.dasd_probes", ["limit=null", "step.lr=null", "rollouts=0"], "started:\n- rollouts=0: must"),
        ("recipes.diagnose.dasd_probes", ["step.lr=fast"], "step.lr=fast: must be a number, or null"),
        ("recipes.evaluate.main", ["preset=starer"], "the closest is starter"),
        ("recipes.diagnose.dasd_probes", ["rollouts=few"], "rollouts=few: must be a whole number"),
        ("recipes.export.main", ["adapter_only=yes"], "adapter_only=yes: must be true or false"),
        ("recipes.export.main", [], "checkpoint=: must be given"),
        ("recipes.data.prepare", [], "dataset=: must be given; one of aime_2024"),
        ("recipes.data.prepare", ["dataset=aime_2024", "seed=x"], "seed=x: must be"),
        ("recipes.data.validate", [], "file=: must be given"),
        ("recipes.data.validate", ["file=x", "show=many"], "show=many"),
        ("recipes.report.main", ["nowhere"], "nowhere"),
        ("recipes.report.main", [], "usage"),
        ("recipes.entry", [], "method=: must be given"),
    ],
)
def test_no_command_answers_with_a_traceback(module, arguments, said, tmp_path):
    done = command(module, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_old_names_are_no_names_of_today():
    """Whatever is refused as old must not be valid, and what it is called now must be."""
    exposure = entry.OmegaConf.load(CONFIG_DIR / "train.yaml").self_distill.exposure
    for old, new in entry.RENAMED.items():
        if old.startswith("method="):
            assert old.split("=")[1] not in METHODS and new.split("=")[1] in METHODS
        else:
            assert old.rpartition(".")[2] not in exposure and new.rpartition(".")[2] in exposure.controller
