"""Parts of the reward besides correctness: the format of a response, and its length."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rewards.extract import extract_answer
from rewards.options import RewardOptions


def format_component(solution_str: str, answer_found: bool, answer_line: bool = False) -> float:
    """1.0 for a response that gives an answer outside its thoughts, else 0.0.

    That is: an answer was found, and where there is a thought, it is one, it ends, and an answer is found after it.

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
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), from 0 to -1; all arguments in tokens."""
    excess = length - (max_response_length - overlong_buffer)
    return -min(max(excess / overlong_buffer, 0.0), 1.0)


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def response_length(solution_str: str, extra_info: dict | None, options: RewardOptions) -> int:
    """Tokens of the response: ``extra_info["response_length"]`` where present, else counted with the tokenizer.

    Raises ValueError where neither is there.  A decoded response has lost its special tokens, so the count may be one
    or two short.
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
