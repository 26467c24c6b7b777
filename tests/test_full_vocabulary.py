"""The divergence with the teacher inside verl's engine: its gradient is that of plain transformers on one process.

Each engine case runs in processes of its own (gloo, FSDP2, no Ray) on a model of two layers; the reference here knows
nothing of verl, of packing, of micro-batches or of the closed-form gradient.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from tests.conftest import ROOT

VOCABULARY = 37
SHAPES = [(3, 7, 5), (5, 9, 1), (2, 4, 8), (4, 11, 3), (6, 6, 12), (2, 8, 2)]  # student prompt, teacher prompt, response


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A tiny untrained Qwen3 with its tokenizer, and six sequences of different lengths, one with a masked token."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        initializer_range=0.5,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="w0", eos_token="w1"
    )
    tokenizer.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    rows: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("student", "teacher", "mask", "weights", "old_log_probs", "advantages")
    }
    for student, teacher, response in SHAPES:
        ids = torch.randint(3, VOCABULARY, (response,), generator=generator)
        rows["student"].append(torch.cat([torch.randint(3, VOCABULARY, (student,), generator=generator), ids]))
        rows["teacher"].append(torch.cat([torch.randint(3, VOCABULARY, (teacher,), generator=generator), ids]))
        mask = torch.ones(response, dtype=torch.int64)
        if response == 8:
            mask[3] = 0
        rows["mask"].append(mask)
        rows["weights"].append(torch.rand(response, generator=generator) * 2 - 0.5)
        rows["advantages"].append(torch.randn(response, generator=generator))
        rows["old_log_probs"].append(-3 * torch.rand(response, generator=generator))
    torch.save(rows, folder / "batch.pt")
    return folder


def through_the_engine(material: Path, folder: Path, cases: dict[str, dict], world: int) -> list[dict[str, dict]]:
    """Results of every rank, by case; one start of the processes for all of them."""
    for name in ("model", "batch.pt"):
        (folder / name).symlink_to(material / name)
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
            [sys.executable, "-m", "tests.full_vocabulary_worker", str(folder)],
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
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(world)]


def token_losses(student: torch.Tensor, teacher: torch.Tensor, loss: dict) -> torch.Tensor:
    """The divergence (N,) as its formula says, from log-softmaxes (N, V), by autograd."""
    kind, beta = loss["kind"], loss.get("jsd_beta", 0.5)
    p, q = student.exp(), teacher.exp()
    if kind == "forward_kl":
        entries = q * (teacher - student)
    elif kind == "reverse_kl":
        entries = p * (student - teacher)
    else:
        mixture = ((1 - beta) * p + beta * q).log()
        entries = beta * q * (teacher - mixture) + (1 - beta) * p * (student - mixture)
    if loss.get("clip") is not None:
        low = -loss["clip"] if loss.get("clip_mode") == "symmetric" else None
        entries = entries.clamp(min=low, max=loss["clip"])
    return entries.sum(-1)


def plain(material: Path, case: dict, students: dict, teachers: dict) -> dict:
    """Loss and gradients with transformers alone, one sequence after the other, in fp64."""
    rows, loss = torch.load(material / "batch.pt"), case["loss"]
    lora = case.get("lora", False)

    def model(values: dict) -> torch.nn.Module:
        built = AutoModelForCausalLM.from_pretrained(
            material / "model", dtype=torch.float64, attn_implementation="sdpa"
        )
        if lora:
            from peft import LoraConfig, get_peft_model

            built = get_peft_model(
                built, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", bias="none")
            ).double()
        missing = built.load_state_dict({name: value.double() for name, value in values.items()}, strict=False)
        assert not missing.unexpected_keys
        return built.eval()

    student, teacher = model(students), model(teachers)
    rollout = case.get("rollout_temperature", 1.0)
    temperature = loss.get("temperature") or rollout
    tokens = sum(int(m.sum()) for m in rows["mask"])
    total = torch.zeros((), dtype=torch.float64)
    values = []
    for i, mask in enumerate(rows["mask"]):
        length = len(mask)
        logits = student(rows["student"][i][None]).logits[0, -length - 1 : -1]
        with torch.no_grad():
            reference = teacher(rows["teacher"][i][None]).logits[0, -length - 1 : -1]
        divergence = token_losses(
            (logits / temperature).log_softmax(-1), (reference / temperature).log_softmax(-1), loss
        )
        values.append(divergence.detach()[mask.bool()])
        weights = rows["weights"][i].double() if case.get("weighted") else torch.ones(length, dtype=torch.float64)
        weights = weights * mask
        if loss.get("reduction", "token_mean") == "token_mean":
            weights = weights / tokens
        else:
            weights = weights / mask.sum() / len(rows["mask"])
        total = total + loss.get("coefficient", 1.0) * (weights * divergence).sum()
        if loss["ppo"]:
            log_probs = (logits / rollout).log_softmax(-1)
            log_probs = log_probs.gather(1, rows["student"][i][-length:, None])[:, 0]
            ratio = (log_probs - rows["old_log_probs"][i].double()).clamp(-20, 20).exp()
            advantage = rows["advantages"][i].double()
            worst = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            worst = torch.where(advantage < 0, torch.minimum(worst, -advantage * 3.0), worst)
            total = total + (worst * mask).sum() / tokens
    total.backward()
    return {
        "loss": total.item(),
        "values": torch.cat(values),
        "gradients": {n: p.grad for n, p in student.named_parameters() if p.grad is not None},
    }


def relative_error(result: dict, reference: dict) -> float:
    """Largest absolute difference of the gradients over the largest gradient."""
    assert result["gradients"].keys() == reference["gradients"].keys()
    scale = max(g.abs().max() for g in reference["gradients"].values())
    difference = max((result["gradients"][n].double() - g).abs().max() for n, g in reference["gradients"].items())
    return float(difference / scale)


OPSD = {"kind": "forward_kl", "clip": 0.05, "temperature": 1.1, "ppo": False}
CASES = {
    "opsd": (1, {"loss": OPSD, "micro": 6}),
    "opsd, a sequence at a time": (1, {"loss": OPSD, "micro": 1}),
    "opsd, two workers": (2, {"loss": OPSD, "micro": 1}),
    "opsd, two workers, dynamic batches": (2, {"loss": OPSD, "dynamic": True, "max_tokens": 30}),
    "pw-opsd, micro 3": (1, {"loss": {**OPSD, "reduction": "sequence_mean"}, "weighted": True, "micro": 3}),
    "pw-opsd, two workers": (2, {"loss": {**OPSD, "reduction": "sequence_mean"}, "weighted": True, "micro": 1}),
    "jsd, checkpointing, rollout temperature": (
        1,
        {
            "loss": {"kind": "jsd", "jsd_beta": 0.3, "clip": 0.1, "clip_mode": "symmetric", "ppo": False},
            "rollout_temperature": 0.8,
            "gradient_checkpointing": True,
            "micro": 2,
        },
    ),
    "dasd distribution, two workers": (
        2,
        {
            "loss": {"kind": "reverse_kl", "ppo": True, "coefficient": 0.3, "reduction": "sequence_mean"},
            "weighted": True,
            "rollout_temperature": 1.3,
            "micro": 3,
        },
    ),
    "parameters kept unsharded": (1, {"loss": OPSD, "micro": 2, "reshard_after_forward": False}),
    "frozen copy": (1, {"loss": OPSD, "micro": 2, "teacher": {"weights": "frozen"}, "perturb": True}),
    "frozen copy, two workers": (2, {"loss": OPSD, "micro": 3, "teacher": {"weights": "frozen"}, "perturb": True}),
    "lora, adapter off": (
        1,
        {"loss": OPSD, "micro": 2, "lora": True, "teacher": {"weights": "frozen"}, "perturb": True},
    ),
    "lora, adapter off, two workers": (
        2,
        {"loss": OPSD, "micro": 1, "lora": True, "teacher": {"weights": "frozen"}, "perturb": True},
    ),
    "lora, current": (2, {"loss": OPSD, "micro": 3, "lora": True, "perturb": True}),
}


@pytest.fixture(scope="module")
def engine_results(material, tmp_path_factory) -> dict[str, list[dict]]:
    """Results of every rank for each of `CASES`."""
    found = {}
    for world in (1, 2):
        cases = {name: case for name, (workers, case) in CASES.items() if workers == world}
        ranks = through_the_engine(material, tmp_path_factory.mktemp(f"workers_{world}"), cases, world)
        found.update({name: [rank[name] for rank in ranks] for name in cases})
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_plain_transformers(material, engine_results, name):
    world, case = CASES[name]
    results = engine_results[name]
    students = results[0]["initial"]
    base = {} if case.get("teacher", {}).get("weights") == "frozen" else students
    reference = plain(material, case, students, base)
    assert relative_error(results[0], reference) < 1e-6
    # each rank's share is scaled by their number, since gradients are averaged over ranks
    assert sum(sum(r["loss"]) for r in results) / world == pytest.approx(reference["loss"], rel=1e-5, abs=1e-7)
    check_metrics(results, reference["values"])


def check_metrics(results: list[dict], values: torch.Tensor) -> None:
    own = [{k: v for k, v in r["metrics"].items() if k != "divergence/loss"} for r in results]
    assert all(r["metrics"].keys() == results[0]["metrics"].keys() for r in results)
    metrics = {k: v[0] for k, v in own[0].items() if k.startswith("divergence/")}
    assert all({k: v[0] for k, v in r.items() if k.startswith("divergence/")} == metrics for r in own)
    assert metrics["divergence/mean"] == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-7)
    assert metrics["divergence/max"] == pytest.approx(float(values.max()), rel=1e-5)
    assert metrics["divergence/negative_share"] == pytest.approx(float((values < 0).double().mean()))
    ordered = values.sort().values
    assert metrics["divergence/p99"] == pytest.approx(float(ordered[-(-99 * len(values) // 100) - 1]), rel=1e-5)
