"""PW-OPSD's position weight: the published values of its default schedule, by hand, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advantage.pw_opsd import SCHEDULES, PositionParams, position_weight

EXAMPLES = settings(deadline=None, max_examples=60, derandomize=True)


def reference(mask, floor, threshold, scale):
    """Eq. 5, token by token in double precision."""
    weight = torch.zeros(mask.shape)
    for row in range(len(mask)):
        length, index = int(mask[row].sum()), 0
        for t in range(mask.shape[1]):
            if mask[row, t]:
                index += 1
                u = (index - 0.5) / length
                weight[row, t] = floor + (1 - floor) / (1 + math.exp(-(u - threshold) / scale))
    return weight


@EXAMPLES
@given(
    st.integers(1, 4).flatmap(
        lambda b: st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=b, max_size=b)
    ),
    st.floats(0.0, 1.0),
    st.floats(-0.5, 1.5),
    st.floats(0.02, 5.0),
)
def test_matches_equation_5(mask, floor, threshold, scale):
    mask = torch.tensor(mask)
    got = position_weight(mask, floor=floor, threshold=threshold, scale=scale)
    assert got.dtype == torch.float32 and not got[~mask].any()
    torch.testing.assert_close(got, reference(mask, floor, threshold, scale), rtol=1e-4, atol=1e-6)


def test_moderate_schedule_has_the_published_values():
    weight = position_weight(torch.ones(1, 100_001))[0]
    assert weight[0].item() == pytest.approx(0.286, abs=5e-4)  # w(0)
    assert weight[30_000].item() == pytest.approx(0.625, abs=1e-4)  # w(theta) = (1 + floor) / 2
    assert weight.mean().item() == pytest.approx(0.771, abs=1e-3)
    assert SCHEDULES["moderate"] == (0.25, 0.30, 0.10)


def test_one_token_sits_in_the_middle():
    wanted = 0.25 + 0.75 / (1 + math.exp(-(0.5 - 0.3) / 0.1))
    assert position_weight(torch.ones(1, 1)).item() == pytest.approx(wanted, rel=1e-6)


def test_only_the_rows_own_valid_tokens_count():
    mask = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    weight = position_weight(mask)
    packed = position_weight(torch.ones(1, 3))
    assert torch.equal(weight[0, [0, 2, 5]], packed[0])
    assert not weight[1].any()
    padded = position_weight(torch.cat([mask, torch.zeros(3, 4)], dim=1))
    assert torch.equal(padded[:, :6], weight) and not padded[:, 6:].any()


def test_weights_rise_and_stay_between_floor_and_one():
    for floor, threshold, scale in SCHEDULES.values():
        weight = position_weight(torch.ones(1, 500), floor=floor, threshold=threshold, scale=scale)[0]
        assert (weight[1:] >= weight[:-1]).all()
        assert weight.min() >= floor and weight.max() <= 1.0


def test_limits():
    assert torch.equal(position_weight(torch.ones(2, 5), floor=1.0), torch.ones(2, 5))
    step = position_weight(torch.ones(1, 10), floor=0.0, threshold=0.5, scale=1e-6)
    assert torch.equal(step, torch.tensor([[0.0] * 5 + [1.0] * 5]))


def test_named_schedules_keep_the_papers_order():
    def level(name, u):
        floor, threshold, scale = SCHEDULES[name]
        return floor + (1 - floor) / (1 + math.exp(-(u - threshold) / scale))

    def slope(name):
        floor, _, scale = SCHEDULES[name]
        return (1 - floor) / (4 * scale)

    assert SCHEDULES["mild"][0] > SCHEDULES["moderate"][0] > SCHEDULES["sharp"][0] > SCHEDULES["aggressive"][0]
    assert slope("mild") < slope("moderate") < slope("sharp")
    assert SCHEDULES["aggressive"][1] == max(s[1] for s in SCHEDULES.values())
    assert level("aggressive", 0.2) < min(level(n, 0.2) for n in ("mild", "moderate", "sharp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": -0.1}, r"floor=-0\.1: must be in \[0, 1\]"),
        ({"floor": 1.1}, r"floor=1\.1"),
        ({"scale": 0.0}, r"scale=0\.0: must be positive"),
        ({"scale": -0.1}, r"scale=-0\.1"),
        ({"threshold": float("nan")}, "threshold=nan"),
    ],
)
def test_wrong_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        position_weight(torch.ones(1, 3), **options)
    with pytest.raises(ValueError, match=message):
        PositionParams(**options).validate()


def test_the_schedule_that_is_drawn_is_the_weight_that_is_trained():
    params = PositionParams(schedule="sharp", floor=0.4)
    (drawn,) = params.schedules
    places = [(t + 0.5) / 8 for t in range(8)]
    assert [drawn.value(u) for u in places] == params.weight(torch.ones(1, 8))[0].tolist()
    assert drawn.line == "in force" and [name for name, _ in drawn.beside] == list(SCHEDULES)  # it has no name
    (named,) = PositionParams(schedule="mild").schedules
    assert named.line == "in force: mild" and "mild" not in dict(named.beside)
    assert dict(named.beside)["uniform"](0.0) == 1.0


def test_parameters_override_the_named_schedule():
    assert PositionParams().position_schedule() == (0.25, 0.30, 0.10)
    assert PositionParams(schedule="sharp", floor=0.4).position_schedule() == (0.4, 0.30, 0.05)
    with pytest.raises(ValueError, match="schedule='gentle': must be one of moderate"):
        PositionParams(schedule="gentle").validate()
