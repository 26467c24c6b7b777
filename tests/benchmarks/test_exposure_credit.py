"""benchmarks.exposure_credit: gains by hand, a correlation that trends cannot make, and the table of two runs."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks import exposure_credit
from benchmarks.exposure_credit import prediction, probe_gain, report, reward_gain


def test_gains_by_hand():
    # A decision after 3 updates acts in the fourth, whose weights step 5 samples from.
    rewards = {1: 0.0, 2: 0.1, 3: 0.2, 4: 0.4, 5: 0.5, 6: 0.9}
    assert reward_gain(rewards, decided=3, horizon=2) == pytest.approx((0.5 + 0.9) / 2 - (0.2 + 0.4) / 2)
    assert reward_gain(rewards, decided=5, horizon=2) is None and reward_gain(rewards, decided=0, horizon=2) is None
    assert probe_gain({3: 1.5, 5: 1.2}, decided=3, horizon=2) == pytest.approx(0.3)
    assert probe_gain({5: 1.2}, decided=3, horizon=2) is None


def test_a_common_trend_predicts_nothing_and_a_common_signal_does():
    drawn = random.Random(0)
    times = list(range(40))
    noise = [[drawn.gauss(0, 1) for _ in times] for _ in range(3)]
    falling = [[a - 5 * t for a, t in zip(values, times, strict=True)] for values in noise]
    assert abs(prediction(times, falling[0], falling[1])) < 0.4
    shared = [a + 0.1 * b for a, b in zip(falling[0], noise[2], strict=True)]
    assert prediction(times, falling[0], shared) > 0.9
    assert prediction(times, falling[0], [None, *shared[1:]]) > 0.9
    assert prediction(times, [1.0] * 40, shared) is None and prediction([1, 2, 3], [1, 2, 3], [3, 1, 2]) is None


def test_the_table_of_two_runs(tmp_path, monkeypatch):
    runs = {}
    for seed in (1, 2):
        directory = tmp_path / "credit_one_step" / f"seed_{seed}"
        folder = directory / "checkpoints" / "global_step_12" / "exposure"
        folder.mkdir(parents=True)
        drawn = random.Random(seed)
        decided = [{"step": t, "reward": drawn.random()} for t in range(11)]
        (folder / "exposure_controller.json").write_text(json.dumps({"memory": {"decided": decided}}))
        steps = range(1, 13)
        runs[directory] = [
            {
                "step": s,
                "exposure/mean": 0.5 + 0.01 * seed * (s - 1),
                "exposure/updates": float(s // 2),
                "probe/nll": 1.0,
                "critic/score/mean": drawn.random(),
            }
            for s in steps
        ]
    monkeypatch.setattr(exposure_credit, "records", runs.__getitem__)
    monkeypatch.setattr(exposure_credit, "finished", lambda directory, steps: directory in runs)
    row = report(["one_step", "delayed"], [1, 2], 12, 2, tmp_path).splitlines()[2:]
    assert len(row) == 1  # nothing of the credit that was not run
    cells = [cell.strip() for cell in row[0].strip("|").split("|")]
    # Moved by 0.11 and 0.22: mean 0.165, half-width t(0.975, 1) · s / √2 = 12.706 · 0.0778 / 1.414.
    assert cells[:5] == ["one_step", "2", "11", "6", "0.500 ± 0.000"] and cells[6] == "0.165 ± 0.699"
    assert cells[8] == "–"  # the probe never moved
