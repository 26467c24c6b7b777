"""Programs and choices as rewards: what is taken from a response, how it is scored, and verl's own call of it."""

from __future__ import annotations

import pytest

from rewards import by_grader, choice, code
from rewards.code import CodeOptions, Task, extract_program, ground_truth_of
from rewards.math import compute_score as math_score
from rewards.metrics import reward_metrics

GOLD = ground_truth_of(Task("assert f(2) == 4", "f"))
RIGHT = "def f(x):\n    return x * x"


def fenced(program: str, language: str = "python") -> str:
    return f"```{language}\n{program}\n```"


# ------------------------------------------------------------------ programs


@pytest.mark.parametrize(
    ("response", "program"),
    [
        (fenced(RIGHT), RIGHT),
        (f"Here it is:\n\n{fenced(RIGHT)}\n\nIt squares.", RIGHT),
        (f"Sure: {fenced(RIGHT)}", RIGHT),
        (fenced(RIGHT, ""), RIGHT),
        (fenced(RIGHT, "Python"), RIGHT),
        (fenced(RIGHT).replace("```", "~~~"), RIGHT),
        # The last block that defines the function, not an example of its use; else the last one.
        (f"{fenced('def f(x): return 1')}\nBetter:\n{fenced(RIGHT)}\nUse:\n{fenced('print(f(2))')}", RIGHT),
        (f"{fenced(RIGHT)}\n```\n4\n```", RIGHT),
        (f"{fenced('f = lambda x: x * x')}", "f = lambda x: x * x"),
        (fenced("def g(x):\n    return x"), "def g(x):\n    return x"),
        (f"```json\n{{}}\n```\n{fenced(RIGHT)}", RIGHT),
        (f"```python\n{RIGHT}", RIGHT),  # cut at the length limit
        (RIGHT, RIGHT),
        (f"Of course.\n\nimport math\n{RIGHT}", f"import math\n{RIGHT}"),
        (f"<think>{fenced('def f(x): pass')}</think>{fenced(RIGHT)}", RIGHT),
        (f"<think>{fenced(RIGHT)}", None),
        ("I cannot.", None),
        ("", None),
        ("```python\n```", None),
        ("```c\nint f(int x);\n```", None),
        ("import antigravity, which does not define it", None),
    ],
)  # fmt: skip
def test_the_program_of_a_response(response, program):
    found, _ = extract_program(response, "f")
    assert (found.strip() if found is not None else None) == program


def test_a_million_fences_are_read_in_no_time():
    import time

    begin = time.monotonic()
    for response in ("```" * 300_000, "```python\n" * 100_000, "~~~\n```\n" * 100_000, "def f" * 200_000):
        extract_program(response, "f")
    assert time.monotonic() - begin < 30  # quadratic time would take hours


@pytest.mark.parametrize(
    ("response", "gold", "status", "format_"),
    [
        (fenced(RIGHT), GOLD, "correct", 1.0),
        (RIGHT, GOLD, "correct", 0.0),
        (fenced("def f(x):\n    return x"), GOLD, "wrong", 1.0),
        (fenced("def g(x):\n    return x"), GOLD, "wrong", 1.0),
        (fenced("while True: pass"), GOLD, "wrong", 1.0),
        (fenced("import os; os._exit(0)"), GOLD, "wrong", 1.0),
        ("No.", GOLD, "no_answer", 0.0),
        (fenced(RIGHT), None, "error", 0.0),
        (fenced(RIGHT), "", "error", 0.0),
        (fenced(RIGHT), "[1]", "error", 0.0),
        (fenced(RIGHT), ground_truth_of(Task("", "f")), "error", 0.0),
    ],
)
def test_scores_have_the_keys_of_every_grader(response, gold, status, format_):
    reply = code.compute_score("set", response, gold, {}, cpu_s=1, wall_s=30)
    assert set(reply) == set(math_score("set", "\\boxed{1}", "1"))
    assert (reply["status"], reply["format"], reply["acc"]) == (status, format_, float(status == "correct"))
    assert reply["timeout"] == 0.0  # a slow program is wrong; only grading itself times out
    assert reward_metrics([reply])[f"reward/{status}_rate"] == 1.0


def test_the_mix_is_that_of_mathematics():
    kwargs = {"correct_value": 2.0, "wrong_value": -1.0, "format_weight": 0.5}
    assert code.compute_score("", fenced(RIGHT), GOLD, {}, **kwargs)["score"] == 2.5
    assert code.compute_score("", RIGHT, GOLD, {}, **kwargs)["score"] == 2.0
    assert code.compute_score("", fenced("x = 1"), GOLD, {}, **kwargs)["score"] == -0.5
    long = {"max_response_length": 100, "overlong_buffer": 50, "overlong_weight": 1.0}
    assert code.compute_score("", fenced(RIGHT), GOLD, {"response_length": 75}, **long)["score"] == 0.5


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"wall_s": 0}, "wall_s=0"),
        ({"isolation": "none"}, "isolation=none: must be one of required, available"),
        ({"children": 0}, "children=0"),
        ({"children": "x"}, "children=x"),
        ({"seconds": 3}, "unknown reward option"),
        ({"correct_value": 0.0}, "correct_value=0.0 must exceed"),
    ],
)
def test_wrong_options_are_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        CodeOptions.from_kwargs(kwargs)


