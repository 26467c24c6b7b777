"""Responses graded twice: how differences are explained, and a harness that is missing, hangs or dies."""

from __future__ import annotations

import importlib.util
import json
import sys
import time

import pytest

from recipes.evaluate import crosscheck
from recipes.evaluate.results import RESULTS, encode
from tests.builders.evaluations import response


def ours(status, extracted):
    return {"status": status, "extracted": extracted}


def theirs(right, answer, error=None):
    return {"right": right, "answer": answer, "error": error}


@pytest.mark.parametrize(
    "mine, other, said",
    [
        (ours("correct", "7"), theirs(True, "8"), ""),  # both right, whatever they read
        (ours("wrong", "7"), theirs(False, "7"), ""),
        (ours("correct", "0.5"), theirs(False, "0.5"), "the same answer, ours equal to the gold one"),
        (ours("wrong", "1 2"), theirs(True, "12"), "the same answer, ours not equal to the gold one"),
        (ours("correct", "7"), theirs(False, "8"), "they read different answers"),
        (ours("correct", "7"), theirs(False, None), "the harness finds no answer"),
        (ours("no_answer", None), theirs(True, "7"), "the harness finds an answer where ours finds none"),
        (ours("timeout", "9^9^9"), theirs(True, "9^9^9"), "ours ended without a verdict"),
        (ours("wrong", "7"), theirs(False, None, "ValueError"), "the harness failed"),  # no agreement by accident
    ],
)
def test_each_difference_has_one_explanation(mine, other, said):
    assert crosscheck.why("math", mine, other) == said


def row(problem, mine, other):
    return {"model": "m", "seed": 1, "id": problem, "ours": {"right": mine}, "theirs": {"right": other}}


def test_the_difference_is_paired_by_problem():
    rows = [row("a", True, True), row("a", True, False), row("b", False, False), row("b", True, True)]
    found = crosscheck.accuracies(rows)
    assert (found["ours"], found["theirs"], found["difference"]) == (0.75, 0.5, 0.25)
    # Problems differ by 0.5 and 0: half a width of t_1 times their standard error.
    assert found["ci95"] == pytest.approx(12.7062 * 0.25, rel=1e-4)


@pytest.fixture
def evaluation(tmp_path):
    """Results of two sets: mathematics, one right and one wrong, and programs."""
    with (tmp_path / RESULTS).open("wb") as file:
        for data, grader, gold in (("sums", "math", "7"), ("programs", "code", "tests of f")):
            record = {
                "model": "m", "seed": 1, "data": data, "index": 0, "id": "0-x", "problem": "p", "source": data,
                "grader": grader, "gold": gold, "majority": 0,
                "responses": [response(), response("wrong", "so \\boxed{1}", extracted="1")],
            }  # fmt: skip
            file.write(encode(record))
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """The command, in this process: (exit code, what it said)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["crosscheck", *map(str, arguments)])
        code = crosscheck.main()
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_what_cannot_be_compared_is_refused(evaluation, tmp_path, command):
    for arguments, said in (
        ([tmp_path / "nowhere", "--harness", "lm_eval"], "give the directory of an evaluation"),
        ([evaluation, "--harness", "lm_eval", "--data", "other"], "the evaluation has sums, programs"),
        ([evaluation, "--harness", "lm_eval", "--data", "programs"], "has no grader here for programs (code)"),
        ([evaluation, "--harness", "lm_eval", "--python", "/nowhere/python"], "cannot be started"),
    ):
        code, told = command(*arguments)
        assert code == 2 and said in told


@pytest.mark.parametrize("harness", crosscheck.HARNESSES)
def test_the_installed_harness_agrees_or_its_absence_is_said(evaluation, harness, command):
    before = (evaluation / RESULTS).read_bytes()
    code, told = command(evaluation, "--harness", harness)
    assert (evaluation / RESULTS).read_bytes() == before
    if importlib.util.find_spec(harness) is None:
        assert code == 2 and f"{harness} cannot be used with {sys.executable}: " in told
        assert f"No module named '{harness}'" in told
        return
    assert code == 0 and "0 verdicts differ" in told and "programs is left out" in told


SCRIPT = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    item = json.loads(line)
    if "hang" in item["text"]:
        time.sleep(1000)
    if "die" in item["text"]:
        sys.exit(3)
    print(json.dumps({"right": item["gold"] in item["text"], "answer": item["text"], "error": None}), flush=True)
"""


def test_a_harness_that_hangs_or_dies_is_a_counted_failure_and_starts_anew(tmp_path, monkeypatch):
    script = tmp_path / "harness.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(crosscheck._harness, "__file__", str(script))
    monkeypatch.setattr(crosscheck, "DEADLINE_S", 1.0)
    record = {"model": "m", "seed": 1, "data": "d", "id": "0-x", "gold": "7"}
    texts = ["7", "hang", "die", "8"]
    record["responses"] = [response("correct" if t == "7" else "wrong", t, extracted=t) for t in texts]
    began = time.time()
    with crosscheck.Harness(sys.executable, "any", "math") as harness:
        rows = list(crosscheck.compared([record, None, {**record, "data": "other"}], harness, "math", "d"))
    assert [(r["theirs"]["right"], r["why"]) for r in rows] == [
        (True, ""), (False, "the harness failed"), (False, "the harness failed"), (False, "")
    ]  # fmt: skip
    json.dumps(rows)
    assert time.time() - began < 15
