"""One reward function for sets that are graded differently: ``path=pkg://rewards.by_grader name=compute_score``.

A row says in ``extra_info.grader`` how it is graded; a row that says nothing is mathematics.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

GRADERS = ("math", "choice", "code", "knights")


def grader_of(extra_info: dict | None) -> str:
    """The name of the grader of a row.

    Args:
        extra_info: the row's; without ``grader`` the row is mathematics.

    Raises:
        ValueError: ``grader`` is none of `GRADERS`.
    """
    name = (extra_info or {}).get("grader") or "math"
    if name not in GRADERS:
        raise ValueError(f"extra_info.grader={name!r}: must be one of {', '.join(GRADERS)}")
    return name


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response with its row's own reward function.

    Args:
        data_source: the set's name, as verl passes it.
        solution_str: the decoded response.
        ground_truth: what the row's reward function takes.
        extra_info: of the row; ``grader`` names its reward function.
        **kwargs: for each grader that needs any, its options: ``{code: {wall_s: 10}}``.

    Returns:
        As `rewards.components.mixed`, the same keys whatever the grader.

    Raises:
        ValueError: a grader or an option is unknown; the row's own function may raise others.
    """
    unknown = set(kwargs) - set(GRADERS) - {"reward_router_address", "reward_model_tokenizer"}
    if unknown:
        raise ValueError(f"unknown grader(s) {sorted(unknown)}; reward_kwargs takes options for {', '.join(GRADERS)}")
    name = grader_of(extra_info)
    score = import_module(f"rewards.{name}").compute_score
    return score(data_source, solution_str, ground_truth, extra_info, **(kwargs.get(name) or {}))
