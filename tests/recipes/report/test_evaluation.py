"""Reports of evaluations: which numbers, which responses, and that no text of a model or a file becomes markup."""

from __future__ import annotations

import json
import re
import sys

import pytest
from omegaconf import OmegaConf

from recipes.evaluate.results import Incidents
from recipes.evaluate.summary import SUMMARY
from recipes.report import main as command
from recipes.report.answers import HEAD, TAIL, asked
from recipes.report.evaluation import differences, load_evaluation
from recipes.report.figures import intervals
from recipes.report.page import write_evaluation_report
from recipes.report.run_data import NotARun
from tests.builders.evaluations import answers, response, write_evaluation
from tests.builders.runs import record, write_run
from tests.recipes.evaluate.test_inputs import configured
from tests.recipes.report.test_report import HOSTILE, TAGS, Page


def text_of(directory):
    return re.sub(r"\s+", " ", Page(write_evaluation_report(directory).read_text()).text)


TWO = {
    "old": {"sums": {1: [answers("rwww"), answers("rrww"), answers("wwww")]}},
    "new": {"sums": {1: [answers("rrrr"), answers("rrrw"), answers("rwwt")]}},
}


def test_the_page_shows_what_the_summary_says(tmp_path):
    directory = write_evaluation(tmp_path / "e", TWO)
    page = text_of(directory)
    # Avg@4: (1/4 + 1/2 + 0) / 3 and (1 + 3/4 + 1/4) / 3, with Student's interval over the three problems.
    for part in (
        "old, Avg@4 25.0 ± 62.1",
        "new, Avg@4 66.7 ± 94.9",
        # 75, 25 and 25 points more, problem by problem.
        "1. old − new sums 3 −41.7 ± 71.7",
        "new sums 3 66.7 ± 94.9 83.3",  # Pass@2: (1 + 1 + 1/2) / 3
        "problems responses right wrong grading timed out cut at the limit tokens",
        "2. new sums 1 3 12 8 3 1 0 108",
        "at most 96 tokens",
        "1 of 12 responses could not be graded within the limits",
    ):
        assert part in page, part
    assert "done" in page and "The numbers are of what was complete by then" not in page


def test_the_page_shows_a_runs_checkpoints_and_what_chose_the_best(tmp_path):
    steps = {f"dasd, step {step}": ("dasd", step) for step in (10, 20, 30)}
    statuses = ("rwww", "rrrr", "rrww")
    results = {label: {"sums": {1: [answers(s)] * 2}} for label, s in zip(steps, statuses, strict=True)}
    results["base"] = {"sums": {1: [answers("wwww")] * 2}}
    directory = write_evaluation(tmp_path / "e", results, steps=steps)
    page = text_of(directory)
    for part in (
        "Over the checkpoints",
        "dasd sums, selected on these problems, biased 3 20 100.0 ± 0.0 30 50.0",
        "was selected on the problems that it is reported on, of 3: its accuracy is biased upwards",
        "dasd sums 10 25.0 ± 0.0 2",
        "dasd, step 30 − base",
        "dasd, step 30, Avg@4 50.0",
    ):
        assert part in page, part
    assert "step 10 − " not in page and "dasd, step 20, Avg@4" not in page  # those before the last are on the curve
    html = (directory / "report.html").read_text()
    assert html.count("Avg@4 over steps; diamond: the best") == 1
    assert "Over the checkpoints" not in text_of(write_evaluation(tmp_path / "f", TWO))


def test_problems_without_an_answer_are_on_the_page(tmp_path):
    incidents = Incidents()
    for reason, problems in (("status 400: <b>too long</b>", 1), ("status 400: <b>too long</b>", 2), ("late", 1)):
        incidents.failed("new", "weights of new", reason, problems)
    directory = write_evaluation(tmp_path / "e", TWO, incidents=incidents, status="failed")
    page = text_of(directory)
    assert "new: 3 problems without an answer: status 400: <b>too long</b>" in page
    assert "new: 1 problem without an answer: late" in page and "starting again with the same hydra.run.dir" in page
    assert "<b>too" not in (directory / "report.html").read_text()


def test_accuracy_by_length_is_on_the_page(tmp_path):
    def of_length(tokens, status):
        return {**response(status), "tokens": tokens}

    problems = [[of_length(5, "correct"), of_length(90, "wrong")] * 2 for _ in range(2)]
    page = text_of(write_evaluation(tmp_path / "e", {"m": {"sums": {1: problems}}}))
    assert "By quarter of the response's length" in page
    assert "5 2 100.0 ± 0.0" in page and "90 2 0.0 ± 0.0" in page


def test_seeds_have_their_spread_and_sets_their_average(tmp_path):
    one = {"sums": {1: [answers("rrww")] * 2, 2: [answers("rrrr")] * 2}, "chains": {1: [answers("wwww")] * 2}}
    page = text_of(write_evaluation(tmp_path / "e", {"only": one}))
    assert "only sums 2 75.0 ± 0.0 sd 35.4, 2 seeds" in page
    assert "only average 4 37.5" in page and "Average of the sets" in page
    assert "Paired differences" not in page


