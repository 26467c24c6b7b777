"""verl's FSDP2 engine with the privileged teacher in it.

For every micro-batch the teacher scores the student's response tokens under the privileged prompt, without gradient,
immediately before the student's own pass; the two sets of full-vocabulary logits meet in verl's logits hook and never
leave the GPU.  The teacher's sequences travel with the batch as `teacher_input_ids` and `teacher_position_ids`, under
the same keys, so that mini- and micro-batches carry the right ones.

No method of the engine is replaced: each is called through super(), with the teacher before it or statistics after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

from workers.divergence import reduction_count
from workers.training.loss import COUNT, DIVERGENCE, SelfDistillLoss, scatter_tokens
from workers.training.metrics import divergence_metrics
from workers.training.packing import TEACHER_IDS, TEACHER_POSITIONS, relative_positions, scored_rows
from workers.training.params import LossParams, TeacherWeights
from workers.training.teacher_copy import TeacherCopy

MODEL_TYPE = "self_distill_language_model"


@EngineRegistry.register(model_type=MODEL_TYPE, backend="fsdp2", device=["cuda", "cpu"])
class SelfDistillEngine(FSDPEngineWithLMHead):
    """A language-model engine that can also train a divergence from a privileged teacher.

    Call `configure` between construction and `initialize`.  Log-probability passes are verl's own.
    """

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any):
        # Our name was only needed to be found; verl builds the module by this one.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)
        self.loss_settings = LossParams()
        self.teacher_settings = TeacherWeights()
        self.teacher: TeacherCopy | None = None
        self._scored: dict[str, list[Tensor]] = {}

    def configure(self, loss: LossParams, teacher: TeacherWeights) -> None:
        """What to train, and whose weights the teacher has."""
        self.loss_settings, self.teacher_settings = loss, teacher

    # ------------------------------------------------------------------ the teacher's weights

    def initialize(self) -> None:
        super().initialize()
        if self.teacher_settings.needs_copy(lora=self._is_lora):
            module = self._build_module()
            if self._is_lora:
                module = self._build_lora_module(module)
            self.teacher = TeacherCopy(self._build_fsdp_module(module), self.module, self.teacher_settings)

    def lr_scheduler_step(self) -> Any:
        # verl calls this once a training step, after the last mini-batch: when the teacher may follow.
        rate = super().lr_scheduler_step()
        if self.teacher is not None:
            self.teacher.follow(self.module)
        return rate

    def to(self, device: str, model: bool = True, optimizer: bool = True, grad: bool = True) -> None:
        super().to(device=device, model=model, optimizer=optimizer, grad=grad)
        if self.teacher is not None and model:
            self.teacher.module.to(device)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        if self.teacher is not None:  # before verl's own files, whose presence is what makes a checkpoint complete
            world = torch.distributed.get_world_size()
            self.teacher.save(Path(local_path), rank=self.rank, world_size=world)
        super().save_checkpoint(local_path, *args, **kwargs)

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        if self.teacher is not None:
            world = torch.distributed.get_world_size()
            self.teacher.load(Path(local_path), rank=self.rank, world_size=world)
        super().load_checkpoint(local_path, *args, **kwargs)

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Within the block the engine's log-probability passes use the teacher's weights."""
        if self.teacher is None:
            with self._adapter_off():
                yield
            return
        student, self.module = self.module, self.teacher.module
        try:
            yield
        finally:
            self.module = student

    def _adapter_off(self) -> Any:
        off = self.teacher_settings.weights == "frozen" and self._is_lora
        return self.disable_adapter() if off else nullcontext()

    # ------------------------------------------------------------------ a mini-batch

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable | None, forward_only: bool = False
    ) -> dict[str, Any]:
        if forward_only or not self.loss_settings.active:
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        missing = [name for name in (TEACHER_IDS, TEACHER_POSITIONS) if name not in data]
        if missing:
            raise RuntimeError(f"the batch lacks {missing}: the trainer must write the teacher's sequences into it")
        group, device = self.get_data_parallel_group(), torch.device(get_device_name())
        # Before the first backward pass: the mean's denominator over all micro-batches and ranks.
        count = reduction_count(data["response_mask"].to_padded_tensor(0), self.loss_settings.reduction).to(device)
        torch.distributed.all_reduce(count, group=group)
        tu.assign_non_tensor(
            data,
            distillation_use_topk=True,  # verl's name for: call the loss with the logits
            distillation_only=not self.loss_settings.ppo,  # without PPO no log-probs are needed
            **{COUNT: int(count)},
        )
        self._scored = {"divergence": [], "disagreement": [], "positions": []}
        outputs = super().forward_backward_batch(data, loss_function, forward_only=False)
        metrics = divergence_metrics(**self._scored, device=device, group=group)
        outputs["metrics"].update({name: [value] for name, value in metrics.items()})
        return outputs

    def forward_step(self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool) -> Any:
        if forward_only or not self.loss_settings.active:
            return super().forward_step(micro_batch, loss_function, forward_only)
        if not isinstance(loss_function, SelfDistillLoss):
            raise TypeError(f"self_distill.loss needs a SelfDistillLoss, got {type(loss_function).__name__}")
        micro_batch = micro_batch.to(get_device_id())
        teacher_logits = [self._teacher_logits(micro_batch)]

        def with_teacher(
            model_output: Any = None, data: Any = None, dp_group: Any = None, student_logits: Tensor | None = None
        ) -> Any:
            if student_logits is None:
                return loss_function(model_output=model_output, data=data, dp_group=dp_group)
            # pop: the logits live on only as what the divergence keeps of them
            return self._score(loss_function, student_logits, teacher_logits.pop(), data)

        return super().forward_step(micro_batch, with_teacher, forward_only)

    def _score(
        self, loss: SelfDistillLoss, student_logits: Tensor, teacher_logits: Tensor, data: TensorDict
    ) -> dict[str, Tensor]:
        """Token divergences at their packed rows; what the metrics need is kept aside."""
        mask = data["response_mask"]
        rows = scored_rows(data["input_ids"].offsets(), mask)
        value, stats = loss.score(student_logits, teacher_logits, rows, rollout_temperature=float(data["temperature"]))
        self._scored["divergence"].append(value.detach())
        self._scored["disagreement"].append(stats["top1_disagreement"])
        self._scored["positions"].append(relative_positions(mask))
        return {DIVERGENCE: scatter_tokens(value, rows, student_logits.shape[-2])}

    @torch.no_grad()
    def _teacher_logits(self, micro_batch: TensorDict) -> Tensor:
        """Raw logits (N, V) of the valid response tokens under the privileged prompt."""
        ids = micro_batch[TEACHER_IDS]
        rows = scored_rows(ids.offsets(), micro_batch["response_mask"])
        batch = TensorDict(
            {"input_ids": ids, "position_ids": micro_batch[TEACHER_POSITIONS]}, batch_size=micro_batch.batch_size
        )
        tu.assign_non_tensor(batch, temperature=1.0, use_remove_padding=True)
        inputs, _ = self.prepare_model_inputs(batch)
        module = self.module if self.teacher is None else self.teacher.module
        was_training = module.training
        autocast = (
            nullcontext()
            if self._autocast_dtype == torch.float32
            else torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)
        )
        module.eval()  # no dropout, no gradient checkpointing
        try:
            with self._adapter_off() if self.teacher is None else nullcontext(), autocast:
                # The head is applied to the scored rows only: prompts, references included, cost no logits.
                logits = module(**inputs, use_cache=False, logits_to_keep=rows).logits[0]
        finally:
            module.train(was_training)
        if logits.shape[0] != rows.shape[0]:
            raise RuntimeError(
                f"{type(module).__name__} ignores logits_to_keep (got {logits.shape[0]} rows for {rows.shape[0]}): "
                "its forward pass cannot serve as a teacher's"
            )
        return logits
