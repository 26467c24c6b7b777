"""A user's own file: every value stays as it is written, or is refused with its place, its column and what to do."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from recipes.data import store
from recipes.data.cells import exact_text
from recipes.data.prepare import CONFIG_DIR, hold_out, prepare
from recipes.data.readers import DataError
from tests.builders import forked
from tests.builders.configs import ROOT


def own(file: Path, *overrides: str) -> str:
    """Prepare a file as `dataset=local` into the folder `data` beside it; returns what the user is told."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        words = ["dataset=local", f"file='{file}'", f"out='{file.parent / 'data'}'", *overrides]
        return prepare(compose("prepare", overrides=words))


def rows_of(file: Path, *overrides: str) -> list[dict[str, Any]]:
    own(file, "probe_size=0", *overrides)
    return pq.read_table(file.parent / "data" / file.name.split(".")[0] / "train.parquet").to_pylist()


def answers_of(file: Path, *overrides: str) -> list[str]:
    return [row["answer"] for row in rows_of(file, *overrides)]


def refusal(file: Path, *overrides: str) -> str:
    """Why a file is refused; nothing may have been written."""
    with pytest.raises(DataError) as caught:
        own(file, "probe_size=0", *overrides)
    assert not (file.parent / "data").exists()
    return str(caught.value)


def json_lines(folder: Path, answers: list[str]) -> Path:
    """A file whose answers are JSON literals as given."""
    path = folder / "mine.jsonl"
    path.write_text("".join(f'{{"problem": "{n}?", "answer": {answer}}}\n' for n, answer in enumerate(answers)))
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "mine.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return forked.command("recipes.data.prepare", *words, cwd=folder)


# --- from a file to training files, without a YAML ---


def test_a_file_becomes_training_files_and_the_user_is_told_how_to_train_on_them(tmp_path):
    lines = [json.dumps({"problem": f"What is {n} + 1?", "answer": n + 1}) + "\n" for n in range(50)]
    (tmp_path / "sums.jsonl").write_text("".join(lines))
    result = command(tmp_path, "dataset=local", "file=sums.jsonl", "val_size=8")
    assert result.returncode == 0, result.stderr
    assert "train 37, probe 5, val 8" in result.stdout  # a probe of a tenth, where 64 would leave nothing
    assert "no row has a solution" in result.stdout and "self_distill.teacher.context=answer" in result.stdout
    assert (
        "data.train_files=data/sums/train.parquet data.val_files=data/sums/val.parquet "
        "self_distill.teacher.context=answer"
    ) in result.stdout
    folder = tmp_path / "data" / "sums"
    card = store.read_card(folder)
    assert store.is_intact(folder, card) and card["made_from"]["input"]["files"].keys() == {"sums.jsonl"}
    text = (folder / "README.md").read_text()
    assert text.startswith("# sums\n") and "the local file `sums.jsonl`" in text and "None" not in text
    parts = {name: pq.read_table(folder / f"{name}.parquet") for name in ("train", "probe", "val")}
    problems = [problem for table in parts.values() for problem in table["problem"].to_pylist()]
    assert len(problems) == len(set(problems)) == 50
    for table in parts.values():
        assert table.schema.equals(store.SCHEMA)
        for row in table.to_pylist():
            assert row["answer"] == str(int(row["problem"].split()[2]) + 1) and row["data_source"] == "sums"
    assert "up to date" in command(tmp_path, "dataset=local", "file=sums.jsonl", "val_size=8").stdout


