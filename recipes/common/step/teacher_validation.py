"""The teacher's own accuracy on the validation problems: what its prompt is worth, as answers and not as scores.

verl's validation pass does the work; it is handed the same problems under the teacher's prompts, as token ids, in the
place of the student's.  The rollout servers answer, and they hold the policy: a teacher with weights of its own
(frozen, ema, snapshot) is validated by its prompt under the policy's weights, which are its own where
`teacher.weights=current`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipes.common import metric_names as names
from recipes.common.step.recorded import RecordedTrainer
from workers.rollout.bursts import PROMPT_IDS

if TYPE_CHECKING:
    from recipes.common.step.teacher_stage import TeacherStage

CORE = "val-core/"  # how verl's and our own names of a validation's accuracies begin

Prompts = Callable[[Sequence[dict[str, Any]]], list[list[int] | None]]  # of rows; None for those without a context


class PrivilegedProblems:
    """verl's validation batches with the teacher's prompts; iterated over once.

    Args:
        batches: as verl's loader gives them: columns by name, each with a value a row.
        prompts: makes the teacher's.

    Attributes:
        rows, without: rows seen, and how many of them are left out because there is nothing to show the teacher.
    """

    def __init__(self, batches: Iterable[dict[str, Any]], prompts: Prompts) -> None:
        self.batches, self.prompts = batches, prompts
        self.rows = self.without = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            count = len(batch["raw_prompt"])
            rows = [{name: column[i] for name, column in batch.items()} for i in range(count)]
            prompts = self.prompts(rows)
            kept = [i for i, prompt in enumerate(prompts) if prompt is not None]
            self.rows, self.without = self.rows + count, self.without + count - len(kept)
            if kept:
                yield {name: column[kept] for name, column in batch.items()} | {PROMPT_IDS: [prompts[i] for i in kept]}


def teacher_metrics(found: Mapping[str, float], problems: PrivilegedProblems, seconds: float) -> dict[str, float]:
    """A validation's accuracies under the teacher's name.

    Args:
        found: of `recipes.common.step.validation.validation_metrics`.
        problems: those that were validated on, iterated over to their end.
        seconds: what it took.

    Returns:
        ``teacher/validation``, the mean over the sets; each set's mean and interval under it; the share of problems
        that were left out; the seconds.
    """
    accuracies = [value for name, value in found.items() if name.startswith(CORE) and "/mean@" in name]
    own = {f"{names.TEACHER_VALIDATION}/{k.removeprefix(CORE)}": v for k, v in found.items() if k.startswith(CORE)}
    mean = {names.TEACHER_VALIDATION: sum(accuracies) / len(accuracies)} if accuracies else {}
    return {
        **mean,
        **own,
        names.TEACHER_VALIDATION_WITHOUT: problems.without / max(problems.rows, 1),
        names.TEACHER_VALIDATION_SECONDS: seconds,
    }


class TeacherValidatingTrainer(RecordedTrainer):
    """A recorded trainer that also validates its teacher, every `teacher.test_freq` steps."""

    teacher: TeacherStage
    _teacher_answers = False  # the validation that goes on is the teacher's

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
