"""The privileged teacher as a model of its own: what it is shown, and how its results stand beside the student's."""

from __future__ import annotations

from config import STARTER
from recipes.common.models import load_tokenizer, locate
from recipes.common.teacher.contexts import PrivilegedPrompts
from recipes.common.teacher.prompts import REFERENCE, render, student_messages
from recipes.evaluate.breakdowns import by_exposure
from recipes.evaluate.problems import Problem, ProblemSet, load_set
from recipes.evaluate.teacher import Privileged, privileged_messages, teacher_problems
from tests.recipes.evaluate.test_inputs import planned, refusal

VALIDATION = STARTER / "data" / "val.parquet"


def test_the_teacher_of_training_is_the_teacher_that_is_evaluated():
    from recipes.data.validate import read_rows

    tokenizer = load_tokenizer(locate(str(STARTER / "model")), None)
    problem, row = load_set(str(VALIDATION), "data", 1).problems[0], next(iter(read_rows(VALIDATION)))
    for context, exposure in (("solution", 1.0), ("solution", 0.4), ("solution", 0.0), ("answer", 1.0)):
        trained = PrivilegedPrompts(tokenizer, context, 4096, {"enable_thinking": False})(row, exposure)
        messages = privileged_messages(problem, Privileged(context, exposure), tokenizer)
        assert render(tokenizer, messages, {"enable_thinking": False}) == trained.token_ids


def test_a_question_of_another_form_keeps_it_and_the_reference_follows():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which letter? A or B"}]
    problem = Problem(0, "0-x", asked, "B", "Which letter?", "s", "choice", solution="It is B.")
    system, user = privileged_messages(problem, Privileged("solution"), None)
    assert system == asked[0] and user["content"] == f"Which letter? A or B\n\n{REFERENCE.block('It is B.')}"
    (_, user) = privileged_messages(problem, Privileged("answer"), None)
    assert REFERENCE.block("\\boxed{B}") in user["content"]


def test_what_cannot_be_shown_is_refused(tmp_path):
    def rows(grader, *solutions):
        problems = (
            Problem(n, f"{n}-x", student_messages("p"), "gold", "p", "s", grader, solution=text)
            for n, text in enumerate(solutions)
        )
        return [ProblemSet("s", "s.parquet", "", tuple(problems))]

    assert not list(teacher_problems("solution", [0.5, 1.0], rows("math", "a", "b")))
    assert not list(teacher_problems(None, [7], rows("math", "")))
    (said,) = teacher_problems("solution", [1.0], rows("math", "a", " "))
    assert "1 of 2 rows of s.parquet have none, the first is row 1" in said and "teacher.context=answer" in said
    (said,) = teacher_problems("answer", [1.0], rows("code", "a"))  # its tests are no answer
    assert "1 of 1 rows" in said
    for context, exposures, words in (
        ("solution", [], "give numbers from 0 to 1"),
        ("solution", [1.5], "give numbers from 0 to 1"),
        ("solution", [0.5, 0.5], "each once"),
        ("answer", [0.5], "only a solution can be shown in part"),
        ("siblings", [1.0], "must be solution or answer"),
    ):
        assert words in next(teacher_problems(context, exposures, []))
    assert "teacher.context=hint: must be solution or answer" in refusal(tmp_path, "teacher.context=hint")


def test_each_exposure_is_a_model_of_its_own(tmp_path):
    made = planned(tmp_path, "limit=2", "teacher.context=solution", "teacher.exposures=[0.0,0.5,1.0]")
    student, *teachers = made.members
    assert [m.label for m in teachers] == ["model teacher α=0", "model teacher α=0.5", "model teacher"]
    weights = student.fingerprint
    assert [m.fingerprint for m in teachers] == [
        f"{weights}+solution@0", f"{weights}+solution@0.5", f"{weights}+solution"
    ]  # fmt: skip
    lengths = [len(made.prompt(m, made.sets[0].problems[0])) for m in made.members]
    assert lengths == sorted(set(lengths))  # each reads more than the one before
    room = 1024 - max(len(made.prompt(student, p)) for p in made.sets[0].problems)  # enough for the student alone
    assert planned(tmp_path / "a", "limit=2", f"max_tokens={room}").samples
    assert f"max_tokens={room}: the prompt of" in refusal(
        tmp_path / "b", "limit=2", "teacher.context=solution", f"max_tokens={room}"
    )


def test_accuracy_by_exposure_is_under_the_students_name():
    runs = [
        {"label": "m"},
        *(
            {"label": f"m teacher {a}", "teacher": {"student": "m", "context": "solution", "exposure": a}}
            for a in (0, 1)
        ),
        {"label": "n teacher", "teacher": {"student": "n", "context": "solution", "exposure": 1.0}},
    ]
    metrics = [
        {"label": run["label"], "data": "d", "metric": metric, "value": 0.5}
        for run in runs for metric in ("avg@4", "pass@4")
    ]  # fmt: skip
    rows = by_exposure(metrics, runs)
    assert [(r["label"], r["level"], r["metric"]) for r in rows] == [("m", 0, "avg@4"), ("m", 1, "avg@4")]
