"""Rows of every grader through the exact readers: a user's own file of choices and programs, held out and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from config import CONFIG_DIR
from recipes.data import store
from recipes.data.prepare import prepare
from recipes.data.readers import DataError

CHOICE = ("dataset.grader=choice", "dataset.options=options", "dataset.solution=null")


def own(file: Path, *overrides: str) -> str:
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        words = ["dataset=local", f"file='{file}'", f"out='{file.parent / 'data'}'", *overrides]
        return prepare(compose("prepare", overrides=words))


def rows_of(file: Path, split: str = "test", *overrides: str) -> list[dict]:
    own(file, *overrides)
    return pq.read_table(file.parent / "data" / file.stem / f"{split}.parquet").to_pylist()


def json_lines(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize("answer", ["2", '"2"', '"C"', '"0.50"', "0.50"])
def test_options_stay_as_they_are_written_and_the_answer_is_letter_number_or_text(tmp_path, answer):
    file = json_lines(tmp_path, f'{{"problem": "?", "options": [0.5, "1.0", 0.50], "answer": {answer}}}')
    (row,) = rows_of(file, "test", "dataset.role=eval", *CHOICE)
    options = row["extra_info"]["options"]
    assert sorted(options) == ["0.5", "0.50", "1.0"]
    assert options["ABC".index(row["answer"])] == "0.50"


def test_parquet_tells_a_number_from_a_text(tmp_path):
    for kind, right in ((1, "5"), ("1", "1")):
        pq.write_table(
            pa.Table.from_pylist([{"problem": "?", "options": ["1", "5"], "answer": kind}]), tmp_path / "mine.parquet"
        )
        if kind == 1:
            (row,) = rows_of(tmp_path / "mine.parquet", "test", "dataset.role=eval", *CHOICE)
            assert row["extra_info"]["options"]["AB".index(row["answer"])] == right


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"problem": "?", "options": ["1", "5"], "answer": 1}', "column 'answer': 1 is the number"),
        ('{"problem": "?", "options": ["x", 12345678901234567890], "answer": "A"}', "column 'options': .*2\\^53"),
        ('{"problem": "?", "options": ["x", true], "answer": "A"}', "column 'options': it is the truth value"),
        ('{"problem": "?", "options": "x, y", "answer": "A"}', "column 'options': .*a list is needed"),
        ('{"problem": {"text": "?"}, "options": ["x", "y"], "answer": "A"}', "column 'problem': it has the fields"),
        ('{"problem": "?", "options": ["x", "y"]}', "column 'answer' is missing"),
    ],
)
def test_what_has_no_one_reading_is_refused_with_its_column(tmp_path, line, said):
    file = json_lines(tmp_path, line)
    with pytest.raises(DataError, match=said) as caught:
        own(file, "dataset.role=eval", "dataset.optional=[]", *CHOICE)
    assert "mine.jsonl" in str(caught.value) and not (tmp_path / "data").exists()


def test_programs_need_no_answer_and_same_problems_with_other_tests_contradict(tmp_path):
    def row(problem: str, tests: str) -> str:
        return json.dumps({"problem": problem, "check": tests, "name": "f"})

    file = json_lines(tmp_path, *(row(*words) for words in [("a", "1"), ("a", "1"), ("b", "1"), ("b", "2")]))
    words = ["dataset.grader=code", "dataset.tests=check", "dataset.entry_point=name"]
    (kept,) = rows_of(file, "test", "dataset.role=eval", *words)
    assert kept["problem"] == "a" and kept["answer"] is None and kept["ability"] == "code"
    counts = store.read_card(tmp_path / "data" / "mine")["counts"]
    assert counts["duplicates"] == 2 and counts["problems with contradicting answers"] == 1


@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
def test_probe_validation_and_test_are_held_out_together_by_difficulty(tmp_path, kind):
    """A difficulty is a number, so 32 bits will do, as they do not for a text."""
    levels = pa.array([n % 4 for n in range(40)]).cast(kind)
    table = {"problem": [f"{n}?" for n in range(40)], "answer": ["1"] * 40, "level": levels}
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table(table), file)
    words = ["dataset.difficulty=level", "dataset.test_size=8", "val_size=5"]
    said = own(file, *words)
    assert "train 24, probe 3, val 5, test 8" in said  # a tenth of the 32 that are left
    parts = {n: pq.read_table(tmp_path / "data" / "mine" / f"{n}.parquet").to_pylist() for n in
             ("train", "probe", "val", "test")}  # fmt: skip
    assert len({row["problem"] for rows in parts.values() for row in rows}) == 40
    assert sorted(row["extra_info"]["difficulty"] for row in parts["test"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "train 18, probe 2, val 5, test 5" in own(
        file, *words, "dataset.difficulty_range=[0,2]", "dataset.test_size=5"
    )


def test_training_on_other_graders_names_their_reward(tmp_path):
    file = json_lines(tmp_path, *(f'{{"problem": "{n}", "options": ["x", "y"], "answer": "A"}}' for n in range(4)))
    assert "reward.custom_reward_function.path=pkg://rewards.choice" in own(file, *CHOICE)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.grader=poetry", "dataset.grader=poetry: must be one of math, choice, code, knights"),
        ("dataset.grader=choice", "dataset.options=None: must be the column"),
        ("dataset.grader=code", "dataset.tests=None: must be the column"),
        ("dataset.options=3", "dataset.options=3: must be a column"),
        ("dataset.test_size=-1", "dataset.test_size=-1: must be a whole number"),
        ("dataset.test_size=many", "dataset.test_size=many: must be a whole number"),
        ("dataset.difficulty_range=[1,2]", "of a set with dataset.difficulty"),
        ("dataset.prompt=Solve", "dataset.prompt=Solve: must be null or contain {problem}"),
        ("prompt=3", "prompt=3: must be null or contain {problem}"),
        ("dataset.tests=7", "dataset.tests=7: must be a text"),
        ("+dataset.generate.sizes=3", "dataset.generate="),
    ],
)
def test_settings_of_graders_are_refused_by_name(tmp_path, override, said):
    file = json_lines(tmp_path, '{"problem": "?", "answer": "1"}')
    with pytest.raises(DataError) as caught:
        own(file, override, "probe_size=0")
    assert said in str(caught.value)
