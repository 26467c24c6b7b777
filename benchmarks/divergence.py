"""Full-vocabulary divergence, forward and backward: `python -m benchmarks.divergence`.

The closed form in token chunks against the plain version that materialises every (N, V) tensor, against TRL's
vocabulary-tiled function and, on CUDA where it is installed, Liger's fused one (neither has a clip; both run without
one here), and against the matrix products alone, which no implementation can beat.  One run measures all of them, round
by round in turn, so that ratios hold on a busy machine; peak memory is measured one implementation at a time, on a CPU
in a process of its own.

On a CPU the default is one small case in fp32, on CUDA 8192 tokens in bf16 at the widths of 1.7B, 4B and 8B models.
TRL is taken from the environment, else installed without its dependencies into build/; where that fails it is left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.divergence import DivergenceSpec, full, hidden_divergence, logits_divergence

VOCAB = 151_936
TEMPERATURE = 1.1
CLIP = 0.05
TRL = "trl==1.16.0"
TRL_FOLDER = Path(__file__).resolve().parents[1] / "build" / "trl"
EXACT_TOKENS = 16  # scored in fp64 for the error column

Inputs = dict[str, Tensor]
Step = Callable[[Inputs], Tensor]


def make_inputs(tokens: int, hidden: int, vocab: int, device: str, train_head: bool) -> Inputs:
    """Final hidden states of student and teacher, close to each other as a self-teacher's are, one shared head."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

    student = normal(tokens, hidden)
    teacher = student + 0.3 * normal(tokens, hidden)
    head = torch.empty(vocab, hidden, dtype=dtype, device=device)
    for start in range(0, vocab, 8192):  # no fp32 copy of the head, which would count as peak memory
        head[start : start + 8192] = normal(min(8192, vocab - start), hidden) * (2.0 / hidden**0.5)
    return {
        "student": student.to(dtype).requires_grad_(),
        "teacher": teacher.to(dtype),
        "head": head.requires_grad_(train_head),
        "weights": torch.full((tokens,), 1.0 / tokens, device=device),
    }


def plain_divergence(student_logits: Tensor, teacher_logits: Tensor, clip: float | None) -> Tensor:
    log_p = torch.log_softmax(student_logits / TEMPERATURE, -1)
    log_q = torch.log_softmax(teacher_logits / TEMPERATURE, -1)
    entries = log_q.exp() * (log_q - log_p)
    return (entries if clip is None else entries.clamp(max=clip)).sum(-1)


def plain(inputs: Inputs) -> Tensor:
    """Every (N, V) tensor in fp32, the backward left to autograd."""
    student = (inputs["student"] @ inputs["head"].t()).float()
    with torch.no_grad():
        teacher = (inputs["teacher"] @ inputs["head"].t()).float()
    loss = (plain_divergence(student, teacher, CLIP) * inputs["weights"]).sum()
    loss.backward()
    return loss.detach()


def from_hidden(inputs: Inputs) -> Tensor:
    """hidden_divergence."""
    loss, _ = hidden_divergence(
        inputs["student"],
        inputs["head"],
        inputs["teacher"],
        weights=inputs["weights"],
        spec=DivergenceSpec(clip=CLIP, temperature=TEMPERATURE),
    )
    loss.backward()
    return loss.detach()


def from_logits(inputs: Inputs) -> Tensor:
    """logits_divergence, as behind an engine that has made the student's logits; the teacher's come chunk by chunk."""
    student = inputs["student"] @ inputs["head"].t()

    def teacher(start: int, stop: int) -> Tensor:
        return inputs["teacher"][start:stop] @ inputs["head"].detach().t()

    chunk = 128 if student.device.type == "cpu" else 1024
    value, _ = logits_divergence(
        student,
        teacher,
        DivergenceSpec(clip=CLIP, temperature=TEMPERATURE),
        chunk_size=chunk,
        consume_teacher=True,
    )
    loss = (value * inputs["weights"]).sum()
    del student
    loss.backward()
    return loss.detach()


def with_kernel(step: Step) -> Step:
    """The same with Triton's kernel for what is not a matrix product."""

    def fused(inputs: Inputs) -> Tensor:
        full.USE_FUSED = True
        try:
            return step(inputs)
        finally:
            full.USE_FUSED = False

    return fused


def trl_tiles(inputs: Inputs) -> Tensor:
    """TRL's function, through its public interface."""
    function = importlib.import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    value, _ = function.apply(
        inputs["student"], inputs["head"], None, inputs["teacher"], inputs["head"].detach(), None, 0.0, TEMPERATURE
    )
    loss = (value * inputs["weights"]).sum()
    loss.backward()
    return loss.detach()


