"""The teacher as a stage of the step, between the student's log-probs and the advantages, and again after the update.

`TeacherStage.scores` shows the teacher its references (as much of them as the exposure allows) and lets it score the
student's tokens.  `TeacherStage.after_update` measures the probe where one is due and tells the exposure's controller
what the update did.  A divergence has its teacher inside the training worker; the stage then only writes the teacher's
sequences beside the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict

from recipes.common.method import Method
from recipes.common.metric_names import PROBE_COUNTERFACTUAL, TEACHER_TOKENS
from recipes.common.step.signals import Rewards
from recipes.common.step.update import take_update
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
        self._counterfactual: float | None = None  # the probe's loss after the update that was taken back
        self.exposure: ExposureLoop | None = None
        if method.controller is not None:
            self.exposure = ExposureLoop(method.exposure, replace(method.controller, total_steps=total_steps))

    def scores(self, batch: KVBatchMeta, rewards: Rewards, *, step: int, wanted: bool) -> Scored:
        """Show the teacher its prompts for a batch, and score the student's tokens where that is needed.

        Args:
            batch: the global batch.
            rewards: of the batch; they decide which responses are shown as siblings, and exposures by difficulty.
            step: the training step, for contexts that are drawn.
            wanted: score even where the credit does not need it, for the samples that people look at.
        """
        method, cfg = self.method, self.cfg
        exposures = None
        if self.exposure is not None:
            # Names only where they are used: they are made of the batch's prompts.
            problems = [None] * len(batch) if self.exposure.accuracy is None else problem_names(batch)
            exposures = self.exposure.of_responses(problems, rewards.correct)
        teacher = self._batch(batch, rewards, step, exposures)
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
            entropy="teacher_entropy" in method.signals,
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

    def _batch(
        self, batch: KVBatchMeta, rewards: Rewards, step: int, exposures: Sequence[float] | None
    ) -> TeacherBatch:
        return teacher_batch(
            batch,
            self.prompts,
            self.method.contexts,
            groups=rewards.groups,
            correct=rewards.correct,
            feedback=rewards.feedback,
            step=step,
            exposures=exposures,
        )

    @property
    def counterfactual_due(self) -> bool:
        """Whether the update to come is to be tried at another exposure first."""
        return self.exposure is not None and self.exposure.controller.counterfactual_due

    def try_update(
        self, batch: KVBatchMeta, rewards: Rewards, *, step: int, update: Callable[[KVBatchMeta, dict], Any]
    ) -> dict[str, float]:
        """Make the update at the counterfactual exposure, measure the probe, and take the update back.

        Args:
            batch, rewards, step: as in `scores`, which has written the teacher's sequences at the exposure in force.
            update: makes an update of the batch as it is, and fills in what verl tells of it.

        Returns:
            The metric of the probe's loss; {} where no weights moved.

        Raises:
            RuntimeError: if the run has no exposure to change.
        """
        if self.exposure is None:
            raise RuntimeError("an update is tried at another exposure, but all of the reference is shown")
        config = self.exposure.controller.config
        fields = [TEACHER_IDS, TEACHER_POSITIONS]
        in_force = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        _attach(batch, self._batch(batch, rewards, step, [config.counterfactual_exposure] * len(batch)))
        self.worker_group.keep_state()
        self._counterfactual = None
        told: dict[str, Any] = {}
        update(batch, told)
        if take_update(told).made:
            # At full exposure the grounded score is the fixed exposure's, which saves a pass.
            measured = self._measure(exposure=1.0, fixed_exposure=False)
            self._counterfactual = measured.grounded + measured.nll
        self.worker_group.put_back_state()
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({name: in_force[name] for name in fields}, batch_size=len(batch.keys)),
        )
        return {} if self._counterfactual is None else {PROBE_COUNTERFACTUAL: self._counterfactual}

    def _measure(self, *, exposure: float, fixed_exposure: bool) -> probe.Measured:
        return probe.measure(
            self._probe,
            self.worker_group,
            self.prompts,
            exposure=exposure,
            teacher_weights=self.method.scoring_weights,
            workers=self.cfg.trainer.n_gpus_per_node * self.cfg.trainer.nnodes,
            fixed_exposure=fixed_exposure,
        )

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
            step: the training step.

        Returns:
            The metrics of probe and exposure; {} where all of the reference is shown.
        """
        if self.exposure is None:
            return {}
        measured: probe.Measured | None = None
        if self.exposure.probe_due(step):
            config = self.exposure.controller.config
            measured = self._measure(exposure=self.exposure.current(), fixed_exposure=config.measures_probe_loss)
            observed = replace(
                observed,
                probe_nll=measured.nll,
                grounded=measured.grounded,
                probe_loss=measured.loss,
                counterfactual_loss=self._counterfactual,
            )
            self._counterfactual = None
        return {**(measured.metrics() if measured else {}), **self.exposure.observe(observed)}

    def save(self, checkpoint: Path) -> None:
        """Write what the exposure's controller remembers into a checkpoint's folder."""
        if self.exposure is not None:
            self.exposure.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            RuntimeError: if it holds no controller though one is needed.
        """
        if self.exposure is not None:
            self.exposure.load(checkpoint)


def problem_names(batch: KVBatchMeta) -> list[str | None]:
    """A name of each response's problem that lasts over steps and files: a hash of the prompt; None in filler rows."""
    prompts = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts"])["prompts"]
    return [
        None if tag.get("is_padding", False) else blake2b(ids.numpy().tobytes(), digest_size=8).hexdigest()
        for ids, tag in zip(prompts.unbind(), batch.tags, strict=True)
    ]


def _attach(batch: KVBatchMeta, teacher: TeacherBatch) -> None:
    """Write the teacher's sequences beside the batch's other fields, for a loss with the teacher in the worker."""
    fields = {TEACHER_IDS: teacher.fields["input_ids"], TEACHER_POSITIONS: teacher.fields["position_ids"]}
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
    )
