"""verl's synchronous trainer with the self-teacher's stage between log-probs and advantages.

Everything that verl's `PPOTrainerSync` does stays verl's; `recorded.py` adds what a run writes.  Added here, at verl's
stages: an order of rows that does not depend on timing (so that a resumed run repeats an uninterrupted one), the
teacher, the token signals around the advantage computation, the token weights of the divergence, and checks that stop a
run before numbers go bad.  All methods run on this one class; what differs between them is a `Method`.
"""

from __future__ import annotations

import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer
from verl.utils.tensordict_utils import assign_non_tensor_data
from verl.workers.utils.padding import response_to_nested

from advantage import TokenSignals, token_signals
from advantage.token_weights import forward_shares, weigh_tokens
from recipes.common.method import read
from recipes.common.metric_names import ENTROPY, ROLLOUTS_MISSING, STUDENT_LOG_PROB
from recipes.common.record import samples
from recipes.common.record.checkpoints import CREDIT_MEMORY
from recipes.common.step.recorded import RecordedTrainer
from recipes.common.step.signals import (
    Rewards,
    Scores,
    corpus_counts,
    fetch_rewards,
    fetch_scores,
    silence_equal_groups,
)
from recipes.common.step.teacher_stage import Scored, TeacherStage
from recipes.common.step.teacher_validation import PrivilegedProblems, teacher_metrics
from recipes.common.step.update import Update, observation, take_update
from rewards.metrics import reward_metrics
from workers.rollout.agent_loop import REFERENCE
from workers.training.packing import FORWARD_SHARES, WEIGHTS
from workers.training.worker import SelfDistillWorker

TRAINER_MODE = "self_distill"


