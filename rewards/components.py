"""Parts of the reward besides correctness: the format of a response, and its length."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from rewards.extract import extract_answer
from rewards.options import MixOptions

logger = logging.getLogger(__name__)

MAX_EXTRACTED_CHARS = 1024  # of the text that goes into logs and dumps; the grader sees all of it
STATUSES = ("correct", "wrong", "no_answer", "timeout", "error")


def format_component(solution_str: str, answer_found: bool, answer_line: bool = False) -> float:
    """1.0 for a response that gives an answer outside its thoughts, else 0.0.

    That is: an answer was found, and if there is a thought, it is one, it ends, and an answer is found after it.

    Args:
        solution_str: the response.
        answer_found: whether ``extract_answer`` finds an answer anywhere in it.
        answer_line: as for ``extract_answer``.
    """
    thought, closing, after = solution_str.rpartition("</think>")
    if not answer_found or "</think>" in thought or thought.count("<think>") > 1 or "<think>" in after:
        return 0.0
    return float(not closing or extract_answer(after, answer_line) is not None)


def overlong_component(length: int, max_response_length: int, overlong_buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), from 0 to -1.

    Args:
        length: of the response, in tokens.
        max_response_length: tokens at which the punishment is whole.
        overlong_buffer: tokens before that over which it grows linearly.
    """
    excess = length - (max_response_length - overlong_buffer)
    return -min(max(excess / overlong_buffer, 0.0), 1.0)


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def response_length(solution_str: str, extra_info: dict | None, options: MixOptions) -> int:
    """Tokens of the response.

    They are ``extra_info["response_length"]`` if it is there, else counted with the tokenizer. A decoded response has
    lost its special tokens, so the count may be one or two short.

    Args:
        solution_str: the decoded response.
        extra_info: as verl passes it.
        options: ``tokenizer`` is the one that counts.

    Raises:
        ValueError: there is neither a length nor a tokenizer.
    """
    length = (extra_info or {}).get("response_length")
    if length is not None:
        return int(length)
    if options.tokenizer is None:
        raise ValueError(
            "the overlong component needs the response's length in tokens: use the reward manager "
            "pkg://rewards.manager (it passes the exact one), or set reward_kwargs.tokenizer to the model's path"
        )
    return len(_tokenizer(options.tokenizer)(solution_str, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=1)
def warn_ungradable(data_source: str, missing: str) -> None:
    """Say that samples of a data set lack what they are graded by; said once as long as the data set is the same.

    Args:
        data_source: the set's name.
        missing: what they lack, such as "ground truth".
    """
    logger.warning(
        "a sample of %r has no %s, so its response gets status=error; run `python -m recipes.data.validate file=…` on "
        "the data before training",
        data_source,
        missing,
    )


def mixed(
    status: str,
    extracted: str | None,
    well_formed: float,
    solution_str: str,
    extra_info: dict | None,
    options: MixOptions,
) -> dict[str, Any]:
    """What a reward function returns for one response, whatever graded it.

    Args:
        status: one of ``STATUSES``.
        extracted: the answer that was found; None if there is none.
        well_formed: the format component, 0 or 1.
        solution_str: the decoded response, whose length may count.
        extra_info: as verl passes it; may carry the length.
        options: the mix.

    Returns:
        The same keys for every sample, since verl averages every numeric one: ``score`` (the mix), ``acc`` (1.0 right,
        0.0 otherwise; the correctness component), ``format`` (0 or 1), ``overlong`` (-1 to 0; 0 if not configured),
        ``timeout`` (1.0 if the deadline passed), and two strings, ``extracted`` and ``status``. Numeric keys are few on
        purpose: verl's validation bootstraps each of them.
    """
    correctness = options.correct_value if status == "correct" else options.wrong_value
    if status in ("timeout", "error") and options.timeout_value is not None:
        correctness = options.timeout_value
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
        "extracted": (extracted or "")[:MAX_EXTRACTED_CHARS],
        "status": status,
    }
