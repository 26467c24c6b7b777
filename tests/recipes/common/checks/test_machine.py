"""What a run stands on is checked before it starts: packages, GPUs, the run directory, the checkpoint in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from recipes.common.checks import machine
from recipes.common.method import read
from recipes.common.plan import memory as planner
from recipes.common.record import checkpoints
from recipes.common.record.run_dir import CHECKPOINTS, CONFIG, TRACKER


@pytest.fixture
def gpu_config(compose_config):
    return compose_config("method=dasd", "experiment=qwen3_8b_dapo", "hardware=8xh100")


@pytest.fixture
def starter_config(compose_config):
    return compose_config("method=dasd", "experiment=starter")


@pytest.mark.parametrize(
    ("parallel", "named"), [(3, "one of 1, 2, 4, 8"), (0, "one of 1, 2, 4, 8"), (16, "trainer.n_gpus_per_node=8")]
)
def test_a_server_that_does_not_divide_a_node(gpu_config, parallel, named):
    gpu_config.actor_rollout_ref.rollout.tensor_model_parallel_size = parallel
    (problem,) = machine.parallelism(gpu_config, read(gpu_config))
    assert f"tensor_model_parallel_size={parallel}" in problem and named in problem


def test_a_server_that_does_not_divide_the_heads(gpu_config):
    gpu_config.trainer.n_gpus_per_node = 6
    gpu_config.actor_rollout_ref.rollout.tensor_model_parallel_size = 6
    (problem,) = machine.parallelism(gpu_config, read(gpu_config))
    assert "32 attention heads" in problem and "power of two" in problem


def test_nodes_that_ray_was_not_told_of(gpu_config, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gpu_config.trainer.nnodes = 2
    (problem,) = machine.parallelism(gpu_config, read(gpu_config))
    assert "trainer.nnodes=2" in problem and "cluster/train.sbatch" in problem
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert list(machine.parallelism(gpu_config, read(gpu_config))) == []


@pytest.mark.skipif(
    any(machine._version(package) for package in ("flash-attn", "vllm")), reason="this machine has GPU packages"
)
def test_missing_gpu_packages_are_named_with_their_installation(gpu_config, starter_config):
    attention, server = machine.software(gpu_config, read(gpu_config))
    assert "flash-attn==2.8.3 --no-build-isolation" in attention and "vllm==0.24.0" in server
    assert list(machine.software(starter_config, read(starter_config))) == []
    gpu_config.dry_run = True  # planned here, run elsewhere
    assert list(machine.software(gpu_config, read(gpu_config))) == []


@pytest.mark.parametrize(
    ("wanted", "refused"),
    [
        ("torch==2.11.0", True),
        (f"torch=={version('torch').split('+')[0]}", False),  # a build's "+cu130" is no other version
        ("torch<2", True),
        ('torch==2.11.0 ; extra == "cuda"', False),
        ('torch==2.11.0 ; python_version < "3"', False),
        ("numpy==0.1", False),
    ],
)
def test_vllm_built_for_another_torch(monkeypatch, wanted, refused):
    monkeypatch.setattr(machine, "requires", lambda package: ["transformers>=4", wanted])
    found = list(machine._mismatches("vllm", "0.24.0"))
    assert bool(found) == refused, found
    if refused:
        assert "vllm 0.24.0" in found[0] and f"torch is {version('torch')}" in found[0] and "install.md" in found[0]


def test_metadata_of_a_real_package_is_read():
    assert list(machine._mismatches("verl", version("verl"))) == []


def test_wandb_without_a_key(starter_config, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert list(machine.logging(starter_config, read(starter_config))) == []
    starter_config.trainer.logger = ["tensorboard", "wandb"]
    (problem,) = machine.logging(starter_config, read(starter_config))
    assert "WANDB_MODE=offline" in problem
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password not-a-key")
    assert list(machine.logging(starter_config, read(starter_config))) == []
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert list(machine.logging(starter_config, read(starter_config))) == []


@pytest.mark.parametrize("tracker", ["swanlab", "trackio"])
def test_a_tracker_that_is_not_there(starter_config, monkeypatch, tracker):
    starter_config.trainer.logger = tracker
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    (problem,) = machine.logging(starter_config, read(starter_config))
    assert f"pip install {tracker}" in problem
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    assert list(machine.logging(starter_config, read(starter_config))) == []


def test_trackers_write_into_the_run_and_have_its_page(starter_config, monkeypatch, tmp_path):
    from recipes.common.processes.launch import process_environment

    for name in ("WANDB_NOTES", "SWANLAB_LOG_DIR", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    given = process_environment(starter_config, tmp_path)
    assert given["WANDB_NOTES"] == f"report: {tmp_path}/report.html"
    assert given["SWANLAB_LOG_DIR"] == f"{tmp_path}/swanlog" and given["TRACKIO_DIR"] == f"{tmp_path}/trackio"
    monkeypatch.setenv("TRACKIO_DIR", "/elsewhere")
    assert process_environment(starter_config, tmp_path)["TRACKIO_DIR"] == "/elsewhere"


def test_secrets_are_not_passed_on_where_config_yaml_shows_them(starter_config, monkeypatch, tmp_path):
    from recipes.common.processes.launch import process_environment

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    environment_of_workers = process_environment(starter_config, tmp_path)
    assert environment_of_workers["WANDB_MODE"] == "offline" and "secret" not in environment_of_workers.values()


def test_what_does_not_fit_is_refused_with_what_would(compose_config):
    cfg = compose_config("method=dasd", "experiment=qwen3_8b_dapo", "hardware=1xh100", "dry_run=true")
    assert list(machine.capacity(cfg, read(cfg))) == []
    cfg.actor_rollout_ref.actor.fsdp_config.offload_policy = False
    (problem,) = machine.capacity(cfg, read(cfg))
    assert "does not fit" in problem and "offload_policy=true" in problem


def test_an_unknown_gpu(gpu_config):
    gpu_config.self_distill.gpu = "tpu"
    (problem,) = machine.capacity(gpu_config, read(gpu_config))
    assert "self_distill.gpu=tpu" in problem and "h100, h200" in problem


def test_a_disk_without_room_for_the_checkpoints(gpu_config, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 200 * planner.GIB))
    (problem,) = machine.output(gpu_config, read(gpu_config))
    # 8.19 B parameters × 12 bytes = 91.5 GiB a checkpoint, two kept and one in the making
    assert "200.0 GiB free" in problem and "274.6" in problem and "keep_checkpoints=1" in problem
    # Keeping all of them takes what the run saves, not what the number says.
    gpu_config.self_distill.keep_checkpoints = 1000
    gpu_config.trainer.total_training_steps, gpu_config.trainer.save_freq = 40, 10
    (problem,) = machine.output(gpu_config, read(gpu_config))
    assert "4 checkpoints" in problem and "366.2" in problem


def test_a_read_only_file_system(starter_config, tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        starter_config.self_distill.run_dir = str(folder / "run")
        (problem,) = machine.output(starter_config, read(starter_config))
        assert "not a directory that can be written" in problem and "another hydra.run.dir" in problem
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def checkpoint(folder, cfg, world: int, shards: int | None = None, step: int = 3):
    """A run directory as verl leaves it after a step."""
    actor = folder / CHECKPOINTS / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    (folder / CHECKPOINTS / TRACKER).write_text(str(step))
    files = ["data.pt"] + [
        f"actor/{kind}_world_size_{world}_rank_{rank}.pt"
        for kind in ("model", "optim", "extra_state")
        for rank in range(world if shards is None else shards)
    ]
    for name in files:
        torch.save({"tensor": torch.zeros(300)}, actor.parent / name)
    save_file(
        {"scale/field": torch.zeros(())}, actor.parent / checkpoints.CREDIT_MEMORY
    )  # DASD's, whose beta follows the steps before
    if cfg is not None:
        OmegaConf.save(cfg, folder / CONFIG)
    return actor.parent


def cut(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("self_distill.method", "grpo"),
        ("actor_rollout_ref.model.lora_rank", 8),
        ("actor_rollout_ref.model.path", "/another/model"),
        ("trainer.nnodes", 2),
    ],
)
@pytest.mark.parametrize("told_by", ["config.yaml", "the checkpoint"])
def test_a_checkpoint_of_another_run(starter_config, tmp_path, key, value, told_by):
    before = starter_config.copy()
    OmegaConf.update(before, key, value)
    folder = checkpoint(tmp_path / "run", before if told_by == "config.yaml" else starter_config, world=1)
    if told_by == "the checkpoint":
        checkpoints.write_fingerprint(folder, before)
    (problem,) = machine.output(starter_config, read(starter_config))
    assert f"{key}={value}" in problem and "choose another hydra.run.dir" in problem


def test_a_checkpoint_of_the_same_run_is_welcome(starter_config, tmp_path):
    folder = checkpoint(tmp_path / "run", starter_config, world=1)
    assert list(machine.output(starter_config, read(starter_config))) == []
    checkpoints.write_fingerprint(folder, starter_config)
    assert list(machine.output(starter_config, read(starter_config))) == []


def test_another_spelling_of_the_models_folder_is_the_same_model(starter_config, tmp_path, monkeypatch):
    """Earlier versions wrote relative paths into their configurations; a checkout may lie behind a link."""
    model = Path(starter_config.actor_rollout_ref.model.path)
    (tmp_path / "link").symlink_to(model.parent)
    monkeypatch.chdir(model.parent)
    folder = checkpoint(tmp_path / "run", None, world=1)
    for spelling in (model.name, str(tmp_path / "link" / model.name)):
        before = starter_config.copy()
        before.actor_rollout_ref.model.path = spelling
        checkpoints.write_fingerprint(folder, before)
        assert list(machine.output(starter_config, read(starter_config))) == [], spelling


def test_shards_of_another_number_of_workers(starter_config, tmp_path):
    checkpoint(tmp_path / "run", None, world=4)
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "written by 4 workers" in problem and "this run has 1" in problem


def test_a_path_to_another_methods_checkpoint(starter_config, tmp_path):
    before = starter_config.copy()
    before.self_distill.method = "grpo"
    folder = checkpoint(tmp_path / "elsewhere", before, world=1)
    starter_config.trainer.resume_mode = "resume_path"
    starter_config.trainer.resume_from_path = str(folder)
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "self_distill.method=grpo" in problem and "trainer.resume_from_path" in problem


def test_a_path_to_a_bare_folder_of_another_method(starter_config, tmp_path):
    """Copied without its run directory: the checkpoint itself says what it is."""
    before = starter_config.copy()
    before.self_distill.method = "grpo"
    checkpoints.write_fingerprint(checkpoint(tmp_path / "elsewhere", None, world=1), before)
    shutil.move(tmp_path / "elsewhere" / CHECKPOINTS / "global_step_3", tmp_path / "global_step_3")
    starter_config.trainer.resume_mode = "resume_path"
    starter_config.trainer.resume_from_path = str(tmp_path / "global_step_3")
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "self_distill.method=grpo" in problem and "choose another trainer.resume_from_path" in problem
    starter_config.self_distill.method = "grpo"
    assert list(machine.output(starter_config, read(starter_config))) == []


def test_starting_anew_ignores_what_is_there(starter_config, tmp_path):
    checkpoint(tmp_path / "run", None, world=4)
    starter_config.trainer.resume_mode = "disable"
    assert list(machine.output(starter_config, read(starter_config))) == []


DAMAGE = {
    "a shard cut off": ("actor/optim_world_size_1_rank_0.pt is cut off", lambda f: cut(next(f.rglob("optim*")))),
    "a shard of no bytes": ("actor/model_world_size_1_rank_0.pt is cut", lambda f: cut(next(f.rglob("model*")), 0)),
    "a shard gone": ("model_world_size_1_rank_0.pt is missing", lambda f: next(f.rglob("model*")).unlink()),
    "no memory of the credit": (
        "credit_memory.safetensors is missing",
        lambda f: (f / checkpoints.CREDIT_MEMORY).unlink(),
    ),
    "no data order": ("data.pt is missing", lambda f: (f / "data.pt").unlink()),
    "a teacher cut off": ("teacher_rank_0_of_1.safetensors is cut", lambda f: cut(f / teacher_file(f))),
    "half a fingerprint": ("self_distill.json is cut off", lambda f: cut(f / checkpoints.FINGERPRINT)),
    "no folder": ("the folder is not there", shutil.rmtree),
}


def teacher_file(folder):
    save_file({"weight": torch.zeros(300)}, folder / "actor" / "teacher_rank_0_of_1.safetensors")
    assert checkpoints.damage(folder, []) == []
    return "actor/teacher_rank_0_of_1.safetensors"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_is_not_whole_names_the_last_that_is(starter_config, tmp_path, kind):
    said, harm = DAMAGE[kind]
    for step in (1, 2, 3):
        checkpoints.write_fingerprint(checkpoint(tmp_path / "run", starter_config, 1, step=step), starter_config)
    folders = tmp_path / "run" / CHECKPOINTS
    cut(next((folders / "global_step_2").rglob("model*")))
    harm(folders / "global_step_3")
    (problem,) = machine.output(starter_config, read(starter_config))
    assert said in problem and f"echo 1 > {folders / TRACKER}" in problem, problem
    (folders / TRACKER).write_text("1\n")  # as it says
    assert list(machine.output(starter_config, read(starter_config))) == []


def test_a_teacher_of_its_own_weights_is_part_of_the_checkpoint(starter_config, tmp_path):
    folder = checkpoint(tmp_path / "run", starter_config, world=1, step=2)
    checkpoints.write_fingerprint(folder, starter_config)
    starter_config.self_distill.teacher.weights = "snapshot"
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "actor/teacher_rank_0_of_1.safetensors is missing" in problem
    save_file({"weight": torch.zeros(3)}, folder / "actor" / "teacher_rank_0_of_1.safetensors")
    assert list(machine.output(starter_config, read(starter_config))) == []


def test_a_path_to_a_checkpoint_that_is_not_whole(starter_config, tmp_path):
    whole = checkpoint(tmp_path / "run", starter_config, world=1, step=1)
    starter_config.trainer.resume_mode = "resume_path"
    starter_config.trainer.resume_from_path = str(checkpoint(tmp_path / "run", starter_config, world=1, step=3))
    next(Path(starter_config.trainer.resume_from_path).rglob("model*")).unlink()
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "is not whole" in problem and f"set trainer.resume_from_path={whole}" in problem
    shutil.rmtree(whole)
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "set trainer.resume_from_path=a checkpoint that is" in problem


def test_a_tracker_whose_writing_was_interrupted(starter_config, tmp_path):
    checkpoint(tmp_path / "run", starter_config, world=1, step=2)
    tracker = tmp_path / "run" / CHECKPOINTS / TRACKER
    tracker.write_text("")
    (problem,) = machine.output(starter_config, read(starter_config))
    assert f"echo 2 > {tracker}" in problem
    cut(next((tmp_path / "run").rglob("model*")))
    (problem,) = machine.output(starter_config, read(starter_config))
    assert "there is no whole one" in problem and "to start anew" in problem


def test_what_an_interrupted_save_left_costs_no_complete_checkpoint_its_place(tmp_path):
    for step in (3, 5, 6, 10):
        (tmp_path / f"global_step_{step}").mkdir()
    checkpoints.prune(tmp_path, step=6, keep=1)
    assert checkpoints.steps_of(tmp_path) == [6, 10]  # 10: begun before the restart, not complete


def test_a_run_that_is_started_again_goes_on_at_wandb(starter_config, tmp_path):
    pytest.importorskip("wandb")
    from recipes.common.processes.launch import process_environment

    assert "WANDB_RUN_ID" not in process_environment(starter_config, tmp_path)
    starter_config.trainer.logger = ["tensorboard", "wandb"]
    (tmp_path / "other").mkdir()
    other = process_environment(starter_config, tmp_path / "other")
    named = []
    for _ in range(2):
        given = process_environment(starter_config, tmp_path)
        script = "import wandb; run = wandb.init(project='p', name='n'); print(run.id); run.finish()"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **given, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        named.append(done.stdout.split()[-1])
    assert named[0] == named[1] == given["WANDB_RUN_ID"] != other["WANDB_RUN_ID"]
    assert given["WANDB_RESUME"] == "allow"
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{named[0]}"))) >= 1
