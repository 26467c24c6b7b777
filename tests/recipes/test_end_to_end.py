"""The real stack on the embedded model: Ray workers, FSDP2, rollouts, grading, teacher, update, checkpoint, resume.

Nothing is replaced by a stand-in. Each test starts the command that a user would start, with small steps.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import STARTER
from recipes.common.record import run_dir as files
from recipes.common.teacher import prompts
from rewards.math import STATUSES
from tests.builders.processes import (
    COMPARED,
    console_of,
    descendants,
    gone,
    same_number,
    start,
    title,
    train,
    wait_for_stage,
    wait_for_step,
)

pytestmark = pytest.mark.slow


def assert_same_steps(a: dict, b: dict, keys=COMPARED, rel=1e-3) -> None:
    assert a.keys() == b.keys()
    for step in a:
        for key in keys:
            assert same_number(a[step][key], b[step][key], rel), (step, key, a[step][key], b[step][key])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """DASD, 3 steps, 2 data-parallel workers, rollouts dumped, a checkpoint at step 2 and at the end."""
    directory = tmp_path_factory.mktemp("two") / "run"
    return train(
        "dasd",
        directory,
        "trainer.n_gpus_per_node=2",
        "trainer.total_training_steps=3",
        "trainer.save_freq=2",
        "trainer.test_freq=3",
        "actor_rollout_ref.rollout.val_kwargs.n=2",
        f"trainer.rollout_data_dir={directory}/rollouts",
    )


def test_a_run_ends_well_and_leaves_what_it_promises(two_workers):
    run = two_workers
    assert run.code == 0, run.console + run.log[-3000:]
    assert sorted(run.steps) == [1, 2, 3]
    for name in (files.CONFIG, files.METRICS, files.LOG, f"{files.CHECKPOINTS}/global_step_3", "tensorboard"):
        assert (run.directory / name).exists(), name
    assert files.checkpointed_step(run.directory) == 3
    assert "step 3/3" in run.console and "validation mean@2" in run.console and "done in" in run.console
    for chatter in ("pid=", "INFO", "WARNING", "ray init kwargs"):
        assert chatter not in run.console
    assert "pid=" in run.log


def test_every_step_reports_its_credit_its_teacher_and_its_seconds(two_workers):
    for record in two_workers.steps.values():
        for key in (
            "credit/gap_normalized/mean",
            "credit/gap_normalized/p99",
            "credit/omega/positive_share",
            "credit/correction_ratio",
            "teacher/log_prob/mean",
            "teacher/prompt_truncated",
            "student/entropy/p20",
            "student/entropy/p95",
            "timing_s/gen",
            "timing_s/teacher",
            "timing_s/old_log_prob",
            "timing_s/update_actor",
            "timing_s/update_weights",
            *COMPARED,
        ):
            assert record[key] is not None and math.isfinite(record[key]), key
        assert record["training/rollouts_missing"] == 0
        assert sum(record[f"reward/{status}_rate"] for status in STATUSES) == pytest.approx(1.0)
        assert record["reward/score"] == pytest.approx(record["critic/score/mean"])
        assert record["reward/timeout_rate_graded"] == 0.0
        assert 0 <= record["credit/omega/positive_share"] <= 1
        # verl recomputes what the rollout server sampled: same weights, same tokens, same log-probs
        assert record["training/rollout_probs_diff_max"] < 1e-3


def test_student_and_teacher_log_probs_are_those_of_plain_transformers(two_workers):
    """Independent of verl: read the dumped responses, score them under both prompts with the initial model."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    model = AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32).eval()
    import pandas as pd

    rows = pd.read_parquet(STARTER / "data/train.parquet").set_index("problem")
    dumped = [json.loads(line) for line in (two_workers.directory / "rollouts" / "1.jsonl").read_text().splitlines()]
    assert len(dumped) == 16
    kwargs = {"enable_thinking": False}
    sums, tokens = {"student": 0.0, "teacher": 0.0}, 0
    for rollout in dumped:
        (problem,) = [p for p in rows.index if f"Problem: {p}\n" in rollout["input"]]
        response = tokenizer.encode(rollout["output"], add_special_tokens=False)
        if len(response) < 96:
            response.append(tokenizer.eos_token_id)
        tokens += len(response)
        chats = {
            "student": prompts.student_messages(problem),
            "teacher": prompts.teacher_messages(problem, rows.loc[problem, "solution"]),
        }
        for name, messages in chats.items():
            prompt = prompts.render(tokenizer, messages, kwargs)
            with torch.no_grad():
                log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            sums[name] += sum(log_probs[len(prompt) + i - 1, t].item() for i, t in enumerate(response))
    record = two_workers.steps[1]
    assert record["student/log_prob/mean"] == pytest.approx(sums["student"] / tokens, abs=1e-4)
    assert record["teacher/log_prob/mean"] == pytest.approx(sums["teacher"] / tokens, abs=1e-4)
    assert record["teacher/log_prob/mean"] != pytest.approx(record["student/log_prob/mean"], abs=1e-3)


