"""verl's synchronous trainer, whose steps are written down: stages for the console, records, checkpoints, resume.

Nothing here knows of a teacher.  A run says what it does at every moment, ends after a step when it is asked to, and
what it saves is enough to repeat an uninterrupted run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipes.common import metric_names as names
from recipes.common.record import checkpoints
from recipes.common.record import run_dir as files
from recipes.common.record.collapse import Watch, collapse_params, watch
from recipes.common.step.update import SkipBudget
from recipes.common.step.validation import validation_metrics


class RecordedTrainer(PPOTrainerSync):
    """What every run writes and goes on from; `save_own` and `load_own` are a subclass's part of a checkpoint."""

    def __init__(self, config: DictConfig):
        super().__init__(config)
        self.settings = config.self_distill
        self.run_dir = Path(self.settings.run_dir)
        self.replay_buffer.poll_interval = self.settings.poll_seconds
        self.skips = SkipBudget(self.settings.max_skipped_updates)
        self.collapse, self.watch = collapse_params(self.settings), Watch()
        self._ends = False  # after this step, because of a collapse
        self._done: tuple[KVBatchMeta, dict] | None = None  # batch and metrics of the step that is to be saved
        self._unrecorded: dict[str, Any] | None = None
        self.stage("starting workers")

    def _setup(self) -> None:
        super()._setup()
        if self.config.trainer.nnodes > 1:
            files.require_shared(self.run_dir, self.actor_rollout_wg.read_here)

    def stage(self, name: str) -> None:
        """Say what the run does now."""
        files.set_stage(self.run_dir, name, getattr(self, "global_steps", 0))

    def safe_ground(self) -> str:
        """A sentence for errors: where the run can go on from."""
        return checkpoints.safe_ground(self.run_dir)

    def save_own(self, folder: Path) -> None:
        """Write what a subclass remembers into a checkpoint's folder."""

    def load_own(self, folder: Path) -> None:
        """Continue from what `save_own` wrote."""

    @property
    def logger(self) -> Any:
        """Where verl writes the step's metrics; setting it adds the run's own file."""
        return self._tracking

    @logger.setter
    def logger(self, tracking: Any) -> None:
        # verl's own file logger truncates its file on resume, so ours joins the others here.
        tracking.logger["metrics.jsonl"] = files.MetricsFile(self.run_dir)
        if "tensorboard" in tracking.logger:  # the others have the run's place in its configuration
            tracking.logger["tensorboard"].writer.add_text("report", str(self.run_dir / files.REPORT))
        self._tracking = tracking
        if self._unrecorded is not None:
            tracking.log(data=self._unrecorded, step=self.global_steps)

    # ------------------------------------------------------------------ around steps

    def on_sample_begin(self) -> None:
        """Say that responses are being sampled, and wait for them."""
        super().on_sample_begin()
        self.stage("rollout")
        # verl looks for finished prompts every `poll_seconds`; a manager that can say when they all are saves half
        # of that in every step.
        if hasattr(self.agent_loop_manager, "wait"):
            self.agent_loop_manager.wait()

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """Make verl's step, and remember what it was made of for the record."""
        batch = super().step(metrics, timing_raw)
        self._done = batch, metrics
        return batch

    def watch_for_collapse(self, values: dict[str, float | None]) -> dict[str, float]:
        """Take in a step's entropy, length and reward (`collapse.SIGNS`), and decide whether the run ends after it.

        Returns:
            The metrics that say so.
        """
        if self.collapse.patience is None:
            return {}
        self.watch = watch(self.watch, values, self.collapse)
        metrics: dict[str, float] = {names.OUTSIDE: self.watch.steps_outside}
        collapsed = self.watch.collapsed(self.collapse)
        if collapsed:
            good = self._last_good_checkpoint()
            metrics[names.LAST_GOOD] = self.global_steps - self.watch.steps_outside
            metrics[names.LAST_GOOD_CHECKPOINT] = -1 if good is None else good
            for name in collapsed:
                metrics[names.COLLAPSED.format(name)] = self.watch.signs[name].outside
                metrics[names.COLLAPSE_LEVEL.format(name)] = self.watch.level(name)
        self._ends = bool(collapsed) and self.collapse.stop and self.global_steps < self.total_training_steps
        return {**metrics, names.COLLAPSE_STOPS: 1} if self._ends else metrics

    def _last_good_checkpoint(self) -> int | None:
        """Step of the last checkpoint from before entropy, length or reward left their bands."""
        folder = Path(self.config.trainer.default_local_dir)
        return checkpoints.last_until(folder, self.global_steps - self.watch.steps_outside)

    def on_step_end(self) -> None:
        """Save and end where the run is asked to, and then bring the weights to the rollout."""
        asked = self._ends or (self.run_dir / files.STOP).exists()
        if asked and self.global_steps < self.total_training_steps:
            if files.checkpointed_step(self.run_dir) != self.global_steps:
                self._save_checkpoint()
            self.total_training_steps = self.global_steps  # verl's loop ends after this step's metrics are written
        self.stage("weight sync")
        super().on_step_end()

    def _validate(self) -> dict[str, float]:
        self.stage("validation")
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

    # ------------------------------------------------------------------ checkpoints

    def _load_checkpoint(self) -> None:
        self.stage("loading checkpoint")
        super()._load_checkpoint()
        step = self.global_steps
        if step == 0:
            files.forget_metrics_after(self.run_dir, -1)  # of a run that was killed before its first checkpoint
            return
        folder = checkpoints.resumed_folder(self.config)
        self.load_own(folder)
        state = checkpoints.saved_state(folder)
        self.skips.total = state.get("skipped_updates", 0)
        self.watch = Watch.from_json(state.get("collapse", {}))
        files.forget_metrics_after(self.run_dir, step)
        # A run that ended between its checkpoint and the end of that step has neither its record nor its validation.
        if not files.has_step(self.run_dir, step):
            self._unrecorded = checkpoints.saved_record(folder)
        missing = checkpoints.validation_missing(self.config, step, self.total_training_steps)
        self.config.trainer.val_before_train = missing

    def _record_so_far(self) -> dict[str, Any]:
        """What `metrics.jsonl` will say of the step that is being saved, but for weight sync and validation."""
        if self._done is None:
            raise RuntimeError("a checkpoint is of a step, and none was made")
        batch, metrics = self._done
        record, seconds = dict(metrics), {k: v for k, v in self.timing_raw.items() if k != "step"}
        seconds["step"] = sum(seconds.values())
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        self._compute_metrics(batch, record, seconds, global_steps=self.global_steps, epoch=epoch)
        return record

    def _save_checkpoint(self) -> None:
        self.stage("checkpoint")
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        try:
            # First: verl's tracker, written last, is what makes a checkpoint complete.
            checkpoints.write_fingerprint(folder, self.config)
            checkpoints.save_record(folder, self._record_so_far())
            checkpoints.save_state(folder, {"skipped_updates": self.skips.total, "collapse": self.watch.to_json()})
            self.save_own(folder)
            super()._save_checkpoint()
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)  # frees what the broken attempt took
            raise RuntimeError(
                f"could not save the checkpoint of step {self.global_steps} into {folder} "
                f"({checkpoints.reason(error)}). {self.safe_ground()}"
            ) from error
        # After the tracker names the new checkpoint, and not before, old ones may go.
        spare = self._last_good_checkpoint() if self.watch.steps_outside else None
        checkpoints.prune(folder.parent, self.global_steps, self.settings.keep_checkpoints, spare)
