"""Every shipped YAML composes and passes the checks; wrong settings are refused with value, rule and fix."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pandas as pd
import pytest
from omegaconf import OmegaConf, open_dict

from advantage.estimators import ESTIMATORS, get_estimator
from config import CONFIG_DIR, STARTER
from recipes.common.checks import check
from recipes.common.checks.errors import SettingsError
from recipes.common.method import read
from tests.builders import configs
from tests.builders.forked import command
from workers.training.params import LossParams, TeacherWeights, loss_params

METHODS = sorted(p.stem for p in (CONFIG_DIR / "method").glob("*.yaml"))
# One of each kind; tests/config/test_presets.py has the others.
EXPERIMENTS = ("starter", "starter_shortcut", "starter_vllm", "qwen3_1_7b_dapo", "qwen3_1_7b_openthoughts")
# What a GPU node has and this machine may lack: judged apart from the rest.
ABOUT_THE_MACHINE = (
    "data.train_files",
    "data.val_files",
    "actor_rollout_ref.model.path",
    "ray_kwargs.ray_init.num_cpus",
    "flash-attn is not installed",
    "vllm is not installed",
    "hydra.run.dir",  # room for checkpoints
    "self_distill.exposure.probe_file",
)


def problems(cfg, gpus: int = 0) -> list[str]:
    try:
        check(cfg, read(cfg), gpus=gpus)
    except SettingsError as error:
        return error.problems
    return []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_shipped_configurations_pass_the_checks(compose_config, method, experiment):
    cfg = compose_config(f"method={method}", f"experiment={experiment}")
    found = [p for p in problems(cfg, gpus=8) if not p.startswith(ABOUT_THE_MACHINE)]
    if cfg.self_distill.exposure.mode != "full" and cfg.self_distill.teacher.context == "answer":
        # A data set of answers has no reasoning to show in part, nor a probe with references.
        assert [p.split(":")[0] for p in found if "no reasoning" in p] and len(found) <= 2
        return
    assert found == []
    if experiment in ("starter", "starter_shortcut"):
        assert problems(cfg) == []


@pytest.mark.parametrize("method", ["grpo", "dasd", "opsd", "sft"])
def test_the_real_model_passes_the_checks_and_says_what_makes_it(compose_config, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)  # where nothing was made
    experiment, made_by = "smollm2_135m", "make smollm2"
    if method == "sft":
        experiment, made_by = "smollm2_135m_warm_up", "python -m recipes.smollm2.convert"
    found = problems(compose_config(f"method={method}", f"experiment={experiment}"))
    (model,) = [p for p in found if p.startswith("actor_rollout_ref.model.path")]
    assert "no such folder" in model and f"made by: {made_by}" in model
    (train,) = [p for p in found if p.startswith("data.train_files")]
    assert "does not exist" in train and "prepare dataset=word_problems" in train
    assert [p for p in found if not p.startswith(ABOUT_THE_MACHINE)] == []


@pytest.mark.parametrize("method", METHODS)
def test_yaml_defaults_are_the_estimators_defaults(compose_config, method):
    """The dataclass is where defaults are kept; the YAML repeats them to show and document them."""
    cfg = compose_config(f"method={method}", "experiment=starter")
    name = cfg.algorithm.adv_estimator
    if name not in ESTIMATORS:
        pytest.skip("verl's estimator")
    defaults = dataclasses.asdict(get_estimator(name).params())
    shown = OmegaConf.to_container(cfg.algorithm[name])
    if builds_on_another(method):  # a variant departs from its base on purpose
        assert shown.keys() == defaults.keys()
    else:
        assert shown == defaults


def test_a_ratio_is_shown_in_the_place_of_the_beta_that_it_sets(compose_config):
    rows = dict(read(compose_config("method=dasd", "experiment=starter")).rows())
    assert (
        "(credit dasd, target_ratio=0.005, gap_eps_share=0.1, entropy_eps=0.1, router_quantile=0.2)" in rows["method"]
    )
    given = ("algorithm.dasd.beta=0.02", "algorithm.dasd.gap_eps=1")
    rows = dict(read(compose_config("method=dasd", "experiment=starter", *given)).rows())
    assert "(credit dasd, beta=0.02, gap_eps=1, entropy_eps=0.1, router_quantile=0.2)" in rows["method"]


@pytest.mark.parametrize("credit", ["reinforce_plus_plus", "opsd_sampled", "reopold"])
def test_one_rollout_is_enough_where_nothing_is_compared(compose_config, credit):
    alone = "actor_rollout_ref.rollout.n=1"
    cfg = compose_config("method=grpo", "experiment=starter", f"algorithm.adv_estimator={credit}", alone)
    assert not [p for p in problems(cfg) if alone in p]
    for compared in ("grpo", "rloo", "dasd", "hepo"):
        cfg = compose_config("method=grpo", "experiment=starter", f"algorithm.adv_estimator={compared}", alone)
        assert [p for p in problems(cfg) if alone in p]


@pytest.mark.parametrize("credit", ["dasd", "hepo", "reopold"])
def test_whatever_reads_entropies_needs_exact_ones(compose_config, credit):
    key = "actor_rollout_ref.actor.entropy_from_logits_with_chunking=false"
    cfg = compose_config("method=grpo", "experiment=starter", f"algorithm.adv_estimator={credit}", key)
    assert [p for p in problems(cfg) if p.startswith(key)]


def test_a_ratio_belongs_to_an_advantage(compose_config):
    key = "algorithm.dasd.target_ratio=0.1"
    (found,) = problems(compose_config("method=dasd_distribution", "experiment=starter", key))
    assert found.startswith(f"{key} with self_distill.loss.weighting=dasd") and "coefficient" in found
    (found,) = problems(compose_config("method=dasd_distribution", "experiment=starter", "algorithm.dasd.beta=0.5"))
    assert found.startswith("algorithm.dasd.beta=0.5 with") and found.endswith("leave beta at null")
    assert problems(compose_config("method=attraction", "experiment=starter", key)) == []
    learned = "algorithm.dasd.router=learned"
    (found,) = problems(compose_config("method=dasd_distribution", "experiment=starter", learned))
    assert found.startswith("self_distill.loss.weighting=dasd") and "adv_estimator=dasd" in found
    (found,) = problems(compose_config("method=attraction", "experiment=starter", learned))
    assert "direction='constant': must be tanh with router=learned" in found


def builds_on_another(method: str) -> bool:
    bases = OmegaConf.load(CONFIG_DIR / "method" / f"{method}.yaml").get("defaults", [])
    return any(base in METHODS for base in bases)


def test_the_literal_preset_is_the_papers_formula(compose_config):
    dasd = compose_config("method=dasd_paper_literal", "experiment=starter").algorithm.dasd
    assert (dasd.gap_eps, dasd.entropy_eps, dasd.mask_zero_variance_groups) == (1e-6, 1e-6, False)


def test_the_default_experiment_has_the_papers_hyperparameters(compose_config):
    cfg = compose_config("method=dasd")
    actor, rollout = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout
    assert cfg.actor_rollout_ref.model.path == "Qwen/Qwen3-1.7B"
    assert (cfg.data.train_batch_size, actor.ppo_mini_batch_size, rollout.n) == (128, 32, 8)
    assert (actor.optim.lr, actor.optim.lr_scheduler_type, cfg.data.max_response_length) == (3e-6, "cosine", 8192)
    assert (rollout.name, rollout.val_kwargs.n, rollout.val_kwargs.top_p) == ("vllm", 16, 0.9)
    assert cfg.trainer.v1.trainer_mode == "self_distill"


REFUSED = {
    "padding": (["actor_rollout_ref.model.use_remove_padding=false"], "use_remove_padding=false", "set it to true"),
    "bf16 entropy": (["actor_rollout_ref.actor.entropy_from_logits_with_chunking=false"], "0.18 nat", "set it to true"),
    "bypass": (["algorithm.rollout_correction.bypass_mode=true"], "bypass_mode=true", "set it to false"),
    "fused": (["actor_rollout_ref.model.use_fused_kernels=true"], "use_fused_kernels=true", "set it to false"),
    "mini-batch": (["actor_rollout_ref.actor.ppo_mini_batch_size=7"], "train_batch_size=16", "multiple"),
    "workers": (["trainer.n_gpus_per_node=3"], "128 rollouts", "3 workers"),
    "logical cpus": (["ray_kwargs.ray_init.num_cpus=4"], "num_cpus=4", "num_cpus=9"),
    "token limit": (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=100"], "ppo_max_token_len_per_gpu=100", "608"),
    "one rollout": (["actor_rollout_ref.rollout.n=1"], "rollout.n=1", "at least 2"),
    "tensor parallel": (
        ["actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
        "model_parallel_size=2",
        "to one of 1",
    ),
    "engine": (["actor_rollout_ref.rollout.name=vllm"], "rollout.name=vllm", "rollout.name=transformers"),
    "strategy": (["actor_rollout_ref.actor.strategy=fsdp"], "strategy=fsdp", "fsdp2"),
    "beta": (["algorithm.dasd.beta=-1"], "algorithm.dasd.beta=-1", "0 or more"),
    "ratio": (["algorithm.dasd.target_ratio=-1"], "algorithm.dasd.target_ratio=-1", "0 or more"),
    "router": (["algorithm.dasd.router=vibes"], "router='vibes'", "entropy"),
    "teacher weights": (["self_distill.teacher.weights=mean"], "teacher.weights='mean'", "snapshot"),
    "ema decay": (
        ["self_distill.teacher.weights=ema", "self_distill.teacher.ema_decay=1"],
        "self_distill.teacher.ema_decay=1",
        "[0, 1)",
    ),
    "weights of nothing": (["self_distill.loss.weighting=dasd"], "weighting=dasd", "choose a kind"),
    "teacher context": (["self_distill.teacher.context=hints"], "teacher.context=hints", "solution"),
    "no contexts": (["self_distill.teacher.context=[]"], "teacher.context=[]", "one context or a list"),
    "second context": (["self_distill.teacher.context=[solution,luck]"], "teacher.context=luck", "sibling"),
    "nothing contrasts": (["self_distill.teacher.context=[solution,none]"], "context=[solution,none]", "name one"),
    "fallback": (["self_distill.teacher.fallback=luck"], "teacher.fallback=luck", "sibling"),
    "sibling of one": (
        ["self_distill.teacher.context=sibling", "actor_rollout_ref.rollout.n=1"],
        "context=sibling with actor_rollout_ref.rollout.n=1",
        "2 or more",
    ),
    "mix of a trust region": (
        ["self_distill.teacher.weights=trust_region", "self_distill.teacher.trust_region_mix=2"],
        "self_distill.teacher.trust_region_mix=2",
        "[0, 1]",
    ),
    "whom it teaches": (["self_distill.teacher.teaches=some"], "self_distill.teacher.teaches=some", "all, failed"),
    "a route without a teacher": (["algorithm.adv_estimator=srpo"], "loss.kind=none", "teaches=failed"),
    "a route that nothing takes": (
        ["algorithm.adv_estimator=srpo", "self_distill.loss.kind=reverse_kl"],
        "teacher.teaches=all",
        "teaches=failed",
    ),
    "an importance ratio of nothing": (["self_distill.loss.importance_clip=2"], "importance_clip=2", "choose a kind"),
    "references": (["self_distill.responses=reference"], "responses=reference with", "method=sft"),
    "no responses": (["self_distill.responses=none"], "responses=none", "sampled or reference"),
    "no hint": (["self_distill.teacher.context=hint"], "no column hint", "problem"),
    "no feedback": (["self_distill.teacher.context=feedback"], "no column feedback", "another reward function"),
    "greedy training": (["actor_rollout_ref.rollout.temperature=0"], "temperature=0", "above 0"),
    "no patience": (["self_distill.stall_minutes=0"], "stall_minutes=0", "above 0"),
    "negative budget": (["self_distill.max_skipped_updates=-1"], "max_skipped_updates=-1", "at least 0"),
    "no checkpoint": (["self_distill.keep_checkpoints=0"], "keep_checkpoints=0", "at least 1"),
    "model path": (["actor_rollout_ref.model.path=/nowhere/model"], "model.path=/nowhere/model", "no such folder"),
    "attention": (
        ["actor_rollout_ref.model.override_config.attn_implementation=varlen"],
        "attn_implementation=varlen",
        "'packed'",
    ),
    "data path": (["data.train_files=/nowhere/train.parquet"], "/nowhere/train.parquet does not exist", "prepare"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_wrong_settings_are_refused(compose_config, case):
    overrides, value, fix = REFUSED[case]
    found = problems(compose_config("method=dasd", "experiment=starter", *overrides))
    assert any(value in p and fix in p for p in found), found


REFUSED_IN_THE_LOSS = {
    "importance ratio": (["self_distill.loss.importance_clip=0.5"], "importance_clip=0.5", "1 or more"),
    "temperature of the teacher's entropy": (
        ["self_distill.loss.weighting=eopd", "self_distill.loss.temperature=1.1"],
        "self_distill.loss.temperature=1.1 with weighting=eopd",
        "set it to null",
    ),
    "gate": (["self_distill.loss.weighting=eopd", "+algorithm.eopd.entropy_threshold=x"], "threshold='x'", "a number"),
    "kind": (["self_distill.loss.kind=hellinger"], "self_distill.loss.kind='hellinger'", "forward_kl"),
    "clip": (["self_distill.loss.clip=-1"], "clip=-1", "positive"),
    "clip mode": (["self_distill.loss.clip_mode=both"], "clip_mode='both'", "symmetric"),
    "reduction": (["self_distill.loss.reduction=sum"], "reduction='sum'", "sequence_mean"),
    "weighting": (["self_distill.loss.weighting=loudness"], "weighting='loudness'", "position"),
    "coefficient": (["self_distill.loss.coefficient=0"], "coefficient=0", "positive"),
    "nothing to train": (["self_distill.loss.kind=none"], "ppo=False", "nothing to train"),
    "unknown key": (["+self_distill.loss.beta=1"], "self_distill.loss.beta", "no such parameter"),
    "schedule": (["self_distill.loss.weighting=position", "+algorithm.pw_opsd.schedule=x"], "schedule='x'", "moderate"),
    "strategy": (["actor_rollout_ref.actor.strategy=fsdp"], "kind=forward_kl", "fsdp2"),
    "fused": (["actor_rollout_ref.model.use_fused_kernels=true"], "no logits", "set it to false"),
    "ulysses": (
        ["actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2"],
        "ulysses_sequence_parallel_size=2",
        "set it to 1",
    ),
    "padded": (["actor_rollout_ref.actor.fsdp_config.pad_to_length=true"], "pad_to_length=true", "false"),
    "ema in bfloat16": (
        ["self_distill.teacher.weights=ema", "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16"],
        "model_dtype=bf16",
        "fp32",
    ),
    "two distillations": (["distillation.enabled=true"], "distillation.enabled=true", "false"),
    "packing": (["actor_rollout_ref.model.use_remove_padding=false"], "use_remove_padding=false", "set it to true"),
}


@pytest.mark.parametrize("case", REFUSED_IN_THE_LOSS, ids=str)
def test_wrong_settings_of_a_divergence_are_refused(compose_config, case):
    overrides, value, fix = REFUSED_IN_THE_LOSS[case]
    found = problems(compose_config("method=opsd", "experiment=starter", *overrides))
    assert any(value in p and fix in p for p in found), found


@pytest.mark.parametrize(
    ("method", "fix"), [("srpo", "token-mean"), ("eopd", "token-mean"), ("dasd_distribution", None)]
)
def test_two_terms_that_are_averaged_differently_are_warned_of(compose_config, method, fix):
    """The starter averages within responses first; SRPO's terms have one denominator, in its paper."""
    cfg = compose_config(f"method={method}", "experiment=starter")
    warnings = check(cfg, read(cfg), gpus=0)
    assert [f"loss_agg_mode={fix} gives them one denominator" in warning for warning in warnings] == [True] * bool(fix)
    if fix:
        cfg.actor_rollout_ref.actor.loss_agg_mode = fix
        assert check(cfg, read(cfg), gpus=0) == []


