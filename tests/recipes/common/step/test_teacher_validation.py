"""The teacher's validation: whose problems under which prompts, and under what names the numbers come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from config import STARTER
from recipes.common.checks.batch import lengths
from recipes.common.checks.data import data
from recipes.common.checks.learning import teacher_validation
from recipes.common.method import read
from recipes.common.step.teacher_stage import TeacherStage
from recipes.common.step.teacher_validation import PrivilegedProblems, teacher_metrics
from recipes.common.teacher.prompts import render, student_messages, teacher_messages
from recipes.entry import resolve

ON = ("self_distill.teacher.test_freq=10", "experiment=starter")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STARTER / "model")


def column(values: list) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def rows(*solutions: str | None) -> list[dict]:
    return [
        {"raw_prompt": student_messages(f"{i}+1"), "problem": f"{i}+1", "solution": text, "answer": str(i + 1)}
        for i, text in enumerate(solutions)
    ]


def stage(compose_config, tokenizer, *overrides: str) -> TeacherStage:
    cfg = resolve(compose_config("method=dasd", *ON, *overrides))
    return TeacherStage(read(cfg), cfg, tokenizer, None, total_steps=30)


def test_problems_without_a_prompt_are_left_out_and_counted():
    batches = [
        {"raw_prompt": column([["a"], ["b"], ["c"]]), "index": torch.arange(3)},
        {"raw_prompt": column([["d"]]), "index": torch.tensor([3])},
    ]
    ids = {"a": [1], "b": None, "c": [1, 2, 3], "d": None}
    problems = PrivilegedProblems(batches, lambda found: [ids[row["raw_prompt"][0]] for row in found])
    (only,) = problems
    assert only["raw_prompt"].tolist() == [["a"], ["c"]] and only["index"].tolist() == [0, 2]
    assert only["prompt_token_ids"] == [[1], [1, 2, 3]]
    assert (problems.rows, problems.without) == (4, 2)
    assert "prompt_token_ids" not in batches[0]


def test_names_and_mean_of_the_sets():
    problems = PrivilegedProblems([], lambda found: [])
    problems.rows, problems.without = 8, 2
    found = {"val-core/a/acc/mean@4": 0.5, "val-core/a/acc/ci95@4": 0.1, "val-core/b/acc/mean@4": 1.0, "val-aux/b/x": 3}
    assert teacher_metrics(found, problems, 7.5) == {
        "teacher/validation": 0.75,
        "teacher/validation/a/acc/mean@4": 0.5,
        "teacher/validation/a/acc/ci95@4": 0.1,
        "teacher/validation/b/acc/mean@4": 1.0,
        "teacher/validation/without_context": 0.25,
        "teacher/validation/seconds": 7.5,
    }
    assert "teacher/validation" not in teacher_metrics({}, problems, 0.0)


def test_prompts_are_the_teachers(compose_config, tokenizer):
    made = stage(compose_config, tokenizer).validation_prompts(rows("1, so \\boxed{1}", "", None), step=3)
    wanted = render(tokenizer, teacher_messages("0+1", "1, so \\boxed{1}"), {"enable_thinking": False})
    assert made == [wanted, None, None]


def test_a_fallback_and_the_exposure_in_force_are_used(compose_config, tokenizer):
    solution = "first this. then that. so \\boxed{1}"
    fallback = ("self_distill.teacher.fallback=answer",)
    _, second = stage(compose_config, tokenizer, *fallback).validation_prompts(rows(solution, None), step=3)
    assert second == render(tokenizer, teacher_messages("1+1", "\\boxed{2}"), {"enable_thinking": False})
    nothing = ("self_distill.exposure.mode=fixed", "self_distill.exposure.fixed_exposure=0")
    (hidden,) = stage(compose_config, tokenizer, *nothing).validation_prompts(rows(solution), step=3)
    assert "first this" not in tokenizer.decode(hidden) and "boxed" in tokenizer.decode(hidden)
    (drawn, _) = stage(compose_config, tokenizer, "self_distill.teacher.context=other_problem").validation_prompts(
        rows(solution, "another \\boxed{5}"), step=3
    )
    assert "another" in tokenizer.decode(drawn)


@pytest.mark.parametrize(
    ("method", "overrides", "said"),
    [
        ("grpo", (), "grpo has no teacher"),
        ("dasd", ("self_distill.teacher.test_freq=15",), "multiple of trainer.test_freq=10"),
        ("dasd", ("trainer.test_freq=-1",), "multiple of trainer.test_freq=-1"),
        ("dasd", ("self_distill.teacher.context=sibling",), "a validation problem has none"),
        ("dasd", ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",), "BurstAgentLoopManager"),
    ],
)
def test_what_cannot_be_validated_is_refused(compose_config, method, overrides, said):
    cfg = compose_config(f"method={method}", *ON, *overrides)
    (found,) = teacher_validation(cfg, read(cfg))
    assert found.startswith("self_distill.teacher.test_freq=") and said in found


def test_data_without_anything_to_show_are_refused(compose_config, tmp_path):
    table = pd.read_parquet(STARTER / "data/val.parquet")
    table["solution"] = ""
    table.to_parquet(tmp_path / "bare.parquet")
    bare = f"data.val_files={tmp_path}/bare.parquet"

    def found(*overrides: str) -> list[str]:
        cfg = resolve(compose_config("method=dasd", *ON, *overrides))
        return list(data(cfg, read(cfg)))

    (problem,) = found(bare)
    assert problem.startswith("self_distill.teacher.test_freq=10: no row of data.val_files has a solution")
    assert found() == found(bare, "self_distill.teacher.test_freq=-1") == []
    assert found(bare, "self_distill.teacher.fallback=answer") == []  # the verifier's ground truth
    table.loc[3, "solution"] = "\\boxed{1}"
    table.to_parquet(tmp_path / "bare.parquet")
    assert found(bare) == []  # the others are left out and counted


def test_the_servers_have_room_for_the_teachers_prompts(compose_config):
    cfg = resolve(compose_config("method=dasd", *ON))
    assert cfg.actor_rollout_ref.rollout.max_model_len == 512 + 96
    assert list(teacher_validation(cfg, read(cfg))) == list(lengths(cfg, read(cfg))) == []
    without = resolve(compose_config("method=dasd", "experiment=starter"))
    assert without.actor_rollout_ref.rollout.max_model_len == 64 + 96
    short = resolve(compose_config("method=dasd", *ON, "actor_rollout_ref.rollout.max_model_len=160"))
    (found,) = lengths(short, read(short))
    assert "max_model_len=160 is less than" in found and "= 608" in found
