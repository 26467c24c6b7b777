"""DASD against a slow reference written from Algorithm 1, by hand, at its limits and under its invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advantage.checks import NonFiniteSignalError
from advantage.dasd import direction_coefficient, inverse_frequency_signal, position_signal

EXAMPLES = settings(deadline=None, max_examples=60, derandomize=True)


# ---------------------------------------------------------------- the reference: plain Python, double precision


def reference_quantile(values, fraction):
    ordered = sorted(values)
    rank = fraction * (len(ordered) - 1)
    below, above = math.floor(rank), math.ceil(rank)
    return ordered[below] * (1 - (rank - below)) + ordered[above] * (rank - below)


def reference_trajectory(entropies, gaps, rho, gap_eps, entropy_eps):
    """Algorithm 1, lines 13-20, token by token."""
    tau = reference_quantile(entropies, rho)
    mean = math.fsum(entropies) / len(entropies)
    spread = math.fsum(abs(h - mean) for h in entropies) / len(entropies)
    scale = reference_quantile([abs(d) for d in gaps], 0.5)
    omega, normalized = [], []
    for h, d in zip(entropies, gaps, strict=True):
        bar = d / (scale + gap_eps)
        gate = 1 / (1 + math.exp(-(abs(bar) - 1))) if abs(bar) < 700 else 1.0
        omega.append(math.tanh((tau - h) / (spread + entropy_eps)) * gate)
        normalized.append(bar)
    return omega, normalized


def reference(entropy, gap, mask, rho=0.2, gap_eps=1e-6, entropy_eps=1e-6):
    omega, normalized = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for row in range(len(mask)):
        places = [t for t in range(mask.shape[1]) if mask[row, t]]
        if places:
            w, n = reference_trajectory(
                [float(entropy[row, t]) for t in places],
                [float(gap[row, t]) for t in places],
                rho,
                gap_eps,
                entropy_eps,
            )
            omega[row, places], normalized[row, places] = torch.tensor(w), torch.tensor(n)
    return omega, normalized


ENTROPY = st.one_of(st.sampled_from([0.0, 0.0, 1e-4, 0.7, 0.7]), st.floats(0.0, 12.0, width=32, allow_subnormal=False))
GAP = st.one_of(st.sampled_from([0.0, 1e-5, -1e-5, 0.3]), st.floats(-25.0, 25.0, width=32, allow_subnormal=False))


@st.composite
def rollouts(draw):
    """(entropy, gap, mask): ragged, with holes, empty rows and one-token rows."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 16))
    size = rows * width
    entropy = draw(st.lists(ENTROPY, min_size=size, max_size=size))
    gap = draw(st.lists(GAP, min_size=size, max_size=size))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return (
        torch.tensor(entropy, dtype=torch.float32).view(rows, width),
        torch.tensor(gap, dtype=torch.float32).view(rows, width),
        torch.tensor(mask).view(rows, width),
    )


@EXAMPLES
@given(rollouts(), st.sampled_from([0.05, 0.2, 0.5, 0.8]), st.sampled_from([(1e-6, 1e-6), (1.0, 0.1)]))
def test_matches_algorithm_1(batch, rho, floors):
    entropy, gap, mask = batch
    gap_eps, entropy_eps = floors
    omega, normalized = direction_coefficient(
        entropy, gap, mask, router_quantile=rho, gap_eps=gap_eps, entropy_eps=entropy_eps
    )
    wanted_omega, wanted_normalized = reference(entropy, gap, mask, rho, gap_eps, entropy_eps)
    torch.testing.assert_close(omega, wanted_omega, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalized, wanted_normalized, rtol=1e-5, atol=1e-6)


