"""The divergence with the teacher inside verl's engine: its gradient is that of plain transformers on one process.

Each engine case runs in processes of its own (gloo, FSDP2, no Ray) on a model of two layers; the reference here knows
nothing of verl, of packing, of micro-batches or of the closed-form gradient.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.engine_cases import CASES, OPSD, PW_OPSD, SDPO, fp32_error, plain, relative_error, write_material
from tests.builders import forked
from tests.builders.configs import ROOT


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"))


def through_the_engine(material: Path, folder: Path, cases: dict[str, dict], world: int) -> list[dict[str, dict]]:
    """Results of every rank, by case; one start of the processes for all of them."""
    for file in material.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "workers.cpu.platform",
    }
    processes = [
        subprocess.Popen(
            [*forked.python(), "-m", "tests.workers.training.full_vocabulary_worker", str(folder)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def engine_results(material, tmp_path_factory) -> dict[str, list[dict]]:
    """Results of every rank for each case of this module."""
    found = {}
    for world in (1, 2):
        everything = {**CASES, **TRAILING, **IN_BF16}
        everything |= {name: (workers, {**case, "worker": True}) for name, (workers, case) in WORKERS.items()}
        everything |= {name: (workers, {**case, "updates": True}) for name, (workers, case) in UPDATES.items()}
        everything |= {name: (workers, {**case, "scores": True}) for name, (workers, case) in SCORES.items()}
        cases = {name: case for name, (workers, case) in everything.items() if workers == world}
        ranks = through_the_engine(material, tmp_path_factory.mktemp(f"workers_{world}"), cases, world)
        found.update({name: [rank[name] for rank in ranks] for name in cases})
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_plain_transformers(material, engine_results, name):
    world, case = CASES[name]
    results = engine_results[name]
    students = results[0]["initial"]
    base = {} if case.get("teacher", {}).get("weights") in ("frozen", "trust_region") else students
    reference = plain(material, case, students, base)
    assert relative_error(results[0], reference) < fp32_error(case, "cpu")
    # each rank's share is scaled by their number, since gradients are averaged over ranks
    assert sum(sum(r["loss"]) for r in results) / world == pytest.approx(reference["loss"], rel=1e-5, abs=1e-7)
    if case["loss"].get("kind", "none") != "none":
        check_metrics(results, reference)


def check_metrics(results: list[dict], reference: dict) -> None:
    values = reference["values"]
    shares = ("divergence/loss", "divergence/importance_clipped")  # of each rank; added up later
    own = [{k: v for k, v in r["metrics"].items() if k not in shares} for r in results]
    assert all(r["metrics"].keys() == results[0]["metrics"].keys() for r in results)
    metrics = {k: v[0] for k, v in own[0].items() if k.startswith("divergence/")}
    assert all({k: v[0] for k, v in r.items() if k.startswith("divergence/")} == metrics for r in own)
    assert metrics["divergence/mean"] == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-7)
    assert metrics["divergence/max"] == pytest.approx(float(values.max()), rel=1e-5, abs=1e-6)
    assert metrics["divergence/negative_share"] == pytest.approx(float((values < 0).double().mean()))
    if "divergence/student_entropy" in metrics:  # without PPO no other pass has them
        assert metrics["divergence/student_entropy"] == pytest.approx(float(reference["entropy"].mean()), rel=1e-5)
        assert metrics["divergence/student_logprob"] == pytest.approx(float(reference["log_prob"].mean()), rel=1e-5)
    ordered = values.sort().values
    assert metrics["divergence/p99"] == pytest.approx(
        float(ordered[-(-99 * len(values) // 100) - 1]), rel=1e-5, abs=1e-6
    )


def test_the_cases_exercise_what_they_name(material, engine_results):
    """Clips that cut, weights that matter, a frozen teacher that is not the student: else equality proves little."""
    for name, change in (
        ("opsd", {"loss": {**OPSD, "clip": None}}),
        ("jsd, checkpointing, rollout temperature", {"rollout_temperature": 1.0}),
        ("pw-opsd, micro 3", {"weighted": False}),
        ("mixed, weighed too, two workers", {"mixed": False}),
        ("pw-opsd, two workers", {"loss": {**PW_OPSD, "reduction": "token_mean"}}),
    ):
        case = CASES[name][1]
        students = engine_results[name][0]["initial"]
        other = plain(material, {**case, **change}, students, students)
        assert relative_error(engine_results[name][0], other) > 1e-3, name
    for name, change in (
        ("sdpo", {"loss": {**SDPO, "importance_clip": None}}),
        ("sdpo", {"loss": {**SDPO, "importance_clip": 1e9}}),
        ("srpo, two workers", {"loss": {**SDPO, "ppo": False}}),
        ("eopd", {"weights_minus": 0.0}),
        ("eopd", {"loss": {"kind": "forward_kl", "top_k": 5, "ppo": True}}),
        ("trust region", {"teacher": {"weights": "trust_region", "trust_region_mix": 0.0}}),
        ("trust region, lora", {"teacher": {"weights": "trust_region", "trust_region_mix": 0.0}}),
    ):
        case = CASES[name][1]
        students = engine_results[name][0]["initial"]
        other = plain(material, {**case, **change}, students, {} if "teacher" in case else students)
        assert relative_error(engine_results[name][0], other) > 1e-3, (name, change)
    for name in ("frozen copy, two workers", "lora, adapter off, two workers"):
        students = engine_results[name][0]["initial"]
        current = plain(material, CASES[name][1], students, students)
        assert relative_error(engine_results[name][0], current) > 1e-3, name


@pytest.mark.parametrize("name", ["pw-opsd, micro 3", "pw-opsd, two workers"])
def test_an_update_with_a_gradient_that_is_not_finite_changes_nothing_on_any_worker(engine_results, name):
    """NaN in one token of one worker: no worker's weights or moments change, and the next update is made."""
    for result in engine_results[name]:
        told = result["spoiled"]
        assert [math.isfinite(norm) for norm in told["norms"]] == [True, False, True]
        assert told["unchanged"] and told["goes on"]
        assert told["values"] == 4 * len(result["initial"])  # of each parameter: itself, two moments, a step count


