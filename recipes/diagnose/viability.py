"""Phases F and G of the branch-viability diagnostic: labels of candidates, and which score tells them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig

from recipes.diagnose.branches import GRAY, REAL_UNCERTAIN, label, uncertainty, viability
from recipes.diagnose.runner import Records
from recipes.diagnose.statistics import Pivot, auroc, average_precision, centered_within, cluster_bootstrap

# Each oriented so that a larger value should mean less reliable.
SCORES = {
    "early": "position, 1 − u",
    "predictive_entropy": "MC-dropout predictive entropy",
    "mutual_information": "MC-dropout mutual information",
    "dirichlet": "Dirichlet precision, −log α₀",
    "truncated_entropy": "teacher's top-k entropy",
    "student_entropy": "student's entropy (ours)",
    "kl": "KL(teacher ‖ student) (ours)",
}


def labelled(records: Records, cfg: DictConfig) -> list[dict[str, Any]]:
    """All candidates that have a graded child, with problem, seed, u, label, mean viability and the oriented scores.

    Args:
        records: one for each problem, with verdicts on every child.
        cfg: the diagnostic's configuration; `summary.labels` has the bounds of the labels.
    """
    found = []
    for record in records:
        for candidate in record["candidates"]:
            shares = [viability(child["correct"]) for child in candidate["children"]]
            known = [share for share in shares if share is not None]
            if not known:
                continue
            found.append(
                {
                    "problem": record["problem"],
                    "seed": record["seed"],
                    "u": candidate["u"],
                    "label": label(known, **cfg.summary.labels),
                    "viability": sum(known) / len(known),
                    "early": 1 - candidate["u"],
                    "dirichlet": uncertainty(candidate["dirichlet_precision"]),
                    **{name: candidate[name] for name in SCORES if name in candidate},
                }
            )
    return found


def discrimination(candidates: list[dict[str, Any]], *, residual: bool, resamples: int, seed: int) -> dict[str, Any]:
    """AUROC and AUPRC of every score for telling real-uncertain from diversity, with intervals; by the score's name.

    Args:
        candidates: from `labelled`; gray ones are left out.
        residual: centre each score within its problem first, over the labelled candidates (phase G).
        resamples: number of draws of the bootstrap over problems; 0 gives values without intervals.
        seed: decides its draws.
    """
    pool = [c for c in candidates if c["label"] != GRAY]
    positive = np.array([c["label"] == REAL_UNCERTAIN for c in pool])
    problems = np.array([c["problem"] for c in pool])
    scores = {name: np.array([c[name] for c in pool]) for name in SCORES}
    if residual:
        scores = {name: centered_within(values, problems) for name, values in scores.items()}

    def both(rows: np.ndarray) -> list[float]:
        curves = [auroc(values[rows], positive[rows]) for values in scores.values()]
        return [*curves, *(average_precision(values[rows], positive[rows]) for values in scores.values())]

    intervals = cluster_bootstrap(both, problems, resamples=resamples, seed=seed)
    halves = zip(SCORES, intervals[: len(SCORES)], intervals[len(SCORES) :], strict=True)
    return {name: {"auroc": area, "auprc": precision} for name, area, precision in halves}


def by_seed(candidates: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Residual AUROC of every score for each seed alone; None if a label does not occur there."""
    found: dict[str, dict[str, float | None]] = {}
    for seed in sorted({c["seed"] for c in candidates}):
        of_seed = [c for c in candidates if c["seed"] == seed and c["label"] != GRAY]
        if len({c["label"] for c in of_seed}) == 2:
            values = discrimination(of_seed, residual=True, resamples=0, seed=0)
            found[str(seed)] = {name: value["auroc"].value for name, value in values.items()}
        else:
            found[str(seed)] = dict.fromkeys(SCORES)
    return found


def failure_by_position(candidates: list[dict[str, Any]], bins: int, draws: dict[str, int]) -> list[dict[str, Any]]:
    """Mean of 1 − viability in equal bins of u, over all candidates, gray ones too; empty bins are left out.

    Args:
        candidates: from `labelled`.
        bins: number of bins between 0 and 1.
        draws: `resamples` and `seed` of the bootstrap over problems.
    """
    where = [min(int(c["u"] * bins), bins - 1) for c in candidates]
    pivot = Pivot((c["problem"], b, 1 - c["viability"]) for c, b in zip(candidates, where, strict=True))
    means = pivot.means(**draws)
    return [
        {"from": b / bins, "to": (b + 1) / bins, "candidates": where.count(b), "failure": means[b]}
        for b in sorted(set(where))
    ]