def test_eps_sets_both_floors():
    entropy, gap, mask = torch.rand(2, 9), torch.randn(2, 9), torch.ones(2, 9)
    for got, wanted in zip(
        direction_coefficient(entropy, gap, mask, eps=0.3),
        direction_coefficient(entropy, gap, mask, gap_eps=0.3, entropy_eps=0.3),
        strict=True,
    ):
        assert torch.equal(got, wanted)
    omega, normalized = direction_coefficient(entropy, gap, mask, eps=0.3, gap_eps=0.7)
    wanted_omega, wanted_normalized = reference(entropy, gap, mask, 0.2, 0.7, 0.3)
    torch.testing.assert_close(omega, wanted_omega, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(normalized, wanted_normalized, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- by hand


def test_by_hand():
    # H = 0 1 2 3 4: the 0.25 quantile is 1, the mean 2, the mean absolute deviation (2+1+0+1+2)/5 = 1.2.
    # delta = 2 -1 0.5 1 -4: sorted magnitudes 0.5 1 1 2 4, median 1.
    entropy = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    gap = torch.tensor([[2.0, -1.0, 0.5, 1.0, -4.0]])
    omega, normalized = direction_coefficient(entropy, gap, torch.ones(1, 5), router_quantile=0.25, eps=0.0)
    assert normalized.tolist() == [[2.0, -1.0, 0.5, 1.0, -4.0]]
    gates = [1 / (1 + math.exp(1 - x)) for x in (2.0, 1.0, 0.5, 1.0, 4.0)]
    routers = [math.tanh(x / 1.2) for x in (1.0, 0.0, -1.0, -2.0, -3.0)]
    assert omega[0].tolist() == pytest.approx([r * g for r, g in zip(routers, gates, strict=True)], rel=1e-6)


def test_low_entropy_is_attracted_and_high_entropy_repelled():
    entropy = torch.linspace(0.0, 2.0, 101).unsqueeze(0)
    omega, _ = direction_coefficient(entropy, torch.ones(1, 101), torch.ones(1, 101), router_quantile=0.2)
    assert (omega[0, :20] > 0).all() and (omega[0, 21:] < 0).all() and omega[0, 20] == 0
    assert (omega[0, 1:] <= omega[0, :-1]).all()


def test_one_token_response_gets_no_direction():
    omega, normalized = direction_coefficient(torch.tensor([[1.3]]), torch.tensor([[0.5]]), torch.ones(1, 1))
    assert omega.item() == 0.0  # it is its own quantile
    assert normalized.item() == pytest.approx(1.0, rel=1e-5)  # and its own scale


def test_equal_entropies_get_no_direction():
    for eps in (0.0, 1e-6, 1.0):
        for direction in ("tanh", "hard", "linear"):
            omega, _ = direction_coefficient(
                torch.full((2, 37), 0.1), torch.randn(2, 37), torch.ones(2, 37), eps=eps, direction=direction
            )
            assert torch.equal(omega, torch.zeros(2, 37))


def test_no_gap_anywhere_is_no_correction():
    for eps in (0.0, 1e-6):
        omega, normalized = direction_coefficient(torch.rand(1, 8), torch.zeros(1, 8), torch.ones(1, 8), eps=eps)
        assert torch.equal(normalized, torch.zeros(1, 8))
        assert torch.isfinite(omega).all()


def test_empty_rows_and_empty_batches():
    omega, normalized = direction_coefficient(torch.rand(2, 4), torch.randn(2, 4), torch.tensor([[0] * 4, [1] * 4]))
    assert torch.equal(omega[0], torch.zeros(4)) and torch.equal(normalized[0], torch.zeros(4))
    assert (normalized[1] != 0).any()
    for shape in ((0, 4), (3, 0)):
        omega, normalized = direction_coefficient(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape))
        assert omega.shape == normalized.shape == shape


# ---------------------------------------------------------------- invariances


@EXAMPLES
@given(rollouts(), st.integers(0, 6), st.sampled_from([float("nan"), float("inf"), -5.0]))
def test_padding_does_not_matter_to_the_last_bit(batch, extra, garbage):
    entropy, gap, mask = batch
    clean = direction_coefficient(entropy, gap, mask)
    filler = torch.full((len(mask), extra), garbage)
    dirty = direction_coefficient(
        torch.cat([torch.where(mask, entropy, garbage), filler], 1),
        torch.cat([torch.where(mask, gap, garbage), filler], 1),
        torch.cat([mask, torch.zeros(len(mask), extra, dtype=torch.bool)], 1),
    )
    for got, wanted in zip(dirty, clean, strict=True):
        assert torch.equal(got[:, : mask.shape[1]], wanted)
        assert torch.equal(got[:, mask.shape[1] :], torch.zeros(len(mask), extra))
        assert torch.equal(wanted[~mask], torch.zeros(int((~mask).sum())))


@EXAMPLES
@given(rollouts())
def test_each_trajectory_is_on_its_own(batch):
    entropy, gap, mask = batch
    whole = direction_coefficient(entropy, gap, mask)
    order = torch.arange(len(mask)).flip(0)
    permuted = direction_coefficient(entropy[order], gap[order], mask[order])
    for got, wanted in zip(permuted, whole, strict=True):
        assert torch.equal(got[order], wanted)
    for row in range(len(mask)):
        one = slice(row, row + 1)
        packed = mask[row].nonzero()[:, 0]  # the same tokens without holes or padding
        alone = direction_coefficient(entropy[one, packed], gap[one, packed], torch.ones(1, len(packed)))
        for got, wanted in zip(alone, whole, strict=True):
            assert torch.equal(got, wanted[one, packed])


@EXAMPLES
@given(rollouts())
def test_sign_scale_and_shift(batch):
    entropy, gap, mask = batch
    omega, normalized = direction_coefficient(entropy, gap, mask, gap_eps=0.25, entropy_eps=0.5)
    flipped_omega, flipped = direction_coefficient(entropy, -gap, mask, gap_eps=0.25, entropy_eps=0.5)
    assert torch.equal(flipped, -normalized) and torch.equal(flipped_omega, omega)
    # Powers of two scale exactly, so equality is to the last bit.
    scaled_omega, scaled = direction_coefficient(4 * entropy, 2 * gap, mask, gap_eps=0.5, entropy_eps=2.0)
    assert torch.equal(scaled, normalized) and torch.equal(scaled_omega, omega)
    # Without floors the gap's scale drops out altogether.
    bare = direction_coefficient(entropy, gap, mask, eps=0.0, gap_clip=1e6)[1]
    assert torch.equal(direction_coefficient(entropy, 8 * gap, mask, eps=0.0, gap_clip=1e6)[1], bare)


@EXAMPLES
@given(rollouts(), st.sampled_from(["tanh", "hard", "linear"]), st.sampled_from(["gap", "none", "fixed", "magnitude"]))
def test_omega_stays_in_its_range_and_vanishes_outside_the_mask(batch, direction, gate):
    entropy, gap, mask = batch
    omega, normalized = direction_coefficient(entropy, gap, mask, direction=direction, gate=gate)
    assert omega.dtype == normalized.dtype == torch.float32
    assert (omega.abs() <= 1.0).all()
    assert not omega[~mask].any() and not normalized[~mask].any()


@EXAMPLES
@given(rollouts())
def test_extreme_quantiles_are_one_sided(batch):
    entropy, gap, mask = batch
    assert (direction_coefficient(entropy, gap, mask, router_quantile=0.0)[0] <= 0).all()
    assert (direction_coefficient(entropy, gap, mask, router_quantile=1.0)[0] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_fp32(dtype):
    entropy, gap = torch.rand(3, 50).to(dtype), torch.randn(3, 50).to(dtype)
    mask = torch.ones(3, 50, dtype=torch.int64)
    for got, wanted in zip(
        direction_coefficient(entropy, gap, mask),
        direction_coefficient(entropy.float(), gap.float(), mask),
        strict=True,
    ):
        assert got.dtype == torch.float32 and torch.equal(got, wanted)


def test_results_carry_no_gradient():
    gap = torch.randn(1, 5, requires_grad=True)
    omega, normalized = direction_coefficient(torch.rand(1, 5, requires_grad=True), gap, torch.ones(1, 5))
    assert not omega.requires_grad and not normalized.requires_grad


# ---------------------------------------------------------------- the design space of Tables 12-14


@pytest.mark.parametrize("constant", [1.0, -1.0])
def test_constant_direction_is_exactly_uniform(constant):
    gap = torch.randn(3, 20)
    mask = torch.rand(3, 20) > 0.3
    omega, normalized = direction_coefficient(None, gap, mask, direction="constant", constant=constant)
    assert torch.equal(omega, constant * mask.float())
    assert torch.equal(normalized, direction_coefficient(torch.rand(3, 20), gap, mask)[1])
    # Table 13 keeps the gate while it replaces the direction.
    gated, _ = direction_coefficient(None, gap, mask, direction="constant", constant=constant, gate="gap")
    torch.testing.assert_close(gated, constant * torch.sigmoid(normalized.abs() - 1) * mask)


def test_hard_and_linear_directions():
    entropy = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])  # tau 1 at 0.25, deviation 1.2
    arguments = {"router_quantile": 0.25, "eps": 0.0, "gate": "none"}
    hard, _ = direction_coefficient(entropy, torch.ones(1, 5), torch.ones(1, 5), direction="hard", **arguments)
    assert hard.tolist() == [[1.0, 0.0, -1.0, -1.0, -1.0]]
    linear, _ = direction_coefficient(entropy, torch.ones(1, 5), torch.ones(1, 5), direction="linear", **arguments)
    assert linear[0].tolist() == pytest.approx([1 / 1.2, 0.0, -1 / 1.2, -1.0, -1.0])


