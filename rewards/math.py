"""The reward for mathematics: ``reward.custom_reward_function.path=pkg://rewards.math name=compute_score``.

Options go into ``reward.custom_reward_function.reward_kwargs`` (see ``rewards.options``). The call is synchronous;
verl runs it in the reward worker's thread pool.
"""

from __future__ import annotations

from typing import Any

from rewards.components import STATUSES as STATUSES
from rewards.components import format_component, mixed, warn_ungradable
from rewards.extract import extract_answer
from rewards.grader import gold_text, shared_grader
from rewards.options import RewardOptions, read_options


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response by its final answer.

    Args:
        data_source: the set's name; used in messages only, all sets are graded alike.
        solution_str: the decoded response.
        ground_truth: the gold answer: a string, a number, or a list of them (all required).
        extra_info: may carry ``response_length`` (tokens) for the overlong component.
        **kwargs: fields of ``RewardOptions``.

    Returns:
        As `rewards.components.mixed`.

    Raises:
        ValueError: an option is unknown, or options contradict each other.
        TypeError: ``ground_truth`` is of another type.
        GradingSetupError: the grading children cannot start.
    """
    options = read_options(RewardOptions, kwargs)
    answer = extract_answer(solution_str, options.answer_line)
    gold = gold_text(ground_truth)
    if not gold:
        warn_ungradable(str(data_source), "ground truth")
        status = "error"
    elif answer is None:
        status = "no_answer"
    else:
        grader = shared_grader(
            options.deadline_s, options.cpu_s, options.children, options.memory_mb, options.cache_size
        )
        status = grader.grade(gold, answer).status
    well_formed = format_component(solution_str, answer is not None, options.answer_line)
    return mixed(status, answer, well_formed, solution_str, extra_info, options)
