"""Data: every set's exact format to verl's columns, and what keeps the files trustworthy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from config import CONFIG_DIR
from recipes.common.teacher.prompts import student_messages
from recipes.data import store
from recipes.data.contamination import Index, find, words
from recipes.data.convert import clean_answer
from recipes.data.prepare import prepare
from recipes.data.readers import DataError
from recipes.data.sources import local_files
from rewards.math import compute_score
from tests.builders.forked import command
from tests.builders.hub import hub

ROOT = Path(__file__).resolve().parents[3]
SETS = ROOT / "tests" / "data" / "sets"
TRAIN = {"dapo_math_17k": (12, 1), "openthoughts_math_30k": (10, 1)}  # usable items, probe_size used here
EVAL = {"math_500": 3, "aime_2024": 3, "aime_2025": 2, "hmmt_feb_2025": 3, "minerva": 2, "olympiadbench": 3}


def settings(name: str, out: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        probe = [] if any(word.startswith("probe_size") for word in overrides) else ["probe_size=1"]
        return compose("prepare", overrides=[f"dataset={name}", f"out={out}", *probe, *overrides])


def made(name: str, out: Path, *overrides: str, source: Path | None = None) -> dict:
    prepare(settings(name, out, f"source={source or SETS / name}", *overrides))
    return store.read_card(out / name)


def rows(out: Path, name: str, split: str) -> list[dict]:
    return pq.read_table(out / name / f"{split}.parquet").to_pylist()


def alone(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """With an interpreter of its own: what concerns the hub is read when its client is imported."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


# --- formats ---


@pytest.mark.parametrize("name", [*TRAIN, *EVAL])
def test_every_set_in_its_own_format(name, tmp_path):
    card = made(name, tmp_path)
    splits = ("train", "probe") if name in TRAIN else ("test",)
    assert set(card["files"]) == {f"{split}.parquet" for split in splits}
    for split in splits:
        written = rows(tmp_path, name, split)
        assert len(written) == card["files"][f"{split}.parquet"]["rows"]
        for index, row in enumerate(written):
            assert list(row) == store.SCHEMA.names
            assert row["prompt"] == student_messages(row["problem"])
            assert row["data_source"] == name
            assert row["reward_model"] == {"style": "rule", "ground_truth": row["answer"]}
            assert row["answer"] and "$" not in row["answer"]
            assert (row["extra_info"]["index"], row["extra_info"]["split"]) == (index, split)
            # the gold answer, boxed, is right by our own reward
            reply = compute_score(name, f"\\boxed{{{row['answer']}}}", row["reward_model"]["ground_truth"])
            assert reply["status"] == "correct"
    total = sum(entry["rows"] for entry in card["files"].values())
    assert total == (TRAIN[name][0] if name in TRAIN else EVAL[name])


def test_dapo_loses_its_own_instructions_and_its_copies(tmp_path):
    card = made("dapo_math_17k", tmp_path)
    for row in rows(tmp_path, "dapo_math_17k", "train"):
        assert "Answer" not in row["problem"] and "step by step" not in row["problem"]
        assert row["solution"] == ""
    counts = card["counts"]
    assert counts["rows read"] == 18
    assert counts["duplicates"] == 5
    assert counts["problems with contradicting answers"] == 1
    assert "999" not in {row["answer"] for row in rows(tmp_path, "dapo_math_17k", "train")}
    kept = made("dapo_math_17k", tmp_path, "conflicts=first")
    assert kept["files"]["train.parquet"]["rows"] == card["files"]["train.parquet"]["rows"] + 1


def test_unexpected_instructions_are_counted(tmp_path):
    source = tmp_path / "train.jsonl"
    row = {"prompt": [{"role": "user", "content": "Plain problem"}], "reward_model": {"ground_truth": "1"}}
    other = {"prompt": "Another plain problem", "reward_model": {"ground_truth": "2"}}
    source.write_text("".join(json.dumps(r) + "\n" for r in (row,)))
    card = made("dapo_math_17k", tmp_path, "probe_size=0", source=source)
    assert card["counts"]["without the expected instructions"] == 1
    assert rows(tmp_path, "dapo_math_17k", "train")[0]["problem"] == "Plain problem"
    source.write_text(json.dumps(other) + "\n")  # the form of a processed copy: a string in place of a chat
    made("dapo_math_17k", tmp_path, "probe_size=0", source=source)
    assert rows(tmp_path, "dapo_math_17k", "train")[0]["problem"] == "Another plain problem"


