"""Where DASD's forks and revisions are, and which tokens are put there (arXiv 2605.22263, RQ2 and Fig. 7).

Forks (Fig. 7a,b): the rollout's most uncertain token, which DASD repels from the teacher, gives way to the teacher's
top choice; a certain token and any token are the controls.  Revisions (Fig. 7c,d): where a rollout turns with an
epistemic marker, the marker is preserved, suppressed, or replaced by what the teacher would say.

Ours, where the paper is silent:
* The certain token is drawn from those that DASD attracts, below the router's quantile.
* Beside the teacher's top choice stands the student's own, which is as decided and knows no more: what the two do
  differently is the reference's doing.
* A revision is the first of three markers that follows something, chosen without a look at what comes after it.
* Suppressing bars whatever spells a marker, and the beginning that the rollout chose, at that place alone.
* The teacher goes on greedily for a few tokens.
* Tokens that are kept or preserved are continued anew too, with the random numbers of the other kinds.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from advantage.segments import quantile
from recipes.diagnose.distributions import draw, keep_top_p
from recipes.diagnose.interventions import Site
from workers.rollout.generation import response_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE_NAMES = {"high": "most uncertain", "low": "certain", "random": "any"}
PLACES = tuple(PLACE_NAMES)
FORCED = ("kept", "teacher", "student")
REVISION = "revision"
REVISED = ("preserved", "suppressed", "forced")


def fork_sites(
    entropy: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    ids: Sequence[int],
    *,
    router_quantile: float,
    identity: tuple,
) -> list[Site]:
    """One place each of `PLACES`, with the rollout's own token, the teacher's top choice and the student's.

    Args:
        entropy: (L,) nats, of the student.
        student_logits: (L, V).
        teacher_logits: (L, V).
        ids: the L tokens of the rollout.
        router_quantile: ρ: tokens whose entropy is above that quantile of the rollout's are repelled, those below it
            attracted.
        identity: names the rollout; what is drawn follows from it.

    Returns:
        At most one site a place: a rollout without an entropy above the quantile has no ``high``, one without any below
        it no ``low``.
    """
    values = entropy.double().numpy()
    threshold = quantile(values, router_quantile)
    rng = np.random.default_rng(response_seed("forks", *identity))
    at = {"random": int(rng.integers(len(values)))}
    if (values > threshold).any():
        at["high"] = int(values.argmax())
    if (values < threshold).any():
        at["low"] = int(rng.choice(np.flatnonzero(values < threshold)))
    return [
        Site(
            place,
            at[place],
            {
                "kept": (ids[at[place]],),
                "teacher": (int(teacher_logits[at[place]].argmax()),),
                "student": (int(student_logits[at[place]].argmax()),),
            },
        )
        for place in PLACES
        if place in at
    ]


def marker_pattern(markers: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the markers as a whole word, whatever its case."""
    return re.compile(r"\b(?:" + "|".join(map(re.escape, markers)) + r")\b", re.IGNORECASE)


def marker_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int, markers: Sequence[str]) -> Tensor:
    """Which tokens spell a whole marker, with or without blanks around it, (vocabulary,) bool.

    Args:
        tokenizer: gives each token's text.
        vocabulary: number of the model's logits.
        markers: words, whatever their case.
    """
    texts = tokenizer.batch_decode([[i] for i in range(min(vocabulary, len(tokenizer)))])
    spelled = {marker.casefold() for marker in markers}
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[: len(texts)] = torch.tensor([text.strip().casefold() in spelled for text in texts])
    return found


def first_revision(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], pattern: re.Pattern[str]
) -> tuple[int, int] | None:
    """The tokens of the first marker that follows something else: (first, one past the last); None if there is none.

    A token of blanks alone before the marker belongs to it, since it promises one.  Tokens are found by the length of
    what they decode to, so text is never tokenised again.

    Args:
        tokenizer: the model's own.
        ids: tokens of a response.
        pattern: of `marker_pattern`.
    """

    def length(count: int) -> int:
        return len(tokenizer.decode(list(ids[:count]), skip_special_tokens=True))

    counts = range(len(ids) + 1)
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    for match in pattern.finditer(text):
        first = bisect_right(counts, match.start(), key=length) - 1
        last = bisect_right(counts, match.end() - 1, key=length)
        while first > 0 and set(text[length(first - 1) : length(first)]) == {" "}:
            first -= 1
        if text[: length(first)].strip():
            return first, last
    return None


def in_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], position: int) -> bool:
    r"""Whether a token belongs to a boxed answer: whether a ``\boxed{`` before it is still open.

    Args:
        tokenizer: the model's own.
        ids: tokens of a response.
        position: of the token.
    """
    _, box, inside = str(tokenizer.decode(list(ids[:position]), skip_special_tokens=True)).rpartition("\\boxed{")
    depth = 1
    for sign in inside:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return False
    return bool(box)


def suppressed_token(
    logits: Tensor, barred: Tensor, own: int, *, temperature: float, top_p: float, uniform: float
) -> int:
    """What the student says where it may not revise: a draw from what is left of its distribution.

    Args:
        logits: (V,) of the student.
        barred: (V,) bool, of `marker_tokens`.
        own: the token with which the rollout began its revision, barred too.
        temperature: the rollouts' own.
        top_p: the rollouts' own, taken of what is left.
        uniform: decides the draw, in [0, 1).
    """
    left = logits.float().masked_fill(barred.to(logits.device), float("-inf"))
    left[own] = float("-inf")
    return draw(keep_top_p(left[None] / temperature, top_p).log_softmax(-1)[0], uniform)
