"""What a configuration will need, computed before anything starts: memory of each phase for each GPU, work and time.

Pure arithmetic on numbers; `job_of` and `gpu_of` alone read a configuration.  Sizes of tensors are exact where the code
that allocates them decides them (weights, gradients, optimiser, logits, cache, saved activations), and
tests/recipes/common/plan/test_memory.py compares them with real tensors.  What CUDA, NCCL, Triton and vLLM keep for
themselves is `RESERVED`, an allowance.  Times are a roofline (what takes longer, products at peak speed or reads
at peak bandwidth) at the efficiencies below, which are assumptions: no GPU was measured for them.

Phases of a step, which never overlap: rollout (vLLM awake), log-probs of student and teacher, update.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from recipes.common.method import Method
from recipes.common.plan.shapes import Architecture, of_model

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """What a plan must know of a GPU.

    Attributes:
        name: as sentences call it.
        memory: bytes that the driver reports.
        flops: dense bf16 operations a second.
        bandwidth: bytes of memory read a second.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float


# NVIDIA's data sheets; memory as nvidia-smi shows it (81559 and 143771 MiB).
GPUS = {
    "h100": Gpu("H100", 81559 * 2**20, 989e12, 3.35e12),
    "h200": Gpu("H200", 143771 * 2**20, 989e12, 4.8e12),
}

RESERVED = {
    "rollout": 1.5 * GIB,  # CUDA contexts of worker and server, NCCL
    "student log-probs": 3.5 * GIB,  # the same, and what a sleeping vLLM keeps: graphs, communicators
    "teacher log-probs": 3.5 * GIB,
    "update": 3.5 * GIB,
}
# Inside vLLM's share: activations of a profiling pass, sampler, graphs.
SERVER_WORKSPACE = 3 * GIB
# Share of the peak that is reached: matrix products, memory reads of decoding.  Assumed.
PRODUCT_EFFICIENCY, READ_EFFICIENCY = 0.4, 0.6
# workers/divergence/full.py on a GPU: elements of a chunk of logits, and fp32 buffers of a block.
CHUNK_ELEMENTS = 1 << 28
DIVERGENCE_BUFFERS, DIVERGENCE_ELEMENTS = 5, 1 << 26


