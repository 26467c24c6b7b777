"""DASD's prefix interventions: draw one token of a rollout anew, let the student go on (arXiv 2605.22263, §3, probe 3).

At a position of an unmodified rollout the token is drawn from the teacher (Conformity) or from p_S / p_T^α (Novelty);
the student then finishes without the reference.  Positions come from the half of the rollout with low entropy, from the
other half, or from all of it (the control).

Ours, beside the paper's: a third draw from the student itself.  It changes nothing but the random numbers, so its
distance from the unmodified rollouts is noise, and the other two are compared with it pair by pair: all draws at a
position use one uniform number and their continuations one seed, so equal tokens give equal responses.
How many positions a rollout contributes, and that they are uniform within the bucket, is ours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from recipes.diagnose.distributions import draw, keep_top_p, novelty_log_probs
from recipes.diagnose.engine import Engine, sample
from workers.rollout.generation import SamplingParams, response_seed

BUCKETS = ("low", "high", "random")
KINDS = ("conformity", "novelty", "resampled")


@dataclass(frozen=True)
class Site:
    """A position (from 0) of a rollout, the bucket it was chosen for, and the token that each kind draws there."""

    bucket: str
    position: int
    tokens: dict[str, int]


def bucket_positions(entropy: Tensor) -> dict[str, list[int]]:
    """Positions by bucket: ``low`` has H_t < τ, ``high`` H_t ≥ τ, with τ the rollout's own median; ``random`` all.

    Args:
        entropy: (L,).  The median interpolates, as numpy's does.  A rollout of equal entropies has an empty ``low``.
    """
    values = entropy.double().numpy()
    low = values < np.median(values)
    return {"low": np.flatnonzero(low).tolist(), "high": np.flatnonzero(~low).tolist(), "random": list(range(len(low)))}


def choose_sites(
    entropy: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    per_bucket: int,
    alpha: float,
    temperature: float,
    top_p: float,
    identity: tuple,
) -> list[Site]:
    """Up to ``per_bucket`` positions for each bucket of a rollout, with their draws.

    entropy: (L,); student_logits, teacher_logits: (L, V).  identity: names the rollout, and all that is
    random follows from it.
    temperature, top_p: of the rollouts; they shape all three distributions, so that ``resampled`` is the rollouts' own.
    """
    rng = np.random.default_rng(response_seed("sites", *identity))
    sites = []
    for bucket, positions in bucket_positions(entropy).items():
        for position in rng.permutation(positions)[:per_bucket].tolist():
            row = slice(position, position + 1)
            student = keep_top_p(student_logits[row] / temperature, top_p)
            teacher = teacher_logits[row] / temperature
            uniform = float(rng.random())
            distributions = {
                "conformity": keep_top_p(teacher, top_p).log_softmax(-1),
                "novelty": novelty_log_probs(student, teacher, alpha),
                "resampled": student.log_softmax(-1),
            }
            sites.append(Site(bucket, position, {kind: draw(d[0], uniform) for kind, d in distributions.items()}))
    return sites


def finish(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sites: Sequence[Sequence[Site]],
    params: SamplingParams,
    identities: Sequence[tuple],
) -> list[list[dict[str, list[int]]]]:
    """The whole response for every site and kind: lists by rollout and site of {kind: ids}.

    Args:
        prompts, responses, sites, identities: one entry a rollout.  Equal tokens at a site are continued once.
    """
    branches: dict[tuple[int, int, int], list[int]] = {}
    for rollout, found in enumerate(sites):
        for number, site in enumerate(found):
            for token in set(site.tokens.values()):
                branches[rollout, number, token] = [*responses[rollout][: site.position], token]
    open_ones = [
        key for key, ids in sorted(branches.items()) if ids[-1] not in engine.stop_ids and len(ids) < params.max_tokens
    ]
    continuations = sample(
        engine,
        [[*prompts[key[0]], *branches[key]] for key in open_ones],
        params,
        [("continuation", *identities[key[0]], key[1]) for key in open_ones],
        limits=[params.max_tokens - len(branches[key]) for key in open_ones],
    )
    for key, continuation in zip(open_ones, continuations, strict=True):
        branches[key] = branches[key] + continuation
    return [
        [{kind: branches[rollout, n, token] for kind, token in site.tokens.items()} for n, site in enumerate(found)]
        for rollout, found in enumerate(sites)
    ]
