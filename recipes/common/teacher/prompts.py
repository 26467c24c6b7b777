"""Prompts of the student and of its privileged self-teacher.

One model plays both parts. The student sees the problem; the teacher sees the problem and a reference (a worked
solution, a part of one, or only its answer) and scores the student's own response tokens.  The structure of both
prompts is OPSD's (arXiv 2601.18734, Appendix); the wording is ours.

Two rules keep the comparison fair.  Token in, token out: a response is never re-tokenised, the teacher reads the
rendered prompt's ids followed by the response's ids.  Same start: both prompts end in the same state of the chat
template (thinking closed or open), so the first response token means the same to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
REFERENCE_NOTICE = "A reference solution to this problem is given below."
REFERENCE_BEGIN = "=== Reference Solution Begin ==="
REFERENCE_END = "=== Reference Solution End ==="
TRANSITION = (
    "Read the reference until each of its steps is clear to you, then put it aside and solve the problem yourself. "
    "Reach the same answer by reasoning of your own, one step at a time, neither quoting the reference nor rewording "
    "it. You are free to explore, to doubt a step and to go back."
)


def student_messages(problem: str) -> list[dict[str, str]]:
    """The student's chat: one user turn with the problem and the instruction to box the answer (OPSD, prompt form)."""
    return [{"role": "user", "content": f"Problem: {problem}\n\n{BOXED_INSTRUCTION}"}]


def teacher_messages(problem: str, reference: str) -> list[dict[str, str]]:
    """The privileged teacher's chat: one user turn with the problem, the reference and the same instruction."""
    content = (
        f"Problem: {problem}\n\n{REFERENCE_NOTICE}\n{REFERENCE_BEGIN}\n{reference}\n{REFERENCE_END}\n\n"
        f"{TRANSITION}\n\n{BOXED_INSTRUCTION}"
    )
    return [{"role": "user", "content": content}]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template_kwargs: dict) -> list[int]:
    """Token ids of a chat up to the point where the assistant speaks.

    ``template_kwargs`` are verl's ``data.apply_chat_template_kwargs``; the student's prompt is rendered with the same
    ones, which is what makes both prompts end in the same state.
    """
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )
    return list(ids)


@dataclass(frozen=True)
class PrivilegedPrompt:
    """A teacher's prompt: its token ids, whether the reference had to be cut to fit, or could not be shown in part."""

    token_ids: list[int]
    truncated: bool
    forced_full: bool = False


def privileged_prompt(
    tokenizer: PreTrainedTokenizerBase,
    problem: str,
    reference: str,
    *,
    max_length: int,
    template_kwargs: dict,
) -> PrivilegedPrompt:
    """The teacher's prompt in at most ``max_length`` tokens; only the reference is ever cut, from its end.

    Raises:
        ValueError: the prompt does not fit even with an empty reference; names both lengths and the setting.
    """
    ids = render(tokenizer, teacher_messages(problem, reference), template_kwargs)
    if len(ids) <= max_length:
        return PrivilegedPrompt(ids, truncated=False)
    bare = len(render(tokenizer, teacher_messages(problem, ""), template_kwargs))
    if bare > max_length:
        raise ValueError(
            f"the teacher's prompt takes {bare} tokens without any reference, more than "
            f"self_distill.teacher.max_prompt_length={max_length}: raise it to at least {bare} plus the references"
        )
    reference_ids = tokenizer.encode(reference, add_special_tokens=False)
    keep = max_length - bare
    while True:  # decoding and rendering again may merge or split tokens at the cut: take off what is too much
        cut = str(tokenizer.decode(reference_ids[:keep], skip_special_tokens=False)).rstrip("\ufffd")
        ids = render(tokenizer, teacher_messages(problem, cut), template_kwargs)
        if len(ids) <= max_length or keep == 0:
            return PrivilegedPrompt(ids, truncated=True)
        keep = max(0, keep - (len(ids) - max_length))
