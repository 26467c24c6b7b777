"""What the methods say of themselves: the README's table, the list, and old names that are refused with the new one."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf, open_dict

from advantage.estimators import RENAMED, get_estimator
from recipes import methods
from recipes.common.method import read, shipped
from tests.builders.configs import ROOT
from tests.builders.forked import command


def test_the_readmes_table_is_the_one_that_the_methods_make():
    assert methods.markdown() in (ROOT / "README.md").read_text(), "python -m recipes.methods --markdown prints it anew"


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("grpo", "reward"),
        ("dasd", "reward, reference; the teacher's scores"),
        ("opsd", "reference; the teacher in the update"),
        ("sft", "worked solution"),
        ("atesd_sampled", "reward, worked solution; the teacher's scores, a probe"),
        ("sdpo", "reward, a right sibling; the teacher in the update, weights of its own"),
        ("rlcsd", "reward, right and wrong siblings; scores under up to 5 prompts, weights of its own"),
    ],
)
def test_what_a_method_needs_by_hand(compose_config, method, needed):
    assert methods.needs(read(compose_config(f"method={method}", "experiment=qwen3_1_7b_dapo"))) == needed


def test_what_a_step_costs_is_a_ratio_to_grpos_in_the_same_run():
    measured = json.loads(methods.COSTS.read_text())
    assert not set(measured) - {"plain torch, grpo"} - {method.name for method in shipped()}, "no method's name"
    assert methods.cost("grpo") == "1.0"
    assert methods.cost("dasd") == f"{measured['dasd']['step'] / measured['grpo']['step']:.1f}"
    assert methods.cost("mine") == "–"


def test_a_control_without_a_reference_needs_none(compose_config):
    cfg = compose_config("method=dasd", "experiment=starter", "self_distill.teacher.context=none")
    assert methods.needs(read(cfg)) == "reward; the teacher's scores"


def test_every_command_names_a_module_that_is_there():
    for method in shipped():
        module = methods.command(method.name).split()[2]
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), method
    assert methods.command("dasd") == "python -m recipes.dasd.main"
    assert methods.command("pw_opsd_sampled") == "python -m recipes.pw_opsd.main method=pw_opsd_sampled"
    assert methods.command("mine") == "python -m recipes.entry method=mine"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_of_an_estimator_is_refused_with_the_new_one(compose_config, old):
    with pytest.raises(ValueError, match=f"called '{RENAMED[old]}' now"):
        get_estimator(old)
    cfg = compose_config("method=dasd", "experiment=starter", f"algorithm.adv_estimator={old}")
    assert any(f"it is called {RENAMED[old]} now" in problem for problem in read(cfg).problems)


def test_old_parameters_are_refused_with_the_new_name(compose_config):
    cfg = compose_config("method=dasd", "experiment=starter")
    with open_dict(cfg):
        cfg.algorithm.atesd = {"beta": 0.1}
        cfg.algorithm.pw_opsd = {"schedule": "mild"}  # still the parameters of the divergence's weight
    (problem,) = read(cfg).problems
    assert problem == "algorithm.atesd: these parameters are called algorithm.atesd_sampled now"


@pytest.mark.parametrize("old", ["atesd_ppo", "pw_opsd_ppo"])
def test_an_old_bundle_is_refused_with_the_new_name(tmp_path, old):
    done = command("recipes.atesd.main", f"method={old}", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2 and f"method={old} is called method={old[:-3]}sampled now" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_is_collected_and_the_rest_is_read(compose_config):
    cfg = compose_config("method=opsd", "experiment=starter", "self_distill.teacher.ema_decay=2")
    OmegaConf.update(cfg, "self_distill.loss.clip", -1)
    method = read(cfg)
    assert len(method.problems) == 2 and method.about.name == "opsd" and not method.loss.active
    assert read(compose_config("method=opsd", "experiment=starter")).problems == ()
