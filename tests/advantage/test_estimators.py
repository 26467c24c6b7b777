"""The composition rule, parameters from a config, signals and metrics: all without verl."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import advantage
from advantage.dasd import DasdParams, direction_coefficient
from advantage.estimators import (
    ESTIMATORS,
    Credit,
    CreditInputs,
    EstimatorParams,
    MissingSignalError,
    correction_warning,
    equal_reward_rows,
    estimator,
    load_params,
    params_from_config,
    required_signals,
)
from advantage.pw_opsd import position_weight
from tests.builders.signals import make_inputs, run

EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True)
ADDITIVE = ("dasd", "pw_opsd_sampled", "atesd_sampled")


# ---------------------------------------------------------------- the formulas


@EXAMPLES
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 1.0]))
def test_each_estimator_is_its_formula(seed, beta):
    inputs = make_inputs(seed)
    anchor, mask, gap = inputs.group_advantage, inputs.response_mask, inputs.log_prob_gap * inputs.response_mask
    omega, normalized = direction_coefficient(inputs.entropy, inputs.log_prob_gap, mask, gap_eps=1.0, entropy_eps=0.1)
    for name, field, floor in (
        ("dasd", omega * normalized, {"gap_eps": 1.0}),
        ("pw_opsd_sampled", position_weight(mask) * gap, {}),
        ("atesd_sampled", gap, {}),
    ):
        got = run(name, inputs, beta=beta, **floor).advantages
        torch.testing.assert_close(got, anchor + beta * field, rtol=1e-6, atol=1e-7)
        assert got.dtype == torch.float32 and not got[~mask].any()


@pytest.mark.parametrize("name", ADDITIVE)
def test_beta_zero_is_the_group_advantage(name):
    inputs = make_inputs(3)
    assert torch.equal(run(name, inputs, beta=0.0).advantages, inputs.group_advantage)


def test_constant_directions_are_uniform_attraction_and_repulsion():
    inputs = make_inputs(5, entropy=None)
    _, normalized = direction_coefficient(
        None, inputs.log_prob_gap, inputs.response_mask, gap_eps=1.0, direction="constant"
    )
    for constant in (1, -1):
        got = run("dasd", inputs, direction="constant", constant=constant, beta=0.5, gap_eps=1.0).advantages
        assert torch.equal(got, inputs.group_advantage + 0.5 * constant * normalized)


@pytest.mark.parametrize(
    "options",
    [
        {"gap_clip": 0.5},
        {"deviation": "median"},
        {"gate": "fixed", "gate_threshold": 1.1},
        {"router_quantile": 0.7},
        {"direction": "linear"},
        {"gate": "magnitude"},
        {"gap_eps": 0.01, "entropy_eps": 3.0},
    ],
)
def test_every_dasd_option_reaches_the_formula(options):
    inputs = make_inputs(11, rows=6, width=40)
    floors = {"gap_eps": 1.0, "entropy_eps": 0.1}
    omega, normalized = direction_coefficient(
        inputs.entropy, inputs.log_prob_gap, inputs.response_mask, **{**floors, **options}
    )
    got = run("dasd", inputs, beta=1.0, **{"gap_eps": 1.0, **options}).advantages
    assert torch.equal(got, omega * normalized + inputs.group_advantage)
    assert not torch.equal(got, run("dasd", inputs, beta=1.0, gap_eps=1.0).advantages)


def test_uniform_schedule_without_a_mask_is_atesd():
    inputs = make_inputs(8)
    wanted = run("atesd_sampled", inputs, beta=0.3).advantages
    assert torch.equal(run("pw_opsd_sampled", inputs, beta=0.3, schedule="uniform").advantages, wanted)


@pytest.mark.parametrize("name", ADDITIVE)
def test_groups_of_equal_reward_keep_their_group_advantage(name):
    silenced = torch.tensor([True, False, True, False])
    inputs = make_inputs(7, equal_reward_rows=silenced)
    free = run(name, inputs, beta=0.5, mask_zero_variance_groups=False)
    held = run(name, inputs, beta=0.5)
    assert torch.equal(held.advantages[silenced], inputs.group_advantage[silenced])
    assert torch.equal(held.advantages[~silenced], free.advantages[~silenced])
    assert not torch.equal(free.advantages[silenced], inputs.group_advantage[silenced])
    mask = inputs.response_mask
    share = float(mask[silenced].sum() / mask.sum())
    assert held.metrics["credit/correction/masked_share"] == pytest.approx(share)
    assert free.metrics["credit/correction/masked_share"] == 0.0


@pytest.mark.parametrize("name", ADDITIVE)
def test_inputs_are_not_written_to(name):
    inputs = make_inputs(9)
    before = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    before = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    run(name, inputs)
    for key, value in before.items():
        assert torch.equal(getattr(inputs, key), value), key


def test_equal_reward_groups():
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    labels = ["a", "a", "b", "b", "alone", 7, 7]
    assert equal_reward_rows(scores, labels).tolist() == [False, False, True, True, False, True, True]


# ---------------------------------------------------------------- metrics


def test_metrics_by_hand():
    # One row of four tokens at H = 0 1 2 3 with rho = 0: tau = 0, so omega <= 0; hard direction, no gate.
    inputs = CreditInputs(
        group_advantage=torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]),
        response_mask=torch.tensor([[True] * 4, [False] * 4]),
        scores=torch.tensor([1.0, 0.0]),
        equal_reward_rows=torch.tensor([False, False]),
        entropy=torch.tensor([[0.0, 1.0, 2.0, 3.0], [9.0] * 4]),
        log_prob_gap=torch.tensor([[1.0, -1.0, 3.0, -5.0], [9.0] * 4]),
    )
    options = {"router_quantile": 0.4, "direction": "hard", "gate": "none", "gap_eps": 2.0, "beta": 0.5}
    credit = run("dasd", inputs, **options)
    # median |delta| = 2, so delta-bar = delta / 4; tau = 1.2, so omega = + + - -; correction = omega delta / 8.
    assert credit.advantages[0].tolist() == pytest.approx([0.625, 0.375, 0.125, 1.125])
    metrics = credit.metrics
    assert metrics["credit/gap_normalized/mean"] == pytest.approx(10 / 16)
    assert metrics["credit/gap_normalized/p99"] == pytest.approx(0.75 + 0.97 * 0.5)
    assert metrics["credit/gap_scale/mean"] == pytest.approx(2.0)
    assert metrics["credit/gap_scale/below_eps_share"] == 0.0
    assert metrics["credit/omega/mean"] == 0.0
    assert metrics["credit/omega/positive_share"] == 0.5
    assert metrics["credit/correction/mean"] == pytest.approx(10 / 32)
    assert metrics["credit/correction/p99"] == pytest.approx(0.5 * (0.75 + 0.97 * 0.5))
    assert metrics["credit/correction/masked_share"] == 0.0
    assert metrics["credit/group_advantage/mean"] == 0.5
    assert metrics["credit/correction_ratio"] == pytest.approx(10 / 16)
    assert metrics["credit/correction_ratio_undefined"] == 0.0
    assert run("dasd", inputs, **{**options, "gap_eps": 2.5}).metrics["credit/gap_scale/below_eps_share"] == 1.0


def test_tokens_without_a_direction_are_not_counted_as_attracted():
    flat = make_inputs(0, entropy=torch.full((4, 12), 0.5))
    assert run("dasd", flat).metrics["credit/omega/positive_share"] == 0.0


@pytest.mark.parametrize("name", ADDITIVE)
def test_metric_keys_do_not_depend_on_the_data(name):
    empty = make_inputs(0, response_mask=torch.zeros(4, 12, dtype=torch.bool), group_advantage=torch.zeros(4, 12))
    usual = run(name, make_inputs(0)).metrics
    nothing = run(name, empty).metrics
    assert usual.keys() == nothing.keys()
    assert all(key.startswith("credit/") and isinstance(value, float) for key, value in usual.items())
    assert {value for key, value in nothing.items() if key != "credit/target_ratio"} <= {0.0, 1.0}


def test_ratio_is_finite_when_all_groups_are_equal():
    metrics = run("atesd_sampled", make_inputs(0, group_advantage=torch.zeros(4, 12))).metrics
    assert metrics["credit/correction_ratio"] == 0.0 and metrics["credit/correction_ratio_undefined"] == 1.0
    assert metrics["credit/correction/mean"] > 0


def test_warning_when_the_correction_drowns_the_verifier():
    assert correction_warning({"credit/correction_ratio": 5.0}) is None
    assert correction_warning({}) is None
    assert "credit/correction_ratio=390" in correction_warning({"credit/correction_ratio": 390.0})


def test_the_literal_epsilon_explodes_where_most_gaps_are_tiny():
    """Why gap_eps is not 1e-6: certain tokens bring the median gap to about zero, and the rest is divided by it."""
    gap = torch.full((1, 99), 1e-7)
    gap[0, 50] = -2.0
    inputs = make_inputs(0, 1, 99, response_mask=torch.ones(1, 99, dtype=torch.bool), log_prob_gap=gap)
    inputs = dataclasses.replace(inputs, group_advantage=torch.ones(1, 99))
    literal = run("dasd", inputs, beta=0.1, gap_eps=1e-6, entropy_eps=1e-6, direction="constant").metrics
    assert literal["credit/correction_ratio"] > 1000 and correction_warning(literal)
    floor = run("dasd", inputs, beta=0.1, gap_eps=1.0, direction="constant").metrics
    assert floor["credit/correction_ratio"] < 0.01
    aimed = run("dasd", inputs, direction="constant").metrics  # the default has no such cliff
    assert aimed["credit/correction_ratio"] == pytest.approx(0.005, rel=1e-5)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("algorithm", [None, {}, {"gamma": 1.0}, OmegaConf.create({"gamma": 1.0})])
def test_defaults_come_from_the_dataclass(name, algorithm):
    assert params_from_config(name, algorithm) == ESTIMATORS[name].params()


def test_every_kind_of_node_is_accepted():
    wanted = DasdParams(beta=0.5, router_quantile=1.0, gap_clip=None, mask_zero_variance_groups=False)
    values = {"beta": 0.5, "router_quantile": 1, "gap_clip": None, "mask_zero_variance_groups": False}
    struct = OmegaConf.create({"dasd": {**values, "beta": "${half}"}, "half": 0.5})
    OmegaConf.set_struct(struct, True)
    for algorithm in ({"dasd": values}, struct, {"dasd": wanted}):
        got = params_from_config("dasd", algorithm)
        assert got == wanted and isinstance(got.router_quantile, float)
    assert params_from_config("pw_opsd_sampled", struct) == ESTIMATORS["pw_opsd_sampled"].params()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"betta": 1}, r"algorithm\.dasd\.betta=1: no such parameter; did you mean 'beta'\? There are: beta, "),
        ({"zzz": 1}, r"algorithm\.dasd\.zzz=1: no such parameter\. There are: beta, "),
        ({"beta": -1}, r"algorithm\.dasd\.beta=-1\.0: must be finite, 0 or more"),
        ({"beta": float("inf")}, r"algorithm\.dasd\.beta=inf"),
        ({"beta": float("nan")}, r"algorithm\.dasd\.beta=nan: must be a number"),
        ({"beta": True}, r"algorithm\.dasd\.beta=True: must be a number"),
        ({"beta": None, "target_ratio": None}, r"algorithm\.dasd\.beta=None: must be a number where target_ratio is"),
        (
            {"beta": 0.1, "target_ratio": 0.03},
            r"target_ratio=0\.03: must be left alone with beta=0\.1, .* set beta=null",
        ),
        ({"gap_eps": 1.0, "gap_eps_share": 0.2}, r"gap_eps_share=0\.2: must be left alone with gap_eps=1\.0, "),
        ({"gap_eps": "1e-6"}, r"algorithm\.dasd\.gap_eps='1e-6': must be a number or null; YAML reads 1e-6 as text"),
        ({"gap_eps": 0.0}, r"algorithm\.dasd\.gap_eps=0\.0: must be positive"),
        ({"gap_clip": "off"}, r"algorithm\.dasd\.gap_clip='off': must be a number or null"),
        ({"mask_zero_variance_groups": 1}, r"mask_zero_variance_groups=1: must be true or false"),
        ({"router": 3}, r"algorithm\.dasd\.router=3: must be a word"),
        ({"router": "attention"}, r"algorithm\.dasd\.router='attention': must be one of entropy, "),
        ({"router_quantile": 20}, r"algorithm\.dasd\.router_quantile=20\.0: must be in \[0, 1\]"),
        (0.1, r"algorithm\.dasd=0\.1: must be a mapping of beta, "),
    ],
)
def test_wrong_parameters_are_refused_with_value_rule_and_fix(node, message):
    with pytest.raises(ValueError, match=message):
        params_from_config("dasd", {"dasd": node})


def test_unknown_estimator_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown advantage estimator 'dads': must be one of .*dasd"):
        params_from_config("dads", None)


def test_required_signals_follow_the_parameters():
    assert required_signals("dasd") == ("log_prob_gap", "entropy")
    assert required_signals("dasd", {"dasd": {"router": "position"}}) == ("log_prob_gap",)
    assert required_signals("dasd", {"dasd": {"direction": "constant"}}) == ("log_prob_gap",)
    assert required_signals("dasd", {"dasd": {"router": "token_frequency"}})[1:] == ("token_ids", "token_counts")
    assert required_signals("pw_opsd_sampled") == ("log_prob_gap",)


@pytest.mark.parametrize("name", ADDITIVE)
def test_missing_signals_are_named_with_the_call_that_supplies_them(name):
    inputs = make_inputs(0, entropy=None, log_prob_gap=None)
    with pytest.raises(MissingSignalError) as caught:
        run(name, inputs)
    text = str(caught.value)
    assert "log_prob_gap" in text and "with advantage.token_signals(log_prob_gap=..." in text
    assert f"compute_advantage(data, adv_estimator='{name}', config=config.algorithm)" in text
    assert ("entropy" in text) == (name == "dasd")


def test_token_frequency_and_external_routers_reach_the_estimator():
    ids, counts = torch.randint(0, 5, (4, 12)), torch.tensor([50, 20, 5, 1, 0])
    inputs = make_inputs(1, entropy=None, token_ids=ids, token_counts=counts)
    by_counts = run("dasd", inputs, router="token_frequency").advantages
    signal = advantage.dasd.inverse_frequency_signal(ids, inputs.response_mask, counts)
    external = dataclasses.replace(inputs, router_signal=signal, token_ids=None, token_counts=None)
    assert torch.equal(run("dasd", external, router="external").advantages, by_counts)
    position = advantage.dasd.position_signal(inputs.response_mask)
    by_position = run("dasd", make_inputs(1, entropy=None), router="position").advantages
    assert torch.equal(run("dasd", make_inputs(1, router_signal=position), router="external").advantages, by_position)


@pytest.mark.parametrize("name", ["gradient_norm", "attention_entropy"])
def test_measured_routers_read_the_signal_of_their_name(name):
    signal = torch.rand(4, 12, generator=torch.Generator().manual_seed(3))
    inputs = make_inputs(1, entropy=None, **{name: signal})
    external = dataclasses.replace(inputs, **{name: None}, router_signal=signal)
    by_name = run("dasd", inputs, router=name).advantages
    assert torch.equal(by_name, run("dasd", external, router="external").advantages)
    assert not torch.equal(by_name, run("dasd", make_inputs(1)).advantages)
    assert advantage.required_signals("dasd", {"dasd": {"router": name}}) == ("log_prob_gap", name)
    assert advantage.required_signals("dasd", {"dasd": {"router": name, "direction": "constant"}}) == ("log_prob_gap",)
    with pytest.raises(ValueError, match=name):
        run("dasd", make_inputs(1), router=name)
    broken = signal.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(advantage.NonFiniteSignalError):
        run("dasd", dataclasses.replace(inputs, **{name: broken}), router=name)


def test_non_finite_values_never_leave_an_estimator():
    inputs = make_inputs(0)
    gap = inputs.log_prob_gap.clone()
    gap[2, 0] = float("nan")
    for name in ADDITIVE:
        with pytest.raises(advantage.NonFiniteSignalError, match="log_prob_gap is not finite on 1 of"):
            run(name, dataclasses.replace(inputs, log_prob_gap=gap))
    anchor = inputs.group_advantage.clone()
    anchor[1] = float("inf")
    with pytest.raises(advantage.NonFiniteSignalError, match="group advantage A_G is not finite"):
        run("atesd_sampled", dataclasses.replace(inputs, group_advantage=anchor))
    huge = torch.full_like(gap, 3e38)
    with pytest.raises(advantage.NonFiniteSignalError, match="the advantage of atesd"):
        run("atesd_sampled", dataclasses.replace(inputs, log_prob_gap=huge), beta=1e3)


def test_adding_an_estimator_is_one_function_and_one_dataclass(monkeypatch):
    monkeypatch.setattr("advantage.estimators.ESTIMATORS", dict(ESTIMATORS))

    @dataclasses.dataclass(frozen=True)
    class Params(EstimatorParams):
        factor: float = 2.0

    @estimator("doubled", params=Params, needs=("entropy",))
    def doubled(inputs: CreditInputs, params: Params) -> Credit:
        return Credit(inputs.group_advantage * params.factor, {"credit/factor": params.factor})

    inputs = make_inputs(0)
    credit = run("doubled", inputs, factor=3)
    assert torch.equal(credit.advantages, inputs.group_advantage * 3) and credit.metrics == {"credit/factor": 3.0}
    with pytest.raises(MissingSignalError, match="entropy"):
        run("doubled", dataclasses.replace(inputs, entropy=None))
    assert load_params(Params, None, where="here") == Params()


# ---------------------------------------------------------------- the hand-over of signals


def test_signals_hold_within_their_block_only():
    assert advantage.current_signals() is None
    with advantage.token_signals(step=1) as outer:
        with advantage.token_signals(step=2):
            assert advantage.current_signals().step == 2
        assert advantage.current_signals() is outer
    with pytest.raises(RuntimeError), advantage.token_signals(step=3):
        raise RuntimeError
    assert advantage.current_signals() is None


def test_threads_and_tasks_each_see_their_own_signals():
    seen = {}
    barrier = threading.Barrier(2)

    def work(step):
        with advantage.token_signals(step=step):
            barrier.wait(10)
            seen[step] = advantage.current_signals().step
            barrier.wait(10)

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: 1, 2: 2}

    async def task(step):
        with advantage.token_signals(step=step):
            await asyncio.sleep(0.01)
            return advantage.current_signals().step, await asyncio.to_thread(lambda: advantage.current_signals().step)

    async def both():
        return await asyncio.gather(task(3), task(4))

    assert asyncio.run(both()) == [(3, 3), (4, 4)]


def test_signals_of_another_shape_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with advantage.token_signals(entropy=torch.ones(2, 3), log_prob_gap=torch.ones(2, 4)) as signals:
        with pytest.raises(ValueError, match=r"token_signals\(log_prob_gap=\.\.\.\) has shape \(2, 4\) .* \(2, 3\)"):
            signals.checked(mask)


def test_importing_the_package_does_not_import_verl():
    code = "import sys, advantage; assert not [m for m in sys.modules if m.split('.')[0] in ('verl', 'ray')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_names_every_estimator_parameter_and_default():
    text = (Path(advantage.__file__).parent / "README.md").read_text()
    for name, chosen in ESTIMATORS.items():
        assert f"| `{name}` |" in text
        for field in dataclasses.fields(chosen.params):
            assert f"`{field.name}`" in text, f"{name}.{field.name}"
    assert "| `dasd`; `pw_opsd_sampled`, `atesd_sampled` | `beta` | null; 0.1 |" in text
    assert "| | `target_ratio` | 0.005; null |" in text
    assert "| | `gap_eps`, `gap_eps_share` | null, 0.1 |" in text and "| | `entropy_eps` | 0.1 |" in text
    defaults = DasdParams()
    assert (defaults.beta, defaults.target_ratio, defaults.gap_eps_share, defaults.entropy_eps) == (
        None,
        0.005,
        0.1,
        0.1,
    )
    assert defaults.mask_zero_variance_groups and "| | `mask_zero_variance_groups` | true |" in text
