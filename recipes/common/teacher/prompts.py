"""Prompts of the student and of its privileged self-teacher.

One model plays both parts. The student sees the problem; the teacher sees the problem and something more (a worked
solution or a part of it, an answer, another response, feedback, a hint) and scores the student's own response tokens.
The structure of both prompts is OPSD's (arXiv 2601.18734, Appendix); the wording is ours.

What is to differ only in its content is shown under one template: the reference of this problem and of another one (a
control), a right and a wrong response of the group (as references both, in RLCSD, arXiv 2606.11709: what any hint does
to the style then cancels).

Two rules keep the comparison fair.  Token in, token out: a response is never re-tokenised, the teacher reads the
rendered prompt's ids followed by the response's ids.  Same start: both prompts end in the same state of the chat
template (thinking closed or open), so the first response token means the same to both; a template that opens thinking
although it should be off has it closed (`workers.rollout.thinking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.rollout.thinking import with_thinking_closed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
REFERENCE_BEGIN = "=== Reference Solution Begin ==="
REFERENCE_END = "=== Reference Solution End ==="


@dataclass(frozen=True)
class Template:
    """How something is shown to the teacher, between the problem and the instruction to box the answer.

    Attributes:
        notice: says what follows.
        begin, end: the lines around it.
        transition: what to do with it.
    """

    notice: str
    begin: str
    end: str
    transition: str

    def block(self, text: str) -> str:
        """The text with all that stands around it; the transition alone where the template shows nothing."""
        shown = f"{self.notice}\n{self.begin}\n{text}\n{self.end}\n\n" if self.begin else ""
        return f"{shown}{self.transition}"


REFERENCE = Template(
    "A reference solution to this problem is given below.",
    REFERENCE_BEGIN,
    REFERENCE_END,
    "Read the reference until each of its steps is clear to you, then put it aside and solve the problem yourself. "
    "Reach the same answer by reasoning of your own, one step at a time, neither quoting the reference nor rewording "
    "it. You are free to explore, to doubt a step and to go back.",
)
FEEDBACK = Template(
    "An earlier attempt at this problem received the feedback below.",
    "=== Feedback Begin ===",
    "=== Feedback End ===",
    "Take from the feedback what went wrong and what to do about it, then solve the problem from the start. Do not "
    "speak of the feedback or of the earlier attempt.",
)
HINT = Template(
    "A hint for this problem is given below.",
    "=== Hint Begin ===",
    "=== Hint End ===",
    "Keep the hint in mind and solve the problem yourself, one step at a time, without speaking of the hint.",
)
NOTHING = Template(
    "",
    "",
    "",
    "Solve the problem by reasoning of your own, one step at a time. You are free to explore, to doubt a step and to "
    "go back.",
)

# Template of each value of `self_distill.teacher.context`.
TEMPLATES = {
    "solution": REFERENCE,
    "answer": REFERENCE,
    "other_problem": REFERENCE,
    "sibling": REFERENCE,
    "wrong_sibling": REFERENCE,
    "feedback": FEEDBACK,
    "hint": HINT,
    "none": NOTHING,
}


def student_messages(problem: str) -> list[dict[str, str]]:
    """The student's chat: one user turn with the problem and the instruction to box the answer (OPSD, prompt form)."""
    return [{"role": "user", "content": f"Problem: {problem}\n\n{BOXED_INSTRUCTION}"}]


def teacher_messages(problem: str, reference: str, template: Template = REFERENCE) -> list[dict[str, str]]:
    """The privileged teacher's chat: one user turn with the problem, what it is shown and the same instruction.

    Args:
        problem: its text.
        reference: what the teacher is shown.
        template: the words around it.
    """
    content = f"Problem: {problem}\n\n{template.block(reference)}\n\n{BOXED_INSTRUCTION}"
    return [{"role": "user", "content": content}]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template_kwargs: dict) -> list[int]:
    """Token ids of a chat up to the point where the assistant speaks.

    Args:
        tokenizer: whose chat template is used.
        messages: of the chat, with ``role`` and ``content``.
        template_kwargs: verl's ``data.apply_chat_template_kwargs``; the student's prompt is rendered with the same
            ones, which is what makes both prompts end in the same state.  With ``enable_thinking=False`` that state is
            outside of a thinking block, whatever the template.
    """
    ids: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )
    return with_thinking_closed(tokenizer, list(ids), template_kwargs)


@dataclass(frozen=True)
class PrivilegedPrompt:
    """A teacher's prompt.

    Attributes:
        token_ids: up to where the assistant speaks.
        truncated: whether the reference had to be cut to fit.
        forced_full: whether the whole reference is shown although a part was asked for, since it has no answer to keep.
    """

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
    template: Template = REFERENCE,
) -> PrivilegedPrompt:
    """The teacher's prompt in a limited length; only the reference is ever cut, from its end.

    Args:
        tokenizer: whose chat template is used.
        problem: its text.
        reference: what the teacher is shown.
        max_length: most tokens of the prompt.
        template_kwargs: as in `render`.
        template: the words around the reference.

    Raises:
        ValueError: if the prompt does not fit even with an empty reference; names both lengths and the setting.
    """
    ids = render(tokenizer, teacher_messages(problem, reference, template), template_kwargs)
    if len(ids) <= max_length:
        return PrivilegedPrompt(ids, truncated=False)
    bare = len(render(tokenizer, teacher_messages(problem, "", template), template_kwargs))
    if bare > max_length:
        raise ValueError(
            f"the teacher's prompt takes {bare} tokens without any reference, more than "
            f"self_distill.teacher.max_prompt_length={max_length}: raise it to at least {bare} plus the references"
        )
    reference_ids = tokenizer.encode(reference, add_special_tokens=False)
    keep = max_length - bare
    while True:  # decoding and rendering again may merge or split tokens at the cut: take off what is too much
        cut = str(tokenizer.decode(reference_ids[:keep], skip_special_tokens=False)).rstrip("\ufffd")
        ids = render(tokenizer, teacher_messages(problem, cut, template), template_kwargs)
        if len(ids) <= max_length or keep == 0:
            return PrivilegedPrompt(ids, truncated=True)
        keep = max(0, keep - (len(ids) - max_length))
