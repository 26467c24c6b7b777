"""Row and batch statistics against numpy on the valid tokens, and their independence of everything else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advantage import segments
from advantage.checks import NonFiniteSignalError, as_mask, check_finite, check_shape

EXAMPLES = settings(deadline=None, max_examples=60, derandomize=True)

# Repeated values and values far apart, so that ties and interpolation both occur.
VALUES = st.one_of(
    st.sampled_from([0.0, 0.5, 0.5, 1.0, 3.25]),
    st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def row_quantile(values, mask, fraction):
    """(B,) `quantile` of each row's valid tokens."""
    return segments.reduce_rows(lambda tokens: segments.quantile(tokens, fraction), values, mask)


def row_mean_abs_deviation(values, mask, center="mean"):
    """(B,) `mean_abs_deviation` of each row's valid tokens."""
    return segments.reduce_rows(lambda tokens: segments.mean_abs_deviation(tokens, center), values, mask)


@st.composite
def ragged(draw):
    """(values, mask): fp32 (B, T) with holes in the mask, empty rows and one-token rows among them."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    values = draw(st.lists(VALUES, min_size=rows * width, max_size=rows * width))
    mask = draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    return torch.tensor(values, dtype=torch.float32).view(rows, width), torch.tensor(mask).view(rows, width)


@EXAMPLES
@given(ragged(), st.one_of(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.99, 1.0]), st.floats(0.0, 1.0)))
def test_row_quantile_is_numpys_over_valid_tokens(batch, fraction):
    values, mask = batch
    got = row_quantile(values, mask, fraction)
    for row in range(len(values)):
        tokens = values[row][mask[row]].double().numpy()
        wanted = np.quantile(tokens, fraction) if len(tokens) else 0.0
        assert got[row].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6 * (np.ptp(tokens) if len(tokens) else 0))


@EXAMPLES
@given(ragged(), st.sampled_from(["mean", "median"]))
def test_row_deviation_is_the_mean_distance_to_the_centre(batch, center):
    values, mask = batch
    got = row_mean_abs_deviation(values, mask, center=center)
    for row in range(len(values)):
        tokens = [float(v) for v in values[row][mask[row]]]
        wanted = 0.0
        if tokens:
            middle = math.fsum(tokens) / len(tokens) if center == "mean" else float(np.median(tokens))
            wanted = math.fsum(abs(v - middle) for v in tokens) / len(tokens)
        assert got[row].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@EXAMPLES
@given(ragged(), st.floats(0.0, 1.0))
def test_batch_statistics_pool_all_valid_tokens(batch, fraction):
    values, mask = batch
    tokens = values[mask].double().numpy()
    if not len(tokens):
        assert segments.batch_quantile(values, mask, fraction) == 0.0
        assert segments.batch_mean(values, mask) == 0.0
        assert segments.batch_magnitude(values, mask) == (0.0, 0.0)
        return
    near = {"rel": 1e-6, "abs": 1e-6 * np.ptp(tokens)}
    assert segments.batch_quantile(values, mask, fraction) == pytest.approx(np.quantile(tokens, fraction), **near)
    assert segments.batch_mean(values, mask) == pytest.approx(tokens.mean(), rel=1e-9, abs=1e-9)
    mean, high = segments.batch_magnitude(values, mask, 0.9)
    assert mean == pytest.approx(np.abs(tokens).mean(), rel=1e-9)
    assert high == pytest.approx(np.quantile(np.abs(tokens), 0.9), **near)


def test_median_of_an_even_count_is_the_mean_of_the_middle_two():
    values = torch.tensor([[4.0, 1.0, 3.0, 2.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert segments.row_median(values, mask).item() == 2.5
    assert torch.median(values[0, :4]).item() == 2.0  # the definition that must not be used


def test_quantile_by_hand():
    values = torch.tensor([[0.0, 10.0, 20.0, 30.0, 40.0, 50.0]])
    mask = torch.ones(1, 6)
    assert row_quantile(values, mask, 0.2).item() == 10.0
    assert row_quantile(values, mask, 0.25).item() == 12.5


@EXAMPLES
@given(ragged(), st.integers(0, 7), st.sampled_from([float("nan"), float("inf"), -1e30, 7.0]))
def test_padding_and_neighbours_do_not_matter_to_the_last_bit(batch, extra, garbage):
    values, mask = batch
    statistics = (
        lambda v, m: row_quantile(v, m, 0.2),
        segments.row_median,
        row_mean_abs_deviation,
    )
    dirty = torch.where(mask, values, garbage)
    dirty = torch.cat([dirty, torch.full((len(values), extra), garbage)], dim=1)
    wider = torch.cat([mask, torch.zeros(len(mask), extra, dtype=torch.bool)], dim=1)
    for statistic in statistics:
        whole = statistic(values, mask)
        assert torch.equal(statistic(dirty, wider), whole)
        alone = torch.cat([statistic(values[r : r + 1], mask[r : r + 1]) for r in range(len(values))])
        assert torch.equal(alone, whole)
    assert segments.batch_mean(dirty, wider) == segments.batch_mean(values, mask)
    assert segments.batch_quantile(dirty, wider, 0.3) == segments.batch_quantile(values, mask, 0.3)


def test_inputs_are_left_as_they_were():
    values, mask = torch.randn(3, 9), torch.rand(3, 9) > 0.3
    before = values.clone()
    segments.row_median(values, mask)
    row_mean_abs_deviation(values, mask, center="median")
    segments.batch_magnitude(values, mask)
    segments.map_rows(lambda count, tokens: (tokens.fill(0.0) or tokens,), mask, values)
    assert torch.equal(values, before)


def test_equal_values_have_exactly_no_deviation():
    values = torch.full((1, 4097), 0.1)
    assert row_mean_abs_deviation(values, torch.ones(1, 4097)).item() == 0.0


def test_deviation_of_values_that_lie_close_together():
    step = 2.0**-20  # one unit in the last place of an fp32 between 8 and 16
    values = torch.tensor([[12.0, 12.0 + step, 12.0 + step]])
    assert row_mean_abs_deviation(values, torch.ones(1, 3)).item() == pytest.approx(4 / 9 * step, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast_before_the_statistics(dtype):
    values, mask = torch.randn(2, 33).to(dtype), torch.ones(2, 33)
    for statistic in (segments.row_median, row_mean_abs_deviation):
        got = statistic(values, mask)
        assert got.dtype == torch.float32
        assert torch.equal(got, statistic(values.float(), mask))


def test_map_rows_scatters_to_the_valid_places():
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    (out,) = segments.map_rows(lambda count, tokens: (tokens * count,), mask, torch.arange(9.0).view(3, 3))
    assert out.tolist() == [[0.0, 2.0, 4.0], [0.0, 0.0, 0.0], [12.0, 0.0, 16.0]]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"quantile=1\.5"):
        row_quantile(torch.ones(1, 2), torch.ones(1, 2), 1.5)
    with pytest.raises(ValueError, match="center='mode'"):
        row_mean_abs_deviation(torch.ones(1, 2), torch.ones(1, 2), center="mode")
    with pytest.raises(ValueError, match=r"batch, response length.*\(4,\)"):
        as_mask(torch.ones(4))
    with pytest.raises(ValueError, match=r"entropy has shape \(1, 2\) but response_mask has shape \(1, 3\)"):
        check_shape("entropy", torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="entropy must be a tensor, got list"):
        check_shape("entropy", [[1.0]], torch.ones(1, 1))


def test_non_finite_values_are_counted_and_placed():
    values = torch.zeros(3, 4)
    values[0, 3] = float("nan")  # padding: does not count
    values[1, 2] = float("inf")
    values[2, 0] = float("nan")
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]) > 0
    with pytest.raises(NonFiniteSignalError, match=r"entropy is not finite on 2 of 11 .* row 1, position 2 \(inf\)"):
        check_finite("entropy", values, mask)
    mask[1, 2] = mask[2, 0] = False
    check_finite("entropy", values, mask)
