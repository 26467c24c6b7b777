"""What a step knows of its responses and their tokens before the advantages: rewards, log-probs, entropy, gap.

Everything here is data of one step, fetched once.  The advantage, the divergence's token weights, the exposure
controller and the samples for people all use it, and the step's metrics are written from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.workers.utils.padding import response_from_nested

from advantage.estimators import equal_reward_rows
from recipes.common import metric_names as names
from recipes.common.step.broken_numbers import check_tokens
from recipes.common.teacher.contexts import problem_of
from recipes.common.teacher.sequences import TeacherLogProbs, plain

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta
    from transformers import PreTrainedTokenizerBase

ENTROPY_QUANTILES = (0.2, 0.5, 0.8, 0.95)


# verl's estimators of A_G, whose float32 mean leaves a rest where all rewards of a group are equal.
GROUP_RELATIVE = (AdvantageEstimator.GRPO, AdvantageEstimator.GRPO_VECTORIZED)


@dataclass(frozen=True)
class Rewards:
    """What the verifier said of each response, rows as in the batch.

    Attributes:
        scores: (B,) rewards.
        groups: label of the problem that each response answers.
        correct: (B) whether each response was successful: the reward function's ``acc``, else a reward above 0.
        feedback: (B) what the reward function says of each in words, its ``feedback``; "" where it says nothing.
        graded: what the reward function returned beside the reward; of verl's filler rows nothing.
    """

    scores: torch.Tensor
    groups: list[Any]
    correct: list[bool]
    feedback: list[str]
    graded: list[dict[str, Any]]

    @cached_property
    def equal_rows(self) -> torch.Tensor:
        """(B,) bool: rows of groups whose rewards are all equal."""
        return equal_reward_rows(self.scores, self.groups)

    @property
    def rounded_rows(self) -> torch.Tensor:
        """(B,) bool: of `equal_rows` those whose mean may be rounded (eight times 0.7): there A_G is not 0."""
        return self.equal_rows & (self.scores != self.scores.round())


def silence_equal_groups(batch: KVBatchMeta, rewards: Rewards, credit: str) -> None:
    """Make verl's A_G exactly 0 where all rewards of a group are equal: its float32 mean leaves up to 0.1.

    Estimators of this package are handed A_G without that rest; this is for those of `GROUP_RELATIVE`.

    Args:
        batch: keys of the batch, whose `advantages` and `returns` are there.
        rewards: of its rows.
        credit: name of the estimator that made A_G.
    """
    if credit not in GROUP_RELATIVE:
        return
    keys = [key for key, rounded in zip(batch.keys, rewards.rounded_rows.tolist(), strict=True) if rounded]
    if keys:
        fields = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["advantages", "returns"])
        silent = TensorDict({name: values * 0.0 for name, values in fields.items()}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=silent)


def fetch_rewards(batch: KVBatchMeta) -> Rewards:
    """The rewards of a batch; one look into TransferQueue."""
    fields = ["rm_scores", "uid", "extra_fields"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    said = [plain(of_row).get("reward_extra_info", {}) for of_row in data["extra_fields"]]
    real = [not tag.get("is_padding", False) for tag in batch.tags]
    scores = data["rm_scores"].to_padded_tensor(0.0).sum(-1)
    return Rewards(
        scores=scores,
        groups=[plain(label) for label in data["uid"]],
        correct=[bool(of_row.get("acc", score > 0)) for of_row, score in zip(said, scores.tolist(), strict=True)],
        feedback=[str(of_row.get("feedback") or "") for of_row in said],
        graded=[of_row for of_row, kept in zip(said, real, strict=True) if kept],
    )


@dataclass(frozen=True)
class Scores:
    """What student and teacher say of the sampled tokens; (B, T) each, padded, at the rollout's weights.

    Attributes:
        nested_mask: the response mask as verl keeps it, jagged (B, response_i).
        mask: bool.
        token_ids: the responses' ids.
        student: log p_S(o_t), nats, fp32; None where no pass was made for it.
        entropy: H_t of the student, nats, fp32; None likewise.
        teacher: log p_T(o_t), nats, fp32; None where no teacher scores.
        teacher_entropy: H_T of the teacher, nats, fp32; None where it was not asked for.
        contrast: log of the mean probability of o_t under the contexts that the teacher's is contrasted with, nats,
            fp32; None without them.
        has_teacher: (B,) bool; None where every row has one. The gaps of the others are 0.
        measured: what else the student's pass was asked to measure of each token, by the name of its signal, fp32.
    """

    nested_mask: torch.Tensor
    mask: torch.Tensor
    token_ids: torch.Tensor
    student: torch.Tensor | None
    entropy: torch.Tensor | None
    teacher: torch.Tensor | None
    teacher_entropy: torch.Tensor | None = None
    contrast: torch.Tensor | None = None
    has_teacher: torch.Tensor | None = None
    measured: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def taught(self) -> torch.Tensor:
        """(B, T) bool: valid tokens of responses that have a teacher."""
        return self.mask if self.has_teacher is None else self.mask & self.has_teacher[:, None]

    @cached_property
    def gap(self) -> torch.Tensor | None:
        """δ_t = log p_T(o_t) − log p_S(o_t), (B, T) nats; None where no teacher scores."""
        return self._difference(self.teacher, self.student)

    @cached_property
    def contrast_gap(self) -> torch.Tensor | None:
        """log p_T(o_t) − log of its mean probability under the contrasted contexts, (B, T) nats; None without them."""
        return self._difference(self.teacher, self.contrast)

    def _difference(self, above: torch.Tensor | None, below: torch.Tensor | None) -> torch.Tensor | None:
        if above is None or below is None:
            return None
        difference = above.float() - below.float()
        return difference if self.has_teacher is None else difference.masked_fill(~self.has_teacher[:, None], 0.0)

    @cached_property
    def student_mean(self) -> float | None:
        """Mean log p_S of the valid tokens, nats: the student's confidence."""
        return None if self.student is None else self.student[self.mask].mean().item()

    @cached_property
    def gap_mean(self) -> float | None:
        """Mean δ of the tokens that have a teacher, nats: minus the one-sample estimate of KL(p_S ‖ p_T)."""
        return None if self.gap is None else _mean(self.gap[self.taught])

    @cached_property
    def gap_abs_mean(self) -> float | None:
        """Mean |δ| of the tokens that have a teacher, nats."""
        return None if self.gap is None else _mean(self.gap[self.taught].abs())

    def metrics(self) -> dict[str, Any]:
        """The step's numbers about log-probs and entropies; none where no pass was made."""
        if self.entropy is None:
            return {}
        found = {names.STUDENT_LOG_PROB: self.student_mean}
        # numpy's: torch.quantile refuses more than 2**24 numbers, which a large batch has.
        values = np.quantile(self.entropy[self.mask].float().numpy(), ENTROPY_QUANTILES)
        for quantile, value in zip(ENTROPY_QUANTILES, values, strict=True):
            found[names.ENTROPY_QUANTILE.format(round(100 * quantile))] = float(value)
        if self.teacher is not None:
            found[names.TEACHER_LOG_PROB] = _mean(self.teacher[self.taught])
            found |= {names.GAP: self.gap_mean, names.GAP_SIZE: self.gap_abs_mean}
        if self.teacher_entropy is not None:
            found[names.TEACHER_ENTROPY] = _mean(self.teacher_entropy[self.taught])
        found |= {names.MEASURED.format(name): _mean(values[self.mask]) for name, values in self.measured.items()}
        if self.contrast_gap is not None:
            found[names.CONTRAST_SIZE] = _mean(self.contrast_gap[self.taught].abs())
        return found

    def check(self, *, step: int, safe_ground: str) -> None:
        """`check_tokens` on all of them; where a teacher scores, they must be float32.

        Args:
            step: the training step, for the message.
            safe_ground: a sentence that says where the run can go on from.
        """
        named = {
            "student log-probs": self.student,
            "entropy": self.entropy,
            "teacher log-probs": self.teacher,
            "entropy of the teacher": self.teacher_entropy,
            "log-probs of the contrast": self.contrast,
            **{name.replace("_", " "): values for name, values in self.measured.items()},
        }
        check_tokens(
            {name: tensor for name, tensor in named.items() if tensor is not None},
            self.mask,
            exact=self.teacher is not None,
            step=step,
            safe_ground=safe_ground,
        )


