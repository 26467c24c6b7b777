"""The loss that verl's engine trains: a full-vocabulary divergence from the teacher, alone or beside the PPO clip.

    L = [ppo] · PPO + coefficient · mean_t( w_t · r_t · D_t(p_T, p_S) )

OPSD (arXiv 2601.18734): D the clipped forward KL, w = 1, token mean, no PPO.  PW-OPSD (§3.4): w(u), mean over
sequences.  DASD's distribution-level loss (arXiv 2605.22263, Eq. 5): D = KL(p_S ‖ p_T), w the signed ω, beside PPO.
SDPO (arXiv 2601.20802): D the JSD over the student's top tokens and a bucket, r = min(p_S(o_t) / p_old(o_t), 2), which
is 1 elsewhere.  SRPO and EOPD: such divergences beside PPO, w of the teacher's entropy.
Token weights, and the shares in which D may mix the two KLs, come from the driver, which sees the global batch; both
means are over the global mini-batch, whatever its micro-batches and workers.  The PPO part keeps verl's own reduction
(`actor.loss_agg_mode`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from verl.utils.metric import AggregationType, Metric

from workers.divergence import (
    hidden_divergence,
    logits_divergence,
    reduction_weights,
    student_topk_divergence,
    teacher_topk_divergence,
)
from workers.training.metrics import IMPORTANCE_CLIPPED, LOSS
from workers.training.packing import FORWARD_SHARES, WEIGHTS, scored_rows
from workers.training.params import LossParams

DIVERGENCE = "divergence"  # per-token divergences among verl's model outputs
SHARE = "divergence_share"  # their weighted sum, the micro-batch's share of the mean
COUNT = "self_distill_count"  # denominator of the mean, over the global mini-batch
STATS = ("top1_disagreement", "student_entropy", "student_logprob")


@dataclass(frozen=True)
class SelfDistillLoss:
    """Called by the engine twice for each micro-batch: `score` or `share` inside the forward pass, then itself.

    Attributes:
        params: what to compute.
        policy_loss: verl's PPO loss, (model_output, data, dp_group) -> (loss, metrics); used where `params.ppo`.
    """

    params: LossParams
    policy_loss: Callable[..., tuple[Tensor, dict[str, Any]]] | None = None

    @property
    def stats(self) -> tuple[str, ...]:
        """What is measured in the same pass: without PPO no other pass has the student's entropy and log-probs."""
        return ("top1_disagreement",) if self.params.ppo or self.params.top_k is not None else STATS

    def score(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        rows: Tensor,
        *,
        rollout_temperature: float,
        divided_by: float = 1.0,
        token_ids: Tensor | None = None,
        forward_share: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence (N,) in the student's graph, and the statistics named in `stats`, (N,) each, detached.

        Args:
            student_logits: (1, T, V) or (T, V), packed.
            teacher_logits: (N, V) raw; overwritten.
            rows: (N,) rows of the student's logits that the teacher's belong to.
            rollout_temperature: divides both sides' logits, where `params.temperature` is None.
            divided_by: what verl has divided the student's logits by already.
            token_ids: (N,) the response's own tokens, for the log-probs among `stats`.
            forward_share: (N,) as `forward_share` makes it.
        """
        if self.params.top_k is not None:
            return self._score_top_k(student_logits, teacher_logits, rows, rollout_temperature, divided_by)
        return logits_divergence(
            student_logits,
            teacher_logits,
            self.params.spec(rollout_temperature=rollout_temperature, divided_by=divided_by),
            rows=rows,
            token_ids=token_ids,
            stats=self.stats if token_ids is not None else self.stats[:1],
            forward_share=forward_share,
            consume_teacher=True,
        )

    def _score_top_k(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        rows: Tensor,
        rollout_temperature: float,
        divided_by: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`score` over part of the vocabulary. Costs a copy of the scored rows' logits, (N, V)."""
        params = self.params
        student = student_logits.reshape(-1, student_logits.shape[-1])[rows]
        teacher = teacher_logits if divided_by == 1.0 else teacher_logits.div_(divided_by)
        options: dict[str, Any] = {
            "k": params.top_k,
            "kind": params.kind,
            "jsd_beta": params.jsd_beta,
            "clip": params.clip,
            "clip_mode": params.clip_mode,
            "temperature": params.spec(rollout_temperature=rollout_temperature, divided_by=divided_by).temperature,
        }
        if params.top_k_by == "teacher":
            value = teacher_topk_divergence(student, teacher, student_norm=params.student_norm, **options)
        else:
            value = student_topk_divergence(student, teacher, **options)
        return value, {"top1_disagreement": (student.detach().argmax(-1) != teacher.argmax(-1)).float()}

    def share(
        self,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor | None,
        data: Any,
        *,
        rollout_temperature: float,
        token_ids: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the mean, a scalar in the graph, and {"divergence", *stats}, (N,), detached.

        Args:
            hidden: (N, h) the student's hidden states of the scored rows.
            head: (V, h) of the student.
            teacher_hidden: (N, h) of the teacher.
            teacher_head: (V, h) of the teacher; None for the student's.
            data: as in `__call__`.
            rollout_temperature: divides both sides' logits, where `params.temperature` is None.
            token_ids: (N,) the response's own tokens, for the log-probs among `stats`.
        """
        return hidden_divergence(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            weights=self.weights(data),
            spec=self.params.spec(rollout_temperature=rollout_temperature),
            token_ids=token_ids,
            stats=self.stats,
            forward_share=self.forward_share(data),
        )

    def forward_share(self, data: Any) -> Tensor | None:
        """Share of the forward KL of each valid token of the micro-batch, (N,) fp32, in row order; None: not mixed."""
        if not self.params.mixed:
            return None
        mask = data["response_mask"].to_padded_tensor(0).bool()
        if FORWARD_SHARES in data:
            return data[FORWARD_SHARES].to_padded_tensor(0.0)[mask].float()
        return torch.full((int(mask.sum()),), self.params.forward_share, device=mask.device)

    def weights(self, data: Any, *, plain: bool = False) -> Tensor:
        """Factor of each valid token's divergence in the micro-batch's share of the mean, (N,) fp32, in row order.

        Args:
            data: the micro-batch.
            plain: whether the batch's token weights are left out.
        """
        padded = data["response_mask"].to_padded_tensor(0)
        return reduction_weights(
            padded,
            self.params.reduction,
            global_count=data[COUNT],
            dp_size=data["dp_size"],  # FSDP averages gradients over ranks
            token_weights=data[WEIGHTS].to_padded_tensor(0.0) if WEIGHTS in data and not plain else None,
        )[padded.bool()]

    def importance(self, log_probs: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        """min(p_S(o_t) / p_old(o_t), importance_clip) of the valid tokens, and where it is the bound; (N,), detached.

        Args:
            log_probs: (N,) log p_S(o_t), nats, at the rollout's temperature.
            data: as in `__call__`, with `old_log_probs`.
        """
        mask = data["response_mask"].to_padded_tensor(0).bool()
        old = data["old_log_probs"].to_padded_tensor(0.0)[mask]
        bound = math.log(self.params.importance_clip)  # type: ignore[arg-type]
        difference = log_probs.detach().float() - old.float()
        return difference.clamp(max=bound).exp(), difference > bound

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """The micro-batch's share of the loss, and metrics for verl to add up.

        Args:
            model_output: jagged (B, prompt_i + response_i), with zeros outside the scored rows: `DIVERGENCE`, the
                tokens' divergences, or `SHARE`, whose sum is `share`'s result; `log_probs` with PPO or an importance
                ratio.
            data: `response_mask`, optionally `WEIGHTS`, `FORWARD_SHARES` and `old_log_probs`, jagged; non-tensors
                `COUNT` and `dp_size`.
            dp_group: the data-parallel group, for verl's policy loss.

        Raises:
            ValueError: if the PPO clip is asked for and there is none.
        """
        metrics: dict[str, Any] = {}
        if SHARE in model_output:
            distill = model_output[SHARE].values().sum()
        else:
            nested = model_output[DIVERGENCE]
            rows = scored_rows(nested.offsets(), data["response_mask"])
            divergence, weights = nested.values()[rows], self.weights(data)
            if self.params.importance_clip is not None:
                ratio, bounded = self.importance(model_output["log_probs"].values()[rows], data)
                weights = weights * ratio
                share = (self.weights(data, plain=True) * bounded).sum()
                metrics[IMPORTANCE_CLIPPED] = Metric(value=share, aggregation=AggregationType.SUM)
            distill = (weights.to(divergence.dtype) * divergence).sum()
        metrics[LOSS] = Metric(value=distill, aggregation=AggregationType.SUM)
        loss = self.params.coefficient * distill
        if self.params.ppo:
            if self.policy_loss is None:
                raise ValueError("self_distill.loss.ppo=true needs verl's policy loss beside the divergence")
            policy, policy_metrics = self.policy_loss(model_output=model_output, data=data, dp_group=dp_group)
            loss = loss + policy
            metrics.update(policy_metrics)
        return loss, metrics


def scatter_tokens(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """Token values at their packed rows among zeros, (total,): the form in which verl's hook takes outputs.

    Args:
        values: (N,).
        rows: (N,) packed rows.
        total: tokens of the packed row.
    """
    return torch.zeros(total, dtype=values.dtype, device=values.device).index_add(0, rows, values)