TRAILING = {
    "ema": (
        2,
        {
            "loss": OPSD,
            "micro": 3,
            "steps": 3,
            "teacher": {"weights": "ema", "ema_decay": 0.9},
            "resume": "ema",
            "undo": True,
        },
    ),
    "snapshot": (
        2,
        {
            "loss": OPSD,
            "micro": 3,
            "steps": 3,
            "teacher": {"weights": "snapshot", "snapshot_every": 2},
            "resume": "snapshot",
        },
    ),
    "frozen": (2, {"loss": OPSD, "micro": 3, "steps": 2, "teacher": {"weights": "frozen"}, "resume": "frozen"}),
    "ema, kept unsharded": (
        2,
        {
            "loss": OPSD,
            "micro": 3,
            "steps": 3,
            "teacher": {"weights": "ema", "ema_decay": 0.9},
            "reshard_after_forward": False,
            "resume": "unsharded",
        },
    ),
    "snapshot, offloaded": (
        1,
        {
            "loss": OPSD,
            "micro": 3,
            "steps": 3,
            "teacher": {"weights": "snapshot", "snapshot_every": 2},
            "param_offload": True,
            "resume": "offloaded",
            "undo": True,
        },
    ),
    "lora ema": (
        2,
        {
            "loss": OPSD,
            "micro": 3,
            "steps": 2,
            "lora": True,
            "teacher": {"weights": "ema", "ema_decay": 0.5},
            "resume": "lora",
        },
    ),
}


@pytest.mark.parametrize("name", TRAILING)
def test_a_teacher_follows_the_student_as_its_weights_say(engine_results, name):
    first, case = engine_results[name][0], TRAILING[name][1]
    expected = {n: v.double() for n, v in first["initial"].items()}
    for step in range(case["steps"]):
        teacher, student = first["teachers"][2 * step], first["teachers"][2 * step + 1]
        for parameter, value in expected.items():
            if case["teacher"]["weights"] == "ema":
                decay = case["teacher"]["ema_decay"]
                value = decay * value + (1 - decay) * student[parameter].double()
            elif case["teacher"]["weights"] == "snapshot" and (step + 1) % case["teacher"]["snapshot_every"] == 0:
                value = student[parameter].double()
            expected[parameter] = value
            assert torch.allclose(teacher[parameter].double(), value, rtol=1e-5, atol=1e-7), (step, parameter)
    moved = [n for n, v in first["initial"].items() if not torch.equal(v, first["teachers"][-1][n])]
    assert moved  # the student did train
    if case["teacher"]["weights"] != "frozen":
        same, steps = first["restored"]
        assert same and steps == case["steps"]


