"""Data and reward functions that a run would die of after a minute are refused before it starts, with what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from config import STARTER
from recipes.common.checks import data as data_files
from recipes.common.checks import reward as reward_function
from recipes.common.checks.data import extreme_prompts
from recipes.common.method import read
from recipes.common.paths import make_absolute
from recipes.common.record.console import plan
from recipes.data.convert import Item, to_row
from recipes.data.store import SCHEMA
from tests.builders.configs import composed
from tests.builders.processes import gone


def data_problems(cfg: DictConfig):
    return data_files.data(cfg, read(cfg))


def reward_problems(cfg: DictConfig):
    return reward_function.reward(cfg, read(cfg))


TRAIN = STARTER / "data" / "train.parquet"
DIRECTORY = Path(STARTER)


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> DictConfig:
    return composed("method=dasd", "experiment=starter", run_dir=tmp_path_factory.mktemp("run"))


@pytest.fixture
def cfg(starter) -> DictConfig:
    copy = starter.copy()
    OmegaConf.set_struct(copy, False)
    return copy


def changed(cfg: DictConfig, **values: Any) -> DictConfig:
    """The configuration with ``data__train_files=…`` and the like."""
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def items(count: int, problem: str = "Evaluate {}", solution: str = "It is \\boxed{{{}}}.") -> list[dict]:
    return [to_row(Item(problem.format(n), str(n), solution.format(n), n), "mine", "train", n) for n in range(count)]


def written(path: Path, rows: list[dict], schema: pa.Schema = SCHEMA) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return str(path)


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_the_starter_passes(cfg):
    assert list(data_problems(cfg)) == [] and list(reward_problems(cfg)) == []


# --- files ---

# what stands there -> what is said of it; {path} is the file
FOREIGN = {
    "missing.parquet": (None, ["does not exist", "recipes.data.prepare"]),
    "folder.parquet": ("folder", ["is a directory"]),
    "folder": ("folder", ["is a directory"]),
    "empty.parquet": (b"", ["cannot be read as parquet (it is empty)", "recipes.data.prepare"]),
    "foreign.parquet": (b'{"problem": "a", "answer": "1"}\n', ["cannot be read as parquet", "recipes.data.prepare"]),
    "zeros.parquet": (bytes(4000), ["cannot be read as parquet"]),
    "raw.jsonl": (b'{"problem": "a", "answer": "1"}\n', ["recipes.data.prepare dataset=local file={path}"]),
    "raw.json": (b"[]", ["recipes.data.prepare dataset=local file={path}"]),
    "raw.csv": (b"problem,answer\na,1\n", ["recipes.data.prepare dataset=local file={path}"]),
    "raw.jsonl.gz": (b"", ["recipes.data.prepare dataset=local file={path}"]),
    "empty.jsonl": (b"", ["recipes.data.prepare dataset=local file={path}"]),
    "table.xlsx": (b"PK", ["is no .parquet file"]),
    "no_suffix": (b"PAR1", ["is no .parquet file"]),
}
KEYS = ("data.train_files", "data.val_files", "self_distill.exposure.probe_file")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", FOREIGN)
def test_every_file_argument_refuses_what_is_no_prepared_file(cfg, tmp_path, key, name):
    content, expected = FOREIGN[name]
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    cfg.self_distill.exposure.mode = "learned"
    said = only(list(data_problems(changed(cfg, **{key.replace(".", "__"): str(path)}))))
    assert said.startswith(f"{key}: {path}")
    for part in expected:
        assert part.format(path=path) in said, said


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["cut.parquet", "no_rows.parquet"])
def test_a_cut_file_and_one_without_rows(cfg, tmp_path, key, name):
    path = tmp_path / name
    written(path, items(3) if name.startswith("cut") else [])
    if name.startswith("cut"):
        path.write_bytes(path.read_bytes()[:-9])
    cfg.self_distill.exposure.mode = "learned"
    said = only(list(data_problems(changed(cfg, **{key.replace(".", "__"): str(path)}))))
    assert said.startswith(f"{key}: {path}") and "recipes.data.prepare" in said
    assert ("has no rows" if name.startswith("no") else "cannot be read as parquet") in said


@pytest.mark.parametrize("value", [[], None, "", 7, [None], [""], {"a": "b"}, True], ids=str)
@pytest.mark.parametrize("key", ["data.train_files", "data.val_files"])
def test_values_that_name_no_file(cfg, key, value):
    OmegaConf.update(cfg, key, value, merge=False)
    said = only(list(data_problems(cfg)))
    assert said.startswith(f"{key}=") and "prepared parquet file, or a list of them" in said
    plan(cfg, read(cfg), Path("run"))  # a dry run shows it before it is refused


def test_each_wrong_file_of_a_list_is_named_and_remote_ones_are_verls_to_read(cfg, tmp_path):
    cfg.data.train_files = [str(TRAIN), str(tmp_path / "a.parquet"), "hdfs://host/b.parquet", str(tmp_path / "c.csv")]
    found = list(data_problems(cfg))
    assert [str(tmp_path / "a.parquet") in found[0], str(tmp_path / "c.csv") in found[1], len(found)] == [True, True, 2]
    cfg.data.train_files = "hdfs://host/b.parquet"
    assert list(data_problems(cfg)) == []


def test_a_missing_file_of_a_known_set_names_its_command_and_its_neighbours(cfg, tmp_path):
    written(tmp_path / "data" / "dapo_math_17k" / "probe.parquet", items(1))
    cfg.data.train_files = str(tmp_path / "data" / "dapo_math_17k" / "train.parquet")
    said = only(list(data_problems(cfg)))
    assert f"recipes.data.prepare dataset=dapo_math_17k out={tmp_path / 'data'}" in said and "probe.parquet" in said


def test_fewer_rows_than_a_batch(cfg, tmp_path):
    cfg.data.train_files = written(tmp_path / "few.parquet", items(15))
    said = only(list(data_problems(cfg)))
    assert "15 rows are fewer than data.train_batch_size=16" in said and "to at most 15" in said
    cfg.data.train_files = [cfg.data.train_files, written(tmp_path / "one.parquet", items(1))]
    assert list(data_problems(cfg)) == []  # 16 in all
    cfg.data.train_max_samples = 4
    assert "4 rows by data.train_max_samples, of 16," in only(list(data_problems(cfg)))
    cfg.data.train_max_samples = -1
    cfg.data.val_files = written(tmp_path / "val.parquet", items(1))
    assert list(data_problems(cfg)) == []  # validation takes what there is


def test_epochs_that_end_before_the_steps(cfg, tmp_path):
    """verl would end there without a last checkpoint."""
    cfg.data.train_files = written(tmp_path / "few.parquet", items(47))  # two steps of 16
    assert list(data_problems(cfg)) == []  # 30 steps: the data begin anew
    cfg.trainer.total_epochs = 14
    said = only(list(data_problems(cfg)))
    assert "total_epochs=14: the data are 2 steps an epoch" in said and "after 28 of" in said and "at least 15" in said
    cfg.trainer.total_epochs = 15
    assert list(data_problems(cfg)) == []
    cfg.trainer.total_epochs, cfg.trainer.total_training_steps = 1, None
    assert list(data_problems(cfg)) == []  # as many steps as there are


# --- columns ---


def test_a_raw_parquet_file_is_told_from_a_prepared_one(cfg, tmp_path):
    raw = tmp_path / "raw.parquet"
    pd.DataFrame({"problem": ["a"] * 20, "answer": ["1"] * 20}).to_parquet(raw)
    said = only(list(data_problems(changed(cfg, data__train_files=str(raw)))))
    assert "has no column prompt, data_source, reward_model, solution (it has problem, answer)" in said
    assert f"recipes.data.prepare dataset=local file={raw}" in said and "teacher.context=answer" in said


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (pa.array(["text"] * 16), "has a prompt of type string"),
        (pa.array([["text"]] * 16), "has a prompt of type list<"),
        (pa.array([[{"from": "human", "value": "a"}]] * 16), "has a prompt of type list<"),
        (pa.array([{"role": "user", "content": "a"}] * 16), "has a prompt of type struct<"),
    ],
    ids=range(4),
)
def test_prompts_must_be_chats(cfg, tmp_path, prompts, message):
    table = pa.Table.from_pylist(items(16), schema=SCHEMA)
    table = table.set_column(table.schema.get_field_index("prompt"), "prompt", prompts)
    pq.write_table(table, tmp_path / "t.parquet")
    said = only(list(data_problems(changed(cfg, data__train_files=str(tmp_path / "t.parquet")))))
    assert message in said and "lists of {role, content}" in said


def test_a_reward_model_without_ground_truth(cfg, tmp_path):
    table = pa.Table.from_pylist(items(16), schema=SCHEMA)
    for column in (pa.array(["1"] * 16), pa.array([{"style": "rule"}] * 16)):
        other = table.set_column(table.schema.get_field_index("reward_model"), "reward_model", column)
        pq.write_table(other, tmp_path / "t.parquet")
        said = only(list(data_problems(changed(cfg, data__train_files=str(tmp_path / "t.parquet")))))
        assert "has a reward_model of type" in said and "ground_truth" in said


def test_files_that_cannot_be_joined(cfg, tmp_path):
    one = written(tmp_path / "one.parquet", items(16))
    table = pq.read_table(one)
    answers = table["answer"].cast(pa.int64())
    pq.write_table(
        table.set_column(table.schema.get_field_index("answer"), "answer", answers), tmp_path / "other.parquet"
    )
    cfg.data.train_files = [one, str(tmp_path / "other.parquet")]
    said = only(list(data_problems(cfg)))
    assert "answer is string in" in said and "int64 in" in said


def test_empty_references(cfg, tmp_path):
    rows = items(20)
    for row in rows:
        row["solution"] = ""
    cfg.data.train_files = written(tmp_path / "t.parquet", rows)
    said = only(list(data_problems(cfg)))
    assert "an empty solution in 20 of 20 rows (rows 0, 1, 2, 3, 4, …)" in said
    assert "self_distill.teacher.context=answer" in said
    cfg.self_distill.teacher.context = "answer"
    assert list(data_problems(cfg)) == []
    rows[3]["answer"] = ""  # the ground truth stands in for it
    rows[5]["answer"], rows[5]["reward_model"]["ground_truth"] = "", ""
    written(tmp_path / "t.parquet", rows)
    assert "an empty answer in 1 of 20 rows (rows 5)" in only(list(data_problems(cfg)))


def test_a_probe_without_solutions(cfg, tmp_path):
    cfg.self_distill.exposure.probe_file = written(tmp_path / "p.parquet", items(3, solution=" "))
    assert list(data_problems(cfg)) == []  # nobody reads it
    cfg.self_distill.exposure.mode = "fixed"
    assert "none of the 3 rows" in only(list(data_problems(cfg)))
    pq.write_table(pq.read_table(TRAIN).drop_columns(["problem"]), tmp_path / "p.parquet")
    assert "has no column problem" in only(list(data_problems(cfg)))
    cfg.self_distill.exposure.probe_file = 7
    assert "probe_file=7: must be" in only(list(data_problems(cfg)))


def test_a_dataset_class_of_ones_own_reads_what_it_likes(cfg, tmp_path):
    (tmp_path / "mine.txt").write_text("anything")
    cfg.data.custom_cls.path = "pkg://mine"
    assert list(data_problems(changed(cfg, data__train_files=str(tmp_path / "mine.txt")))) == []
    assert "does not exist" in only(list(data_problems(changed(cfg, data__train_files=str(tmp_path / "no.txt")))))


# --- lengths ---


def prompt_tokens(problem: str) -> int:
    from transformers import AutoTokenizer

    from recipes.common.teacher.prompts import render, student_messages

    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    return len(render(tokenizer, student_messages(problem), {"enable_thinking": False}))


@pytest.mark.parametrize("key", ["data.train_files", "data.val_files"])
def test_a_limit_under_the_shortest_prompt(cfg, tmp_path, key):
    path = written(tmp_path / "t.parquet", items(400, problem="{:04d}"))
    OmegaConf.update(cfg, key, path)
    shortest = prompt_tokens("0000")
    cfg.data.filter_overlong_prompts = True
    cfg.data.max_prompt_length = shortest - 1
    said = [problem for problem in data_problems(cfg) if key in problem]
    assert f"max_prompt_length={shortest - 1}: none of the 400 prompts of {key} is that short" in only(said)
    assert f"the shortest takes {shortest} tokens" in only(said)
    cfg.data.max_prompt_length = max(shortest, 64)
    assert list(data_problems(cfg)) == []


def test_prompts_that_would_lose_their_beginning(cfg, tmp_path):
    rows = items(400, problem="{:04d}")
    rows[123] = items(1, problem="x" * 100)[0]
    cfg.data.train_files = written(tmp_path / "t.parquet", rows)
    longest = prompt_tokens("x" * 100)
    said = only(list(data_problems(cfg)))
    assert f"the prompt in row 123 of t.parquet of data.train_files takes {longest} tokens" in said
    assert f"at least {longest}" in said and "filter_overlong_prompts=true" in said
    cfg.data.max_prompt_length = longest
    assert list(data_problems(cfg)) == []
    cfg.data.max_prompt_length = 64
    cfg.data.filter_overlong_prompts = True
    assert list(data_problems(cfg)) == []


def test_a_filter_that_leaves_less_than_a_batch(cfg, tmp_path):
    rows = items(15, problem="{}") + items(10, problem="y" * 100 + "{}")
    cfg.data.train_files = written(tmp_path / "t.parquet", rows)
    cfg.data.filter_overlong_prompts = True
    said = only(list(data_problems(cfg)))
    assert "15 of the 25 prompts of data.train_files are that short, fewer than data.train_batch_size=16" in said
    written(tmp_path / "t.parquet", rows + items(1, problem="z{}"))
    assert list(data_problems(cfg)) == []


def test_a_template_that_cannot_render(cfg):
    cfg.actor_rollout_ref.model.custom_chat_template = "{{ raise_exception('no users here') }}"
    found = list(data_problems(cfg))
    assert len(found) == 2 and all("cannot be rendered" in problem for problem in found)


def test_rendering_has_an_end(cfg, tmp_path, monkeypatch):
    """However slow a tokenizer is, the check does not last: what was rendered decides."""
    cfg.data.train_files = written(tmp_path / "t.parquet", items(300, problem="{:04d}"))
    rendered = []
    monkeypatch.setattr(data_files, "SECONDS", -1.0)
    monkeypatch.setattr(data_files, "_tokens", lambda *_: rendered.append(1) or 10)
    list(data_problems(cfg))
    assert rendered == []
    monkeypatch.setattr(data_files, "SECONDS", 60.0)
    list(data_problems(cfg))
    assert len(rendered) == data_files.RENDERED + 128  # of training; the validation set has 128


def test_extreme_prompts_are_those_of_all_files_and_batches(tmp_path):
    first = items(12_000, problem="a" * 30 + "{:05d}")
    first[11_111] = items(1, problem="short{}")[0]
    second = items(3, problem="b" * 300 + "{}")
    paths = [Path(written(tmp_path / "one.parquet", first)), Path(written(tmp_path / "two.parquet", second))]
    places = [where for where, _ in extreme_prompts(paths, "prompt", 2, longest=False)]
    assert places == ["row 11111 of one.parquet", "row 0 of one.parquet"]
    longest = extreme_prompts(paths, "prompt", 4, longest=True)
    assert [where for where, _ in longest[:3]] == [f"row {n} of two.parquet" for n in range(3)]
    assert longest[0][1] == second[0]["prompt"] and len(longest) == 4


# --- the reward function ---


def reward(cfg: DictConfig, path: Any, name: Any = "compute_score", kwargs: Any = None) -> list[str]:
    cfg.reward.custom_reward_function = {"path": path, "name": name, "reward_kwargs": {} if kwargs is None else kwargs}
    return list(reward_problems(cfg))


GOOD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):\n    return bonus\n"


@pytest.mark.parametrize(
    "code",
    [
        GOOD,
        GOOD.replace("def ", "async def "),
        "def compute_score(**kwargs):\n    return 1.0\n",
        "class C:\n    def __call__(self, solution_str, **rest):\n        return 0.0\ncompute_score = C()\n",
        "from rewards.math import compute_score\n",
        "import sys\nprint('noise', flush=True)\nsys.stderr.write('more')\n" + GOOD,
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n" + GOOD,
        "import subprocess\nsubprocess.Popen(['sleep', '600'])\n" + GOOD,
        "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n" + GOOD,
    ],
    ids=["plain", "async", "kwargs", "object", "ours", "prints", "thread", "process", "fork"],
)
def test_reward_functions_that_verl_can_call(cfg, tmp_path, code):
    (tmp_path / "mine.py").write_text(code)
    assert reward(cfg, str(tmp_path / "mine.py")) == []
    assert reward(cfg, f"file://{tmp_path / 'mine.py'}") == []


def test_what_a_module_starts_is_ended(cfg, tmp_path):
    pid = tmp_path / "pid"
    code = "import subprocess\nsleep = subprocess.Popen(['sleep', '600'])\n"
    code += f"open({str(pid)!r}, 'w').write(str(sleep.pid))\n"
    (tmp_path / "mine.py").write_text(code + GOOD)
    assert reward(cfg, str(tmp_path / "mine.py")) == []
    assert gone([int(pid.read_text())], seconds=10)


BAD_MODULES = {
    "syntax": ("def compute_score(:\n", ["cannot be imported: SyntaxError", "(line 1)"]),
    "import": ("import os\n\nimport nowhere_to_be_found\n", ["ModuleNotFoundError", "nowhere_to_be_found", "(line 3)"]),
    "raises": ("x = 1\nraise RuntimeError('no key')\n", ["RuntimeError: no key (line 2)"]),
    "exits": ("import sys\nsys.exit(3)\n", ["SystemExit: 3"]),
    "dies": ("import os\nos._exit(7)\n", ["ended its process with code 7"]),
    "killed": ("import os\nos.kill(os.getpid(), 9)\n", ["ended its process with code -9"]),
    "empty": ("", ["compute_score", "no function at all"]),
    "other name": ("def compute_scores(**k):\n    return 1\n", ["has no such function; is it compute_scores?"]),
    "no function": ("compute_score = 1.0\n", ["of type float, and no function to call"]),
    "too few": ("def compute_score(solution_str, ground_truth):\n    return 1\n", ["'data_source'", "**kwargs"]),
    "too many": (
        "def compute_score(data_source, solution_str, ground_truth, extra_info, tokenizer):\n    return 1\n",
        ["missing a required argument: 'tokenizer'", "reward_function"],
    ),
    "by position": ("def compute_score(a, b, /, **k):\n    return 1\n", ["'a'", "by name"]),
}


@pytest.mark.parametrize("case", BAD_MODULES, ids=str)
def test_reward_functions_that_verl_cannot_call(cfg, tmp_path, case):
    code, expected = BAD_MODULES[case]
    path = tmp_path / "mine.py"
    path.write_text(code)
    said = only(reward(cfg, str(path)))
    assert said.startswith("reward.custom_reward_function") and str(path) in said
    for part in expected:
        assert part in said, said


def test_kwargs_that_a_function_of_ones_own_does_not_take(cfg, tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    assert reward(cfg, str(tmp_path / "mine.py"), kwargs={"bonus": 1.0}) == []
    said = only(reward(cfg, str(tmp_path / "mine.py"), kwargs={"bonos": 1.0}))
    assert "'bonos'" in said and "reward_kwargs bonos" in said


@pytest.mark.parametrize(
    ("path", "name", "kwargs", "message"),
    [
        ("/nowhere/mine.py", "f", None, "path=/nowhere/mine.py: no such file"),
        (str(DIRECTORY), "f", None, "it is a directory"),
        (str(TRAIN), "f", None, "no Python file by its name"),
        ("pkg://nowhere.at.all", "f", None, "ModuleNotFoundError"),
        ("pkg://rewards.maths", "f", None, "ModuleNotFoundError"),
        ("pkg://rewards.math", "compute_scor", None, "is it compute_score?"),
        ("pkg://rewards.math", None, None, "name=None: must be the name"),
        ("pkg://rewards.components", "MAX_EXTRACTED_CHARS", None, "of type int"),
        (7, "f", None, "path=7: must be a Python file"),
        ("", "f", None, "path=: must be a Python file"),
        ("pkg://rewards.math", "compute_score", "cpu_s", "reward_kwargs=cpu_s: must be names and values"),
        ("pkg://rewards.math", "compute_score", [1], "reward_kwargs=[1]: must be names and values"),
        ("pkg://rewards.math", "compute_score", {"cpu": 1}, "unknown reward option(s) ['cpu']"),
        ("pkg://rewards/math", "compute_score", {"cpu": 1}, "unknown reward option(s) ['cpu']"),
        ("pkg://rewards.math", "compute_score", {"correct_value": 0.0, "wrong_value": 1.0}, "correct_value=0.0"),
        ("pkg://rewards.math", "compute_score", {"overlong_buffer": 100}, "belong together"),
        ("pkg://rewards.math", "compute_score", {"overlong_weight": 1.0}, "overlong_weight=1.0 needs"),
        ("pkg://rewards.math", "compute_score", {"children": 0}, "children=0"),
        ("pkg://rewards.math", "compute_score", {"memory_mb": 10}, "memory_mb=10"),
        ("pkg://rewards.math", "compute_score", {"cpu_s": 0.0}, "cpu_s=0.0"),
        ("pkg://rewards.math", "compute_score", {"deadline_s": -1}, "deadline_s=-1"),
        ("pkg://rewards.math", "compute_score", {"correct_value": "high"}, "correct_value=high: must be a number"),
        ("pkg://rewards.math", "compute_score", {"children": 2.5}, "children=2.5: must be a whole number"),
        ("pkg://rewards.math", "compute_score", {"answer_line": "yes"}, "answer_line=yes: must be true or false"),
        ("pkg://rewards.math", "compute_score", {"cpu_s": True}, "cpu_s=True: must be a number"),
        ("pkg://rewards.math", "compute_score", {"timeout_value": "x"}, "timeout_value=x: must be a number or null"),
    ],
)
def test_reward_settings_are_refused(cfg, path, name, kwargs, message):
    said = only(reward(cfg, path, name, kwargs))
    assert said.startswith("reward.custom_reward_function") and message in said, said


def test_reward_options_that_are_right_pass(cfg):
    options = {"correct_value": 1, "wrong_value": -1, "timeout_value": None, "children": 3, "answer_line": True}
    assert reward(cfg, "pkg://rewards.math", kwargs=options) == []
    assert reward(cfg, None) == []  # verl's own, by data_source


def test_no_reward_kwargs_at_all(cfg):
    """verl makes a dict of them, and fails on null."""
    cfg.reward.custom_reward_function = {"path": "pkg://rewards.math", "name": "compute_score"}
    assert list(reward_problems(cfg)) == []
    cfg.reward.custom_reward_function.reward_kwargs = None
    assert "reward_kwargs=None: must be" in only(list(reward_problems(cfg)))


def test_verls_old_key_would_be_read_by_nobody(cfg):
    cfg.custom_reward_function = {"path": "mine.py", "name": None}
    assert "is verl's old key" in only(list(reward_problems(cfg)))


def test_an_import_that_does_not_end(cfg, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(reward_function, "SECONDS", 3.0)
    assert "takes more than 3 s" in only(reward(cfg, str(tmp_path / "mine.py")))


# --- paths ---


def test_paths_become_absolute_where_they_are_paths(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    cfg = OmegaConf.create(
        {
            "data": {
                "train_files": ["a.parquet", "/b.parquet", "hdfs://c.parquet", "~/d.parquet"],
                "val_files": "e/f.parquet",
                "custom_cls": {"path": "pkg://mine"},
                "tool_config_path": "not_there.yaml",
            },
            "self_distill": {"exposure": {"probe_file": "../g.parquet"}},
            "actor_rollout_ref": {"model": {"path": "models/mine", "tokenizer_path": "Qwen/Qwen3-1.7B"}},
            "reward": {
                "custom_reward_function": {"path": "file://h.py", "reward_kwargs": {"tokenizer": "models/mine"}},
                "reward_manager": {"module": {"path": None}},
            },
            "trainer": {"resume_from_path": 7},
        }
    )
    make_absolute(cfg, tmp_path)
    home = Path.home()
    assert OmegaConf.to_container(cfg) == {
        "data": {
            "train_files": [f"{tmp_path}/a.parquet", "/b.parquet", "hdfs://c.parquet", f"{home}/d.parquet"],
            "val_files": f"{tmp_path}/e/f.parquet",
            "custom_cls": {"path": "pkg://mine"},
            "tool_config_path": "not_there.yaml",
        },
        "self_distill": {"exposure": {"probe_file": f"{tmp_path}/../g.parquet"}},
        "actor_rollout_ref": {"model": {"path": f"{tmp_path}/models/mine", "tokenizer_path": "Qwen/Qwen3-1.7B"}},
        "reward": {
            "custom_reward_function": {
                "path": f"{tmp_path}/h.py",
                "reward_kwargs": {"tokenizer": f"{tmp_path}/models/mine"},
            },
            "reward_manager": {"module": {"path": None}},
        },
        "trainer": {"resume_from_path": 7},
    }


@pytest.mark.parametrize("value", ["text", 7, None, [1]])
def test_paths_beside_values_of_another_kind(value):
    cfg = OmegaConf.create({"reward": {"custom_reward_function": {"reward_kwargs": value}}, "data": value})
    before = OmegaConf.to_container(cfg)
    make_absolute(cfg)
    assert OmegaConf.to_container(cfg) == before


def test_a_command_resolves_paths_where_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed(
        "method=dasd",
        "experiment=starter",
        "data.train_files=mine/train.parquet",
        "data.val_files=[mine/val.parquet]",
        "reward.custom_reward_function.path=mine.py",
        run_dir=tmp_path / "run",
    )
    assert cfg.data.train_files == f"{tmp_path}/mine/train.parquet"
    assert cfg.data.val_files == [f"{tmp_path}/mine/val.parquet"]
    assert cfg.reward.custom_reward_function.path == f"{tmp_path}/mine.py"
    with open_dict(cfg):
        found = [*data_problems(cfg), *reward_problems(cfg)]
    assert len(found) == 3 and all(str(tmp_path) in problem for problem in found)


# --- the command ---


def test_everything_wrong_is_said_at_once_and_nothing_is_started(tmp_path):
    (tmp_path / "raw.jsonl").write_text('{"problem": "a", "answer": "1"}\n')
    words = [
        "experiment=starter",
        "dry_run=true",
        "data.train_files=raw.jsonl",
        "data.val_files=nowhere.parquet",
        "reward.custom_reward_function.path=mine.py",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "recipes.dasd.main", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"python -m recipes.data.prepare dataset=local file={tmp_path}/raw.jsonl" in result.stderr
    assert f"data.val_files: {tmp_path}/nowhere.parquet does not exist" in result.stderr
    assert f"reward.custom_reward_function.path={tmp_path}/mine.py: no such file" in result.stderr
    assert not (tmp_path / "run" / "train.log").exists()


def test_the_command_that_a_refusal_names_works(cfg, tmp_path):
    """What is said of raw data leads to data that train."""
    raw = tmp_path / "mine.csv"
    raw.write_text("problem,answer,solution\n" + "".join(f"{n}+1,{n + 1},\\boxed{{{n + 1}}}\n" for n in range(40)))
    said = only(list(data_problems(changed(cfg, data__train_files=str(raw)))))
    named = said[said.index("python -m ") :].split()[1:]
    subprocess.run([sys.executable, *named], cwd=tmp_path, check=True, capture_output=True)
    assert list(data_problems(changed(cfg, data__train_files=f"{tmp_path}/data/mine/train.parquet"))) == []


def test_a_module_beside_the_command_is_found_and_ours_do_not_stand_in_for_it(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("import data\n" + GOOD)
    assert "No module named 'data'" in only(reward(cfg, "pkg://my_rewards"))
    (tmp_path / "data.py").write_text("")
    assert reward(cfg, "pkg://my_rewards") == []
    assert reward(cfg, str(tmp_path / "my_rewards.py")) == []
