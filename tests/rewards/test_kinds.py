"""Kinds of answers, many of each: what a policy could gain by, and what a reader would accept.

The cases of a kind are graded together, so that a fault shows all that it affects.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

from rewards.compare import equivalent
from rewards.extract import extract_answer
from rewards.grader import Grader
from rewards.normalize import UNREADABLE, canonical, tidy

FILE = Path(__file__).parents[1] / "data" / "grading_kinds.jsonl"
KINDS = {
    kind: list(cases)
    for kind, cases in groupby(map(json.loads, FILE.read_text().splitlines()), key=lambda case: case["kind"])
}


@pytest.fixture(scope="module")
def grader():
    grader = Grader(deadline_s=60, cpu_s=20)  # verdicts are tested here, not the machine's speed
    yield grader
    grader.close()


def statuses(grader: Grader, pairs: list[tuple[str, str]]) -> list[str]:
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda pair: grader.grade(*pair).status, pairs))


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_of_a_kind(grader, kind):
    cases = KINDS[kind]
    pairs = [(case["gold"], extract_answer(f"so $\\boxed{{{case['answer']}}}$.") or "") for case in cases]
    wrongly = [
        f"{case['gold']} | {case['answer']}: {status}"
        for case, status in zip(cases, statuses(grader, pairs), strict=True)
        if status != ("correct" if case["equal"] else "wrong")
    ]
    assert not wrongly, "\n".join(wrongly)


def test_both_verdicts_of_every_kind_are_tested():
    for kind, cases in KINDS.items():
        right = sum(case["equal"] for case in cases)
        assert len(cases) >= 7 and right >= 2 and len(cases) - right >= 2, kind


# What a gold answer and an answer mean depends on which is which only in these kinds: a gold choice is trusted to be
# one letter, "4:30" as a gold answer is a time, and an answer has to be solved.
DIRECTED = ("assorted", "choices", "ratios, dates, times", "unsolved inequalities")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DIRECTED])
def test_equality_has_no_direction(grader, kind):
    cases = [case for case in KINDS[kind] if case["answer"].strip()]
    got = statuses(grader, [(case["answer"], case["gold"]) for case in cases])
    wrongly = [
        f"{case['answer']} | {case['gold']}: {status}"
        for case, status in zip(cases, got, strict=True)
        if (status == "correct") != case["equal"]
    ]
    assert not wrongly, "\n".join(wrongly)


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_equals_itself(grader, kind):
    texts = [text for text in dict.fromkeys(case["answer"] for case in KINDS[kind]) if canonical(text)]
    got = statuses(grader, [(text, text) for text in texts])
    assert [text for text, status in zip(texts, got, strict=True) if status != "correct"] == []


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("$\\dfrac12$", "\\frac{1}{2}"),
        ("\\sqrt[3]7", "\\sqrt[3]{7}"),
        ("x^10", "x^{10}"),
        ("sqrt(x+1)", "\\sqrt{x+1}"),
        ("{1 \\over 2}", "\\frac{1}{2}"),
        ("5 \\text { cm } ^2", "5 \\text{cm} ^{2}"),
        ("\\textcolor{red}{5}\\tag{1}", "5"),
        ("\\$5", "\\text{USD}5"),
        ("5 or more", "5 \\text{or} \\text{more}"),
        ("2 1/4", "\\frac{9}{4}"),
        ("1\\,234", "1234"),
        ("1\\quad 234", "1 234"),
        ("5 \\text{ million dollars}", "5 \\times10^{6} \\text{dollars}"),
        ("（１，２）", "(1,2)"),
        ("x₁² ≤ ½", "x_{1}^{2} \\le\\frac{1}{2}"),
        ("{unbalanced", UNREADABLE + "{unbalanced"),
        ("\\frac", UNREADABLE + "\\frac"),
    ],
)
def test_one_spelling(text, tidied):
    assert tidy(text) == tidied


@pytest.mark.parametrize(
    ("gold", "answer", "how"),
    [
        ("6", "9^{9^{9^{9}}}", "too large"),
        ("6", "(10^{9})!", "too large"),
        ("\\sqrt{2}", "\\sqrt{9^{9^{9^{9}}}}", "too large"),
        ("6", "\\cancel{6}", "unparsed"),
        ("6", "5 6", "unparsed"),
        ("\\sqrt{2}", "\\sqrt{3}", "math"),
        ("B", "A", "text"),
    ],
)
def test_what_decided_is_said(gold, answer, how):
    assert equivalent(gold, answer) == (False, how)