def test_verl_calls_it_by_its_path():
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    for name, gold, response in (("code", GOLD, fenced(RIGHT)), ("choice", "B", "\\boxed{B}"),
                                 ("knights", "Ann: knight", "\\boxed{Ann: knight}")):  # fmt: skip
        function = {"path": f"pkg://rewards.{name}", "name": "compute_score", "reward_kwargs": {"wrong_value": -1.0}}
        score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
        assert score("set", response, gold, {"options": ["x", "y"]})["score"] == 1.0
        assert score("set", "nothing", gold, {"options": ["x", "y"]})["score"] == -1.0


def test_each_row_has_its_own_grader():
    options = {"code": {"wrong_value": -2.0}, "math": {"wrong_value": -3.0}}
    score = by_grader.compute_score
    assert score("", fenced(RIGHT), GOLD, {"grader": "code"}, **options)["score"] == 1.0
    assert score("", fenced("x = 1"), GOLD, {"grader": "code"}, **options)["score"] == -2.0
    assert score("", "\\boxed{2}", "4", {}, **options)["score"] == -3.0
    assert score("", "\\boxed{\\frac{8}{2}}", "4", None, **options)["score"] == 1.0
    with pytest.raises(ValueError, match="poetry"):
        score("", "", "", {"grader": "poetry"})
    with pytest.raises(ValueError, match="wall_s"):
        score("", "", "", {}, wall_s=3)


# ------------------------------------------------------------------ choices

OPTIONS = ["5 N", "10 N", "A force of 3 N", "5 n"]


@pytest.mark.parametrize(
    ("stated", "letter"),
    [
        ("A", "A"), ("(B)", "B"), ("C.", "C"), ("\\text{D}", "D"), ("\\textbf{(A)}", "A"), ("**B**", "B"),
        ("option C", "C"), ("$B$", "B"), ("B) 10 N", "B"), ("(B) 10 N", "B"), ("B. the second", "B"),
        ("B because it is larger", "B"), ("B: 10 N", "B"),
        # The text stands for its letter where it is one option's alone.
        ("10 N", "B"), ("\\text{10 N}", "B"), ("10  n.", "B"), ("A force of 3 N", "C"),
        ("5 N", None), ("A force", None), ("A force of 4 N", None), ("12 N", None), ("", None),
        # Not one letter, or none of the options'.
        ("A and B", None), ("(A), (B)", None), ("A, B", None), ("E", None), ("AB", None), ("b", None),
    ],
)  # fmt: skip
def test_what_a_stated_answer_chooses(stated, letter):
    assert choice.chosen(stated, OPTIONS) == letter


def test_a_letter_is_a_letter_also_where_options_are_letters():
    groups = ["AB", "O", "B", "A"]
    assert choice.chosen("A", groups) == "A"  # not the option whose text is A
    assert choice.chosen("AB", groups) == "A"
    assert choice.chosen("O", groups) == "B"  # no letter of four options, so the text
    assert choice.chosen("(D) A", groups) == "D"
    assert choice.chosen("C) A", groups) is None  # says two things


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("So \\boxed{B}.", "B"),
        ("First \\boxed{A}. No: \\boxed{\\text{(B)}}", "B"),
        ("... the answer is (C).", "C"),
        ("The correct answer is C", "C"),
        ("**Answer:** B", "B"),
        ('{"answer": "D"}', "D"),
        ("The answer is A. Wait. The answer is B.", "B"),
        ("The answer is 10 N.", "B"),
        ("The answer is a matter of taste.", None),
        ("The answer is \\boxed{12 N}", None),
        ("I choose B.", None),
        ("<think>The answer is A", None),
        ("<think>\\boxed{A}</think>The answer is B.", "B"),
        ("", None),
    ],
)
def test_the_choice_of_a_response(response, letter):
    assert choice.extract_choice(response, OPTIONS) == letter
    reply = choice.compute_score("", response, "B", {"options": OPTIONS})
    assert reply["status"] == ("no_answer" if letter is None else "correct" if letter == "B" else "wrong")


def test_a_choice_without_gold_is_an_error_and_without_options_still_a_letter():
    assert choice.compute_score("", "\\boxed{B}", None, {"options": OPTIONS})["status"] == "error"
    assert choice.compute_score("", "\\boxed{B}", "B", None)["status"] == "correct"
    assert choice.compute_score("", "\\boxed{10 N}", "B", {})["status"] == "no_answer"
