"""A held-out probe of fixed problems with verified references, scored by token (ATESD, arXiv 2605.11458, §4.2-4.3).

The student's likelihood of the references is part of the controller's state (probe NLL); the exposed teacher's
likelihood of the same tokens is the grounded part of its reward.  Both are log-probability passes of verl's actor, at
temperature 1.  With a learned exposure credited by `fixed_exposure_probe` the teacher is scored at full exposure too,
and ℓ is the mean of log p_T − log p_S along the references: the one-sample estimate of KL(p_T ‖ p_S) on them (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes.common.metric_names import PROBE_GROUNDED, PROBE_LOSS, PROBE_NLL
from recipes.common.teacher.contexts import PrivilegedPrompts
from recipes.common.teacher.prompts import render
from recipes.common.teacher.sequences import sequence_scores, teacher_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Probe:
    """Fixed rows, the student's prompts and the references' token ids."""

    rows: list[dict[str, Any]]
    prompts: list[list[int]]
    references: list[torch.Tensor]
    cut: int  # references that were longer than the limit


@dataclass(frozen=True)
class Measured:
    """The probe under the weights of one moment.

    Attributes:
        nll: the student's, nats a token, mean over all reference tokens.
        grounded: mean log-prob that the exposed teacher gives to the references' tokens, at most 0.
        loss: mean of log p_T − log p_S along the references at full exposure; None where it was not asked for.
    """

    nll: float
    grounded: float
    loss: float | None = None

    def metrics(self) -> dict[str, float]:
        """As they stand in the step's record."""
        named = {PROBE_NLL: self.nll, PROBE_GROUNDED: self.grounded, PROBE_LOSS: self.loss}
        return {name: value for name, value in named.items() if value is not None}


def load_probe(
    path: str, size: int, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, template_kwargs: dict[str, Any]
) -> Probe:
    """The first `size` rows with a solution of a prepared parquet file.

    Args:
        max_tokens: longest reference; longer ones are cut, and counted.

    Raises:
        ValueError: no row has a solution.
    """
    import pandas as pd

    table = pd.read_parquet(Path(path).expanduser()).to_dict("records")
    rows = [row for row in table if str(row.get("solution") or "").strip()][:size]
    if not rows:
        raise ValueError(f"self_distill.exposure.probe_file={path}: no row has a solution to score")
    references, cut = [], 0
    for row in rows:
        ids = tokenizer.encode(str(row["solution"]).strip(), add_special_tokens=False)
        cut += len(ids) > max_tokens
        references.append(torch.tensor(ids[:max_tokens], dtype=torch.int64))
    prompts = [render(tokenizer, [dict(turn) for turn in row["prompt"]], template_kwargs) for row in rows]
    return Probe(rows, prompts, references, cut)


def measure(
    probe: Probe,
    worker_group: Any,
    teacher_prompts: PrivilegedPrompts,
    *,
    exposure: float,
    teacher_weights: str,
    workers: int,
    fixed_exposure: bool,
) -> Measured:
    """Score the probe with the weights of this moment.

    Args:
        exposure: α at which the grounded score is taken.  teacher_weights: as in `sequence_scores`.
        workers: data-parallel workers; rows are repeated to a multiple of them, and not counted.
        fixed_exposure: measure ℓ at full exposure too.
    """

    def score(prompts: Sequence[Sequence[int]], weights: str) -> float:
        filled = [*range(len(prompts)), *[0] * (-len(prompts) % workers)]
        masks = [torch.ones_like(probe.references[i]) for i in filled]
        fields = teacher_sequences([prompts[i] for i in filled], [probe.references[i] for i in filled], masks)
        scores = sequence_scores(
            worker_group,
            keys=[f"probe_{position}" for position in range(len(filled))],
            fields=fields,
            tags=[{"seq_len": len(prompts[i]) + len(probe.references[i])} for i in filled],
            response_mask=torch.nested.as_nested_tensor(masks, layout=torch.jagged),
            weights=weights,
            temperature=1.0,
        )
        return float(torch.cat([row.double() for row in scores["log_probs"].unbind()[: len(prompts)]]).mean())

    def teacher_score(alpha: float) -> float:
        shown = [teacher_prompts(row, alpha).token_ids for row in probe.rows]
        teacher_prompts.clear()
        return score(shown, teacher_weights)

    student = score(probe.prompts, "current")
    grounded = teacher_score(exposure)
    return Measured(-student, grounded, teacher_score(1.0) - student if fixed_exposure else None)