def test_answers_come_from_boxes_where_there_is_no_column(tmp_path):
    card = made("openthoughts_math_30k", tmp_path)
    assert card["counts"]["without an answer"] == 1
    for row in rows(tmp_path, "openthoughts_math_30k", "train"):
        assert row["solution"].endswith(f"$\\boxed{{{row['answer']}}}$.")
    kept = made("openthoughts_math_30k", tmp_path, "require_answer=false")
    assert kept["files"]["train.parquet"]["rows"] == card["files"]["train.parquet"]["rows"] + 1


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("033", "33"), ("000", "0"), (204, "204"), (7.0, "7"), ("$-7$,$7$", "-7,7"), (["$2$"], "2"),
        (["$1$", "$3$"], "1, 3"), ("\\$18.90", "\\$18.90"), (None, ""), ("  x ", "x"), ("0.50", "0.50"),
    ],
)  # fmt: skip
def test_clean_answer(raw, clean):
    assert clean_answer(raw) == clean


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz", ".csv.gz"])
def test_local_formats(tmp_path, suffix):
    frame = pd.DataFrame([{"problem": "What is one and one?", "answer": "2"}, {"problem": "And two?", "answer": "4"}])
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif ".csv" in suffix:
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=".jsonl" in suffix)
    made("aime_2024", tmp_path, source=path)
    assert [row["answer"] for row in rows(tmp_path, "aime_2024", "test")] == ["2", "4"]


