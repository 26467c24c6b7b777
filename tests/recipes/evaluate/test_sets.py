"""The benchmark sets beyond the first six: formats, prompts, graders, puzzles, and what is wrong with rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from recipes.common.checks.errors import SettingsError
from recipes.common.teacher.prompts import BOXED_INSTRUCTION, student_messages
from recipes.data import store
from recipes.data.prepare import CONFIG_DIR, prepare
from recipes.data.readers import DataError
from recipes.data.sets import knights
from recipes.data.sets.choice import shuffled
from recipes.data.validate import ValidateConfig, validate
from recipes.evaluate import problems
from rewards.by_grader import compute_score
from rewards.choice import LETTERS
from rewards.code import Task, ground_truth_of, task_of
from rewards.knights import read_roles
from tests.builders.benchmark_sets import SETS, write_repository, write_rows
from tests.builders.configs import ROOT
from tests.builders.hub import hub

KEPT = {"gpqa_diamond": 3, "mmlu_pro": 4, "humaneval_plus": 2, "mbpp_plus": 1, "amc_2023": 3, "deepmath_103k": 10}


def settings(name: str, out: Path, *overrides: str):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return compose("prepare", overrides=[f"dataset={name}", f"out={out}", *overrides])


def made(name: str, out: Path, *overrides: str, source: Path | None = None) -> tuple[dict, list[dict]]:
    """(card, test rows) of a set prepared from a folder in the hub's layout."""
    source = source or write_repository(out / "hub" / name, name)
    more = ["probe_size=1", "dataset.test_size=4"] if name == "deepmath_103k" else []
    prepare(settings(name, out, f"source={source}", *more, *overrides))
    return store.read_card(out / name), pq.read_table(out / name / "test.parquet").to_pylist()


def wrapped(row: dict) -> str:
    """A response that answers a row rightly, in its grader's form."""
    return row["solution"] if row["extra_info"]["grader"] == "code" else f"So it is \\boxed{{{row['answer']}}}."


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("name", list(SETS))
def test_every_set_in_its_own_format_is_graded_right_by_its_own_grader(name, tmp_path):
    card, rows = made(name, tmp_path)
    total = sum(entry["rows"] for entry in card["files"].values())
    assert total == KEPT[name], card["counts"]
    for row in rows:
        assert list(row) == store.SCHEMA.names and row["data_source"] == name
        (message,) = row["prompt"]
        assert row["problem"] in message["content"]
        reply = compute_score(name, wrapped(row), row["reward_model"]["ground_truth"], row["extra_info"])
        assert reply["status"] == "correct", (row, reply)
        wrong = "```python\ndef f():\n    pass\n```" if row["extra_info"]["grader"] == "code" else "\\boxed{Z}"
        assert compute_score(name, wrong, row["reward_model"]["ground_truth"], row["extra_info"])["acc"] == 0.0
    findings, _ = validate(ValidateConfig(file=str(tmp_path / name)))
    assert findings == []
    loaded = problems.load_set(name, str(tmp_path), None)
    assert loaded.name == name and len(loaded.problems) == len(rows)


def test_gated_and_other_sets_come_from_the_hub_as_from_a_folder(tmp_path):
    names = ["gpqa_diamond", "humaneval_plus", "mmlu_pro"]
    folders = {n: write_repository(tmp_path / "repositories" / n, n) for n in names}
    with hub({settings(n, tmp_path).dataset.hub: folders[n] for n in names}) as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        words = ["-m", "recipes.data.prepare", "-m", f"dataset={','.join(names)}", f"out={tmp_path / 'hub'}"]
        found = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
        )
    assert found.returncode == 0, found.stderr
    for name in names:
        from_hub = store.read_card(tmp_path / "hub" / name)["files"]["test.parquet"]
        card, _ = made(name, tmp_path / "folder", source=folders[name])
        assert from_hub["rows_sha256"] == card["files"]["test.parquet"]["rows_sha256"]


