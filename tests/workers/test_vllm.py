"""The rollouts of GPU runs, verl's over vLLM, end to end in vLLM's build for CPUs; `make test-vllm` installs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from config import STARTER
from recipes.common.record import run_dir as files
from tests.builders.configs import ROOT
from tests.builders.processes import Run, console_of, descendants, gone, read_json_lines, start, title, wait_for_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]

LONG = 600.0  # seconds; vLLM alone takes up to one minute to start
VLLM = "experiment=starter_vllm"  # after `start`'s own experiment=starter, so it is the one that holds


@contextmanager
def started(method: str, directory: Path, *overrides: str) -> Iterator[subprocess.Popen]:
    """A training command, which ends with the block at the latest."""
    process = start(method, directory, VLLM, *overrides)
    try:
        yield process
    finally:
        process.kill()  # what it started is the reaper's


def command(recipe: str, *overrides: str) -> int:
    """Exit code of another recipe's command."""
    return subprocess.run([sys.executable, "-m", f"recipes.{recipe}.main", *overrides], cwd=ROOT).returncode


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("psm_*"))


def with_engine(process: subprocess.Popen) -> list[int]:
    """The run's processes, vLLM's engine among them."""
    family = descendants(process.pid)
    titles = [title(pid) for pid in family]
    assert any("VLLM::EngineCore" in name for name in titles), titles
    return family


def assert_same_policy(record: dict) -> None:
    """What vLLM sampled from is what the training workers compute: probabilities equal to float32's rounding."""
    assert record["training/rollouts_missing"] == 0
    assert record["training/rollout_probs_diff_valid"] == 1
    assert record["training/rollout_probs_diff_max"] < 1e-4
    assert abs(record["rollout_corr/kl"]) < 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Run, list[int], set[Path]]:
    """Two steps of DASD; the run's processes; shared memory from before it."""
    before, directory = shared_memory(), tmp_path_factory.mktemp("vllm") / "run"
    options = ("trainer.total_training_steps=2", "trainer.save_freq=2", "actor_rollout_ref.actor.optim.lr=1.0e-3")
    with started("dasd", directory, *options) as process:
        wait_for_step(directory, 1, process, timeout=LONG)
        family = with_engine(process)
        console = console_of(process, directory / files.LOG, timeout=LONG)
    return Run(directory, process.returncode, console, 0.0), family, before


def test_dasd_trains_on_vllms_rollouts_and_vllm_follows_the_policy(trained):
    """The second step's rollouts come from weights that the first changed by far more than the tolerance."""
    run, family, before = trained
    assert run.code == 0, run.console + run.log[-3000:]
    assert sorted(run.steps) == [1, 2]
    for record in run.steps.values():
        assert_same_policy(record)
        assert record["actor/grad_norm"] > 0
    # Both steps' log-probs of what was sampled: the policy has moved.
    assert run.steps[1]["student/log_prob/mean"] != pytest.approx(run.steps[2]["student/log_prob/mean"], abs=1e-2)
    assert gone(family, seconds=60)
    assert shared_memory() <= before


def test_an_exported_model_is_loaded_and_sampled_by_vllm(trained, tmp_path):
    """Its answers are graded as often right as those of transformers, from the same folder."""
    run, *_ = trained
    folder, accuracy = tmp_path / "model", {}
    assert command("export", f"checkpoint={run.directory}", f"out={folder}") == 0
    for engine in ("vllm", "transformers"):
        where = tmp_path / engine
        what = (f"model={folder}", f"data={STARTER}/data/val.parquet", "template_kwargs={enable_thinking: false}")
        options = (f"engine={engine}", "samples=16", "limit=16", "max_tokens=96", f"hydra.run.dir={where}")
        assert command("evaluate", *what, *options) == 0
        results = read_json_lines(where / "results.jsonl")
        right = [response["status"] == "correct" for result in results for response in result["responses"]]
        assert len(right) == 256
        accuracy[engine] = sum(right) / 256
    # Five standard errors of the difference between two samples of a problem's answers.
    assert accuracy["vllm"] == pytest.approx(accuracy["transformers"], abs=0.22)


def test_a_diagnostic_samples_with_vllm(tmp_path):
    """Its greedy responses are those of transformers; what is forced is gone on with, up to the whole's limit."""
    small = ("limit=4", "seeds=[1]", "rollouts=2", "continuations=2", "candidates.per_problem=2", "max_tokens=60")
    spines = {}
    for engine in ("vllm", "transformers"):
        where = tmp_path / engine
        options = (f"engine={engine}", *small, "summary.resamples=100", f"hydra.run.dir={where}")
        module = "recipes.diagnose.branch_viability"
        assert subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT).returncode == 0
        records = json.loads((where / "parts/seed_1_chunk_0.json").read_text())["records"]
        spines[engine] = [record["text"] for record in records if record["spine"] == "greedy"]
        verdicts = [v for r in records for c in r["candidates"] for child in c["children"] for v in child["correct"]]
        assert verdicts and None not in verdicts
    assert len(spines["vllm"]) >= 2 and spines["vllm"] == spines["transformers"]
    assert "VLLMSampler" in (tmp_path / "vllm/diagnose.log").read_text()


def test_a_full_vocabulary_step_on_vllms_rollouts_killed_leaves_nothing(tmp_path):
    before, directory = shared_memory(), tmp_path / "run"
    options = (
        "self_distill.loss.clip=null",  # a plain KL, which cannot be negative
        "actor_rollout_ref.rollout.n=1",
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
        "trainer.total_training_steps=1000",
        "trainer.save_freq=-1",
    )
    with started("opsd", directory, *options) as process:
        wait_for_step(directory, 1, process, timeout=LONG)
        family = with_engine(process)
        (record, *_) = files.read_metrics(directory)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert_same_policy(record)
    assert record["divergence/mean"] > 0 and record["actor/grad_norm"] > 0
    assert gone(family, seconds=60)
    time.sleep(3)  # shared memory goes after the processes
    assert shared_memory() <= before