def test_one_worker_does_what_two_do(two_workers, tmp_path):
    """The number of workers is a matter of speed: same rollouts, same statistics, same gradient."""
    run = train("dasd", tmp_path / "run", "trainer.total_training_steps=3", "trainer.save_freq=-1")
    assert run.code == 0, run.console
    keys = (*COMPARED, "credit/gap_normalized/mean", "credit/omega/positive_share", "credit/correction_ratio")
    assert_same_steps(run.steps, two_workers.steps, keys=keys)


def test_beta_zero_is_grpo_whoever_the_teacher_is(two_workers, tmp_path):
    """A frozen one, here, which is a copy of its own and the policy itself until the first update."""
    options = ("trainer.total_training_steps=2", "trainer.save_freq=-1")
    dasd = train("dasd", tmp_path / "dasd", "algorithm.dasd.beta=0", "self_distill.teacher.weights=frozen", *options)
    grpo = train("grpo", tmp_path / "grpo", *options)
    assert dasd.code == grpo.code == 0, dasd.console + grpo.console
    assert_same_steps(dasd.steps, grpo.steps, rel=1e-6)
    assert "timing_s/teacher" in dasd.steps[1] and "timing_s/teacher" not in grpo.steps[1]
    current = two_workers.steps[1]["teacher/log_prob/mean"]
    assert dasd.steps[1]["teacher/log_prob/mean"] == pytest.approx(current, rel=1e-4)


def test_a_stopped_and_resumed_run_equals_one_that_ran_through(two_workers, tmp_path):
    """Ctrl-C in the first step: it saves, ends with code 0, and the next start goes on to the same numbers."""
    directory = tmp_path / "run"
    options = ("trainer.n_gpus_per_node=2", "trainer.total_training_steps=3", "trainer.save_freq=100")
    process = start("dasd", directory, *options)
    wait_for_stage(directory, "rollout", process)  # after the step's record the other two could be done in no time
    process.send_signal(signal.SIGINT)
    console, _ = process.communicate(timeout=120)
    assert process.returncode == 0, console
    stopped_at = files.checkpointed_step(directory)
    assert stopped_at in (1, 2) and f"go on after step {stopped_at}" in console
    assert not (directory / files.STOP).exists()

    resumed = train("dasd", directory, *options)
    assert resumed.code == 0, resumed.console
    assert f"resuming after step {stopped_at}" in resumed.console
    assert [r["step"] for r in resumed.records] == [1, 2, 3]  # each step once
    assert_same_steps(resumed.steps, two_workers.steps)

    assert "ray init kwargs" in resumed.log
    said = len(resumed.log)
    again = train("dasd", directory, *options)
    assert again.code == 0 and "nothing left to do" in again.console
    assert [r["step"] for r in again.records] == [1, 2, 3]
    assert "ray init kwargs" not in again.log[said:]  # nothing was started for it