@pytest.mark.parametrize("name", TRAILING)
def test_an_engine_that_starts_from_a_checkpoint_goes_on_as_the_one_that_wrote_it(engine_results, name):
    """Weights, moments, learning rate, random numbers, teacher: on each worker, bit for bit."""
    for result in engine_results[name]:
        assert set(result["resumed"].values()) == {True}, result["resumed"]


# Two updates before the step ends: what DASD's distribution-level loss has four of.
UPDATES = {
    "snapshot of every step": (
        1,
        {"loss": OPSD, "micro": 6, "teacher": {"weights": "snapshot", "snapshot_every": 1}},
    ),
    "current": (1, {"loss": OPSD, "micro": 6}),
}


@pytest.mark.parametrize("name", ["ema", "snapshot, offloaded", "scores without the adapter"])
def test_an_update_that_is_taken_back_leaves_nothing_behind(engine_results, name):
    """With moments and without any yet; the next update is the one that it would have been."""
    for result in engine_results[name]:
        assert len(result["undone"]) == 14 and all(result["undone"].values()), result["undone"]


def test_a_snapshot_of_every_step_stands_still_within_it(engine_results):
    """And `current` does not: with it the teacher would be another one at each update of a step."""
    assert engine_results["snapshot of every step"][0]["between"] == {"same in a step": True, "same in the next": False}
    assert engine_results["current"][0]["between"] == {"same in a step": False, "same in the next": False}


