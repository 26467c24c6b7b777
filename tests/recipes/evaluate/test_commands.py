"""The evaluation command from end to end: sharded sampling, step scores, a kill in the middle, damaged lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from config import STARTER
from recipes.evaluate import estimates, health
from recipes.evaluate.main import evaluate_command
from recipes.evaluate.results import corrupt_file, read_records
from recipes.evaluate.sampling import seeds_of
from recipes.starter.task import boxed_answer
from rewards.math import compute_score
from tests.builders.configs import ROOT
from tests.builders.processes import console_of
from tests.recipes.evaluate.test_health import published_like
from tests.recipes.evaluate.test_inputs import checkpoint, configured

PROBLEMS, SAMPLES = 6, 4


def start(directory, data, *overrides):
    command = [
        sys.executable, "-m", "recipes.evaluate.main", "preset=starter", f"data=[{data}]", f"samples={SAMPLES}",
        f"limit={PROBLEMS}", f"hydra.run.dir={directory}", *overrides,
    ]  # fmt: skip
    # A runner in the background passes on that Ctrl-C is ignored; a person's terminal does not.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, inherited)


def finish(process, directory):
    console = console_of(process, directory / "evaluate.log", timeout=300)
    return process.returncode, console


def records_of(directory):
    return {record["id"]: record for record in read_records(directory / "results.jsonl")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The starter's problems under another set's name, so that steps are judged by a model and not by arithmetic."""
    path = tmp_path_factory.mktemp("data") / "chains.parquet"
    pd.read_parquet(STARTER / "data" / "val.parquet").assign(data_source="chains").to_parquet(path)
    return path


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """(directory, console, prm) of an evaluation that ran through, on two workers."""
    prm, directory = tmp_path_factory.mktemp("prm"), tmp_path_factory.mktemp("reference")
    published_like(prm, context=320)
    code, console = finish(start(directory, data, "workers=2", f"prm={prm}"), directory)
    assert code == 0, console + (directory / "evaluate.log").read_text()[-3000:]
    return directory, console, prm


