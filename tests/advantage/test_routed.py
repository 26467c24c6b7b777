"""SDPO, SRPO and EOPD in the driver: routes and weights by hand, and at the limits that tie them to others."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advantage.estimators import get_estimator
from advantage.signals import MissingSignalError
from advantage.token_weights import TOKEN_WEIGHTS, weigh_tokens
from tests.builders import signals
from tests.builders.signals import run

make_inputs = partial(signals.make_inputs, holes=True)
EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True)
NAMES = ("taught", "srpo", "eopd")


def drawn(seed: int = 0, **changes):
    """Inputs with a teacher of random entropies for about half of the responses."""
    generator = torch.Generator().manual_seed(seed + 99)
    values = {
        "teacher_entropy": 3 * torch.rand(4, 12, generator=generator),
        "has_teacher": torch.rand(4, generator=generator) > 0.5,
    }
    return make_inputs(seed, **{**values, **changes})


def weights(name, inputs, **params):
    """The factors of the tokens' divergences and their metrics."""
    weight = TOKEN_WEIGHTS[name]
    return weigh_tokens(
        weight,
        weight.params_from({weight.node: params}),
        inputs,
        response_mask=inputs.response_mask,
        equal_reward_rows=inputs.equal_reward_rows,
    )


def by_hand(**changes):
    """Two responses of three tokens, the second with a teacher."""
    return make_inputs(
        rows=2,
        width=3,
        response_mask=torch.tensor([[True] * 3, [True, True, False]]),
        group_advantage=torch.tensor([[1.0], [-1.0]]) * torch.tensor([[1, 1, 1], [1, 1, 0]]),
        teacher_entropy=torch.tensor([[9.0, 9.0, 9.0], [0.0, math.log(3), 9.0]]),
        has_teacher=torch.tensor([False, True]),
        **changes,
    )


def test_srpo_by_hand():
    """exp(−H) is 1 and 1/3, of mean 2/3; the response with a teacher has no advantage, the other keeps its own."""
    found, metrics = weights("srpo", by_hand())
    torch.testing.assert_close(found, torch.tensor([[0.0] * 3, [1.5, 0.5, 0.0]]))
    assert metrics["divergence/weight/mean"] == pytest.approx(2 / 5)
    credit = run("srpo", by_hand())
    assert credit.advantages.tolist() == [[1.0] * 3, [0.0] * 3]
    assert credit.metrics["credit/distilled_share"] == pytest.approx(2 / 5)
    assert credit.tokens["distilled"].tolist() == [[0.0] * 3, [1.0, 1.0, 0.0]]


def test_the_mean_over_taught_tokens_by_hand():
    """Under the mean over all 5 tokens a factor of 5/2 is the mean over the 2 that are taught."""
    assert weights("taught", by_hand())[0].tolist() == [[0.0] * 3, [2.5, 2.5, 0.0]]


def test_the_gate_is_on_the_teachers_entropy_and_strict():
    inputs = by_hand(entropy=torch.zeros(2, 3))
    assert weights("eopd", inputs)[0].tolist() == [[0.0] * 3, [0.0, 1.0, 0.0]]  # 1.099 is above 0.8, 0 is not
    assert weights("eopd", inputs, entropy_threshold=0.0)[0].tolist() == [[0.0] * 3, [0.0, 1.0, 0.0]]


@EXAMPLES
@given(st.integers(0, 10_000))
def test_the_gates_ends(seed):
    inputs = drawn(seed, has_teacher=None)
    assert torch.equal(weights("eopd", inputs, entropy_threshold=-1.0)[0], inputs.response_mask.float())
    assert not weights("eopd", inputs, entropy_threshold=math.inf)[0].any()


