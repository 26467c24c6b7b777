"""The reward function verl calls: ``reward.custom_reward_function.path=pkg://rewards.math name=compute_score``.

Options go into ``reward.custom_reward_function.reward_kwargs`` (see ``rewards.options``).  The call is synchronous;
verl runs it in the reward worker's thread pool.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from rewards.components import format_component, overlong_component, response_length
from rewards.extract import extract_answer
from rewards.grader import gold_text, shared_grader
from rewards.options import IGNORED, RewardOptions

logger = logging.getLogger(__name__)

MAX_EXTRACTED_CHARS = 1024  # of the text that goes into logs and dumps; the grader sees all of it
STATUSES = ("correct", "wrong", "no_answer", "timeout", "error")


@lru_cache(maxsize=64)
def _options(items: tuple) -> RewardOptions:
    return RewardOptions.from_kwargs(dict(items))


@lru_cache(maxsize=1)
def _warn_missing_gold(data_source: str) -> None:
    logger.warning(
        "a sample of %r has no ground truth, so its response gets status=error; run "
        "`python -m recipes.data.validate file=…` on the data before training",
        data_source,
    )


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response.

    Args:
        data_source: the set's name; used in messages only, all sets are graded alike.
        solution_str: the decoded response.
        ground_truth: the gold answer: a string, a number, or a list of them (all required).
        extra_info: may carry ``response_length`` (tokens) for the overlong component.
        kwargs: fields of ``RewardOptions``.

    Returns:
        The same keys for every sample, since verl averages every numeric one: ``score`` (the mix), ``acc`` (1.0 right,
        0.0 otherwise; the correctness component), ``format`` (0 or 1), ``overlong`` (-1 to 0; 0 where not configured),
        ``timeout`` (1.0 where the deadline passed), and two strings, ``extracted`` and ``status`` (one of
        ``STATUSES``).  Numeric keys are few on purpose: verl's validation bootstraps each of them.

    Raises:
        ValueError: unknown or contradictory options.  TypeError: ``ground_truth`` of another type.
        rewards.pool.GradingSetupError: the grading children cannot start.
    """
    options = _options(tuple(sorted((key, value) for key, value in kwargs.items() if key not in IGNORED)))
    answer = extract_answer(solution_str, options.answer_line)
    gold = gold_text(ground_truth)
    if not gold:
        _warn_missing_gold(str(data_source))
        status = "error"
    elif answer is None:
        status = "no_answer"
    else:
        grader = shared_grader(
            options.deadline_s, options.cpu_s, options.children, options.memory_mb, options.cache_size
        )
        status = grader.grade(gold, answer).status
    correctness = options.correct_value if status == "correct" else options.wrong_value
    if status in ("timeout", "error") and options.timeout_value is not None:
        correctness = options.timeout_value
    well_formed = format_component(solution_str, answer is not None, options.answer_line)
    overlong = 0.0
    if options.overlong_buffer is not None:
        length = response_length(solution_str, extra_info, options)
        overlong = overlong_component(length, options.max_response_length, options.overlong_buffer)
    score = (
        options.correctness_weight * correctness
        + options.format_weight * well_formed
        + options.overlong_weight * overlong
    )
    return {
        "score": float(score),
        "acc": float(status == "correct"),
        "format": well_formed,
        "overlong": overlong,
        "timeout": float(status == "timeout"),
        "extracted": (answer or "")[:MAX_EXTRACTED_CHARS],
        "status": status,
    }