def _mean(values: torch.Tensor) -> float:
    """0 of nothing: a batch in which no response has a teacher."""
    return values.mean().item() if len(values) else 0.0


def fetch_scores(
    batch: KVBatchMeta,
    teacher: TeacherLogProbs | None,
    has_teacher: torch.Tensor | None = None,
    *,
    student: bool = True,
    measured: Iterable[str] = (),
) -> Scores:
    """The student's scores of a batch, joined with the teacher's; one look into TransferQueue.

    Args:
        batch: the global batch, after verl's log-prob pass.
        teacher: what it says of the response tokens, or None.
        has_teacher: (B,) bool; None where every row has one.
        student: whether the student's pass was made.
        measured: names of the signals that it was asked for beside log-probs and entropy.

    Raises:
        RuntimeError: if verl's log-prob pass did not leave what is needed.
    """
    measured = list(measured)
    wanted = ["response_mask", "responses", *(["old_log_probs", "entropy"] if student else []), *measured]
    nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=wanted)
    absent = [name for name in wanted if name not in nested]
    if absent:  # TransferQueue leaves out what it does not have
        raise RuntimeError(f"verl did not provide {absent}, of which advantages and metrics are made")
    # As verl's pass leaves them they cover prompts too.
    own_signals = {name: response_from_nested(nested.pop(name), nested["response_mask"]) for name in measured}
    padded = nested.to_padded_tensor()
    shape = (len(batch), padded["response_mask"].shape[1])

    def of_teacher(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.to_padded_tensor(0.0, shape)

    return Scores(
        nested_mask=nested["response_mask"],
        mask=padded["response_mask"].bool(),
        token_ids=padded["responses"],
        student=padded["old_log_probs"] if student else None,
        entropy=padded["entropy"] if student else None,
        teacher=of_teacher(teacher.own) if teacher else None,
        teacher_entropy=of_teacher(teacher.entropy) if teacher else None,
        contrast=of_teacher(teacher.contrast) if teacher else None,
        has_teacher=has_teacher,
        measured={name: values.to_padded_tensor(0.0, shape) for name, values in own_signals.items()},
    )


def corpus_counts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict[str, Any]]) -> torch.Tensor:
    """How often each token id occurs in the problems and solutions of a data set, (V,) int64.

    Args:
        tokenizer: the student's.
        rows: of the data set.
    """
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    for row in rows:
        text = f"{problem_of(row)}\n{row.get('solution') or ''}"
        counts += torch.bincount(torch.as_tensor(tokenizer.encode(text)), minlength=len(counts))
    return counts


def vital_signs(batch: KVBatchMeta, scores: Scores, rewards: Rewards, entropy: float | None) -> dict[str, float | None]:
    """What a run that falls apart shows first, as means over a step's responses, verl's filler rows aside.

    Args:
        batch: keys and tags of the batch.
        scores: of its rows.
        rewards: of its rows.
        entropy: the student's, nats a token; None where it was not measured.
    """
    sampled = [not tag.get("is_padding", False) for tag in batch.tags]
    return {
        "entropy": entropy,
        "length": scores.mask.sum(-1)[sampled].double().mean().item(),
        "reward": rewards.scores[sampled].double().mean().item(),
    }