def test_mixed_logits_of_a_model_that_changes_them_afterwards_are_refused(compose_config, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(STARTER / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    cfg = compose_config("method=sdpo", "experiment=starter", f"actor_rollout_ref.model.path={model}")
    assert problems(cfg) == []
    cfg.self_distill.teacher.weights = "trust_region"
    (problem,) = problems(cfg)
    assert (
        "weights=trust_region" in problem and "final_logit_softcapping=30.0" in problem and "ema or frozen" in problem
    )


def test_siblings_that_would_be_cut_are_warned_of(compose_config):
    cfg = compose_config("method=sdpo", "experiment=starter")  # 64 + 96 tokens
    assert check(cfg, read(cfg), gpus=0) == []
    cfg.self_distill.teacher.max_prompt_length = 159
    (warning,) = check(cfg, read(cfg), gpus=0)
    assert "max_prompt_length=159 with context sibling" in warning and "max_prompt_length=160 shows all" in warning


def test_a_methods_own_room_for_siblings_goes_before_that_of_the_problems_references(compose_config):
    lengths = {
        name: compose_config(f"method={name}", "experiment=qwen3_1_7b_dapo").self_distill.teacher.max_prompt_length
        for name in ("dasd", "sdpo")
    }
    assert lengths == {"dasd": 2560, "sdpo": 2048 + 8192}


def test_a_method_that_reads_the_teachers_entropy_lets_the_teacher_score(compose_config):
    methods = {name: read(compose_config(f"method={name}", "experiment=starter")) for name in ("sdpo", "srpo", "eopd")}
    assert {name: method.scores_with_teacher for name, method in methods.items()} == {
        "sdpo": False,
        "srpo": True,
        "eopd": True,
    }
    assert all(method.scores_student and method.uses_teacher for method in methods.values())
    assert {name: method.compares_groups for name, method in methods.items()} == {
        "sdpo": False,
        "srpo": True,
        "eopd": False,
    }
    assert "the student's top 100 and a bucket of the others" in dict(methods["sdpo"].rows())["loss"]
    adapter = ["actor_rollout_ref.model.lora_rank=4", "self_distill.teacher.weights=trust_region"]
    lora = read(compose_config("method=sdpo", "experiment=starter", *adapter))
    assert (lora.teacher_copy, lora.scoring_weights) == (False, "engine_copy")


def test_a_divergence_alone_needs_no_group(compose_config):
    assert problems(compose_config("method=opsd", "experiment=starter", "actor_rollout_ref.rollout.n=1")) == []


def test_defaults_of_the_loss_and_of_the_teachers_weights_are_the_dataclasses(compose_config):
    cfg = compose_config("method=grpo", "experiment=starter")
    assert OmegaConf.to_container(cfg.self_distill.loss) == dataclasses.asdict(LossParams())
    defaults = dataclasses.asdict(TeacherWeights())
    assert {name: cfg.self_distill.teacher[name] for name in defaults} == defaults


SDPO = {"kind": "jsd", "jsd_beta": 0.5, "top_k": 100, "top_k_by": "student", "importance_clip": 2.0}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("opsd", LossParams(kind="forward_kl", clip=0.05, temperature=1.1, ppo=False)),
        (
            "pw_opsd",
            LossParams(
                "forward_kl", clip=0.05, temperature=1.1, weighting="position", reduction="sequence_mean", ppo=False
            ),
        ),
        (
            "dasd_distribution",
            LossParams("reverse_kl", weighting="dasd", reduction="sequence_mean", coefficient=0.1, ppo=True),
        ),
        ("sdpo", LossParams(**SDPO, weighting="taught", ppo=False)),
        ("srpo", LossParams(**SDPO, weighting="srpo", ppo=True)),
        ("eopd", LossParams("forward_kl", top_k=16, student_norm="full", weighting="eopd", ppo=True)),
    ],
)
def test_the_papers_losses(compose_config, method, expected):
    assert loss_params(compose_config(f"method={method}", "experiment=starter").self_distill) == expected


