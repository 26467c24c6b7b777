"""What one card cannot show, on a node of 2-8 GPUs in half an hour: `python -m benchmarks.gpu_node`.

For whoever has one: NCCL between all cards, the engine on several ranks against fp64, and then the whole stack with Ray
and vLLM on the embedded model, so that nothing is downloaded: full fine-tuning with sleeping rollouts, a stopped run
that is resumed, and LoRA whose adapter is sent to the rollouts.  Installation: docs/install.md.  `--dry` composes and
checks every training command, here or anywhere, and starts nothing.

Rows, bounds and exit code are those of `benchmarks.gpu_check`, which is to be run first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import gpu_check
from benchmarks.gpu_check import ROOT, Part, Report

PARTS = {
    1: Part("NCCL and the engine on all cards", "benchmarks.gpu_node:ranks", ("verl", "ray"), 300, 0),
    2: Part("full fine-tuning, vLLM asleep between rollouts", "benchmarks.gpu_node:full", ("ray", "vllm"), 420, 0),
    3: Part("stopped and resumed", "benchmarks.gpu_node:resumed", ("ray", "vllm"), 540, 0),
    4: Part("LoRA, its adapter sent to vLLM", "benchmarks.gpu_node:lora", ("ray", "vllm"), 420, 0),
}
BUDGET = 1800.0

# The embedded experiment as a GPU node would run it: verl's CUDA path, NCCL and vLLM, on a model of half a million
# parameters, whose every response takes milliseconds.
ON_GPUS = (
    "experiment=starter",
    "trainer.device=cuda",
    "actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.dtype=bfloat16",
    "actor_rollout_ref.rollout.free_cache_engine=true",
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
    "actor_rollout_ref.rollout.max_model_len=160",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=64",
    "ray_kwargs.ray_init.num_cpus=null",
    "ray_kwargs.ray_init.num_gpus=null",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=2",
)
ADAPTER = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.target_modules=all-linear",
    "actor_rollout_ref.rollout.load_format=safetensors",
    "actor_rollout_ref.actor.optim.lr=1.0e-3",  # an adapter that was not sent would show at once
)
# Steps of a run: what is stopped stops at the first number and ends at the second.
STOP, END = 2, 4
# Mean difference of a token's probability, vLLM's from the trainer's: bf16 on both sides.
PROBABILITIES_APART = 0.02
PROBABILITY_METRIC = "training/rollout_probs_diff_mean"


def trainings(gpus: int) -> dict[str, tuple[str, ...]]:
    """Name -> module of the recipe and its overrides, but for the steps and the run directory."""
    shared = (*ON_GPUS, f"trainer.n_gpus_per_node={gpus}")
    return {
        "dasd": ("recipes.dasd.main", "method=dasd", *shared),
        "opsd with LoRA": ("recipes.opsd.main", "method=opsd", *shared, *ADAPTER),
    }


def train(name: str, folder: Path, steps: int, *more: str, seconds: float = 400.0) -> tuple[int, list[dict[str, Any]]]:
    """Run one of `trainings` to its end; its exit code and the records of its steps."""
    from recipes.common.record.run_dir import read_metrics

    module, *overrides = trainings(_gpus())[name]
    command = [sys.executable, "-m", module, *overrides, f"trainer.total_training_steps={steps}"]
    code = _run([*command, f"hydra.run.dir={folder}", *more], seconds)
    return code, [record for record in read_metrics(folder) if "training/global_step" in record]


def _run(command: list[str], seconds: float) -> int:
    """Exit code of a command whose whole process group ends with it, or at the limit."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def full(report: Report) -> None:
    """Part 2: does it run, do rollouts and trainer agree, and is vLLM's memory free during the update."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        code, records = train("dasd", Path(folder), END, seconds=report.left())
        report.bound("exit code", code, at_most=0)
        report.bound("steps", len(records), at_least=END)
        report.measured("seconds, start and end included", time.monotonic() - begin, unit="s")
        _agreement(report, records)
        for record in records[-1:]:
            memory = record.get("actor/perf/max_memory_allocated_gb")
            if memory is not None:
                report.measured("memory of the update", memory, unit="GB", note="vLLM's share is asleep")


def _agreement(report: Report, records: list[dict[str, Any]]) -> None:
    """The last step's rollouts came from weights that were sent after updates."""
    found = [record[PROBABILITY_METRIC] for record in records if PROBABILITY_METRIC in record]
    if not found:
        report.skip("rollout and trainer agree", f"no {PROBABILITY_METRIC} in metrics.jsonl")
        return
    report.bound("probabilities apart, first step", found[0], at_most=PROBABILITIES_APART)
    report.bound("probabilities apart, last step", found[-1], at_most=PROBABILITIES_APART)


def resumed(report: Report) -> None:
    """Part 3: steps that a run makes after a restart, beside those of one that ran through."""
    with tempfile.TemporaryDirectory() as folder:
        through, stopped = Path(folder) / "through", Path(folder) / "stopped"
        code, whole = train("dasd", through, END, seconds=report.left() / 2)
        report.bound("through: exit code", code, at_most=0)
        code, _ = train("dasd", stopped, STOP, seconds=report.left() / 2)
        report.bound("stopped: exit code", code, at_most=0)
        code, again = train("dasd", stopped, END, seconds=report.left())
        report.bound("resumed: exit code", code, at_most=0)
        steps = [record["step"] for record in again]
        report.bound("steps in order, each once", float(steps == list(range(1, END + 1))), at_least=1.0)
        if whole and again:
            for key in ("critic/score/mean", "actor/entropy", "actor/grad_norm"):
                one, other = whole[-1].get(key), again[-1].get(key)
                if one is not None and other is not None:
                    note = f"{one:.4g} and {other:.4g}: kernels that choose by batch shape may differ"
                    report.measured(f"last step, {key}, difference", abs(one - other), note=note)