def test_solutions_are_used_where_they_are_and_their_absence_is_told(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"problem": f"{n}?", "answer": "1", "solution": f"{n}: \\boxed{{1}}"} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = own(path)
    assert "context=answer" not in said and "to train on it" in said
    path.write_text(path.read_text() + '{"problem": "e", "answer": "1"}\n')
    said = own(path)
    assert "1 of 5 rows have no solution" in said and "self_distill.teacher.context=answer" in said
    path.write_text("".join(json.dumps({"problem": r["problem"], "solution": r["solution"]}) + "\n" for r in rows))
    assert answers_of(path) == ["1"] * 4  # from the box
    assert store.read_card(tmp_path / "data" / "mine")["counts"]["answered by the box of their solution"] == 4


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", ".json.gz", ".CSV"])
def test_formats(tmp_path, suffix):
    rows = [
        {"question": "One, two?\r\n\tYes", "final": '"3"', "why": "1+2=3"},
        {"question": "é²", "final": "½", "why": ""},
    ]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        quoted = ['"{}"'.format('","'.join(text.replace('"', '""') for text in row.values())) for row in rows]
        text = {
            "jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
            "json": json.dumps(rows, indent=1, ensure_ascii=False),
            "csv": "\r\n".join(["question,final,why", *quoted]),
        }[suffix.lower().split(".")[1]]
        (gzip.open if suffix.endswith("gz") else open)(path, "wb").write(b"\xef\xbb\xbf" + text.encode())
    columns = ("dataset.problem=question", "dataset.answer=final", "dataset.solution=why")
    found = [{k: row[k] for k in ("problem", "answer", "solution")} for row in rows_of(path, *columns)]
    assert [tuple(row.values()) for row in found] == [tuple(row.values()) for row in rows]


def test_a_field_inside_a_column_and_a_column_with_a_dot_in_its_name(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "a", "meta": {"gold": "7"}}\n{"problem": "b", "meta": null}\n')
    assert answers_of(path, "dataset.answer=meta.gold") == ["7"]
    assert "'meta' has the fields ['gold']" in _again(path, "dataset.answer=meta.golden")
    (tmp_path / "dots.csv").write_text("problem,meta.gold\na,7\n")
    assert answers_of(tmp_path / "dots.csv", "dataset.answer=meta.gold") == ["7"]


