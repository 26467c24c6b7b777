"""Refusals of what a run stands on: installed packages, GPUs and their memory, the run directory and its checkpoints.

Versions are read from package metadata, so that no GPU library is imported for them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path

from omegaconf import DictConfig
from packaging.requirements import InvalidRequirement, Requirement

from recipes.common.method import Method
from recipes.common.plan import memory as planner
from recipes.common.plan.shapes import of_model
from recipes.common.record import checkpoints
from recipes.common.record.run_dir import closest_existing


def count_gpus() -> int:
    """Number of this machine's GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device(cfg: DictConfig, gpus: int) -> Iterator[str]:
    """Refuse GPUs that are asked for and not here.

    Args:
        cfg: the resolved configuration.
        gpus: number of this machine's GPUs that torch can use.
    """
    trainer = cfg.trainer
    if trainer.device == "cpu" or cfg.dry_run:
        return  # a dry run plans for `self_distill.gpu`, wherever it is
    if "RAY_ADDRESS" in os.environ or trainer.nnodes > 1:
        return  # the GPUs are elsewhere; Ray will say what it has
    if gpus == 0:
        yield (
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node}, but this machine has no GPU that torch can use. "
            "Without one, run the embedded experiment: add experiment=starter"
        )
    elif trainer.n_gpus_per_node > gpus:
        yield (
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node}, but this machine has {gpus}: "
            f"set trainer.n_gpus_per_node={gpus}"
        )


