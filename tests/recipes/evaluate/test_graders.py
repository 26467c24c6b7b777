"""An evaluation of programs, choices and puzzles: records, votes, summaries, what is refused before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from config import CONFIG_DIR
from recipes.evaluate import breakdowns, estimates, plan, summary
from recipes.evaluate.console import tables
from recipes.evaluate.results import Incidents, ResultsFile, read_records
from recipes.evaluate.run import grade
from rewards.code import Task, ground_truth_of
from tests.builders.benchmark_sets import write_rows
from tests.builders.configs import ROOT
from tests.recipes.evaluate.test_inputs import planned, refusal
from tests.rewards.test_code_sandbox import WITHOUT_NAMESPACES


def row(source: str, grader: str, gold: str, index: int, **extra) -> dict:
    info = {"index": index, "grader": grader, "options": None, "difficulty": None, **extra}
    return {"data_source": source, "prompt": [{"role": "user", "content": "1"}], "problem": f"{index}",
            "reward_model": {"style": "rule", "ground_truth": gold}, "extra_info": info}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    squares = ground_truth_of(Task("assert f(2) == 4", "f"))
    return {
        "code": write_rows(folder / "code.parquet", [row("programs", "code", squares, n) for n in range(3)]),
        "choice": write_rows(
            folder / "choice.parquet", [row("questions", "choice", "B", n, options=["x", "y", "z"]) for n in range(2)]
        ),
        "knights": write_rows(
            folder / "knights.parquet",
            [row("puzzles", "knights", "Ann: knight, Ben: knave", n, difficulty=3.0 + n % 2) for n in range(4)],
        ),
    }


def evaluated(made: plan.Plan, answers: dict[str, list[str]]) -> dict:
    """The summary of an evaluation whose responses are given, by set; no model is asked."""
    member = made.members[0]
    made.directory.mkdir(parents=True, exist_ok=True)
    plan.write_settings(made)
    with ResultsFile(made.directory / "results.jsonl", plan.result_key) as results, ThreadPoolExecutor(4) as threads:
        for problem_set in made.sets:
            for problem in problem_set.problems:
                given = [(text, len(text), "completed") for text in answers[problem_set.name]]
                record = grade(made, problem, given, threads)
                results.append({"model": member.fingerprint, "seed": 1, "data": problem_set.name, **record})
    return summary.summary_of(made, None, 0.5, Incidents())


def test_each_set_is_graded_in_its_own_way(tmp_path, files):
    made = planned(tmp_path, "samples=4", f"data=[{files['code']},{files['choice']},{files['knights']}]",
                   "code.cpu_s=1", "code.wall_s=30")  # fmt: skip
    answers = {
        "programs": ["```python\ndef f(x):\n    return x * x\n```", "```python\ndef f(x):\n    return x\n```",
                     "```python\nwhile True:\n    pass\n```", "I do not know."],
        "questions": ["\\boxed{B}", "The answer is (B).", "\\boxed{y}", "\\boxed{C}"],
        "puzzles": ["\\boxed{Ann: knight, Ben: knave}", "\\boxed{Ben: knave, Ann: knight}",
                    "\\boxed{Ann: knave, Ben: knave}", "no idea"],
    }  # fmt: skip
    found = evaluated(made, answers)
    values = {(r["data"], r["metric"]): r["value"] for r in found["metrics"]}
    assert values["programs", "avg@4"] == 0.25 and values["programs", "pass@4"] == 1.0
    assert values["questions", "avg@4"] == 0.75 and values["questions", "maj@4"] == 1.0
    assert values["puzzles", "avg@4"] == 0.5 and values["puzzles", "maj@4"] == 1.0
    assert ("programs", "maj@4") not in values and ("average", "maj@4") not in values  # programs do not vote
    assert values["average", "avg@4"] == pytest.approx(0.5)
    counts = {c["data"]: c for c in found["counts"]}
    assert counts["programs"]["program_passed"] == counts["programs"]["program_timeout"] == 3
    assert (counts["programs"]["wrong"], counts["programs"]["no_answer"]) == (6, 3)
    assert any("3 of 12 programs reached a limit (timeout 3)" in w for w in found["warnings"])
    records = [r for r in read_records(tmp_path / "results.jsonl") if r["data"] == "programs"]
    assert records[0]["gold"] == "tests of f" and records[0]["majority"] is None
    assert [r["verdict"] for r in records[0]["responses"]] == ["passed", "failed", "timeout", "error"]
    assert records[0]["responses"][1]["extracted"] == "failed AssertionError: assert f(2) == 4"
    assert "no program" in records[0]["responses"][3]["extracted"]


def test_accuracy_by_difficulty(tmp_path, files):
    made = planned(tmp_path, "samples=1", f"data=[{files['knights']}]")
    made.sets[0].problems[1].extra_info["difficulty"] = None  # one that has none
    found = evaluated(made, {"puzzles": ["\\boxed{Ann: knight, Ben: knave}"]})
    rows = {r["level"]: r for r in found["by_difficulty"]}
    assert {d: (r["metric"], r["value"], r["problems"]) for d, r in rows.items()} == {
        3.0: ("avg@1", 1.0, 2), 4.0: ("avg@1", 1.0, 1)
    }  # fmt: skip
    console = Console(record=True, width=120)
    for table in tables(found):
        console.print(table)
    assert "puzzles by difficulty, %" in console.export_text()
    json.dumps(found)


def test_many_difficulties_are_rounded_down():
    ids = [f"{n}-x" for n in range(60)]
    problems = {i: {"avg@1": (float(n < 30), 1.0)} for n, i in enumerate(ids)}
    run = estimates.Evaluation("m", "m", 1, "d", problems, estimates.Counter())
    rows = breakdowns.by_difficulty([run], {"d": {i: n / 10 for n, i in enumerate(ids)}})
    assert [(r["level"], r["value"], r["problems"]) for r in rows] == [(float(n), float(n < 3), 10) for n in range(6)]


def test_programs_are_named_in_the_plan_and_their_options_checked(tmp_path, files, capsys):
    assert "wall_s=0" in refusal(tmp_path, f"data=[{files['code']}]", "code.wall_s=0")
    assert "unknown reward option(s) ['nonsense']" in refusal(tmp_path, f"data=[{files['code']}]", "+code.nonsense=1")
    said = refusal(tmp_path, f"data=[{files['code']}]", "+prompts.sums='{problem}'", "prompts.code=x")
    assert "prompts.sums: neither a set (programs) nor a grader" in said and "prompts.code='x'" in said
    made = planned(tmp_path, f"data=[{files['code']}]", "code.children=1", "code.cpu_s=3")
    assert made.settings["code"]["cpu_s"] == 3 and "children" not in made.settings["code"]  # which changes no result
    assert made.code.children == 1 and planned(tmp_path, f"data=[{files['code']}]").code.children >= 1
    from recipes.evaluate.console import plan_table

    Console().print(plan_table(made))
    assert "3 s of CPU, 1024 MiB each; isolated" in capsys.readouterr().out


def test_a_prompt_that_is_no_text_is_refused_and_half_a_second_is_a_limit(tmp_path, files):
    assert "prompts.choice=3: must be a text" in refusal(tmp_path, f"data=[{files['choice']}]", "prompts.choice=3")
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        usual = compose("evaluate", overrides=["preset=starter", "model=x"]).code
    assert type(usual.wall_s) is type(usual.cpu_s) is float  # the command line takes whole numbers only for whole ones


def test_an_evaluation_goes_on_only_with_its_own_prompts_and_limits(tmp_path, files):
    first = planned(tmp_path, "samples=4", f"data=[{files['choice']}]")
    plan.write_settings(first)
    content = json.loads((tmp_path / plan.SETTINGS).read_text())
    del content["settings"]["code"], content["settings"]["prompts"]  # as before there were these
    (tmp_path / plan.SETTINGS).write_text(json.dumps(content))
    assert planned(tmp_path, "samples=4", f"data=[{files['choice']}]").samples == 4
    said = refusal(tmp_path, "samples=4", f"data=[{files['choice']}]", "prompts.choice='{problem}?'")
    assert "prompts={'choice': '{problem}?'}" in said and "was begun with None" in said
    plan.write_settings(first)
    assert "code=" in refusal(tmp_path, "samples=4", f"data=[{files['choice']}]", "code.cpu_s=3")


def test_without_isolation_an_evaluation_of_programs_is_not_started(tmp_path, files):
    """On a machine that has no namespaces: refused by name; other sets are evaluated all the same."""
    script = WITHOUT_NAMESPACES + (
        "from recipes.evaluate.plan import make_plan\nfrom recipes.common.checks.errors import SettingsError\n"
        "from tests.recipes.evaluate.test_inputs import configured\nfrom pathlib import Path\n"
        "def planned(*words):\n"
        f"    return make_plan(configured('preset=starter', *words), Path({str(tmp_path)!r}), 0)\n"
        f"planned('data=[{files['choice']}]')\n"
        f"try:\n    planned('data=[{files['code']}]')\nexcept SettingsError as error:\n    print('refused:', error)\n"
        f"made = planned('data=[{files['code']}]', 'code.isolation=available')\n"
        "print(len(made.code.pool.missing()), 'open')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: " in done.stdout and "the network can be reached" in done.stdout
    assert int(done.stdout.split()[-2]) >= 3