def test_vllm_is_told_the_longest_sequence(compose_config):
    """Of null verl makes the model's maximum: for Llama-3.1 a cache of 131k tokens a sequence."""
    rollout = compose_config("method=dasd", "experiment=llama3_1_8b_dapo").actor_rollout_ref.rollout
    assert rollout.max_model_len == 2048 + 8192
    given = compose_config("method=dasd", "experiment=starter_vllm").actor_rollout_ref.rollout
    assert given.max_model_len == 160


def test_all_problems_are_reported_at_once(compose_config):
    cfg = compose_config(
        "method=dasd", "experiment=starter", "algorithm.dasd.beta=-1", "actor_rollout_ref.rollout.temperature=0"
    )
    assert len(problems(cfg)) == 2


def test_without_a_teacher_the_teachers_demands_do_not_apply(compose_config):
    cfg = compose_config(
        "method=grpo", "experiment=starter", "actor_rollout_ref.actor.entropy_from_logits_with_chunking=false"
    )
    assert problems(cfg) == []


@pytest.mark.parametrize(("gpus", "wanted", "fix"), [(0, 8, "experiment=starter"), (4, 8, "n_gpus_per_node=4")])
def test_more_gpus_than_the_machine_has(compose_config, gpus, wanted, fix):
    found = problems(compose_config("method=dasd", f"trainer.n_gpus_per_node={wanted}"), gpus=gpus)
    assert len(found) == 1
    assert f"n_gpus_per_node={wanted}" in found[0] and fix in found[0]


