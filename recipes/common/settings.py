"""Composing and checking a run's configuration, before anything is started.

`check` reads the resolved configuration and, where given, the files it points to, and returns everything that is wrong
with it: each problem as one sentence with the value, the rule and the fix.  It imports neither verl nor torch's
distributed parts, so a mistake costs a second and not a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from advantage.estimators import ESTIMATORS, params_from_config, required_signals
from recipes.common import environment
from recipes.common.data_files import data_problems
from recipes.common.exposure_loop import controller_config, exposure_params
from recipes.common.reward_function import reward_problems
from workers.distill_params import LossParams, TeacherWeights, loss_params, teacher_weights

STARTER = Path(__file__).resolve().parents[1] / "starter"
TEACHER_CONTEXTS = ("solution", "answer")

OmegaConf.register_new_resolver("starter", lambda path: str(STARTER / path), replace=True)


class SettingsError(ValueError):
    """A configuration that must not be started; the message lists every problem found."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"- {p}" for p in problems))


def needed_signals(cfg: DictConfig) -> tuple[str, ...]:
    """Token signals that the configured credit and the loss's token weights use; verl's own estimators use none."""
    names = [cfg.algorithm.adv_estimator]
    if loss_of(cfg).weighting == "dasd":
        names.append("dasd")
    try:
        found = [signal for name in names if name in ESTIMATORS for signal in required_signals(name, cfg.algorithm)]
    except ValueError:
        return ()  # bad parameters, which `check` reports in their own words
    return tuple(dict.fromkeys(found))


def loss_of(cfg: DictConfig) -> LossParams:
    """`self_distill.loss`; its defaults where it is wrong, which `check` reports."""
    try:
        return loss_params(cfg.self_distill)
    except ValueError:
        return LossParams()


def teacher_of(cfg: DictConfig) -> TeacherWeights:
    """The weights' part of `self_distill.teacher`; its defaults where it is wrong, which `check` reports."""
    try:
        return teacher_weights(cfg.self_distill)
    except ValueError:
        return TeacherWeights()


def uses_teacher(cfg: DictConfig) -> bool:
    """Whether the self-teacher takes part: scoring the sampled tokens, or inside the loss."""
    return "log_prob_gap" in needed_signals(cfg) or loss_of(cfg).active


def check(cfg: DictConfig, *, gpus: int) -> None:
    """Raise `SettingsError` listing everything wrong with a resolved configuration.

    Args:
        gpus: number of GPUs in this machine.
    """
    problems = list(_device(cfg, gpus))
    if problems:  # on the wrong machine nothing else matters
        raise SettingsError(problems)
    for part in (
        _credit,
        _distillation,
        _exposure,
        _precision,
        _batches,
        _lengths,
        _rollout,
        _logical_cpus,
        _model,
        data_problems,
        reward_problems,
        *environment.CHECKS,
    ):
        try:
            problems += part(cfg)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)


def _device(cfg: DictConfig, gpus: int) -> Iterator[str]:
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


def _credit(cfg: DictConfig) -> Iterator[str]:
    name = cfg.algorithm.adv_estimator
    if name in ESTIMATORS:
        try:
            params_from_config(name, cfg.algorithm)
        except ValueError as error:
            raise SettingsError([str(error)]) from error
    if not uses_teacher(cfg):
        return
    teacher = cfg.self_distill.teacher
    try:
        teacher_weights(cfg.self_distill)
    except ValueError as error:
        yield str(error)
    if teacher.context == "problem":
        yield (
            "self_distill.teacher.context=problem: with the student's own prompt the teacher would be the student, or "
            "an older one, and have nothing to teach; show it the solution or the answer"
        )
    elif teacher.context not in TEACHER_CONTEXTS:
        yield f"self_distill.teacher.context={teacher.context}: must be one of {', '.join(TEACHER_CONTEXTS)}"
    if cfg.actor_rollout_ref.rollout.n < 2 and loss_of(cfg).ppo:
        yield (
            f"actor_rollout_ref.rollout.n={cfg.actor_rollout_ref.rollout.n}: a group advantage compares at least "
            "2 rollouts of a problem; the papers take 8"
        )


