"""A training's state, kept in main memory while an update is tried, and put back bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.utils.device import get_torch_device, is_cuda_available

from workers.training.teacher_copy import TeacherCopy, local_shards


class TrainingState:
    """This rank's share of what updates change: weights that train, moments, learning rate, random numbers, teacher.

    It takes the main memory of as many weights and moments as train: little with an adapter, three times the model's
    fp32 size over all ranks in full fine-tuning.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, teacher: TeacherCopy | None
    ) -> None:
        self._module, self._optimizer, self._scheduler, self._teacher = module, optimizer, scheduler, teacher
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self._weights = {name: _kept(shard) for name, shard in local_shards(module).items() if name in trained}
        self._moments = {
            parameter: {name: _kept(value) for name, value in moments.items()}
            for parameter, moments in optimizer.state.items()
        }
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._schedule = dict(scheduler.state_dict()) if scheduler is not None else None
        self._random = torch.get_rng_state(), get_torch_device().get_rng_state() if is_cuda_available else None
        self._followed = None
        if teacher is not None:
            self._followed = {name: _kept(shard) for name, shard in local_shards(teacher.module).items()}, teacher.steps

    @torch.no_grad()
    def put_back(self) -> None:
        """Make all of it what it was."""
        for name, shard in local_shards(self._module).items():  # which drops what was gathered of the tried weights
            if name in self._weights:
                shard.copy_(self._weights[name])
        for parameter in list(self._optimizer.state):
            if parameter not in self._moments:  # the first update of a run makes them
                del self._optimizer.state[parameter]
                continue
            own = self._optimizer.state[parameter]
            for name, value in self._moments[parameter].items():
                if isinstance(value, Tensor):
                    _local(own[name]).copy_(value)
                else:
                    own[name] = value
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        if self._schedule is not None:
            self._scheduler.load_state_dict(self._schedule)
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            get_torch_device().set_rng_state(self._random[1])
        if self._teacher is not None and self._followed is not None:
            shards, self._teacher.steps = self._followed
            for name, shard in local_shards(self._teacher.module).items():
                shard.copy_(shards[name])


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _kept(value: Any) -> Any:
    return _local(value).detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
