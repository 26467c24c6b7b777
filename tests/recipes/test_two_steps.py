"""Methods and contexts on the real stack: two steps on the embedded model each, as a user would start them."""

from __future__ import annotations

import math

import pytest

from tests.builders.processes import train

pytestmark = pytest.mark.slow

SHORT = ("trainer.total_training_steps=2", "trainer.save_freq=-1")
TOKEN_MEAN = "actor_rollout_ref.actor.loss_agg_mode=token-mean"
SIBLINGS = ("rlcsd", "sdpo", "srpo")  # a response may have nothing to show its teacher
# Entry, overrides, and what its records must hold beside what every step's do.
RUNS = {
    "hepo": ("hepo", [], ["credit/entropy_threshold"]),
    "rlsd_contrast": (
        "rlsd",
        ["method=rlsd_contrast", "self_distill.teacher.snapshot_every=1"],
        ["credit/weight/clipped_share", "teacher/contrasted/mean", "teacher/contrast_gap/abs_mean"],
    ),
    "reopold": ("reopold", ["algorithm.reopold.switch_step=1"], ["credit/kept_share"]),
    "rlcsd": ("rlcsd", ["trainer.n_gpus_per_node=2"], ["credit/kept_share", "teacher/contrasted/mean"]),
    "sdpo": (
        "sdpo",
        [],
        ["divergence/mean", "divergence/weight/mean", "divergence/importance_clipped", "teacher/without_context"],
    ),
    "srpo": (
        "srpo",
        [TOKEN_MEAN, "trainer.n_gpus_per_node=2", "self_distill.teacher.weights=trust_region"],
        ["divergence/mean", "credit/distilled_share", "teacher/entropy/mean", "teacher/without_context"],
    ),
    "eopd": ("eopd", [TOKEN_MEAN], ["divergence/mean", "divergence/weight/mean", "teacher/entropy/mean"]),
    "opsd_dasd": ("opsd", ["method=opsd_dasd"], ["divergence/mean"]),
    "sft": ("sft", [TOKEN_MEAN], ["actor/pg_loss"]),
    "attention entropy, exposure by difficulty": (
        "dasd",
        [
            "algorithm.dasd.router=attention_entropy",
            "self_distill.exposure.mode=fixed",
            "self_distill.exposure.fixed_exposure=0.5",
            "self_distill.exposure.difficulty_strength=2",
        ],
        ["student/attention_entropy/mean", "credit/omega/positive_share", "exposure/forced_full"],
    ),
    "counterfactual": (
        "atesd",
        [
            # At the counterfactual's own exposure the update that is taken back is the update that is kept.
            "self_distill.exposure.controller.exposure_min=1.0",
            "self_distill.exposure.controller.credit=counterfactual",
            "self_distill.exposure.controller.hold=1",
        ],
        ["probe/counterfactual_loss", "probe/loss", "exposure/reward"],
    ),
    "sibling": ("dasd", ["self_distill.teacher.context=sibling"], ["teacher/tokens"]),
    "a ratio, and the teacher's answers": (
        "dasd",
        [
            "algorithm.dasd.target_ratio=0.03",
            "trainer.test_freq=1",
            "self_distill.teacher.test_freq=1",
            "actor_rollout_ref.rollout.val_kwargs.n=1",
        ],
        ["credit/beta", "teacher/validation", "collapse/steps_outside"],
    ),
    "both KLs, mixed": ("opsd", ["method=atesd_mixed"], ["divergence/mean", "divergence/forward_share/mean"]),
    "sibling in the loss": ("opsd", ["self_distill.teacher.context=sibling"], ["divergence/mean"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_two_steps(name, tmp_path):
    entry, overrides, wanted = RUNS[name]
    run = train(entry, tmp_path / "run", *overrides, *SHORT)
    assert run.code == 0, run.console + run.log[-3000:]
    assert sorted(run.steps) == [1, 2]
    for record in run.steps.values():
        for key in ("actor/grad_norm", "critic/score/mean", "student/log_prob/mean", *wanted):
            assert math.isfinite(record[key]), key
        assert record["training/skipped_updates"] == 0
        without = record.get("teacher/without_context", 0.0)
        assert 0.0 <= without <= 1.0
        if not any("sibling" in part or "contrast" in part for part in (name, *overrides)) and name not in SIBLINGS:
            assert without == 0.0
    if name == "sft":  # one mini-batch: the loss is the cross-entropy of the step's first weights
        for record in run.steps.values():
            assert record["actor/pg_loss"] == pytest.approx(-record["student/log_prob/mean"], rel=1e-5)
    if name == "counterfactual":
        losses = [(record["probe/counterfactual_loss"], record["probe/loss"]) for record in run.steps.values()]
        assert all(tried == kept for tried, kept in losses) and losses[0] != losses[1]
        assert all(record["exposure/reward"] == 0.0 for record in run.steps.values())
    assert any(record["actor/grad_norm"] > 0 for record in run.steps.values())


def test_equal_rewards_move_nothing_where_their_mean_is_rounded(tmp_path):
    """Eight times 0.7: verl's float32 mean is not 0.7, and its A_G not 0, unless it is made so."""
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(*_, **__):\n    return {'score': 0.7, 'acc': False}\n")
    function = "reward.custom_reward_function"
    own = (f"{function}.path={reward}", f"{function}.name=compute_score", "actor_rollout_ref.rollout.n=8")
    run = train("grpo", tmp_path / "run", *own, *SHORT)
    assert run.code == 0, run.console + run.log[-3000:]
    for record in run.steps.values():
        assert record["critic/score/mean"] == pytest.approx(0.7)
        assert record["critic/advantages/max"] == record["critic/advantages/min"] == record["actor/grad_norm"] == 0.0
