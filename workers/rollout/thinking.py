"""Chat templates that open a thinking block whatever `enable_thinking` says (DeepSeek-R1-Distill, Olmo-3-Think).

Where the flag says no and the rendered prompt ends inside a thinking block, the block is closed at once, as templates
that know the flag do (PW-OPSD, arXiv 2605.21606, section 4.4).  Student and teacher are rendered by the same rule, so
that the first token of a response means the same to both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSING = "<think>", "</think>\n\n"


def thinking_is_open(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt's text ends in `<think>`, white space aside.

    Args:
        tokenizer: the prompt's.
        prompt_ids: token ids.
    """
    return str(tokenizer.decode(list(prompt_ids[-8:]))).rstrip().endswith(OPEN)


def with_thinking_closed(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], template_kwargs: Mapping[str, Any]
) -> list[int]:
    """A rendered prompt's ids, with the thinking closed where it should be off and the template left it open.

    Args:
        tokenizer: the prompt's.
        prompt_ids: token ids of the prompt.
        template_kwargs: those of the chat template; only `enable_thinking=False` closes anything.
    """
    ids = list(prompt_ids)
    if template_kwargs.get("enable_thinking") is False and thinking_is_open(tokenizer, ids):
        ids += tokenizer.encode(CLOSING, add_special_tokens=False)
    return ids
