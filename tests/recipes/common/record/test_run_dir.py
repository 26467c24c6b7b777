"""The files of a run: atomic writes, records that survive a crash, checkpoints that are named only when complete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.common.record import checkpoints
from recipes.common.record import run_dir as files
from recipes.common.record.console import duration, validation_accuracy, warnings_of


def test_nodes_that_keep_a_folder_of_their_own_are_named(tmp_path):
    def read(path: str) -> list[tuple[str, str | None]]:
        text = Path(path).read_text()
        return [("head", text), ("one", None), ("two", "of an older run"), ("one", None)]

    with pytest.raises(RuntimeError, match=r"hydra.run.dir=.* is not the same folder on one, two: .*share"):
        files.require_shared(tmp_path, read)
    assert not list(tmp_path.iterdir())
    files.require_shared(tmp_path, lambda path: [("head", Path(path).read_text())])


def test_metrics_are_read_back_as_numbers(tmp_path):
    log = files.MetricsFile(tmp_path)
    log.log(
        {"a": np.float32(1.5), "b": torch.tensor(2), "c": float("nan"), "d": np.int64(3), "e": True, "f": [1]}, step=1
    )
    (record,) = files.read_metrics(tmp_path)
    assert {k: record[k] for k in "abcde"} == {"a": 1.5, "b": 2, "c": None, "d": 3, "e": True}
    json.dumps(record, allow_nan=False)


def test_the_record_beside_a_checkpoint_is_the_one_that_was_to_be_written(tmp_path):
    data = {"a": np.float32(1.5), "nan": float("nan"), "training/global_step": 2}
    checkpoints.save_record(tmp_path, data)
    log = files.MetricsFile(tmp_path)
    log.log(data, step=2)
    log.log(checkpoints.saved_record(tmp_path), step=3)
    first, second = files.read_metrics(tmp_path)
    assert {**first, "step": 3, "time": 0} == {**second, "time": 0}
    assert checkpoints.saved_record(tmp_path / "elsewhere") is None


def test_which_records_of_a_step_are_there(tmp_path):
    log = files.MetricsFile(tmp_path)
    log.log({"val-core/x/acc/mean@2": 0.5}, step=0)
    log.log({"training/global_step": 1}, step=1)
    found = [(files.has_step(tmp_path, step), files.has_validation(tmp_path, step)) for step in (0, 1, 2)]
    assert found == [(False, True), (True, False), (False, False)]


def test_a_second_writer_appends(tmp_path):
    for step in (1, 2):
        log = files.MetricsFile(tmp_path)
        log.log({"x": step}, step=step)
        log.finish()
    assert [r["x"] for r in files.read_metrics(tmp_path)] == [1, 2]


def test_a_half_written_record_is_left_out_until_it_is_whole(tmp_path):
    path = tmp_path / files.METRICS
    path.write_text('{"step": 1}\n{"step": 2')
    assert [r["step"] for r in files.read_metrics(tmp_path)] == [1]
    ((_, offset),) = files.metrics_from(path, 0)
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert [r["step"] for r, _ in files.metrics_from(path, offset)] == [2]


def test_steps_to_be_done_again_are_forgotten(tmp_path):
    log = files.MetricsFile(tmp_path)
    for step in (0, 1, 2, 3):
        log.log({}, step=step)
    assert files.forget_metrics_after(tmp_path, 1) == 2
    assert [r["step"] for r in files.read_metrics(tmp_path)] == [0, 1]


def test_the_checkpointed_step_is_the_trackers(tmp_path):
    assert files.checkpointed_step(tmp_path) is None
    folder = tmp_path / files.CHECKPOINTS
    (folder / "global_step_4").mkdir(parents=True)
    assert files.checkpointed_step(tmp_path) is None  # a folder without the tracker's word is not complete
    (folder / files.TRACKER).write_text("4")
    assert files.checkpointed_step(tmp_path) == 4


def test_an_empty_tracker_beside_checkpoints_is_an_error(tmp_path):
    folder = tmp_path / files.CHECKPOINTS
    (folder / "global_step_4").mkdir(parents=True)
    (folder / files.TRACKER).write_text("")
    with pytest.raises(ValueError, match=r"\[4\]"):
        files.checkpointed_step(tmp_path)


def test_atomic_write_leaves_the_old_text_when_it_fails(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, "old")
    with pytest.raises(TypeError):
        files.write_atomically(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_stage_round_trip(tmp_path):
    assert files.read_stage(tmp_path) == {}
    files.set_stage(tmp_path, "rollout", 3)
    assert files.read_stage(tmp_path)["stage"] == "rollout"


def test_validation_accuracy_is_the_mean_over_sets():
    record = {"val-core/a/acc/mean@16": 0.2, "val-core/b/acc/mean@16": 0.4, "val-core/a/acc/best@16/mean": 1.0}
    name, value = validation_accuracy(record)
    assert name == "mean@16" and value == pytest.approx(0.3)
    assert validation_accuracy({"actor/entropy": 1}) is None


def test_warnings():
    assert warnings_of({"credit/correction_ratio": 4.9, "teacher/prompt_truncated": 0.01}) == []
    kinds = [
        k
        for k, _ in warnings_of(
            {"credit/correction_ratio": 5.1, "training/rollouts_missing": 3, "teacher/prompt_truncated": 0.2}
        )
    ]
    assert kinds == ["correction", "missing", "truncated"]
    assert warnings_of({"credit/correction_ratio": None}) == []


def test_duration():
    assert [duration(s) for s in (4.4, 59.6, 425, 3599.4)] == ["4 s", "1 min 00 s", "7 min 05 s", "59 min 59 s"]
    assert [duration(s) for s in (3599.6, 7169, 15890)] == ["1 h 00 min", "1 h 59 min", "4 h 25 min"]


@pytest.mark.parametrize(
    ("records", "overrides", "left"),
    [
        (["train", "validation"], (), False),
        (["train"], (), True),  # killed before the last validation
        (["train"], ("trainer.test_freq=-1",), False),
        ([], ("trainer.test_freq=-1",), True),  # killed before the record
        (["train", "validation"], ("trainer.total_training_steps=5",), True),
        (["train", "validation"], ("trainer.resume_mode=disable",), True),
    ],
)
def test_a_complete_run_has_nothing_left(compose_config, records, overrides, left):
    cfg = compose_config("method=dasd", "experiment=starter", "trainer.total_training_steps=4", *overrides)
    run_dir = Path(cfg.self_distill.run_dir)
    run_dir.mkdir()
    lines = {"train": {"step": 4, "training/global_step": 4}, "validation": {"step": 4, "val-core/x/acc/mean@16": 0.5}}
    (run_dir / files.METRICS).write_text("".join(json.dumps(lines[record]) + "\n" for record in records))
    assert checkpoints.nothing_left(cfg, 4) is not left
    assert not checkpoints.nothing_left(cfg, None) and not checkpoints.nothing_left(cfg, 3)
