"""End a run whose node is gone: what ran there never answers, and verl waits for it for ever.

On one node the processes go together, and under cluster/train.sbatch Slurm notices too.  On a Ray cluster of several
nodes nobody else does: measured, a run that lost a node in its rollouts was still waiting minutes later.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.state import available_resources_per_node

SECONDS = 5.0
DEATH_SECONDS = 15.0  # until Ray calls a node dead whose actors already are


class NodeLost(RuntimeError):
    """A node whose GPUs were in use is no longer in the cluster."""


def busy_nodes() -> set[str]:
    """Ids of the living nodes that have GPUs, not all of them free."""
    free = available_resources_per_node()
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) > free.get(node["NodeID"], {}).get("GPU", 0)
    }


def lost_nodes(busy: set[str]) -> list[str]:
    """Host and address of those of the given nodes that are dead."""
    return [
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["NodeID"] in busy and not node["Alive"]
    ]


@contextmanager
def nodes_watched(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `NodeLost` in the block, which must run in the main thread, soon after a busy node has gone.

    The block waits inside Ray, which lets KeyboardInterrupt through and swallows what else a handler of signals raises:
    so SIGALRM raises that, and it is exchanged here.  So is an error of the block itself that a lost node explains: the
    actors of a dead node may fail before the node is known to be dead.  Idle nodes may come and go.
    """
    ended, busy, lost = threading.Event(), set[str](), list[str]()
    waiting = threading.get_ident()

    def watch() -> None:
        while not ended.wait(seconds):
            if not ray.is_initialized():
                continue
            lost.extend(lost_nodes(busy))
            if lost:
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
        if not lost:
            raise
        raise _node_lost(lost) from None
    except ray.exceptions.RayError as error:
        ended.set()
        thread.join(timeout=30)  # no alarm from here on
        if found := lost or _lost_within(busy, DEATH_SECONDS):
            raise _node_lost(found) from error
        raise
    finally:
        ended.set()
        thread.join(timeout=30)
        signal.signal(signal.SIGALRM, before)


def _lost_within(busy: set[str], seconds: float) -> list[str]:
    """The lost among several busy nodes, looked for until there is one or the time is over."""
    deadline = time.monotonic() + (seconds if len(busy) > 1 else 0.0)
    while ray.is_initialized():
        found = lost_nodes(busy)
        if found or time.monotonic() >= deadline:
            return found
        time.sleep(0.5)
    return []


def _node_lost(lost: list[str]) -> NodeLost:
    return NodeLost(
        f"lost {' and '.join(lost)}, where a part of the run was. Start again with the same hydra.run.dir when the "
        "cluster has its nodes, to go on from the last checkpoint"
    )