def test_verl_loads_sets_of_all_graders_together(tmp_path):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from tests.builders.tiny_tokenizer import tiny_tokenizer

    prepare(settings("knights_knaves", tmp_path, "dataset.generate.size=30", "dataset.test_size=9", "probe_size=2"))
    for name in SETS:
        made(name, tmp_path)
    files = [str(tmp_path / name / "test.parquet") for name in (*SETS, "knights_knaves")]
    config = {"cache_dir": str(tmp_path / "cache"), "prompt_key": "prompt", "max_prompt_length": 8192,
              "return_raw_chat": True}  # fmt: skip
    dataset = RLHFDataset(data_files=files, tokenizer=tiny_tokenizer(), config=OmegaConf.create(config))
    for index in range(len(dataset)):
        row = dataset[index]
        reply = compute_score(
            row["data_source"], "\\boxed{nothing}", row["reward_model"]["ground_truth"], row["extra_info"]
        )
        assert reply["status"] in ("wrong", "no_answer"), (row, reply)
    assert {dataset[index]["data_source"] for index in range(len(dataset))} == {*SETS, "knights_knaves"}


# ------------------------------------------------------------------ multiple choice


def test_options_are_shuffled_by_a_seed_and_the_answer_moves_along(tmp_path):
    _, first = made("mmlu_pro", tmp_path / "a")
    _, again = made("mmlu_pro", tmp_path / "b")
    _, other = made("mmlu_pro", tmp_path / "c", "seed=2")
    assert first == again
    assert [r["extra_info"]["options"] for r in first] != [r["extra_info"]["options"] for r in other]
    for row in [*first, *other]:
        options = row["extra_info"]["options"]
        number = int(re.search(r"follows (\d)", row["problem"])[1])
        assert options[LETTERS.index(row["answer"])] == str(number + 1)  # whatever the order, the right one
        assert sorted(map(int, options)) == list(range(number, number + len(options)))
        for letter, text in zip(LETTERS, options, strict=False):
            assert f"({letter}) {text}" in row["problem"]
    letters = Counter(shuffled(list("wxyz"), 0, str(n), 1)[1] for n in range(4000))
    assert set(letters) == set("ABCD") and all(900 < count < 1100 for count in letters.values())


def test_rows_of_multiple_choice_that_cannot_be_graded_are_counted(tmp_path):
    card, rows = made("gpqa_diamond", tmp_path)
    assert card["counts"]["with the right option twice"] == 1
    assert all("Main:" not in row["problem"] for row in rows)  # the subset's file, not the others
    assert made("mmlu_pro", tmp_path)[0]["counts"]["without an answer among the options"] == 1
    repeated = next(row for row in rows if "weighs" in row["problem"])
    info = repeated["extra_info"]
    assert compute_score("", "\\boxed{a ton}", repeated["answer"], info)["status"] == "correct"
    assert compute_score("", "\\boxed{a gram}", repeated["answer"], info)["status"] == "no_answer"  # two of these


def test_the_reference_of_a_question_ends_in_its_letter(tmp_path):
    for row in made("gpqa_diamond", tmp_path)[1]:
        assert row["solution"] == f"By counting,\nit follows.\n\n\\boxed{{{row['answer']}}}"


# ------------------------------------------------------------------ programs


def test_what_stands_before_a_head_is_executed_before_the_program(tmp_path):
    card, rows = made("humaneval_plus", tmp_path)
    assert card["counts"]["without tests"] == card["counts"]["without an entry point"] == 1
    largest, quarter = (task_of(row["reward_model"]["ground_truth"]) for row in rows)
    assert largest.setup == "from typing import List" and largest.entry_point == "largest"
    assert quarter.setup.startswith("def half(x)")
    bare = "```python\ndef quarter(x):\n    return half(half(x))\n```"  # does not repeat the helper
    assert compute_score("", bare, rows[1]["reward_model"]["ground_truth"], rows[1]["extra_info"])["acc"] == 1.0
    assert all(row["answer"] is None for row in rows)


def test_the_first_example_of_mbpp_names_the_function(tmp_path):
    card, (row,) = made("mbpp_plus", tmp_path)
    assert card["counts"]["without an entry point"] == 1
    task = task_of(row["reward_model"]["ground_truth"])
    assert task.entry_point == "shared"  # what the examples call, not the helper
    assert "assert set(shared((3, 4), (4, 5))) == set((4,))" in row["problem"]
    assert "(1, 2), (5, 4)" not in row["prompt"][0]["content"]  # the other examples stay hidden


# ------------------------------------------------------------------ difficulty, prompts, hashes