@pytest.mark.slow
def test_numbers_follow_from_the_responses(reference):
    directory, console, prm = reference
    records = records_of(directory)
    assert len(records) == PROBLEMS
    correct = {}
    for key, record in records.items():
        assert len(record["responses"]) == SAMPLES
        # Graded anew, by the starter's own reader of boxes and by the reward's.
        correct[key] = [boxed_answer(r["text"]) == record["gold"] for r in record["responses"]]
        again = [compute_score("", r["text"], record["gold"])["status"] for r in record["responses"]]
        assert again == [r["status"] for r in record["responses"]]
        assert [r["status"] == "correct" for r in record["responses"]] == correct[key]
        assert len({r["text"] for r in record["responses"]}) > 1  # each response has its own seed
    written = json.loads((directory / "summary.json").read_text())
    rows = {row["metric"]: row for row in written["metrics"]}
    means = [np.mean(c) for c in correct.values()]
    assert rows["avg@4"]["value"] == pytest.approx(np.mean(means))
    assert rows["avg@4"]["ci95"] == pytest.approx(2.5706 * np.std(means, ddof=1) / np.sqrt(PROBLEMS), rel=1e-4)
    assert rows["pass@4"]["value"] == pytest.approx(np.mean([any(c) for c in correct.values()]))
    assert rows["pass@1"]["value"] == pytest.approx(rows["avg@4"]["value"])
    tokens = [r["tokens"] for record in records.values() for r in record["responses"]]
    assert rows["length"]["value"] == pytest.approx(np.mean(tokens))
    # Steps, from the process reward model's scores.
    steps = {record["id"]: record for record in read_records(directory / "steps.jsonl")}
    scores = [scores for record in steps.values() for scores in record["scores"]]
    judged = [[s >= 0.5 for s in response] for response in scores]
    assert rows["csr"]["value"] == pytest.approx(sum(map(sum, judged)) / sum(map(len, judged)))
    median = float(np.median(np.concatenate(scores)))  # a threshold that surely splits them
    labels = {(written["runs"][0]["model"], 1): "model"}
    (again,) = estimates.read_evaluations(directory, labels, {"chains": set(records)}, [1], str(prm), median)
    sums = [problem["csr"] for problem in again.problems.values()]
    right = sum(s >= median for response in scores for s in response)
    assert 0 < right < sum(map(len, scores))
    assert [sum(column) for column in zip(*sums, strict=True)] == [right, sum(map(len, scores))]
    unscored = sum(record["unscored"] for record in steps.values())
    split = sum(len(health.split_steps(r["text"])) for record in records.values() for r in record["responses"])
    assert sum(map(len, judged)) + unscored == split
    assert "Avg@4" in console and "StepAcc" in console and "6/6" in console and str(prm) in console
    page = (directory / "report.html").read_text()
    assert written["status"] == "done" and str(directory / "report.html") in console.replace("\n", "")
    assert f"{100 * rows['avg@4']['value']:.1f} ± {100 * rows['avg@4']['ci95']:.1f}" in page


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_results(reference, data, tmp_path):
    expected = records_of(reference[0])
    path = tmp_path / "results.jsonl"
    process = start(tmp_path, data, "workers=1")
    deadline = time.time() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert time.time() < deadline and process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = [record for record in read_records(path) if record]
    assert 2 <= len(kept) < PROBLEMS  # it was in the middle
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0].replace(b'"majority"', b'"majorety"')
    path.write_bytes(damaged + b"".join(lines[1:]) + b'{"model": "cut in the mid')
    code, console = finish(start(tmp_path, data, "workers=1"), tmp_path)
    assert code == 0, console
    assert "2 corrupt lines of results.jsonl moved to results.jsonl.corrupt" in console
    assert f"resuming {len(kept) - 1} of {PROBLEMS} problems are done" in console
    # One worker instead of two, stopped and damaged: not a character differs.
    assert records_of(tmp_path) == expected
    assert path.read_bytes().startswith(b"".join(lines[1 : len(kept)]))  # what was sound was not written anew
    assert damaged in corrupt_file(path).read_bytes()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["corrupt_lines"] == {"results.jsonl": 2}
    whole = json.loads((reference[0] / "summary.json").read_text())
    accuracy = {row["metric"]: row for row in whole["metrics"] if "@" in row["metric"]}
    assert {row["metric"]: row for row in written["metrics"] if "@" in row["metric"]} == accuracy


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_reports_what_is_complete(data, tmp_path):
    process = start(tmp_path, data, "limit=128", "samples=32")
    path = tmp_path / "results.jsonl"
    deadline = time.time() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert time.time() < deadline and process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, console = finish(process, tmp_path)
    assert code == 130 and "stopped" in console and f"hydra.run.dir={tmp_path}" in console.replace("\n", "")
    written = json.loads((tmp_path / "summary.json").read_text())
    complete = len(records_of(tmp_path))
    assert written["status"] == "stopped" and written["preset"] == "starter" and 3 <= complete < 128
    assert f"{complete} of 128 problems" in written["warnings"][0]
    page = (tmp_path / "report.html").read_text()
    assert written["warnings"][0] in page and 'class="badge stopped"' in page


@pytest.mark.slow
def test_a_runs_checkpoints_and_their_teachers_are_sampled(data, tmp_path):
    """Two checkpoints, the second with a head that writes nothing but the end, each as student and as teacher."""
    model = AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32)
    run, directory = tmp_path / "mine", tmp_path / "evaluation"
    checkpoint(run / "checkpoints" / "global_step_10", model)
    with torch.no_grad():  # whatever it reads, the likeliest tokens are others than before
        model.lm_head.weight.copy_(model.lm_head.weight.roll(1, dims=0))
    checkpoint(run / "checkpoints" / "global_step_20", model)
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("20")
    (run / "metrics.jsonl").write_text('{"step": 10, "val-core/other/acc/mean@4": 0.5}\n')
    overrides = (f"model={run}", "checkpoints=all", "selection=val", "teacher.context=solution", "limit=4")
    code, console = finish(start(directory, data, *overrides), directory)
    assert code == 0, console + (directory / "evaluate.log").read_text()[-3000:]
    written = json.loads((directory / "summary.json").read_text())
    curves = {curve["run"]: [(p["step"], p["value"]) for p in curve["points"]] for curve in written["curves"]}
    assert [step for step, _ in curves["mine"]] == [10, 20] and curves["mine"][1][1] == 0.0
    assert curves["mine teacher"][0][1] > curves["mine"][0][1]  # it reads the solution
    best = {row["run"]: (row["step"], row["biased"]) for row in written["best"]}
    assert best == {"mine": (10, False), "mine teacher": (10, False)}
    assert len(list((directory / "merged").iterdir())) == 2  # a teacher has its student's weights
    assert {entry["responses"] for entry in written["sampled"]} == {4 * SAMPLES}
    assert "Over the checkpoints" in (directory / "report.html").read_text()


