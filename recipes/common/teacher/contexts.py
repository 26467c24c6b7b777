"""What the teacher is shown of each problem or response, and the privileged prompt that it becomes.

The values of `self_distill.teacher.context`, one or several of them:

    solution, answer   the row's reference: worked, or the boxed answer alone
    sibling            the first successful other response of the group (SDPO, arXiv 2601.20802)
    wrong_sibling      unsuccessful other responses, up to `wrong_siblings` of them (RLCSD, arXiv 2606.11709)
    feedback, hint     what the verifier or an environment said of the response, or a column of the data
    none               the teacher's instructions without any reference (a control)
    other_problem      the reference of another problem of the batch, drawn from a seed (a control)

The first is the teacher's own, p_T; each of the others is what it is contrasted with.  A response is never its own
sibling, and its thinking is not shown.  A response that lacks one of them has no teacher: its gap is 0, its divergence
has weight 0, and it is counted.  A row without the solution or answer that it should have is an error, no such case.
With `teaches=failed` successful responses have no teacher either (SRPO, arXiv 2604.02288): the verifier trains them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from recipes.common.teacher.prompts import TEMPLATES, PrivilegedPrompt, privileged_prompt
from recipes.common.teacher.reference import truncate_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXTS = tuple(TEMPLATES)
FROM_GROUP = ("sibling", "wrong_sibling")  # need several rollouts of a problem
OF_RESPONSES = (*FROM_GROUP, "feedback")  # belong to responses of the step, so that a problem alone has none
TEACHES = ("all", "failed")
ALWAYS_THERE = ("solution", "answer", "none")  # refused or raised where they are missing, so that no row is masked


class MissingReference(ValueError):
    """A row that should have a reference for the teacher has none."""


@dataclass(frozen=True)
class ContextParams:
    """The part of `self_distill.teacher` that says what is shown; checked in `recipes.common.checks.learning`.

    Attributes:
        kinds: of `CONTEXTS`; the first is the teacher's own, the others its contrast.
        fallback: shown to the responses that the first is missing for; None leaves them without a teacher.
        wrong_siblings: K, how many unsuccessful siblings are shown at most, each in a prompt of its own.
        seed: of the draw of other problems.
        teaches: which responses have a teacher at all: "all", or "failed", those that were not successful.
    """

    kinds: tuple[str, ...] = ("solution",)
    fallback: str | None = None
    wrong_siblings: int = 4
    seed: int = 0
    teaches: str = "all"

    @property
    def named(self) -> tuple[str, ...]:
        """All that may be shown."""
        return (*self.kinds, *([self.fallback] if self.fallback else []))

    @property
    def may_be_missing(self) -> bool:
        """Whether a response may have no teacher."""
        own = {self.kinds[0], self.fallback or self.kinds[0]}
        if self.teaches != "all":
            return True
        return own.isdisjoint(ALWAYS_THERE) or not set(self.kinds[1:]) <= set(ALWAYS_THERE)

    def sentence(self) -> str:
        """What is shown, for people."""
        first, *others = self.kinds
        shown = f"the {first}" if first != "none" else "no reference"
        shown += f" or else the {self.fallback}" if self.fallback else ""
        k = {"wrong_sibling": f" (up to {self.wrong_siblings})"}
        shown += k.get(first, "") + "".join(f", against the {kind}{k.get(kind, '')}" for kind in others)
        return shown + (", of failed responses only" if self.teaches == "failed" else "")


def context_params(teacher: Any) -> ContextParams:
    """Read it from the node `self_distill.teacher`.

    Raises:
        ValueError: if no context is given or one twice, `wrong_siblings` is below 1, or `teaches` is unknown.
    """
    context = teacher.get("context")
    kinds = (context,) if isinstance(context, str) else tuple(str(kind) for kind in context or ())
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"self_distill.teacher.context={context}: must be one context or a list of different ones")
    count = teacher.get("wrong_siblings", 4)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"self_distill.teacher.wrong_siblings={count}: must be a whole number, 1 or more")
    teaches = teacher.get("teaches", "all")
    if teaches not in TEACHES:
        raise ValueError(f"self_distill.teacher.teaches={teaches}: must be one of {', '.join(TEACHES)}")
    return ContextParams(kinds, teacher.get("fallback"), count, int(teacher.get("seed", 0)), teaches)


@dataclass(frozen=True)
class Response:
    """A row of the batch as contexts see it.

    Attributes:
        row: columns of its problem.
        group: label of its problem's rollouts.
        number: its place among them; "first" means by this and not by the batch's order, which workers change.
        text: the response without its thinking; "" where it has none to show, or where no context shows responses.
        correct: whether it was successful.
        feedback: what the verifier said of it in words.
    """

    row: dict[str, Any]
    group: Any
    number: tuple[int, ...] = ()
    text: str = ""
    correct: bool = False
    feedback: str = ""


def taught(responses: Sequence[Response], params: ContextParams) -> list[bool]:
    """Whether each response is to have a teacher; whether there is anything to show it is another question.

    Args:
        responses: of the global batch.
        params: whose `teaches` says which.
    """
    return [params.teaches == "all" or not response.correct for response in responses]


def shown_texts(kind: str, responses: Sequence[Response], params: ContextParams, *, step: int = 0) -> list[list[str]]:
    """The texts that the teacher of each response is shown under one kind of context: (B) lists, empty for none usable.

    Args:
        kind: one of `CONTEXTS`.
        responses: the global batch, without verl's filler rows.
        params: how many wrong siblings are shown, and the seed of what is drawn.
        step: with `params.seed` it decides which other problem is drawn.

    Raises:
        MissingReference: if the kind is "solution" or "answer", and a row has none.
    """
    if kind in FROM_GROUP:
        return _siblings(responses, 1 if kind == "sibling" else params.wrong_siblings, correct=kind == "sibling")
    if kind == "other_problem":
        return _other_problems([response.row for response in responses], random.Random(f"{params.seed}/{step}"))
    if kind == "none":
        return [[""] for _ in responses]
    of_row: dict[str, Callable[[Response], str]] = {
        "solution": lambda response: reference_of(response.row, "solution"),
        "answer": lambda response: reference_of(response.row, "answer"),
        "hint": lambda response: str(response.row.get("hint") or "").strip(),
        "feedback": lambda response: (response.feedback or str(response.row.get("feedback") or "")).strip(),
    }
    texts = map(of_row[kind], responses)
    return [[text] if text else [] for text in texts]


def _siblings(responses: Sequence[Response], count: int, *, correct: bool) -> list[list[str]]:
    """Up to `count` texts of other responses of each one's group that were, or were not, successful."""
    groups: dict[Any, list[tuple[tuple[int, ...], int]]] = {}
    for i, response in enumerate(responses):
        if response.correct == correct and response.text:
            groups.setdefault(response.group, []).append((response.number, i))
    usable = {group: [i for _, i in sorted(members)] for group, members in groups.items()}
    return [
        [responses[i].text for i in usable.get(response.group, []) if i != own][:count]
        for own, response in enumerate(responses)
    ]


