"""End a run that has lost a process or a node: what ran there never answers, and verl may wait for it for ever.

Two things are watched.  Processes: one that is killed (by the out-of-memory killer, by hand, by a crash in native code)
leaves a dead actor behind, and whoever waits for something that it would have put elsewhere waits on.  Measured: a run
whose agent loop was killed in the rollouts was still waiting minutes later, and one whose rollout server was killed
ended with an error that names neither.  Nodes: on a cluster of several, a node that is gone takes its actors with it.
On one node the processes go together, and under cluster/train.sbatch Slurm notices too.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import actors, available_resources_per_node
from ray.core.generated.common_pb2 import ActorDiedErrorContext

SECONDS = 5.0  # between two looks
DEATH_SECONDS = 15.0  # until Ray calls a node dead whose actors already are
SETTLE_SECONDS = 2.0  # until Ray's table has an actor whose callers have the error

# What a person calls the processes of a run, by the class that Ray shows.
PARTS = {
    "SelfDistillTaskRunner": "the trainer",
    "WorkerDict": "a training worker",
    "SelfDistillWorker": "a training worker",
    "TransformersServer": "a rollout server",
    "vLLMHttpServer": "a rollout server",
    "CPUvLLMServer": "a rollout server",
    "SGLangHttpServer": "a rollout server",
    "AgentLoopWorkerTQ": "an agent loop",
    "BurstAgentLoopWorker": "an agent loop",
    "GlobalRequestLoadBalancer": "the rollouts' load balancer",
    "RewardLoopWorker": "a grading process",
    "TransferQueueController": "the store of rollouts",
    "SimpleStorageUnit": "the store of rollouts",
}


class NodeLost(RuntimeError):
    """A node whose GPUs were in use is no longer in the cluster."""


class ProcessLost(RuntimeError):
    """A process of the run ended without a word."""


def busy_nodes() -> set[str]:
    """Ids of the living nodes that have GPUs, not all of them free."""
    free = available_resources_per_node()
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) > free.get(node["NodeID"], {}).get("GPU", 0)
    }


def lost_nodes(busy: set[str]) -> list[str]:
    """The dead ones of the given nodes, each as host and address."""
    return [
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["NodeID"] in busy and not node["Alive"]
    ]


def lost_process() -> str | None:
    """The first of the run's actors whose process ended by itself, in words; None if there is none.

    Actors that verl or Ray ended, and those that went with their owner, are not counted.
    """
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    dead = [actor for actor in actors(job_id=job, actor_state_name="DEAD").values() if _unwanted(actor["DeathCause"])]
    return _in_words(min(dead, key=lambda actor: actor["EndTime"])) if dead else None


def _unwanted(cause: Any) -> bool:
    if cause.WhichOneof("context") == "oom_context":  # Ray's own watch over the node's memory
        return True
    died = cause.actor_died_error_context
    # An actor that leaves by its own will is among them, and only the text says so.
    return died.reason == ActorDiedErrorContext.WORKER_DIED and "INTENDED" not in died.error_message


def _in_words(actor: dict[str, Any]) -> str:
    name = actor["ActorClassName"].rpartition(".")[2]  # of a class within a function too
    part = PARTS.get(name, "a process")
    return f"{part} ({name}, process {actor['Pid']} on {actor['Address']['IPAddress']})"


@contextmanager
def deaths_watched(seconds: float = SECONDS) -> Iterator[None]:
    """End the block, which must run in the main thread, soon after a process or a node of the run is lost.

    The block waits inside Ray, which lets KeyboardInterrupt through and swallows whatever else a signal handler throws:
    so SIGALRM throws that, and it is exchanged here.  An error of the block itself that a loss explains is exchanged
    too: what verl then says is about the consequences.  Nodes whose GPUs are free may come and go.

    Args:
        seconds: time between two looks.

    Raises:
        NodeLost: if a node whose GPUs were in use is gone.
        ProcessLost: if a process of the run ended by itself.
    """
    ended, busy, losses = threading.Event(), set[str](), list[RuntimeError]()
    waiting = threading.get_ident()

    def watch() -> None:
        while not ended.wait(seconds):
            if not ray.is_initialized():
                continue
            found = _loss(busy)
            if found is not None:
                losses.append(found)
                if not ended.is_set():
                    signal.pthread_kill(waiting, signal.SIGALRM)
                return
            busy.update(busy_nodes())

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not losses:
            raise
        raise losses[0] from None
    except ray.exceptions.RayError as error:
        ended.set()
        thread.join(timeout=30)  # no alarm from here on
        found = losses[0] if losses else _loss(busy, within=DEATH_SECONDS if len(busy) > 1 else SETTLE_SECONDS)
        if found is not None:
            raise found from error
        raise
    finally:
        ended.set()
        thread.join(timeout=30)
        signal.signal(signal.SIGALRM, before)


def _loss(busy: set[str], within: float = 0.0) -> RuntimeError | None:
    """The loss that explains what happens, looked for until there is one or the time is over.

    The actors of a dead node may fail before the node is known to be dead: among several nodes it has its time.
    """
    deadline = time.monotonic() + within
    process: str | None = None
    while ray.is_initialized():
        if lost := lost_nodes(busy):
            return NodeLost(
                f"lost {' and '.join(lost)}, where a part of the run was. Start again with the same hydra.run.dir when "
                "the cluster has its nodes, to go on from the last checkpoint"
            )
        if process is None and (process := lost_process()) is not None:
            deadline = time.monotonic() + (DEATH_SECONDS if len(busy) > 1 else 0.0)
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    if process is None:
        return None
    return ProcessLost(
        f"{process} died: killed, most often by the system for want of memory (`dmesg` says so), or crashed in native "
        "code (its last words are in the log)"
    )