def lora(report: Report) -> None:
    """Part 4: OPSD with an adapter, whose learning rate is so high that an adapter not sent would show."""
    with tempfile.TemporaryDirectory() as folder:
        code, records = train("opsd with LoRA", Path(folder), END, seconds=report.left())
        report.bound("exit code", code, at_most=0)
        report.bound("steps", len(records), at_least=END)
        _agreement(report, records)
        divergences = [record.get("divergence/mean") for record in records]
        report.measured("divergence, last step", divergences[-1] if records else float("nan"), unit="nat")


# ---------------------------------------------------------------------- ranks without Ray


def ranks(report: Report) -> None:
    """Part 1: bandwidth of collectives, and the engine's gradients on 2 ranks and on all."""
    for world in sorted({2, _gpus()}):
        with report.attempt(f"{world} ranks"), tempfile.TemporaryDirectory() as folder:
            for row in _on_ranks(world, Path(folder), seconds=report.left()):
                name = f"{world} ranks: {row['check']}"
                if "at_most" in row:
                    report.bound(name, row["value"], at_most=row["at_most"], unit=row["unit"])
                else:
                    report.measured(name, row["value"], unit=row["unit"])


def _on_ranks(world: int, folder: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows that rank 0 of that many processes wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "benchmarks.gpu_node", "--rank-body", str(folder)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    end = time.monotonic() + seconds
    try:
        codes = [process.wait(timeout=max(1.0, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    yield from json.loads((folder / "rows.json").read_text())


def rank_body(folder: Path) -> None:
    """What each rank does: time the collectives, then every case for two workers; rank 0 judges."""
    import torch
    import torch.distributed as dist

    from benchmarks import engine_run as engines
    from benchmarks.engine_cases import (
        CASES,
        SHAPES,
        VOCABULARY,
        plain,
        relative_error,
        write_material,
        write_sequences,
    )
    from benchmarks.gpu_check_engine import FP32_ERROR

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    rows: list[dict[str, Any]] = []
    for name, seconds, moved in _collectives(world):
        rows.append({"check": name, "value": moved / seconds / 1e9, "unit": "GB/s on each link"})
    if rank == 0:
        write_material(folder)
        write_sequences(folder, SHAPES * world, VOCABULARY)  # as many rows on each rank as the cases cut evenly
    dist.barrier()
    for name, (_, case) in CASES.items():
        if "two workers" not in name:
            continue
        torch.manual_seed(0)
        engine = engines.build(folder, case)
        if case.get("perturb"):
            engines.perturb(engine)
        initial = {n: engines.full(p.detach()).cpu().clone() for n, p in engine.module.named_parameters()}
        with engine.train_mode():
            found = engines.first_gradient(engine, case, engines.mini_batch(folder, case, rank, world))
        if rank == 0:
            found["gradients"] = {n: g.cpu() for n, g in found["gradients"].items()}
            teacher = {} if case.get("teacher", {}).get("weights") in ("frozen", "trust_region") else initial
            error = relative_error(found, plain(folder, case, initial, teacher))
            rows.append({"check": name, "value": error, "at_most": FP32_ERROR["cuda"], "unit": "of the gradient"})
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def _collectives(world: int) -> Iterator[tuple[str, float, float]]:
    """(name, seconds, bytes over each link) of 1 GiB in bf16: what FSDP gathers and reduces."""
    import torch
    import torch.distributed as dist

    elements = (1 << 29) // world * world
    whole = torch.ones(elements, dtype=torch.bfloat16, device="cuda")
    part = torch.empty(elements // world, dtype=torch.bfloat16, device="cuda")
    share = whole.nbytes * (world - 1) / world
    for name, step, moved in (
        ("all-gather", lambda: dist.all_gather_into_tensor(whole, part), share),
        ("reduce-scatter", lambda: dist.reduce_scatter_tensor(part, whole), share),
        ("all-reduce", lambda: dist.all_reduce(whole), 2 * share),
    ):
        for repeat in range(6):
            if repeat == 1:  # the first one connects
                torch.cuda.synchronize()
                begin = time.perf_counter()
            step()
        torch.cuda.synchronize()
        yield name, (time.perf_counter() - begin) / 5, moved


# ---------------------------------------------------------------------- the command


def dry(gpus: int) -> int:
    """Compose and check every training command and show its plan; the number of those that are refused."""
    refused = 0
    for name, (module, *overrides) in trainings(gpus).items():
        print(f"\n{name}: python -m {module} {' '.join(overrides)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            steps = f"trainer.total_training_steps={END}"
            command = [sys.executable, "-m", module, *overrides, steps, f"hydra.run.dir={folder}", "dry_run=true"]
            refused += subprocess.run(command, cwd=ROOT).returncode != 0
    return refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(map(str, PARTS)), help="which, e.g. 1,3; default all")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts (default %(default)g)")
    parser.add_argument("--json", type=Path, help="also write environment, rows and counts here")
    parser.add_argument("--dry", action="store_true", help="check the training commands for --gpus, start nothing")
    parser.add_argument("--gpus", type=int, default=2, help="only with --dry (default %(default)g)")
    parser.add_argument("--rank-body", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_body:
        rank_body(options.rank_body)
        return 0
    if options.dry:
        return 1 if dry(options.gpus) else 0
    if not 2 <= _gpus():
        parser.error(f"this needs 2 GPUs or more and torch sees {_gpus()}; for one there is benchmarks.gpu_check")
    return gpu_check.run(parser, options, PARTS)


if __name__ == "__main__":
    sys.exit(main())
