"""The training worker: verl's hybrid actor, rollout and reference worker, also on a machine without accelerators.

With FSDP2 the actor's engine is ours (`workers.training.engine`).  Where the loss is a divergence it is
`workers.training.loss.SelfDistillLoss`, otherwise verl's.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from workers.training.engine import MODEL_TYPE, TEACHER_LENGTHS
from workers.training.loss import SelfDistillLoss
from workers.training.packing import without_row_objects
from workers.training.params import LossParams, TeacherWeights, loss_params, teacher_weights
from workers.training.skipped_updates import count_skipped


class SelfDistillTrainingWorker(TrainingWorker):
    """verl's training worker around our engine.

    Args:
        config: verl's.
        loss: `self_distill.loss`.
        teacher: the weights' part of `self_distill.teacher`.
    """

    def __init__(
        self,
        config: TrainingWorkerConfig,
        loss: LossParams,
        teacher: TeacherWeights,
        linear_decay_steps: int | None = None,
    ):
        super().__init__(dataclasses.replace(config, model_type=MODEL_TYPE))
        self.engine.configure(loss, teacher, linear_decay_steps)

    def _postprocess_output(self, output: Any, *, delta_time: float, **options: Any) -> TensorDict:
        final = super()._postprocess_output(output, delta_time=delta_time, **options)
        count_teacher(tu.get(final, "metrics"), self.flops_counter, delta_time)
        return final


def count_teacher(metrics: dict[str, Any], flops_counter: Any, seconds: float) -> None:
    """Add the teacher's passes to `mfu`, which verl counts from the student's tokens.

    Args:
        metrics: those of verl's `train_batch`, changed in place; all ranks' `TEACHER_LENGTHS` are taken out of them.
        flops_counter: verl's; it counts three passes (forward, and two for backward) where the teacher makes one.
        seconds: how long the batch took.
    """
    lengths = [length for rank in metrics.pop(TEACHER_LENGTHS, []) for length in rank]
    if lengths and "mfu" in metrics:
        done, possible = flops_counter.estimate_flops(lengths, seconds)
        metrics["mfu"] += done / 3 / possible / torch.distributed.get_world_size()


class SelfDistillWorker(ActorRolloutRefWorker):
    """`ActorRolloutRefWorker` with the self-teacher, and with a gloo process group where the device is the CPU.

    verl would ask for the backend "cpu:gloo,cpu:gloo", which torch rejects; it leaves an open group alone.
    `self_distill` of the configuration reaches the workers as `config.self_distill`, put there by the trainer.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.self_distill_loss, teacher, linear = LossParams(), TeacherWeights(), None
        if config.get("self_distill") is not None:
            self.self_distill_loss = loss_params(config.self_distill)
            teacher = teacher_weights(config.self_distill)
            linear = config.self_distill.get("linear_decay_steps")
        if config.actor.strategy == "fsdp2":
            self.actor_worker_cls = partial(
                SelfDistillTrainingWorker, loss=self.self_distill_loss, teacher=teacher, linear_decay_steps=linear
            )
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                backend="gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """verl's, then our loss if there is a divergence; what is in memory by now is kept from Python's collector."""
        super().init_model()
        trained = self.actor if self.actor is not None else self.ref
        if get_device_name() == "cpu" and trained is not None:
            from workers.cpu.products import use_onednn

            use_onednn(trained.engine.model_config.hf_config)
        if self.actor is not None and self.self_distill_loss.active:
            self.actor.set_loss_fn(SelfDistillLoss(self.self_distill_loss, policy_loss=self.loss_fn))
        # What is there now (modules of torch, transformers and verl, a million objects) stays. Python's collector would
        # walk all of it at moments of its own choosing, a third of a second each time and about once a stage.
        gc.collect()
        gc.freeze()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def read_here(self, path: str) -> tuple[str, str | None]:
        """This node's name, and what a text file holds here; None if it cannot be read."""
        try:
            return socket.gethostname(), Path(path).read_text(encoding="utf-8")
        except OSError:
            return socket.gethostname(), None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict | None:
        """verl's, without the rows' Python objects, and with the skipped updates counted."""
        output = super().update_actor(without_row_objects(data))
        if output is not None:
            count_skipped(output["metrics"])
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def keep_state(self) -> None:
        """Remember what updates change, for an update that is only tried."""
        self.actor.engine.keep_state()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def put_back_state(self) -> None:
        """Undo the updates since `keep_state`."""
        self.actor.engine.put_back_state()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """verl's, without the rows' Python objects."""
        return super().compute_log_prob(without_row_objects(data))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_teacher_log_prob(self, data: TensorDict) -> TensorDict | None:
        """`compute_log_prob` with the weights of the teacher that the engine keeps."""
        with self.actor.engine.as_teacher():
            output = self.actor.infer_batch(without_row_objects(data))
        return output.cpu() if output is not None else None