def liger(inputs: Inputs) -> Tensor:
    """Liger's fused linear JSD at β = 0, which is the forward KL; its mean over tokens is the benchmark's."""
    module = importlib.import_module("liger_kernel.transformers.fused_linear_jsd")
    loss = module.LigerFusedLinearJSD(jsd_beta=0.0, temperature=TEMPERATURE)(
        inputs["student"], inputs["head"], inputs["teacher"], inputs["head"].detach(), None
    )
    loss.backward()
    return loss.detach()


def products(inputs: Inputs) -> Tensor:
    """The matrix products that no implementation goes without: two of logits, one or two of gradients."""
    with torch.no_grad():
        student = inputs["student"] @ inputs["head"].t()
        teacher = inputs["teacher"] @ inputs["head"].t()
        inputs["student"].grad = teacher @ inputs["head"]
        if inputs["head"].requires_grad:
            inputs["head"].grad = student.t() @ inputs["student"]
    return torch.zeros(())


IMPLEMENTATIONS: dict[str, tuple[Step, float | None]] = {
    "plain": (plain, CLIP),
    "closed form, from hidden states": (from_hidden, CLIP),
    "closed form, from logits": (from_logits, CLIP),
    "closed form, from hidden states, fused": (with_kernel(from_hidden), CLIP),
    "closed form, from logits, fused": (with_kernel(from_logits), CLIP),
    "TRL tiles (no clip)": (trl_tiles, None),
    "Liger (no clip)": (liger, None),
    "products alone": (products, None),
}


def find_trl(install: bool) -> str | None:
    """Make trl importable; None, or why it is not."""
    if TRL_FOLDER.is_dir():
        sys.path.append(str(TRL_FOLDER))
    try:
        importlib.import_module("trl.kernels.chunked_divergence")
        return None
    except ImportError as error:
        if not install:
            return str(error)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(TRL_FOLDER), TRL]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        return f"{TRL} could not be installed: {error}"
    importlib.invalidate_caches()
    return find_trl(install=False)


def available(device: str) -> list[str]:
    """Names of the implementations that can run here; Liger's kernels and ours are Triton's, and need a GPU."""
    triton = device == "cuda" and importlib.util.find_spec("triton") is not None
    liger = triton and importlib.util.find_spec("liger_kernel") is not None
    can = {"fused": triton, "Liger": liger}
    return [name for name in IMPLEMENTATIONS if all(can[word] for word in can if word in name)]


def clear(inputs: Inputs) -> None:
    inputs["student"].grad = inputs["head"].grad = None