def test_answers_of_a_csv_stay_the_texts_they_are(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(
        'problem,answer\nHalf?,0.50\nBig?,123456789012345678\nNot there?,\nWhich?,None\n"So\nwhat?","(1, 2)"\n'
    )
    card = made("aime_2024", tmp_path, source=path)
    answers = [row["answer"] for row in rows(tmp_path, "aime_2024", "test")]
    assert answers == ["0.50", "123456789012345678", "None", "(1, 2)"]
    assert card["counts"]["without an answer"] == 1


def test_answers_of_json_may_be_of_several_kinds(tmp_path):
    path = tmp_path / "data.jsonl"
    answers = ["2", 33, [1, 2], 0.5, None, "$x$"]
    path.write_text("".join(json.dumps({"problem": f"{n}?", "answer": a}) + "\n" for n, a in enumerate(answers)))
    card = made("aime_2024", tmp_path, source=path)
    assert [row["answer"] for row in rows(tmp_path, "aime_2024", "test")] == ["2", "33", "1, 2", "0.5", "x"]
    assert card["counts"]["without an answer"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("empty.csv", b"", "cannot be read as csv"),
        ("header.csv", b"problem,answer\n", "no usable row among 0 read"),
        ("broken.jsonl", b'{"problem": "a", "answer": "1"}\n{"problem": "b\n', "cannot be read as json"),
        ("latin.csv", "problem,answer\ncaf\u00e9?,1\n".encode("latin-1"), "cannot be read as csv: UnicodeDecodeError"),
        ("plain.csv.gz", b"problem,answer\na?,1\n", "cannot be read as csv: BadGzipFile"),
        ("text.parquet", b"hello", "cannot be read as parquet"),
        (
            "wrapped.json",
            b'{"data": [{"problem": "a", "answer": "1"}]}',
            r"'problem' is missing.*\['data'\].*dataset.problem=",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        made("aime_2024", tmp_path, source=tmp_path / name)


def test_a_folder_gives_the_files_of_its_split(tmp_path):
    for name in ("train-00000.jsonl", "train-00001.jsonl", "test.jsonl", "latest.jsonl", ".cache/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert [path.name for path in local_files(tmp_path, "train")] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert [path.name for path in local_files(tmp_path, "test")] == ["test.jsonl"]
    assert [path.name for path in local_files(tmp_path, "validation")] == ["latest.jsonl"]


def test_verl_loads_evaluation_sets_together(tmp_path):
    """verl concatenates the files it is given, so their columns must agree; its loader is asked, not imitated."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from tests.builders.tiny_tokenizer import tiny_tokenizer

    files = []
    for name in EVAL:
        made(name, tmp_path)
        files.append(str(tmp_path / name / "test.parquet"))
    config = OmegaConf.create(
        {
            "cache_dir": str(tmp_path / "cache"),
            "prompt_key": "prompt",
            "max_prompt_length": 4096,
            "return_raw_chat": True,
        }
    )
    dataset = RLHFDataset(data_files=files, tokenizer=tiny_tokenizer(), config=config)
    assert len(dataset) == sum(EVAL.values())
    assert {dataset[index]["data_source"] for index in range(len(dataset))} == set(EVAL)
    assert dataset[0]["reward_model"]["ground_truth"] == dataset[0]["answer"]


# --- probe, contamination ---


def test_probe_does_not_depend_on_the_order_of_rows_and_is_not_trained_on(tmp_path):
    table = pq.read_table(SETS / "openthoughts_math_30k" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "back").mkdir()
    pq.write_table(pa.Table.from_pylist(table.to_pylist()[::-1]), tmp_path / "back" / "train.parquet")
    made("openthoughts_math_30k", tmp_path / "a", "probe_size=4")
    made("openthoughts_math_30k", tmp_path / "b", "probe_size=4", source=tmp_path / "back")
    made("openthoughts_math_30k", tmp_path / "c", "probe_size=4", "seed=2")
    problems = {
        (where, split): {row["problem"] for row in rows(tmp_path / where, "openthoughts_math_30k", split)}
        for where in "abc"
        for split in ("train", "probe")
    }
    assert problems["a", "probe"] == problems["b", "probe"] != problems["c", "probe"]
    assert len(problems["a", "probe"]) == 4
    assert not problems["a", "probe"] & problems["a", "train"]
    with pytest.raises(DataError, match="probe_size=10 leaves nothing"):
        made("openthoughts_math_30k", tmp_path / "d", "probe_size=10")


def test_copies_of_evaluation_problems_are_found_reported_and_removed(tmp_path):
    first = made("dapo_math_17k", tmp_path, "probe_size=0")
    assert "aime_2024" in first["contamination"]["not checked, since not prepared"]
    made("aime_2024", tmp_path)
    reported = made("dapo_math_17k", tmp_path, "probe_size=0")  # made anew, since there is a set to check now
    copies = reported["contamination"]["sets"]["aime_2024"]["copies"]
    assert [copy["evaluation_index"] for copy in copies] == [0] and copies[0]["share"] == 1.0
    assert reported["files"]["train.parquet"]["rows"] == first["files"]["train.parquet"]["rows"]
    removed = made("dapo_math_17k", tmp_path, "probe_size=0", "contamination.remove=true")
    assert removed["files"]["train.parquet"]["rows"] == first["files"]["train.parquet"]["rows"] - 1
    assert not any("a^2+b^2=100" in row["problem"] for row in rows(tmp_path, "dapo_math_17k", "train"))


def test_a_set_of_copies_only_is_no_set(tmp_path):
    made("aime_2024", tmp_path)
    copies = tmp_path / "copies.jsonl"
    copies.write_text(
        "".join(
            json.dumps({"problem": r["problem"], "answer": "1"}) + "\n" for r in rows(tmp_path, "aime_2024", "test")
        )
    )
    words = [f"source={copies}", "probe_size=0", "contamination.remove=true"]
    with pytest.raises(DataError, match="every item to train on is a copy"):
        prepare(settings("local", tmp_path, *words))


def test_a_common_phrase_is_no_copy_and_a_rewording_of_markup_is_one():
    closing = "can be written as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    problem = f"A fair die is rolled until every face has been seen at least once. The expected number {closing}"
    index = Index([problem, "Compute $1+1$."], size=10)
    same_closing = f"Two circles of radii 3 and 5 meet at right angles. The length of their common chord {closing}"
    reworded = problem.replace("\\frac{m}{n}", "\\dfrac mn").replace("$", "").upper()
    matches, touched = find([same_closing, reworded, "Compute 1 + 1", "Nothing in common with any of them"], index, 0.5)
    assert touched == 2
    assert [(match.train, match.evaluation) for match in matches] == [(1, 0)]


def test_a_short_evaluation_problem_is_looked_for_as_a_whole():
    index = Index(["Simplify $\\sqrt{48} + 2$ fully."], size=10)
    texts = ["First, simplify \\sqrt{48}+2 fully. Then square it.", "Simplify \\sqrt{49}+2 fully."]
    assert [match.train for match in find(texts, index, 0.5)[0]] == [0]
    assert words("$\\frac{AB}{12}$, \\text{so} x_1") == ["ab", "12", "so", "x", "1"]


# --- files ---


def test_preparing_again_does_nothing_until_something_changes(tmp_path):
    made("math_500", tmp_path)
    file = tmp_path / "math_500" / "test.parquet"
    before = file.stat().st_mtime_ns
    assert "up to date" in prepare(settings("math_500", tmp_path, f"source={SETS / 'math_500'}"))
    assert file.stat().st_mtime_ns == before
    assert "up to date" not in prepare(settings("math_500", tmp_path, f"source={SETS / 'math_500'}", "force=true"))
    assert "up to date" not in prepare(settings("math_500", tmp_path, f"source={SETS / 'math_500'}", "limit=2"))
    file.write_bytes(file.read_bytes()[:-1])  # a damaged file is noticed
    assert "up to date" not in prepare(settings("math_500", tmp_path, f"source={SETS / 'math_500'}", "limit=2"))
    assert store.is_intact(tmp_path / "math_500", store.read_card(tmp_path / "math_500"))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one, other = made("dapo_math_17k", tmp_path / "a"), made("dapo_math_17k", tmp_path / "b")
    assert one["files"] == other["files"]


def test_an_interrupted_run_leaves_no_card_and_is_made_good_by_the_next(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from recipes.data import store\n"
        "moves = []\n"
        "replace = os.replace\n"
        "def dying(source, target):\n"
        "    if len(moves) == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    moves.append(target)\n"
        "    replace(source, target)\n"
        "os.replace = dying\n"
        "from recipes.data.prepare import main\n"
        f"sys.argv = ['prepare', 'dataset=dapo_math_17k', 'source={SETS / 'dapo_math_17k'}', 'out={tmp_path}']\n"
        "sys.argv += ['probe_size=2']\n"
        "main()\n"
    )
    made("dapo_math_17k", tmp_path)  # an older, complete one, about to be replaced
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert store.read_card(tmp_path / "dapo_math_17k") is None
    card = made("dapo_math_17k", tmp_path, "probe_size=2")
    assert card["files"]["probe.parquet"]["rows"] == 2
    assert store.is_intact(tmp_path / "dapo_math_17k", card)
    assert not (tmp_path / "dapo_math_17k" / ".partial").exists()


def test_the_card_says_what_is_there(tmp_path):
    card = made("dapo_math_17k", tmp_path)
    text = (tmp_path / "dapo_math_17k" / "README.md").read_text()
    for what, number in card["counts"].items():
        assert f"| {what} | {number} |" in text
    assert "BytedTsinghua-SIA/DAPO-Math-17k" in text and "\\boxed{}" in text
    assert len(card["files"]["train.parquet"]["sha256"]) == 64
    assert card["made_from"]["input"]["files"].keys() == {"dapo-math-17k.parquet"}


# --- errors ---


def test_sets_come_from_the_hub_as_from_a_folder(tmp_path):
    """The hub's protocol, spoken by a server on this machine: the same rows."""
    names = ["math_500", "dapo_math_17k"]  # JSON lines and parquet; the evaluation set first, to be compared with
    with hub({settings(name, tmp_path).dataset.hub: SETS / name for name in names}) as address:
        words = ("recipes.data.prepare", "-m", f"dataset={','.join(names)}", f"out={tmp_path / 'hub'}", "probe_size=1")
        found = alone(*words, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "cache"))
    assert found.returncode == 0, found.stderr
    for name in names:
        from_hub = store.read_card(tmp_path / "hub" / name)["files"]
        from_folder = made(name, tmp_path / "folder")["files"]
        assert {f: e["rows_sha256"] for f, e in from_hub.items()} == {
            f: e["rows_sha256"] for f, e in from_folder.items()
        }


def test_no_network_names_the_local_option(tmp_path):
    begin = time.monotonic()
    result = alone(
        "recipes.data.prepare", "dataset=aime_2024", f"out={tmp_path}", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert result.returncode == 2
    assert "source=DIR" in result.stderr and "hf download HuggingFaceH4/aime_2024" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=/nowhere/at/all"], "does not exist"),
        ([f"source={SETS / 'math_500'}"], r"column 'final_answer' is missing.*'answer'.*'problem'.*dataset.answer="),
        ([f"source={ROOT / 'setup.py'}"], "no .parquet"),
        ([f"source={SETS / 'olympiadbench'}", "conflicts=ask"], "conflicts=ask: must be drop or first"),
        ([f"source={SETS / 'olympiadbench'}", "contamination.ngram=1"], "ngram=1: must be at least 3"),
    ],
)
def test_errors_say_what_to_do(tmp_path, overrides, message):
    if "math_500" in overrides[0]:
        overrides = [*overrides, "dataset.problem=problem"]
    with pytest.raises(DataError, match=message):
        prepare(settings("olympiadbench", tmp_path, *overrides))
    assert store.read_card(tmp_path / "olympiadbench") is None


def test_unknown_keys_and_sets_are_refused(tmp_path):
    unknown = command("recipes.data.prepare", "dataset=aime_2024", f"out={tmp_path}", "prob_size=3")
    assert unknown.returncode != 0 and "prob_size" in unknown.stderr
    nameless = command("recipes.data.prepare", "dataset=aime_1999", f"out={tmp_path}")
    assert nameless.returncode != 0 and "aime_2024" in nameless.stderr


# --- validation ---


def bad_file(folder: Path) -> Path:
    from recipes.data.convert import Item, to_row

    items = [
        Item("Good?", "4", "It is \\boxed{4}.", 0),
        Item("No answer?", "", "", 1),
        Item("Unreadable?", "f(\\mho) where } is", "", 2),
        Item("No box?", "3", "It is three.", 3),
        Item("Other box?", "3", "It is \\boxed{5}.", 4),
        Item("Good?", "4", "", 5),
        Item("Long? " + "word " * 300, "1", "", 6),
        Item("", "1", "", 7),
    ]
    written = [to_row(item, "bad", "train", index) for index, item in enumerate(items)]
    written[3]["answer"] = "7"
    path = folder / "bad.parquet"
    pq.write_table(pa.Table.from_pylist(written, schema=store.SCHEMA), path)
    return path


def test_validation_finds_what_is_wrong_row_by_row(tmp_path):
    from tests.builders.tiny_tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    path = bad_file(tmp_path)
    found = tmp_path / "findings.jsonl"
    words = ["recipes.data.validate", f"file={path}", f"report={found}"]
    limits = [f"tokenizer={tmp_path / 'tokenizer'}", "max_prompt_length=600", "max_teacher_prompt_length=1000"]
    result = command(*words, *limits)
    assert result.returncode == 1, result.stderr
    findings = {(entry["row"], entry["check"]) for entry in map(json.loads, found.read_text().splitlines())}
    assert findings == {
        (1, "missing_answer"), (2, "unparseable_answer"), (3, "unboxed_reference"), (3, "answer_differs"),
        (4, "reference_disagrees"), (5, "duplicate_problem"), (6, "long_prompt"), (6, "long_teacher_prompt"),
        (7, "empty_problem"),
    }  # fmt: skip
    assert "bad.parquet row 4: reference_disagrees: gold '3', reference '5'" in result.stdout
    everything = sorted({check for _, check in findings})
    assert command(*words, *limits, f"ignore=[{','.join(everything)}]").returncode == 0


def test_validation_survives_files_of_other_origin():
    from recipes.data.validate import text_findings, well_typed

    good = {
        "data_source": "x", "prompt": [{"role": "user", "content": "q"}], "ability": "math", "problem": "p",
        "reward_model": {"ground_truth": "1"}, "solution": "\\boxed{1}", "answer": "1", "extra_info": None,
    }  # fmt: skip

    def found(**changes) -> list[str]:
        row, of_types = well_typed({**good, **changes})
        return [check for check, _ in [*of_types, *text_findings(row)]]

    assert found() == []
    assert found(problem=5) == ["wrong_type", "empty_problem"]
    assert found(solution=float("nan")) == found(solution=["a"]) == found(answer=1.0) == ["wrong_type"]
    assert found(reward_model="1") == ["wrong_type", "missing_answer"]
    assert found(reward_model={"ground_truth": {"a": 1}}) == ["missing_answer"]
    for prompt in ("q", None, [], [None], [{"role": "user", "content": None}], [{"role": "user", "content": [{}]}]):
        assert found(prompt=prompt) == ["empty_prompt"]


def test_validation_passes_what_prepare_makes(tmp_path):
    made("math_500", tmp_path)
    result = command("recipes.data.validate", f"file={tmp_path / 'math_500'}")
    assert (result.returncode, "3 rows, 0 findings" in result.stdout) == (0, True), result.stdout + result.stderr
    assert not list(Path(ROOT).glob("validate.log"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "file=: must be given, a prepared parquet file"),
        (["file=/nowhere.parquet"], "no parquet file there"),
        ([f"file={ROOT / 'setup.py'}"], "cannot be read as parquet"),
        (["file=/nowhere.parquet", "max_prompt_length=5"], "needs tokenizer="),
        (["file=/nowhere.parquet", "ignore=[typo]"], "no such check"),
        (["file=/nowhere.parquet", "max_length=5"], "max_length"),
        (
            [f"file={SETS / 'math_500' / 'test.jsonl'}"],
            "is not prepared yet: python -m recipes.data.prepare dataset=local",
        ),
        ([f"file={SETS / 'aime_2024'}"], "no parquet file there"),
    ],
)
def test_validation_says_why_it_could_not_look(words, message):
    result = command("recipes.data.validate", *words)
    assert result.returncode not in (0, 1) or "max_length=5" in words
    assert message in result.stderr
