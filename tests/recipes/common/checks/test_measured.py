"""recipes.common.checks.measured: token signals that an engine, an attention or a model cannot give."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import Gemma2Config

from recipes.common.checks.measured import measured
from recipes.common.method import read
from tests.builders.configs import composed

ACTOR = "actor_rollout_ref.actor"
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> DictConfig:
    return composed("method=dasd", "experiment=starter", run_dir=tmp_path_factory.mktemp("measured"))


def said(base: DictConfig, router: str, **changes) -> list[str]:
    cfg = base.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.algorithm.dasd.router = router
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return list(measured(cfg, read(cfg)))


@pytest.mark.parametrize("router", ["gradient_norm", "attention_entropy"])
def test_on_the_starter_both_are_measured(base, router):
    assert said(base, router) == []
    cfg = base.copy()
    cfg.algorithm.dasd.router = router
    assert read(cfg).measured == (router,)
    assert len(read(cfg).measures) == 1 and read(base).measures == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{ACTOR}.strategy", "megatron"),
        (f"{ACTOR}.ulysses_sequence_parallel_size", 2),
        (f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size", 4),
        (f"{ACTOR}.fsdp_config.pad_to_length", True),
    ],
)
@pytest.mark.parametrize("router", ["gradient_norm", "attention_entropy"])
def test_engines_that_cannot(base, router, key, value):
    (problem,) = said(base, router, **{key: value})
    assert problem.startswith(f"{key}={value}".replace("True", "true")) and router in problem and "set it to" in problem
    assert said(base, "entropy", **{key: value}) == []


def test_eager_attention_has_no_entropy_but_gradient_norms(base):
    (problem,) = said(base, "attention_entropy", **{ATTENTION: "eager"})
    assert problem.startswith(f"{ATTENTION}=eager")
    assert said(base, "gradient_norm", **{ATTENTION: "eager"}) == []


def test_a_model_with_soft_caps_is_refused(base, tmp_path):
    path = tmp_path / "capped"
    Gemma2Config(num_hidden_layers=1).save_pretrained(path)
    gradient = said(base, "gradient_norm", **{"actor_rollout_ref.model.path": str(path)})
    assert len(gradient) == 1 and "final_logit_softcapping=30.0" in gradient[0]
    attention = said(base, "attention_entropy", **{"actor_rollout_ref.model.path": str(path)})
    assert len(attention) == 2 and "caps its attention scores" in attention[1]


def test_a_model_that_is_not_here_is_left_to_the_engine(base):
    assert said(base, "attention_entropy", **{"actor_rollout_ref.model.path": "/nowhere"}) == []


def test_layers_that_there_are_not(base):
    (problem,) = said(base, "entropy", **{"self_distill.attention_entropy_layers": "first"})
    assert problem == "self_distill.attention_entropy_layers=first: must be one of last, all"