def _again(path: Path, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        own(path, *overrides)
    return str(caught.value)


def test_evaluation_sets_of_ones_own_and_a_folder_of_files(tmp_path):
    folder = tmp_path / "mine"
    (folder / "part-a").mkdir(parents=True)
    (folder / "part-b").mkdir()
    for part in "ab":
        (folder / f"part-{part}" / "rows.csv").write_text(f"problem,answer\n{part}?,1\n")
    own(folder, "dataset.role=eval")
    card = store.read_card(tmp_path / "data" / "mine")
    assert card["files"]["test.parquet"]["rows"] == 2
    # Files of the same name are told apart, so that a change in either is noticed.
    assert card["made_from"]["input"]["files"].keys() == {"part-a/rows.csv", "part-b/rows.csv"}
    (folder / "part-a" / "rows.csv").write_text("problem,answer\nother?,1\n")
    assert "up to date" not in own(folder, "dataset.role=eval")


def test_a_yaml_of_ones_own_by_config_dir(tmp_path):
    (tmp_path / "my" / "dataset").mkdir(parents=True)
    text = (CONFIG_DIR / "dataset" / "local.yaml").read_text()
    changed = text.replace("problem: problem", "problem: question").replace("name: null", "name: chains")
    (tmp_path / "my" / "dataset" / "chains.yaml").write_text(changed)
    (tmp_path / "q.csv").write_text("question,answer\na?,1\nb?,2\n")
    result = command(tmp_path, "--config-dir", "my", "dataset=chains", "file=q.csv")
    assert result.returncode == 0, result.stderr
    assert "data/chains: train 2" in result.stdout
    (tmp_path / "my" / "dataset" / "chains.yaml").write_text(changed + "anser: x\n")
    result = command(tmp_path, "--config-dir", "my", "dataset=chains", "file=q.csv")
    assert result.returncode == 2 and "dataset.anser: no such key; is it answer?" in result.stderr
    assert "Traceback" not in result.stderr
    (tmp_path / "my" / "dataset" / "chains.yaml").write_text("name: chains\nhub: null\n")
    result = command(tmp_path, "--config-dir", "my", "dataset=chains", "file=q.csv")
    assert result.returncode == 2 and "dataset.split is missing" in result.stderr


# --- what is kept exactly ---

# JSON literal -> the answer's text
KEPT = {
    '"007"': "007", '" 7 "': "7", '"1e3"': "1e3", "1e3": "1e3", "0.50": "0.50", "-0.0": "-0.0", "7.0": "7.0",
    "-3": "-3",
    '"$5"': "$5", '"None"': "None", '"NaN"': "NaN", '"12345678901234567890123"': "12345678901234567890123",
    "9007199254740992": "9007199254740992", "0.12345678901234567890123": "0.12345678901234567890123", '"true"': "true",
    '"2024-01-01"': "2024-01-01", '"\\u00e9\\u00b2"': "é²", '"\\ud83d\\ude00"': "😀", '"a\\u0000b"': "a\0b",
    "[1, 2.50]": "1, 2.50", '["$1$", "x"]': "$1$, x", '"[1, 2]"': "[1, 2]", '"\\\\frac{1}{2}"': "\\frac{1}{2}",
    "1e-400": "1e-400",
}  # fmt: skip


@pytest.mark.parametrize("literal", KEPT, ids=str)
def test_json_keeps(tmp_path, literal):
    assert answers_of(json_lines(tmp_path, [literal, '"other"'])) == [KEPT[literal], "other"]
    as_list = f'[{{"problem": "a", "answer": {literal}}}, {{"problem": "b", "answer": "other"}}]'
    (tmp_path / "list.json").write_text(as_list)
    assert answers_of(tmp_path / "list.json") == [KEPT[literal], "other"]


@pytest.mark.parametrize(
    "cell",
    [
        "007",
        "1e3",
        "0.50",
        "1E400",
        "NaN",
        "nan",
        "inf",
        "None",
        "NA",
        "true",
        "12345678901234567890",
        "2024-01-01",
        "½",
    ],
)
def test_csv_keeps_every_cell_as_it_is_written(tmp_path, cell):
    (tmp_path / "mine.csv").write_text(f'problem,answer\na,{cell}\nb,"{cell}"\n\nc,\n')
    assert answers_of(tmp_path / "mine.csv") == [cell, cell]
    assert store.read_card(tmp_path / "data" / "mine")["counts"]["without an answer"] == 1


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([2**62, -7]), [str(2**62), "-7"]),
        (pa.array([2**64 - 1, 3], pa.uint64()), [str(2**64 - 1), "3"]),
        (pa.array([0.1, 7.0]), ["0.1", "7"]),
        (pa.array([1e-7, 0.1 + 0.2]), ["1e-07", "0.30000000000000004"]),
        (pa.array(["007", "½"], pa.large_string()), ["007", "½"]),
        (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
        (pa.array([[1, 2], [3]]), ["1, 2", "3"]),
    ],
    ids=str,
)
def test_parquet_keeps(tmp_path, values, texts):
    assert answers_of(parquet(tmp_path, problem=["a", "b"], answer=values)) == texts


def test_empty_lines_and_nulls_are_no_rows_and_no_answers(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '\n{"problem": "a", "answer": "1"}\n   \n\n{"problem": "b", "answer": null}\r\n{"problem": "c"}\n\n'
    )
    assert answers_of(path) == ["1"]
    counts = store.read_card(tmp_path / "data" / "mine")["counts"]
    assert (counts["rows read"], counts["without an answer"]) == (3, 2)


