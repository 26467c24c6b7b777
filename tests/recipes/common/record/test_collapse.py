"""A run that falls apart is noticed: by hand, on the courses that real runs took, and what a person is told of it."""

from __future__ import annotations

import json

import pytest

from recipes.common import metric_names as names
from recipes.common.checks.learning import collapse as refusals
from recipes.common.method import read
from recipes.common.record import run_dir as files
from recipes.common.record.checkpoints import last_until, prune
from recipes.common.record.collapse import Baseline, CollapseParams, Watch, watch
from recipes.common.record.console import RunConsole, warnings_of

QUICK = CollapseParams(patience=2, warmup=2, decay=0.5)


def course(params: CollapseParams, **signs: list[float]) -> list[list[str]]:
    """Signs that have collapsed after each step."""
    seen, found = Watch(), []
    for step in range(len(next(iter(signs.values())))):
        seen = watch(seen, {name: values[step] for name, values in signs.items()}, params)
        found.append(seen.collapsed(params))
    return found


def test_by_hand():
    seen = Watch()
    for value in (4.0, 1.0):
        seen = watch(seen, {"entropy": value}, QUICK)
    # 0.5 * 4 + 1 over 0.5 * 1 + 1.
    assert seen.signs["entropy"] == Baseline(total=3.0, weight=1.5, seen=2, best=2.0) and seen.level("entropy") == 2.0
    for value, outside in ((0.5, 0), (8.0, 0)):  # the band is [0.25, 4] times the level, ends included
        assert watch(seen, {"entropy": value}, QUICK).signs["entropy"].outside == outside
    once = watch(seen, {"entropy": 0.49}, QUICK)
    assert once.signs["entropy"] == Baseline(total=3.0, weight=1.5, seen=2, best=2.0, outside=1)
    assert once.collapsed(QUICK) == [] and watch(once, {"entropy": 8.1}, QUICK).collapsed(QUICK) == ["entropy"]
    assert watch(once, {"entropy": 2.0}, QUICK).steps_outside == 0  # back again
    assert watch(once, {"entropy": None}, QUICK) == once


def test_the_reward_is_measured_against_the_best_that_it_was():
    params = CollapseParams(patience=1, warmup=2, decay=0.0)
    rewards = [0.2, 0.4, 0.8, 0.6, 0.5, 0.41, 0.39]
    assert course(params, reward=rewards) == [[]] * 6 + [["reward"]]  # half of 0.8, though the last was 0.41
    assert course(params, entropy=rewards) == [[]] * 7
    # Negative rewards fall too: by half of 1 below -1.
    assert course(params, reward=[-1.0, -1.0, -1.4, -1.6]) == [[], [], [], ["reward"]]


def test_nothing_is_said_before_the_baseline_is_made():
    assert course(QUICK, length=[100.0, 1.0, 100.0]) == [[]] * 3


def test_courses_of_healthy_and_of_broken_runs():
    usual = CollapseParams()
    steps = range(30)
    # GRPO on the embedded model: entropy 0.18 to 0.04, reward 0.41 to 0.9, responses from 33 to 38 tokens.
    healthy = {
        "entropy": [0.177 * 0.95**i for i in steps],
        "reward": [0.9 - 0.5 * 0.9**i + 0.07 * (-1) ** i for i in steps],
        "length": [38 - 5 * 0.9**i for i in steps],
    }
    assert course(usual, **healthy) == [[]] * 30
    # DASD as printed, on the same: reward 0.45 to 0.15 in ten steps.
    assert course(usual, reward=[max(0.45 * 0.87**i, 0.02) for i in steps])[-1] == ["reward"]
    assert course(usual, length=[900.0] * 10 + [8192.0] * 6)[-1] == ["length"]
    assert course(usual, entropy=[0.3] * 10 + [0.3 * 0.4**i for i in range(10)])[-1] == ["entropy"]
    assert course(CollapseParams(patience=None), reward=[1.0] * 10 + [0.0] * 20)[-1] == []