def test_gates():
    entropy = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    gap = torch.tensor([[2.0, -1.0, 0.5, 1.0, -4.0]])  # median 1, so delta-bar is delta
    arguments = {"direction": "hard", "router_quantile": 0.0, "eps": 0.0}

    def omega(**options):
        return direction_coefficient(entropy, gap, torch.ones(1, 5), **arguments, **options)[0][0].tolist()

    assert omega(gate="none") == [0.0, -1.0, -1.0, -1.0, -1.0]
    assert omega(gate="fixed", gate_threshold=0.9) == [0.0, -1.0, 0.0, -1.0, -1.0]
    assert omega(gate="fixed", gate_threshold=1.0) == [0.0, 0.0, 0.0, 0.0, -1.0]  # strictly above, on the raw gap
    assert omega(gate="magnitude") == [0.0, -1.0, -0.5, -1.0, -1.0]
    assert (
        omega(gate="auto")
        == omega(gate="gap")
        == pytest.approx([0.0] + [-1 / (1 + math.exp(1 - g)) for g in (1, 0.5, 1, 4)])
    )


def test_fixed_gate_is_on_the_raw_gap():
    # Median 2: delta-bar is half of delta.
    gap = torch.tensor([[2.0, -2.0, 1.0, 6.0, 8.0]])
    omega, _ = direction_coefficient(
        torch.arange(5.0)[None], gap, torch.ones(1, 5), direction="hard", gate="fixed", gate_threshold=1.5
    )
    assert (omega != 0).tolist() == [[True, True, False, True, True]]