def _distillation(cfg: DictConfig) -> Iterator[str]:
    """The full-vocabulary loss, and teachers with weights of their own: what our engine cannot do."""
    try:
        loss = loss_params(cfg.self_distill)
    except ValueError as error:
        raise SettingsError([str(error)]) from error
    weights = cfg.self_distill.teacher.weights
    if loss.weighting != "uniform":
        if not loss.active:
            yield (
                f"self_distill.loss.weighting={loss.weighting} with self_distill.loss.kind=none: there is no "
                "divergence to weigh; choose a kind, or weighting=uniform"
            )
        name = {"position": "pw_opsd", "dasd": "dasd"}[loss.weighting]
        try:
            params_from_config(name, cfg.algorithm)
        except ValueError as error:
            yield str(error)
    if not (loss.active or (uses_teacher(cfg) and weights in ("ema", "snapshot"))):
        return
    what = f"self_distill.loss.kind={loss.kind}" if loss.active else f"self_distill.teacher.weights={weights}"
    actor = cfg.actor_rollout_ref.actor
    if actor.strategy != "fsdp2":
        yield (
            f"{what} with actor_rollout_ref.actor.strategy={actor.strategy}: the teacher's engine is FSDP2's; set "
            "it to fsdp2"
        )
    engine = actor.get("fsdp_config", {})
    shards = max(
        int(actor.get("ulysses_sequence_parallel_size", 1) or 1),
        int(engine.get("ulysses_sequence_parallel_size", 1) or 1),
    )
    if shards > 1:
        yield (
            f"{what} with ulysses_sequence_parallel_size={shards}: the teacher's and the student's prompts differ in "
            "length, so their shards do not hold the same tokens; set it to 1"
        )
    if engine.get("pad_to_length", False):
        yield (
            f"{what} with actor_rollout_ref.actor.fsdp_config.pad_to_length=true: padded rows have no teacher; set "
            "it to false"
        )
    if weights == "ema" and engine.get("model_dtype") not in (None, "fp32", "float32"):
        yield (
            "self_distill.teacher.weights=ema with "
            f"actor_rollout_ref.actor.fsdp_config.model_dtype={engine.model_dtype}: the average would round its "
            "updates away; set it to fp32"
        )
    if cfg.get("distillation", {}).get("enabled", False):
        yield f"{what} with distillation.enabled=true: verl's own distillation uses the same hook; set it to false"


def _exposure(cfg: DictConfig) -> Iterator[str]:
    """ATESD's exposure: its own values, and whether there is a teacher with a reasoning to show in part."""
    mode = f"self_distill.exposure.mode={cfg.self_distill.exposure.mode}"
    if (
        uses_teacher(cfg)
        and cfg.self_distill.exposure.mode != "full"
        and cfg.self_distill.teacher.context != "solution"
    ):
        yield (
            f"{mode} with self_distill.teacher.context={cfg.self_distill.teacher.context}: there is no reasoning to "
            "show in part; set self_distill.teacher.context=solution"
        )
    try:
        params = exposure_params(cfg.self_distill)
        controller = controller_config(cfg.self_distill, total_steps=1) if params.active else None
    except ValueError as error:
        yield str(error)
        return
    if controller is None:
        if params.difficulty_strength > 0:
            yield (
                f"self_distill.exposure.difficulty_strength={params.difficulty_strength} with mode=full: there is no "
                "exposure to condition; set self_distill.exposure.mode to fixed, random or learned"
            )
        return
    if not uses_teacher(cfg):
        yield (
            f"{mode}, but neither algorithm.adv_estimator={cfg.algorithm.adv_estimator} nor the loss uses a teacher: "
            "set it to full, or choose a method with one"
        )
    if params.mode == "learned":
        steps = cfg.trainer.total_training_steps
        needed = controller.window + (controller.decisions_per_update - 1) * controller.hold
        if steps is not None and steps <= needed:
            yield (
                f"{mode} for trainer.total_training_steps={steps}: the controller first learns after {needed} updates "
                "(lookahead + (decisions_per_update − 1) × hold), so it would stay random to the end; train longer, or "
                "shorten self_distill.exposure.lookahead and .hold"
            )


