"""The share that grows with the student's entropy: by hand, at its limits, and as the part of a mixture."""

from __future__ import annotations

import math

import pytest
import torch

from advantage.signals import MissingSignalError, Signals
from advantage.token_weights import TOKEN_WEIGHTS, forward_shares

MASK = torch.tensor([[True, True, True, True, True, False]])
ENTROPY = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 99.0]])  # median 2, mean absolute deviation 1.2


def shares(entropy=ENTROPY, mask=MASK, name="entropy", **params):
    weight = TOKEN_WEIGHTS[name]
    equal = torch.zeros(len(mask), dtype=torch.bool)
    return forward_shares(
        weight, weight.params(**params), Signals(entropy=entropy), response_mask=mask, equal_reward_rows=equal
    )


def test_by_hand():
    found, metrics = shares(entropy_eps=0.3)
    wanted = [1 / (1 + math.exp(-above / 1.5)) for above in (-2, -1, 0, 1, 2)]
    assert found[0].tolist() == pytest.approx([*wanted, 0.0], rel=1e-6)
    assert metrics == {"divergence/forward_share/mean": pytest.approx(0.5)}


def test_certain_is_the_complement_and_equal_entropies_are_a_half():
    found, other = shares()[0], shares(of="certain")[0]
    torch.testing.assert_close(found + other, MASK.float())
    assert torch.equal(shares(torch.ones(1, 6))[0], 0.5 * MASK.float())
    assert (shares(quantile=0.0)[0][MASK] >= 0.5).all() and (shares(quantile=1.0)[0][MASK] <= 0.5).all()


def test_positions_are_shares_too_and_signs_are_not():
    assert {name for name, weight in TOKEN_WEIGHTS.items() if weight.share} == {"position", "entropy"}
    found, _ = shares(None, name="position")
    assert ((found >= 0) & (found <= 1)).all() and (found[0, 1:5] > found[0, :4]).all()


def test_a_missing_entropy_is_named_and_bad_values_are_refused():
    with pytest.raises(MissingSignalError, match="'entropy' needs the signals entropy"):
        shares(None)
    weight = TOKEN_WEIGHTS["entropy"]
    for node in ({"quantile": 2.0}, {"entropy_eps": 0.0}, {"of": "both"}):
        with pytest.raises(ValueError, match=f"algorithm.entropy_share.{next(iter(node))}"):
            weight.params_from({"entropy_share": node})
