"""Wait until a Ray cluster has its nodes: `python -m recipes.common.processes.ray_nodes NODES SECONDS`.

RAY_ADDRESS says which cluster.  Exits with 0 when that many nodes are alive, and with 1, saying how many came, if they
are not there in time.  For cluster/train.sbatch: verl would wait for missing nodes for ever.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import ray


def alive_nodes(address: str) -> int:
    """Number of nodes that a running cluster has now; 0 if none answers at that address."""
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return sum(node["Alive"] for node in ray.nodes())
    except (ConnectionError, RuntimeError, ray.exceptions.RayError):
        ray.shutdown()
        return 0


def main(nodes: int, seconds: float) -> int:
    """Wait for the nodes of the cluster at RAY_ADDRESS.

    Args:
        nodes: number that must be alive.
        seconds: the longest wait.

    Returns:
        The exit code: 0 if they came in time, else 1, after saying how many did.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        print("RAY_ADDRESS is not set: export it as <head's host>:<port>", file=sys.stderr)
        return 1
    deadline, found = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < deadline:
            found = alive_nodes(address)
            if found >= nodes:
                return 0
            time.sleep(0.5)
    finally:
        ray.shutdown()
    print(f"{found} of {nodes} nodes joined {address} within {seconds:g} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