SCORES = {
    "scores": (
        1,
        {
            "loss": OPSD,
            "rollout_temperature": 1.3,
            "measures": {"calculate_gradient_norm": True, "calculate_attention_entropy": "last"},
            "dynamic": True,
            "max_tokens": 40,
        },
    ),
    "scores without a divergence, two workers": (
        2,
        {
            "loss": {},
            "rollout_temperature": 0.8,
            "micro": 3,
            "attention": "packed",
            "measures": {"calculate_gradient_norm": True, "calculate_attention_entropy": "all"},
        },
    ),
    "scores of a copy, two workers": (2, {"loss": OPSD, "teacher": {"weights": "frozen"}, "perturb": True, "micro": 3}),
    "scores of a trust region, two workers": (
        2,
        {"loss": OPSD, "teacher": {"weights": "trust_region", "trust_region_mix": 0.3}, "perturb": True, "micro": 3},
    ),
    "scores of a trust region, offloaded": (
        1,
        {
            "loss": OPSD,
            "teacher": {"weights": "trust_region", "trust_region_mix": 0.3},
            "perturb": True,
            "param_offload": True,
        },
    ),
    "scores of a trust region with an adapter": (
        1,
        {
            "loss": OPSD,
            "teacher": {"weights": "trust_region", "trust_region_mix": 0.3},
            "perturb": True,
            "lora": True,
            "rollout_temperature": 1.3,
        },
    ),
    "scores without the adapter": (
        1,
        {"loss": OPSD, "teacher": {"weights": "frozen"}, "perturb": True, "lora": True, "undo": True},
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_log_probs_and_entropies_are_those_of_plain_transformers(material, engine_results, name):
    """From hidden states, by the student's weights and by the teacher's; a masked token has them too."""
    world, case = SCORES[name]
    rows = torch.load(material / "batch.pt")
    students = engine_results[name][0]["initial"]
    teachers = {} if case.get("teacher") else students
    everything = {**case, "same_prompts": True}
    everything["loss"] = {"ppo": False, "temperature": case.get("rollout_temperature", 1.0)}
    found = plain(material, everything, students, teachers)
    lengths = [int(mask.sum()) for mask in rows["mask"]]
    for who, prefix in (("student", ""), ("teacher", "teacher_")):
        expected = {name: found[f"{prefix}{name}"].split(lengths) for name in ("log_prob", "entropy")}
        for rank, result in enumerate(engine_results[name]):
            scored = result["scored"] if who == "student" else result["scored"]["by the teacher"]
            for own, row in enumerate(range(len(lengths))[rank::world]):
                valid = rows["mask"][row].bool()
                for ours, theirs in (("log_probs", "log_prob"), ("entropy", "entropy")):
                    assert scored[ours][own].dtype == torch.float32
                    assert torch.allclose(scored[ours][own][valid].double(), expected[theirs][row], atol=2e-6), who
            assert 0.0 <= result["scored"]["noise"] < 1e-5  # fp32: nothing but rounding


@pytest.mark.parametrize("name", [name for name, (_, case) in SCORES.items() if "measures" in case])
def test_what_routers_read_is_that_of_plain_transformers(material, engine_results, name):
    """Of each sequence alone: gradients of a backward pass a token, and the weights of eager attention."""
    world, case = SCORES[name]
    rows, layers = torch.load(material / "batch.pt"), case["measures"]["calculate_attention_entropy"]
    model = AutoModelForCausalLM.from_pretrained(material / "model", dtype=torch.float64, attn_implementation="eager")
    model.load_state_dict(engine_results[name][0]["initial"])
    head = model.get_output_embeddings().weight
    for rank, result in enumerate(engine_results[name]):
        for own, row in enumerate(range(len(rows["mask"]))[rank::world]):
            ids, length = rows["student"][row], len(rows["mask"][row])
            out = model(ids[None], output_attentions=True)
            log_p = (out.logits[0, -length - 1 : -1] / case["rollout_temperature"]).log_softmax(-1)
            taken = log_p.gather(1, ids[-length:, None])[:, 0]
            norms = [torch.autograd.grad(one, head, retain_graph=True)[0].norm() for one in taken]
            weights = torch.stack(out.attentions)[:, 0, :, -length - 1 : -1]  # (layers, heads, rows, keys)
            of_layers = torch.special.entr(weights).sum(-1).mean(1)
            entropy = of_layers[-1] if layers == "last" else of_layers.mean(0)
            scored = result["scored"]
            assert scored["gradient_norm"][own].dtype == scored["attention_entropy"][own].dtype == torch.float32
            assert torch.allclose(scored["gradient_norm"][own].double(), torch.stack(norms), rtol=1e-5, atol=0)
            assert torch.allclose(scored["attention_entropy"][own].double(), entropy, rtol=0, atol=2e-6)
            assert set(scored["by the teacher"]) == {"log_probs", "entropy", "noise"}  # nobody asked there


WORKERS = {
    "verl's worker, opsd": (2, {"loss": OPSD, "micro": 1, "teacher": {"weights": "snapshot", "snapshot_every": 1}}),
    "verl's worker, the clip alone": (2, {"loss": {}, "micro": 1}),
}


@pytest.mark.parametrize("name", WORKERS)
def test_verls_worker_tells_what_the_engine_measured(engine_results, name):
    """Scores, then a step: fp32 log-probs, their noise, the divergence, and nothing of ours that is not a metric."""
    for result in engine_results[name]:
        metrics = result["metrics"]
        assert result["dtype"] == torch.float32
        assert 0.0 <= max(metrics["log_prob_noise/max"]) < 1e-5
        assert len(metrics["grad_norm"]) == result["mini-batches"] == 3 and all(
            map(math.isfinite, metrics["grad_norm"])
        )
        assert all(mfu > 0 for mfu in metrics["mfu"]) and "teacher_lengths" not in metrics
        assert ("divergence/student_entropy" in metrics) == ("opsd" in name)
        assert ("actor/pg_loss" in metrics) == ("opsd" not in name)


IN_BF16 = {
    name + ", bf16": (1, {**case, "dtype": "bf16"})
    for name, case in {
        "clip alone": CASES["clip alone"][1],
        "opsd": CASES["opsd"][1],
        "opsd, from logits": CASES["opsd, from logits"][1],
        "dasd distribution": CASES["dasd distribution, two workers"][1],
        "the same prompts": {
            "loss": {**OPSD, "clip": None},
            "same_prompts": True,
            "rollout_temperature": 1.1,
            "micro": 6,
        },
    }.items()
}


@pytest.mark.parametrize("name", [name for name in IN_BF16 if "same" not in name])
def test_in_bf16_the_error_is_that_of_plain_transformers(material, engine_results, name):
    """Also of the clip alone: without flash-attn verl would round its log-probs to 16 bits."""
    case, result = IN_BF16[name][1], engine_results[name][0]
    exact = plain(material, case, result["initial"], result["initial"])
    usual = relative_error(plain(material, case, result["initial"], result["initial"], torch.bfloat16), exact)
    assert relative_error(result, exact) < 2 * usual


def test_a_teacher_that_sees_the_same_prompt_teaches_nothing(engine_results):
    """In bf16 and at a temperature: both sides are divided alike, and in fp32."""
    result = engine_results["the same prompts, bf16"][0]
    assert abs(result["metrics"]["divergence/max"][0]) < 1e-6 and abs(result["loss"][0]) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.1}, {"kind": "jsd"}, {"top_k": 3}, {"kind": "reverse_kl"}])
