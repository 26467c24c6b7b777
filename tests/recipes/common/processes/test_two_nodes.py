"""A run over two Ray nodes, on one machine: one worker on each, a node killed in the middle, resumed on a new one.

The same run checks the loggers, since each start of the stack takes half a minute.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from recipes.common.processes import death_watch
from recipes.common.record import run_dir as files
from tests.builders.configs import ROOT
from tests.builders.processes import Run, start, wait_for_step

pytestmark = pytest.mark.slow

LONG = 600.0  # seconds; for a machine with much else to do, where it takes a tenth of that otherwise
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """`ray start --block` with one logical GPU; `kill` is the machine losing power."""

    def __init__(self, log: Path, *arguments: str):
        self.log = log
        common = ("--block", "--num-gpus=1", "--num-cpus=8", "--object-store-memory=200000000", "--disable-usage-stats")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [RAY, "start", *common, *arguments],
            cwd=log.parent,  # not where the run is started: its relative paths would lead nowhere here
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
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


class Cluster:
    """Two nodes under one secret, as cluster/train.sbatch starts them; RAY_ADDRESS names the head."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        patch.setenv("RAY_ADDRESS", self.address)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self.nodes: list[Node] = []

    def join(self) -> None:
        """Start a node, the head if it is the first, and wait until it is there."""
        head = ("--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false")
        arguments = (f"--address={self.address}",) if self.nodes else head
        self.nodes.append(Node(self.folder / f"node{time.monotonic_ns()}.log", *arguments))
        waiter = [sys.executable, "-m", "recipes.common.processes.ray_nodes", str(len(self.nodes)), "180"]
        if subprocess.run(waiter, cwd=ROOT).returncode:
            pytest.fail("\n".join(node.log.read_text()[-3000:] for node in self.nodes))

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.kill()


@dataclass
class Story:
    """The same command twice: a node lost in the first, which had saved at `saved`; complete in the second."""

    first: Run
    saved: int
    shards: set[str]
    second: Run


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nodes") / "run"
    overrides = ("trainer.nnodes=2", "trainer.total_training_steps=4", "trainer.save_freq=1")
    overrides += ("trainer.logger=[tensorboard,wandb]", "data.train_files=recipes/starter/data/train.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        cluster = Cluster(directory.parent, patch)
        try:
            cluster.join()
            cluster.join()
            process = start("dasd", directory, *overrides)
            try:
                wait_for_step(directory, 2, process, timeout=LONG)
                cluster.nodes.pop().kill()
                first = ended(process, directory, timeout=LONG)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            saved = files.checkpointed_step(directory)
            shards = {
                p.name for p in (directory / files.CHECKPOINTS / f"global_step_{saved}" / "actor").glob("model_*")
            }
            cluster.join()
            second = ended(start("dasd", directory, *overrides), directory, timeout=LONG)
        finally:
            cluster.end()
    return Story(first, saved, shards, second)


def ended(process: subprocess.Popen, directory: Path, timeout: float) -> Run:
    began = time.time()
    try:
        console, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        console, _ = process.communicate()
        pytest.fail(f"no end after {timeout:.0f} s:\n{console}\n{Run(directory, -1, '', 0).log[-3000:]}")
    return Run(directory, process.returncode, console, time.time() - began)


@pytest.fixture
def local_ray(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_waiting_inside_ray_ends_when_a_part_of_the_run_is_gone(local_ray, monkeypatch):
    """Ray lets nothing but KeyboardInterrupt out of ray.get: the one thing here that a cluster of one node can show."""

    @ray.remote(num_cpus=0, num_gpus=1)
    def never() -> None:
        time.sleep(3600)

    @ray.remote(num_cpus=0)
    class TransformersServer:
        def pid(self) -> int:
            return os.getpid()

        def leave(self) -> None:
            ray.actor.exit_actor()

    # Ends that were meant: by its own hand, by its owner's, with its last reference.
    leaving, killed, forgotten, servers = (TransformersServer.remote() for _ in range(4))
    ray.get([actor.pid.remote() for actor in (leaving, killed, forgotten)])
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(leaving.leave.remote())
    ray.kill(killed)
    del forgotten
    time.sleep(2)
    assert death_watch.lost_process() is None

    pid = ray.get(servers.pid.remote())
    os.kill(pid, signal.SIGKILL)
    lost = pytest.raises(death_watch.ProcessLost, match=rf"a rollout server \(TransformersServer, process {pid} on ")
    with lost, death_watch.deaths_watched(seconds=0.5):
        ray.get(never.remote(), timeout=120)

    monkeypatch.setattr(death_watch, "lost_process", lambda: None)
    monkeypatch.setattr(death_watch, "lost_nodes", lambda busy: ["host (address)"] if busy else [])
    lost = pytest.raises(death_watch.NodeLost, match=r"lost host \(address\)")
    with lost, death_watch.deaths_watched(seconds=0.5):
        ray.get(never.remote(), timeout=120)


def test_a_lost_node_ends_the_run_and_leaves_a_complete_checkpoint(story):
    assert story.first.code == 1 and "failed" in story.first.console, story.first.console
    said = " ".join(story.first.console.split())
    assert "NodeLost: lost" in said and "the same hydra.run.dir" in said, said
    assert story.saved >= 1
    assert story.shards == {f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)}


def test_the_run_goes_on_when_the_cluster_has_its_nodes_again(story):
    assert story.second.code == 0, story.second.console + story.second.log[-3000:]
    assert f"resuming after step {story.saved}" in story.second.console
    assert sorted(story.second.steps) == [1, 2, 3, 4]
    assert files.checkpointed_step(story.second.directory) == 4


def test_tensorboard_and_wandb_have_the_metrics_that_the_file_has(story):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.proto.wandb_internal_pb2 import Record

    key, records = "critic/score/mean", story.second.steps
    shown = {}
    for folder in {p.parent for p in (story.second.directory / "tensorboard").rglob("events.out*")}:
        events = EventAccumulator(str(folder)).Reload()
        shown |= {event.step: event.value for event in events.Scalars(key)}
    assert shown == pytest.approx({step: record[key] for step, record in records.items()})

    offline = sorted((story.second.directory / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(offline) == 2  # one for each start
    logged = {}
    for data in wandb_records(offline[-1]):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if key in items:
            logged[record.history.step.num] = float(items[key])
    assert logged == pytest.approx({step: r[key] for step, r in records.items() if step > story.saved})


def wandb_records(path: Path) -> Iterator[bytes]:
    """Records of W&B's offline file: LevelDB's log format, after a header of 7 bytes within the first block."""
    data, position, parts = path.read_bytes(), 7, b""
    block, header = 32_768, 7  # of a chunk: checksum 4, length 2, kind 1 (whole, first, middle, last)
    while position + header <= len(data):
        left = block - position % block
        if left < header:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):
            yield parts
            parts = b""
