"""SDPO's, SRPO's and EOPD's whole loss against their formulas, written token by token, and at the limits between them.

Signals of a batch, the driver's credit and weights, the worker's loss, verl's PPO clip: all but the models, whose
logits are drawn.  The reference is fp64 autograd over loops, and knows nothing of packing, micro-batches or workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from advantage.estimators import CreditInputs, params_from_config, run_estimator
from advantage.token_weights import TOKEN_WEIGHTS, weigh_tokens
from workers.divergence import reduction_count, token_log_probs
from workers.training.loss import COUNT, DIVERGENCE, SelfDistillLoss, scatter_tokens
from workers.training.packing import WEIGHTS, scored_rows
from workers.training.params import LossParams

VOCABULARY, PROMPT = 13, 2
LENGTHS = [3, 5, 1, 4]
SDPO = {"kind": "jsd", "jsd_beta": 0.5, "top_k": 4, "top_k_by": "student", "importance_clip": 2.0}
EOPD = {"kind": "forward_kl", "top_k": 4, "student_norm": "full", "ppo": True}
SOME = torch.tensor([True, False, True, False])


@dataclass(frozen=True)
class Method:
    """What a bundle chooses, and its parameters."""

    loss: dict
    weighting: str | None = None
    credit: str = "opsd_sampled"
    params: dict | None = None


def sdpo(**loss) -> Method:
    return Method({**SDPO, "ppo": False, **loss}, "taught")


def srpo(sharpness: float = 1.0) -> Method:
    return Method({**SDPO, "ppo": True}, "srpo", "srpo", {"entropy_sharpness": sharpness})


def eopd(threshold: float = 0.8) -> Method:
    return Method(EOPD, "eopd", "opsd_sampled", {"entropy_threshold": threshold})


def policy_loss(model_output, data, dp_group=None):
    """verl's PPO clip, 0.2 to both sides, as a mean over tokens."""
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    options = {"ppo_micro_batch_size_per_gpu": 1, "rollout_n": 1, "use_dynamic_bsz": False}
    config = FSDPActorConfig(strategy="fsdp2", loss_agg_mode="token-mean", **options)
    return ppo_loss(config, model_output, data, dp_group)


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