def test_gap_clip_bounds_the_gap_and_what_the_gate_sees():
    gap = torch.tensor([[0.1, -0.1, 0.1, 5.0, -9.0]])
    entropy = torch.arange(5.0)[None]
    omega, normalized = direction_coefficient(entropy, gap, torch.ones(1, 5), gap_clip=3.0, eps=0.0)
    assert normalized[0].tolist() == pytest.approx([1.0, -1.0, 1.0, 3.0, -3.0])
    plain, _ = direction_coefficient(entropy, gap, torch.ones(1, 5), eps=0.0, gate="none")
    assert omega[0, 4].item() == pytest.approx(plain[0, 4].item() / (1 + math.exp(1 - 3)), rel=1e-6)


@pytest.mark.parametrize("direction", ["tanh", "hard", "linear"])
def test_an_arm_that_is_turned_around_keeps_its_strength_and_leaves_the_other(direction):
    entropy, gap = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), torch.tensor([[2.0, -1.0, 0.5, 1.0, -4.0]])
    options = {"router_quantile": 0.5, "direction": direction, "eps": 0.1}  # tau 2: two tokens on either side
    plain, low, high = (
        direction_coefficient(entropy, gap, torch.ones(1, 5), swapped_arm=arm, **options)[0][0]
        for arm in (None, "low", "high")
    )
    assert plain.sign().tolist() == [1, 1, 0, -1, -1]
    assert low.tolist() == [-x if i < 2 else x for i, x in enumerate(plain.tolist())]
    assert high.tolist() == [-x if i > 2 else x for i, x in enumerate(plain.tolist())]


def test_median_centred_deviation():
    entropy = torch.tensor([[0.0, 0.0, 0.0, 0.0, 10.0]])  # about the mean 3.2, about the median 2
    arguments = {"direction": "linear", "gate": "none", "router_quantile": 1.0, "eps": 30.0}
    omega, _ = direction_coefficient(entropy, torch.ones(1, 5), torch.ones(1, 5), **arguments)
    assert omega[0, 0].item() == pytest.approx(10 / 33.2)
    omega, _ = direction_coefficient(entropy, torch.ones(1, 5), torch.ones(1, 5), deviation="median", **arguments)
    assert omega[0, 0].item() == pytest.approx(10 / 32)