@EXAMPLES
@given(st.integers(0, 10_000), st.floats(0, 5))
def test_srpos_weights_have_mean_one_over_what_is_distilled_and_fall_with_the_entropy(seed, sharpness):
    inputs = drawn(seed)
    found, _ = weights("srpo", inputs, entropy_sharpness=sharpness)
    distilled = inputs.taught(inputs.response_mask)
    assert not found[~distilled].any() and (found[distilled] > 0).all()
    if distilled.any():
        assert found[distilled].double().mean().item() == pytest.approx(1.0, rel=1e-5)
    order = inputs.teacher_entropy[distilled].argsort()
    assert (found[distilled][order].diff() <= 1e-6).all()


@EXAMPLES
@given(st.integers(0, 10_000))
def test_srpo_ends_at_grpo_and_at_sdpo(seed):
    """All accepted: A_G, no divergence. None accepted, a teacher for each, uniform: no advantage, SDPO's factors."""
    inputs = drawn(seed, has_teacher=torch.zeros(4, dtype=torch.bool))
    assert torch.equal(run("srpo", inputs).advantages, inputs.group_advantage)
    assert not weights("srpo", inputs)[0].any()
    inputs = drawn(seed, has_teacher=torch.ones(4, dtype=torch.bool))
    assert not run("srpo", inputs).advantages.any()
    uniform, _ = weights("srpo", inputs, entropy_sharpness=0.0)
    assert torch.equal(uniform, weights("taught", inputs)[0])
    assert torch.equal(uniform, inputs.response_mask.float())


@EXAMPLES
@given(st.integers(0, 10_000))
def test_a_token_is_trained_by_one_of_srpos_terms(seed):
    """Neither both nor, where the group advantage says something, none."""
    inputs = drawn(seed)
    credit, factors = run("srpo", inputs).advantages, weights("srpo", inputs)[0]
    assert not ((credit != 0) & (factors != 0)).any()
    assert ((credit != 0) | (factors != 0) | (inputs.group_advantage == 0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_responses_without_a_teacher_do_not_matter(name):
    inputs = drawn(1)
    clean = weights(name, inputs)
    taught = inputs.taught(inputs.response_mask)
    dirty = replace(inputs, teacher_entropy=torch.where(taught, inputs.teacher_entropy, float("nan")))
    found = weights(name, dirty)
    assert torch.equal(found[0], clean[0]) and found[1] == clean[1]
    assert not found[0][~taught].any()


@pytest.mark.parametrize("name", NAMES)
def test_batches_without_a_token_or_a_teacher(name):
    nothing = drawn(response_mask=torch.zeros(4, 12, dtype=torch.bool), group_advantage=torch.zeros(4, 12))
    untaught = drawn(has_teacher=torch.zeros(4, dtype=torch.bool))
    for inputs in (nothing, untaught):
        found, metrics = weights(name, inputs)
        assert not found.any() and all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize("name", ["srpo", "eopd"])
def test_signals_that_are_missing_or_broken_stop_the_step(name):
    with pytest.raises(MissingSignalError, match="teacher_entropy"):
        weights(name, drawn(teacher_entropy=None))
    broken = torch.full((4, 12), float("nan"))
    with pytest.raises(ValueError, match="teacher_entropy is not finite"):
        weights(name, drawn(teacher_entropy=broken, has_teacher=torch.ones(4, dtype=torch.bool)))


def test_srpo_without_a_route_is_no_method():
    with pytest.raises(MissingSignalError, match="has_teacher"):
        run("srpo", drawn(has_teacher=None))
    assert get_estimator("srpo").uses_group


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("srpo", {"entropy_sharpness": -1.0}, "algorithm.srpo.entropy_sharpness=-1.0: must be finite, 0 or more"),
        ("srpo", {"entropy_sharpness": math.inf}, "algorithm.srpo.entropy_sharpness=inf"),
        ("eopd", {"entropy_threshold": -math.inf}, "algorithm.eopd.entropy_threshold=-inf"),
        ("eopd", {"entropy_threshold": "high"}, "algorithm.eopd.entropy_threshold='high': must be a number"),
        ("taught", {"share": 1.0}, "algorithm.taught.share=1.0: no such parameter"),
    ],
)
def test_wrong_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        weights(name, drawn(), **params)