def test_only_differences_apart_from_zero_are_marked(tmp_path):
    better = {"low": {"s": {1: [answers("wwww"), answers("rwww"), answers("wwww")]}}}
    better["high"] = {"s": {1: [answers("rrrr"), answers("rrrr"), answers("rrrw")]}}
    found = differences(load_evaluation(write_evaluation(tmp_path / "e", better)))
    assert found.head[0] == "Avg@4" and found.rows[0].cells[0][1]
    assert not differences(load_evaluation(write_evaluation(tmp_path / "f", TWO))).rows[0].cells[0][1]
    assert "var(--s1)" in intervals([(2.0, 1.0, 3.0)])
    assert "var(--s1)" not in intervals([(2.0, -1.0, 3.0), (1.0, None, None)])


def test_the_problem_on_which_models_differ_most_comes_first(tmp_path):
    directory = write_evaluation(tmp_path / "e", TWO)
    found = asked(directory, load_evaluation(directory))
    assert found[0].note == "old: 1 of 4 right, new: 4 of 4 right"
    assert [(a.model, a.kind) for a in found[0].answers] == [("old", "right"), ("old", "wrong"), ("new", "right")]
    assert found[-1].note == "grading timed out" and found[-1].answers[0].head == "text t"
    # The page of a folder that was moved shows them too.
    moved = directory.rename(tmp_path / "elsewhere")
    assert asked(moved, load_evaluation(moved)) == found


def test_of_a_long_response_the_middle_is_left_out(tmp_path):
    long = "a" * HEAD + "b" * 1234 + "c" * TAIL
    directory = write_evaluation(tmp_path / "e", {"m": {"s": {1: [[response(text=long), response("wrong", "\n\nx")]]}}})
    ((one, other),) = [problem.answers for problem in asked(directory, load_evaluation(directory))]
    assert (one.head, one.omitted, one.tail) == ("a" * HEAD, 1234, "c" * TAIL)
    assert other.head == "↵↵\nx"
    assert "1,234 characters left out" in text_of(directory)


def test_no_text_of_an_evaluation_becomes_markup(tmp_path):
    bad, image, template, odd = HOSTILE
    texts = [response(text=bad, extracted=image), response("wrong", odd, extracted=template), *answers("nc")]
    results = {label: {image: {1: [texts, answers("wwww")]}} for label in (bad, template)}
    place = tmp_path / "<i onmouseover=x>run & co"
    directory = write_evaluation(place, results, problem=image, status="stopped", preset=bad)
    page = Page(write_evaluation_report(directory).read_text())
    assert page.tags <= set(TAGS.split())
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(re.fullmatch(r"#\w+", link) for link in page.links), "nothing is fetched"
    for text in HOSTILE[:3]:
        assert text in page.text
    assert "The numbers are of what was complete by then" in page.text


def test_the_changes_are_those_from_the_preset(tmp_path):
    config = OmegaConf.to_container(configured("preset=dasd", "model=x", "samples=4", "data=[sums]"), resolve=True)
    directory = write_evaluation(tmp_path / "e", TWO, preset="dasd", config=config)
    page = text_of(directory)
    assert "What this evaluation changed against preset=dasd" in page
    assert "samples 16 4 §5, App. F" in page and "data ['math_500'," in page
    changed = page[page.index("What this evaluation changed") : page.index("The preset's values")]
    assert "temperature" not in changed and "max_tokens" not in changed


def test_the_command_rebuilds_evaluations_beside_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = write_evaluation(tmp_path / "all" / "done", TWO)
    write_evaluation(tmp_path / "all" / "killed", TWO, summarised=False)
    (write_evaluation(tmp_path / "all" / "odd", TWO) / SUMMARY).write_text("{")

    def run(*places):
        monkeypatch.setattr(sys, "argv", ["main", *map(str, places)])
        return command.main(), capsys.readouterr()

    code, said = run(done)
    assert code == 0 and said.out.split() == [str(done / "report.html")]
    code, said = run(tmp_path / "all")
    assert code == 0 and said.out.split() == [str(done / "report.html")]
    assert "killed has no summary.json" in said.err and "start the evaluation again with hydra.run.dir=" in said.err
    assert "odd/summary.json cannot be read" in said.err
    training = write_run(tmp_path / "run", [record(1)])
    code, said = run(training, done)
    assert code == 0 and said.out.split() == [str(training / "report.html"), str(done / "report.html")]
    assert run(tmp_path / "all" / "killed")[0] == 2
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty")[0] == 2


def test_a_summary_of_another_format_is_refused(tmp_path):
    directory = write_evaluation(tmp_path / "e", TWO)
    summary = json.loads((directory / SUMMARY).read_text())
    (directory / SUMMARY).write_text(json.dumps({**summary, "format": 99}))
    with pytest.raises(NotARun, match="not of format 1"):
        load_evaluation(directory)
