"""verl's synchronous trainer with the self-teacher's stage between log-probs and advantages.

Everything that verl's `PPOTrainerSync` does stays verl's; `recorded.py` adds what a run writes.  Added here, at verl's
stages: an order of rows that does not depend on timing (so that a resumed run repeats an uninterrupted one), the
teacher, the token signals around the advantage computation, the token weights of the divergence, and checks that stop a
run before numbers go bad.  All methods run on this one class; what differs between them is a `Method`.
"""

from __future__ import annotations

from functools import cached_property
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
from verl.utils.debug import marked_timer
from verl.utils.tensordict_utils import assign_non_tensor_data

from advantage import token_signals
from recipes.common.method import read
from recipes.common.metric_names import ENTROPY, ROLLOUTS_MISSING, STUDENT_LOG_PROB
from recipes.common.record import samples
from recipes.common.record.checkpoints import CREDIT_MEMORY
from recipes.common.step.signals import (
    Rewards,
    Scores,
    corpus_counts,
    fetch_rewards,
    fetch_scores,
    silence_equal_groups,
    vital_signs,
)
from recipes.common.step.teacher_stage import Scored, TeacherStage
from recipes.common.step.teacher_validation import TeacherValidatingTrainer
from recipes.common.step.token_factors import forward_share, token_weights
from recipes.common.step.update import Update, observation, take_update
from rewards.metrics import reward_metrics
from workers.rollout.agent_loop import REFERENCE
from workers.training.worker import SelfDistillWorker

TRAINER_MODE = "self_distill"


@register_trainer(TRAINER_MODE)
class SelfDistillTrainer(TeacherValidatingTrainer):
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
        """Write what the teacher's stage remembers into a checkpoint's folder."""
        if self.method.remembers:
            save_file(self._memory, folder / CREDIT_MEMORY)
        if self.method.uses_teacher:
            self.teacher.save(folder)

    def load_own(self, folder: Path) -> None:
        """Continue from what `save_own` wrote."""
        if self.method.remembers:  # that the file is there was checked before anything started
            self._memory = load_file(folder / CREDIT_MEMORY)
        if self.method.uses_teacher:
            self.teacher.load(folder)

    # ------------------------------------------------------------------ stages of a step

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if self.method.trains_references:  # validation still samples: it does not pass here
            assign_non_tensor_data(batch, "agent_name", REFERENCE)
        return super()._submit_batch_to_rollout(batch)

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
            for factors in (
                token_weights(self.method, signals, scores, self.rewards),
                forward_share(self.method, signals, scores, self.rewards),
            ):
                if factors is not None:
                    factors.put(batch, scores.nested_mask)
                    metrics.update(factors.metrics)
                    fields[factors.name] = factors.values
            batch = super()._compute_advantage(batch, metrics)
        silence_equal_groups(batch, self.rewards, self.method.credit)
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

    @cached_property
    def _token_counts(self) -> torch.Tensor:
        return corpus_counts(self.tokenizer, self.train_dataset.dataframe)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.method.truncates and self.teacher.counterfactual_due:
            self.stage("update at another exposure")
            update = super()._update_actor
            metrics.update(self.teacher.try_update(batch, self.rewards, step=self.global_steps, update=update))
        self.stage("update")
        batch = super()._update_actor(batch, metrics)
        self.update = update = take_update(metrics)
        if not self._student_scores_due() and update.student_log_prob is not None:
            metrics |= {ENTROPY: update.student_entropy, STUDENT_LOG_PROB: update.student_log_prob}
        metrics.update(self.skips.count(update, step=self.global_steps, safe_ground=self.safe_ground()))
        return batch

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """Make a step, watch for collapse, and let the exposure's controller take in what the update showed."""
        batch = super().step(metrics, timing_raw)
        metrics.update(self.watch_for_collapse(vital_signs(batch, self.scores, self.rewards, metrics.get(ENTROPY))))
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
