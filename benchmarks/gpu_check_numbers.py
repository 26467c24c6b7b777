"""Parts 3 to 7 of `benchmarks.gpu_check`: what needs a GPU's arithmetic and not verl's engine."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import divergence as bench
from benchmarks.gpu_check import Report

STARTER = Path(__file__).resolve().parents[1] / "recipes" / "starter" / "model"
VOCABULARY = 151_936  # Qwen3's


def _timed(device: str, step: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that warms up."""
    spent = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begin)
    return sorted(spent[1:])[repeats // 2]


# ---------------------------------------------------------------------- part 3

WIDTHS = {"1.7B": 2048, "4B": 2560, "8B": 4096}
# Milliseconds for 8,192 tokens on an H100 or H200, of the faster of our two ways: (width, head trained).
SPEED_AIMS = {("8B", True): 62.0, ("8B", False): 48.0, ("4B", False): 31.0}
# Triton's kernel is worth its lines where it takes at most this share of the eager version's time.
KERNEL_PAYS = 0.8
PEAK_AIM, GRADIENT_ERROR = 6.0, {"cpu": 1e-4, "cuda": 1e-2}


def divergence(report: Report) -> None:
    """Part 3: forward KL with a clip, forward and backward, in `benchmarks.divergence`'s ways."""
    on_gpu = report.device == "cuda"
    options = argparse.Namespace(
        device=report.device,
        tokens=8192 if on_gpu else 64,
        vocab=VOCABULARY if on_gpu else 4096,
        rounds=3 if on_gpu else 1,
        threads=torch.get_num_threads(),
    )
    names = [name for name in bench.available(report.device) if not name.startswith("TRL") or _has("trl")]
    for name in bench.IMPLEMENTATIONS:
        if name not in names:
            report.skip(name, "not installed, or not for this device")
    cases = {f"{size}, head {head}": (size, head) for size in WIDTHS for head in ("frozen", "trained")}
    for label, (size, head) in report.each(dict(reversed(cases.items()))):
        with report.attempt(label):
            hidden = WIDTHS[size] if on_gpu else WIDTHS[size] // 32
            found = bench.measure(options, hidden, head == "trained", names, peaks=on_gpu)
            _show_divergence(report, label, found, SPEED_AIMS.get((size, head == "trained")))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _show_divergence(report: Report, label: str, found: dict[str, bench.Measured], aim: float | None) -> None:
    ours = [name for name in found if name.startswith("closed form")]
    products = found["products alone"].seconds
    for name, figures in found.items():
        if figures.seconds is None:
            report.skip(f"{label}: {name}", figures.failure)
            continue
        peak = "" if figures.peak is None else f", {figures.peak:.1f} GiB"
        note = f"{figures.seconds / products:.2f} x products{peak}"
        report.measured(f"{label}: {name}", 1e3 * figures.seconds, unit="ms", note=note)
        if name in ours and figures.error is not None:
            error = GRADIENT_ERROR[report.device]
            report.bound(f"{label}: {name}, gradient", figures.error, at_most=error, unit="of it")
    for name in [name for name in ours if f"{name}, fused" in found]:
        eager, fused = (found[n].seconds or float("nan") for n in (name, f"{name}, fused"))
        report.aim(f"{label}: {name}, kernel / eager", fused / eager, at_most=KERNEL_PAYS)
    if aim is not None:
        best = min(ours, key=lambda name: found[name].seconds or float("inf"))
        report.aim(f"{label}: ours", 1e3 * (found[best].seconds or float("nan")), at_most=aim, unit="ms", note=best)
        peak = found[best].peak
        if peak is not None:
            report.aim(f"{label}: ours, peak", peak, at_most=PEAK_AIM, unit="GiB", note=best)


# ---------------------------------------------------------------------- part 4

# A head whose logits are fp32 must leave log-probs and entropies nearly exact, given the hidden states.
FP32_HEAD_ERROR = 1e-3


def _statistics(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log p of the ids and entropy, (T,), in fp64 from logits (T, V) as they are."""
    log_p = logits.double().log_softmax(-1)
    return log_p.gather(1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def noise(report: Report) -> None:
    """Part 4: what 16-bit logits, and the company that a prompt is packed with, do to log p, H and δ."""
    with report.attempt("a random model of 1.7B's width"):
        _noise(report, "random", *_random_model(report))
    with report.attempt("the starter's model"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
        _noise(report, "starter", model.to(report.device).eval(), 128)
    if report.model is None:
        report.skip("a real model", "none was named: --model FOLDER")
        return
    with report.attempt("a real model"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(report.model, dtype=torch.float32)
        _noise(report, "real", model.to(report.device).eval(), 256)


def _random_model(report: Report) -> tuple[torch.nn.Module, int]:
    """(model in fp32, tokens of a sequence): logits spread as a trained model's, the largest near 22."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    big = report.device == "cuda"
    config = Qwen3Config(
        vocab_size=VOCABULARY if big else 2048,
        hidden_size=2048 if big else 64,
        intermediate_size=6144 if big else 128,
        num_hidden_layers=4 if big else 2,
        num_attention_heads=16 if big else 4,
        num_key_value_heads=8 if big else 2,
        head_dim=128 if big else 16,
        tie_word_embeddings=False,
    )
    with torch.device(report.device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 5.0 / config.hidden_size**0.5)  # hidden states are normed: logits' sd is 5
    return model, 512 if big else 48


@torch.no_grad()
def _noise(report: Report, label: str, model: Any, length: int, sequences: int = 8) -> None:
    """Errors of one response's statistics, teacher's and student's, in bf16; from the model's own fp32 ones."""
    import copy

    device, generator = report.device, torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size

    def random_ids(count: int) -> Tensor:
        return torch.randint(3, vocabulary, (count,), generator=generator).to(device)

    others = [random_ids(length) for _ in range(sequences - 1)]
    prompt, reference = random_ids(length // 4), random_ids(length // 4)
    response = random_ids(length // 2)

    def hidden(which: Any, sequence: Tensor, company: list[Tensor]) -> Tensor:
        """Of the positions that predict the response, (T, h); the sequence lies last in its pack."""
        pack = torch.cat([*company, sequence])[None]
        positions = torch.cat([torch.arange(len(s), device=device) for s in (*company, sequence)])[None]
        states = which.get_decoder()(input_ids=pack, position_ids=positions, use_cache=False).last_hidden_state[0]
        return states[-len(response) - 1 : -1]

    student, teacher = torch.cat([prompt, response]), torch.cat([reference, prompt, response])
    half = copy.deepcopy(model).bfloat16()
    full_head, half_head = (m.get_output_embeddings().weight for m in (model, half))
    states = {"student": hidden(half, student, others), "teacher": hidden(half, teacher, others)}
    alone = hidden(half, student, [])

    def scores(rows: Tensor, head: str) -> tuple[Tensor, Tensor]:
        logits = rows @ half_head.t() if head == "bf16" else rows.float() @ half_head.float().t()
        return _statistics(logits, response)

    given = {who: _statistics(rows.double() @ half_head.double().t(), response) for who, rows in states.items()}
    whole = _statistics(hidden(model, student, others) @ full_head.t(), response)
    report.measured(f"{label}: entropy of the model", float(whole[1].mean()), unit="nat")
    for head in ("bf16", "fp32"):
        log_p, entropy = scores(states["student"], head)
        gap = scores(states["teacher"], head)[0] - log_p
        errors = {
            "log p": log_p - given["student"][0],
            "H": entropy - given["student"][1],
            "δ": gap - (given["teacher"][0] - given["student"][0]),
        }
        for what, error in errors.items():
            value, note = float(error.abs().max()), f"mean {float(error.abs().mean()):.1e}"
            name = f"{label}: error of {what} by a head in {head}, largest"
            if head == "fp32":
                report.bound(name, value, at_most=FP32_HEAD_ERROR, unit="nat", note=note)
            else:
                report.measured(name, value, unit="nat", note=note)
        packings = (scores(alone, head)[0] - log_p).abs()
        note = f"mean {float(packings.mean()):.1e}, median {float(packings.median()):.1e}"
        name = f"{label}: |δ| of one prompt in two packings, head in {head}, largest"
        report.measured(name, float(packings.max()), unit="nat", note=note)
        total = (log_p - whole[0]).abs()
        note = f"mean {float(total.mean()):.1e}"
        report.measured(f"{label}: error of log p by all of bf16, head in {head}", float(total.max()), note=note)


# ---------------------------------------------------------------------- part 5


def seeded_rows(report: Report) -> None:
    """Part 5: what a sampler pays that draws each seeded row of (rows, V) by itself, as vLLM's does."""
    device, vocabulary = report.device, VOCABULARY if report.device == "cuda" else 4096
    for rows in (128, 256):
        noise = torch.empty(rows, vocabulary, device=device)
        generators = [torch.Generator(device).manual_seed(row) for row in range(rows)]

        def each(noise: Tensor = noise, generators: list[torch.Generator] = generators) -> None:
            for row, generator in enumerate(generators):
                noise[row].exponential_(generator=generator)

        one, many = _timed(device, lambda noise=noise: noise.exponential_(), 20), _timed(device, each, 20)
        note = f"{1e3 * many:.2f} ms against {1e3 * one:.2f}; 8,192 tokens: {8192 * (many - one):.0f} s more"
        report.measured(f"{rows} seeded rows", many / one, unit="x one call", note=note)


# ---------------------------------------------------------------------- part 6

LENGTHS = (1_000, 2_000, 3_000, 4_100, 5_000, 6_200, 7_000, 8_192, 9_000, 10_300, 12_000, 14_336)


def compiled_entropy(report: Report) -> None:
    """Part 6: verl's exact entropy as it is, and under torch.compile(dynamic=True), over 12 lengths of a pack."""
    import torch._dynamo as dynamo
    from verl.utils.torch_functional import entropy_from_logits_with_chunking

    if report.device == "cpu" and shutil.which("g++") is None:
        report.skip("compiled", "torch.compile needs a C++ compiler on a CPU")
        return
    small = report.device == "cpu"
    lengths = [length // 100 for length in LENGTHS[:2]] if small else LENGTHS
    vocabulary, chunk = (256, 8) if small else (VOCABULARY, 2048)
    rows = torch.randn(max(lengths), vocabulary, device=report.device, dtype=torch.bfloat16) * 5
    compiled = torch.compile(entropy_from_logits_with_chunking, dynamic=True)
    spent = {}
    for name, function in (("eager", entropy_from_logits_with_chunking), ("compiled", compiled)):
        dynamo.utils.counters.clear()
        for again in ("first", "second"):
            if report.left() < 0:
                report.skip(f"{name}, {again} pass", "the part's time was spent")
                return

            def all_lengths(function: Callable[..., Tensor] = function) -> None:
                for length in lengths:
                    function(rows[:length], chunk_size=chunk)

            spent[name, again] = _once(report.device, all_lengths)
        graphs = dynamo.utils.counters["stats"].get("unique_graphs", 0)
        note = f"then {spent[name, 'second']:.3f} s; {graphs} graphs for {len(lengths)} lengths"
        report.measured(f"{name}, all lengths once", spent[name, "first"], unit="s", note=note)
    saved = spent["eager", "second"] - spent["compiled", "second"]
    cost = spent["compiled", "first"] - spent["compiled", "second"]
    value = cost / saved if saved > 0 else float("inf")
    report.measured("passes until compiling has paid", value, note=f"{cost:.1f} s to compile")


def _once(device: str, step: Callable[[], None]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------- part 7


def generation(report: Report) -> None:
    """Part 7: `generate_batch`: the same seeds give the same responses, whatever shares their batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workers.rollout.generation import SamplingParams, generate_batch

    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    count, most = (64, 64) if report.device == "cuda" else (12, 24)
    prompts = [tokenizer.encode(f"{i % 7}+{i % 9}*{i % 5}") for i in range(count)]
    for dtype in ("fp32", "bf16"):
        with report.attempt(dtype):
            kind = torch.float32 if dtype == "fp32" else torch.bfloat16
            model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=kind).to(report.device).eval()

            def sample(rows: list[int], model: Any = model) -> dict[int, list[int]]:
                found = generate_batch(
                    model,
                    [prompts[i] for i in rows],
                    SamplingParams(temperature=1.0, max_tokens=most),
                    seeds=[1000 + i for i in rows],
                    stop_token_ids=[tokenizer.eos_token_id],
                    pad_token_id=tokenizer.pad_token_id,
                )
                return {i: response.token_ids for i, response in zip(rows, found, strict=True)}

            begin = time.perf_counter()
            together = sample(list(range(count)))
            spent = time.perf_counter() - begin
            tokens = sum(map(len, together.values()))
            report.measured(f"{dtype}: tokens, {count} at once", tokens / spent, unit="/s")
            report.bound(f"{dtype}: same batch again", _same(together, sample(list(range(count)))), at_least=1.0)
            apart: dict[int, list[int]] = {}
            for start in range(0, count, count // 4):
                apart |= sample(list(reversed(range(start, start + count // 4))))
            share = _same(together, apart)
            if dtype == "fp32":
                report.bound(f"{dtype}: other batches", share, at_least=0.98, unit="equal")
            else:
                report.measured(f"{dtype}: other batches", share, unit="equal", note="rounding may flip a draw")


def _same(one: dict[int, list[int]], other: dict[int, list[int]]) -> float:
    """Share of equal responses."""
    return sum(one[i] == other[i] for i in one) / len(one)