def _precision(cfg: DictConfig) -> Iterator[str]:
    if not uses_teacher(cfg):
        return
    arr = cfg.actor_rollout_ref
    if not arr.model.use_remove_padding:
        yield (
            "actor_rollout_ref.model.use_remove_padding=false: verl then computes entropies in bfloat16, off by up to "
            "0.18 nat, and the teacher in the loss needs packed sequences; set it to true"
        )
    if "entropy" in needed_signals(cfg) and not arr.actor.entropy_from_logits_with_chunking:
        yield (
            "actor_rollout_ref.actor.entropy_from_logits_with_chunking=false: entropies would be bfloat16, off "
            "by up to 0.18 nat, and they decide the direction; set it to true"
        )
    if cfg.algorithm.rollout_correction.get("bypass_mode", False):
        yield (
            "algorithm.rollout_correction.bypass_mode=true: verl then skips the pass that gives the student's "
            "log-probs and entropies, which the teacher's are compared with; set it to false"
        )
    if arr.actor.get("use_fused_kernels", False) or arr.model.use_fused_kernels:
        yield (
            "actor_rollout_ref.model.use_fused_kernels=true: its entropies are not full-precision, and it has no "
            "logits for the teacher to be compared with; set it to false"
        )


def _batches(cfg: DictConfig) -> Iterator[str]:
    n, batch = cfg.actor_rollout_ref.rollout.n, cfg.data.train_batch_size
    mini = cfg.actor_rollout_ref.actor.ppo_mini_batch_size
    workers = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes
    if workers < 1:
        yield f"trainer.n_gpus_per_node × trainer.nnodes = {workers}: at least 1 worker is needed"
        return
    if mini > batch or batch % mini:
        yield (
            f"data.train_batch_size={batch} must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}; "
            "verl would fill the last mini-batch with empty rows, which dilute its mean"
        )
    if mini * n % workers:
        yield (
            f"ppo_mini_batch_size × rollout.n = {mini * n} rollouts cannot be dealt evenly to {workers} workers: "
            "make it a multiple of them"
        )


def _lengths(cfg: DictConfig) -> Iterator[str]:
    data, actor, rollout = cfg.data, cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout
    longest = data.max_prompt_length + data.max_response_length
    what = "data.max_prompt_length + data.max_response_length"
    if rollout.max_model_len is not None and rollout.max_model_len < longest:
        yield f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than {what} = {longest}"
    if uses_teacher(cfg):
        with_teacher = cfg.self_distill.teacher.max_prompt_length + data.max_response_length
        if with_teacher > longest:
            longest, what = with_teacher, "self_distill.teacher.max_prompt_length + data.max_response_length"
    limits = {
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": (actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu),
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        ),
    }
    for key, (used, limit) in limits.items():
        if used and limit < longest:
            yield f"{key}={limit}: a micro-batch must hold the longest sequence, {what} = {longest}; raise it to that"