def test_deepmath_is_held_out_and_chosen_by_difficulty(tmp_path):
    card, rows = made("deepmath_103k", tmp_path)
    assert sorted(row["extra_info"]["difficulty"] for row in rows) == [3.0, 5.5, 8.0, 10.0]  # one of each
    train = pq.read_table(tmp_path / "deepmath_103k" / "train.parquet").to_pylist()
    probe = pq.read_table(tmp_path / "deepmath_103k" / "probe.parquet").to_pylist()
    assert len(train) + len(probe) + len(rows) == 10
    assert not {r["problem"] for r in rows} & {r["problem"] for r in [*train, *probe]}
    assert all(row["solution"].endswith(f"\\boxed{{{row['answer']}}}.") for row in train)
    card, rows = made("deepmath_103k", tmp_path / "b", "dataset.difficulty_range=[5,8]", "dataset.test_size=2")
    assert card["counts"]["outside the difficulty range"] == 5
    assert {row["extra_info"]["difficulty"] for row in rows} == {5.5, 8.0}
    with pytest.raises(DataError, match="test_size=10 leaves nothing of 10"):
        made("deepmath_103k", tmp_path / "c", "dataset.test_size=10")
    with pytest.raises(DataError, match="difficulty_range=.*lowest, highest"):
        made("deepmath_103k", tmp_path / "c", "dataset.difficulty_range=[8,5]")
    with pytest.raises(DataError, match="difficulty_range"):
        made("amc_2023", tmp_path / "c", "+dataset.difficulty_range=[1,2]")


def test_a_prompt_is_the_sets_own_or_the_users(tmp_path):
    _, rows = made("mmlu_pro", tmp_path / "a")
    assert all('"the answer is (X)"' in row["prompt"][0]["content"] for row in rows)
    _, rows = made("amc_2023", tmp_path / "a")
    assert all(row["prompt"] == student_messages(row["problem"]) for row in rows)
    _, rows = made("mmlu_pro", tmp_path / "b", "prompt='Choose. {problem}'")
    assert all(row["prompt"] == [{"role": "user", "content": f"Choose. {row['problem']}"}] for row in rows)
    with pytest.raises(DataError, match=r"prompt=Choose\.: must be null or contain \{problem\}"):
        made("mmlu_pro", tmp_path / "b", "prompt=Choose.")


def test_prompts_of_an_evaluation_go_by_set_then_by_grader(tmp_path):
    made("amc_2023", tmp_path)
    made("mmlu_pro", tmp_path)
    templates = {"math": "M {problem}", "amc_2023": "A {problem}", "choice": "C {problem}"}
    amc, mmlu = problems.load_sets(["amc_2023", "mmlu_pro"], str(tmp_path), None, templates)
    assert amc.problems[0].messages == [{"role": "user", "content": f"A {amc.problems[0].text}"}]
    assert mmlu.problems[0].messages[0]["content"].startswith("C Which number")
    (plain,) = problems.load_sets(["amc_2023"], str(tmp_path), None)
    assert {p.id for p in plain.problems}.isdisjoint(p.id for p in amc.problems)  # other questions, never paired
    wrong = list(problems.prompt_problems({"amc_2024": "{problem}", "math": "no place", "code": 3}, [amc]))
    assert len(wrong) == 3 and "amc_2024" in wrong[0] and "'no place'" in wrong[1]


def test_opsd_protocols_ask_as_the_paper_says():
    for preset in ("pw_opsd", "atesd"):
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            cfg = compose("evaluate", overrides=[f"preset={preset}", "model=x"])
        asked = {name: template for name, template in cfg.prompts.items() if template is not None}
        assert asked == {"math": f"{{problem}}\n\n{BOXED_INSTRUCTION}"}


def test_the_published_hash_of_hmmt_is_compared_with_the_file(tmp_path):
    rows = [{"problem": f"{n}?", "answer": str(n)} for n in range(3)]
    file = write_rows(tmp_path / "train.parquet", rows)
    published = settings("hmmt_feb_2025", tmp_path).dataset.published_sha256
    assert published == "87bfb23d2c887fab12b42fcc2b2dd8cb5a9d1070e591490dac8755bc366ea25e"  # PW-OPSD, App. K
    said = prepare(settings("hmmt_feb_2025", tmp_path, f"source={file}"))
    assert "this is not the file that PW-OPSD used" in said and published in said
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    said = prepare(settings("hmmt_feb_2025", tmp_path, f"source={file}", f"dataset.published_sha256={own}"))
    assert f"this is the file that PW-OPSD used: SHA-256 {own}" in said
    assert own in (tmp_path / "hmmt_feb_2025" / "README.md").read_text()
    assert store.read_card(tmp_path / "hmmt_feb_2025")["published"].startswith("this is the file")


# ------------------------------------------------------------------ Knights & Knaves