@register_trainer(TRAINER_MODE)
class SelfDistillTrainer(RecordedTrainer):
    """The trainer of every method in this package."""

    rewards: Rewards  # of the step's batch
    scores: Scores

    def __init__(self, config: DictConfig):
        self.method = read(config)
        with open_dict(config):
            # verl found this class by the mode's name; from here on it takes every mode but "sync" for asynchronous.
            config.trainer.v1.trainer_mode = "sync"
            if self.method.uses_teacher:
                # Of the whole configuration workers see this node only.
                config.actor_rollout_ref.self_distill = config.self_distill
            elif (linear := config.self_distill.linear_decay_steps) is not None:
                config.actor_rollout_ref.self_distill = {"linear_decay_steps": linear}
        super().__init__(config)
        self.update: Update | None = None  # of the step
        self._scored: Scored | None = None  # by the teacher, of the step's batch
        self._teacher_answers = False  # the validation that goes on is the teacher's
        self._memory: dict[str, torch.Tensor] = {}  # what the credit of the next step must know of those before it

    # ------------------------------------------------------------------ set-up

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        worker = ray.remote(SelfDistillWorker)
        for role in [r for r in self.role_worker_mapping if r is not Role.Critic]:
            self.role_worker_mapping[role] = worker

    def _setup(self) -> None:
        super()._setup()
        # verl's slot for a reference policy lies where the teacher belongs. Whether there are workers for a reference
        # was decided above; from here on the flag only opens the slot.
        self.with_reference = self.use_reference_policy
        if self.method.uses_teacher and not self.with_reference:
            self.use_reference_policy, self.ref_policy_wg = True, self.actor_rollout_wg

    @cached_property
    def teacher(self) -> TeacherStage:
        """Made when the number of steps is known."""
        return TeacherStage(
            self.method, self.config, self.tokenizer, self.actor_rollout_wg, total_steps=self.total_training_steps
        )

    def save_own(self, folder: Path) -> None:
        if self.method.remembers:
            save_file(self._memory, folder / CREDIT_MEMORY)
        if self.method.uses_teacher:
            self.teacher.save(folder)

    def load_own(self, folder: Path) -> None:
        if self.method.remembers:  # that the file is there was checked before anything started
            self._memory = load_file(folder / CREDIT_MEMORY)
        if self.method.uses_teacher:
            self.teacher.load(folder)

    # ------------------------------------------------------------------ stages of a step

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if self.method.trains_references:  # validation still samples: it does not pass here
            assign_non_tensor_data(batch, "agent_name", REFERENCE)
        return super()._submit_batch_to_rollout(batch)

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        every = self.settings.teacher.test_freq
        due = every > 0 and (self.global_steps % every == 0 or self.global_steps >= self.total_training_steps)
        return {**metrics, **self._validate_teacher()} if due else metrics

    def _validate_teacher(self) -> dict[str, float]:
        """verl's validation pass once more, with the teacher's prompts."""
        self.stage("teacher's validation")
        usual, began = self.val_dataloader, time.perf_counter()
        problems = PrivilegedProblems(usual, partial(self.teacher.validation_prompts, step=self.global_steps))
        self.val_dataloader, self._teacher_answers = problems, True
        try:
            found = PPOTrainerSync._validate(self)
        finally:
            self.val_dataloader, self._teacher_answers = usual, False
        return teacher_metrics(found, problems, time.perf_counter() - began)

    def _maybe_log_val_generations(self, inputs: list[str], outputs: list[str], scores: list[float]) -> None:
        if not self._teacher_answers:
            super()._maybe_log_val_generations(inputs, outputs, scores)

    def _dump_generations(self, *args: Any, **kwargs: Any) -> None:
        if not self._teacher_answers:  # both would be one file, which is the student's
            super()._dump_generations(*args, **kwargs)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        if len(batch) == 0:
            raise RuntimeError(f"every rollout of step {self.global_steps} failed; train.log has the first error")
        # Rollouts finish in any order under random group ids; training must see them in one order.
        index = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])["index"]
        position = [(int(i), key.split("_")[1:], key) for i, key in zip(index, batch.keys, strict=True)]
        batch.reorder(sorted(range(len(batch)), key=position.__getitem__))
        wanted = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics[ROLLOUTS_MISSING] = wanted - len(batch)
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        self.rewards, self._scored = fetch_rewards(batch), None
        return batch

    def _student_scores_due(self) -> bool:
        # A rollout that reports its own log-probs is compared with the actor's, whatever is trained.
        compared = self.config.actor_rollout_ref.rollout.calculate_log_probs
        return self.method.scores_student or compared or self._samples_due()

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if not self._student_scores_due():
            return batch
        self.stage("student log-probs")
        # Options stick to the batch that they were set on, and other passes are not to measure it again.
        options = self.method.measures
        batch.extra_info.update(options)
        scored = super()._compute_old_log_prob(batch, metrics)
        for meta in (batch, scored):
            for name in options:
                meta.extra_info.pop(name, None)
        return scored

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.with_reference:
            batch = super()._compute_ref_log_prob(batch, metrics)
        if self.method.uses_teacher:
            self.stage("teacher log-probs" if self.method.scores_with_teacher else "teacher prompts")
            self._scored = self.teacher.scores(batch, self.rewards, step=self.global_steps, wanted=self._samples_due())
            metrics.update(self._scored.metrics)
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.stage("advantages")
        taught = self._scored
        self.scores = scores = fetch_scores(
            batch,
            taught.log_probs if taught else None,
            taught.has_teacher if taught else None,
            student=self._student_scores_due(),
            measured=self.method.measured,
        )
        scores.check(step=self.global_steps, safe_ground=self.safe_ground())
        metrics.update(scores.metrics())
        fields: dict[str, torch.Tensor] = {}
        with token_signals(
            entropy=scores.entropy,
            log_prob_gap=scores.gap,
            contrast_gap=scores.contrast_gap,
            teacher_entropy=scores.teacher_entropy,
            has_teacher=scores.has_teacher,
            token_ids=scores.token_ids,
            **scores.measured,
            token_counts=self._token_counts if "token_counts" in self.method.signals else None,
            step=self.global_steps,
            total_steps=self.total_training_steps,
            memory=self._memory,
        ) as signals:
            # Where responses may lack a teacher they always carry weights, so that every step's batch looks alike.
            if self.method.token_weight or (self.method.loss.active and scores.has_teacher is not None):
                fields["divergence_weight"] = self._weigh(batch, metrics, signals)
            if self.method.mixing is not None:
                fields["forward_share"] = self._mix(batch, metrics, signals)
            batch = super()._compute_advantage(batch, metrics)
        if self.method.credit == "grpo":
            silence_equal_groups(batch, self.rewards)
        metrics.update(signals.diagnostics)
        self._memory |= signals.remembered
        if self._samples_due():
            known = {"entropy": scores.entropy, "teacher_entropy": scores.teacher_entropy, "delta": scores.gap}
            fields |= {name: values for name, values in known.items() if values is not None}
            samples.append(
                self.run_dir,
                self.global_steps,
                batch,
                self.tokenizer,
                rewards=self.rewards.scores,
                groups=self.rewards.groups,
                fields={**fields, **signals.tokens},
            )
        return batch

    def _samples_due(self) -> bool:
        return samples.due(self.config.trainer, self.global_steps, self.total_training_steps)

    def _weigh(self, batch: KVBatchMeta, metrics: dict, signals: TokenSignals) -> torch.Tensor:
        """The divergence's token factors, (B, T), also into the batch: workers see parts of it only.

        They are 0 in responses without a teacher, whose tokens still count in the mean.
        """
        factors = self.scores.taught.float()
        if self.method.token_weight is not None:
            factors, numbers = weigh_tokens(
                self.method.token_weight,
                self.method.weight_params,
                signals,
                response_mask=self.scores.mask,
                equal_reward_rows=self.rewards.equal_rows,
            )
            metrics.update(numbers)
        self._put(batch, WEIGHTS, factors)
        return factors

    def _mix(self, batch: KVBatchMeta, metrics: dict, signals: TokenSignals) -> torch.Tensor:
        """The tokens' shares of the forward KL, (B, T), also into the batch."""
        shares, numbers = forward_shares(
            self.method.mixing,
            self.method.mixing_params,
            signals,
            response_mask=self.scores.mask,
            equal_reward_rows=self.rewards.equal_rows,
        )
        metrics.update(numbers)
        self._put(batch, FORWARD_SHARES, shares)
        return shares

    def _put(self, batch: KVBatchMeta, name: str, values: torch.Tensor) -> None:
        """A field of the tokens, (B, T), beside the batch's others."""
        nested = {name: response_to_nested(values, self.scores.nested_mask)}
        fields = TensorDict(nested, batch_size=len(batch.keys))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    @cached_property
    def _token_counts(self) -> torch.Tensor:
        return corpus_counts(self.tokenizer, self.train_dataset.dataframe)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.method.truncates and self.teacher.counterfactual_due:
            self.stage("update at another exposure")
            make = super()._update_actor

            def tried() -> bool:
                told: dict = {}
                make(batch, told)
                return take_update(told).made

            metrics.update(self.teacher.try_update(batch, self.rewards, step=self.global_steps, update=tried))
        self.stage("update")
        batch = super()._update_actor(batch, metrics)
        self.update = update = take_update(metrics)
        if not self._student_scores_due() and update.student_log_prob is not None:
            metrics |= {ENTROPY: update.student_entropy, STUDENT_LOG_PROB: update.student_log_prob}
        metrics.update(self.skips.count(update, step=self.global_steps, safe_ground=self.safe_ground()))
        return batch

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        batch = super().step(metrics, timing_raw)
        sampled = [not tag.get("is_padding", False) for tag in batch.tags]
        length = self.scores.mask.sum(-1)[sampled].double().mean().item()
        reward = self.rewards.scores[sampled].double().mean().item()
        signs = {"entropy": metrics.get(ENTROPY), "length": length, "reward": reward}
        metrics.update(self.watch_for_collapse(signs))
        # Where every update was skipped there is nothing to observe.
        if self.method.truncates and self.update is not None and self.update.made:
            with marked_timer("probe", timing_raw):
                if self.teacher.probe_due(self.global_steps):
                    self.stage("probe")
                observed = observation(self.update, self.scores)
                metrics.update(self.teacher.after_update(observed, self.global_steps))
        return batch

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        if self.method.uses_teacher and "ref" in timing_raw:  # verl's name for the slot that the teacher is in
            timing_raw["teacher"] = timing_raw.pop("ref")
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        graded = self.rewards.graded  # of another reward function than ours there are no statuses
        metrics.update(reward_metrics(graded if all("status" in result for result in graded) else []))
