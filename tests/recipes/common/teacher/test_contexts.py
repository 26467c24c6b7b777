"""What the teacher is shown: siblings never of themselves, controls from a seed, and rows that have nothing to show."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import AutoTokenizer

from config import STARTER
from recipes.common.step.signals import Scores
from recipes.common.teacher import prompts
from recipes.common.teacher.contexts import (
    CONTEXTS,
    ContextParams,
    MissingReference,
    PrivilegedPrompts,
    Response,
    context_params,
    shown_texts,
    strip_thinking,
    taught,
)
from recipes.common.teacher.sequences import log_mean, response_text


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STARTER / "model")


def group(label, *responses, **columns):
    """Responses (text, correct) to one problem, in order."""
    row = {"problem": f"problem {label}", "solution": f"solution {label}", "answer": label, **columns}
    return [
        Response(row=row, group=label, number=(n, 0), text=text, correct=correct)
        for n, (text, correct) in enumerate(responses)
    ]


A = group("a", ("a0", False), ("a1", True), ("a2", True), ("a3", False))
B = group("b", ("b0", False), ("b1", False))


def shown(kind, responses, **params):
    step = params.pop("step", 0)
    return shown_texts(kind, responses, ContextParams((kind,), **params), step=step)


def test_a_sibling_is_the_first_successful_other_response():
    assert shown("sibling", A + B) == [["a1"], ["a2"], ["a1"], ["a1"], [], []]


def test_wrong_siblings_are_up_to_k_others_and_never_the_response_itself():
    assert shown("wrong_sibling", A + B) == [["a3"], ["a0", "a3"], ["a0", "a3"], ["a0"], ["b1"], ["b0"]]
    assert shown("wrong_sibling", A, wrong_siblings=1) == [["a3"], ["a0"], ["a0"], ["a0"]]


def test_siblings_do_not_depend_on_the_order_of_the_batch():
    order = list(range(6))
    random.Random(3).shuffle(order)
    mixed = [(A + B)[i] for i in order]
    for kind in ("sibling", "wrong_sibling", "other_problem"):
        straight = shown(kind, A + B)
        assert shown(kind, mixed) == [straight[i] for i in order]


def test_a_response_without_text_is_nobodys_sibling():
    silent = group("a", ("", True), ("a1", True), ("", False))
    assert shown("sibling", silent) == [["a1"], [], ["a1"]]
    assert shown("wrong_sibling", silent) == [[], [], []]


def test_other_problems_are_drawn_from_a_seed_and_never_the_rows_own():
    batch = [response for label in "abcdef" for response in group(label, ("x", True), ("y", False))]
    drawn = {}
    for step in range(30):
        texts = shown("other_problem", batch, seed=1, step=step)
        for response, (text,) in zip(batch, texts, strict=True):
            assert text.startswith("solution") and text != f"solution {response.group}"
        assert texts[::2] == texts[1::2]  # one for all responses to a problem
        drawn[step] = texts
        assert shown("other_problem", batch, seed=1, step=step) == texts
    assert len({str(texts) for texts in drawn.values()}) > 20
    assert shown("other_problem", batch, seed=2, step=0) != drawn[0]


def test_the_same_problem_under_two_labels_is_not_another_problem():
    twice = [*A, Response(row=A[0].row, group="again", number=(0, 0))]
    assert shown("other_problem", twice) == [[]] * 5


def test_another_problems_answer_where_it_has_no_solution():
    answers = [*group("1", ("x", True), solution=""), *group("2", ("x", True), solution="")]
    assert shown("other_problem", answers) == [["\\boxed{2}"], ["\\boxed{1}"]]


def test_columns_feedback_and_nothing():
    rows = [
        Response({"problem": "p", "hint": " try 2 ", "feedback": "column"}, "a", feedback="verifier"),
        Response({"problem": "p", "feedback": "column"}, "a"),
        Response({"problem": "p"}, "a"),
    ]
    assert shown("hint", rows) == [["try 2"], [], []]
    assert shown("feedback", rows) == [["verifier"], ["column"], []]
    assert shown("none", rows) == [[""], [""], [""]]
    with pytest.raises(MissingReference):
        shown("solution", rows)


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        ("<think>2+2</think>\n\nFour.", False, "Four."),
        ("2+2</think>Four.", True, "Four."),
        ("<think>never ends", False, ""),
        ("never ends", True, ""),
        ("Four.", False, "Four."),
    ],
)
def test_thinking_is_not_shown(text, opened, answer):
    assert strip_thinking(text, opened=opened) == answer


def test_a_response_as_text(tokenizer):
    """Special tokens go, the thinking marks are seen even where they are special, masked tokens do not count."""
    end = tokenizer.eos_token_id
    student = torch.tensor(prompts.render(tokenizer, prompts.student_messages("1+1"), {"enable_thinking": False}))
    ids = torch.tensor([*tokenizer.encode("1+1=2;\\boxed{2}"), end, *tokenizer.encode("junk")])
    mask = torch.ones_like(ids)
    mask[-4:] = 0
    assert response_text(tokenizer, ids, mask, student) == "1+1=2;\\boxed{2}"
    thought = torch.tensor(tokenizer.encode("<think>hm</think>\\boxed{2}"))
    assert response_text(tokenizer, thought, torch.ones_like(thought), student) == "\\boxed{2}"
    opened = torch.tensor(tokenizer.encode("<|im_start|>assistant\n<think>\n"))
    cut = torch.tensor(tokenizer.encode("hm"))
    assert response_text(tokenizer, cut, torch.ones_like(cut), opened) == ""


@pytest.mark.parametrize("kind", CONTEXTS)
def test_every_context_has_a_template_and_ends_as_the_students_prompt_does(tokenizer, kind):
    kwargs = {"enable_thinking": False}
    student = prompts.render(tokenizer, prompts.student_messages("1+1"), kwargs)
    make = PrivilegedPrompts(tokenizer, "solution", 512, kwargs)
    prompt = make.showing(kind, {"problem": "1+1"}, "XYZZY")
    text = tokenizer.decode(prompt.token_ids)
    assert ("XYZZY" in text) == (kind != "none")
    assert text.startswith("<|im_start|>user\nProblem: 1+1\n\n")
    marker = prompts.BOXED_INSTRUCTION
    assert text.rpartition(marker)[2] == tokenizer.decode(student).rpartition(marker)[2]
    assert not prompt.truncated
    make.max_length = len(prompt.token_ids) - 2
    make.clear()
    if kind != "none":
        assert make.showing(kind, {"problem": "1+1"}, "XYZZY").truncated


def test_right_and_wrong_siblings_differ_in_their_text_only():
    assert prompts.TEMPLATES["sibling"] is prompts.TEMPLATES["wrong_sibling"]
    assert prompts.TEMPLATES["solution"] is prompts.TEMPLATES["other_problem"]


def test_the_mixture_of_several_prompts():
    first, second = torch.tensor([0.2, 0.5]).log(), torch.tensor([0.6, 0.1]).log()
    torch.testing.assert_close(log_mean([first, second]), torch.tensor([0.4, 0.3]).log())
    assert log_mean([first]) is first
    far = log_mean([torch.tensor([-1000.0]), torch.tensor([-1001.0])])
    assert far.item() == pytest.approx(-1000 + math.log((1 + math.exp(-1)) / 2))


def test_gaps_of_responses_without_a_teacher_are_zero_and_do_not_count():
    ones = torch.ones(2, 3)
    scores = Scores(
        nested_mask=ones,
        mask=ones.bool(),
        token_ids=ones.long(),
        student=-2.0 * ones,
        entropy=ones,
        teacher=torch.tensor([[-1.0] * 3, [0.0] * 3]),
        contrast=torch.tensor([[-1.5] * 3, [0.0] * 3]),
        has_teacher=torch.tensor([True, False]),
    )
    assert scores.gap.tolist() == [[1.0] * 3, [0.0] * 3]
    assert scores.contrast_gap.tolist() == [[0.5] * 3, [0.0] * 3]
    assert (scores.gap_mean, scores.gap_abs_mean) == (1.0, 1.0)
    found = scores.metrics()
    assert found["teacher/log_prob/mean"] == -1.0 and found["teacher/contrast_gap/abs_mean"] == 0.5


def test_the_teacher_may_be_for_failed_responses_alone():
    assert taught(A + B, ContextParams(("sibling",))) == [True] * 6
    failed = context_params({"context": "solution", "teaches": "failed"})
    assert taught(A + B, failed) == [True, False, False, True, True, True]
    assert failed.may_be_missing  # though a solution never is
    assert failed.sentence() == "the solution, of failed responses only"


@pytest.mark.parametrize(
    ("node", "kinds"),
    [({"context": "answer"}, ("answer",)), ({"context": ["sibling", "wrong_sibling"]}, ("sibling", "wrong_sibling"))],
)
def test_one_context_or_several(node, kinds):
    assert context_params(node).kinds == kinds


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"context": []}, "must be one context or a list"),
        ({"context": ["sibling", "sibling"]}, "list of different ones"),
        ({"context": "sibling", "teaches": "right"}, "teaches=right: must be one of all, failed"),
        ({"context": "sibling", "wrong_siblings": 0}, "wrong_siblings=0: must be a whole number"),
    ],
)
def test_wrong_contexts_are_refused(node, message):
    with pytest.raises(ValueError, match=message):
        context_params(node)


@pytest.mark.parametrize(
    ("kinds", "fallback", "missing"),
    [
        (("solution",), None, False),
        (("none",), None, False),
        (("sibling",), None, True),
        (("other_problem",), None, True),
        (("sibling",), "solution", False),
        (("sibling",), "feedback", True),
        (("solution", "wrong_sibling"), None, True),
        (("solution", "none"), None, False),
    ],
)
def test_whether_a_response_may_have_no_teacher(kinds, fallback, missing):
    assert ContextParams(kinds, fallback).may_be_missing == missing
