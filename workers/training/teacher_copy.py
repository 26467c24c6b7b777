"""A teacher with weights of its own: a second, sharded copy of the policy that is never trained.

Needed where the teacher is neither the policy itself nor the policy without its LoRA adapter: the frozen initial
policy in full fine-tuning (OPSD's default teacher, and a part of SDPO's trust region), the moving average (SDPO), the
snapshot of every N steps (RLSD).
It costs one more set of parameters, sharded like the student's.  Averages live in fp32: in bfloat16 an update of
(1 − decay) · difference is below the rounding of the average and is lost.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from workers.training.params import TRAILING_WEIGHTS, TeacherWeights


def local_shards(module: nn.Module) -> dict[str, Tensor]:
    """This rank's part of every parameter, by name; shares storage with the module.

    A forward pass that no backward pass follows leaves the module whole where `reshard_after_forward` is false: it is
    sharded again first, or its names would stand for whole parameters, and the next pass would use them as they are.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return {name: (p.to_local() if isinstance(p, DTensor) else p).detach() for name, p in module.named_parameters()}


class TeacherCopy:
    """The copy, and when it follows the student.

    Args:
        module: built and sharded like the student; its parameters are overwritten with the student's.
        student: the policy that is trained.
        settings: frozen, ema or snapshot, and how fast it follows.

    Attributes:
        steps: training steps that it has seen.

    Raises:
        ValueError: if an average would be kept in 16 bits.
    """

    def __init__(self, module: nn.Module, student: nn.Module, settings: TeacherWeights):
        self.module = module.requires_grad_(False).eval()
        self.settings = settings
        self.steps = 0
        self._copy(student)
        if settings.weights == "ema":
            low = sorted({str(p.dtype) for p in module.parameters() if p.dtype != torch.float32})
            if low:
                raise ValueError(
                    f"self_distill.teacher.weights=ema with parameters in {', '.join(low)}: the average would lose its "
                    "updates; set actor_rollout_ref.actor.fsdp_config.model_dtype=fp32"
                )

    @torch.no_grad()
    def _copy(self, student: nn.Module) -> None:
        source = local_shards(student)
        for name, own in local_shards(self.module).items():
            own.copy_(source[name])

    @property
    def follows_next(self) -> bool:
        """Whether the next `follow` changes a weight."""
        every = self.settings.snapshot_every
        return self.settings.weights == "ema" or (self.settings.weights == "snapshot" and (self.steps + 1) % every == 0)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Follow the student if it is time; to be called once after each training step."""
        self.steps += 1
        if self.settings.weights == "ema":
            source = local_shards(student)
            for name, own in local_shards(self.module).items():
                own.lerp_(source[name].to(own.device), 1.0 - self.settings.ema_decay)
        elif self.settings.weights == "snapshot" and self.steps % self.settings.snapshot_every == 0:
            self._copy(student)

    def save(self, folder: Path, *, rank: int, world_size: int) -> None:
        """Write this rank's shards; nothing for the initial policy, which the model's own files restore.

        Args:
            folder: the actor's folder of a checkpoint.
            rank: this worker's, from 0.
            world_size: number of workers.
        """
        if self.settings.weights not in TRAILING_WEIGHTS:
            return
        file = _file(folder, rank, world_size)
        file.parent.mkdir(parents=True, exist_ok=True)
        shards = {name: shard.cpu().contiguous() for name, shard in local_shards(self.module).items()}
        save_file(shards, file, metadata={"teacher": json.dumps({"steps": self.steps})})

    @torch.no_grad()
    def load(self, folder: Path, *, rank: int, world_size: int) -> None:
        """Restore what `save` wrote.

        Args:
            folder: the actor's folder of a checkpoint.
            rank: this worker's, from 0.
            world_size: number of workers; those that saved must have been as many.

        Raises:
            FileNotFoundError: if the checkpoint has no such teacher.
        """
        if self.settings.weights not in TRAILING_WEIGHTS:
            return
        file = _file(folder, rank, world_size)
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: the checkpoint has no teacher of weights={self.settings.weights} for {world_size} workers; "
                "resume with the settings it was saved under, or start in another hydra.run.dir"
            )
        stored = load_file(file)
        for name, own in local_shards(self.module).items():
            own.copy_(stored[name])
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            self.steps = json.loads(opened.metadata()["teacher"])["steps"]


def _file(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"teacher_rank_{rank}_of_{world_size}.safetensors"
