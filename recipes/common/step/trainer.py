"""verl's synchronous trainer with the self-teacher's scores between log-probs and advantages.

Everything that verl's `PPOTrainerSync` does stays verl's.  Added at its stages: the teacher's sequences and scores (for
methods whose credit or loss uses them), the token signals around the advantage computation, the token weights of the
divergence, the exposure controller after each update, checks that stop a run before numbers go bad, an order of rows
that does not depend on timing (so that a resumed run repeats an uninterrupted one), and what the console needs.  All
methods run on this one class; what differs between them is configuration (`self_distill.*`, `algorithm.*`).
"""

from __future__ import annotations

import math
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer
from verl.workers.utils.padding import response_to_nested

from advantage import token_signals
from advantage.signals import TokenSignals
from advantage.token_weights import token_weights
from recipes.common.record import checkpoints, samples
from recipes.common.record import run_dir as files
from recipes.common.settings import needed_signals, uses_teacher
from recipes.common.step.broken_numbers import BrokenNumbers, check_update
from recipes.common.step.validation import validation_metrics
from recipes.common.teacher import probe
from recipes.common.teacher.exposure import ExposureLoop, controller_config, exposure_params
from recipes.common.teacher.sequences import (
    PrivilegedPrompts,
    attach_teacher,
    plain,
    problem_of,
    score_with_teacher,
    teacher_batch,
)
from rewards.metrics import reward_metrics
from workers.training.packing import WEIGHTS
from workers.training.params import loss_params, teacher_weights
from workers.training.worker import SelfDistillWorker

TRAINER_MODE = "self_distill"
ENTROPY_QUANTILES = (0.2, 0.5, 0.8, 0.95)


