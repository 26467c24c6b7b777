"""From what runs left to cells, sentences and the page, by hand-computed numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scipy.stats import t as student_t

from recipes.reproduce import measured, page, results, tables
from recipes.reproduce.conclusions import conclusions
from recipes.reproduce.matrix import Column, Matrix, markdown
from recipes.reproduce.measured import Cell
from recipes.reproduce.tables import STARTER, Row
from recipes.starter import task

PROBLEMS = ("7+5*3-4", "1+1*2-3", "2*3+4-5")  # answers 2, 1, 5


def write_run(directory: Path, right: list[int], *, step: int = 4, samples: int = 4, wait: bool = False) -> None:
    """A run whose validation has so many right responses to each problem, of 4; wrong ones answer at once."""
    (directory / measured.VALIDATION).mkdir(parents=True)
    lines = []
    for chain, count in zip(PROBLEMS, right, strict=True):
        problem = task.parse_problem(task.PROBLEM_PREFIX + chain)
        good = task.reference_solution(problem)
        for number in range(samples):
            text = good if number < count else r"\boxed{9}"
            text = f"wait {text}" if wait and number == 0 else text
            prompt = f"<|user|>\nProblem: {problem.problem}\n\nReason step by step."
            lines.append({"input": prompt, "output": text, "score": float(number < count), "step": step})
    (directory / measured.VALIDATION / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [{"step": s, "training/global_step": s, "actor/entropy": 0.1 * s} for s in range(1, step + 1)]
    records[-1]["val-core/x/acc/mean@4"] = sum(right) / 12
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_run_is_measured_as_an_evaluation_would(tmp_path):
    write_run(tmp_path, [4, 2, 0], wait=True)
    found = measured.measure(tmp_path, 4)
    assert found.samples == 4
    assert found.estimates["avg"].value == pytest.approx(0.5)
    assert found.estimates["pass"].value == pytest.approx(2 / 3)
    assert found.estimates["markers"].value == pytest.approx(3 / 12)
    assert found.estimates["steps"].value == 1.0  # direct answers have no steps
    assert found.entropy == pytest.approx((0.2 + 0.3 + 0.4) / 3)
    # Student's t over the problems' means 1, 0.5, 0: standard deviation 0.5.
    assert found.estimates["avg"].half_width == pytest.approx(student_t.ppf(0.975, 2) * 0.5 / math.sqrt(3))
    assert measured.measure(tmp_path, 5) is None


def test_one_seed_is_compared_by_problem_and_several_by_seed(tmp_path):
    for name, right in (("a1", [4, 2, 0]), ("b1", [4, 4, 2]), ("a2", [4, 4, 0]), ("b2", [4, 4, 3])):
        write_run(tmp_path / name, right)
    path = tmp_path / "b1" / measured.VALIDATION / "4.jsonl"  # runs write their problems in different orders
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    run = {name: measured.measure(tmp_path / name, 4) for name in ("a1", "b1", "a2", "b2")}
    one = measured.paired({1: run["b1"]}, {1: run["a1"]}, "avg")
    # Differences by problem 0, 0.5, 0.5.
    assert one.over == "problems" and one.value == pytest.approx(1 / 3)
    assert one.half == pytest.approx(student_t.ppf(0.975, 2) * math.sqrt(1 / 12) / math.sqrt(3))
    two = measured.paired({1: run["b1"], 2: run["b2"]}, {1: run["a1"], 2: run["a2"]}, "avg")
    # By seed 1/3 and 1/4: standard deviation sqrt(2) / 24.
    assert two.over == "seeds" and two.value == pytest.approx(7 / 24)
    assert two.half == pytest.approx(student_t.ppf(0.975, 1) * math.sqrt(2) / 24 / math.sqrt(2))
    assert measured.paired({3: run["b1"]}, {1: run["a1"]}, "avg") is None  # no seed is shared
    entropy = measured.cell({1: run["a1"]}, "entropy")
    assert entropy.value == pytest.approx(0.3) and entropy.half is None


def test_problems_of_another_task_have_all_but_the_steps(tmp_path):
    """Only the embedded worlds' arithmetic can be checked; a column that no run has is not shown."""
    table = tables.read("smollm2")
    planned = results.plan(table, tables.changed(table.scales[STARTER], seeds=None, steps=4), tmp_path)
    for (label, _, _), job in planned.jobs.items():
        write_run(job.directory, [0, 0, 0])
        right = {"grpo": [0, 1], "opsd": [1, 1]}.get(label, [1, 0])
        lines = [
            {"input": f"What is {number} + {number}?", "output": "wait: 4", "score": score}
            for number, score in enumerate(right)
            for _ in range(2)
        ]
        path = job.directory / measured.VALIDATION / "4.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = results.matrix(planned)
    assert [column.key for column in found.columns] == ["avg", "pass", "entropy", "markers"]
    assert found.columns[0].title == "Avg@2" and found.cells["opsd", "smollm2_135m", "avg"].value == 1.0
    # Differences by problem 1 and 0: standard deviation sqrt(1/2).
    difference = found.differences["opsd", "smollm2_135m", "avg"]
    assert difference.value == 0.5 and difference.half == pytest.approx(student_t.ppf(0.975, 1) * 0.5)


