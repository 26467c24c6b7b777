"""A running accuracy of each problem, from which its exposure is taken (ATESD's future work, §6; in a form of ours).

One group's rewards, a single 0 or 1 where a problem has one rollout, say little of how hard it is.  So each problem's
successes are counted over its visits, older ones for less as the policy moves on, and mixed with the accuracy over all
problems:

    accuracy_i = (s_i + w ā) / (n_i + w),   s_i = Σ_v m^{age(v)} correct_v,   n_i = Σ_v m^{age(v)} responses_v,
    ā = Σ_i s_i / Σ_i n_i

with ages in visits v of the problem, m `difficulty_memory` and w `difficulty_prior`.  Where every problem is seen once
(fewer steps than an epoch) this is the group's own mean, drawn towards ā by w responses' worth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_FILE = "problem_accuracy.json"


class ProblemAccuracy:
    """What is remembered of each problem: successes and responses, both discounted.

    Args:
        memory: m in [0, 1], share of a problem's counts that its next visit keeps; 1 keeps all, 0 the last visit alone.
        prior: w ≥ 0, responses.
    """

    def __init__(self, memory: float, prior: float) -> None:
        self.memory, self.prior = memory, prior
        self.counts: dict[str, tuple[float, float]] = {}

    def visit(self, problems: Sequence[str | None], correct: Sequence[bool]) -> Tensor:
        """Count a step's responses; returns the accuracy of each response's problem, they included, (B,) fp64.

        Args:
            problems: (B,) lasting names of the responses' problems; None: counts for nothing and gets the accuracy over
                all problems.
            correct: (B,) whether each response was successful.
        """
        seen: dict[str, tuple[float, float]] = {}
        for name, success in zip(problems, correct, strict=True):
            if name is not None:
                successes, responses = seen.get(name, (0.0, 0.0))
                seen[name] = successes + success, responses + 1.0
        for name, (successes, responses) in seen.items():
            before = self.counts.get(name, (0.0, 0.0))
            self.counts[name] = before[0] * self.memory + successes, before[1] * self.memory + responses
        total = [sum(values) for values in zip(*self.counts.values(), strict=True)]
        overall = total[0] / total[1] if total else 0.5
        accuracies = []
        for name in problems:
            successes, responses = self.counts[name] if name is not None else (overall, 1.0)
            accuracies.append((successes + self.prior * overall) / (responses + self.prior))
        return torch.tensor(accuracies, dtype=torch.float64)

    def save(self, directory: Path) -> None:
        """Write the counts into a directory, replaced in one step."""
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{_FILE}.tmp"
        partial.write_text(json.dumps(self.counts), encoding="utf-8")
        os.replace(partial, directory / _FILE)

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file in the folder.
        """
        saved = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        self.counts = {name: (successes, responses) for name, (successes, responses) in saved.items()}
