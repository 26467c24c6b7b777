"""A run over two Ray nodes, on one machine: one worker on each, a node killed in the middle, resumed on a new one."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from recipes.common import run_dir as files
from tests.conftest import ROOT, Run, start, wait_for_step

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """`ray start --block` with one logical GPU; `kill` is the machine losing power."""

    def __init__(self, *arguments: str):
        common = ("--block", "--num-gpus=1", "--num-cpus=8", "--object-store-memory=200000000", "--disable-usage-stats")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [RAY, "start", *common, *arguments],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        try:
            family = psutil.Process(self.process.pid)
            members = [family, *family.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


@pytest.fixture
def cluster(monkeypatch):
    """(nodes, function that adds one); RAY_ADDRESS names the head. Everything is killed at the end."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as cluster/train.sbatch does
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    nodes = [Node("--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false")]

    def join(expected: int) -> None:
        waiter = [sys.executable, "-m", "recipes.common.ray_nodes"]
        subprocess.run([*waiter, "1", "60"], cwd=ROOT, check=True)
        nodes.append(Node(f"--address={address}"))
        subprocess.run([*waiter, str(expected), "60"], cwd=ROOT, check=True)

    try:
        join(2)
        yield nodes, join
    finally:
        for node in reversed(nodes):
            node.kill()


def test_a_run_over_two_nodes_goes_on_after_one_was_lost(cluster, tmp_path):
    nodes, join = cluster
    directory = tmp_path / "run"
    overrides = ("trainer.nnodes=2", "trainer.total_training_steps=4", "trainer.save_freq=1")
    process = start("dasd", directory, *overrides)
    try:
        wait_for_step(directory, 2, process)
        nodes.pop().kill()
        console, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    first = Run(directory, process.returncode, console, 0)
    assert first.code == 1 and "failed" in console, console
    saved = files.checkpointed_step(directory)
    assert saved >= 1
    shards = {p.name for p in (directory / f"{files.CHECKPOINTS}/global_step_{saved}/actor").glob("model_*.pt")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)}

    join(2)
    process = start("dasd", directory, *overrides)
    try:
        console, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    second = Run(directory, process.returncode, console, 0)
    assert second.code == 0, console + second.log[-3000:]
    assert f"resuming after step {saved}" in console
    assert sorted(second.steps) == [1, 2, 3, 4] and files.checkpointed_step(directory) == 4