def parallelism(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse nodes that are not there, and a splitting of the rollout model that its GPUs or heads do not allow.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    trainer, rollout = cfg.trainer, cfg.actor_rollout_ref.rollout
    workers, parallel = trainer.n_gpus_per_node * trainer.nnodes, rollout.tensor_model_parallel_size
    if workers < 1:
        return  # said by the check of batches
    if trainer.nnodes > 1 and "RAY_ADDRESS" not in os.environ and not cfg.dry_run:
        yield (
            f"trainer.nnodes={trainer.nnodes}, but RAY_ADDRESS names no cluster, and verl would wait for ever for "
            "nodes that Ray does not have: start with sbatch cluster/train.sbatch, or set RAY_ADDRESS=<head>:<port> "
            "(docs/cluster.md), or set trainer.nnodes=1"
        )
    key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    if parallel < 1 or trainer.n_gpus_per_node % parallel:
        divisors = [n for n in range(1, trainer.n_gpus_per_node + 1) if trainer.n_gpus_per_node % n == 0]
        yield (
            f"{key}={parallel} must divide trainer.n_gpus_per_node={trainer.n_gpus_per_node}: a rollout server's GPUs "
            f"are on one node; set it to one of {', '.join(map(str, divisors))}"
        )
        return
    model = of_model(str(cfg.actor_rollout_ref.model.path))
    if model is not None and model.heads % parallel:
        yield (
            f"{key}={parallel} must divide the model's {model.heads} attention heads; set it to a power of two up to "
            f"{trainer.n_gpus_per_node}"
        )


def software(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a run whose packages are missing, or whose versions do not belong together.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    arr = cfg.actor_rollout_ref
    if cfg.dry_run:
        return
    if cfg.trainer.device == "cpu":
        if arr.rollout.name == "vllm" and _version("vllm") is None:
            yield (
                "vllm is not installed in this environment, and actor_rollout_ref.rollout.name=vllm: `make vllm` "
                "installs its build for CPUs into .venv-vllm (docs/cpu.md); or set rollout.name=transformers"
            )
        return
    attention = arr.model.override_config.get("attn_implementation", "flash_attention_2")
    if find_spec("flash_attn") is None and attention == "flash_attention_2":
        yield (
            "flash-attn is not installed in this environment, and attention is flash_attention_2: pip install "
            "flash-attn==2.8.3 --no-build-isolation, after torch (docs/install.md), or set "
            "+actor_rollout_ref.model.override_config.attn_implementation=packed, which needs nothing else"
        )
    elif find_spec("flash_attn") is None and arr.actor.strategy != "fsdp2":
        yield (
            f"flash-attn is not installed in this environment, and log-probs of "
            f"actor_rollout_ref.actor.strategy={arr.actor.strategy} without its cross-entropy are bfloat16 "
            "(docs/precision.md): install it (docs/install.md), or set strategy=fsdp2"
        )
    if arr.rollout.name == "vllm":
        installed = _version("vllm")
        if installed is None:
            yield (
                "vllm is not installed in this environment, and actor_rollout_ref.rollout.name=vllm: "
                "pip install vllm==0.24.0 (docs/install.md), or, slowly, set rollout.name=transformers"
            )
        else:
            yield from _mismatches("vllm", installed)


def logging(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse trackers that cannot log: they would say so only when all workers are there.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    loggers = [cfg.trainer.logger] if isinstance(cfg.trainer.logger, str) else list(cfg.trainer.logger)
    if cfg.dry_run:
        return
    for tracker in ("wandb", "swanlab", "trackio"):
        if tracker in loggers and find_spec(tracker) is None:
            yield f"trainer.logger has {tracker}, which is not installed: pip install {tracker} (extra '{tracker}')"
            return
    if "wandb" in loggers and os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not _has_wandb_key():
        yield (
            "trainer.logger has wandb, and there is no API key: `wandb login`, or set WANDB_API_KEY (with RAY_ADDRESS, "
            "where Ray was started), or WANDB_MODE=offline"
        )


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def vllm_is_for_cpus() -> bool:
    """Whether the installed vLLM is its build for CPUs (docs/cpu.md)."""
    return "cpu" in (_version("vllm") or "")


def _mismatches(package: str, installed: str, others: tuple[str, ...] = ("torch", "transformers")) -> Iterator[str]:
    """What a package's metadata asks of others and does not get: a mismatch shows as a crash inside a worker."""
    for line in requires(package) or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.name not in others or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        found = _version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            yield (
                f"{package} {installed} in this environment needs {wanted.name}{wanted.specifier}, and {wanted.name} "
                f"is {found or 'not installed'}: install both in one pip command, in the order of docs/install.md"
            )


def capacity(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a run that does not fit into its GPUs' memory, by `recipes.common.plan.memory`.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; the teacher and the loss take memory.
    """
    name = cfg.self_distill.gpu
    if name is not None and name not in planner.GPUS:
        known = ", ".join(planner.GPUS)
        yield f"self_distill.gpu={name}: must be one of {known}, or null for the GPUs of this machine"
        return
    gpu = planner.gpu_of(cfg)
    if gpu is None or cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes < 1:
        return
    if not cfg.dry_run:
        yield from _smaller_than_planned(name, gpu)
    job = planner.job_of(cfg, method, gpu)
    if job is not None:
        yield from planner.refusal(job)


def _smaller_than_planned(name: str | None, gpu: planner.Gpu) -> Iterator[str]:
    import torch

    if name is None or not torch.cuda.is_available():
        return
    properties = torch.cuda.get_device_properties(0)
    if properties.total_memory < 0.95 * gpu.memory:
        yield (
            f"self_distill.gpu={name} has {gpu.memory / planner.GIB:.0f} GiB, and this machine's {properties.name} has "
            f"{properties.total_memory / planner.GIB:.0f}: set self_distill.gpu=null to plan for what is there"
        )


def output(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a run directory that cannot be written or is too full, and a checkpoint that is another run's or broken.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; a checkpoint must be of the same.
    """
    run_dir = Path(cfg.self_distill.run_dir)
    parent = closest_existing(run_dir)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield f"hydra.run.dir={run_dir}: {parent} is not a directory that can be written; choose another hydra.run.dir"
        return
    yield from _room(cfg, method, parent)
    yield from checkpoints.problems(cfg, method)


def _room(cfg: DictConfig, method: Method, folder: Path) -> Iterator[str]:
    job = planner.job_of(cfg, method, gpu=None)
    if job is None or cfg.trainer.save_freq < 1:
        return
    # The kept ones, and the next while it is written, before the oldest goes; never more than the run saves.
    keep, total = cfg.self_distill.keep_checkpoints, cfg.trainer.total_training_steps
    most = keep + 1 if total is None else min(keep + 1, -(-total // cfg.trainer.save_freq))
    needed, free = most * planner.checkpoint_bytes(job), shutil.disk_usage(folder).free
    if free < needed:
        yield (
            f"hydra.run.dir={folder} has {free / planner.GIB:.1f} GiB free, and {most} checkpoints, the one being "
            f"written among them, take {needed / planner.GIB:.1f}: choose another hydra.run.dir, or "
            "set self_distill.keep_checkpoints=1"
        )
