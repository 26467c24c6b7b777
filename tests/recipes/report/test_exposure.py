"""The exposure policy's density over training, from the parameters that a run's records have."""

from __future__ import annotations

import math

import pytest

from recipes.report.exposure import density_panel, held_decisions, interval_above
from recipes.report.page import comparison_page, run_page
from recipes.report.run_data import load_run
from tests.builders.runs import record, write_run


def drawn(step: int, a: float = 2.0, b: float = 2.0, alpha: float = 0.5) -> dict:
    return record(step, exposure__a=a, exposure__b=b, exposure__alpha=alpha, exposure__mean=a / (a + b))


def test_the_interval_is_where_the_density_is_at_least_the_level():
    # Beta(2, 2) has the density 6x(1 - x), which is 1 at (1 ± sqrt(1/3)) / 2 and nowhere above 1.5.
    half = math.sqrt(1 / 3) / 2
    assert interval_above(1.0, 2.0, 2.0) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)
    assert all(map(math.isnan, interval_above(1.51, 2.0, 2.0)))
    # Beta(3, 1 + 1e-9) is 3x² up to its very end.
    assert interval_above(0.75, 3.0, 1.0)[0] == pytest.approx(0.5, abs=1e-3)


def test_a_decision_is_one_column_while_it_is_in_force(tmp_path):
    records = [drawn(1), drawn(2), drawn(3, alpha=0.25), drawn(6, alpha=0.25), record(7), drawn(8, 3.0)]
    held = held_decisions(load_run(write_run(tmp_path / "run", records, method="atesd")))
    assert [(one.first, one.last, one.a, one.exposure) for one in held] == [
        (1, 2, 2.0, 0.5),
        (3, 3, 2.0, 0.25),
        (6, 6, 2.0, 0.25),  # after a gap it may be another decision
        (8, 8, 3.0, 0.5),
    ]


def test_only_a_policy_has_a_density(tmp_path):
    broad = density_panel(load_run(write_run(tmp_path / "broad", [drawn(1)], method="atesd")))
    sharp = density_panel(load_run(write_run(tmp_path / "sharp", [drawn(1), drawn(3, 40.0, 60.0)], method="atesd")))
    # Beta(40, 60) reaches 8.1 at its peak, Beta(2, 2) 1.5: the scale at the right names what is reached.
    assert [">8</text>" in shown.figure for shown in (broad, sharp)] == [False, True]
    assert [">1</text>" in shown.figure for shown in (broad, sharp)] == [True, True]
    fixed = [record(1, exposure__alpha=0.5), drawn(2) | {"exposure/a": None}]
    assert density_panel(load_run(write_run(tmp_path / "fixed", fixed, method="atesd"))) is None


def test_pages_show_it_where_there_is_one(tmp_path):
    runs = [
        load_run(write_run(tmp_path / f"{method}_{seed}", [drawn(1)] if own else [record(1)], method=method, seed=seed))
        for method, own in (("opsd", False), ("atesd", True))
        for seed in (1, 2)
    ]
    assert ["Exposure policy" in run_page(run) for run in runs] == [False, False, True, True]
    page = comparison_page(runs)
    assert page.count("<h2>Exposure policies</h2>") == 1 and page.count("<h3>atesd, seed 1</h3>") == 1
    assert "atesd, seed 2" not in page and "<h2>Exposure policies</h2>" not in comparison_page(runs[:2])
