"""Any exposure × any token weight × any divergence or PPO credit: the parts of a method compose, two steps each.

The loop here is plain torch on a tiny model and four of the starter's problems; the parts in it are those of a run:
prompts and exposure, estimators, token weights, the loss.  That verl's engine computes the same gradient is
tests/workers/training/test_full_vocabulary.py's business.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config
from verl.trainer.ppo import core_algos

import advantage
import advantage.register  # enters the estimators into verl's registry
from advantage.estimators import equal_reward_rows
from advantage.token_weights import TOKEN_WEIGHTS, forward_shares, weigh_tokens
from config import STARTER
from recipes.common.checks import check
from recipes.common.checks.errors import SettingsError
from recipes.common.method import read
from recipes.common.teacher.contexts import PrivilegedPrompts
from recipes.common.teacher.decisions import Observation
from recipes.common.teacher.exposure import ExposureLoop, controller_config, exposure_params
from recipes.common.teacher.prompts import render, student_messages
from tests.builders.configs import composed
from workers.training.loss import COUNT, DIVERGENCE, SelfDistillLoss
from workers.training.packing import FORWARD_SHARES, WEIGHTS
from workers.training.params import LossParams, loss_params

EXPOSURES = {
    "full": {},
    "fixed": {"mode": "fixed", "fixed_exposure": 0.4},
    "random": {"mode": "random", "controller": {"seed": 3}},
    "learned": {"mode": "learned", "controller": {"hold": 1, "lookahead": 1, "decisions_per_update": 2}},
    "by difficulty": {"mode": "fixed", "fixed_exposure": 0.5, "difficulty_strength": 3.0},
}
WEIGHTINGS = ("uniform", "position", "dasd")
DIVERGENCES = {
    "opsd": {"kind": "forward_kl", "clip": 0.01},
    "symmetric": {"kind": "forward_kl", "clip": 0.01, "clip_mode": "symmetric"},
    "reverse": {"kind": "reverse_kl"},
    "jsd": {"kind": "jsd", "jsd_beta": 0.3},
    "mixed": {"kind": "mixed_kl", "mixing": "position"},
    "teacher top-k": {"kind": "forward_kl", "top_k": 3},
    "student top-k": {"kind": "jsd", "top_k": 3, "top_k_by": "student"},
}
CREDITS = ("dasd", "pw_opsd_sampled", "atesd_sampled", "opsd_sampled", "rlsd")
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0])
GROUPS = ["a", "a", "b", "b"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(composed("method=atesd", "experiment=starter", run_dir=tmp_path_factory.mktemp("composition") / "run"))


class Bench:
    """A tiny untrained model, four problems with a fixed response each, and the two-step loop."""

    def __init__(self, base: DictConfig) -> None:
        self.base = base
        self.shipped = OmegaConf.to_container(base.self_distill)
        self.tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(
            Qwen3Config(
                vocab_size=len(self.tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                initializer_range=0.3,  # sharp enough for the two prompts to disagree
            )
        )
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.rows = pd.read_parquet(STARTER / "data/probe.parquet").to_dict("records")[4:8]
        # Each response is another problem's solution: wrong steps, so that the teacher has something to say.
        texts = [self.rows[(i + 1) % 4]["solution"] for i in range(4)]
        self.responses = [torch.tensor(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def config(self, *, exposure: str = "full", credit: str = "grpo", **loss) -> DictConfig:
        """The nodes of a configuration that say what is learned."""
        return OmegaConf.create(
            {
                "self_distill": {
                    "exposure": OmegaConf.merge(self.shipped["exposure"], {"mode": "full"}, EXPOSURES[exposure]),
                    "teacher": self.shipped["teacher"],
                    "loss": {**dataclasses.asdict(LossParams()), "ppo": credit != "grpo", **loss},
                },
                "algorithm": {"adv_estimator": credit, credit: {}},
            }
        )

    def check(self, cfg: DictConfig) -> list[str]:
        """What the command line would say to the whole configuration; returns the warnings."""
        OmegaConf.set_struct(self.base, False)
        for name, node in cfg.self_distill.items():
            self.base.self_distill[name] = node
        self.base.algorithm.adv_estimator = cfg.algorithm.adv_estimator
        for name in CREDITS:
            self.base.algorithm[name] = cfg.algorithm.get(name)
        return check(self.base, read(self.base), gpus=0)

    def train(self, cfg: DictConfig, responses: list[torch.Tensor] | None = None, steps: int = 2) -> torch.Tensor:
        """All parameters after the steps, as one vector."""
        responses = responses or self.responses
        self.model.load_state_dict(self.start)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        params = loss_params(cfg.self_distill)
        exposure = exposure_params(cfg.self_distill)
        loop = None
        if exposure.active:
            loop = ExposureLoop(exposure, replace(controller_config(cfg.self_distill, exposure), total_steps=9))
        prompts = PrivilegedPrompts(self.tokenizer, "solution", 512, {"enable_thinking": False}, exposure.separator)
        mask = torch.nested.as_nested_tensor([torch.ones_like(r) for r in responses], layout=torch.jagged)
        padded = mask.to_padded_tensor(0).bool()
        for step in range(steps):
            alphas = loop.of_responses(GROUPS, [bool(reward > 0) for reward in REWARDS]) if loop else [1.0] * 4
            students = [
                render(self.tokenizer, student_messages(r["problem"]), {"enable_thinking": False}) for r in self.rows
            ]
            teachers = [prompts(row, alpha).token_ids for row, alpha in zip(self.rows, alphas, strict=True)]
            with torch.no_grad():
                teacher = [self.logits(p, r) for p, r in zip(teachers, responses, strict=True)]
            student = [self.logits(p, r) for p, r in zip(students, responses, strict=True)]
            taken = [(z.log_softmax(-1).gather(1, r[:, None])[:, 0]) for z, r in zip(student, responses, strict=True)]
            gap = [
                t.log_softmax(-1).gather(1, r[:, None])[:, 0] - s.detach()
                for t, s, r in zip(teacher, taken, responses, strict=True)
            ]
            entropy = [-(z.log_softmax(-1) * z.softmax(-1)).sum(-1).detach() for z in student]
            fields = {
                "entropy": torch.nn.utils.rnn.pad_sequence(entropy, batch_first=True),
                "log_prob_gap": torch.nn.utils.rnn.pad_sequence(gap, batch_first=True),
                "token_ids": torch.nn.utils.rnn.pad_sequence(responses, batch_first=True),
            }
            with advantage.token_signals(**fields, step=step + 1, total_steps=steps) as signals:
                advantages = self.advantages(cfg, padded)
                weights = None
                if params.weighting != "uniform":
                    weight = TOKEN_WEIGHTS[params.weighting]
                    weights, _ = weigh_tokens(
                        weight,
                        weight.params_from(cfg.algorithm),
                        signals,
                        response_mask=padded,
                        equal_reward_rows=equal_reward_rows(REWARDS, GROUPS),
                    )
            loss, disagreement = self.loss(params, student, teacher, mask, padded, weights, taken, advantages)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loop:
                seen = Observation(
                    loss=loss.item(),
                    mismatch=disagreement,
                    probe_nll=0.5,
                    confidence=float(torch.cat(taken).detach().mean()),
                    grounded=-0.1 * (step + 1),
                )
                loop.observe(seen)
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).clone()

    def logits(self, prompt: list[int], response: torch.Tensor) -> torch.Tensor:
        ids = torch.cat([torch.tensor(prompt), response])[None]
        return self.model(ids).logits[0, -len(response) - 1 : -1]

    @staticmethod
    def advantages(cfg: DictConfig, padded: torch.Tensor) -> torch.Tensor:
        rewards = torch.zeros(padded.shape)
        rewards[torch.arange(4), padded.sum(-1) - 1] = REWARDS
        compute = core_algos.get_adv_estimator_fn(cfg.algorithm.adv_estimator)
        return compute(token_level_rewards=rewards, response_mask=padded, index=np.array(GROUPS), config=cfg.algorithm)[
            0
        ]

    @staticmethod
    def loss(params, student, teacher, mask, padded, weights, taken, advantages):
        rows = torch.arange(sum(len(z) for z in student))

        def policy_loss(model_output, data, dp_group=None):
            log_probs = torch.cat(taken)
            return -((log_probs - log_probs.detach()).exp() * advantages[padded]).mean(), {}

        loss_function = SelfDistillLoss(params, policy_loss=policy_loss)
        if not params.active:
            return policy_loss(None, None)[0], 0.0
        data = {"response_mask": mask, "dp_size": 1}
        if params.mixing != "constant":
            share = TOKEN_WEIGHTS[params.mixing]
            shares, _ = forward_shares(
                share,
                share.params(),
                advantage.Signals(),
                response_mask=padded,
                equal_reward_rows=equal_reward_rows(REWARDS, GROUPS),
            )
            data[FORWARD_SHARES] = torch.nested.as_nested_tensor(
                [s[m] for s, m in zip(shares, padded, strict=True)], layout=torch.jagged
            )
        value, stats = loss_function.score(
            torch.cat(student),
            torch.cat(teacher),
            rows,
            rollout_temperature=1.0,
            forward_share=loss_function.forward_share(data),
        )
        count = padded.sum() if params.reduction == "token_mean" else len(padded)
        data[COUNT] = int(count)
        if weights is not None:
            data[WEIGHTS] = torch.nested.as_nested_tensor(
                [w[m] for w, m in zip(weights, padded, strict=True)], layout=torch.jagged
            )
        # The engine hands losses over at their packed rows, one row before the token; here every row is scored.
        lengths = mask.offsets().diff()
        starts = torch.cat([torch.zeros(1, dtype=torch.long), (lengths + 1).cumsum(0)])
        places = torch.cat([starts[i] + torch.arange(n) for i, n in enumerate(lengths.tolist())])
        packed = torch.zeros(int(starts[-1])).index_add(0, places, value)
        output = {DIVERGENCE: torch.nested.nested_tensor_from_jagged(packed, starts)}
        return loss_function(output, data)[0], float(stats["top1_disagreement"].mean())


def test_every_combination_trains_and_every_part_counts(bench):
    """All combinations pass the checks and end elsewhere than they began, and than each other: no part is ignored."""
    ends = {}
    for exposure, weighting, divergence in itertools.product(EXPOSURES, WEIGHTINGS, DIVERGENCES):
        cfg = bench.config(exposure=exposure, weighting=weighting, **DIVERGENCES[divergence])
        bench.check(cfg)
        ends[exposure, weighting, divergence] = bench.train(cfg)
    for exposure, credit in itertools.product(EXPOSURES, CREDITS):
        cfg = bench.config(exposure=exposure, credit=credit)
        bench.check(cfg)
        ends[exposure, credit] = bench.train(cfg)
    ends["beside the PPO clip"] = bench.train(
        bench.config(credit="atesd_sampled", **DIVERGENCES["reverse"], coefficient=0.5)
    )
    start = torch.cat([p.flatten() for name, p in bench.start.items() if name in dict(bench.model.named_parameters())])
    assert all(end.isfinite().all() for end in ends.values())
    moved = {name: float((end - start).norm()) for name, end in ends.items()}
    assert min(moved.values()) > 1e-6, min(moved, key=moved.get)
    for (a, end_a), (b, end_b) in itertools.combinations(ends.items(), 2):
        assert float((end_a - end_b).norm()) > 1e-3 * min(moved[a], moved[b]), (a, b)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_exposure_one_is_no_truncation(bench, weighting, divergence):
    """ATESD at α = 1 is OPSD (its eq. 2), bit for bit."""
    full = bench.config(weighting=weighting, **DIVERGENCES[divergence])
    fixed = full.copy()
    fixed.self_distill.exposure.mode, fixed.self_distill.exposure.fixed_exposure = "fixed", 1.0
    assert torch.equal(bench.train(full), bench.train(fixed))


@pytest.mark.parametrize("credit", CREDITS)
def test_exposure_one_is_no_truncation_in_the_ppo_clip(bench, credit):
    full = bench.config(credit=credit)
    fixed = full.copy()
    fixed.self_distill.exposure.mode, fixed.self_distill.exposure.fixed_exposure = "fixed", 1.0
    assert torch.equal(bench.train(full), bench.train(fixed))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weight_one_is_uniform(bench, divergence):
    """PW-OPSD with a floor of one is OPSD's per-sequence mean."""
    uniform = bench.config(reduction="sequence_mean", **DIVERGENCES[divergence])
    weighted = bench.config(reduction="sequence_mean", weighting="position", **DIVERGENCES[divergence])
    weighted.algorithm.pw_opsd = {"floor": 1.0}
    assert torch.equal(bench.train(uniform), bench.train(weighted))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_per_sequence_is_global_where_lengths_are_equal(bench, weighting):
    shortest = min(map(len, bench.responses))
    equal = [response[:shortest] for response in bench.responses]
    pooled = bench.config(weighting=weighting, **DIVERGENCES["opsd"])
    by_sequence = bench.config(weighting=weighting, reduction="sequence_mean", **DIVERGENCES["opsd"])
    torch.testing.assert_close(bench.train(pooled, equal), bench.train(by_sequence, equal), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(bench.train(pooled), bench.train(by_sequence), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["upper", "symmetric"])
def test_an_infinite_clip_is_none(bench, mode):
    none = bench.config(kind="forward_kl")
    infinite = bench.config(kind="forward_kl", clip=math.inf, clip_mode=mode)
    torch.testing.assert_close(bench.train(none), bench.train(infinite), rtol=1e-6, atol=1e-8)


def test_what_means_nothing_is_refused_with_a_reason(bench):
    def problems(cfg) -> str:
        with pytest.raises(SettingsError) as caught:
            bench.check(cfg)
        return str(caught.value)

    assert "cannot be an advantage" in problems(bench.config(credit="dasd", top_k=3))
    same = bench.config(**DIVERGENCES["opsd"])
    same.self_distill.teacher.context, same.self_distill.teacher.weights = "problem", "current"
    assert "the teacher would be the student" in problems(same)
    partial = bench.config(exposure="fixed", **DIVERGENCES["opsd"])
    partial.self_distill.teacher.context = "answer"
    assert "no reasoning to show in part" in problems(partial)
    alone = bench.config(exposure="learned", credit="hepo")
    assert "uses a teacher" in problems(alone)
    unweighted = bench.config(credit="dasd", weighting="position")
    assert "no divergence to weigh" in problems(unweighted)
    hopeless = bench.config(exposure="learned", **DIVERGENCES["opsd"])
    hopeless.self_distill.exposure.controller.lookahead = 40
    (warning,) = bench.check(hopeless)  # people smoke-test two steps
    assert "stays random to the end" in warning
