"""Parts 1 and 2 of `benchmarks.gpu_check`: verl's engine with the teacher in it, on one device in one process.

Part 1 takes the gradients of `benchmarks.engine_cases`, which tests compare on a CPU, on the device and in both
precisions.  Part 2 trains a few random layers of the width of real models and compares the memory with the plan's.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.engine_cases import (
    CASES,
    OPSD,
    fp32_error,
    plain,
    relative_error,
    write_material,
    write_sequences,
    write_tokenizer,
)
from benchmarks.gpu_check import Report
from recipes.common.plan.memory import GIB, Job, memory
from recipes.common.plan.shapes import KNOWN, Architecture

# Largest error of a gradient in bf16, over that of plain transformers in bf16: at clips as tight as these cases'
# entries change sides by rounding, so that the error itself says little.
BF16_RATIO = 2.0

FROZEN = {"teacher": {"weights": "frozen"}, "perturb": True}
MORE = {
    "ema": {"loss": OPSD, "micro": 2, "teacher": {"weights": "ema"}},
    "snapshot": {"loss": OPSD, "micro": 2, "teacher": {"weights": "snapshot", "snapshot_every": 1}},
    "param_offload": {"loss": OPSD, "micro": 2, "param_offload": True},
    "param_offload, frozen copy": {"loss": OPSD, "micro": 2, "param_offload": True, **FROZEN},
    "offload_policy": {"loss": OPSD, "micro": 2, "offload_policy": True},
    "offload_policy, frozen copy": {"loss": OPSD, "micro": 2, "offload_policy": True, **FROZEN},
    "checkpointing, frozen copy": {"loss": OPSD, "micro": 2, "gradient_checkpointing": True, **FROZEN},
    "parameters kept unsharded, frozen copy": {"loss": OPSD, "micro": 2, "reshard_after_forward": False, **FROZEN},
}


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A group of this process alone, as verl opens it."""
    with tempfile.NamedTemporaryFile() as rendezvous:
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, init_method=f"file://{rendezvous.name}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


REHEARSED = ("opsd", "frozen copy", "sdpo")  # in bf16: a CPU shows that the code runs, not what a card's bf16 does


def cases(*, rehearse: bool = False) -> dict[str, dict]:
    """Every case in one process, in both precisions; the copies' own rules too.

    Args:
        rehearse: leave out most of bf16's.
    """
    single = {name: case for name, (_, case) in CASES.items() if "two workers" not in name}
    single["dasd distribution"] = CASES["dasd distribution, two workers"][1]
    single["student's top 5 and a tail"] = CASES["student's top 5 and a tail, two workers"][1]
    both = {}
    for dtype in ("fp32", "bf16"):
        chosen = {**single, **MORE}
        if rehearse and dtype == "bf16":
            chosen = {name: chosen[name] for name in REHEARSED}
        both |= {f"{name}, {dtype}": {**case, "dtype": dtype} for name, case in chosen.items()}
    return both


def gradients(report: Report) -> None:
    """Part 1: one gradient of every case against fp64 on the CPU."""
    from benchmarks import engine_run as engines

    with tempfile.TemporaryDirectory() as folder, process_group(report.device):
        material = write_material(Path(folder))
        for name, case in report.each(cases(rehearse=report.rehearse)):
            if report.rehearse and case.get("offload_policy"):
                report.skip(name, "its pinned memory needs a GPU")
                continue
            with report.attempt(name):
                torch.manual_seed(0)
                engine = engines.build(material, case)
                if case.get("perturb"):
                    engines.perturb(engine)
                initial = {n: engines.full(p.detach()).cpu().clone() for n, p in engine.module.named_parameters()}
                with engine.train_mode():
                    found = engines.first_gradient(engine, case, engines.mini_batch(material, case, 0, 1))
                    if engine.teacher is not None:
                        _copy(report, name, engine)
                found["gradients"] = {n: g.cpu() for n, g in found["gradients"].items()}
                teacher = {} if case.get("teacher", {}).get("weights") in ("frozen", "trust_region") else initial
                exact = plain(material, case, initial, teacher)
                error = relative_error(found, exact)
                if case["dtype"] == "fp32":
                    report.bound(name, error, at_most=fp32_error(case, report.device), unit="of it")
                else:
                    usual = relative_error(plain(material, case, initial, teacher, torch.bfloat16), exact)
                    note = f"error {error:.1e}"
                    report.bound(name, error / usual, at_most=BF16_RATIO, unit="x plain's", note=note)