def test_a_checkpoint_continues_the_watch():
    params = CollapseParams(warmup=3)
    values = [{"entropy": 0.3 + 0.1 * i, "length": 40.0 - i, "reward": 0.5 if i < 6 else 0.1} for i in range(12)]
    through, resumed = Watch(), Watch()
    for each in values:
        through = watch(through, each, params)
        resumed = watch(Watch.from_json(json.loads(json.dumps(resumed.to_json()))), each, params)
    assert resumed == through and through.collapsed(params) == ["reward"]
    assert Watch.from_json({}) == Watch()  # of a version that watched nothing


RECORD = {
    "step": 46,
    names.ENTROPY: 1.25,
    names.COLLAPSED.format("entropy"): 6,
    names.COLLAPSE_LEVEL.format("entropy"): 0.2,
    names.LAST_GOOD: 40,
    names.LAST_GOOD_CHECKPOINT: 40,
}


def test_what_a_person_is_told():
    assert warnings_of(RECORD) == [
        (
            "collapse entropy",
            "entropy 1.25 has been outside its band around 0.2 for 6 steps; "
            "the last checkpoint from before is of step 40",
        )
    ]
    ((_, text),) = warnings_of({**RECORD, names.LAST_GOOD_CHECKPOINT: -1})
    assert text.endswith("no checkpoint is older")


@pytest.mark.parametrize("stops", [False, True])
def test_a_run_that_ends_for_it_says_so_and_how_to_go_back(compose_config, tmp_path, stops, capfd):
    cfg = compose_config("experiment=starter", "method=grpo")
    with open(tmp_path / "console", "w") as shown:
        console = RunConsole(cfg, read(cfg), tmp_path, shown.fileno(), resumed_from=None)
        with console:
            record = {**RECORD, names.TRAINED: 46, **({names.COLLAPSE_STOPS: 1} if stops else {})}
            files.MetricsFile(tmp_path).log(record, step=46)
        console.summary()
    text = " ".join((tmp_path / "console").read_text().split())
    assert "warning step 46: entropy 1.25 has been outside" in text
    assert ("collapsed" in text) == ("echo 40 >" in text) == (console.collapse() is not None) == stops


def test_the_checkpoint_from_before_is_spared(tmp_path):
    folder = tmp_path / files.CHECKPOINTS
    for step in (10, 20, 30, 40):
        (folder / f"global_step_{step}").mkdir(parents=True)
    assert last_until(folder, 40) is None  # none is complete
    (folder / files.TRACKER).write_text("30")
    assert [last_until(folder, step) for step in (9, 10, 29, 40)] == [None, 10, 20, 30]
    prune(folder, 40, 1, spare=20)
    assert sorted(path.name for path in folder.glob("global*")) == ["global_step_20", "global_step_40"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("patience=0", "patience=0: must be 1 or more"),
        ("entropy_low=1.5", "entropy_low=1.5: must be in [0, 1)"),
        ("length_high=1", "length_high=1.0: must be above 1"),
        ("reward_low=-1", "reward_low=-1.0"),
        ("warmup=0", "warmup=0"),
        ("decay=1", "decay=1.0"),
    ],
)
def test_bands_without_a_meaning_are_refused(compose_config, override, said):
    cfg = compose_config("experiment=starter", "method=grpo", f"self_distill.collapse.{override}")
    (found,) = refusals(cfg, read(cfg))
    assert found.startswith("self_distill.collapse.") and said in found


def test_stopping_needs_a_watch(compose_config):
    both = ("self_distill.collapse.stop=true", "self_distill.collapse.patience=null")
    cfg = compose_config("experiment=starter", "method=grpo", *both)
    assert list(refusals(cfg, read(cfg))) == [
        "self_distill.collapse.stop=True: must be false where patience=null watches nothing"
    ]


def test_yaml_defaults_are_the_dataclass_defaults(compose_config):
    cfg = compose_config("experiment=starter", "method=grpo")
    assert CollapseParams(**cfg.self_distill.collapse) == CollapseParams()