@dataclass(frozen=True)
class Job:
    """The numbers of a run that its needs depend on.  Lengths in tokens, batch sizes in problems."""

    model: Architecture
    gpu: Gpu | None  # None: no GPU, sizes only
    gpus_per_node: int
    nodes: int
    # training
    lora_rank: int
    weight_bytes: int  # of an element of weights, gradients and optimiser moments
    compute_bytes: int  # of an element in the forward pass
    checkpointing: bool
    param_offload: bool
    optimizer_offload: bool
    offload_policy: bool
    token_budget: int  # of a micro-batch
    log_prob_budget: int
    # rollout
    tensor_parallel: int
    memory_share: float
    max_sequences: int
    sleeps: bool
    # batch
    batch: int
    mini_batch: int
    rollouts: int
    prompt: int
    response: int
    temperature: float
    # teacher
    scored: bool  # in a pass of its own
    divergence: bool  # in the loss
    policy_loss: bool
    from_hidden: bool  # the divergence, without logits
    teacher_copy: bool
    teacher_passes: int  # that its logits take
    teacher_prompt: int
    teacher_budget: int  # tokens of the teacher's passes in the loss

    @property
    def workers(self) -> int:
        """Training workers, one a GPU."""
        return self.gpus_per_node * self.nodes

    @property
    def sequence(self) -> int:
        """Tokens of the longest student sequence."""
        return self.prompt + self.response

    @property
    def teacher_sequence(self) -> int:
        """Tokens of the longest teacher sequence: its own prompt, the student's response."""
        return self.teacher_prompt + self.response

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a micro-batch must hold."""
        return max(self.sequence, self.teacher_sequence if self.scored or self.divergence else 0)

    @property
    def trainable(self) -> int:
        """Elements that are trained: the adapter's, or the whole model's."""
        return self.model.adapter_parameters(self.lora_rank) if self.lora_rank else self.model.parameters

    @property
    def sequences(self) -> int:
        """Rollouts of a step."""
        return self.batch * self.rollouts


def job_of(cfg: DictConfig, method: Method, gpu: Gpu | None) -> Job | None:
    """The job of a resolved configuration; None where the model's shape is not known here.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, read from it.
        gpu: what is planned for, from `gpu_of`; None for the sizes alone.
    """
    arr = cfg.actor_rollout_ref
    model = of_model(str(arr.model.path))
    if model is None:
        return None
    actor, rollout, fsdp, loss = arr.actor, arr.rollout, arr.actor.fsdp_config, method.loss
    precision = fsdp.get("mixed_precision") or {}
    lora = int(arr.model.lora_rank or 0)
    longest = cfg.data.max_prompt_length + cfg.data.max_response_length
    per_gpu = actor.ppo_micro_batch_size_per_gpu or 1
    return Job(
        model=model,
        gpu=gpu,
        gpus_per_node=cfg.trainer.n_gpus_per_node,
        nodes=cfg.trainer.nnodes,
        lora_rank=lora,
        weight_bytes=_element(fsdp.get("model_dtype") or "fp32"),
        compute_bytes=_element(precision.get("param_dtype", "bf16")),
        checkpointing=bool(arr.model.enable_gradient_checkpointing),
        param_offload=bool(fsdp.param_offload),
        optimizer_offload=bool(fsdp.optimizer_offload),
        offload_policy=bool(fsdp.offload_policy),
        token_budget=actor.ppo_max_token_len_per_gpu if actor.use_dynamic_bsz else per_gpu * longest,
        log_prob_budget=(
            rollout.log_prob_max_token_len_per_gpu
            if rollout.log_prob_use_dynamic_bsz
            else (rollout.log_prob_micro_batch_size_per_gpu or 1) * longest
        ),
        tensor_parallel=rollout.tensor_model_parallel_size,
        memory_share=rollout.gpu_memory_utilization,
        max_sequences=rollout.max_num_seqs,
        sleeps=bool(rollout.free_cache_engine),
        batch=cfg.data.train_batch_size,
        mini_batch=actor.ppo_mini_batch_size,
        rollouts=rollout.n,
        prompt=cfg.data.max_prompt_length,
        response=cfg.data.max_response_length,
        temperature=rollout.temperature,
        scored=method.scores_with_teacher,
        divergence=loss.active,
        policy_loss=loss.ppo,
        from_hidden=loss.logits_because is None,
        teacher_copy=method.teacher_copy,
        teacher_passes=method.weights.passes,
        teacher_prompt=method.max_prompt_length,
        teacher_budget=(
            actor.ppo_max_token_len_per_gpu
            if actor.use_dynamic_bsz
            else per_gpu * (method.max_prompt_length + cfg.data.max_response_length)
        ),
    )


def gpu_of(cfg: DictConfig) -> Gpu | None:
    """The GPU that is planned for: `self_distill.gpu`, else this machine's first, else None."""
    if cfg.trainer.device == "cpu":
        return None
    if cfg.self_distill.gpu is not None:
        return GPUS.get(cfg.self_distill.gpu)
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    like = next((g for g in GPUS.values() if g.name in properties.name), GPUS["h100"])
    return Gpu(properties.name, properties.total_memory, like.flops, like.bandwidth)


def checkpoint_bytes(job: Job) -> int:
    """Bytes of one checkpoint: weights, two moments of what is trained, and the teacher's weights if it has its own."""
    weights = job.model.parameters + (job.trainable if job.lora_rank else 0)
    return job.weight_bytes * (weights * (1 + job.teacher_copy) + 2 * job.trainable)


def _element(dtype: str) -> int:
    return 4 if str(dtype) in ("fp32", "float32") else 2


# ---------------------------------------------------------------------- memory


def logits_bytes(job: Job, tokens: int, copies: int = 1) -> int:
    """Bytes of full-vocabulary logits, (tokens, V) in the compute dtype.

    Args:
        job: the run that is planned.
        tokens: rows of logits.
        copies: how many tensors of that size exist at once.
    """
    return tokens * job.model.vocab * job.compute_bytes * copies


def _divided(job: Job) -> int:
    """How often the clip's logits exist: verl divides by the temperature out of place, at 1 not at all."""
    return 1 if job.temperature == 1.0 else 2