def cells(**values: tuple[float, float | None]) -> dict[str, Cell]:
    return {name: Cell(value, half, "seeds", 3) for name, (value, half) in values.items()}


def test_conclusions_follow_the_numbers():
    accuracy = {
        "one": cells(dasd=(0.02, 0.01), opsd=(0.05, 0.01), bad=(-0.2, 0.1), unclear=(0.3, None)),
        "two": cells(dasd=(0.00, 0.01), opsd=(-0.2, 0.05), bad=(-0.2, 0.1)),
    }
    markers = {group: cells(dasd=(0.0, 0.1), opsd=(-0.3, 0.1)) for group in ("one", "two")}
    rows = ["dasd", "opsd", "bad", "unclear"]
    first, second, third = conclusions(["one", "two"], "grpo", rows, [], accuracy, markers, {})
    assert first == (
        "In one 2 (dasd and opsd) are ahead of grpo and 1 (bad) is behind it, of 3; in two none is ahead of grpo and "
        "2 (opsd and bad) are behind it, of 3 (95 % intervals; 6 comparisons, not corrected)."
    )
    assert second == "Not shown to be behind grpo anywhere: dasd; of these dasd is ahead of it somewhere."
    assert third.count("1 (opsd) is below grpo") == 2
    # Turned around, they say the opposite.
    turned = {
        group: {row: Cell(-cell.value, cell.half, cell.over, cell.count) for row, cell in found.items()}
        for group, found in accuracy.items()
    }
    assert (
        "1 (bad) is ahead of grpo and 2 (dasd and opsd) are behind it"
        in conclusions(["one", "two"], "grpo", rows, [], turned, markers, {})[0]
    )
    worth = {("dasd, none", "one"): Cell(0.02, 0.01, "seeds", 3)}
    third = conclusions(["one", "two"], "grpo", rows, ["dasd, none"], accuracy, markers, worth)[2]
    assert third.endswith("is worth to its method over “dasd, none” +2.0 ± 1.0 points in one.")
    alone = conclusions(["one"], "grpo", ["dasd"], [], accuracy, markers, {})[0]
    assert alone == "In one 1 (dasd) is ahead of grpo and none is behind it, of 1 (95 % intervals)."
    nothing = conclusions(["one"], "grpo", ["unclear"], [], accuracy, markers, {})
    assert len(nothing) == 1 and nothing[0].startswith("There is nothing to conclude")


def test_a_control_is_compared_with_its_method(tmp_path):
    rows = [
        {"label": "grpo", "overrides": ["method=grpo"]},
        {"label": "dasd", "overrides": ["method=dasd"]},
        {"label": "none", "of": "dasd", "overrides": ["method=dasd", "self_distill.teacher.context=none"]},
    ]
    table = tables.table_of("t", {"title": "t", "rows": rows}, ["grpo", "dasd"])
    planned = results.plan(table, tables.changed(table.scales[STARTER], seeds=[1, 2], steps=4), tmp_path)
    for (label, _, seed), job in planned.jobs.items():
        write_run(job.directory, {"grpo": [0, 0, 0], "dasd": [4, 2, seed], "none": [2, 2, 0]}[label])
    worth = results.matrix(planned).worth["none", "starter"]
    assert worth.value == pytest.approx(((4 + 2 + 1 - 4) + (4 + 2 + 2 - 4)) / 2 / 12) and worth.over == "seeds"
    assert results.matrix(planned).rows[-1].control == "dasd"


