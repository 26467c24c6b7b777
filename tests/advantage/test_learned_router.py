"""A router that learns: it begins as the entropy router, climbs its agreement with the advantages, is remembered."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from advantage.dasd import DasdParams, direction_coefficient, routed_by_entropy
from advantage.estimators import params_from_config, run_estimator
from advantage.learned_router import (
    PREFIX,
    Routed,
    agreement,
    head_in,
    initial_head,
    router_shift,
    trained_head,
)
from tests.builders.signals import make_inputs, run

LEARNED = {"router": "learned", "gap_eps": 0.5, "beta": 0.02}


def routed(argument, gate, normalized, mask=None) -> Routed:
    values = [torch.tensor([row]) for row in (argument, gate, normalized)]
    return Routed(*values, torch.ones(1, len(argument), dtype=torch.bool) if mask is None else mask)


@pytest.mark.parametrize("gate", ["auto", "gap", "none", "magnitude", "fixed"])
@pytest.mark.parametrize("seed", range(5))
def test_it_begins_as_the_entropy_router_to_the_last_bit(seed, gate):
    inputs = make_inputs(seed, holes=True)
    learned, entropy = (
        run("dasd", inputs, gate=gate, **options) for options in (LEARNED, {**LEARNED, "router": "entropy"})
    )
    assert torch.equal(learned.advantages, entropy.advantages)
    assert torch.equal(learned.tokens["omega"], entropy.tokens["omega"])
    assert entropy.memory == {} and set(learned.memory) > set(initial_head())


def test_what_it_starts_from_are_the_parts_of_omega():
    inputs = make_inputs(3, holes=True)
    found = routed_by_entropy(inputs, inputs.response_mask, DasdParams(**LEARNED))
    omega, normalized = direction_coefficient(
        inputs.entropy, inputs.log_prob_gap, inputs.response_mask, gap_eps=0.5, entropy_eps=0.1
    )
    assert torch.equal(found.normalized, normalized)
    torch.testing.assert_close(torch.tanh(found.argument) * found.gate, omega)
    features = found.features()
    assert features.shape == (int(inputs.response_mask.sum()), 4) and (features.abs() <= 1).all()


def test_agreement_by_hand():
    # pulls gate * tanh(gap) * A_G: 0.5 tanh 1, -tanh 2, 0; directions tanh 1, tanh -1, tanh 3.
    found = agreement(
        initial_head(), routed([1.0, -1.0, 3.0], [0.5, 1.0, 1.0], [1.0, -2.0, 5.0]), torch.tensor([[1.0, 1.0, 0.0]])
    )
    pulls = (0.5 * math.tanh(1.0), -math.tanh(2.0))
    assert float(found) == pytest.approx((math.tanh(1) * pulls[0] + math.tanh(-1) * pulls[1]) / sum(map(abs, pulls)))
    assert float(found) == pytest.approx(math.tanh(1.0))  # both pulls go where the advantage points
    nothing = agreement(initial_head(), routed([1.0], [1.0], [1.0]), torch.zeros(1, 1))
    assert float(nothing) == 0.0


def learn(steps: int, advantage, batch: Routed, **options):
    head, seen = initial_head(), []
    for _ in range(steps):
        head, value = trained_head(head, batch, advantage, **{"learning_rate": 0.05, "decay": 0.0, **options})
        seen.append(value)
    return head, seen


def test_it_learns_what_the_verifier_rewards():
    """Tokens late in the response, whatever their entropy: the entropy router is at chance there, the head is not."""
    generator = torch.Generator().manual_seed(0)
    length = 400
    argument = torch.randn(1, length, generator=generator)
    normalized = torch.randn(1, length, generator=generator)
    late = torch.arange(length)[None] >= length // 2
    advantage = torch.where(late, 1.0, -1.0) * torch.sign(normalized)  # attraction is right late, repulsion early
    batch = Routed(argument, torch.ones(1, length), normalized, torch.ones(1, length, dtype=torch.bool))
    head, seen = learn(200, advantage, batch)
    assert abs(seen[0]) < 0.15 and seen[-1] > 0.8 and seen[50] > seen[0]
    shift = router_shift(head, batch)
    assert (shift[late] > 0).float().mean() > 0.95 and (shift[~late] < 0).float().mean() > 0.95


def test_the_gradient_is_the_one_of_the_agreement():
    batch, advantage = routed([0.3, -1.0], [1.0, 0.5], [1.0, 2.0]), torch.tensor([[1.0, -2.0]])
    head, _ = learn(3, advantage, batch)
    name = PREFIX + "output.bias"
    up, down = ({**head, name: head[name] + step} for step in (1e-5, -1e-5))
    slope = float(agreement(up, batch, advantage) - agreement(down, batch, advantage)) / 2e-5
    fresh = {name: head[name] for name in initial_head()}
    moved, _ = trained_head(fresh, batch, advantage, learning_rate=0.01, decay=0.0)
    # Adam's first step has the rate's size and the gradient's sign.
    assert float(moved[name] - head[name]) == pytest.approx(math.copysign(0.01, slope), rel=1e-3)


def test_decay_draws_it_back_to_the_entropy_router():
    batch, advantage = routed([0.3, -1.0], [1.0, 0.5], [1.0, 2.0]), torch.tensor([[1.0, -2.0]])
    free, held = (learn(40, advantage, batch, decay=decay)[0][PREFIX + "output.weight"].norm() for decay in (0.0, 5.0))
    assert held < 0.6 * free


def test_a_batch_without_rewards_teaches_nothing():
    batch = routed([0.3, -1.0], [1.0, 0.5], [1.0, 2.0])
    head, value = trained_head(initial_head(), batch, torch.zeros(1, 2), learning_rate=0.1, decay=0.1)
    assert value == 0.0 and all(torch.equal(head[name], initial_head()[name]) for name in initial_head())


def test_a_step_is_decided_before_it_is_learned_from_and_a_checkpoint_continues_it(tmp_path):
    params = params_from_config(
        "dasd", {"dasd": {**LEARNED, "router_learning_rate": 0.3, "beta": None, "target_ratio": 0.05}}
    )
    assert params.remembers
    through: dict[str, torch.Tensor] = {}
    resumed: dict[str, torch.Tensor] = {}
    decided = []
    for seed in range(4):
        inputs = make_inputs(seed, memory=through)
        whole = run_estimator("dasd", inputs, params)
        parted = run_estimator("dasd", make_inputs(seed, memory=resumed), params)
        assert torch.equal(whole.advantages, parted.advantages) and whole.metrics == parted.metrics
        shift = router_shift(head_in(through), routed_by_entropy(inputs, inputs.response_mask, params))
        decided.append(float(shift.abs().max()))
        through = whole.memory
        save_file(parted.memory, tmp_path / "memory.safetensors")
        resumed = load_file(tmp_path / "memory.safetensors")
    assert decided[0] == 0.0 and all(size > 0 for size in decided[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "hard"}, "direction='hard': must be tanh with router=learned"),
        ({"router_learning_rate": 0.0}, "router_learning_rate=0.0: must be positive"),
        ({"router_decay": -1.0}, "router_decay=-1.0"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        params_from_config("dasd", {"dasd": {**LEARNED, **options}})


def test_a_shift_belongs_to_the_learned_router():
    for options in ({"router": "learned"}, {"router": "entropy", "router_shift": torch.zeros(1, 3)}):
        with pytest.raises(ValueError, match="belongs to router='learned'"):
            direction_coefficient(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3), **options)
