"""Candidates, labels and scores of PW-OPSD's branch-viability diagnostic, as pure functions (PW-OPSD, §3.2 and App. A).

The numbers that the paper's text lost or leaves open are arguments here and keys of config/diagnose_branches.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIVERSITY, REAL_UNCERTAIN, GRAY = "diversity", "real-uncertain", "gray"
MAX_PRECISION = 1e12  # of the Dirichlet: stands for infinity, which JSON has not


def valid_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Sequence[int]) -> Tensor:
    """Which tokens may be forced, (vocabulary,) bool: phase C's "junk / EOS / special filters".

    Barred are special and added tokens, stops, and tokens whose text is empty or an incomplete character.  White space
    stays (ours): a line break is where a step, or a revision, begins.

    Args:
        tokenizer: gives each token's text.
        vocabulary: number of the model's logits; those beyond the tokenizer's tokens are barred too.
        stop_ids: ids that end a response.
    """
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    known = min(vocabulary, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)])
    allowed[:known] = torch.tensor([bool(text) and "\ufffd" not in text for text in texts])
    barred = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values(), *stop_ids}
    allowed[[i for i in barred if i < vocabulary]] = False
    return allowed


def plausible_children(logits: Tensor, allowed: Tensor, *, count: int, min_probability: float) -> list[list[int]]:
    """For each position the likeliest allowed tokens, the likeliest first.

    Args:
        logits: (L, V).
        allowed: (V,) bool.
        count: tokens of a position at most.
        min_probability: least probability in the full distribution, before anything is barred.
    """
    probabilities = logits.float().softmax(-1).masked_fill(~allowed, 0.0)
    top = probabilities.topk(min(count, probabilities.shape[-1]), -1)
    return [
        [token for token, p in zip(ids, ps, strict=True) if p >= min_probability]
        for ids, ps in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def select_candidates(
    scores: Sequence[float], children: Sequence[Sequence[int]], *, limit: int, spacing: int, min_children: int, end: int
) -> list[int]:
    """Positions with the highest scores, ascending; of equal scores the earlier position wins.

    Args:
        scores: (L,) of each position.
        children: tokens that are plausible at each position.
        limit: number of positions at most.
        spacing: least distance of any two, in tokens.
        min_children: a position with fewer does not count.
        end: the position at which the search stops.
    """
    chosen: list[int] = []
    for t in sorted(range(min(end, len(scores))), key=lambda t: (-scores[t], t)):
        if len(chosen) == limit:
            break
        if len(children[t]) >= min_children and all(abs(t - other) >= spacing for other in chosen):
            chosen.append(t)
    return sorted(chosen)


def viability(verdicts: Sequence[bool | None]) -> float | None:
    """Share of a child's continuations that are right, among those that could be graded; None if none could."""
    graded = [verdict for verdict in verdicts if verdict is not None]
    return sum(graded) / len(graded) if graded else None


def label(
    viabilities: Sequence[float],
    *,
    viable: float = 0.5,
    viable_children: int = 2,
    dead: float = 0.25,
    dead_mean: float = 0.125,
) -> str:
    """Phase F: the label of a candidate, by the viabilities of its children.

    Args:
        viabilities: the children's, each in [0, 1].
        viable: least viability of a viable child.
        viable_children: number of viable children that make diversity.
        dead: the most that any child of a real-uncertain candidate may reach.
        dead_mean: the most that their mean may reach.

    Returns:
        ``diversity`` if at least ``viable_children`` children reach ``viable``; else ``real-uncertain`` if every child
        is at most ``dead`` and their mean at most ``dead_mean``; else ``gray``.

    Raises:
        ValueError: if there are no children.
    """
    if not viabilities:
        raise ValueError("a candidate without children has no label")
    if sum(v >= viable for v in viabilities) >= viable_children:
        return DIVERSITY
    if max(viabilities) <= dead and sum(viabilities) / len(viabilities) <= dead_mean:
        return REAL_UNCERTAIN
    return GRAY


def uncertainty(precision: float) -> float:
    """−log of a Dirichlet precision: larger where passes agree less; a raw estimate ≤ 0 counts as 1e-12 (App. B)."""
    return -log(min(max(precision, 1 / MAX_PRECISION), MAX_PRECISION))