def test_the_page_has_numbers_differences_failures_and_what_is_missing(tmp_path):
    table = tables.read("pw_opsd_6")
    planned = results.plan(table, tables.changed(table.scales[STARTER], seeds=[1], steps=4), tmp_path)
    jobs = list(planned.jobs.items())
    for number, ((_, experiment, _), job) in enumerate(jobs[:-1]):
        write_run(job.directory, [4, 2, 0] if "uniform" in job.name else [4, 4, 2 + number % 2])
        assert experiment in str(job.directory)
    failed = jobs[-1][1]
    failed.directory.mkdir(parents=True)
    (failed.directory / "console.txt").write_text("starting\n<b>no memory</b>\n")
    path, text = results.write(planned, STARTER)
    html = path.read_text()
    assert "50.0" in html and "+33.3" in html and "7 of 8 runs" in html
    assert "&lt;b&gt;no memory" in html and "<b>no memory" not in html
    assert "76.2" in html and "lost them in extraction" in html
    assert "of one run each" in html
    assert "| uniform / tokens (OPSD) | 50.0 ± 124.2 |" in text and "comparisons, not corrected" in text
    assert path.with_suffix(".md").read_text().strip() == text
    assert "script" not in html.replace("description", "")


def test_a_figure_of_curves_has_a_page_of_them(tmp_path):
    table = tables.read("dasd_fig_5")
    planned = results.plan(table, tables.changed(table.scales[STARTER], seeds=[1], steps=4), tmp_path)
    for job in planned.jobs.values():
        if "shortcut" not in job.name:
            write_run(job.directory, [4, 2, 0])
            (job.directory / "config.yaml").write_text("self_distill: {method: grpo}\ndata: {seed: 1}\n")
    path, _ = results.write(planned, STARTER)
    assert path.read_text().count("_curves.html</a>") == 1
    assert "DASD" in (tmp_path / "dasd_fig_5_starter_starter_curves.html").read_text()


def test_nothing_measured_is_a_page_too(tmp_path):
    table = tables.read("compare_quick")
    planned = results.plan(table, table.scales[STARTER], tmp_path)
    path, text = results.write(planned, STARTER)
    assert "nothing has been measured" in text and "0 of 6 runs" in path.read_text()


def test_an_evaluations_summary_becomes_cells(tmp_path):
    """Differences of a summary stand for one order of two models; the matrix's are always row − baseline."""
    table = tables.table_of(
        "t",
        {
            "title": "t",
            "rows": [{"label": "G", "overrides": ["method=grpo"]}, {"label": "D", "overrides": ["method=dasd"]}],
            "gpu": {"experiments": ["qwen3_1_7b_dapo"], "preset": "dasd"},
        },
        ["grpo", "dasd"],
    )
    planned = results.plan(table, table.scales["gpu"], tmp_path)
    numbers = {"value": 0.5, "ci95": 0.1}
    metrics = [
        {**numbers, "label": label, "data": data, "metric": "avg@16"}
        for label in ("grpo", "dasd")
        for data in ("aime_2024", "average")
    ]
    differences = [{"a": "grpo", "b": "dasd", "data": "average", "metric": "avg@16", "value": -0.2, "ci95": 0.1}]
    folder = planned.evaluation("qwen3_1_7b_dapo")
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"metrics": metrics, "differences": differences}))
    found = results.matrix(planned)
    assert found.differences["D", "qwen3_1_7b_dapo", "avg"].value == pytest.approx(0.2)
    assert found.cells["D", "qwen3_1_7b_dapo", "aime_2024"].value == 0.5
    assert "| D | 50.0 ± 10.0 | 50.0 ± 10.0 (+20.0 ± 10.0)" in markdown(found)
    assert "D is ahead of it somewhere" in " ".join(page.sentences(found))


@pytest.mark.parametrize(("value", "side"), [(-0.004, 0), (-0.006, -1), (0.006, 1), (0.004, 0)])
def test_a_difference_below_the_digits_shown_is_not_marked(value, side):
    row, column = Row("a", (), {}), Column("world", "markers", "", 1.0, 2, "markers")
    place = ("a", "world", "markers")
    made = Matrix(
        "b", (row,), (column,), {place: Cell(0.5, 0.001, "seeds", 3)}, {place: Cell(value, 0.001, "seeds", 3)}, {}
    )
    assert made.shown(row, column).side == side