def test_a_column_that_few_rows_have_is_read_where_it_is(tmp_path):
    lines = [json.dumps({"problem": f"{n}?", "answer": 1}) for n in range(3000)]
    lines.append(json.dumps({"problem": "late", "answer": 1, "solution": "worked"}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    assert rows_of(tmp_path / "mine.jsonl")[-1]["solution"] == "worked"


def test_powers_are_not_duplicates_of_digits(tmp_path):
    (tmp_path / "mine.csv").write_text("problem,answer\nWhat is 2⁵?,32\nWhat is 25?,25\nWhat  is 25?,25\n")
    assert answers_of(tmp_path / "mine.csv") == ["32", "25"]


# --- what is refused, with row, column and fix ---

REFUSED_JSON = {
    "true": ("the truth value true", "as text"),
    "NaN": ("it is NaN", "null"),
    "Infinity": ("it is Infinity", "null"),
    "-Infinity": ("it is -Infinity", "null"),
    "9007199254740993": ("the number 9007199254740993, beyond 2^53", "as text"),
    "-12345678901234567890": ("the number -12345678901234567890", "as text"),
    "1e400": ("the number 1E+400", "as text"),
    "1e99999999999999999999": ("it is Infinity", "null"),
    '{"value": 3, "unit": "cm"}': ("the fields ['value', 'unit']", "dataset.answer=column.field"),
    '{"a": 1, "a": 2}': ("the key 'a' occurs twice", "would be lost"),
    "[[1, 2], 3]": ("it is a list", "as text"),
    "[1, true]": ("the truth value true", "as text"),
    '"\\ud83d"': ("half of a surrogate pair", "write the text anew"),
}


@pytest.mark.parametrize("literal", REFUSED_JSON, ids=str)
@pytest.mark.parametrize("column", ["problem", "answer", "solution"])
def test_json_refuses(tmp_path, literal, column):
    what, fix = REFUSED_JSON[literal]
    if column == "problem" and literal.startswith("["):
        what = "no chat of {role, content}"
    row = {"problem": '"a"', "answer": '"1"', "solution": '"s"', column: literal}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}\n"
    (tmp_path / "mine.jsonl").write_text('{"problem": "x", "answer": 0.5}\n\n' + line)
    said = refusal(tmp_path / "mine.jsonl")
    assert f"mine.jsonl, row 1 (line 3), column '{column}'" in said and what in said and fix in said


PARQUET_REFUSED = {
    "bytes": (pa.array([None, b"7"]), "it is bytes"),
    "struct": (pa.array([None, {"v": 1}]), "the fields ['v']"),
    "decimal": (pa.array([None, Decimal("1.50")]), "the decimal 1.50"),
    "date": (pa.array([None, date(2024, 1, 2)]), "a date, 2024-01-02"),
    "timestamp": (pa.array([None, datetime(2024, 1, 2)]), "2024-01-02"),
    "time": (pa.array([None, time(12)]), "a time, 12:00:00"),
    "duration": (pa.array([None, timedelta(seconds=3)]), "0:00:03"),
    "bool": (pa.array([None, False]), "the truth value false"),
    "NaN": (pa.array([None, float("nan")], from_pandas=False), "it is nan"),
    "inf": (pa.array([None, float("inf")]), "it is inf"),
    "large double": (pa.array([None, 1e16]), "beyond 2^53"),
    "list of structs": (pa.array([None, [{"v": 1}]]), "the fields ['v']"),
    "invalid UTF-8": (pa.array([None, b"\xff"]).view(pa.string()), "UnicodeDecodeError"),
}


@pytest.mark.parametrize("kind", PARQUET_REFUSED, ids=str)
def test_parquet_refuses(tmp_path, kind):
    values, what = PARQUET_REFUSED[kind]
    said = refusal(parquet(tmp_path, problem=["a", "b"], answer=values, solution=["\\boxed{1}", "x"]))
    assert "mine.parquet, row 1, column 'answer'" in said and what in said
    # A column that is not asked for may hold anything.
    path = parquet(tmp_path, problem=["a", "b"], other=values, solution=["\\boxed{1}", "\\boxed{2}"])
    assert answers_of(path) == ["1", "2"]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.list_(pa.float32())])
