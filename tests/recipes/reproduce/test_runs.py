"""Many runs: complete ones are not done again, failures are said, and a signal lets the running one end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from recipes.reproduce.runs import Job, seeded, train_all

WRITES = """
import json, pathlib, sys
record = {"step": 2, "val-core/x/acc/mean@4": 0.5}
pathlib.Path(sys.argv[1], "metrics.jsonl").write_text(json.dumps(record) + chr(10))
"""


@dataclass(frozen=True)
class Script(Job):
    """A job whose command is a script of Python, given the run's directory."""

    script: str = WRITES

    @property
    def command(self) -> list[str]:
        path = self.directory.with_suffix(".py")
        path.write_text(self.script)
        return [sys.executable, str(path), str(self.directory)]


def test_the_command_is_the_ordinary_one(tmp_path):
    job = Job("a", tmp_path / "run", 7, ("method=grpo", *seeded(3)))
    assert job.command[1:] == [
        *("-m", "recipes.entry", "method=grpo", "data.seed=3", "actor_rollout_ref.rollout.seed=3"),
        *(f"hydra.run.dir={tmp_path / 'run'}", "trainer.total_training_steps=7", "trainer.test_freq=7"),
    ]
    assert not [part for part in Job("a", tmp_path, None, ()).command if "steps" in part]


def test_runs_are_done_once_and_failures_are_said(tmp_path, capfd):
    done = Script("done", tmp_path / "done", 2, ())
    failing = Script("failing", tmp_path / "failing", 2, (), script="raise SystemExit('no memory')")
    assert not train_all([done, failing])
    said = capfd.readouterr().out
    assert "done: done in" in said and "failing: exit code 1, see" in said
    assert (tmp_path / "failing" / "console.txt").read_text() == "no memory\n"
    written = (tmp_path / "done" / "metrics.jsonl").stat().st_mtime_ns
    assert train_all([done]) and (tmp_path / "done" / "metrics.jsonl").stat().st_mtime_ns == written
    assert "already complete" in capfd.readouterr().out


@pytest.mark.parametrize("forked", [False, True], ids=["interpreters", "forked"])
def test_a_signal_reaches_the_running_one_and_starts_no_other(tmp_path, capfd, forked):
    waits = "print('began', flush=True)\n    time.sleep(60)\n"
    waits = f"import time\ntry:\n    {waits}except KeyboardInterrupt:\n    print('ended')"
    console = tmp_path / "first" / "console.txt"
    first = Script("first", tmp_path / "first", 2, (), script=waits)
    second = Script("second", tmp_path / "second", 2, ())

    def interrupt():
        while not (console.exists() and console.read_text()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert not train_all([first, second], forked=forked)
    thread.join()
    assert console.read_text() == "began\nended\n" and not second.complete
    assert "second: not started" in capfd.readouterr().out