def says(statement: knights.Statement, knight: tuple[bool, ...]) -> bool:
    """What a statement means, written down once more, without tables."""
    parts = [knight[p] == r for p, r in zip(statement.people, statement.roles, strict=False)]
    return {
        "is": lambda: parts[0],
        "and": lambda: parts[0] and parts[1],
        "or": lambda: parts[0] or parts[1],
        "if": lambda: not parts[0] or parts[1],
        "same": lambda: knight[statement.people[0]] == knight[statement.people[1]],
        "differ": lambda: knight[statement.people[0]] != knight[statement.people[1]],
    }[statement.kind]()


def consistent(statements: tuple[knights.Statement, ...]) -> list[tuple[bool, ...]]:
    """All solutions of a puzzle, by trying every assignment."""
    assignments = product((False, True), repeat=len(statements))
    return [a for a in assignments if all(says(s, a) == a[i] for i, s in enumerate(statements))]


@pytest.mark.parametrize("count", range(3, 12))
def test_a_puzzle_has_exactly_its_solution(count):
    import random

    for seed in range(40 if count < 9 else 6):
        puzzle = knights.draw_puzzle(random.Random(seed), count)
        assert consistent(puzzle.statements) == [puzzle.roles]


def test_truth_tables_are_those_of_the_statements():
    import random

    rng = random.Random(5)
    for _ in range(300):
        count = rng.randint(3, 5)
        statement = knights.draw_statement(rng, rng.randrange(count), count)
        table = knights.truth_table(statement, count)
        for a in range(1 << count):
            assert bool(table >> a & 1) == says(statement, tuple(bool(a >> i & 1) for i in range(count)))


def test_a_worked_solution_is_a_proof():
    """Each conclusion follows from what is given and one statement; what is supposed and refuted has no solution."""
    import random

    def agreeing(count, given):
        return [a for a in product((False, True), repeat=count) if all(a[p] == r for p, r in given)]

    for seed in range(120):
        count = 3 + seed % 6
        puzzle = knights.draw_puzzle(random.Random(seed), count)
        derivation = knights.Derivation(puzzle)
        text = derivation.write()
        assert derivation.steps
        for step in derivation.steps:
            words = puzzle.statements[step.speaker]
            possible = [a for a in agreeing(count, step.given) if says(words, a) == a[step.speaker]]
            if step.person is None:
                assert possible == []
            else:
                assert possible and all(a[step.person] == step.role for a in possible)
        for given, person, role in derivation.refuted:
            supposed = agreeing(count, (*given, (person, role)))
            assert not [a for a in supposed if all(says(s, a) == a[i] for i, s in enumerate(puzzle.statements))]
        roles = {n: "knight" if r else "knave" for n, r in zip(puzzle.names, puzzle.roles, strict=True)}
        assert read_roles(text.rpartition("\\boxed")[2]) == roles
        assert compute_score("", text, knights.answer_text(roles), {"grader": "knights"})["acc"] == 1.0


def test_the_set_is_generated_from_a_seed_and_every_size_is_there(tmp_path):
    small = ["dataset.generate.size=90", "dataset.test_size=18", "probe_size=5"]
    prepare(settings("knights_knaves", tmp_path / "a", *small))
    prepare(settings("knights_knaves", tmp_path / "b", *small))
    prepare(settings("knights_knaves", tmp_path / "c", *small, "dataset.generate.seed=2"))
    a, b, c = (store.read_card(tmp_path / where / "knights_knaves") for where in "abc")
    assert a["files"] == b["files"] != c["files"]
    splits = {s: pq.read_table(tmp_path / "a" / "knights_knaves" / f"{s}.parquet").to_pylist()
              for s in ("train", "probe", "test")}  # fmt: skip
    assert {s: len(rows) for s, rows in splits.items()} == {"train": 67, "probe": 5, "test": 18}
    people = Counter(row["extra_info"]["difficulty"] for row in splits["test"])
    assert people == {float(n): 2 for n in range(3, 12)}
    for row in splits["train"]:
        assert row["prompt"] == student_messages(row["problem"]) and row["ability"] == "logic"
        assert row["solution"].endswith(f"\\boxed{{{row['answer']}}}")
        assert len(read_roles(row["answer"])) == row["extra_info"]["difficulty"]
    findings, number = validate(ValidateConfig(file=str(tmp_path / "a" / "knights_knaves")))
    assert findings == [] and number == 90
    assert "up to date" in prepare(settings("knights_knaves", tmp_path / "a", *small))