def test_narrow_floats_are_refused(tmp_path, kind):
    values = pa.array([[0.1]] if pa.types.is_list(kind) else [0.1]).cast(kind)
    assert "column 'answer' is of type" in refusal(parquet(tmp_path, problem=["a"], answer=values))
    nested = pa.array([{"gold": "1", "weight": 0.5}], pa.struct({"gold": pa.string(), "weight": pa.float32()}))
    path = parquet(tmp_path, problem=["a"], meta=nested)
    assert answers_of(path, "dataset.answer=meta.gold") == ["1"]
    assert "column 'meta.weight' is of type float" in _again(path, "dataset.answer=meta.weight")


GOOD = b'{"problem": "a", "answer": "1"}\n'
DAMAGED = {
    "latin.jsonl": (b'{"problem": "caf\xe9", "answer": "1"}\n', "line 1: its byte 17 (0xe9) is not UTF-8"),
    "utf16.csv": ("problem,answer\na,1\n".encode("utf-16"), "line 1: its byte 1 (0xff) is not UTF-8"),
    "cut.jsonl": (GOOD + b'{"problem": "b", "answ', "line 2, character"),
    "leading.jsonl": (b'{"problem": "a", "answer": 007}\n', "line 1, character"),
    "list.jsonl": (GOOD + b"[1, 2]\n", "row 1 (line 2) is no JSON object but"),
    "numbers.json": (b"[1, 2]", "row 0 is no JSON object but '1'"),
    "twice.jsonl": (GOOD + b'{"problem": "b", "answer": 1, "answer": 2}\n', "row 1 (line 2): the key 'answer' occurs"),
    "twice.json": (b'[{"problem": "b", "problem": "c"}]', "row 0: the key 'problem' occurs twice"),
    "deep.jsonl": (b'{"problem": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply"),
    "pretty.json": (b'{\n "data": [{"problem": "a", "answer": "1"}]\n}\n', "one row on each line, or one list of rows"),
    "empty.json": (b"", "is empty"),
    "blank.jsonl": (b" \n\r\n\t\n", "is empty"),
    "bom.csv": (b"\xef\xbb\xbf", "is empty"),
    "short.csv": (b"problem,answer\na,1\nb\n", "row 1 (line 3) has 1 cells, and the header 2"),
    "long.csv": (b"problem,answer\nWhat is 1,000?,1\n", "row 0 (line 2) has 3 cells, and the header 2"),
    "multiline.csv": (b'problem,answer\n"a\nb",1\nc\n', "row 1 (line 4) has 1 cells"),
    "open.csv": (b'problem,answer\n"a,1\nb,2\n', "unexpected end of data"),
    "quote.csv": (b'problem,answer\n"a"b,1\n', "line 2"),
    "namesakes.csv": (b"problem,answer,answer\na,1,2\n", "two columns are called 'answer'"),
    "semicolons.csv": (b"problem;answer\na;1\n", "separated by ';'"),
    "tabs.csv": (b"problem\tanswer\na\t1\n", "separated by '\\t'"),
    "macintosh.csv": (b"problem,answer\ra,1\r", "line 1"),
    "header.csv": (b"problem,answer\n", "no usable row among 0 read"),
    "plain.jsonl.gz": (GOOD, "BadGzipFile"),
    "cut.jsonl.gz": (gzip.compress(GOOD * 5000)[:-300], "compressed data are cut off"),
    "cut.csv.gz": (gzip.compress(b"problem,answer\n" + b"a,1\n" * 9)[:-9], "compressed data are cut off"),
    "damaged.json.gz": (gzip.compress(os.urandom(9000))[:4000] + bytes(3000), "cannot be read as json"),
    "raw.jsonl": (gzip.compress(GOOD), "not UTF-8"),
    "text.parquet": (b"problem,answer\na,1\n", "cannot be read as parquet"),
    "empty.parquet": (b"", "cannot be read as parquet"),
    "book.xlsx": (b"PK\x03\x04", "is no .parquet"),
    "noname": (GOOD, "is no .parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_the_place(tmp_path, name):
    content, what = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert name in said or name == "header.csv"
    assert what in said, said


def test_a_parquet_file_that_was_cut_off_or_has_namesakes(tmp_path):
    path = parquet(tmp_path, problem=["a"], answer=["1"])
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read as parquet" in refusal(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["problem", "answer", "answer"]), path)
    assert "two columns are called 'answer'" in refusal(path)


@pytest.mark.parametrize(
    ("chat", "what"),
    [
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', None),
        ('[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]', "['system', 'user']"),
        ('[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]', "['user', 'user']"),
        ('[{"from": "human", "value": "a"}]', "no chat of {role, content}"),
        ('[{"role": "user", "content": [{"type": "text", "text": "a"}]}]', "it is a list"),
        ('["a"]', "no chat of {role, content}"),
    ],
)
def test_a_chat_is_a_problem_where_nothing_of_it_would_be_lost(tmp_path, chat, what):
    (tmp_path / "mine.jsonl").write_text(f'{{"problem": {chat}, "answer": "1"}}\n')
    if what is None:
        assert [row["problem"] for row in rows_of(tmp_path / "mine.jsonl")] == ["a"]
    else:
        said = refusal(tmp_path / "mine.jsonl")
        assert "row 0 (line 1), column 'problem'" in said and what in said and "as text" in said


# --- columns, keys and folders ---


@pytest.mark.parametrize(
    ("header", "overrides", "expected"),
    [
        (
            "problm,answer",
            [],
            ["column 'problem' is missing; there are ['answer', 'problm']", "dataset.problem=problm"],
        ),
        ("question,final", [], ["'problem' is missing", "'answer'", "dataset.problem=question dataset.answer=final"]),
        ("Problem,Answer", [], ["dataset.problem=Problem dataset.answer=Answer"]),
        ("problem,gold", [], ["column 'answer' is missing", "dataset.answer=gold"]),
        (
            "problem,answer",
            ["dataset.solution=worked"],
            ["'worked' is missing; there are ['answer', 'problem']"],
        ),
        ("problem,answer", ["dataset.answer=anwser"], ["'anwser' is missing", "dataset.answer=answer"]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_wrong_columns_are_named_with_those_there_are_and_the_closest(tmp_path, header, overrides, expected, suffix):
    path = tmp_path / f"mine.{suffix}"
    names = header.split(",")
    if suffix == "csv":
        path.write_text(f"{header}\na,1\n")
    elif suffix == "jsonl":
        path.write_text((json.dumps(dict.fromkeys(names, "a")) + "\n") * 2)
    else:
        pq.write_table(pa.table({name: ["a"] for name in names}), path)
    said = refusal(path, *overrides)
    for part in (str(path), *expected):
        assert part in said, said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=local"], "say file="),
        (["dataset=local", "file=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["dataset=local", "file=mine.csv", "source=mine.csv"], "one key by two names"),
        (["dataset=local", "file=7"], "file=7: must be the path"),
        (["dataset=local", "file=mine.csv", "dataset.problem=null"], "dataset.problem=None: must be a text"),
        (["dataset=local", "file=mine.csv", "dataset.role=test"], "must be train or eval"),
        (["dataset=local", "file=mine.csv", "dataset.name=a/b"], "must be a plain name"),
        (["dataset=local", "file=mine.csv", "dataset.name=.."], "must be a plain name"),
        (["dataset=local", "file=mine.csv", "dataset.name=math_500"], "the name of a known set"),
        (["dataset=local", "file=mine.csv", "dataset.clean_answers=maybe"], "must be true or false"),
        (["dataset=local", "file=mine.csv", "dataset.optional=answer"], "must be a list of column names"),
        (["dataset=local", "file=mine.csv", "limit=many"], "limit=many: must be"),
        (["dataset=local", "file=mine.csv", "limit=0"], "limit=0: must be"),
        (["dataset=local", "file=mine.csv", "probe_size=-1"], "probe_size=-1: must be"),
        (["dataset=local", "file=mine.csv", "val_size=0.1"], "val_size=0.1: must be"),
        (["dataset=local", "file=mine.csv", "val_size=3"], "val_size=3 leaves nothing of 3 items"),
        (
            ["dataset=local", "file=mine.csv", "val_size=2", "probe_size=1"],
            "probe_size=1 and val_size=2 leaves nothing",
        ),
        (["dataset=local", "file=mine.csv", "seed=x"], "seed=x: must be"),
        (["dataset=local", "file=mine.csv", "require_answer=perhaps"], "require_answer=perhaps: must be"),
        (["dataset=local", "file=mine.csv", "contamination.min_share=half"], "min_share=half: must be"),
        (["dataset=local", "file=mine.csv", "out=mine.csv"], "Not a directory: 'mine.csv"),
        (["dataset=local", "file=mine.csv", "out=7"], "out=7: must be"),
        (["dataset=local", "file=mine.csv", "contamination.against=math_500"], "against=math_500: must be a list"),
        (["dataset=aime_2024", "file=empty"], "holds no .parquet"),
    ],
)
def test_wrong_keys_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("problem,answer\na,1\nb,2\nc,3\n")
    (tmp_path / "empty").mkdir()
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("prepare", overrides=words)
    with pytest.raises((DataError, OSError)) as caught:  # the command shows either in a line
        prepare(cfg)
    assert message in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("words", [["dataset=local"], ["dataset=local", "file=mine.csv", "out=mine.csv"]])
def test_the_command_ends_with_2_and_no_traceback(tmp_path, words):
    (tmp_path / "mine.csv").write_text("problem,answer\na,1\n")
    result = command(tmp_path, *words, "probe_size=0")
    assert (result.returncode, "Traceback" in result.stderr) == (2, False), result.stderr
    assert "was not prepared: " in result.stderr and not result.stdout


def test_nothing_that_was_not_written_here_is_taken_away(tmp_path):
    inside = tmp_path / "data" / "mine" / "raw.csv"
    inside.parent.mkdir(parents=True)
    inside.write_text("problem,answer\na,1\n")
    with pytest.raises(DataError, match="lies in .*dataset.name="):
        prepare(_local(inside, tmp_path / "data", "dataset.name=mine"))
    for name, content in (("train.parquet", b"PAR1"), ("README.md", b"# My project\n")):
        (inside.parent / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is there and was not written by this command"):
            prepare(_local(sums(tmp_path), tmp_path / "data", "dataset.name=mine"))
        assert (inside.parent / name).read_bytes() == content
        (inside.parent / name).unlink()
    other = inside.parent / "other.parquet"
    other.write_bytes(b"mine")
    prepare(_local(sums(tmp_path), tmp_path / "data", "dataset.name=mine", "val_size=2"))
    assert (inside.parent / "val.parquet").exists()
    prepare(_local(sums(tmp_path), tmp_path / "data", "dataset.name=mine"))
    assert not (inside.parent / "val.parquet").exists()  # of the earlier run
    assert other.read_bytes() == b"mine" and inside.exists()


def sums(folder: Path) -> Path:
    path = folder / "sums.csv"
    path.write_text("problem,answer\n" + "".join(f"{n}+1,{n + 1}\n" for n in range(30)))
    return path


def _local(file: Path, out: Path, *overrides: str):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return compose("prepare", overrides=["dataset=local", f"file='{file}'", f"out='{out}'", *overrides])


def test_names_of_files_become_plain_names_of_folders(tmp_path):
    path = tmp_path / "my sums (1).v2.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 1 + b'{"problem": "b", "answer": "2"}\n'))
    own(path)
    assert (tmp_path / "data" / "my_sums__1_.v2" / "train.parquet").exists()


def test_known_sets_are_read_exactly_too(tmp_path):
    """The same readers, whatever the set: a number of a local copy stays as it is written."""
    (tmp_path / "aime.jsonl").write_text('{"problem": "a", "answer": "033"}\n{"problem": "b", "answer": 1e2}\n')
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        prepare(compose("prepare", ["dataset=aime_2024", f"source={tmp_path / 'aime.jsonl'}", f"out={tmp_path}"]))
    table = pq.read_table(tmp_path / "aime_2024" / "test.parquet")
    assert table["answer"].to_pylist() == ["33", "1e2"]  # competition answers lose their zeros
    text = (tmp_path / "aime_2024" / "README.md").read_text()
    assert "`HuggingFaceH4/aime_2024` (split `train`), read from the local file `aime.jsonl`" in text


# --- progress ---


def big(folder: Path) -> Path:
    path = folder / "big.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{n}?", "answer": n}) + "\n" for n in range(12_000)))
    return path


def test_rows_are_counted_while_they_are_read(tmp_path):
    big(tmp_path)
    result = command(tmp_path, "dataset=local", "file=big.jsonl")
    assert result.returncode == 0
    assert [line for line in result.stderr.splitlines() if "rows read" in line] == [
        f"{number} rows read" for number in ("1,000", "2,000", "5,000", "10,000")
    ]


def test_rows_are_counted_in_place_on_a_terminal(tmp_path):
    big(tmp_path)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "recipes.data.prepare", "dataset=local", "file=big.jsonl"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    assert process.wait() == 0
    assert b"rows read" in seen and b"\x1b[" in seen and b"1,000 rows read\r\n2,000" not in seen


# --- the pure parts ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("x", "x"),
        (-(2**80), str(-(2**80))),
        (2.0, "2"),
        (0.1, "0.1"),
        (-0.5, "-0.5"),
        (2.0**53, str(2**53)),
    ],
)
def test_exact_text(value, text):
    assert exact_text(value) == text


@pytest.mark.parametrize(
    "value", [True, float("nan"), float("-inf"), 2.0**53 + 2, Decimal(1), Decimal("sNaN"), b"", {}, [], (), object()]
)
def test_exact_text_refuses_what_has_no_one_text(value):
    with pytest.raises(DataError, match="it is|it has"):
        exact_text(value)


def test_parts_that_are_held_out_are_disjoint_and_do_not_depend_on_the_order():
    from recipes.data.convert import Item

    items = [Item(f"problem {n}", "1", "", n) for n in range(200)]
    parts = hold_out(items, {"probe": None, "val": 30}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 150, "probe": 20, "val": 30}
    assert sorted(item.source_index for part in parts.values() for item in part) == list(range(200))
    backwards = hold_out(items[::-1], {"probe": None, "val": 30}, seed=1)
    assert {name: {i.problem for i in part} for name, part in parts.items()} == {
        name: {i.problem for i in part} for name, part in backwards.items()
    }
    assert set(hold_out(items, {"probe": 0, "val": 0}, seed=1)) == {"train"}
    # What is held out for the probe does not change with a validation split beside it.
    assert hold_out(items, {"probe": 20, "val": 0}, seed=1)["probe"] == parts["probe"]
    assert len(hold_out(items * 9, {"probe": None}, seed=1)["probe"]) == 64
    assert set(hold_out(items[:9], {"probe": None}, seed=1)) == {"train"}


def test_the_documented_yaml_has_every_key():
    import dataclasses

    import yaml

    from recipes.data.spec import DatasetSpec

    given = yaml.safe_load((ROOT / "config" / "dataset" / "local.yaml").read_text())
    assert set(given) == {f.name for f in dataclasses.fields(DatasetSpec)}