def test_equal_logits_have_no_divergence_at_any_temperature(settings):
    """16-bit logits, rollout at 1.1: exactly zero, and so is the gradient but for the normaliser's last digit."""
    from workers.training.loss import SelfDistillLoss
    from workers.training.params import LossParams

    logits = (5 * torch.randn(6, 37, generator=torch.Generator().manual_seed(0))).bfloat16()
    student, rows = logits.clone().requires_grad_(), torch.arange(6)
    loss = SelfDistillLoss(LossParams(**{"kind": "forward_kl", "ppo": False, **settings}))
    value, _ = loss.score(student, logits.clone(), rows, rollout_temperature=1.1)
    assert torch.equal(value, torch.zeros(6))
    value.sum().backward()
    assert student.grad.abs().max() < 1e-6


# --- invariances of the loss on tiny tensors --------------------------------------------------------------------------


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def small_loss(lengths: list[int], *, weights: list[torch.Tensor] | None = None, **settings) -> torch.Tensor:
    """Gradient with respect to the student's logits of one micro-batch that is the whole batch."""
    from workers.training.loss import COUNT, DIVERGENCE, WEIGHTS, SelfDistillLoss, scatter_tokens
    from workers.training.packing import scored_rows
    from workers.training.params import LossParams

    generator = torch.Generator().manual_seed(3)
    sequences = [torch.zeros(length + 2, dtype=torch.int64) for length in lengths]
    masks = [torch.ones(length, dtype=torch.int64) for length in lengths]
    total = sum(map(len, sequences))
    student = torch.randn(total, 11, generator=generator).requires_grad_(True)
    teacher = torch.randn(sum(lengths), 11, generator=generator)
    params = LossParams(**{"kind": "forward_kl", "ppo": False, **settings})
    loss = SelfDistillLoss(params)
    offsets = jagged(sequences).offsets()
    rows = scored_rows(offsets, jagged(masks))
    value, _ = loss.score(student[None], teacher, rows, rollout_temperature=1.0)
    count = len(lengths) if params.reduction == "sequence_mean" else sum(lengths)
    data = {"response_mask": jagged(masks), COUNT: count, "dp_size": 1}
    if weights is not None:
        data[WEIGHTS] = jagged(weights)
    packed = torch.nested.nested_tensor_from_jagged(scatter_tokens(value, rows, total), offsets)
    loss({DIVERGENCE: packed}, data)[0].backward()
    return student.grad


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_invariances(kind, clip, reduction):
    base = {"kind": kind, "clip": clip, "reduction": reduction}
    plain_gradient = small_loss([3, 5], **base)
    ones = [torch.ones(3), torch.ones(5)]
    assert torch.equal(small_loss([3, 5], weights=ones, **base), plain_gradient)  # w = 1 is OPSD
    halves = [torch.full((3,), 0.5), torch.full((5,), 0.5)]
    assert torch.allclose(small_loss([3, 5], weights=halves, **base), plain_gradient / 2)  # not renormalised
    assert torch.allclose(small_loss([3, 5], coefficient=0.5, **base), plain_gradient / 2)
    other = "sequence_mean" if reduction == "token_mean" else "token_mean"
    assert torch.allclose(small_loss([4, 4], **{**base, "reduction": other}), small_loss([4, 4], **base))
    assert not torch.allclose(small_loss([3, 5], **{**base, "reduction": other}), plain_gradient)
    if clip is None:
        for unclipped in ({"clip": float("inf")}, {"clip": 0.05, "clip_mode": "none"}, {"clip": 1e9}):
            assert torch.equal(small_loss([3, 5], **{**base, **unclipped}), plain_gradient)