@register_trainer(TRAINER_MODE)
class SelfDistillTrainer(PPOTrainerSync):
    """The trainer of every method in this package."""

    def __init__(self, config: DictConfig):
        with open_dict(config):
            # verl takes every mode but "sync" for an asynchronous one; ours was only needed to be found.
            config.trainer.v1.trainer_mode = "sync"
            if uses_teacher(config):
                # Of the whole configuration workers see this node only.
                config.actor_rollout_ref.self_distill = config.self_distill
        super().__init__(config)
        self.settings = config.self_distill
        self.run_dir = Path(self.settings.run_dir)
        self.replay_buffer.poll_interval = self.settings.poll_seconds
        self.signals = needed_signals(config)
        self.loss = loss_params(config.self_distill)
        self.scores_with_teacher = "log_prob_gap" in self.signals
        self._corpus_counts: torch.Tensor | None = None
        self._skipped = 0  # updates, in the whole run
        self._done: tuple[KVBatchMeta, dict] | None = None  # batch and metrics of the step that is to be saved
        self._unrecorded: dict[str, Any] | None = None
        self._stage("starting workers")

    # ------------------------------------------------------------------ set-up

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        worker = ray.remote(SelfDistillWorker)
        for role in [r for r in self.role_worker_mapping if r is not Role.Critic]:
            self.role_worker_mapping[role] = worker

    @property
    def teacher_weights(self) -> str:
        """Where the scoring teacher's weights are; see `score_with_teacher`."""
        weights = teacher_weights(self.settings)
        if weights.weights == "current":
            return "current"
        lora = self.config.actor_rollout_ref.model.get("lora_rank", 0) > 0
        return "engine_copy" if weights.needs_copy(lora=lora) else "frozen_adapter"

    @property
    def logger(self) -> Any:
        return self._tracking

    @logger.setter
    def logger(self, tracking: Any) -> None:
        # verl's own file logger truncates its file on resume, so ours joins the others here.
        tracking.logger["metrics.jsonl"] = files.MetricsFile(self.run_dir)
        self._tracking = tracking
        if self._unrecorded is not None:
            tracking.log(data=self._unrecorded, step=self.global_steps)

    def _stage(self, name: str) -> None:
        files.set_stage(self.run_dir, name, getattr(self, "global_steps", 0))

    # ------------------------------------------------------------------ stages of a step

    def on_sample_begin(self) -> None:
        super().on_sample_begin()
        self._stage("rollout")

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        if len(batch) == 0:
            raise RuntimeError(f"every rollout of step {self.global_steps} failed; train.log has the first error")
        # Rollouts finish in any order under random group ids; training must see them in one order.
        index = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])["index"]
        position = [(int(i), key.split("_")[1:], key) for i, key in zip(index, batch.keys, strict=True)]
        batch.reorder(sorted(range(len(batch)), key=position.__getitem__))
        missing = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n - len(batch)
        metrics["training/rollouts_missing"] = missing
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._stage("student log-probs")
        batch = super()._compute_old_log_prob(batch, metrics)
        if self.scores_with_teacher or self.loss.active:
            self._stage("teacher log-probs" if self.scores_with_teacher else "teacher prompts")
            with marked_timer("teacher", self.timing_raw):
                metrics.update(self._bring_in_teacher(batch))
        return batch

    @cached_property
    def _privileged_prompts(self) -> PrivilegedPrompts:
        teacher = self.settings.teacher
        return PrivilegedPrompts(
            tokenizer=self.tokenizer,
            context=teacher.context,
            max_length=teacher.max_prompt_length,
            template_kwargs={**self.config.data.apply_chat_template_kwargs, **teacher.template_kwargs},
            separator=self.settings.exposure.separator,
        )

    @cached_property
    def _exposure(self) -> ExposureLoop | None:
        params = exposure_params(self.settings)
        if not (params.active and uses_teacher(self.config)):
            return None
        return ExposureLoop(params, controller_config(self.settings, total_steps=self.total_training_steps))

    @cached_property
    def _probe(self) -> probe.Probe:
        params = exposure_params(self.settings)
        return probe.load_probe(
            params.probe_file,
            params.probe_size,
            self.tokenizer,
            max_tokens=self.config.data.max_response_length,
            template_kwargs=self.config.data.apply_chat_template_kwargs,
        )

    def _bring_in_teacher(self, batch: KVBatchMeta) -> dict[str, float]:
        exposures = None
        if self._exposure is not None:
            scores, groups = self._scores_and_groups(batch)
            exposures = self._exposure.of_responses(scores, groups)
        teacher = teacher_batch(batch, self._privileged_prompts, exposures)
        if self.loss.active:
            attach_teacher(batch, teacher)
        # A divergence has its teacher in the worker; samples of responses show the teacher's view all the same.
        if self.scores_with_teacher or self._samples_due():
            score_with_teacher(
                batch,
                self.actor_rollout_wg,
                teacher,
                weights=self.teacher_weights,
                temperature=self.config.actor_rollout_ref.rollout.temperature,
            )
        return teacher.metrics

    @staticmethod
    def _scores_and_groups(batch: KVBatchMeta) -> tuple[torch.Tensor, list[Any]]:
        """Rewards (B,) and the label of each response's group."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores", "uid"])
        return data["rm_scores"].to_padded_tensor(0.0).sum(-1), [plain(label) for label in data["uid"]]

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._stage("advantages")
        names = ["old_log_probs", "entropy", "responses"] + ["teacher_log_probs"] * self.scores_with_teacher
        nested = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask", *names]
        )
        absent = [name for name in names if name not in nested]
        if absent:  # TransferQueue leaves out what it does not have
            raise RuntimeError(f"verl did not provide {absent}, which the {self.config.algorithm.adv_estimator} needs")
        padded = nested.to_padded_tensor()
        mask = padded["response_mask"].bool()
        student, entropy = padded["old_log_probs"], padded["entropy"]
        teacher = padded["teacher_log_probs"] if self.scores_with_teacher else None
        self._check_numbers(mask, {"student log-probs": student, "entropy": entropy, "teacher log-probs": teacher})

        metrics["student/log_prob/mean"] = student[mask].mean().item()
        # numpy's: torch.quantile refuses more than 2**24 numbers, which a large batch has
        for q, value in zip(
            ENTROPY_QUANTILES, np.quantile(entropy[mask].float().numpy(), ENTROPY_QUANTILES), strict=True
        ):
            metrics[f"student/entropy/p{round(100 * q):02d}"] = float(value)
        gap = None
        if teacher is not None:
            metrics["teacher/log_prob/mean"] = teacher[mask].mean().item()
            gap = teacher.float() - student.float()
            metrics["teacher/log_prob_gap/mean"] = gap[mask].mean().item()
            metrics["teacher/log_prob_gap/abs_mean"] = gap[mask].abs().mean().item()
        with token_signals(
            entropy=entropy,
            log_prob_gap=gap,
            token_ids=padded["responses"],
            token_counts=self._token_counts() if "token_counts" in self.signals else None,
            step=self.global_steps,
            total_steps=self.total_training_steps,
        ) as signals:
            if self.loss.weighting != "uniform":
                metrics.update(self._write_token_weights(batch, nested["response_mask"], signals))
            batch = super()._compute_advantage(batch, metrics)
        metrics.update(signals.diagnostics)
        if self._samples_due():
            samples.append(self.run_dir, self.global_steps, batch, self.tokenizer, signals.tokens)
        return batch

    def _samples_due(self) -> bool:
        return samples.due(self.config.trainer, self.global_steps, self.total_training_steps)

    def _write_token_weights(self, batch: KVBatchMeta, mask: torch.Tensor, signals: TokenSignals) -> dict[str, float]:
        """The divergence's token factors into TransferQueue; here, because the workers see parts of the batch only."""
        scores, groups = self._scores_and_groups(batch)
        weights, metrics = token_weights(
            self.loss.weighting,
            self.config.algorithm,
            mask.to_padded_tensor(0).bool(),
            signals,
            scores=scores,
            groups=groups,
        )
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({WEIGHTS: response_to_nested(weights, mask)}, batch_size=len(batch.keys)),
        )
        return metrics

    def _token_counts(self) -> torch.Tensor:
        """How often each token id occurs in the training set's problems and solutions, (V,); counted once."""
        if self._corpus_counts is None:
            counts = torch.zeros(len(self.tokenizer), dtype=torch.long)
            for row in self.train_dataset.dataframe:
                text = f"{problem_of(row)}\n{row.get('solution') or ''}"
                counts += torch.bincount(torch.as_tensor(self.tokenizer.encode(text)), minlength=len(counts))
            self._corpus_counts = counts
        return self._corpus_counts

    def _check_numbers(self, mask: torch.Tensor, tensors: dict[str, torch.Tensor | None]) -> None:
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.dtype != torch.float32 and self.scores_with_teacher:
                raise RuntimeError(
                    f"{name} came back as {tensor.dtype}; dividing by their small median needs float32. On GPUs "
                    "install flash-attn (extra 'gpu'), whose cross-entropy works in float32; see docs/precision.md"
                )
            bad = int((~tensor[mask].isfinite()).sum())
            if bad:
                raise BrokenNumbers(
                    f"{bad} of {int(mask.sum())} {name} are NaN or infinite at step {self.global_steps}. "
                    f"{self._safe_ground()}"
                )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._stage("update")
        batch = super()._update_actor(batch, metrics)
        for name in [name for name in metrics if name.startswith("actor/divergence/")]:
            metrics[name.removeprefix("actor/")] = metrics.pop(name)
        self._skipped = check_update(
            metrics,
            before=self._skipped,
            budget=self.settings.max_skipped_updates,
            step=self.global_steps,
            safe_ground=self._safe_ground(),
        )
        # Where every update was skipped there is nothing to observe.
        if self._exposure is not None and math.isfinite(metrics["actor/grad_norm"]):
            with marked_timer("probe", self.timing_raw):
                metrics.update(self._observe_exposure(self._exposure, metrics))
        return batch

    def _observe_exposure(self, exposure: ExposureLoop, metrics: dict) -> dict[str, float]:
        """Measure the probe where it is due, and let the controller take in the update that was just made."""
        measured: dict[str, float] = {}
        if exposure.probe_due(self.global_steps):
            self._stage("probe")
            measured = probe.measure(
                self._probe,
                self.actor_rollout_wg,
                self._privileged_prompts,
                exposure=exposure.current(),
                teacher_weights=self.teacher_weights,
                workers=self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes,
                fixed_exposure=exposure.controller.config.progress_signal == "fixed_exposure_probe",
            )
        return {**measured, **exposure.observe(metrics, measured)}

    def _safe_ground(self) -> str:
        step = files.checkpointed_step(self.run_dir)
        if step is None:
            return "No checkpoint was saved before."
        return (
            f"The checkpoint of step {step} is complete; start again with hydra.run.dir={self.run_dir} to go on "
            "from it, with a lower learning rate or correction (algorithm.<method>.beta) if it happens again."
        )

    # ------------------------------------------------------------------ around steps

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        batch = super().step(metrics, timing_raw)
        self._done = batch, metrics
        return batch

    def on_step_end(self) -> None:
        if (self.run_dir / files.STOP).exists() and self.global_steps < self.total_training_steps:
            if files.checkpointed_step(self.run_dir) != self.global_steps:
                self._save_checkpoint()
            self.total_training_steps = self.global_steps  # verl's loop ends after this step's metrics are written
        self._stage("weight sync")
        super().on_step_end()

    def _validate(self) -> dict[str, float]:
        self._stage("validation")
        return super()._validate()

    def _val_metrics_update(
        self,
        data_sources: list[str],
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list[Any]],
        sample_turns: list[int],
        expected_acc_counts: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, float]:
        return validation_metrics(data_sources, sample_uids, reward_extra_infos_dict, expected_acc_counts)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        # Measured inside verl's stages: each second counts once.
        for inner, stage in (("teacher", "old_log_prob"), ("probe", "update_actor")):
            if inner in timing_raw:
                timing_raw[stage] -= timing_raw[inner]
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        metrics.update(reward_metrics(self._graded(batch)))

    @staticmethod
    def _graded(batch: KVBatchMeta) -> list[dict[str, Any]]:
        """What `rewards.math` said of each rollout; [] where another reward function, without statuses, is used."""
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        graded = [extra.get("reward_extra_info", {}) for extra in list(fields["extra_fields"])]
        return graded if all("status" in result for result in graded) else []

    # ------------------------------------------------------------------ checkpoints

    def _load_checkpoint(self) -> None:
        self._stage("loading checkpoint")
        super()._load_checkpoint()
        step = self.global_steps
        if step == 0:
            return
        folder = checkpoints.resumed_folder(self.config)
        if self._exposure is not None:
            self._exposure.load(folder)
        files.forget_metrics_after(self.run_dir, step)
        # A run that ended between its checkpoint and the end of that step has neither its record nor its validation.
        if not files.has_step(self.run_dir, step):
            self._unrecorded = checkpoints.saved_record(folder)
        records = [*files.read_metrics(self.run_dir), self._unrecorded or {}]
        self._skipped = int(sum(record.get("training/skipped_updates") or 0 for record in records))
        missing = checkpoints.validation_missing(self.config, step, self.total_training_steps)
        self.config.trainer.val_before_train = missing

    def _checkpoint_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"

    def _record_so_far(self) -> dict[str, Any]:
        """What `metrics.jsonl` will say of the step that is being saved, but for weight sync and validation."""
        if self._done is None:
            raise RuntimeError("a checkpoint is of a step, and none was made")
        batch, metrics = self._done
        record, seconds = dict(metrics), {k: v for k, v in self.timing_raw.items() if k != "step"}
        seconds["step"] = sum(v for k, v in seconds.items() if k not in ("teacher", "probe"))
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        self._compute_metrics(batch, record, seconds, global_steps=self.global_steps, epoch=epoch)
        return record

    def _save_checkpoint(self) -> None:
        self._stage("checkpoint")
        folder = self._checkpoint_folder()
        try:
            # First: verl's tracker, written last, is what makes a checkpoint complete.
            checkpoints.write_fingerprint(folder, self.config)
            checkpoints.save_record(folder, self._record_so_far())
            if self._exposure is not None:
                self._exposure.save(folder)
            super()._save_checkpoint()
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)  # frees what the broken attempt took
            raise RuntimeError(
                f"could not save the checkpoint of step {self.global_steps} into {folder} ({_reason(error)}). "
                f"{self._safe_ground()}"
            ) from error
        # After the tracker names the new checkpoint, and not before, old ones may go.
        checkpoints.prune(folder.parent, self.global_steps, self.settings.keep_checkpoints)


def _reason(error: Exception) -> str:
    """The cause inside Ray's wrapping, on one line."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