def test_a_killed_run_leaves_no_process_and_can_be_started_again(tmp_path):
    """Killed before its first checkpoint it begins again, and so do its records."""
    directory = tmp_path / "run"
    options = ("trainer.total_training_steps=3", "trainer.save_freq=3")
    process = start("dasd", directory, *options)
    wait_for_step(directory, 1, process)
    family = descendants(process.pid)
    assert len(family) > 5
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(family, seconds=60)  # without the reaper Ray's agents can take longer
    again = train("dasd", directory, *options)
    assert again.code == 0, again.console
    assert [r["step"] for r in again.records] == [1, 2, 3]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, two_workers):
    """The run of `two_workers`, killed in a training worker in its second step, then in a part that verl waits for."""
    directory = tmp_path_factory.mktemp("killed") / "run"
    options = ("trainer.n_gpus_per_node=2", "trainer.total_training_steps=3", "trainer.save_freq=1")
    ends = []
    for step, stage, part in ((1, "update", "WorkerDict"), (2, "rollout", "BurstAgentLoopWorker")):
        process = start("dasd", directory, *options)
        wait_for_step(directory, step, process)
        family = descendants(process.pid)
        victim = next(pid for pid in family if title(pid).startswith(f"ray::{part}"))
        wait_for_stage(directory, stage, process)  # some stages are over in half a second
        os.kill(victim, signal.SIGKILL)
        console = console_of(process, directory / files.LOG, timeout=90)  # verl alone would wait for ever
        ends.append((process.returncode, " ".join(console.split()), gone(family, seconds=60)))
        # As if the kill had come after the checkpoint and before the record.
        (*before, lost) = files.read_metrics(directory)
        (directory / files.METRICS).write_text("".join(json.dumps(r) + "\n" for r in before))
        assert lost["step"] == step == files.checkpointed_step(directory)
    return ends, train("dasd", directory, *options)


def test_a_killed_process_ends_the_run_which_names_it(killed):
    ends, _ = killed
    for (code, console, ended), part in zip(ends, ("a training worker (WorkerDict", "an agent loop"), strict=True):
        assert code == 1 and f"ProcessLost: {part}" in console, console
        assert "start again with hydra.run.dir=" in console and "Traceback" not in console
        assert ended, "processes were left"


def test_killed_and_started_again_it_does_what_one_that_ran_through_does(killed, two_workers):
    """Every step once, although the records of two were lost after their checkpoints."""
    _, run = killed
    assert run.code == 0, run.console + run.log[-3000:]
    assert "resuming after step 2" in run.console
    assert [r["step"] for r in run.records] == [1, 2, 3]
    assert_same_steps(run.steps, two_workers.steps)
    told = {key for key in run.steps[3] if not key.startswith("timing")}
    assert told <= run.steps[2].keys()


def test_numbers_that_stop_being_numbers_end_the_run_and_keep_the_checkpoint(tmp_path):
    """Gradients beyond float32 are skipped within the budget; corrections beyond it never reach an update."""
    directory = tmp_path / "run"
    beyond = ("algorithm.dasd.beta=1.0e30", "trainer.save_freq=1")
    first = train("dasd", directory, "trainer.total_training_steps=1", *beyond)
    assert first.code == 0, first.console
    assert "1 updates skipped" in first.console and first.steps[1]["training/skipped_updates"] == 1
    shard = directory / files.CHECKPOINTS / "global_step_1" / "actor" / "model_world_size_1_rank_0.pt"
    saved, initial = torch.load(shard, weights_only=False), AutoModelForCausalLM.from_pretrained(STARTER / "model")
    assert all(torch.equal(full(saved[name]), value) for name, value in initial.float().state_dict().items())

    more = ("trainer.total_training_steps=3", "self_distill.max_skipped_updates=1")
    again = train("dasd", directory, *beyond, *more)
    assert again.code == 1, again.console
    said = " ".join(again.console.split())
    assert "2 updates were skipped in this run" in said and "checkpoint of step 1 is complete" in said

    wrong = ("algorithm.dasd.beta=3.0e38", "algorithm.dasd.gap_eps=1.0e-30")
    broken = train("dasd", directory, *more, *wrong, "algorithm.dasd.mask_zero_variance_groups=false")
    assert broken.code == 1, broken.console
    assert "advantage of dasd" in broken.console and "Traceback" not in broken.console
    assert files.checkpointed_step(directory) == 1


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that one worker saved as its shard."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def test_a_disk_that_fills_while_saving_keeps_the_last_checkpoint(tmp_path):
    """Checkpoints on a file system with room for one and a half of them."""
    small = tmp_path / "small"
    small.mkdir()
    size = 9_000_000  # a checkpoint of the starter takes about 6 MB
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        directory = tmp_path / "run"
        directory.mkdir()
        (directory / files.CHECKPOINTS).symlink_to(small)
        run = train("dasd", directory, "trainer.total_training_steps=3", "trainer.save_freq=1")
        assert run.code == 1, run.console
        assert "could not save the checkpoint of step 2" in run.console and "step 1 is complete" in run.console
        assert files.checkpointed_step(directory) == 1
        assert [p.name for p in small.glob("global_step_*")] == ["global_step_1"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
