"""The scripts of examples/, run as they are: the cheap ones in this process, verl's as a command."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.builders.configs import ROOT

EXAMPLES = ROOT / "examples"
# What a script is given, and what it must say.
SCRIPTS = {
    "dasd_in_torch": (["--steps", "2"], r"step 2  reward 0\.\d+  entropy 0\.\d+  correction/advantage 0\.0\d+"),
}
ELSEWHERE = {"dasd_in_verl"}  # have tests of their own


def test_every_script_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *ELSEWHERE}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_should(name, monkeypatch, capsys, tmp_path):
    arguments, said = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(said, capsys.readouterr().out)


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
