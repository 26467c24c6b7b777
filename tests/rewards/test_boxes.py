"""The one box parser: what a box is, which is the last, its span for the exposure, its content for the grader."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.teacher.reference import split_reference
from recipes.data.convert import to_item
from recipes.data.spec import DatasetSpec
from recipes.starter.task import boxed_answer
from rewards.boxes import last_box
from rewards.extract import last_boxed
from rewards.math import compute_score

NESTED = [
    # text, span, content
    (r"so \boxed{\boxed{3}} it is", r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{x=\boxed{5}}", r"\boxed{x=\boxed{5}}", "5"),
    (r"\boxed{x=\boxed{5}}, no, \boxed{6}", r"\boxed{6}", "6"),
    (r"\fbox{\boxed{4}}", r"\fbox{\boxed{4}}", "4"),
    (r"\boxed{7 \boxed{8}", r"\boxed{8}", "8"),  # the outer one never closes
    (r"\boxed{7 \boxed{}}", r"\boxed{7 \boxed{}}", r"7 \boxed{}"),
    (r"\boxed{\boxed{}}", None, None),
    (r"\boxed{\boxed 2}", r"\boxed{\boxed 2}", "2"),
]
BRACES = [
    (r"\boxed{6}", r"\boxed{6}", "6"),
    (r"\boxed {9} and", r"\boxed {9}", "9"),
    ("\\boxed\n{9}", "\\boxed\n{9}", "9"),
    (r"\boxed{ 9 }", r"\boxed{ 9 }", "9"),
    (r"\fbox{1}, \boxed{2}, \fbox{3}", r"\fbox{3}", "3"),
    (r"\boxed{\{1, 2\}}", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.} end", r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{a \\} end", r"\boxed{a \\}", r"a \\"),  # an escaped backslash escapes no brace
    (r"\\{\boxed{5}", r"\boxed{5}", "5"),
    (r"\\boxed{5}", r"\\boxed{5}", "5"),  # escaped twice
    (r"x \\\boxed{5}", r"\boxed{5}", "5"),  # a new line before it
    (r"} \boxed{4} {", r"\boxed{4}", "4"),
    (r"\boxed{7} as in \boxed{} or \boxed{ }", r"\boxed{7}", "7"),
    (r"\boxed{7} and \boxed{8", r"\boxed{7}", "7"),
    (r"\boxed{{}} \boxed{{}5}", r"\boxed{{}5}", "{}5"),
    (r"\boxedx{5} \unboxed{6}", None, None),
    ("boxed{5}", None, None),
    ("", None, None),
]
BARE = [
    (r"$x=\boxed 2$ so", r"\boxed 2", "2"),
    (r"\boxed{1} was wrong: $\boxed 25$.", r"\boxed 25", "25"),
    (r"\boxed{1}, $\boxed2$", r"\boxed2", "2"),
    (r"\(\boxed -5\)", r"\boxed -5", "-5"),
    (r"\[\boxed \frac{1}{2}.\]", r"\boxed \frac{1}{2}", r"\frac{1}{2}"),
    (r"$\boxed\frac12$", r"\boxed\frac12", r"\frac12"),
    (r"$\boxed x=5$ and $y$", r"\boxed x=5", "x=5"),
    (r"$\boxed 2 \text{ cm}$", r"\boxed 2 \text{ cm}", r"2 \text{ cm}"),
    (r"\boxed{1} then \boxed 1,234 units", r"\boxed 1,234", "1,234"),
    (r"\boxed{1} then \boxed\sqrt[3]{2} units", r"\boxed\sqrt[3]{2}", r"\sqrt[3]{2}"),
    (r"\boxed{1} then \boxed (2, 3).", r"\boxed (2, 3)", "(2, 3)"),
    (r"\boxed{1} then \boxed A.", r"\boxed A", "A"),
    (r"{\boxed 2}$", r"\boxed 2", "2"),
    (r"\boxed{7}. Use \boxed and nothing else.", r"\boxed{7}", "7"),
    (r"\boxed{7}. Use \boxed a little.", r"\boxed{7}", "7"),
    (r"\boxed{7}, see \boxed, e.g. $x$", r"\boxed{7}", "7"),
    (r"\boxed{7}, see \boxed: it costs $5", r"\boxed{7}", "7"),
    (r"\boxed", None, None),
    (r"\boxed $", None, None),
]


@pytest.mark.parametrize(("text", "span", "content"), NESTED + BRACES + BARE)
def test_span_and_content(text, span, content):
    box = last_box(text)
    assert (box and text[box.start : box.end], box and box.content) == (span, content)
    assert last_boxed(text) == boxed_answer(text) == content


@pytest.mark.parametrize(("text", "span", "content"), NESTED + BRACES + BARE)
def test_the_teachers_reference_is_split_at_the_same_box(text, span, content):
    reason, boxed, _ = split_reference(text, answer="12")
    assert boxed == (span or r"\boxed{12}")
    assert reason == (text[: text.rindex(span)] if span else text)


def test_gold_answers_come_from_the_last_box_with_braces_or_without():
    spec = DatasetSpec(
        name="set", hub="", split="train", role="train", problem="problem", answer=None, solution="solution"
    )
    row = {"problem": "p", "solution": r"First $\boxed{1}$ was tried; it is $\boxed 2$."}
    assert to_item(row, spec, 0).answer == "2"


def test_a_box_without_braces_is_graded():
    assert compute_score("t", r"not $\boxed{1}$ but $\boxed 2$.", "2")["acc"] == 1.0
    assert compute_score("t", r"not $\boxed{1}$ but $\boxed 2$.", "1")["acc"] == 0.0


PIECES = [
    "\\boxed", "\\fbox", "{", "}", "\\{", "\\}", "\\\\", "$", " ", "\n", "1", "x", "ab", "(", ")", ",", "\\)",
    "\\frac12",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
@settings(max_examples=300, deadline=None)
def test_a_box_lies_in_its_text_and_holds_its_content(text):
    box = last_box(text)
    if box is None:
        return
    span = text[box.start : box.end]
    assert span.lstrip("\\").startswith(("boxed", "fbox")) and box.content and box.content in span
    assert box.content == box.content.strip()
    assert last_box(span + "$") == (0, len(span), box.content)  # a span is a text whose last box is all of it


@given(st.text("ab {}\\$", max_size=20), st.text("ab $", max_size=20))
@settings(max_examples=200, deadline=None)
def test_what_comes_before_a_sound_box_does_not_matter(before, after):
    box = last_box(before + " \\fbox{12} " + after)
    assert box is not None and box.content == "12" and box.end == len(before) + len(" \\fbox{12}")


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000, "\\boxed{1}" + "{" * 500_000, "\\fbox{{}" * 50_000, "}" * 10**6,
        "\\" * 10**6 + "boxed{1}",
        "\\boxed " * 100_000, "\\boxed 1$" * 50_000, "\\boxed" + " " * 10**6, ("\\boxed" + " " * 1000) * 1000,
        "\\boxed $" * 100_000, "\\boxed{1}" + "a" * 10**6,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_linear_in_any_text(text):
    begin = time.process_time()
    last_box(text)
    assert time.process_time() - begin < 3.0