def _other_problems(rows: Sequence[dict[str, Any]], draw: random.Random) -> list[list[str]]:
    """Of each row the reference of another problem, the same one for all rows of a problem."""
    references = {problem_of(row): _any_reference(row) for row in rows}
    problems = sorted(references)  # so that the draw does not depend on the batch's order
    drawn = {}
    for problem in problems:
        others = [other for other in problems if other != problem and references[other]]
        drawn[problem] = [references[draw.choice(others)]] if others else []
    return [drawn[problem_of(row)] for row in rows]


def _any_reference(row: dict[str, Any]) -> str:
    for kind in ("solution", "answer"):
        try:
            return reference_of(row, kind)
        except MissingReference:
            continue
    return ""


def strip_thinking(text: str, *, opened: bool = False) -> str:
    """What a response says after its thinking; "" where that never ended, for then there is nothing but thinking.

    Args:
        text: the response.
        opened: whether the prompt ended inside of the thinking.
    """
    _, closed, answer = text.rpartition("</think>")
    if not closed and (opened or "<think>" in text):
        return ""
    return answer.strip()


@dataclass
class PrivilegedPrompts:
    """Renders each privileged prompt once a step, however many rollouts share it.

    Attributes:
        tokenizer: of the teacher.
        context: of the rows that it is called with: "solution" or "answer".
        max_length: most tokens of a prompt.
        template_kwargs: verl's ``data.apply_chat_template_kwargs``.
        separator: of a truncated reasoning and its answer.
    """

    tokenizer: PreTrainedTokenizerBase
    context: str
    max_length: int
    template_kwargs: dict[str, Any]
    separator: str = ""
    _cache: dict[tuple[str, str, str, float], PrivilegedPrompt] = field(default_factory=dict)

    def __call__(self, row: dict[str, Any], exposure: float = 1.0) -> PrivilegedPrompt:
        """The prompt for a row of the data set.

        Args:
            row: with ``problem``, and ``solution`` or ``answer`` (see `reference_of`).
            exposure: share of the reasoning that is shown before the answer (`truncate_reference`); 1 shows all.
        """
        return self.showing(self.context, row, reference_of(row, self.context), exposure)

    def showing(self, kind: str, row: dict[str, Any], text: str, exposure: float = 1.0) -> PrivilegedPrompt:
        """The prompt for a row's problem that shows a text under the template of a kind of context.

        Args:
            kind: one of `CONTEXTS`.
            row: of the data set, for the problem and its answer.
            text: what is shown.
            exposure: share of a solution's reasoning that is shown; other texts are shown whole.
        """
        problem = problem_of(row)
        key = (kind, problem, text, exposure)
        if key not in self._cache:
            shown, forced = text, False
            if kind == "solution" and exposure < 1.0:
                shown, info = truncate_reference(
                    self.tokenizer, text, exposure, answer_of(row), separator=self.separator
                )
                forced = info["forced_full"]
            prompt = privileged_prompt(
                self.tokenizer,
                problem,
                shown,
                max_length=self.max_length,
                template_kwargs=self.template_kwargs,
                template=TEMPLATES[kind],
            )
            self._cache[key] = replace(prompt, forced_full=forced)
        return self._cache[key]

    def clear(self) -> None:
        """Forget the prompts of this step."""
        self._cache.clear()


