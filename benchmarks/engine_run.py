"""A case of `benchmarks.engine_cases` through verl's engine, without Ray: build it, take one gradient.

The process group is open before anything here is called, with gloo on a CPU or NCCL on a GPU; the device is verl's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():  # before verl is imported
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "workers.cpu.platform")

from tensordict import TensorDict
from torch import Tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from workers.training.engine import MODEL_TYPE, TEACHER_LENGTHS, SelfDistillEngine
from workers.training.loss import SelfDistillLoss
from workers.training.params import LossParams, TeacherWeights


class RandomEngine(SelfDistillEngine):
    """The engine of a model whose weights are drawn on the device by `folder/model/config.json`, not read."""

    def _build_module(self) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        with torch.device(get_device_name()):
            module = AutoModelForCausalLM.from_config(
                self.model_config.hf_config,
                dtype=torch.float32,
                attn_implementation=self.model_config.hf_config._attn_implementation,
            )
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module


def configs(folder: Path, case: dict) -> dict[str, Any]:
    """verl's configurations of an engine that trains the model `case["model"]` in the folder, or in one of its own."""
    model = HFModelConfig(
        path=str(folder / case.get("model", "model")),
        use_remove_padding=True,
        enable_gradient_checkpointing=case.get("gradient_checkpointing", False),
        override_config={"attn_implementation": case.get("attention", "sdpa")},
        **({"lora_rank": 4, "lora_alpha": 8, "target_modules": "all-linear"} if case.get("lora") else {}),
    )
    return {
        "model_config": model,
        "engine_config": FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            param_offload=case.get("param_offload", False),
            optimizer_offload=case.get("param_offload", False),
            offload_policy=case.get("offload_policy", False),
            mixed_precision={"param_dtype": case.get("dtype", "fp32"), "reduce_dtype": "fp32"},
            use_dynamic_bsz=case.get("dynamic", False),
            reshard_after_forward=case.get("reshard_after_forward", True),
        ),
        "optimizer_config": FSDPOptimizerConfig(lr=case.get("lr", 0.01), clip_grad=1e9, total_training_steps=10),
        "checkpoint_config": CheckpointConfig(),
    }


def build(folder: Path, case: dict, engine_class: type[SelfDistillEngine] | None = None) -> SelfDistillEngine:
    """The engine of a case, initialised."""
    if engine_class is None:
        engine = EngineRegistry.new(model_type=MODEL_TYPE, backend="fsdp2", **configs(folder, case))
    else:
        engine = engine_class(**configs(folder, case))
    engine.configure(LossParams(**case["loss"]), TeacherWeights(**case.get("teacher", {})))
    engine.initialize()
    return engine


def full(parameter: Tensor) -> Tensor:
    """A parameter or gradient whole; a collective where it is sharded."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def perturb(engine: SelfDistillEngine) -> None:
    """Make the student differ from the initial policy, by values that depend on names only."""
    with torch.no_grad():
        for name, parameter in sorted(engine.module.named_parameters()):
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(sum(map(ord, name)))
                shift = 0.02 * torch.randn(parameter.shape, generator=generator)
                if hasattr(parameter, "full_tensor"):
                    from torch.distributed.tensor import distribute_tensor

                    shift = distribute_tensor(shift, parameter.device_mesh, parameter.placements)
                parameter.add_(shift)


def mini_batch(folder: Path, case: dict, rank: int, world: int) -> TensorDict:
    """This rank's rows of `folder/batch.pt`, as verl hands them to its engine."""
    rows = torch.load(folder / "batch.pt")
    own = list(range(len(rows["student"])))[rank::world]

    def jagged(values: list[Tensor]) -> Tensor:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    def positions(values: list[Tensor]) -> Tensor:
        return jagged([torch.arange(len(v)) for v in values])

    student = [rows["student"][i] for i in own]
    teacher = student if case.get("same_prompts") else [rows["teacher"][i] for i in own]
    masks = [rows["mask"][i] for i in own]
    fields = {
        "input_ids": jagged(student),
        "position_ids": positions(student),
        "teacher_input_ids": jagged(teacher),
        "teacher_position_ids": positions(teacher),
        "response_mask": jagged(masks),
        "loss_mask": jagged(masks),
        "prompts": jagged([s[: len(s) - len(m)] for s, m in zip(student, masks, strict=True)]),
        "responses": jagged([s[len(s) - len(m) :] for s, m in zip(student, masks, strict=True)]),
        "old_log_probs": jagged([rows["old_log_probs"][i] for i in own]),
        "advantages": jagged([rows["advantages"][i] for i in own]),
    }
    if case.get("mixed"):
        fields["distill_forward_shares"] = jagged([rows["weights"][i] for i in own])
    if case.get("weighted"):
        fields["distill_weights"] = jagged([rows["weights"][i] - case.get("weights_minus", 0.0) for i in own])
    data = TensorDict(fields, batch_size=len(own))
    tu.assign_non_tensor(
        data,
        temperature=case.get("rollout_temperature", 1.0),
        use_remove_padding=True,
        use_dynamic_bsz=case.get("dynamic", False),
        micro_batch_size_per_gpu=case.get("micro", 1),
        max_token_len_per_gpu=case.get("max_tokens", 64),
        calculate_entropy=False,
        global_batch_size=len(rows["student"]),
        use_fused_kernels=False,
    )
    return data


def policy_loss(model_output, data, dp_group=None):
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    config = FSDPActorConfig(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=1, rollout_n=1, loss_agg_mode="token-mean", use_dynamic_bsz=False
    )
    return ppo_loss(config, model_output, data, dp_group)


def loss_of(case: dict) -> Callable[..., Any]:
    """What the engine trains in a case; verl's PPO clip is called where the case has it, alone without a divergence."""
    if not LossParams(**case["loss"]).active:
        return policy_loss
    return SelfDistillLoss(LossParams(**case["loss"]), policy_loss=policy_loss)


def first_gradient(engine: SelfDistillEngine, case: dict, data: TensorDict) -> dict[str, Any]:
    """One forward and backward pass: loss of each micro-batch, whole gradients, metrics; call it in `train_mode`."""
    engine.optimizer_zero_grad()
    outputs = engine.forward_backward_batch(data, loss_of(case))
    outputs["metrics"].pop(TEACHER_LENGTHS, None)
    metrics = {name: value if isinstance(value, list) else value.values for name, value in outputs["metrics"].items()}
    gradients = {name: full(p.grad).clone() for name, p in engine.module.named_parameters() if p.grad is not None}
    return {"loss": outputs["loss"], "gradients": gradients, "metrics": metrics}


def scores(engine: SelfDistillEngine, data: TensorDict, measures: dict[str, Any] | None = None) -> dict[str, Any]:
    """Log-probs and entropies by verl's scoring pass: per row, those of the response; and the noise it measured.

    Args:
        measures: options of the pass that ask for more (`workers.training.packing`).
    """
    tu.assign_non_tensor(data, calculate_entropy=True, **(measures or {}))
    with engine.eval_mode():
        outputs = engine.infer_batch(data)["model_output"]
    lengths = data["response_mask"].offsets().diff().tolist()

    def of_responses(values: Tensor) -> list[Tensor]:
        return [row[-length - 1 : -1].cpu() for row, length in zip(values.unbind(), lengths, strict=True)]

    found: dict[str, Any] = {name: of_responses(values) for name, values in outputs.items()}
    return {**found, "noise": engine._noise}