def _rollout(cfg: DictConfig) -> Iterator[str]:
    rollout, model = cfg.actor_rollout_ref.rollout, cfg.actor_rollout_ref.model
    if rollout.name == "transformers":
        if rollout.tensor_model_parallel_size * rollout.data_parallel_size != 1:
            yield (
                "actor_rollout_ref.rollout.name=transformers keeps a whole model in each server: set "
                "rollout.tensor_model_parallel_size=1 and rollout.data_parallel_size=1"
            )
        if model.lora_rank > 0 and not model.lora.merge:
            yield (
                "actor_rollout_ref.rollout.name=transformers takes merged weights: set "
                "actor_rollout_ref.model.lora.merge=true"
            )
    elif cfg.trainer.device == "cpu" and rollout.name != "vllm":
        yield (
            f"actor_rollout_ref.rollout.name={rollout.name} with trainer.device=cpu: set it to transformers, or to "
            "vllm (docs/cpu.md)"
        )
    if cfg.trainer.device == "cpu" and cfg.actor_rollout_ref.actor.strategy != "fsdp2":
        yield f"actor_rollout_ref.actor.strategy={cfg.actor_rollout_ref.actor.strategy} needs a GPU: set it to fsdp2"
    if rollout.temperature <= 0:
        yield f"actor_rollout_ref.rollout.temperature={rollout.temperature}: training samples, so it must be above 0"
    if cfg.self_distill.keep_checkpoints < 1:
        yield f"self_distill.keep_checkpoints={cfg.self_distill.keep_checkpoints}: must be at least 1"
    if cfg.self_distill.max_skipped_updates < 0:
        yield (
            f"self_distill.max_skipped_updates={cfg.self_distill.max_skipped_updates}: must be 0 (the first ends the "
            "run) or more"
        )
    if not cfg.self_distill.stall_minutes > 0:
        yield f"self_distill.stall_minutes={cfg.self_distill.stall_minutes}: must be above 0"


def logical_cpus_needed(cfg: DictConfig) -> int:
    """CPUs that verl's actors reserve in Ray: 3 a worker (its bundle), and one for each helper process."""
    workers = cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes
    storage = cfg.transfer_queue.backend.SimpleStorage.num_data_storage_units
    task_runner, queue_controller, router = 1, 1, 1
    agent_loops, graders = cfg.actor_rollout_ref.rollout.agent.num_workers, cfg.reward.num_workers
    return 3 * workers + storage + agent_loops + graders + task_runner + queue_controller + router


def _logical_cpus(cfg: DictConfig) -> Iterator[str]:
    given = cfg.ray_kwargs.ray_init.num_cpus
    if "RAY_ADDRESS" in os.environ or (cfg.dry_run and cfg.trainer.device != "cpu"):
        return
    available, needed = given if given is not None else os.cpu_count() or 1, logical_cpus_needed(cfg)
    if available < needed:
        yield (
            f"ray_kwargs.ray_init.num_cpus={given}: {available} logical CPUs, but verl's processes reserve "
            f"{needed}, and it "
            f"waits for ever for those that are missing; set ray_kwargs.ray_init.num_cpus={needed} (a booking, "
            "not a core)"
        )


def _model(cfg: DictConfig) -> Iterator[str]:
    path = str(cfg.actor_rollout_ref.model.path)
    expanded = Path(path).expanduser()
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") != 1
    if looks_local and not expanded.is_dir():
        yield (
            f"actor_rollout_ref.model.path={path}: no such folder; give a folder with a Hugging Face model, or a hub "
            "name"
        )
        return
    from transformers import AutoTokenizer

    source = str(expanded) if looks_local else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as local_error:
        unreachable = None if looks_local else _hub_unreachable(path)
        if looks_local or unreachable:
            reason = unreachable or (str(local_error).strip().splitlines() or [type(local_error).__name__])[0]
            yield (
                f"actor_rollout_ref.model.path={path}: its tokenizer cannot be loaded ({reason}); give a folder with a "
                "complete model, or download it where there is a network"
            )
            return
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if not tokenizer.chat_template and not cfg.actor_rollout_ref.model.custom_chat_template:
        yield (
            f"actor_rollout_ref.model.path={path}: its tokenizer has no chat template, so prompts cannot be "
            "rendered; use an instruction-tuned model, or set actor_rollout_ref.model.custom_chat_template"
        )


def _hub_unreachable(name: str) -> str | None:
    """Why a model cannot be had from the hub, or None; asks once, where transformers would retry for a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "not in the local cache, and HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(f"{constants.ENDPOINT}/{name}", timeout=10).status_code
    except Exception:  # no network, no name service, a proxy's refusal: each library behind this has its own classes
        return f"not in the local cache, and {constants.ENDPOINT} does not answer"
    return f"the hub knows no such model (status {status})" if status == 404 else None
