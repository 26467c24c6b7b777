"""Both prompts end alike, only references are cut, and the teacher reads the student's own token ids."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from config import STARTER
from recipes.common.teacher import prompts
from recipes.common.teacher.contexts import MissingReference, PrivilegedPrompts, problem_of, reference_of
from recipes.common.teacher.sequences import teacher_sequences

PROBLEM, SOLUTION = "7+5*3", "7+5=2;2*3=6;\\boxed{6}"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STARTER / "model")


def rendered(tokenizer, messages, **kwargs) -> str:
    return tokenizer.decode(prompts.render(tokenizer, messages, kwargs), skip_special_tokens=False)


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_student_and_teacher_prompts_end_in_the_same_state(tokenizer, kwargs):
    """Whatever follows the user's turn must be equal, or the first response token is scored in another context."""
    marker = prompts.BOXED_INSTRUCTION
    student = rendered(tokenizer, prompts.student_messages(PROBLEM), **kwargs).rpartition(marker)[2]
    teacher = rendered(tokenizer, prompts.teacher_messages(PROBLEM, SOLUTION), **kwargs).rpartition(marker)[2]
    assert student == teacher and "assistant" in student


def test_the_teacher_sees_the_reference_between_its_marks_and_the_student_does_not(tokenizer):
    teacher = rendered(tokenizer, prompts.teacher_messages(PROBLEM, SOLUTION))
    assert f"{prompts.REFERENCE_BEGIN}\n{SOLUTION}\n{prompts.REFERENCE_END}" in teacher
    student = rendered(tokenizer, prompts.student_messages(PROBLEM))
    assert SOLUTION not in student and prompts.REFERENCE_BEGIN not in student
    assert PROBLEM in student and prompts.BOXED_INSTRUCTION in student


def test_only_the_reference_is_cut_and_by_no_more_than_needed(tokenizer):
    long = SOLUTION * 20
    whole = prompts.privileged_prompt(tokenizer, PROBLEM, long, max_length=10_000, template_kwargs={})
    assert not whole.truncated
    limit = len(whole.token_ids) - 50
    cut = prompts.privileged_prompt(tokenizer, PROBLEM, long, max_length=limit, template_kwargs={})
    assert cut.truncated and limit - 2 <= len(cut.token_ids) <= limit
    text = tokenizer.decode(cut.token_ids, skip_special_tokens=False)
    shown = text.partition(f"{prompts.REFERENCE_BEGIN}\n")[2].partition(f"\n{prompts.REFERENCE_END}")[0]
    assert long.startswith(shown) and len(shown) > 0
    assert text.endswith(
        tokenizer.decode(whole.token_ids, skip_special_tokens=False).rpartition(prompts.REFERENCE_END)[2]
    )


def test_a_problem_that_leaves_no_room_is_an_error_with_both_numbers(tokenizer):
    with pytest.raises(ValueError, match=r"max_prompt_length=5\b"):
        prompts.privileged_prompt(tokenizer, PROBLEM, SOLUTION, max_length=5, template_kwargs={})


def test_references_come_from_the_chosen_column():
    row = {"problem": PROBLEM, "solution": SOLUTION, "answer": "6", "raw_prompt": []}
    assert reference_of(row, "solution") == SOLUTION
    assert reference_of(row, "answer") == "\\boxed{6}"
    assert reference_of({"reward_model": {"ground_truth": "6"}, "problem": "p"}, "answer") == "\\boxed{6}"
    assert problem_of({"raw_prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}) == "u"


@pytest.mark.parametrize(("context", "other"), [("solution", "answer"), ("answer", "solution")])
def test_a_missing_reference_names_the_problem_and_the_other_choice(context, other):
    with pytest.raises(MissingReference, match=f"teacher.context={other}"):
        reference_of({"problem": PROBLEM, "solution": " ", "answer": ""}, context)


def test_each_problem_is_rendered_once_a_step(tokenizer):
    calls = []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def apply_chat_template(self, *args, **kwargs):
            calls.append(args)
            return tokenizer.apply_chat_template(*args, **kwargs)

    make = PrivilegedPrompts(Counting(), context="solution", max_length=1000, template_kwargs={})
    row = {"problem": PROBLEM, "solution": SOLUTION}
    assert [make(row).token_ids for _ in range(8)] == [make(row).token_ids] * 8
    assert len(calls) == 1


def test_teacher_sequences_are_prompt_ids_then_response_ids():
    responses = [torch.tensor([7, 8, 9]), torch.tensor([5])]
    masks = [torch.tensor([1, 1, 1]), torch.tensor([0])]
    fields = teacher_sequences([[1, 2], [3, 4, 6]], responses, masks)
    assert [row.tolist() for row in fields["input_ids"].unbind()] == [[1, 2, 7, 8, 9], [3, 4, 6, 5]]
    assert [row.tolist() for row in fields["position_ids"].unbind()] == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
    assert [row.tolist() for row in fields["loss_mask"].unbind()] == [[1, 1, 1], [0]]