def rewrite(path, change):
    frame = pd.read_parquet(STARTER / "data/train.parquet").head(20)
    frame = change(frame)
    frame.to_parquet(path)
    return f"data.train_files={path}"


def test_a_missing_solution_column(compose_config, tmp_path):
    override = rewrite(tmp_path / "t.parquet", lambda f: f.drop(columns="solution"))
    (problem,) = problems(compose_config("method=dasd", "experiment=starter", override))
    assert "no column solution" in problem and "self_distill.teacher.context=answer" in problem
    assert problems(compose_config("method=grpo", "experiment=starter", override)) == []


def test_empty_references_are_named_by_row(compose_config, tmp_path):
    def empty(frame):
        frame.loc[frame.index[[3, 7]], "solution"] = ["", "   "]
        return frame

    (problem,) = problems(compose_config("method=dasd", "experiment=starter", rewrite(tmp_path / "t.parquet", empty)))
    assert "empty solution in 2 of 20 rows (rows 3, 7)" in problem


def test_sft_needs_solutions_and_no_log_probs_of_the_rollout(compose_config, tmp_path):
    override = rewrite(tmp_path / "t.parquet", lambda f: f.drop(columns="solution"))
    (problem,) = problems(compose_config("method=sft", "experiment=starter", override))
    assert "no column solution" in problem and "worked solutions" in problem
    log_probs = "actor_rollout_ref.rollout.calculate_log_probs=true"
    (problem,) = problems(compose_config("method=sft", "experiment=starter", log_probs))
    assert "calculate_log_probs=true" in problem and "set it to false" in problem
    sampled = compose_config("method=sft", "experiment=starter", "self_distill.responses=sampled")
    assert any("choose method=sft" in problem for problem in problems(sampled))


