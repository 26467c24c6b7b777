"""verl's FSDP2 engine with the privileged teacher in it, and with log-probs and entropies that are exact.

For every micro-batch the teacher reads the response under the privileged prompt, without gradient, just before
the student's own pass; a trust-region teacher reads it twice, as the initial policy and as the current one.  Where the
loss and the model's head allow it, both passes end at the head's inputs, and the divergence is computed from those
inside the student's pass (`workers.training.head`); else the two sets of full-vocabulary logits meet in verl's logits
hook.  Neither ever leaves the GPU.  The teacher's sequences travel with the batch as `teacher_input_ids` and
`teacher_position_ids`, under the same keys, so that mini- and micro-batches carry the right ones.

No method of the engine is replaced: each is called through super(), with the teacher before it or statistics after it.
The one exception is the pass that only scores tokens, which needs no logits either.  Log-probs are fp32 also where
flash-attn's cross-entropy, verl's way to that, is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name, get_torch_device
from verl.utils.fsdp_utils import load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

from workers import verl_private
from workers.divergence import hidden_statistics, reduction_count, token_log_probs
from workers.training.attention_entropy import AttentionEntropy, attention_watched
from workers.training.head import head_computes, head_obstacle
from workers.training.loss import COUNT, DIVERGENCE, SHARE, SelfDistillLoss, scatter_tokens
from workers.training.metrics import divergence_metrics
from workers.training.packing import (
    ATTENTION_ENTROPY,
    CALCULATE_ATTENTION_ENTROPY,
    CALCULATE_GRADIENT_NORM,
    GRADIENT_NORM,
    TEACHER_IDS,
    TEACHER_POSITIONS,
    passes_within,
    relative_positions,
    response_rows,
    scored_rows,
)
from workers.training.params import LossParams, TeacherWeights
from workers.training.taken_back import TrainingState
from workers.training.teacher_copy import TeacherCopy

MODEL_TYPE = "self_distill_language_model"
# Among the metrics of a mini-batch: tokens of each teacher sequence of this rank, for the worker's account of its work.
TEACHER_LENGTHS = "teacher_lengths"


class Voice(NamedTuple):
    """A forward pass that a distribution's logits are made of.

    Attributes:
        module: the model.
        adapter: a context for its pass, in which an adapter may be switched off.
        share: factor of its logits.
    """

    module: nn.Module
    adapter: Callable[[], AbstractContextManager[Any]]
    share: float


@EngineRegistry.register(model_type=MODEL_TYPE, backend="fsdp2", device=["cuda", "cpu"])
class SelfDistillEngine(FSDPEngineWithLMHead):
    """A language-model engine that can also train a divergence from a privileged teacher.

    Call `configure` between construction and `initialize`.
    """

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any):
        # verl finds this class by our model type and builds the module by its own.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)
        self.loss_settings = LossParams()
        self.teacher_settings = TeacherWeights()
        self.linear_decay_steps: int | None = None  # None: verl's schedule
        self.teacher: TeacherCopy | None = None
        self._mixed: list[Voice] = []  # of whom a mixed teacher's scores are made, within `as_teacher`
        self.needs_logits: str | None = None  # why the divergence is computed from logits; None: from hidden states
        self._head_obstacle: str | None = None
        self._scored: dict[str, list[Tensor]] = {}
        self._teacher_lengths: list[int] = []
        self._kept: TrainingState | None = None
        self._noise: float | None = None  # of log-probs, in nats; None until it is measured, and when it was told

    def configure(self, loss: LossParams, teacher: TeacherWeights, linear_decay_steps: int | None = None) -> None:
        """Say what to train, and whose weights the teacher has.

        Args:
            loss: `self_distill.loss`.
            teacher: the weights' part of `self_distill.teacher`.
            linear_decay_steps: in how many steps the learning rate falls linearly to 0; None takes verl's schedule.
        """
        self.loss_settings, self.teacher_settings = loss, teacher
        self.linear_decay_steps = linear_decay_steps

    def _build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        if self.linear_decay_steps is None:
            return super()._build_lr_scheduler(optimizer)
        warmup = max(self.optimizer_config.lr_warmup_steps, 0)
        return get_linear_schedule_with_warmup(optimizer, warmup, self.linear_decay_steps)

    # ------------------------------------------------------------------ the teacher's weights

    def initialize(self) -> None:
        """verl's, and then the teacher's copy, and whether the divergence is computed from hidden states."""
        super().initialize()
        self._head_obstacle = head_obstacle(self.module)
        self.needs_logits = self.loss_settings.logits_because or self._head_obstacle
        if self.teacher_settings.passes > 1 and self._head_obstacle is not None:
            raise ValueError(
                f"self_distill.teacher.weights={self.teacher_settings.weights} mixes logits of two passes, and this "
                f"model's cannot be scored from its hidden states ({self._head_obstacle}); choose ema or frozen"
            )
        if self.loss_settings.active and self.rank == 0:
            source = "hidden states" if self.needs_logits is None else f"logits, since {self.needs_logits}"
            print(f"the divergence is computed from {source}")
        if self.teacher_settings.needs_copy(lora=self._is_lora):
            module = self._build_module()
            if self._is_lora:
                module = self._build_lora_module(module)
            self.teacher = TeacherCopy(self._build_fsdp_module(module), self.module, self.teacher_settings)
            if self._is_offload_param:
                offload_fsdp_model_to_cpu(self.teacher.module)

    def lr_scheduler_step(self) -> Any:
        """verl calls this once a training step, after the last mini-batch: when the teacher may follow."""
        rate = super().lr_scheduler_step()
        if self.teacher is not None:
            with self._copy_beside_the_student() if self.teacher.follows_next else nullcontext():
                self.teacher.follow(self.module)
        return rate

    def to(self, device: str, model: bool = True, optimizer: bool = True, grad: bool = True) -> None:
        """verl's, and the teacher's copy moves with the student; to a GPU only where a loss reads it.

        Args:
            device: "cpu", or the accelerator.
            model: whether weights move.
            optimizer: whether the optimiser's state moves.
            grad: whether gradients move.
        """
        super().to(device=device, model=model, optimizer=optimizer, grad=grad)
        if self.teacher is None or not model:
            return
        if device == "cpu":
            self._move_copy("cpu")
        elif self.loss_settings.active and self.mode != "eval":  # the passes that only score tokens have the student's
            self._move_copy(device)

    def _move_copy(self, device: str) -> None:
        """As verl moves the student: through pinned memory, without waiting."""
        if _device_of(self.teacher.module) == device or self._uses_fsdp2_cpu_offload_policy:
            return
        (offload_fsdp_model_to_cpu if device == "cpu" else load_fsdp_model_to_gpu)(self.teacher.module)

    @contextmanager
    def _copy_beside_the_student(self) -> Iterator[None]:
        before, there = _device_of(self.teacher.module), _device_of(self.module)
        self._move_copy(there)
        try:
            yield
        finally:
            self._move_copy(before)

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """The teacher's copy first, then verl's own files, whose presence is what makes a checkpoint complete."""
        if self.teacher is not None:
            get_torch_device().synchronize()  # the copy may still be on its way to main memory
            world = torch.distributed.get_world_size()
            self.teacher.save(Path(local_path), rank=self.rank, world_size=world)
        super().save_checkpoint(local_path, *args, **kwargs)

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """The teacher's copy first, then verl's own files."""
        if self.teacher is not None:
            get_torch_device().synchronize()
            world = torch.distributed.get_world_size()
            self.teacher.load(Path(local_path), rank=self.rank, world_size=world)
        super().load_checkpoint(local_path, *args, **kwargs)

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Within the block the engine's log-probability passes use the teacher's weights."""
        if self.teacher_settings.passes > 1:
            if self.teacher is not None and self._is_offload_param:  # verl moves the student alone
                self._move_copy(get_device_name())
            self._mixed = self._voices()
            try:
                yield
            finally:
                self._mixed = []
            return
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
        off = self.teacher_settings.keeps_initial and self._is_lora
        return self.disable_adapter() if off else nullcontext()

    def _voices(self) -> list[Voice]:
        """The passes that the teacher's logits are made of: one, or those of the initial and the current policy."""
        settings = self.teacher_settings
        own = (self.module, self._adapter_off) if self.teacher is None else (self.teacher.module, nullcontext)
        if settings.passes == 1:
            return [Voice(*own, 1.0)]
        mix = settings.trust_region_mix
        return [Voice(*own, 1.0 - mix), Voice(self.module, nullcontext, mix)]

    # ------------------------------------------------------------------ updates that are taken back

    def keep_state(self) -> None:
        """Remember, in main memory, everything that an update changes; `put_back_state` makes it as it was."""
        self._kept = TrainingState(self.module, self.optimizer, self.lr_scheduler, self.teacher)

    def put_back_state(self) -> None:
        """Undo the updates since `keep_state`.

        Raises:
            RuntimeError: if nothing is kept.
        """
        if self._kept is None:
            raise RuntimeError("no state of the training is kept: call keep_state before the update to be undone")
        self._kept.put_back()
        self._kept = None

    # ------------------------------------------------------------------ a mini-batch

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable | None, forward_only: bool = False
    ) -> dict[str, Any]:
        """verl's, with the teacher in it where there is a divergence, and with the log-probs' noise among the metrics.

        Args:
            data: verl's mini-batch of this rank, jagged.
            loss_function: ours or verl's.
            forward_only: whether nothing is trained.
        """
        if forward_only:
            return super().forward_backward_batch(data, loss_function, forward_only=True)
        outputs = (
            self._train_with_teacher(data, loss_function)
            if self.loss_settings.active
            else super().forward_backward_batch(data, loss_function, forward_only=False)
        )
        if self._noise is not None:
            outputs["metrics"]["log_prob_noise/max"], self._noise = [self._noise], None
        return outputs

    def _train_with_teacher(self, data: TensorDict, loss_function: Callable | None) -> dict[str, Any]:
        missing = [name for name in (TEACHER_IDS, TEACHER_POSITIONS) if name not in data]
        if missing:
            raise RuntimeError(f"the batch lacks {missing}: the trainer must write the teacher's sequences into it")
        group, device = self.get_data_parallel_group(), torch.device(get_device_name())
        # Before the first backward pass: the mean's denominator over all micro-batches and ranks.
        count = reduction_count(data["response_mask"].to_padded_tensor(0), self.loss_settings.reduction).to(device)
        torch.distributed.all_reduce(count, group=group)
        tu.assign_non_tensor(data, **{COUNT: int(count)})
        self._scored, self._teacher_lengths = {"positions": []}, []
        outputs = super().forward_backward_batch(data, loss_function, forward_only=False)
        metrics = divergence_metrics(**self._scored, device=device, group=group)
        outputs["metrics"].update({name: [value] for name, value in metrics.items()})
        outputs["metrics"][TEACHER_LENGTHS] = self._teacher_lengths
        return outputs

    def forward_step(self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool) -> Any:
        """verl's, but ours with a teacher, for scoring alone, or where verl would round log-probs to 16 bits.

        Args:
            micro_batch: verl's, jagged.
            loss_function: a `SelfDistillLoss` where there is a divergence; None where tokens are scored.
            forward_only: whether nothing is trained.

        Raises:
            TypeError: if there is a divergence and the loss is another.
        """
        micro_batch = micro_batch.to(get_device_id()).copy()
        if self._mixed and not (forward_only and loss_function is None and self._packs_plainly(micro_batch)):
            raise RuntimeError(
                f"self_distill.teacher.weights={self.teacher_settings.weights} scores packed sequences without a loss"
            )
        if forward_only:
            if loss_function is None and self._head_obstacle is None and self._packs_plainly(micro_batch):
                return self._score_tokens(micro_batch)
            self._refuse_measures(micro_batch)
            return super().forward_step(micro_batch, loss_function, forward_only)
        if not self.loss_settings.active:
            return self._clip_alone(micro_batch, loss_function)
        if not isinstance(loss_function, SelfDistillLoss):
            raise TypeError(f"self_distill.loss needs a SelfDistillLoss, got {type(loss_function).__name__}")
        return self._teach(micro_batch, loss_function)

    def _clip_alone(self, micro_batch: TensorDict, loss_function: Callable) -> Any:
        """A micro-batch of PPO without a divergence: verl's step, but for log-probs that it would round to 16 bits."""
        temperature = micro_batch["temperature"]
        entropy = tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
        if (
            self._autocast_dtype == torch.float32
            or verl_private.has_exact_log_probs()
            or not self._packs_plainly(micro_batch)
            or (entropy and float(temperature) != 1.0)
        ):
            return super().forward_step(micro_batch, loss_function, False)
        tu.assign_non_tensor(micro_batch, distillation_use_topk=True, distillation_only=True, temperature=1.0)
        labels = torch.roll(micro_batch["input_ids"].values(), -1)

        def hook(
            model_output: Any = None, data: Any = None, dp_group: Any = None, student_logits: Tensor | None = None
        ) -> Any:
            if student_logits is None:
                return loss_function(model_output=model_output, data=data, dp_group=dp_group)
            return {"log_probs": token_log_probs(student_logits[0], labels, temperature=float(temperature))}

        return super().forward_step(micro_batch, hook, False)

    def _packs_plainly(self, micro_batch: TensorDict) -> bool:
        """Whether rows are packed without padding, whole on each rank, with logits and one temperature."""
        return (
            not (self.use_ulysses_sp or self.pad_to_length)
            and not isinstance(micro_batch["temperature"], Tensor)
            and tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True)
            and not tu.get_non_tensor_data(micro_batch, "use_fused_kernels", default=False)
            and not tu.get_non_tensor_data(micro_batch, "calculate_sum_pi_squared", default=False)
        )

    def _refuse_measures(self, micro_batch: TensorDict) -> None:
        """verl's own pass has log-probs and entropies only; what else is asked for must not be left out silently."""
        for name in (CALCULATE_GRADIENT_NORM, CALCULATE_ATTENTION_ENTROPY):
            if tu.get_non_tensor_data(micro_batch, name, default=False):
                reason = self._head_obstacle or "its rows are padded, sharded over ranks or fused with the head"
                raise RuntimeError(f"{name} is measured in a pass that this engine cannot make for the model: {reason}")

    # ------------------------------------------------------------------ a micro-batch with the teacher

    def _teach(self, micro_batch: TensorDict, loss: SelfDistillLoss) -> Any:
        """Teacher, student and loss of a micro-batch; what the metrics need is kept aside."""
        rollout_temperature = float(micro_batch["temperature"])
        with_ppo = self.loss_settings.ppo
        compares = with_ppo or self.loss_settings.importance_clip is not None
        # verl divides logits in their own 16 bits, into another tensor of that size; ours divides in fp32, both sides
        # alike. It must be verl where verl computes the entropy that PPO may reward.
        verls_own = with_ppo and tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
        tu.assign_non_tensor(
            micro_batch,
            distillation_use_topk=True,  # verl's name for: call the loss with the logits
            distillation_only=not verls_own,  # no log-probs by verl
            calculate_entropy=verls_own,
            temperature=rollout_temperature if verls_own else 1.0,
        )
        mask, ids = micro_batch["response_mask"], micro_batch["input_ids"]
        rows = scored_rows(ids.offsets(), mask)
        token_ids = ids.values()[rows + 1]
        teacher = [self._teacher_pass(micro_batch)]  # popped: it lives on only as what the divergence keeps of it
        self._scored["positions"].append(relative_positions(mask))
        returned: list[int] = []

        def in_the_head(hidden: Tensor, head: Tensor) -> Tensor:
            states, teacher_head = teacher.pop()
            found = loss.share(
                hidden[0].index_select(0, rows).to(head.dtype),
                head,
                states,
                teacher_head,
                micro_batch,
                rollout_temperature=rollout_temperature,
                token_ids=token_ids,
            )
            self._keep(found[1])
            # verl wants a value for each packed row: the first has it all.
            in_verls_form = scatter_tokens(found[0][None], rows.new_zeros(1), hidden.shape[1])[None, :, None]
            returned.append(in_verls_form.data_ptr())
            return in_verls_form

        def of_logits(student_logits: Tensor) -> dict[str, Tensor]:
            value, stats = loss.score(
                student_logits,
                teacher.pop()[0],
                rows,
                rollout_temperature=rollout_temperature,
                divided_by=rollout_temperature if verls_own else 1.0,
                token_ids=token_ids,
                forward_share=loss.forward_share(micro_batch),
            )
            self._keep({"divergence": value.detach(), **stats})
            outputs = {DIVERGENCE: scatter_tokens(value, rows, student_logits.shape[-2])}
            if compares and not verls_own:
                labels = torch.roll(ids.values(), -1)
                outputs["log_probs"] = token_log_probs(student_logits[0], labels, temperature=rollout_temperature)
            return outputs

        def hook(
            model_output: Any = None, data: Any = None, dp_group: Any = None, student_logits: Tensor | None = None
        ) -> Any:
            if student_logits is None:
                return loss(model_output=model_output, data=data, dp_group=dp_group)
            if self.needs_logits is not None:
                return of_logits(student_logits)
            if returned != [student_logits.data_ptr()]:
                raise RuntimeError(
                    f"{type(self.module).__name__} does not return what its head gives: set "
                    "self_distill.loss.from_hidden=false"
                )
            return {SHARE: student_logits[..., 0]}

        with head_computes(self.module, in_the_head) if self.needs_logits is None else nullcontext():
            return super().forward_step(micro_batch, hook, False)

    def _keep(self, measured: dict[str, Tensor]) -> None:
        for name, values in measured.items():
            self._scored.setdefault(name, []).append(values)

    @torch.no_grad()
    def _teacher_pass(self, micro_batch: TensorDict) -> tuple[Tensor, Tensor | None]:
        """What the teacher gives for the valid response tokens under the privileged prompt.

        Returns raw logits (N, V), or final hidden states (N, h) where the divergence is computed from those; and then
        the head (V, h) of a teacher with weights of its own.

        verl cuts micro-batches by the student's tokens alone, and privileged prompts can be many times as long: passes
        take at most the budget of a micro-batch.  FSDP gathers weights in each, so all ranks make equally many.
        """
        batch = TensorDict(
            {
                "input_ids": micro_batch[TEACHER_IDS],
                "position_ids": micro_batch[TEACHER_POSITIONS],
                "response_mask": micro_batch["response_mask"],
            },
            batch_size=micro_batch.batch_size,
        )
        lengths = batch["input_ids"].offsets().diff().tolist()
        self._teacher_lengths += lengths * self.teacher_settings.passes
        budget = None
        if tu.get_non_tensor_data(micro_batch, "use_dynamic_bsz", default=True):
            budget = int(micro_batch["max_token_len_per_gpu"])
        runs = passes_within(lengths, budget)
        count = torch.tensor(len(runs), device=get_device_name())
        if budget is not None:
            torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX, group=self.get_data_parallel_group())
        spare = [min(range(len(lengths)), key=lengths.__getitem__)]  # its pass costs least, and its result is dropped
        found: Tensor | None = None
        head: Tensor | None = None
        filled, total = 0, int(micro_batch["response_mask"].values().sum())
        for number in range(int(count)):
            run = runs[number] if number < len(runs) else spare
            part, head = self._teacher_rows(batch if len(runs) == int(count) == 1 else _rows(batch, run), head)
            if len(runs) == 1 and number == 0:
                found = part
            elif number < len(runs):
                found = part.new_empty(total, part.shape[1]) if found is None else found
                found[filled : filled + len(part)] = part
                filled += len(part)
        return found, head

    def _teacher_rows(self, batch: TensorDict, head: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One pass of the teacher: logits or hidden states of its scored rows; `head` or, if unset, the copy's."""
        rows = scored_rows(batch["input_ids"].offsets(), batch["response_mask"])
        voices = self._voices()
        if self.needs_logits is None:
            return self._hidden_states(voices, batch, rows, head)
        found = None
        for module, adapter, share in voices:
            with adapter():
                # The head is applied to the scored rows only: prompts, references included, cost no logits.
                logits = self._forward(module, batch, rows)
            found = logits if found is None else found.lerp_(logits, share)
        return found, None

    def _hidden_states(
        self, voices: Sequence[Voice], batch: TensorDict, rows: Tensor, head: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The head's inputs for those packed rows, (N, h), and the head (V, h) where it is not the student's.

        Logits are linear in both, so those of several passes are mixed by laying inputs and heads side by side:
        Σ_i share_i · h_i W_iᵀ = (N, Σh) (V, Σh)ᵀ; with one head for all (an adapter leaves it alone) inputs add up.

        Args:
            head: what an earlier call returned; it is not copied again.
        """
        states: list[Tensor] = []
        heads: list[Tensor] = []

        def keep(hidden: Tensor, weight: Tensor) -> Tensor:
            if self.teacher is not None and head is None:
                heads.append(weight.clone())  # it is whole only now
            return hidden.to(weight.dtype)

        for module, adapter, share in voices:
            with adapter(), head_computes(module, keep):
                found = self._forward(module, batch, rows)
            states.append(found if share == 1.0 else found * share)
        if self.teacher is None:
            return (states[0] if len(states) == 1 else torch.stack(states).sum(0)), None
        if head is None:
            head = heads[0] if len(heads) == 1 else torch.cat(heads, -1)
        return (states[0] if len(states) == 1 else torch.cat(states, -1)), head

    def _forward(self, module: nn.Module, batch: TensorDict, rows: Tensor) -> Tensor:
        """A forward pass for those packed rows (N,) alone, (N, V): without dropout and gradient checkpointing."""
        batch = batch.copy()
        tu.assign_non_tensor(batch, temperature=1.0, use_remove_padding=True, use_fused_kernels=False)
        inputs, _ = self.prepare_model_inputs(batch)
        was_training = module.training
        autocast = (
            nullcontext()
            if self._autocast_dtype == torch.float32
            else torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)
        )
        module.eval()
        try:
            with autocast:
                logits = module(**inputs, use_cache=False, logits_to_keep=rows).logits[0]
        finally:
            module.train(was_training)
        if logits.shape[0] != rows.shape[0]:
            raise RuntimeError(
                f"{type(module).__name__} ignores logits_to_keep (got {logits.shape[0]} rows for {rows.shape[0]}): "
                "its forward pass cannot serve as a teacher's"
            )
        return logits

    # ------------------------------------------------------------------ passes that only score tokens

    def infer_batch(self, data: TensorDict, loss_function: Callable | None = None) -> Any:
        """verl's, after which the noise of the log-probs is measured.

        Args:
            data: verl's batch of this rank, jagged.
            loss_function: None where tokens are scored.
        """
        outputs = super().infer_batch(data, loss_function)
        if loss_function is None and self.is_mp_src_rank_with_outputs() and not self.use_ulysses_sp:
            self._measure_noise(data, outputs["model_output"]["log_probs"])
        return outputs

    def _measure_noise(self, data: TensorDict, log_probs: Tensor) -> None:
        """Score this rank's first sequence again, alone: how far its log-probs depend on what it was packed with.

        Differences of log-probs below this say nothing; DASD divides by some.  The next update tells it as
        `log_prob_noise/max`: the largest absolute difference, in nats, of the passes since the last one.
        """
        alone = tu.index_select_tensor_dict(data, [0])
        tu.assign_non_tensor(
            alone, micro_batch_size_per_gpu=1, **{CALCULATE_GRADIENT_NORM: False, CALCULATE_ATTENTION_ENTROPY: None}
        )
        again = super().infer_batch(alone)["model_output"]["log_probs"].values()
        length = int(data["loss_mask"].offsets()[1])
        first = log_probs.unbind()[0]
        difference = (again[-length - 1 : -1].float() - first[-length - 1 : -1].to(again.device).float()).abs()
        self._noise = max(self._noise or 0.0, float(difference.max()) if length else 0.0)

    def _score_tokens(self, micro_batch: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        """verl's forward step for log-probs and entropies, from hidden states of the response's rows, in fp32.

        With them what the batch asks for of the norm of the log-prob's gradient and of the attention's entropy.
        The outputs are verl's, jagged (B, prompt_i + response_i), with zeros in the prompts.
        """
        ids, temperature = micro_batch["input_ids"], float(micro_batch["temperature"])
        response_offsets = micro_batch["loss_mask"].offsets()
        rows = response_rows(ids.offsets(), response_offsets)
        token_ids, total = ids.values()[rows + 1], ids.values().shape[0]
        norms = tu.get_non_tensor_data(micro_batch, CALCULATE_GRADIENT_NORM, default=False)
        layers = tu.get_non_tensor_data(micro_batch, CALCULATE_ATTENTION_ENTROPY, default=None)
        attention = AttentionEntropy(self.module, layers, ids.offsets(), response_offsets) if layers else None

        batch = micro_batch.select("input_ids", "position_ids")
        *earlier, (module, adapter, share) = self._mixed or [Voice(self.module, nullcontext, 1.0)]
        others, their_head = self._hidden_states(earlier, batch, rows) if earlier else (None, None)

        def statistics(hidden: Tensor, head: Tensor) -> Tensor:
            states = hidden[0].to(head.dtype)
            if others is not None:
                states = states * share
                states = others + states if their_head is None else torch.cat([others, states], -1)
                head = head if their_head is None else torch.cat([their_head, head], -1)
            found = hidden_statistics(states, head, token_ids, temperature=temperature, gradient_norm=norms)
            return torch.stack(found, -1)[None]

        watched = attention_watched(self.module, attention) if attention else nullcontext()
        with adapter(), head_computes(module, statistics), watched:
            found = self._forward(module, batch, rows).unbind(-1)
        values = {"log_probs": found[0]}
        if tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False):
            values["entropy"] = found[1]
        if norms:
            values[GRADIENT_NORM] = found[2]
        if attention:
            values[ATTENTION_ENTROPY] = attention.mean()
        outputs = {
            name: torch.nested.nested_tensor_from_jagged(scatter_tokens(value, rows, total), ids.offsets())
            for name, value in values.items()
        }
        return torch.ones((), device=get_device_name()), {"model_output": outputs, "loss": 1.0, "metrics": {}}


def _device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def _rows(batch: TensorDict, rows: list[int]) -> TensorDict:
    return tu.index_select_tensor_dict(batch, rows)
