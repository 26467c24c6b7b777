"""Accuracy on the validation problems, with an interval, from the graded rollouts of a validation pass.

Departs from verl's summary: that one also estimates best@N and worst@N of every number a grader returns by a thousand
resamplings in Python, which took longer than generating the responses, and best@N with replacement is biased low. Here
are means, under verl's names, and the interval that a mean needs to be compared: clustered by problem.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t


def validation_metrics(
    data_sources: Sequence[str],
    problem_ids: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    expected: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, float]:
    """Means over problems of the mean over each problem's responses, for each data source and each number.

    Args:
        data_sources: (N,) source of each graded response.
        problem_ids: (N,) which problem it answers.
        values: name to (N,) what the grader returned; None where it returned nothing; texts are left out.
        expected: responses that each (source, problem) should have; those that are missing count as wrong in ``acc``.

    Returns:
        ``val-core/<source>/acc/mean@<n>`` (``reward`` where there is no ``acc``) and ``…/ci95@<n>``, the half-width of
        its 95 % interval over problems by Student's t; ``val-aux/…/mean@<n>`` of the other numbers. n is the largest
        number of responses to a problem.
    """
    grouped: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for i, (source, problem) in enumerate(zip(data_sources, problem_ids, strict=True)):
        of_problem = grouped[source][problem]
        for name, column in values.items():
            if column[i] is not None and not isinstance(column[i], str):
                of_problem[name].append(float(column[i]))
    for (source, problem), count in (expected or {}).items():
        if any("acc" in numbers for numbers in grouped[source].values()):
            accuracies = grouped[source][problem]["acc"]
            accuracies += [0.0] * (count - len(accuracies))

    metrics = {}
    for source, problems in grouped.items():
        names = {name for numbers in problems.values() for name, column in numbers.items() if column}
        core = "acc" if "acc" in names else "reward"
        for name in sorted(names):
            columns = [numbers[name] for numbers in problems.values() if numbers[name]]
            means = np.array([np.mean(column) for column in columns])
            n = max(map(len, columns))
            prefix = f"{'val-core' if name == core else 'val-aux'}/{source}/{name}"
            metrics[f"{prefix}/mean@{n}"] = float(means.mean())
            if name == core and len(means) > 1:
                half = student_t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
                metrics[f"{prefix}/ci95@{n}"] = float(half)
    return metrics