def test_rows_may_lack_a_hint_but_not_all_of_them(compose_config, tmp_path):
    hints = {"some": ["try", *[""] * 19], "none": [""] * 20}
    found = {}
    for name, column in hints.items():
        override = rewrite(tmp_path / f"{name}.parquet", lambda f, column=column: f.assign(hint=column))
        found[name] = problems(
            compose_config("method=dasd", "experiment=starter", "self_distill.teacher.context=hint", override)
        )
    assert found["some"] == [] and len(found["none"]) == 1 and "empty hint in every row" in found["none"][0]


def test_feedback_may_come_from_another_reward_function(compose_config, tmp_path):
    cfg = compose_config("method=dasd", "experiment=starter", "self_distill.teacher.context=feedback")
    path = tmp_path / "my_rewards.py"
    path.write_text("def compute_score(**parts):\n    return 0.0\n")
    cfg.reward.custom_reward_function.path = str(path)
    assert problems(cfg) == []


@pytest.mark.parametrize("context", ["sibling", "wrong_sibling", "none", "other_problem"])
def test_contexts_that_need_no_column(compose_config, context):
    assert (
        problems(compose_config("method=dasd", "experiment=starter", f"self_distill.teacher.context={context}")) == []
    )


def test_exact_entropies_are_needed_without_a_teacher_too(compose_config):
    inexact = "actor_rollout_ref.actor.entropy_from_logits_with_chunking=false"
    (problem,) = problems(compose_config("method=grpo", "experiment=starter", "algorithm.adv_estimator=hepo", inexact))
    assert "entropy_from_logits_with_chunking=false" in problem


@pytest.mark.parametrize(("credit", "refused"), [("opsd_sampled", False), ("reopold", False), ("grpo", True)])
def test_one_rollout_is_refused_only_where_groups_are_compared(compose_config, credit, refused):
    cfg = compose_config(
        "method=grpo", "experiment=starter", "actor_rollout_ref.rollout.n=1", f"algorithm.adv_estimator={credit}"
    )
    assert bool(problems(cfg)) == refused


def test_a_tokenizer_without_chat_template(compose_config, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(STARTER / "model", model)
    (model / "chat_template.jinja").unlink()
    (problem,) = problems(compose_config("method=dasd", "experiment=starter", f"actor_rollout_ref.model.path={model}"))
    assert "no chat template" in problem and "custom_chat_template" in problem


def test_another_methods_run_directory_is_not_resumed(compose_config, tmp_path):
    cfg = compose_config("method=dasd", "experiment=starter")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    saved = cfg.copy()
    with open_dict(saved):
        saved.self_distill.method = "grpo"
    OmegaConf.save(saved, run / "config.yaml")
    (problem,) = problems(cfg)
    assert "self_distill.method=grpo" in problem and "choose another hydra.run.dir" in problem


def test_a_run_directory_that_cannot_be_made(compose_config, tmp_path):
    (tmp_path / "file").write_text("")
    cfg = compose_config("method=dasd", "experiment=starter")
    cfg.self_distill.run_dir = str(tmp_path / "file" / "run")
    (problem,) = problems(cfg)
    assert "hydra.run.dir" in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=dasd", "experiment=starter", "algorithm.dasd.beta=0.1", "data.train_files=[a, b]"),
        ("protocol=opsd", "method=opsd", "trainer.logger=null", "+data.more={a: 1}", "~trainer.project_name"),
    ],
)
def test_what_tests_compose_in_two_steps_is_what_hydra_composes_in_one(overrides, compose_config, monkeypatch):
    in_two = compose_config(*overrides)
    monkeypatch.setattr(configs, "VALUE", re.compile("no override"))
    configs._composed.cache_clear()
    assert in_two == compose_config(*overrides) and "a" in str(in_two.data)


def test_without_a_gpu_the_gpu_command_names_the_starter(tmp_path):
    result = command("recipes.dasd.main", "trainer.n_gpus_per_node=8", f"hydra.run.dir={tmp_path}")
    if result.returncode == 0:
        pytest.skip("this machine has GPUs")
    assert result.returncode == 2
    assert "experiment=starter" in result.stderr and "Traceback" not in result.stderr


def test_an_unknown_override_is_refused_by_name(tmp_path):
    result = command("recipes.dasd.main", "experiment=starter", "algorithm.dasd.betta=1", f"hydra.run.dir={tmp_path}")
    assert result.returncode != 0
    assert "betta" in result.stderr and "Traceback" not in result.stderr


def test_dry_run_shows_the_plan_and_starts_nothing(tmp_path):
    result = command("recipes.dasd.main", "experiment=starter", "dry_run=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert "16 problems × 8 rollouts" in result.stdout and "current weights, shown the solution" in result.stdout
    assert not (tmp_path / "run" / "train.log").exists()
