"""Refusals of single values: of a wrong type, outside their range, or none of those there are.

verl's configuration is dataclasses that check hardly anything: a wrong value passes until a worker meets it a minute
later, or is never noticed (with ``resume_mode=atuo`` a run starts anew).  Types are those of the defaults; ranges and
choices stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from config import CONFIG_DIR
from recipes.common.checks.errors import closest
from recipes.common.checks.types import shown, wrong_type, wrong_types

Rule = Callable[[Any], str]  # what the value must be, or an empty text where it is


def whole(least: int, *, null: bool = False, meaning: str = "") -> Rule:
    """The rule that a value is a whole number of at least `least`.

    Args:
        least: the smallest that passes.
        null: whether null passes too.
        meaning: what to add to the sentence about `least`, with a space before it.
    """
    said = f"a whole number of at least {least}{meaning}{', or null' if null else ''}"
    return lambda v: "" if (null and v is None) or (not wrong_type(v, "whole") and v >= least) else f"must be {said}"


def number(low: float, high: float | None = None, *, above: bool = False, null: bool = False) -> Rule:
    """The rule that a value is a finite number between `low` and `high`.

    Args:
        low: the smallest that passes.
        high: the largest that passes; None for no limit.
        above: whether `low` itself is refused.
        null: whether null passes too.
    """
    said = f"a number {'above' if above else 'of at least'} {low:g}{'' if high is None else f' and at most {high:g}'}"

    def rule(value: Any) -> str:
        if null and value is None:
            return ""
        fits = not wrong_type(value, "number") and (value > low if above else value >= low)
        return "" if fits and (high is None or value <= high) else f"must be {said}{', or null' if null else ''}"

    return rule


def one_of(*names: str, null: bool = False) -> Rule:
    """The rule that a value is one of these names.

    Args:
        names: all that pass.
        null: whether null passes too.
    """

    def rule(value: Any) -> str:
        if (null and value is None) or (isinstance(value, str) and value in names):
            return ""
        return f"must be one of {', '.join(names)}{' or null' if null else ''}{closest(str(value), names)}"

    return rule


def some_of(*names: str) -> Rule:
    """The rule that a value is one of these names, or a list of them."""

    def rule(value: Any) -> str:
        given = value if isinstance(value, list) and value else [value]
        unknown = [shown(v) for v in given if v not in names]
        return f"{unknown[0]} is none of {', '.join(names)}{closest(str(unknown[0]), names)}" if unknown else ""

    return rule


def text(value: Any) -> str:
    """The rule that a value is a text that is not empty."""
    return "" if isinstance(value, str) and value.strip() else "must be a text"


def _top_k(value: Any) -> str:
    fits = not wrong_type(value, "whole") and (value in (-1, 0) or value >= 1)
    return "" if fits else "must be a whole number of at least 1, or -1 for the whole vocabulary"


DTYPES = ("bfloat16", "float16", "float32", "bf16", "fp16", "fp32")
KL = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
OFF = " (-1: never)"
_A, _R, _T = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout.", "trainer."
RULES: dict[str, Rule] = {
    "data.train_batch_size": whole(1),
    "data.max_prompt_length": whole(1),
    "data.max_response_length": whole(1),
    "data.dataloader_num_workers": whole(0),
    "data.seed": whole(0, null=True),
    "data.truncation": one_of("error", "left", "right", "middle"),
    "actor_rollout_ref.model.path": text,
    "actor_rollout_ref.model.lora_rank": whole(0),
    "actor_rollout_ref.model.lora_alpha": number(0, above=True),
    _A + "strategy": one_of("fsdp", "fsdp2"),
    _A + "ppo_mini_batch_size": whole(1),
    _A + "ppo_micro_batch_size_per_gpu": whole(1, null=True),
    _A + "ppo_max_token_len_per_gpu": whole(1),
    _A + "ppo_epochs": whole(1),
    _A + "clip_ratio": number(0),
    _A + "clip_ratio_low": number(0),
    _A + "clip_ratio_high": number(0),
    _A + "clip_ratio_c": number(1, above=True),
    _A + "grad_clip": number(0, above=True, null=True),
    _A + "loss_agg_mode": one_of(
        "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ),
    _A + "policy_loss.loss_mode": one_of(
        "vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo"
    ),
    _A + "kl_loss_type": one_of(*KL, *(f"{name}+" for name in KL)),
    _A + "ulysses_sequence_parallel_size": whole(1),
    _A + "checkpoint.save_contents": some_of("model", "optimizer", "extra", "hf_model"),
    _A + "checkpoint.load_contents": some_of("model", "optimizer", "extra", "hf_model"),
    _A + "optim.lr": number(0),
    _A + "optim.weight_decay": number(0),
    _A + "optim.lr_warmup_steps_ratio": number(0, 1),
    _A + "optim.lr_warmup_steps": whole(-1, null=True),
    _A + "optim.min_lr_ratio": number(0, 1, null=True),
    _A + "optim.lr_scheduler_type": one_of("constant", "cosine"),
    _A + "optim.warmup_style": one_of("constant", "cosine", null=True),
    _A + "fsdp_config.model_dtype": one_of(*DTYPES, null=True),
    _A + "fsdp_config.dtype": one_of(*DTYPES),
    _A + "fsdp_config.mixed_precision.param_dtype": one_of(*DTYPES, null=True),
    _A + "fsdp_config.mixed_precision.reduce_dtype": one_of(*DTYPES, null=True),
    _A + "fsdp_config.ulysses_sequence_parallel_size": whole(1),
    _A + "fsdp_config.fsdp_size": whole(-1),
    _R + "name": one_of("transformers", "vllm", "sglang", "trtllm"),
    _R + "mode": one_of("async"),
    _R + "n": whole(1),
    _R + "temperature": number(0, above=True),
    _R + "top_p": number(0, 1, above=True),
    _R + "top_k": _top_k,
    _R + "dtype": one_of("auto", "half", "float", *DTYPES[:3]),
    # vLLM's.
    _R + "load_format": one_of(
        "auto", "dummy", "safetensors", "hf", "pt", "npcache", "gguf", "mistral", "bitsandbytes", "sharded_state",
        "tensorizer", "runai_streamer", "runai_streamer_sharded", "fastsafetensors", "instanttensor",
    ),
    _R + "gpu_memory_utilization": number(0, 1, above=True),
    _R + "max_num_seqs": whole(1),
    _R + "max_num_batched_tokens": whole(1),
    _R + "max_model_len": whole(1, null=True),
    _R + "tensor_model_parallel_size": whole(1),
    _R + "data_parallel_size": whole(1),
    _R + "pipeline_model_parallel_size": whole(1),
    _R + "log_prob_micro_batch_size_per_gpu": whole(1, null=True),
    _R + "log_prob_max_token_len_per_gpu": whole(1),
    _R + "logprobs_mode": one_of("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    _R + "scheduling_policy": one_of("fcfs", "priority"),
    _R + "agent.num_workers": whole(1),
    _R + "val_kwargs.n": whole(1),
    _R + "val_kwargs.temperature": number(0),
    _R + "val_kwargs.top_p": number(0, 1, above=True),
    _R + "val_kwargs.top_k": _top_k,
    "algorithm.adv_estimator": text,
    "algorithm.kl_penalty": one_of(*KL, *(f"{name}+" for name in KL)),
    "algorithm.kl_ctrl.type": one_of("fixed", "adaptive"),
    "reward.num_workers": whole(1),
    _T + "device": one_of("cpu", "cuda", "npu"),
    _T + "nnodes": whole(1),
    _T + "n_gpus_per_node": whole(1),
    _T + "total_epochs": whole(1),
    _T + "total_training_steps": whole(1, null=True),
    _T + "save_freq": whole(-1, meaning=OFF),
    _T + "test_freq": whole(-1, meaning=OFF),
    _T + "logger": some_of(
        "console", "tensorboard", "wandb", "mlflow", "swanlab", "vemlp_wandb", "clearml", "trackio", "file",
        "rl_insight",
    ),
    _T + "resume_mode": one_of("auto", "disable", "resume_path"),
    _T + "v1.trainer_mode": one_of("self_distill"),
    "self_distill.keep_checkpoints": whole(1),
    "self_distill.max_skipped_updates": whole(0, meaning=" (0: the first ends the run)"),
    "self_distill.linear_decay_steps": whole(1, null=True),
    "self_distill.stall_minutes": number(0, above=True),
    "self_distill.poll_seconds": number(0, above=True),
    "self_distill.teacher.max_prompt_length": whole(1),
    "self_distill.teacher.test_freq": whole(-1, meaning=OFF),
    "ray_kwargs.ray_init.num_cpus": whole(1, null=True),
}  # fmt: skip
# Not used by what this package trains, or said by checks that know more.
_ELSEWHERE = (
    *("critic.", "reward.reward_model.", "distillation.", "global_profiler."),
    *("self_distill.about.", "self_distill.loss.", "self_distill.exposure.", "self_distill.collapse."),
)


def problems(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Find every value of a resolved configuration that cannot be meant; yields (key, sentence)."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg))
    found: dict[str, str] = {}
    for key, rule in RULES.items():
        value = _at(plain, key)
        if value is not _ABSENT and (problem := rule(value)):
            found[key] = f"{key}={shown(value)}: {problem}"
    optim = plain["actor_rollout_ref"]["actor"]["optim"]
    if isinstance(optim, dict) and optim.get("optimizer_impl") == "torch.optim":
        key, value = f"{_A}optim.optimizer", optim.get("optimizer")
        if problem := one_of(*_optimizers())(value):
            found[key] = f"{key}={shown(value)}: {problem}"
    for key, problem in wrong_types(plain, _defaults()):
        if key not in RULES and not key.startswith(_ELSEWHERE):
            found.setdefault(key, problem)
    yield from found.items()


_ABSENT = object()


def _at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(plain, dict) or part not in plain:
            return _ABSENT
        plain = plain[part]
    return plain


@cache
def _defaults() -> dict[str, Any]:
    """verl's configuration, with ours on top, as far as it needs no choice; read as YAML, since verl takes seconds."""
    folder = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"  # type: ignore
    usual = OmegaConf.load(folder / "_generated_ppo_trainer.yaml")
    own = OmegaConf.load(CONFIG_DIR / "train.yaml")
    for part in ("defaults", "hydra"):
        own.pop(part)
    merged = OmegaConf.merge(usual, own)
    for key in ("self_distill.run_dir", "trainer.experiment_name"):  # Hydra's to say
        OmegaConf.update(merged, key, "")
    return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))


def _optimizers() -> Sequence[str]:
    import torch

    return [name for name, made in vars(torch.optim).items() if isinstance(made, type) and name != "Optimizer"]