def _chunk(job: Job, rows: int) -> int:
    """Rows whose logits exist at once where the head's inputs are what is kept."""
    return min(rows, max(1, CHUNK_ELEMENTS // job.model.vocab))


def statistics_bytes(job: Job, rows: int) -> int:
    """Bytes of a chunk's logits and probabilities in fp32, from which log-probs and entropies are computed.

    Args:
        job: the run that is planned.
        rows: tokens that are scored; those of a chunk exist at once.
    """
    return 2 * _chunk(job, rows) * job.model.vocab * 4


def _gathered(job: Job, gradients: bool) -> float:
    """What FSDP2 holds unsharded: embedding and head for the whole pass, a layer and the next one."""
    m, elements = job.model, job.compute_bytes
    held = (m.root_parameters + 2 * m.layer_parameters) * elements
    if gradients and not job.lora_rank:  # in the compute dtype, and in fp32 on the way to their shards
        held += (m.root_parameters + m.layer_parameters) * (elements + 4)
    return held


def _shard(job: Job, elements: int) -> float:
    return 0.0 if job.offload_policy else elements * job.weight_bytes / job.workers


def _resident(job: Job, phase: str) -> dict[str, float]:
    """Shards on the GPU in a phase; verl moves offloaded ones back for the phases that use them."""
    weights = job.model.parameters + (job.trainable if job.lora_rank else 0)
    kept = {
        "weights": 0.0 if phase == "rollout" and job.param_offload else _shard(job, weights),
        "optimiser": 0.0 if phase != "update" and job.optimizer_offload else _shard(job, 2 * job.trainable),
    }
    if phase == "update":
        kept["gradients"] = _shard(job, job.trainable)
    if job.teacher_copy and not (phase == "rollout" and job.param_offload):
        kept["teacher"] = _shard(job, weights)
    return kept


def micro_batch(job: Job, budget: int, longest: int) -> tuple[int, int]:
    """The largest micro-batch that a worker sees: its tokens, and how many sequences of full length it has.

    Args:
        job: the run that is planned.
        budget: tokens that a micro-batch may have.
        longest: tokens of a sequence of full length.
    """
    dealt = math.ceil(job.mini_batch * job.rollouts / job.workers)
    tokens = min(budget, dealt * longest)
    return tokens, max(1, min(dealt, tokens // longest))


def memory(job: Job) -> dict[str, dict[str, float]]:
    """What lies in a GPU's memory in each phase.

    Returns:
        Phase -> name of a thing that lies in memory then -> bytes. Without a GPU there is no rollout and no allowance.
    """
    phases: dict[str, dict[str, float]] = {}
    m, gpu = job.model, job.gpu
    if gpu is not None:
        server = job.memory_share * gpu.memory
        weights = m.parameters * 2 / job.tensor_parallel
        phases["rollout"] = {
            **_resident(job, "rollout"),
            "rollout weights": weights,
            "rollout workspace": SERVER_WORKSPACE,
            "KV cache": max(0.0, server - weights - SERVER_WORKSPACE),
        }
    interior = m.saved_bytes() * job.compute_bytes / 2
    tokens, _ = micro_batch(job, job.log_prob_budget, job.sequence)
    phases["student log-probs"] = {
        **_resident(job, "log-probs"),
        "gathered": _gathered(job, gradients=False),
        "activations": tokens * interior / 2,  # nothing is kept for a backward pass: about half of a layer lives
        "logits of a chunk": statistics_bytes(job, tokens),
    }
    if job.scored:
        tokens, _ = micro_batch(job, job.log_prob_budget, job.teacher_sequence)
        phases["teacher log-probs"] = {
            **_resident(job, "log-probs"),
            "gathered": _gathered(job, gradients=False),
            "activations": tokens * interior / 2,
            "logits of a chunk": statistics_bytes(job, tokens),
        }
    phases["update"] = _update(job, interior)
    for phase, parts in phases.items():
        if gpu is not None:
            parts["reserved"] = RESERVED[phase]
            if not job.sleeps and phase != "rollout":
                parts["KV cache"] = job.memory_share * gpu.memory
    return phases


def _update(job: Job, interior: float) -> dict[str, float]:
    m = job.model
    tokens, _ = micro_batch(job, job.token_budget, job.sequence)
    if job.checkpointing:  # the input of each layer, and the inside of the one that is done again
        activations = tokens * (m.layers * m.hidden * job.compute_bytes + interior)
    else:
        activations = tokens * m.layers * interior
    parts = {**_resident(job, "update"), "gathered": _gathered(job, gradients=True), "activations": activations}
    if not job.divergence:  # PPO: the cross-entropy writes its gradient over the logits
        return parts | {"logits": logits_bytes(job, tokens, _divided(job))}
    dealt = math.ceil(job.mini_batch * job.rollouts / job.workers)
    rows = min(tokens, dealt * job.response)
    teacher = min(dealt * job.teacher_sequence, max(job.teacher_budget, job.teacher_sequence))
    parts["activations"] = max(activations, teacher * interior / 2)
    if job.from_hidden:
        return parts | {"divergence": hidden_divergence_bytes(job, rows)}
    # Beside the clip the gradients of both terms, before they are added.
    parts["logits"] = logits_bytes(job, tokens, 3 if job.policy_loss else 1)
    parts["teacher logits"] = divergence_bytes(job, rows) + logits_bytes(job, rows, job.teacher_passes - 1)
    return parts


def _working_buffers(job: Job, rows: int) -> int:
    block = min(rows, max(1, DIVERGENCE_ELEMENTS // job.model.vocab))
    return DIVERGENCE_BUFFERS * block * job.model.vocab * 4


def divergence_bytes(job: Job, rows: int) -> float:
    """Bytes that a divergence takes beside the student's logits.

    They are the teacher's logits (rows, V), which become the gradient, and the working buffers.

    Args:
        job: the run that is planned.
        rows: response tokens of a micro-batch.
    """
    return logits_bytes(job, rows) + _working_buffers(job, rows)


def hidden_divergence_bytes(job: Job, rows: int) -> float:
    """Bytes that a divergence from hidden states takes.

    They are both sides' states and their gradient, a chunk's logits, the working buffers, and what the heads need: a
    head that trains has its gradient in fp32 and then in the compute dtype; a teacher's own head is copied.

    Args:
        job: the run that is planned.
        rows: response tokens of a micro-batch; the hidden states are (rows, h).
    """
    m = job.model
    head = m.vocab * m.hidden
    gradient = 0 if job.lora_rank else head * (4 + job.compute_bytes)
    copied = head * job.compute_bytes * job.teacher_passes if job.teacher_copy else 0
    states = rows * m.hidden * ((1 + job.teacher_passes) * job.compute_bytes + 4)
    return (
        states + logits_bytes(job, _chunk(job, rows), 2) + _working_buffers(job, _chunk(job, rows)) + gradient + copied
    )


def cache_tokens(job: Job) -> int:
    """Tokens that a rollout server's cache holds, over all GPUs of the server."""
    cache = memory(job)["rollout"]["KV cache"]
    return int(cache * job.tensor_parallel // job.model.cache_bytes())


# ---------------------------------------------------------------------- time


def seconds(job: Job) -> dict[str, float]:
    """Seconds of each stage of a step if every prompt and response reaches its limit: a bound, by the roofline.

    Returns:
        Stage -> seconds; empty without a GPU.
    """
    if job.gpu is None:
        return {}
    m = job.model
    rate = job.gpu.flops * PRODUCT_EFFICIENCY * job.workers

    def forward(length: int) -> float:
        return job.sequences * (2 * m.product_parameters * length + m.attention_flops(length)) / rate

    stages = {"rollout": _decoding(job, job.gpu), "student log-probs": forward(job.sequence)}
    if job.scored:
        stages["teacher log-probs"] = job.teacher_passes * forward(job.teacher_sequence)
    # Backward: products for the inputs and, in full fine-tuning, the weights; checkpointing repeats the forward pass.
    passes = 1 + job.checkpointing + (1 if job.lora_rank else 2)
    stages["update"] = passes * forward(job.sequence)
    if job.divergence:
        stages["update"] += job.teacher_passes * forward(job.teacher_sequence)
    return stages


def _decoding(job: Job, gpu: Gpu) -> float:
    """Tokens one after another: each reads the weights and the cache, in as many waves as the cache holds sequences."""
    m, tp = job.model, job.tensor_parallel
    queue = math.ceil(job.sequences * tp / job.workers)
    mean = job.prompt + job.response / 2
    at_once = max(1, min(queue, job.max_sequences, int(cache_tokens(job) / mean)))
    read = (m.parameters * 2 + at_once * mean * m.cache_bytes()) / (tp * gpu.bandwidth * READ_EFFICIENCY)
    compute = at_once * 2 * m.product_parameters / (tp * gpu.flops * PRODUCT_EFFICIENCY)
    return job.response * math.ceil(queue / at_once) * max(read, compute)


# ---------------------------------------------------------------------- verdict


def overfull(job: Job) -> list[str]:
    """Why the job cannot fit, phase by phase; empty where it does."""
    if job.gpu is None:
        return []
    found = []
    for phase, parts in memory(job).items():
        total = sum(parts.values())
        if total > job.gpu.memory:
            largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
            named = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
            found.append(
                f"{phase}: {total / GIB:.1f} GiB on each {job.gpu.name} of {job.gpu.memory / GIB:.1f} ({named})"
            )
    if cache_tokens(job) < job.sequence:
        found.append(
            f"rollout: the cache holds {max(0, cache_tokens(job))} tokens and one sequence takes {job.sequence}"
        )
    return found


def remedies(job: Job, most: int = 3) -> Iterator[tuple[str, ...]]:
    """Sets of overrides with which the job would fit: the smallest sets there are, in order of what they cost a run.

    Args:
        job: a job that does not fit.
        most: number of sets to stop after.

    Returns:
        An iterator of sets, each a tuple of overrides as the command line takes them.
    """
    options = list(_options(job))
    for size in (1, 2, 3):
        found = 0
        for chosen in itertools.combinations(options, size):
            changes: dict[str, object] = {}
            for _, change in chosen:
                changes |= change
            if len(changes) == sum(len(change) for _, change in chosen) and not overfull(replace(job, **changes)):  # type: ignore[arg-type]
                yield tuple(override for override, _ in chosen)
                found += 1
                if found == most:
                    return
        if found:
            return


def _options(job: Job) -> Iterator[tuple[str, dict[str, object]]]:
    """(override, change of the job), cheapest first."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    if job.longest < min(job.token_budget, job.log_prob_budget):
        yield (
            f"{actor}.ppo_max_token_len_per_gpu={job.longest}",
            {"token_budget": job.longest, "log_prob_budget": job.longest},
        )
    for share in (0.5, 0.4, 0.3):
        if share < job.memory_share:
            yield f"{rollout}.gpu_memory_utilization={share}", {"memory_share": share}
    for share in (0.75, 0.9):
        if share > job.memory_share:
            yield f"{rollout}.gpu_memory_utilization={share}", {"memory_share": share}
    if not job.sleeps:
        yield f"{rollout}.free_cache_engine=true", {"sleeps": True}
    if not job.checkpointing:
        yield "actor_rollout_ref.model.enable_gradient_checkpointing=true", {"checkpointing": True}
    if not job.optimizer_offload:
        yield f"{actor}.fsdp_config.optimizer_offload=true", {"optimizer_offload": True}
    if not job.param_offload:
        yield f"{actor}.fsdp_config.param_offload=true", {"param_offload": True}
    for parallel in (2, 4, 8):
        if parallel > job.tensor_parallel and job.gpus_per_node % parallel == 0:
            yield f"{rollout}.tensor_model_parallel_size={parallel}", {"tensor_parallel": parallel}
    if not job.offload_policy:
        yield f"{actor}.fsdp_config.offload_policy=true", {"offload_policy": True}
    if not job.lora_rank:
        yield "actor_rollout_ref.model.lora_rank=64", {"lora_rank": 64}
    for gpus in (2, 4, 8):
        if gpus > job.gpus_per_node:
            yield f"trainer.n_gpus_per_node={gpus}", {"gpus_per_node": gpus}


def refusal(job: Job) -> list[str]:
    """What does not fit, and what would help, in one sentence for `recipes.common.checks`; empty where the job fits."""
    found = overfull(job)
    if not found:
        return []
    helps = [" ".join(overrides) for overrides in remedies(job)]
    fix = f"it would fit with {', or '.join(helps)}" if helps else "take more or larger GPUs, or a smaller model"
    return [f"this does not fit: {'; '.join(found)}; {fix}"]
