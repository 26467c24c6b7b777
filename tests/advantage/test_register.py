"""The estimators inside verl: its own call path, its registry and its plugin entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import advantage
from advantage.dasd import direction_coefficient
from advantage.pw_opsd import position_weight

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")

from verl import DataProto  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories  # noqa: E402

import advantage.register  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ADDITIVE = ("dasd", "pw_opsd_sampled", "atesd_sampled")


def make_batch(seed=0, groups=3, size=4, width=10):
    """A DataProto as verl's trainers build it: reward on each response's last token, interleaved groups."""
    generator = torch.Generator().manual_seed(seed)
    rows = groups * size
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = (torch.arange(width) < lengths.unsqueeze(-1)).long()
    rewards = torch.zeros(rows, width)
    rewards[torch.arange(rows), lengths - 1] = torch.randint(0, 2, (rows,), generator=generator).float()
    uid = np.array([f"prompt-{row % groups}" for row in range(rows)], dtype=object)
    rewards[uid == "prompt-0"] = 0.0  # a group whose rewards are all equal
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask}, non_tensors={"uid": uid}
    )
    entropy = torch.rand(rows, width, generator=generator)
    return data, entropy, torch.randn(rows, width, generator=generator)


def config(name, **params):
    values = {"adv_estimator": name, "norm_adv_by_std_in_grpo": True, "gamma": 1.0, name: params}
    node = OmegaConf.create(values)
    OmegaConf.set_struct(node, True)
    return node


def grpo(data, by_std=True):
    result = compute_advantage(data, adv_estimator=core_algos.AdvantageEstimator.GRPO, norm_adv_by_std_in_grpo=by_std)
    return result.batch["advantages"].clone()


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("by_std", [True, False])
def test_beta_zero_is_verls_grpo_bit_for_bit(name, by_std):
    data, entropy, gap = make_batch()
    wanted = grpo(data, by_std)
    assert wanted.any()
    node = config(name, beta=0.0)
    node.norm_adv_by_std_in_grpo = by_std
    with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
        data = compute_advantage(data, adv_estimator=name, config=node)
    assert torch.equal(data.batch["advantages"], wanted) and torch.equal(data.batch["returns"], wanted)


def test_the_formulas_through_verls_call():
    data, entropy, gap = make_batch(1)
    anchor, mask = grpo(data), data.batch["response_mask"]
    silenced = torch.from_numpy(data.non_tensor_batch["uid"] == "prompt-0")
    assert not anchor[silenced].any()
    omega, normalized = direction_coefficient(entropy, gap, mask, gap_eps=1.0, entropy_eps=0.1)
    fields = {"dasd": omega * normalized, "pw_opsd_sampled": position_weight(mask) * gap, "atesd_sampled": gap * mask}
    for name, field in fields.items():
        floor = {"gap_eps": 1.0} if name == "dasd" else {}
        with advantage.token_signals(entropy=entropy, log_prob_gap=gap) as signals:
            got = compute_advantage(data, adv_estimator=name, config=config(name, beta=0.5, **floor)).batch[
                "advantages"
            ]
        torch.testing.assert_close(got[~silenced], (anchor + 0.5 * field)[~silenced], rtol=1e-6, atol=1e-7)
        assert not got[silenced].any()
        assert signals.diagnostics["credit/correction/masked_share"] == pytest.approx(
            float(mask[silenced].sum() / mask.sum())
        )


def test_the_v1_trainers_call():
    data, entropy, gap = make_batch(2)
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(data.non_tensor_batch["uid"])]
    with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
        by_v1 = compute_advantage_for_multi_trajectories(
            data, batch_keys=keys, adv_estimator="dasd", config=config("dasd")
        ).batch["advantages"]
        by_legacy = compute_advantage(data, adv_estimator="dasd", config=config("dasd")).batch["advantages"]
    assert torch.equal(by_v1, by_legacy)


def test_defaults_without_a_config_and_with_verls_dataclass():
    data, entropy, gap = make_batch(3)
    from verl.trainer.config import AlgoConfig

    results = []
    for node in (None, AlgoConfig(adv_estimator="dasd"), {}, config("dasd")):
        with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
            results.append(compute_advantage(data, adv_estimator="dasd", config=node).batch["advantages"].clone())
    assert all(torch.equal(result, results[0]) for result in results)


def test_padding_content_does_not_matter_through_verls_call():
    data, entropy, gap = make_batch(4)
    outside = data.batch["response_mask"] == 0
    results = []
    for garbage in (0.0, float("nan"), 1e30):
        with advantage.token_signals(
            entropy=torch.where(outside, garbage, entropy), log_prob_gap=torch.where(outside, garbage, gap)
        ):
            results.append(compute_advantage(data, adv_estimator="dasd", config=None).batch["advantages"].clone())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_rewards_are_not_changed():
    data, entropy, gap = make_batch(5)
    before = data.batch["token_level_rewards"].clone()
    with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
        compute_advantage(data, adv_estimator="dasd", config=None)
    assert torch.equal(data.batch["token_level_rewards"], before)


def test_a_call_without_signals_says_what_to_write():
    data, _, gap = make_batch()
    with pytest.raises(advantage.MissingSignalError, match=r"(?s)log_prob_gap, entropy are missing.*token_signals\("):
        compute_advantage(data, adv_estimator="dasd", config=None)
    with (
        pytest.raises(advantage.MissingSignalError, match=r"entropy is missing"),
        advantage.token_signals(log_prob_gap=gap),
    ):
        compute_advantage(data, adv_estimator="dasd", config=None)


def test_wrong_calls_are_refused():
    data, entropy, gap = make_batch()
    estimate = core_algos.get_adv_estimator_fn("dasd")
    tensors = {k: data.batch[k] for k in ("token_level_rewards", "response_mask")}
    with pytest.raises(ValueError, match="needs their group labels: put `uid`"):
        estimate(**tensors, config=None)
    with pytest.raises(ValueError, match="index has 2 group labels for 12 responses"):
        estimate(**tensors, config=None, index=["a", "b"])
    with advantage.token_signals(entropy=entropy[:, :-1], log_prob_gap=gap):
        with pytest.raises(ValueError, match=r"token_signals\(entropy=\.\.\.\) has shape \(12, 9\)"):
            compute_advantage(data, adv_estimator="dasd", config=None)
    with pytest.raises(ValueError, match=r"algorithm\.dasd\.bta=1: no such parameter; did you mean 'beta'"):
        compute_advantage(data, adv_estimator="dasd", config={"dasd": {"bta": 1}})
    data.batch["token_level_rewards"][5, 0] = float("nan")
    with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
        with pytest.raises(advantage.NonFiniteSignalError, match="group advantage A_G is not finite"):
            compute_advantage(data, adv_estimator="dasd", config=None)


def test_group_labels_may_be_a_tensor_and_baselines_are_ignored():
    data, entropy, gap = make_batch(6)
    labels = torch.arange(12) % 3
    estimate = core_algos.get_adv_estimator_fn("dasd")
    tensors = {k: data.batch[k] for k in ("token_level_rewards", "response_mask")}
    with advantage.token_signals(entropy=entropy, log_prob_gap=gap):
        by_tensor, _ = estimate(**tensors, config=None, index=labels, reward_baselines=torch.zeros(12))
        by_uid, _ = estimate(**tensors, config=None, index=data.non_tensor_batch["uid"])
    assert torch.equal(by_tensor, by_uid)


def test_a_drowned_verifier_is_logged(caplog):
    data, entropy, _ = make_batch(7)
    with advantage.token_signals(entropy=entropy, log_prob_gap=torch.full_like(entropy, 500.0)):
        compute_advantage(data, adv_estimator="atesd_sampled", config=None)
    assert "lower target_ratio or beta" in caplog.text


def test_registering_again_is_harmless_and_foreign_names_are_not_taken(monkeypatch):
    before = dict(core_algos.ADV_ESTIMATOR_REGISTRY)
    advantage.register.register_all()
    import importlib

    importlib.reload(advantage.register)
    assert core_algos.ADV_ESTIMATOR_REGISTRY == before
    monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, "dasd", lambda **kwargs: None)
    with pytest.raises(ValueError, match="dasd has already been registered"):
        advantage.register.register_all()


@pytest.mark.parametrize("first", ["import verl", "import advantage.register"])
def test_the_plugin_entry_point_registers_while_verl_is_being_imported(tmp_path, first):
    """A real entry point, found through installed metadata; verl is then only half imported."""
    info = tmp_path / "plugin_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\nself_distill_probe = advantage.register\n")
    code = f"""
        import logging, sys
        logging.basicConfig(level=logging.DEBUG)
        {first}
        assert "advantage.register" in sys.modules, "verl did not load the plugin"
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn
        for name in {ADDITIVE!r}:
            assert get_adv_estimator_fn(name).registered_by == "advantage"
        import advantage.register
    """
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "VERL_USE_EXTERNAL_PLUGINS": "self_distill_probe"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed to load plugin" not in done.stderr