def seconds(step: Step, inputs: Inputs) -> float:
    clear(inputs)
    on_gpu = inputs["head"].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step(inputs)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_gib(name: str, options: argparse.Namespace, hidden: int, train_head: bool) -> float:
    """Peak memory above the inputs, GiB: gradients are part of it."""
    if options.device == "cuda":
        inputs = make_inputs(options.tokens, hidden, options.vocab, "cuda", train_head)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        IMPLEMENTATIONS[name][0](inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    request = json.dumps([name, options.tokens, hidden, options.vocab, train_head, options.threads])
    command = [sys.executable, "-m", "benchmarks.divergence", "--measure-peak", request]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    return float(out.stdout.split()[-1])


def status_kib(field: str) -> int:
    """A memory figure of this process from Linux: VmRSS is the present one, VmHWM the highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory is measured on Linux only")


def measure_peak(request: str) -> None:
    """Body of the child process: resident memory at its highest, above what the inputs take."""
    name, tokens, hidden, vocab, train_head, threads = json.loads(request)
    torch.set_num_threads(threads)
    if name.startswith("TRL"):
        find_trl(install=False)
    step = IMPLEMENTATIONS[name][0]
    step(make_inputs(4, hidden, 1024, "cpu", train_head))  # what libraries load at first use is not the algorithm's
    inputs = make_inputs(tokens, hidden, vocab, "cpu", train_head)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what went before
    before = status_kib("VmRSS")
    step(inputs)
    print((status_kib("VmHWM") - before) / 2**20)


def exact_gradient(inputs: Inputs, clip: float | None) -> tuple[Tensor, Tensor]:
    """(Σ of the first tokens' losses, gradient of their hidden states), in fp64 on the same numbers."""
    head = inputs["head"].detach().double()
    student = inputs["student"].detach()[:EXACT_TOKENS].double().requires_grad_()
    teacher = inputs["teacher"][:EXACT_TOKENS].double()
    value = plain_divergence(student @ head.t(), teacher @ head.t(), clip) * inputs["weights"][:EXACT_TOKENS]
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.sum().detach(), grad


def error(step: Step, inputs: Inputs, exact: Tensor) -> float:
    """Largest difference of the hidden states' gradient from fp64, relative to the largest gradient."""
    clear(inputs)
    step(inputs)
    grad = inputs["student"].grad
    if grad is None:
        return float("nan")
    grad = grad[: len(exact)].double()
    return ((grad - exact).abs().max() / exact.abs().max()).item()


@dataclass(frozen=True)
class Measured:
    """One implementation's figures; None where they were not, or could not be, measured."""

    seconds: float | None = None
    peak: float | None = None  # GiB
    error: float | None = None  # of the hidden states' gradient
    failure: str = ""


def measure(
    options: argparse.Namespace, hidden: int, train_head: bool, names: list[str], peaks: bool = True
) -> dict[str, Measured]:
    """Time, error and peak of each implementation on one case.  options: tokens, vocab, device, rounds, threads."""
    inputs = make_inputs(options.tokens, hidden, options.vocab, options.device, train_head)
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(options.rounds + 1):
        for name in names:
            if name in failed:
                continue
            try:
                spent = seconds(IMPLEMENTATIONS[name][0], inputs)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                clear(inputs)
                continue
            if round_:  # the first round warms up
                times[name].append(spent)
    exact = {clip: exact_gradient(inputs, clip)[1] for clip in {IMPLEMENTATIONS[name][1] for name in names}}
    errors = {
        name: error(IMPLEMENTATIONS[name][0], inputs, exact[IMPLEMENTATIONS[name][1]])
        for name in names
        if name not in failed and name != "products alone"
    }
    del inputs
    found = {}
    for name in names:
        if name in failed:
            found[name] = Measured(failure=failed[name])
            continue
        peak = peak_gib(name, options, hidden, train_head) if peaks and name != "products alone" else None
        found[name] = Measured(min(times[name]), peak, errors.get(name))
    return found


def compare(options: argparse.Namespace, hidden: int, train_head: bool, names: list[str]) -> None:
    found = measure(options, hidden, train_head, names)
    print(f"\nh {hidden}, head {'trained' if train_head else 'frozen'}")
    print(f"{'':40}{'seconds':>9}{'x plain':>9}{'x products':>12}{'peak GiB':>10}{'gradient error':>16}")
    base, limit = (found[name].seconds or float("nan") for name in ("plain", "products alone"))
    for name, figures in found.items():
        if figures.seconds is None:
            print(f"{name:40}{figures.failure:>9}")
            continue
        peak = "" if figures.peak is None else f"{figures.peak:.2f}"
        shown = "" if figures.error is None else f"{figures.error:.1e}"
        ratios = f"{figures.seconds:9.3f}{figures.seconds / base:9.2f}{figures.seconds / limit:12.2f}"
        print(f"{name:40}{ratios}{peak:>10}{shown:>16}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, help="default 256 on a CPU, 8192 on CUDA")
    parser.add_argument("--hidden", type=int, nargs="+", help="default 1024 on a CPU, 2048 2560 4096 on CUDA")
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--measure-peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_peak:
        measure_peak(options.measure_peak)
        return
    torch.set_num_threads(options.threads)
    on_cpu = options.device == "cpu"
    options.tokens = options.tokens or (256 if on_cpu else 8192)
    options.hidden = options.hidden or ([1024] if on_cpu else [2048, 2560, 4096])
    names = available(options.device)
    why = "left out by --no-trl" if options.no_trl else find_trl(install=True)
    if why:
        names = [name for name in names if not name.startswith("TRL")]
        print(f"TRL is not compared: {why}")
    where = f"{options.threads} CPU threads, fp32" if on_cpu else f"{torch.cuda.get_device_name()}, bf16"
    print(
        f"forward KL, clip {CLIP}, temperature {TEMPERATURE}: {options.tokens} tokens, vocabulary {options.vocab}, "
        f"{where}; best of {options.rounds}; one fp32 (N, V) tensor is {options.tokens * options.vocab / 2**28:.2f} GiB"
    )
    for hidden in options.hidden:
        for train_head in (False, True):
            compare(options, hidden, train_head, names)


if __name__ == "__main__":
    main()
