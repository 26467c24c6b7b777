"""The scripts of examples/, run as they are: the cheap ones in this process, verl's as a command."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch

from docs.generate.notebook import NOTEBOOK, SCRIPT, cells
from tests.builders.configs import ROOT
from tests.builders.runs import record, validated, write_run

EXAMPLES = ROOT / "examples"
# What a script is given, and what it must say.
SCRIPTS = {
    "dasd_in_torch": (["--steps", "2"], r"step 2  reward 0\.\d+  entropy 0\.\d+  correction/advantage 0\.0\d+"),
    "estimators": ([], r"dasd +0\.700 +0\.709 +0\.700 +-0\.700 +-0\.688(.|\n)*bit for bit\nrefused: .*'beta'"),
    "divergences": ([], r"jsd +largest difference to autograd \d\.\de-1[5-9]\nclip 0\.05: loss -0\.17; .* by -0\.01"),
    "grading": ([], r"correct +1 .*x\^2 - 1(.|\n)*wrong +0 .*9\^\{9\}(.|\n)*score 0\.50"),
    "evaluate_model": (["--problems", "3", "--samples", "2"], r"avg@2 .* ± .* over 3 problems\npass@2"),
}
ELSEWHERE = {"dasd_in_verl", "sweep", "tour"}  # have tests of their own


@pytest.fixture(autouse=True)
def as_a_process_of_its_own(monkeypatch):
    """What a script does to the process it runs in is undone."""
    state = torch.get_rng_state()
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with plt.rc_context():
        yield
    torch.set_rng_state(state)


def test_every_script_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *ELSEWHERE}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_should(name, monkeypatch, capsys, tmp_path):
    arguments, said = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(said, capsys.readouterr().out)


def test_a_sweep_is_compared(monkeypatch, capsys, tmp_path):
    for ratio, seed in ((0.0, 1), (0.0, 2), (0.5, 1), (0.5, 2)):
        step = {**record(1, critic__score__mean=ratio, actor__entropy=0.2), **validated(1, 0.5 + ratio / 10 * seed)}
        write_run(tmp_path / f"{ratio}_{seed}", [step], f"algorithm.dasd.target_ratio={ratio}", seed=seed)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--compare", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "sweep.py"), run_name="__main__")
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()[3:]}
    assert rows == {"0.0": ["0.500", "0.000"], "0.5": ["0.575", "0.035"]}


def test_the_notebook_is_the_script_with_its_pictures():
    """Made by `make notebook`; the script itself runs here, with one step of training."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    written = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert written == list(cells(SCRIPT.read_text("utf-8"))), "make notebook"
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output["output_type"] == "error" for output in outputs)
    assert str(ROOT) not in NOTEBOOK.read_text("utf-8")


def test_the_tour_runs(monkeypatch, capsys):
    monkeypatch.setenv("TOUR_STEPS", "1")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    tour = runpy.run_path(str(SCRIPT))
    assert set(tour["curves"]) == {"GRPO", "DASD, ratio 0.005", "DASD, ratio 0.1"}
    assert all(len(table) == 1 and table.notna().all(axis=None) for table in tour["curves"].values())


@pytest.mark.slow
def test_dasd_in_a_plain_verl_run(tmp_path):
    """Two steps of verl's own trainer: the teacher's gap reaches the estimator, and the credit the update."""
    actor = "actor_rollout_ref.actor.ppo_mini_batch_size=4"
    small = ["data.train_batch_size=4", actor, "actor_rollout_ref.rollout.n=4"]
    command = [sys.executable, str(EXAMPLES / "dasd_in_verl.py"), "--starter", *small]
    done = subprocess.run(
        [*command, "trainer.total_training_steps=2", "trainer.test_freq=-1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = re.findall(r"step:(\d+) - .*credit/gap_scale/mean:([\d.e+-]+) .*actor/grad_norm:([\d.e+-]+)", done.stdout)
    assert [step for step, *_ in steps] == ["1", "2"], done.stdout[-3000:]
    assert all(float(gap) > 0 for _, gap, _ in steps) and any(float(norm) > 0 for *_, norm in steps)