def test_a_negative_weight_repels():
    attract = small_loss([3], weights=[torch.ones(3)], kind="reverse_kl")
    assert torch.allclose(small_loss([3], weights=[-torch.ones(3)], kind="reverse_kl"), -attract)


def test_a_micro_batch_of_padding_rows_still_takes_part_in_the_backward_pass():
    """All rows masked: nothing to score, and yet a loss with a graph, since other ranks wait in their collectives."""
    from workers.training.loss import COUNT, DIVERGENCE, SelfDistillLoss, scatter_tokens
    from workers.training.packing import relative_positions, scored_rows
    from workers.training.params import LossParams

    mask, sequences = jagged([torch.zeros(2, dtype=torch.int64)]), jagged([torch.zeros(5, dtype=torch.int64)])
    student = torch.randn(5, 7, requires_grad=True)
    rows = scored_rows(sequences.offsets(), mask)
    assert rows.numel() == 0 and relative_positions(mask).numel() == 0
    loss = SelfDistillLoss(LossParams(kind="forward_kl", ppo=False))
    value, stats = loss.score(student, torch.zeros(0, 7), rows, rollout_temperature=1.0)
    assert value.shape == stats["top1_disagreement"].shape == (0,)
    packed = torch.nested.nested_tensor_from_jagged(scatter_tokens(value, rows, 5), sequences.offsets())
    result, _ = loss({DIVERGENCE: packed}, {"response_mask": mask, COUNT: 4, "dp_size": 1})
    result.backward()
    assert torch.equal(student.grad, torch.zeros(5, 7))


def test_metrics_by_hand():
    from workers.training.metrics import divergence_metrics

    values = torch.tensor([-1.0, 0.0, 2.0, 3.0])
    metrics = divergence_metrics(
        [values[:3], values[3:]],
        [torch.tensor([0.05, 0.5, 0.95]), torch.tensor([0.99])],
        top1_disagreement=[torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0])],
        student_entropy=[torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0])],
        device=torch.device("cpu"),
    )
    assert metrics["divergence/mean"] == 1.0 and metrics["divergence/max"] == metrics["divergence/p99"] == 3.0
    assert metrics["divergence/negative_share"] == 0.25 and metrics["divergence/top1_disagreement"] == 0.5
    assert metrics["divergence/student_entropy"] == 3.0
    assert (metrics["divergence/position_0"], metrics["divergence/position_9"]) == (-1.0, 2.5)
    empty = divergence_metrics([], [], top1_disagreement=[], student_entropy=[], device=torch.device("cpu"))
    assert empty.keys() == metrics.keys() and set(empty.values()) == {0.0}


def test_token_weights_are_those_of_the_estimators():
    from omegaconf import OmegaConf

    from advantage.dasd import direction_coefficient
    from advantage.estimators import equal_reward_rows
    from advantage.pw_opsd import position_weight
    from advantage.signals import TokenSignals
    from advantage.token_weights import TOKEN_WEIGHTS, weigh_tokens

    def token_weights(name, algorithm, mask, signals, *, scores, groups):
        weight, equal = TOKEN_WEIGHTS[name], equal_reward_rows(scores, groups)
        params = weight.params_from(algorithm)
        return weigh_tokens(weight, params, signals, response_mask=mask, equal_reward_rows=equal)

    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    entropy, gap = torch.rand(3, 4), torch.randn(3, 4)
    scores, groups = torch.tensor([1.0, 0.0, 1.0]), ["a", "a", "b"]
    signals = TokenSignals(entropy=entropy, log_prob_gap=gap)
    algorithm = OmegaConf.create({"pw_opsd": {"schedule": "mild"}, "dasd": {"gap_eps": 1.0, "entropy_eps": 0.1}})
    found, metrics = token_weights("position", algorithm, mask, signals, scores=scores, groups=groups)
    assert torch.equal(found, position_weight(mask, floor=0.5, threshold=0.2, scale=0.15))
    assert metrics["divergence/weight/positive_share"] == 1.0
    omega, _ = direction_coefficient(entropy, gap, mask, gap_eps=1.0, entropy_eps=0.1)
    found, _ = token_weights("dasd", algorithm, mask, signals, scores=scores, groups=groups)
    assert torch.equal(found, omega)
    found, _ = token_weights("dasd", algorithm, mask, signals, scores=torch.ones(3), groups=groups)
    assert torch.equal(found[:2], torch.zeros(2, 4)) and torch.equal(found[2], omega[2])  # a group of one is kept