def test_a_refusal_ends_with_code_2_and_starts_nothing(tmp_path, capsys):
    assert evaluate_command(configured("preset=starter", "k=[64]"), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "This evaluation was not started" in said and "k=64 with samples=16" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path, capsys):
    assert evaluate_command(configured("preset=starter", "dry_run=true"), tmp_path / "out") == 0
    assert "16 a problem" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_seeds_differ_by_seed_problem_and_place():
    seeds = [s for seed in (1, 2) for problem in ("0-a", "1-a") for s in seeds_of(seed, problem, 8)]
    assert len(set(seeds)) == 32
    assert seeds_of(1, "0-a", 4) == seeds_of(1, "0-a", 8)[:4]


# ------------------------------------------------------------------ summaries of results written by hand


def evaluation(label, seed, data, accuracies):
    problems = {f"{i}-x": {"avg@4": (a, 1.0)} for i, a in enumerate(accuracies)}
    return estimates.Evaluation(label, f"{label}{seed}", seed, data, problems, estimates.Counter())


def test_seeds_sets_and_pairs():
    runs = [
        evaluation("new", 1, "a", [0.5, 1.0, 0.75]),
        evaluation("new", 2, "a", [1.0, 1.0, 0.25]),
        evaluation("new", 1, "b", [0.0, 0.5]),
        evaluation("new", 2, "b", [0.5, 0.5]),
        evaluation("old", 1, "a", [0.25, 0.5, 0.25, 1.0]),  # one problem more than the other has
        evaluation("old", 1, "b", [0.0, 0.25]),
    ]
    result = estimates.summarize(runs)
    rows = {(r["label"], r["data"]): r for r in result["metrics"]}
    assert rows["new", "a"]["value"] == pytest.approx(0.75)
    assert rows["new", "a"]["seeds"] == pytest.approx([0.75, 0.75]) and rows["new", "a"]["std"] == 0
    assert rows["new", "b"]["seeds"] == pytest.approx([0.25, 0.5])
    assert rows["new", "b"]["std"] == pytest.approx(0.25 / np.sqrt(2))
    assert rows["new", "average"]["value"] == pytest.approx((0.75 + 0.375) / 2)
    assert rows["new", "average"]["seeds"] == pytest.approx([0.5, 0.625])
    assert "seeds" not in rows["old", "a"] and rows["old", "a"]["value"] == pytest.approx(0.5)
    pairs = {r["data"]: r for r in result["differences"]}
    assert (pairs["a"]["a"], pairs["a"]["b"], pairs["a"]["problems"]) == ("new", "old", 3)
    # On the common problems: (0.75, 1, 0.5) - (0.25, 0.5, 0.25).
    assert pairs["a"]["value"] == pytest.approx(5 / 12)
    assert pairs["a"]["ci95"] == pytest.approx(4.30265 * np.std([0.5, 0.5, 0.25], ddof=1) / np.sqrt(3), rel=1e-4)
    assert pairs["average"]["value"] == pytest.approx((5 / 12 + 0.25) / 2)


def test_a_difference_is_what_training_brought_whatever_comes_first():
    runs = [evaluation("base", 1, "a", [0.25, 0.5]), evaluation("mine", 1, "a", [0.5, 1.0])]
    (found,) = estimates.summarize(runs, trained=["mine"])["differences"]
    assert (found["a"], found["b"], found["value"]) == ("mine", "base", pytest.approx(0.375))
    (found,) = estimates.summarize(runs, trained=["mine", "base"])["differences"]  # nothing to tell them apart
    assert (found["a"], found["b"]) == ("base", "mine")


def test_measures_of_a_record():
    def response(status, text="", stop="completed"):
        return {"status": status, "text": text, "tokens": 10, "stop": stop, "extracted": ""}

    record = {
        "responses": [response("wrong"), response("correct"), response("timeout"), response("correct", stop="length")],
        "majority": 1,
        "source": "chains",
        "problem": "p",
    }
    sums = estimates.measures(record, [1, 2, 4, 8], [[0.9, 0.4], [0.5], [], [0.2]], 0.5)
    assert sums["avg@4"] == (0.5, 1.0) and sums["pass@2"] == (pytest.approx(5 / 6), 1.0) and "pass@8" not in sums
    assert sums["maj@4"] == (1.0, 1.0) and sums["truncated"] == (1, 4)
    assert sums["csr"] == (2, 4) and sums["fes"] == (2 + 1, 2)
    assert estimates.measures({**record, "majority": None}, [1], None, 0.5)["maj@4"] == (0.0, 1.0)
    assert estimates.measures({**record, "majority": 0}, [1], None, 0.5)["maj@4"] == (0.0, 1.0)
    assert "csr" not in estimates.measures(record, [1], None, 0.5)
