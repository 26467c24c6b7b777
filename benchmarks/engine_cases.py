"""Cases of the training engine with the teacher in it, and the loss and gradient that each must give.

The reference is plain transformers in fp64, one sequence after the other: it knows nothing of verl, of packing, of
micro-batches or of the closed-form gradient.  `benchmarks.engine_run` trains the same cases with the engine;
`tests/test_full_vocabulary.py` compares both on a CPU, `python -m benchmarks.gpu_check` on a GPU.

A case is a dictionary that travels as JSON: `loss` (fields of `LossParams`), `teacher` (of `TeacherWeights`),
`micro` or `max_tokens` (micro-batches), `rollout_temperature`, `weighted`, `mixed`, `lora`, `perturb`, `dtype` (of the
forward pass) and the engine's own settings, which `benchmarks.engine_run.build` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

VOCABULARY = 37
SHAPES = [
    (3, 7, 5),
    (5, 9, 1),
    (2, 4, 8),
    (4, 11, 3),
    (6, 6, 12),
    (2, 8, 2),
]  # student prompt, teacher prompt, response


def write_material(folder: Path) -> Path:
    """Two tiny untrained Qwen3, `model/` and, with the embedding as its head, `tied/`, and `SHAPES` as `batch.pt`."""
    for name in ("model", "tied"):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=name == "tied",
            initializer_range=0.05,  # with sharper distributions fp32 itself is off by more than 1e-6
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        write_tokenizer(folder / name)
    write_sequences(folder, SHAPES, VOCABULARY)
    return folder


def write_tokenizer(folder: Path) -> None:
    """One word a token, `VOCABULARY` of them: verl does not build a model without a tokenizer."""
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1").save_pretrained(folder)


def write_sequences(folder: Path, shapes: list[tuple[int, int, int]], vocabulary: int) -> None:
    """Random sequences of the shapes (student prompt, teacher prompt, response) into `folder/batch.pt`.

    One token of a response of 8 is masked; weights, advantages and old log-probs are random too.
    """
    generator = torch.Generator().manual_seed(1)
    names = ("student", "teacher", "mask", "weights", "old_log_probs", "advantages")
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for student, teacher, response in shapes:
        ids = torch.randint(3, vocabulary, (response,), generator=generator)
        rows["student"].append(torch.cat([torch.randint(3, vocabulary, (student,), generator=generator), ids]))
        rows["teacher"].append(torch.cat([torch.randint(3, vocabulary, (teacher,), generator=generator), ids]))
        mask = torch.ones(response, dtype=torch.int64)
        if response == 8:
            mask[3] = 0
        rows["mask"].append(mask)
        rows["weights"].append(0.25 + 0.75 * torch.rand(response, generator=generator))
        rows["advantages"].append(torch.randn(response, generator=generator))
        rows["old_log_probs"].append(-2 - 3 * torch.rand(response, generator=generator))  # ratios on both sides of 1
    torch.save(rows, folder / "batch.pt")


def token_losses(
    student: torch.Tensor, teacher: torch.Tensor, loss: dict, share: torch.Tensor | float = 0.5
) -> torch.Tensor:
    """The divergence (N,) as its formula says, from log-softmaxes (N, V), by autograd.  share: of a mixed one."""
    kind, beta = loss["kind"], loss.get("jsd_beta", 0.5)
    if loss.get("top_k"):
        student, teacher = restricted(student, teacher, loss)
    p, q = student.exp(), teacher.exp()
    if kind == "forward_kl":
        entries = q * (teacher - student)
    elif kind == "reverse_kl":
        entries = p * (student - teacher)
    elif kind == "mixed_kl":
        entries = share * q * (teacher - student) + (1 - share) * p * (student - teacher)
    else:
        mixture = ((1 - beta) * p + beta * q).log()
        entries = beta * q * (teacher - mixture) + (1 - beta) * p * (student - mixture)
    if loss.get("clip") is not None:
        low = -loss["clip"] if loss.get("clip_mode") == "symmetric" else None
        entries = entries.clamp(min=low, max=loss["clip"])
    return entries.sum(-1)


def restricted(student: torch.Tensor, teacher: torch.Tensor, loss: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs over the top-k tokens, with what the loss says of the others."""
    if loss.get("top_k_by", "teacher") == "teacher":
        index = teacher.topk(loss["top_k"]).indices
        kept = teacher.gather(1, index).log_softmax(-1), student.gather(1, index)
        return (kept[1] if loss.get("student_norm") == "full" else kept[1].log_softmax(-1)), kept[0]
    index = student.topk(loss["top_k"]).indices
    both = []
    for values in (student, teacher):
        listed = values.gather(1, index)
        both.append(torch.cat([listed, (1 - listed.exp().sum(-1, keepdim=True)).log()], -1))
    return both[0], both[1]