@pytest.mark.parametrize("override, said", [("people=[2,5]", "from 3 to 11"), ("people=[5,12]", "from 3 to 11"),
                                            ("size=0", "at least 1"), ("size=100000", "at most 18000")])  # fmt: skip
def test_a_set_that_cannot_be_generated_is_refused(tmp_path, override, said):
    with pytest.raises(DataError, match=said):
        prepare(settings("knights_knaves", tmp_path, f"dataset.generate.{override}"))


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("\\boxed{Ann: knight, Ben: knave}", "correct"),
        ("\\boxed{Ben: knave, Ann: knight}", "correct"),
        ("\\boxed{\\text{Ann is a knight, and Ben is a Knave}}", "correct"),
        ("\\boxed{\\text{Ann = Knight} \\\\ \\text{Ben = Knave}}", "correct"),
        ("CONCLUSION:\n(1) Ann is a knight\n(2) Ben is a knave", "correct"),
        ("\\boxed{Ann: knight, Ben: knight}", "wrong"),
        ("\\boxed{Ann: knight}", "wrong"),
        ("\\boxed{Ann: knight, Ben: knave, Cleo: knave}", "wrong"),
        ("\\boxed{Ann: knight, Ann: knave, Ben: knave}", "wrong"),
        ("\\boxed{yes}", "no_answer"),
        ("Ann is a knight. Ben is a knave.", "no_answer"),
        ("<think>\\boxed{Ann: knight, Ben: knave}", "no_answer"),
        ("<think>\\boxed{Ann: knave, Ben: knave}</think>\\boxed{Ann: knight, Ben: knave}", "correct"),
    ],
)
def test_an_assignment_is_right_as_a_whole_or_not_at_all(response, status):
    assert compute_score("", response, "Ann: knight, Ben: knave", {"grader": "knights"})["status"] == status


# ------------------------------------------------------------------ bad rows


def evaluation_file(path: Path, grader: str | None, gold: str | None, **extra) -> Path:
    row = {"data_source": "s", "prompt": [{"role": "user", "content": "?"}], "problem": "?",
           "reward_model": {"style": "rule", "ground_truth": gold},
           "extra_info": {"index": 0, "grader": grader, "options": ["a", "b"], **extra}}  # fmt: skip
    return write_rows(path, [row])


@pytest.mark.parametrize(
    ("grader", "gold", "extra", "said"),
    [
        (None, None, {}, "no ground truth, so it cannot be graded"),
        ("choice", None, {}, "no ground truth"),
        ("choice", "C", {}, "'C' is none of its 2 options"),
        ("choice", "a", {}, "'a' is none of its 2 options"),
        ("choice", "A", {"options": ["x", " X. ", "y"]}, "occurs twice, so there is no single letter"),
        ("choice", "A", {"options": []}, "none of its 0 options"),
        ("code", "no JSON", {}, "no ground truth"),
        ("code", ground_truth_of(Task("   ", "f")), {}, "no ground truth"),
        ("poetry", "x", {}, "extra_info.grader='poetry': must be one of math, choice, code, knights"),
    ],
)
def test_rows_that_cannot_be_graded_are_refused_before_anything_starts(tmp_path, grader, gold, extra, said):
    path = evaluation_file(tmp_path / "bad.parquet", grader, gold, **extra)
    with pytest.raises(SettingsError, match=re.escape(said)) as error:
        problems.load_set(str(path), "data", None)
    assert "row 0" in str(error.value)


def test_a_set_without_any_usable_row_is_no_set(tmp_path):
    rows = [{**row, "Correct Answer": ""} for row in SETS["gpqa_diamond"][1]]
    file = write_rows(tmp_path / "gpqa_diamond.csv", rows)
    with pytest.raises(DataError, match="no usable row among 4 read: 4 without an answer among the options"):
        prepare(settings("gpqa_diamond", tmp_path, f"source={file}"))
    with pytest.raises(DataError, match="column 'options' is missing"):
        prepare(settings("mmlu_pro", tmp_path, f"source={write_rows(tmp_path / 'x.jsonl', [{'question': '?'}])}"))


def test_old_files_without_a_grader_are_mathematics(tmp_path):
    path = tmp_path / "old.parquet"
    row = {"data_source": "s", "prompt": [{"role": "user", "content": "?"}], "problem": "?",
           "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 0}}  # fmt: skip
    loaded = problems.load_set(str(write_rows(path, [row])), "data", None)
    assert loaded.problems[0].grader == "math" and loaded.problems[0].difficulty is None
    assert json.dumps(dict(loaded.problems[0].extra_info))