class Batch:
    """Four responses: logits of both sides, what was sampled, and what the rollout's policy said of it."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(7)
        self.student = [2 * torch.randn(n, VOCABULARY, generator=draw) for n in LENGTHS]
        self.teacher = [3 * torch.rand(1, generator=draw) * torch.randn(n, VOCABULARY, generator=draw) for n in LENGTHS]
        self.ids = [torch.randint(0, VOCABULARY, (n,), generator=draw) for n in LENGTHS]
        current = [z.log_softmax(-1).gather(1, i[:, None])[:, 0] for z, i in zip(self.student, self.ids, strict=True)]
        self.old = [own + 0.8 * torch.randn(len(own), generator=draw) for own in current]  # the ratio leaves its bounds
        self.mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        self.group_advantage = torch.tensor([0.7, -1.2, 0.4, -0.6])[:, None] * self.mask

    def padded(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def signals(self, has_teacher: torch.Tensor) -> CreditInputs:
        scores = [(z.log_softmax(-1), i[:, None]) for z, i in zip(self.teacher, self.ids, strict=True)]
        gap = [p.gather(1, i)[:, 0] - old for (p, i), old in zip(scores, self.old, strict=True)]
        return CreditInputs(
            group_advantage=self.group_advantage,
            response_mask=self.mask,
            scores=torch.tensor([1.0, 0.0, 1.0, 0.0]),
            equal_reward_rows=torch.zeros(4, dtype=torch.bool),
            log_prob_gap=self.padded(gap) * has_teacher[:, None],
            teacher_entropy=self.padded([-(p.exp() * p).sum(-1) for p, _ in scores]) * has_teacher[:, None],
            has_teacher=has_teacher,
        )


def trained(method: Method, has_teacher: torch.Tensor, parts: list[list[int]] | None = None, workers: int = 1):
    """Loss and gradient (tokens, V) of what a run trains; `parts`: rows of each micro-batch, dealt to the workers."""
    batch, params = Batch(), LossParams(weighting=method.weighting or "uniform", **method.loss)
    signals = batch.signals(has_teacher)
    node = {method.credit: method.params} if method.credit == "srpo" else {}
    advantages = run_estimator(method.credit, signals, params_from_config(method.credit, node)).advantages
    factors = None
    if method.weighting is not None:
        weight = TOKEN_WEIGHTS[method.weighting]
        factors, _ = weigh_tokens(
            weight,
            weight.params_from({weight.node: method.params}),
            signals,
            response_mask=batch.mask,
            equal_reward_rows=signals.equal_reward_rows,
        )
    logits = [z.clone().requires_grad_() for z in batch.student]
    count = int(reduction_count(batch.mask, params.reduction))
    total, loss = 0.0, SelfDistillLoss(params, policy_loss=policy_loss)
    for rows in parts or [[0, 1, 2, 3]]:
        masks = [torch.ones(LENGTHS[i], dtype=torch.int64) for i in rows]
        sequences = [torch.cat([torch.zeros(PROMPT, dtype=torch.int64), batch.ids[i]]) for i in rows]

        def of_rows(values: torch.Tensor, rows: list[int] = rows) -> torch.Tensor:
            return jagged([values[i, : LENGTHS[i]] for i in rows])

        fields = {
            "input_ids": jagged(sequences),
            "prompts": jagged([s[:PROMPT] for s in sequences]),
            "responses": jagged([s[PROMPT:] for s in sequences]),
            "response_mask": jagged(masks),
            "old_log_probs": jagged([batch.old[i] for i in rows]),
            "advantages": of_rows(advantages),
        }
        if factors is not None:
            fields[WEIGHTS] = of_rows(factors)
        data = TensorDict(fields, batch_size=len(rows))
        tu.assign_non_tensor(data, dp_size=workers, batch_num_tokens=count, global_batch_size=4, **{COUNT: count})
        offsets = data["input_ids"].offsets()
        where = scored_rows(offsets, data["response_mask"])
        packed = torch.zeros(sum(map(len, sequences)), VOCABULARY)
        packed = packed.index_add(0, where, torch.cat([logits[i] for i in rows]))
        teacher = torch.cat([batch.teacher[i] for i in rows]).clone()
        value, _ = loss.score(packed[None], teacher, where, rollout_temperature=1.0)
        outputs = {
            DIVERGENCE: scatter_tokens(value, where, len(packed)),
            "log_probs": token_log_probs(packed, torch.roll(data["input_ids"].values(), -1)),
        }
        nested = {name: torch.nested.nested_tensor_from_jagged(v, offsets) for name, v in outputs.items()}
        share, _ = loss(nested, data)
        (share / workers).backward()  # FSDP averages over the workers
        total += share.item() / workers
    return total, torch.cat([z.grad for z in logits])


# --- the formulas, token by token -------------------------------------------------------------------------------------


def jsd_with_a_bucket(s: torch.Tensor, t: torch.Tensor, k: int) -> torch.Tensor:
    """Generalised JSD of one token at ½ over the student's k likeliest tokens and the rest."""
    top = s.topk(k).indices
    pair = []
    for z in (s, t):
        listed = z.log_softmax(-1)[top]
        pair.append(torch.cat([listed, torch.log(-torch.expm1(torch.logsumexp(listed, -1, keepdim=True)))]))
    p, q = pair
    m = (0.5 * p.exp() + 0.5 * q.exp()).log()
    return 0.5 * (p.exp() * (p - m)).sum() + 0.5 * (q.exp() * (q - m)).sum()