def plain(
    material: Path, case: dict, students: dict, teachers: dict, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Loss and gradients with transformers alone, one sequence after the other; what follows the logits is fp64.

    Args:
        students, teachers: parameters by name, over those of the model's files.  dtype: of the models.

    Beside `loss` and `gradients`, of the valid tokens in order: the divergences as `values`, the student's `entropy`
    and `log_prob` at the divergence's temperature, and the teacher's as `teacher_entropy` and `teacher_log_prob`, under
    its own prompts or, in a case with `same_prompts`, under the student's.
    """
    rows, loss = torch.load(material / "batch.pt"), case["loss"]
    lora = case.get("lora", False)

    def model(values: dict) -> torch.nn.Module:
        built = AutoModelForCausalLM.from_pretrained(
            material / case.get("model", "model"), dtype=torch.float32, attn_implementation="sdpa"
        )
        if lora:
            from peft import LoraConfig, get_peft_model

            built = get_peft_model(
                built, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", bias="none")
            )
        unknown = built.to(dtype).load_state_dict(values, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the model has no parameters {unknown}")
        return built.eval()

    student, teacher = model(students), model(teachers)
    rollout = case.get("rollout_temperature", 1.0)
    temperature = loss.get("temperature") or rollout
    tokens = sum(int(m.sum()) for m in rows["mask"])
    total = torch.zeros((), dtype=torch.float64)
    values = []
    names = ("entropy", "log_prob", "teacher_entropy", "teacher_log_prob")
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for i, mask in enumerate(rows["mask"]):
        length = len(mask)
        logits = student(rows["student"][i][None]).logits[0, -length - 1 : -1].double()
        with torch.no_grad():
            shown = rows["student" if case.get("same_prompts") else "teacher"][i][None]
            reference = teacher(shown).logits[0, -length - 1 : -1].double()
            if case.get("teacher", {}).get("weights") == "trust_region":
                current = student(shown).logits[0, -length - 1 : -1].double()
                mix = case["teacher"].get("trust_region_mix", 0.05)
                reference = (1 - mix) * reference + mix * current
            reference = (reference / temperature).log_softmax(-1)
        tempered = (logits / temperature).log_softmax(-1)
        divergence = logits.new_zeros(length)
        if loss.get("kind", "none") != "none":
            share = rows["weights"][i].double()[:, None] if case.get("mixed") else loss.get("forward_share", 0.5)
            divergence = token_losses(tempered, reference, loss, share)
        values.append(divergence.detach()[mask.bool()])
        for who, distribution in (("", tempered.detach()), ("teacher_", reference)):
            entropy = -(distribution.exp() * distribution).sum(-1)
            own = distribution.gather(1, rows["student"][i][-length:, None])[:, 0]
            scores[f"{who}entropy"].append(entropy[mask.bool()])
            scores[f"{who}log_prob"].append(own[mask.bool()])
        weights = rows["weights"][i].double() if case.get("weighted") else torch.ones(length, dtype=torch.float64)
        weights = (weights - case.get("weights_minus", 0.0)) * mask
        log_probs = (logits / rollout).log_softmax(-1).gather(1, rows["student"][i][-length:, None])[:, 0]
        ratio = (log_probs - rows["old_log_probs"][i].double()).exp()
        if loss.get("importance_clip") is not None:
            weights = weights * ratio.detach().clamp(max=loss["importance_clip"])
        if loss.get("reduction", "token_mean") == "token_mean":
            weights = weights / tokens
        else:
            weights = weights / mask.sum() / len(rows["mask"])
        total = total + loss.get("coefficient", 1.0) * (weights * divergence).sum()
        if loss.get("ppo", True):
            advantage = rows["advantages"][i].double()
            worst = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            worst = torch.where(advantage < 0, torch.minimum(worst, -advantage * 3.0), worst)
            total = total + (worst * mask).sum() / tokens
    if total.requires_grad:  # nothing to train: the student's entropy and log-probs were asked for
        total.backward()
    return {
        "loss": total.item(),
        "values": torch.cat(values),
        **{name: torch.cat(parts) for name, parts in scores.items()},
        "gradients": {n: p.grad.double() for n, p in student.named_parameters() if p.grad is not None},
    }


def fp32_error(case: dict[str, Any], device: str) -> float:
    """Largest `relative_error` of a case in fp32: some eight roundings of 1.2e-7 that do not cancel.

    A divergence over a few tokens of nearly equal distributions is a small difference of large terms and loses part of
    a digit more: 1.2e-6 was seen, three times as much as elsewhere is allowed.  A GPU adds up in an order of its own.

    Args:
        case: of `CASES`.
        device: "cpu" or "cuda".
    """
    return {"cpu": 1e-6, "cuda": 1e-5}[device] * (3 if case["loss"].get("top_k") else 1)


def relative_error(result: dict, reference: dict) -> float:
    """Largest absolute difference of the gradients over the largest gradient."""
    if result["gradients"].keys() != reference["gradients"].keys():
        raise ValueError(f"gradients of {sorted(result['gradients'])} and of {sorted(reference['gradients'])}")
    scale = max(g.abs().max() for g in reference["gradients"].values())
    difference = max((result["gradients"][n].double() - g).abs().max() for n, g in reference["gradients"].items())
    return float(difference / scale)


OPSD = {"kind": "forward_kl", "clip": 0.002, "temperature": 1.1, "ppo": False}
PW_OPSD = {**OPSD, "clip": 0.01, "reduction": "sequence_mean"}
SDPO = {"kind": "jsd", "jsd_beta": 0.5, "top_k": 5, "top_k_by": "student", "importance_clip": 2.0, "ppo": False}
TRUST_REGION = {"weights": "trust_region"}
CASES = {
    "opsd": (1, {"loss": OPSD, "micro": 6}),
    "opsd, a sequence at a time": (1, {"loss": OPSD, "micro": 1}),
    "opsd, two workers": (2, {"loss": OPSD, "micro": 1}),
    "opsd, two workers, dynamic batches": (2, {"loss": OPSD, "dynamic": True, "max_tokens": 30}),
    "pw-opsd, micro 3": (1, {"loss": PW_OPSD, "weighted": True, "micro": 3, "spoil": True}),
    "pw-opsd, two workers": (2, {"loss": PW_OPSD, "weighted": True, "micro": 1, "spoil": True}),
    "jsd, checkpointing, rollout temperature": (
        1,
        {
            "loss": {"kind": "jsd", "jsd_beta": 0.3, "clip": 0.0005, "clip_mode": "symmetric", "ppo": False},
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
            "weights_minus": 0.5,  # some repel
            "rollout_temperature": 1.3,
            "micro": 3,
        },
    ),
    "teacher's top 5, student in full": (
        1,
        {"loss": {"kind": "forward_kl", "top_k": 5, "student_norm": "full", "ppo": False}, "micro": 2},
    ),
    "student's top 5 and a tail, two workers": (
        2,
        {
            "loss": {
                "kind": "jsd",
                "jsd_beta": 0.3,
                "top_k": 5,
                "top_k_by": "student",
                "temperature": 1.2,
                "ppo": False,
            },
            "rollout_temperature": 0.8,
            "micro": 3,
        },
    ),
    "mixed, weighed too, two workers": (
        2,
        {"loss": {"kind": "mixed_kl", "clip": 0.05, "ppo": False}, "mixed": True, "weighted": True, "micro": 1},
    ),
    "mixed by a constant, from logits": (
        1,
        {"loss": {"kind": "mixed_kl", "forward_share": 0.3, "ppo": False, "from_hidden": False}, "micro": 2},
    ),
    "sdpo": (1, {"loss": SDPO, "micro": 2, "weighted": True, "rollout_temperature": 0.8}),
    "sdpo, all at once": (1, {"loss": SDPO, "micro": 6, "weighted": True, "rollout_temperature": 0.8}),
    "sdpo, two workers": (2, {"loss": SDPO, "micro": 1, "weighted": True, "teacher": TRUST_REGION, "perturb": True}),
    "srpo, two workers": (
        2,
        {"loss": {**SDPO, "ppo": True}, "micro": 3, "weighted": True, "rollout_temperature": 1.3},
    ),
    "eopd": (
        1,
        {
            "loss": {"kind": "forward_kl", "top_k": 5, "student_norm": "full", "ppo": True},
            "micro": 2,
            "weighted": True,
            "weights_minus": 0.4,
            "rollout_temperature": 1.2,
            "teacher": {"weights": "frozen"},
            "perturb": True,
        },
    ),
    "trust region": (
        1,
        {"loss": OPSD, "micro": 2, "teacher": {**TRUST_REGION, "trust_region_mix": 0.3}, "perturb": True},
    ),
    "trust region, from logits, two workers": (
        2,
        {"loss": {**OPSD, "from_hidden": False}, "micro": 3, "teacher": TRUST_REGION, "perturb": True},
    ),
    "trust region, lora": (
        1,
        {"loss": OPSD, "micro": 3, "lora": True, "teacher": {**TRUST_REGION, "trust_region_mix": 0.3}, "perturb": True},
    ),
    "opsd, from logits": (1, {"loss": {**OPSD, "from_hidden": False}, "micro": 2}),
    "pw-opsd, from logits, two workers": (
        2,
        {"loss": {**PW_OPSD, "from_hidden": False}, "weighted": True, "micro": 1, "rollout_temperature": 0.8},
    ),
    "teacher in several passes, two workers": (2, {"loss": OPSD, "dynamic": True, "max_tokens": 24}),
    "frozen copy in several passes, two workers": (
        2,
        {
            "loss": OPSD,
            "dynamic": True,
            "max_tokens": 24,
            "teacher": {"weights": "frozen"},
            "perturb": True,
            "reshard_after_forward": False,
        },
    ),
    "tied head": (1, {"loss": OPSD, "micro": 2, "model": "tied"}),
    "tied head, two workers": (2, {"loss": PW_OPSD, "micro": 3, "model": "tied", "weighted": True}),
    "tied head, frozen copy, two workers": (
        2,
        {"loss": OPSD, "micro": 1, "model": "tied", "teacher": {"weights": "frozen"}, "perturb": True},
    ),
    "clip alone": (1, {"loss": {}, "micro": 2, "rollout_temperature": 1.3}),
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
