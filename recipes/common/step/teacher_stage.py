"""The teacher as a stage of the step, between the student's log-probs and the advantages, and again after the update.

`TeacherStage.scores` shows the teacher its references (as much of them as the exposure allows) and lets it score the
student's tokens.  `TeacherStage.after_update` measures the probe where one is due and tells the exposure's controller
what the update did.  A divergence has its teacher inside the training worker; the stage then only writes the teacher's
sequences beside the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict

from recipes.common.method import Method
from recipes.common.metric_names import TEACHER_TOKENS
from recipes.common.step.signals import Rewards
from recipes.common.teacher import probe
from recipes.common.teacher.contexts import PrivilegedPrompts, Response, has_context, shown_texts
from recipes.common.teacher.decisions import Observation
from recipes.common.teacher.exposure import ExposureLoop
from recipes.common.teacher.sequences import TeacherBatch, TeacherLogProbs, plain, teacher_batch, teacher_log_probs
from workers.training.packing import TEACHER_IDS, TEACHER_POSITIONS

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scored:
    """What the stage leaves to the step.

    Attributes:
        log_probs: what the teacher says of the response tokens; None where nothing asked for it.
        has_teacher: (B,) bool, rows that it had something to be shown for; None where all of them always have.
        metrics: of the prompts, and what scoring them cost.
    """

    log_probs: TeacherLogProbs | None
    has_teacher: torch.Tensor | None
    metrics: dict[str, float]


class TeacherStage:
    """The privileged teacher of a run, its exposure and its probe.

    Args:
        method: its teacher takes part.
        cfg: the run's configuration; read for lengths, chat template options and temperature.
        worker_group: of verl's actor, whose workers score sequences.
        total_steps: of the run, for the controller's schedule.
    """

    def __init__(
        self,
        method: Method,
        cfg: DictConfig,
        tokenizer: PreTrainedTokenizerBase,
        worker_group: Any,
        *,
        total_steps: int,
    ) -> None:
        self.method, self.cfg = method, cfg
        self.tokenizer, self.worker_group = tokenizer, worker_group
        self.prompts = PrivilegedPrompts(
            tokenizer=tokenizer,
            context=method.context,
            max_length=method.max_prompt_length,
            template_kwargs={**cfg.data.apply_chat_template_kwargs, **method.template_kwargs},
            separator=method.exposure.separator,
        )
        self.exposure: ExposureLoop | None = None
        if method.controller is not None:
            self.exposure = ExposureLoop(method.exposure, replace(method.controller, total_steps=total_steps))

    def scores(self, batch: KVBatchMeta, rewards: Rewards, *, step: int, wanted: bool) -> Scored:
        """Show the teacher its prompts for a batch, and score the student's tokens where that is needed.

        Args:
            rewards: of the batch; they decide which responses are shown as siblings, and exposures by difficulty.
            step: the training step, for contexts that are drawn.
            wanted: score even where the credit does not need it, for the samples that people look at.
        """
        method, cfg = self.method, self.cfg
        exposures = None if self.exposure is None else self.exposure.of_responses(rewards.scores, rewards.groups)
        teacher = teacher_batch(
            batch,
            self.prompts,
            method.contexts,
            groups=rewards.groups,
            correct=rewards.correct,
            feedback=rewards.feedback,
            step=step,
            exposures=exposures,
        )
        if method.loss.active:
            _attach(batch, teacher)
        has_teacher = teacher.has_teacher if method.contexts.may_be_missing else None
        if not (method.scores_with_teacher or wanted):
            return Scored(None, has_teacher, teacher.metrics)
        scored = teacher_log_probs(
            batch,
            teacher,
            self.worker_group,
            weights=method.scoring_weights,
            workers=cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes,
            temperature=cfg.actor_rollout_ref.rollout.temperature,
        )
        return Scored(scored, has_teacher, {**teacher.metrics, TEACHER_TOKENS: scored.tokens})

    def validation_prompts(self, rows: Sequence[dict[str, Any]], *, step: int) -> list[list[int] | None]:
        """Token ids of the teacher's prompt for each validation problem; None where there is nothing to show it.

        The exposure is the one in force; where it follows the difficulty of a batch's problems, that of the middle.

        Args:
            rows: of the data set, by column.
            step: the training step, for contexts that are drawn.
        """
        exposure = 1.0 if self.exposure is None else self.exposure.current()
        responses = [Response({name: plain(value) for name, value in row.items()}, group=None) for row in rows]
        contexts = self.method.contexts
        texts: list[tuple[str, str] | None] = [None] * len(rows)
        for kind in (contexts.kinds[0], *([contexts.fallback] if contexts.fallback else [])):
            missing = [i for i, text in enumerate(texts) if text is None]
            usable = [i for i in missing if has_context(kind, responses[i].row)]
            of_kind = shown_texts(kind, [responses[i] for i in usable], contexts, step=step)
            for i, found in zip(usable, of_kind, strict=True):
                texts[i] = (kind, found[0]) if found else None
        shown = [
            None if text is None else self.prompts.showing(text[0], response.row, text[1], exposure).token_ids
            for text, response in zip(texts, responses, strict=True)
        ]
        self.prompts.clear()
        return shown

    @cached_property
    def _probe(self) -> probe.Probe:
        exposure = self.method.exposure
        return probe.load_probe(
            exposure.probe_file or "",
            exposure.probe_size,
            self.tokenizer,
            max_tokens=self.cfg.data.max_response_length,
            template_kwargs=self.cfg.data.apply_chat_template_kwargs,
        )

    def probe_due(self, step: int) -> bool:
        """Whether `after_update` will measure the probe after this step."""
        return self.exposure is not None and self.exposure.probe_due(step)

    def after_update(self, observed: Observation, step: int) -> dict[str, float]:
        """Measure the probe where it is due, and let the exposure's controller take in the update that was just made.

        Args:
            observed: what the update showed; the probe's numbers are added here.

        Returns:
            The metrics of probe and exposure; {} where all of the reference is shown.
        """
        if self.exposure is None:
            return {}
        measured: probe.Measured | None = None
        if self.exposure.probe_due(step):
            workers = self.cfg.trainer.n_gpus_per_node * self.cfg.trainer.nnodes
            measured = probe.measure(
                self._probe,
                self.worker_group,
                self.prompts,
                exposure=self.exposure.current(),
                teacher_weights=self.method.scoring_weights,
                workers=workers,
                fixed_exposure=self.exposure.controller.config.progress_signal == "fixed_exposure_probe",
            )
            observed = replace(observed, probe_nll=measured.nll, grounded=measured.grounded, probe_loss=measured.loss)
        return {**(measured.metrics() if measured else {}), **self.exposure.observe(observed)}

    def save(self, checkpoint: Path) -> None:
        """Write what the exposure's controller remembers into a checkpoint's folder."""
        if self.exposure is not None:
            self.exposure.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint.  Raises RuntimeError where it holds no controller though one is needed."""
        if self.exposure is not None:
            self.exposure.load(checkpoint)


def _attach(batch: KVBatchMeta, teacher: TeacherBatch) -> None:
    """Write the teacher's sequences beside the batch's other fields, for a loss with the teacher in the worker."""
    fields = {TEACHER_IDS: teacher.fields["input_ids"], TEACHER_POSITIONS: teacher.fields["position_ids"]}
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
    )