def clip_term(log_p: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    ratio = (log_p - old).exp()
    worst = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
    return torch.minimum(worst, -advantage * 3.0) if advantage < 0 else worst  # verl's dual clip


def by_formula(name: str, has_teacher: torch.Tensor, parameter: float) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the paper's formula in fp64."""
    batch = Batch()
    logits = [z.double().requires_grad_() for z in batch.student]
    tokens = [(i, t) for i, n in enumerate(LENGTHS) for t in range(n)]
    taught = [(i, t) for i, t in tokens if has_teacher[i]]
    teacher = [z.double() for z in batch.teacher]
    uncertain = {(i, t): -(teacher[i][t].softmax(-1) * teacher[i][t].log_softmax(-1)).sum() for i, t in tokens}
    mean = sum(math.exp(-parameter * uncertain[at]) for at in taught) / max(len(taught), 1)
    total = torch.zeros((), dtype=torch.float64)
    for i, t in tokens:
        s, q, token, old = logits[i][t], teacher[i][t], batch.ids[i][t], batch.old[i][t].double()
        log_p = s.log_softmax(-1)[token]
        ratio = (log_p - old).exp().detach().clamp(max=2.0)
        if name == "sdpo":
            total = total + (ratio * jsd_with_a_bucket(s, q, 4) / len(taught) if has_teacher[i] else 0.0)
        elif name == "srpo":
            if has_teacher[i]:
                weight = math.exp(-parameter * uncertain[i, t]) / mean
                term = weight * ratio * jsd_with_a_bucket(s, q, 4)
            else:
                term = clip_term(log_p, old, batch.group_advantage[i, t].double())
            total = total + term / len(tokens)
        else:
            term = clip_term(log_p, old, q.log_softmax(-1)[token] - old)
            if uncertain[i, t] > parameter:
                top = q.topk(4)
                kept = top.values.log_softmax(-1)
                term = term + (kept.exp() * (kept - s.log_softmax(-1)[top.indices])).sum()
            total = total + term / len(tokens)
    total.backward()
    zero = torch.zeros(VOCABULARY, dtype=torch.float64)
    return total.item(), torch.cat([z.grad if z.grad is not None else zero.expand(len(z), -1) for z in logits])


ALL = torch.ones(4, dtype=torch.bool)
NONE = ~ALL
CASES = {
    "sdpo": ("sdpo", sdpo(), ALL, 0.0),
    "sdpo, some without a context": ("sdpo", sdpo(), SOME, 0.0),
    "srpo": ("srpo", srpo(), SOME, 1.0),
    "srpo, sharp": ("srpo", srpo(4.0), SOME, 4.0),
    "eopd": ("eopd", eopd(), ALL, 0.8),
    "eopd, narrow gate": ("eopd", eopd(1.6), ALL, 1.6),
}


def close(found, expected, tolerance: float = 2e-6) -> None:
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-5, abs=1e-7)
    scale = expected[1].abs().max().clamp(min=1e-9)
    assert ((found[1].double() - expected[1].double()).abs().max() / scale) < tolerance


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_the_papers_formula(case):
    name, method, has_teacher, parameter = CASES[case]
    expected = by_formula(name, has_teacher, parameter)
    assert expected[1].abs().max() > 1e-3
    close(trained(method, has_teacher), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 3], [1, 2]]], ids=str)
def test_micro_batches_and_workers_do_not_matter(case, parts):
    """One denominator over the global batch: a micro-batch of responses without a teacher adds nothing of its own."""
    _, method, has_teacher, _ = CASES[case]
    whole = trained(method, has_teacher)
    close(trained(method, has_teacher, parts), whole)
    close(trained(method, has_teacher, parts, workers=2), whole)


def test_sdpo_over_the_whole_vocabulary_is_the_jsd():
    full = trained(sdpo(top_k=VOCABULARY, importance_clip=None), ALL)
    jsd = Method({"kind": "jsd", "jsd_beta": 0.5, "ppo": False})
    close(full, trained(jsd, ALL))
    assert full[0] > trained(sdpo(top_k=2, importance_clip=None), ALL)[0] > 0  # the bucket hides a part


def test_srpo_of_accepted_responses_is_grpo():
    grpo = Method({**SDPO, "ppo": True}, "taught", "srpo", None)  # no response has a teacher: the clip on A_G is left
    alone = trained(srpo(), NONE)
    close(alone, trained(grpo, NONE))
    expected = by_formula("srpo", NONE, 1.0)
    close(alone, expected)


def test_srpo_of_failed_responses_with_uniform_weights_is_sdpo():
    close(trained(srpo(0.0), ALL), trained(sdpo(), ALL))
    assert abs(trained(srpo(1.0), ALL)[0] - trained(sdpo(), ALL)[0]) > 1e-3


def test_eopds_gate_at_its_ends():
    """Never open: OPSD's sampled-token form in the PPO clip. Always open: that and the KL on every token."""
    sampled = Method({**EOPD, "coefficient": 1e-12})
    close(trained(eopd(math.inf), ALL), trained(sampled, ALL))
    close(trained(eopd(-1.0), ALL), trained(Method(EOPD), ALL))
    between = trained(eopd(), ALL)[0]
    assert trained(eopd(math.inf), ALL)[0] < between < trained(eopd(-1.0), ALL)[0]


def test_the_importance_ratio_is_a_constant_and_has_an_upper_bound_only():
    batch, loss = Batch(), SelfDistillLoss(LossParams(**SDPO, ppo=False))
    mask = jagged([torch.ones(n, dtype=torch.int64) for n in LENGTHS])
    old = torch.cat(batch.old)
    shift = torch.tensor([0.0, math.log(2.0), 5.0, -5.0, *[0.0] * 9])
    log_probs = (old + shift).requires_grad_()
    ratio, bounded = loss.importance(log_probs, {"response_mask": mask, "old_log_probs": jagged(batch.old)})
    torch.testing.assert_close(ratio[:4], torch.tensor([1.0, 2.0, 2.0, math.exp(-5.0)]))
    assert bounded.nonzero().flatten().tolist()[-1] == 2 and not ratio.requires_grad