def test_position_router_uses_the_relative_position_only():
    mask = torch.tensor([[1, 1, 0, 1, 0, 1]])
    signal = position_signal(mask)
    u = [0.125, 0.375, 0.0, 0.625, 0.0, 0.875]
    assert signal[0].tolist() == pytest.approx([math.sin(math.pi * x) for x in u], abs=1e-6)
    gap = torch.randn(1, 6)
    by_name = direction_coefficient(None, gap, mask, router="position")
    by_signal = direction_coefficient(None, gap, mask, router="external", router_signal=signal)
    for got, wanted in zip(by_name, by_signal, strict=True):
        assert torch.equal(got, wanted)


def test_token_frequency_router_repels_rare_tokens():
    counts = torch.tensor([97, 0, 2])
    ids = torch.tensor([[0, 1, 2, 0, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    signal = inverse_frequency_signal(ids, mask, counts)
    assert signal[0].tolist() == pytest.approx(
        [-math.log(98 / 102), math.log(102), math.log(102 / 3), -math.log(98 / 102), 0]
    )
    omega, _ = direction_coefficient(
        None, torch.ones(1, 5), mask, router="token_frequency", router_signal=signal, router_quantile=0.7
    )
    assert omega[0, 0] > 0 and omega[0, 1] < 0 and omega[0, 4] == 0


def test_external_router_replaces_entropy():
    entropy, gap, mask = torch.rand(2, 12), torch.randn(2, 12), torch.ones(2, 12)
    wanted = direction_coefficient(entropy, gap, mask)
    got = direction_coefficient(torch.full((2, 12), float("nan")), gap, mask, router="external", router_signal=entropy)
    for a, b in itertools.zip_longest(got, wanted):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["entropy", "log_prob_gap"])
def test_non_finite_signal_is_named_and_placed(name, bad):
    signals = {"entropy": torch.rand(2, 6), "log_prob_gap": torch.randn(2, 6)}
    signals[name][1, 2] = bad
    signals[name][0, 5] = bad  # outside the mask
    mask = torch.ones(2, 6)
    mask[0, 5] = 0
    with pytest.raises(NonFiniteSignalError, match=rf"{name} is not finite on 1 of 11 .*row 1, position 2"):
        direction_coefficient(signals["entropy"], signals["log_prob_gap"], mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "gradient"}, "router='gradient': must be one of entropy"),
        ({"direction": "soft"}, "direction='soft': must be one of tanh"),
        ({"gate": "on"}, "gate='on': must be one of auto"),
        ({"constant": 0.5, "direction": "constant"}, r"constant=0\.5: must be \+1"),
        ({"deviation": "std"}, "deviation='std'"),
        ({"router_quantile": -0.1}, r"router_quantile=-0\.1"),
        ({"eps": -1.0}, r"^eps=-1\.0"),
        ({"gap_eps": float("nan")}, "gap_eps=nan"),
        ({"entropy_eps": float("inf")}, "entropy_eps=inf"),
        ({"gap_clip": 0.0}, r"gap_clip=0\.0"),
        ({"swapped_arm": "both"}, "swapped_arm='both': must be one of low, high, or null for neither"),
        ({"swapped_arm": "low", "direction": "constant"}, "null with direction=constant, which has no arms"),
        ({"swapped_arm": "high", "router": "learned"}, "with router=learned"),
        ({"gate_threshold": -1.0}, r"gate_threshold=-1\.0"),
        ({"router": "external"}, "needs router_signal"),
        ({"router_signal": torch.ones(1, 3)}, "router_signal is only used by"),
        ({"router": "external", "router_signal": torch.ones(1, 2)}, r"router_signal has shape \(1, 2\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        direction_coefficient(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3), **options)


def test_wrong_signals_are_refused():
    with pytest.raises(ValueError, match="needs entropy"):
        direction_coefficient(None, torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"entropy has shape \(3, 1\)"):
        direction_coefficient(torch.ones(3, 1), torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"log_prob_gap has shape \(1, 4\)"):
        direction_coefficient(torch.ones(1, 3), torch.ones(1, 4), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"token_ids range over \[0, 7\] but token_counts covers 5"):
        inverse_frequency_signal(torch.tensor([[7, 0]]), torch.ones(1, 2), torch.ones(5))
    with pytest.raises(ValueError, match="token_counts must have shape"):
        inverse_frequency_signal(torch.tensor([[7, 0]]), torch.ones(1, 2), torch.ones(5, 1))