# --- the whole stack --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_atesd_trains_on_the_starter_and_resumes(tmp_path):
    """OPSD with a learned exposure and a moving teacher; the step size is nothing, so the weights stay known."""
    from tests.builders.processes import train

    directory = tmp_path / "run"
    options = (
        "trainer.save_freq=1",
        "actor_rollout_ref.actor.optim.lr=1.0e-12",
        "self_distill.teacher.weights=ema",
        "self_distill.teacher.ema_decay=0.5",
        "self_distill.exposure.controller.hold=1",
        "self_distill.exposure.controller.lookahead=1",
        "self_distill.exposure.controller.decisions_per_update=2",
        "self_distill.exposure.probe_size=5",
    )
    run = train("atesd", directory, "trainer.total_training_steps=3", *options)
    assert run.code == 0, run.console + run.log[-3000:]
    for record in run.steps.values():
        for key in ("mean", "max", "p99", "negative_share", "top1_disagreement", "loss", "position_0", "position_9"):
            assert math.isfinite(record[f"divergence/{key}"]), key
        assert record["divergence/mean"] == pytest.approx(record["divergence/loss"], rel=1e-4, abs=1e-6)
        assert "actor/pg_loss" not in record and record["actor/grad_norm"] > 0
        assert record["exposure/forced_full"] == 0.0
    resumed = train("atesd", directory, "trainer.total_training_steps=5", *options)
    assert resumed.code == 0, resumed.console + resumed.log[-3000:]
    assert [r["step"] for r in resumed.records] == [1, 2, 3, 4, 5]
    check_probe(resumed.steps)
    check_decisions(resumed.steps)


def check_probe(steps: dict[int, dict]) -> None:
    """The probe's two scores are those of plain transformers on the first five rows."""
    import pandas as pd
    from transformers import AutoTokenizer

    from config import STARTER
    from recipes.common.teacher.prompts import render, student_messages, teacher_messages
    from recipes.common.teacher.reference import truncate_reference

    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    model = AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float64)
    rows = pd.read_parquet(STARTER / "data/probe.parquet").to_dict("records")[:5]

    @torch.no_grad()
    def log_probs(messages: list, text: str) -> torch.Tensor:
        prompt = render(tokenizer, messages, {"enable_thinking": False})
        ids = tokenizer.encode(text, add_special_tokens=False)
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]

    nll = -float(torch.cat([log_probs(student_messages(r["problem"]), r["solution"]) for r in rows]).mean())
    for record in steps.values():
        assert record["probe/nll"] == pytest.approx(nll, rel=1e-4)
        shown = [truncate_reference(tokenizer, r["solution"], record["exposure/alpha"])[0] for r in rows]
        grounded = [
            log_probs(teacher_messages(r["problem"], part), r["solution"]) for r, part in zip(rows, shown, strict=True)
        ]
        assert record["probe/grounded"] == pytest.approx(float(torch.cat(grounded).mean()), rel=1e-3)
    assert len({record["probe/grounded"] for record in steps.values()}) > 1


def check_decisions(steps: dict[int, dict]) -> None:
    """A controller that is told what the records say decides what the run decided, before and after the resumption."""
    from recipes.common.teacher.controller import ExposureController
    from recipes.common.teacher.decisions import ControllerConfig, Observation

    settings = {"hold": 1, "lookahead": 1, "decisions_per_update": 2, "seed": 1}  # the seed is the run's, the starter's
    controller = ExposureController(ControllerConfig(total_steps=3, **settings))
    controller.step()
    for step, record in steps.items():
        if step == 4:
            state = controller.state_dict()
            controller = ExposureController(ControllerConfig(total_steps=5, **settings))
            controller.load_state_dict(state)
        assert record["exposure/alpha"] == pytest.approx(controller.exposure, rel=1e-6), step
        controller.step(
            Observation(
                loss=record["divergence/loss"],
                mismatch=record["divergence/top1_disagreement"],
                probe_nll=record["probe/nll"],
                confidence=record["student/log_prob/mean"],
                grounded=record["probe/grounded"],
            )
        )
    assert len({round(record["exposure/alpha"], 6) for record in steps.values()}) == 5
    assert steps[5]["exposure/updates"] >= 1