def problem_of(row: dict[str, Any]) -> str:
    """The problem's text: the ``problem`` column, else what the user asked in ``raw_prompt``."""
    if row.get("problem"):
        return str(row["problem"])
    return str([m["content"] for m in row["raw_prompt"] if m["role"] == "user"][-1])


def answer_of(row: dict[str, Any]) -> str:
    """The answer's text: the ``answer`` column, else the verifier's ground truth, else empty."""
    answer = row.get("answer") or (row.get("reward_model") or {}).get("ground_truth")
    return "" if answer is None else str(answer)


def has_context(kind: str, row: dict[str, Any]) -> bool:
    """Whether `shown_texts` may be asked for a row: of solutions and answers it raises where there is none.

    Args:
        kind: one of `CONTEXTS`.
        row: of the data set.
    """
    if kind not in ("solution", "answer"):
        return True
    try:
        return bool(reference_of(row, kind))
    except MissingReference:
        return False


def reference_of(row: dict[str, Any], context: str) -> str:
    """The text that the teacher is shown: the ``solution`` column, or the ``answer`` in a box.

    Args:
        row: of the data set.
        context: "solution" or "answer".

    Raises:
        MissingReference: if the column is absent or empty.
    """
    if context == "solution":
        text = str(row.get("solution") or "").strip()
    else:
        answer = answer_of(row)
        text = f"\\boxed{{{answer}}}" if answer else ""
    if not text:
        raise MissingReference(
            f"no {context} to show the teacher for the problem {problem_of(row)[:80]!r}: fill the column "
            f"{context!r}, or "
            "choose the other one with "
            f"self_distill.teacher.context={'answer' if context == 'solution' else 'solution'}"
        )
    return text
