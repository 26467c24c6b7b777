"""The training worker: verl's hybrid actor, rollout and reference worker, also on a machine without accelerators."""

from __future__ import annotations

import os
from typing import Any

import torch
from verl.utils.device import get_device_name
from verl.workers.engine_workers import ActorRolloutRefWorker


class SelfDistillWorker(ActorRolloutRefWorker):
    """`ActorRolloutRefWorker` that opens a gloo process group itself where the device is the CPU.

    verl would ask for the backend "cpu:gloo,cpu:gloo", which torch rejects; it leaves an open group alone.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                backend="gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )
