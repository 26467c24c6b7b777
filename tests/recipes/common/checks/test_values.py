"""Values that no run survives are refused before Ray, and what is wrong does not change the plan that is shown."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from config import CONFIG_DIR
from recipes.common import method as methods
from recipes.common.checks import check, values
from recipes.common.checks.errors import SettingsError
from recipes.common.plan.forecast import show
from recipes.common.record.console import plan

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    from tests.builders.configs import composed

    made = {}

    def config(method: str = "dasd"):
        if method not in made:
            directory = tmp_path_factory.mktemp(method) / "run"
            made[method] = composed(f"method={method}", "experiment=starter", "dry_run=true", run_dir=directory)
        return made[method].copy()

    return config


def refusal(cfg) -> str:
    with pytest.raises(SettingsError) as refused:
        check(cfg, methods.read(cfg), gpus=0)
    return str(refused.value)


def test_what_is_shipped_passes(starter):
    for about in methods.shipped():
        cfg = starter(about.name)
        assert list(values.problems(cfg)) == []
        check(cfg, methods.read(cfg), gpus=0)


def enumerated() -> list[str]:
    """Keys of config/train.yaml whose comments list choices: `one: … | other: …`."""
    found, path, comment = [], [], ""
    for line in (CONFIG_DIR / "train.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment += text
            continue
        match = re.match(r"^( *)([a-z_0-9]+):", line)
        if match:
            path = [*path[: len(match[1]) // 2], match[2]]
            if re.search(r"\w+(: [^|]*)? \| \w+", comment + line.partition("#")[2]):
                found.append(".".join(path))
        comment = ""
    return found


def test_the_comments_are_read():
    assert {"self_distill.loss.kind", "self_distill.exposure.mode", "self_distill.teacher.weights"} <= set(enumerated())


# Under which a key is used, where the default is not it.
UNDER = {"self_distill.exposure.controller": "atesd", "self_distill.loss": "opsd"}


@pytest.mark.parametrize("key", enumerated())
def test_a_choice_that_there_is_not(starter, key):
    cfg = starter(next((m for part, m in UNDER.items() if key.startswith(part)), "dasd"))
    OmegaConf.update(cfg, key, "nonsense")
    assert f"{key}=" in refusal(cfg).replace("'", "") and "nonsense" in refusal(cfg)


@pytest.mark.parametrize(
    "key", [k for k, rule in values.RULES.items() if "one of" in rule("nonsense") or "none of" in rule("nonsense")]
)
def test_a_name_that_verl_does_not_know(starter, key):
    cfg = starter()
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, "nonsense")
    assert re.search(rf"{re.escape(key)}=nonsense: .*(one|none) of", refusal(cfg))


@pytest.mark.parametrize("key", list(values.RULES))
def test_every_rule_passes_over_no_type(starter, key):
    """Text, a list, a negative number and a node for each key, as far as its rule does not allow them."""
    for wrong in ("many", [1, 2], -7, {"a": 1}, True, float("nan")):
        if not values.RULES[key](wrong):
            continue
        cfg = starter()
        OmegaConf.set_struct(cfg, False)
        OmegaConf.update(cfg, key, wrong, merge=False)
        assert f"{key}=" in dict(values.problems(cfg))[key], wrong
    assert f"{key}=" in refusal(cfg), "as part of all that is checked"


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("algorithm.adv_estimator", "dsad", "the closest is dasd"),
        ("algorithm.dasd.router", "external", "routes on a router_signal that nothing in a training run computes"),
        ("algorithm.dasd.beta", "high", "algorithm.dasd.beta='high': must be a number"),
        ("trainer.total_training_steps", 0, "at least 1"),
        ("trainer.total_training_steps", -3, "at least 1"),
        ("trainer.total_training_steps", "ten", "must be a whole number"),
        (f"{A}.optim.lr", "high", "must be a number"),
        (f"{A}.optim.lr", "1e-6", "must be a number"),  # YAML reads it as text
        (f"{A}.optim.optimizer", "AdamWW", "the closest is AdamW"),
        (f"{A}.optim.lr_scheduler_type", "cosin", "the closest is cosine"),
        (f"{A}.loss_agg_mode", "token_mean", "the closest is token-mean"),
        (f"{A}.ppo_mini_batch_size", 0, "at least 1"),
        (f"{A}.use_kl_loss", "yes", "must be true or false"),
        (f"{A}.use_kl_loss", True, "pins its weights"),
        ("algorithm.use_kl_in_reward", True, "pins its weights"),
        (f"{A}.entropy_coeff", "small", "must be a number"),
        (f"{A}.optim", 3e-6, "must hold keys of its own"),
        ("data.train_batch_size", 0, "at least 1"),
        ("data.train_batch_size", 16.5, "whole number"),
        ("data.shuffle", 1, "true or false"),
        (f"{R}.n", 0, "at least 1"),
        (f"{R}.temperature", "hot", "a number above 0"),
        (f"{R}.temperature", 0, "above 0"),
        (f"{R}.top_p", 1.5, "at most 1"),
        (f"{R}.val_kwargs.n", 0, "at least 1"),
        ("trainer.n_gpus_per_node", 0, "at least 1"),
        ("trainer.nnodes", 0, "at least 1"),
        ("trainer.save_freq", "often", "whole number"),
        ("trainer.logger", ["tensorbord"], "the closest is tensorboard"),
        ("trainer.resume_mode", "atuo", "the closest is auto"),
        ("trainer.project_name", 2026, "must be text; quote it"),
        ("actor_rollout_ref.model.path", "/nowhere", "no such folder"),
        ("actor_rollout_ref.model.path", None, "must be a text"),
        ("self_distill.teacher.template_kwargs", "none", "must hold keys of its own"),
    ],
)
def test_a_value_that_no_run_survives(starter, key, wrong, said):
    cfg = starter()
    OmegaConf.update(cfg, key, wrong, merge=False)
    assert re.search(said, refusal(cfg)), refusal(cfg)


def test_kl_on_a_cpu_with_an_adapter(starter):
    cfg = starter()
    cfg.actor_rollout_ref.actor.use_kl_loss, cfg.actor_rollout_ref.model.lora_rank = True, 8
    cfg.actor_rollout_ref.model.lora.merge = True
    check(cfg, methods.read(cfg), gpus=0)


def test_several_wrong_values_are_said_at_once(starter):
    cfg = starter()
    cfg.actor_rollout_ref.rollout.n = "eight"
    cfg.trainer.resume_mode = "never"
    cfg.algorithm.dasd.beta = -1
    said = refusal(cfg)
    assert all(key in said for key in ("rollout.n=eight", "resume_mode=never", "dasd.beta"))


def test_verls_dataclasses_take_what_the_rules_take():
    """Names that verl lists in its own checks; a new version may know others."""
    from verl.utils.tracking import Tracking
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig

    rule = values.RULES["trainer.logger"]
    assert rule(list(Tracking.supported_backend)) == ""
    for key, made in (("loss_agg_mode", FSDPActorConfig), ("optim.lr_scheduler_type", FSDPOptimizerConfig)):
        said = values.RULES[f"{A}.{key}"]("?")
        for name in re.search(r"one of ([^;]*)", said)[1].split(", "):
            fields = {key.split(".")[-1]: name}
            if made is FSDPActorConfig:
                fields |= {"use_dynamic_bsz": True, "rollout_n": 1}
            made(**fields)
    assert {field.name for field in dataclasses.fields(FSDPActorConfig)} >= {"strategy", "ppo_mini_batch_size"}


def printed(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize(
    ("method", "key", "wrong", "row"),
    [
        ("dasd", "algorithm.dasd.beta", -0.5, "beta=-0.5"),
        ("dasd", "algorithm.dasd.router_quantile", "many", "router_quantile=many"),
        ("dasd", "self_distill.teacher.weights", "frozn", "frozn weights, shown the solution"),
        ("opsd", "self_distill.loss.kind", "forwardkl", "forwardkl, full vocabulary, entries clipped at 0.05"),
        ("opsd", "self_distill.loss.reduction", "mean", "forward_kl, full vocabulary"),
        ("atesd", "self_distill.exposure.mode", "learnt", "exposure learnt"),
        ("dasd", f"{A}.optim.lr", "high", "lr high"),
        ("dasd", f"{R}.n", "eight", "16 problems × eight rollouts"),
        ("dasd", "trainer.n_gpus_per_node", 0, "0 cpu workers"),
        ("dasd", "data.train_files", None, "None"),
    ],
)
def test_what_is_wrong_is_shown_as_it_was_given(starter, capsys, method, key, wrong, row):
    right, cfg = starter(method), starter(method)
    OmegaConf.update(cfg, key, wrong, merge=False)
    read = methods.read(cfg)
    shown = printed(plan(cfg, read, "run"))
    assert row in shown
    # All other rows stay.
    kept = printed(plan(right, methods.read(right), "run"))
    differing = [a for a, b in zip(shown.splitlines(), kept.splitlines(), strict=True) if a.rstrip() != b.rstrip()]
    assert len(differing) <= 1
    show(cfg, read, computable=not any(values.problems(cfg)))
    assert "method" in capsys.readouterr().out