def _copy(report: Report, name: str, engine: Any) -> None:
    """The teacher's copy after its forward pass and after a step: sharded again, and where its rule says."""
    from benchmarks import engine_run as engines

    def whole(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {n: engines.full(p.detach()).cpu().double() for n, p in module.named_parameters()}

    if engine.engine_config.reshard_after_forward:
        unsharded = sum(not isinstance(p, DTensor) for p in engine.teacher.module.parameters())
        report.bound(f"{name}: copy's parameters not sharded again", unsharded, at_most=0)
    before = whole(engine.teacher.module)
    engine.optimizer_step()
    engine.lr_scheduler_step()
    student, after = whole(engine.module), whole(engine.teacher.module)
    settings = engine.teacher_settings
    kept = {"frozen": 1.0, "trust_region": 1.0, "snapshot": 0.0, "ema": settings.ema_decay}[settings.weights]
    wrong = max(float((after[n] - kept * before[n] - (1 - kept) * student[n]).abs().max()) for n in after)
    report.bound(f"{name}: copy after a step", wrong, at_most=1e-6)


# ---------------------------------------------------------------------- part 2

# How far a measured peak may lie above the plan's.
OVER_PLAN = 1.10


@dataclass(frozen=True)
class Wide:
    """A few layers of a real width; lengths in tokens.  tokens: of the student's pack, whole sequences."""

    model: str
    layers: int
    tokens: int
    prompt: int = 1024
    response: int = 3072
    teacher_prompt: int = 2048
    temperature: float = 1.0
    from_hidden: bool = True

    @property
    def sequences(self) -> int:
        return self.tokens // (self.prompt + self.response)


BIG_PROMPTS = {"prompt": 256, "response": 1792}
WIDE = {
    "8B, T 1.0": Wide("Qwen/Qwen3-8B", 2, 16_384),
    "8B, T 1.1": Wide("Qwen/Qwen3-8B", 2, 16_384, temperature=1.1),
    "8B, T 1.1, from logits": Wide("Qwen/Qwen3-8B", 2, 16_384, temperature=1.1, from_hidden=False),
    "8B, 24,576 tokens": Wide("Qwen/Qwen3-8B", 2, 24_576),
    "1.7B, T 1.1": Wide("Qwen/Qwen3-1.7B", 4, 16_384, temperature=1.1),
    "1.7B, teacher of 48k tokens": Wide("Qwen/Qwen3-1.7B", 4, 16_384, teacher_prompt=4_192, **BIG_PROMPTS),
    "1.7B, teacher of 94k tokens": Wide("Qwen/Qwen3-1.7B", 4, 16_384, teacher_prompt=9_976, **BIG_PROMPTS),
}


def small(case: Wide) -> Wide:
    """The same case in a rehearsal: every length a hundredth."""
    lengths = {name: getattr(case, name) // 128 for name in ("tokens", "prompt", "response", "teacher_prompt")}
    return replace(case, **lengths)


def shape_of(case: Wide, rehearse: bool) -> Architecture:
    shape = replace(KNOWN[case.model], layers=case.layers)
    return (
        replace(shape, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=512) if rehearse else shape
    )


def planned(case: Wide, shape: Architecture) -> dict[str, float]:
    """What the plan says is in memory during the update, in bytes, but for its allowance for other libraries."""
    job = Job(
        model=shape,
        gpu=None,
        gpus_per_node=1,
        nodes=1,
        lora_rank=0,
        weight_bytes=4,
        compute_bytes=2,
        checkpointing=True,
        param_offload=False,
        optimizer_offload=False,
        offload_policy=False,
        token_budget=case.tokens,
        log_prob_budget=case.tokens,
        tensor_parallel=1,
        memory_share=0.0,
        max_sequences=1,
        sleeps=True,
        batch=case.sequences,
        mini_batch=case.sequences,
        rollouts=1,
        prompt=case.prompt,
        response=case.response,
        temperature=case.temperature,
        scored=False,
        divergence=True,
        policy_loss=False,
        from_hidden=case.from_hidden,
        teacher_copy=False,
        teacher_passes=1,
        teacher_prompt=case.teacher_prompt,
        teacher_budget=case.tokens,
    )
    return memory(job)["update"]


def attention() -> str:
    """The package's packed attention where it is there: transformers' own sees the whole pack, at quadratic cost."""
    if importlib.util.find_spec("workers.attention") is None:
        return "sdpa"
    import workers.attention  # noqa: F401  registers it

    return "packed"


# Largest difference of packed logits and gradients from each sequence alone, over the largest: another order of sums.
PACKED_ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def packed_attention(report: Report) -> None:
    """Logits and gradients of a pack beside those of each sequence alone; seconds beside transformers' own way."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    device, lengths = report.device, (5, 96, 1, 40) if report.rehearse else (700, 4096, 1, 2048)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    rows = [torch.randint(512, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    ids, positions = torch.cat(rows)[None].to(device), torch.cat([torch.arange(n) for n in lengths])[None].to(device)

    def passes(implementation: str, dtype: torch.dtype, packed: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        model = model.to(device, dtype)
        for _ in range(2):  # the first one warms up
            model.zero_grad()
            begin = time.perf_counter()
            if packed:
                logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
            else:
                logits = torch.cat([model(input_ids=row[None].to(device), use_cache=False).logits[0] for row in rows])
            logits.float().pow(2).mean().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - begin
        gradient = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        return logits.detach().float(), gradient, spent

    for dtype, most in PACKED_ERROR.items():
        with report.attempt(f"packed attention, {dtype}"):
            logits, gradient, _ = passes("sdpa", dtype, packed=False)
            ours, own, seconds = passes("packed", dtype, packed=True)
            _, _, usual = passes("sdpa", dtype, packed=True)
            name = f"packed attention, {str(dtype).removeprefix('torch.')}"
            for what, one, other in (("logits", ours, logits), ("gradient", own, gradient)):
                error = float((one - other).abs().max() / other.abs().max())
                report.bound(f"{name}: {what}", error, at_most=most, unit="of the largest")
            report.measured(f"{name}: seconds / transformers' sdpa", seconds / usual, note=f"{seconds:.4f} s")


def real_width(report: Report) -> None:
    """Part 2: teacher, student and backward pass through the engine; the peak beside the plan's."""
    report.measured("attention", 1.0, note=attention())
    if attention() == "packed":
        packed_attention(report)
    with process_group(report.device):
        for name, case in report.each({name: small(case) if report.rehearse else case for name, case in WIDE.items()}):
            with report.attempt(name), tempfile.TemporaryDirectory() as folder:
                _wide(report, name, case, Path(folder))


def _wide(report: Report, name: str, case: Wide, folder: Path) -> None:
    from transformers import Qwen3Config

    from benchmarks import engine_run as engines

    shape = shape_of(case, report.rehearse)
    Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    write_sequences(folder, [(case.prompt, case.teacher_prompt, case.response)] * case.sequences, shape.vocab)
    settings = {
        "loss": {"kind": "forward_kl", "clip": 0.05, "ppo": False, "from_hidden": case.from_hidden},
        "dtype": "bf16",
        "gradient_checkpointing": True,
        "dynamic": True,
        "max_tokens": case.tokens,
        "rollout_temperature": case.temperature,
        "attention": attention(),
    }
    engine = engines.build(folder, settings, engines.RandomEngine)
    loss, data = engines.loss_of(settings), engines.mini_batch(folder, settings, 0, 1)
    on_gpu = report.device == "cuda"
    with engine.train_mode():
        engine.train_batch(data, loss)  # allocates the optimiser's moments, tunes what tunes itself
        peaks, seconds = [], []
        for step in (lambda: engine.forward_backward_batch(data, loss), engine.optimizer_step):
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
                peaks.append(torch.cuda.max_memory_allocated())
            seconds.append(time.perf_counter() - begin)
    tokens = case.sequences * (case.prompt + case.teacher_prompt + 2 * case.response)
    report.measured(f"{name}: student's and teacher's tokens", tokens / seconds[0] / 1e3, unit="k/s")
    parts = planned(case, shape)
    if not on_gpu:
        report.skip(f"{name}: memory", "a CPU does not count what is allocated")
        return
    for what, peak in zip(("passes", "optimiser"), peaks, strict=True):
        note = f"{peak / GIB:.1f} GiB, planned {sum(parts.values()) / GIB:.1f}: "
        note += ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts.items())
        ratio = peak / sum(parts.values())
        report.bound(f"{name}: peak of {what} / plan", ratio, at_most=OVER_PLAN, note=note)
