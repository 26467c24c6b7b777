"""What a data set's row gives the teacher to see, and the privileged prompt that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from recipes.common.teacher.prompts import PrivilegedPrompt, privileged_prompt
from recipes.common.teacher.reference import truncate_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MissingReference(ValueError):
    """A row that should have a reference for the teacher has none."""


@dataclass
class PrivilegedPrompts:
    """Renders each problem's privileged prompt once a step, however many rollouts it has, and counts what it cut."""

    tokenizer: PreTrainedTokenizerBase
    context: str  # "solution" or "answer"
    max_length: int
    template_kwargs: dict[str, Any]
    separator: str = ""  # of a truncated reasoning and its answer
    _cache: dict[tuple[str, str, float], PrivilegedPrompt] = field(default_factory=dict)

    def __call__(self, row: dict[str, Any], exposure: float = 1.0) -> PrivilegedPrompt:
        """The prompt for a dataset row with ``problem`` and ``solution`` or ``answer`` (see `reference_of`).

        exposure: share of the reasoning that is shown before the answer (`truncate_reference`); 1 shows all.
        """
        problem, reference = problem_of(row), reference_of(row, self.context)
        key = (problem, reference, exposure)
        if key not in self._cache:
            shown, info = truncate_reference(
                self.tokenizer, reference, exposure, answer_of(row), separator=self.separator
            )
            prompt = privileged_prompt(
                self.tokenizer, problem, shown, max_length=self.max_length, template_kwargs=self.template_kwargs
            )
            self._cache[key] = replace(prompt, forced_full=info["forced_full"])
        return self._cache[key]

    def clear(self) -> None:
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


def reference_of(row: dict[str, Any], context: str) -> str:
    """The text that the teacher is shown: the ``solution`` column, or the ``answer`` in a box.

    Raises:
        MissingReference: the column is absent or empty.
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
