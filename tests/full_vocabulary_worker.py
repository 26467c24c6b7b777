"""One process of a training engine without Ray: trains a tiny model and writes down its gradients, or a checkpoint.

Run as `python -m tests.full_vocabulary_worker <folder>`; `cases.json` there says what to do, one after the other,
`model/` is the model, `batch.pt` has the sequences.  RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from outside.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
import torch.distributed as dist

import workers.cpu.platform

import workers.register  # noqa: F401  isort: skip
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from workers.training.engine import MODEL_TYPE, SelfDistillEngine
from workers.training.loss import SelfDistillLoss
from workers.training.params import LossParams, TeacherWeights


def build(folder: Path, case: dict) -> SelfDistillEngine:
    model = HFModelConfig(
        path=case.get("model", str(folder / "model")),
        use_remove_padding=True,
        enable_gradient_checkpointing=case.get("gradient_checkpointing", False),
        override_config={"attn_implementation": case.get("attention", "packed")},
        **({"lora_rank": 4, "lora_alpha": 8, "target_modules": "all-linear"} if case.get("lora") else {}),
    )
    engine = EngineRegistry.new(
        model_type=MODEL_TYPE,
        backend="fsdp2",
        model_config=model,
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            param_offload=False,
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32"},
            use_dynamic_bsz=case.get("dynamic", False),
            reshard_after_forward=case.get("reshard_after_forward", True),
        ),
        optimizer_config=FSDPOptimizerConfig(lr=case.get("lr", 0.01), clip_grad=1e9, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    engine.configure(LossParams(**case["loss"]), TeacherWeights(**case.get("teacher", {})))
    engine.initialize()
    return engine


def full(parameter: torch.Tensor) -> torch.Tensor:
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
    rows = torch.load(folder / "batch.pt")
    own = list(range(len(rows["student"])))[rank::world]

    def jagged(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    def positions(values: list[torch.Tensor]) -> torch.Tensor:
        return jagged([torch.arange(len(v)) for v in values])

    student, teacher = [rows["student"][i] for i in own], [rows["teacher"][i] for i in own]
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


def skipped_update(engine: SelfDistillEngine, data: TensorDict, loss: SelfDistillLoss, rank: int) -> dict:
    """One good update, then one where a token weight of the last rank alone is NaN, then a good one again."""
    good = data["distill_weights"]
    bad = torch.nested.nested_tensor_from_jagged(good.values().clone(), good.offsets())
    if rank == dist.get_world_size() - 1:
        bad.values()[0] = float("nan")
    norms, states = [], []
    for weights in (good, bad, good):
        data["distill_weights"] = weights
        with engine.train_mode():
            norms.append(engine.train_batch(data, loss)["metrics"]["grad_norm"])
        parameters = [p.detach().clone() for p in engine.module.parameters()]
        moments = [v.clone() for state in engine.optimizer.state.values() for v in state.values()]
        states.append([full(value) for value in parameters + moments])
    after_good, after_bad, after_next = states
    return {
        "norms": norms,
        "unchanged": all(torch.equal(a, b) for a, b in zip(after_good, after_bad, strict=True)),
        "goes on": any(not torch.equal(a, b) for a, b in zip(after_bad, after_next, strict=True)),
        "values": len(after_good),
    }


def resumed(
    engine: SelfDistillEngine, folder: Path, case: dict, data: TensorDict, loss: SelfDistillLoss
) -> dict[str, bool]:
    """Whether an engine that starts from a checkpoint does what the one that wrote it goes on to do, bit for bit."""
    path = str(folder / case["resume"])

    def update(one: SelfDistillEngine) -> None:
        with one.train_mode():
            one.train_batch(data, loss)
            one.lr_scheduler_step()

    def state(one: SelfDistillEngine) -> dict[str, list]:
        return {
            "weights": [p.detach().clone() for p in one.module.parameters()],
            "optimiser": [v.clone() for moments in one.optimizer.state.values() for v in moments.values()],
            "schedule": [torch.tensor(one.lr_scheduler.get_last_lr())],
            "teacher": [p.clone() for p in one.teacher.module.parameters()],
            # a frozen teacher has no use for its count
            "teacher's steps": [torch.tensor(one.teacher.steps if case["teacher"]["weights"] != "frozen" else 0)],
        }

    update(engine)
    engine.save_checkpoint(path, global_step=1)
    random = torch.rand(3)
    update(engine)
    through = state(engine)
    torch.manual_seed(99)
    again = build(folder, case)
    perturb(again)  # nothing may be right by chance
    again.load_checkpoint(path)
    same = {"random numbers": torch.equal(random, torch.rand(3))}
    update(again)
    for name, values in state(again).items():
        pairs = zip(through[name], values, strict=True)
        same[name] = bool(values) and all(torch.equal(full(a), full(b)) for a, b in pairs)
    return same


def policy_loss(model_output, data, dp_group=None):
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    config = FSDPActorConfig(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=1, rollout_n=1, loss_agg_mode="token-mean", use_dynamic_bsz=False
    )
    return ppo_loss(config, model_output, data, dp_group)


def run(folder: Path, case: dict, rank: int, world: int) -> dict:
    engine = build(folder, case)
    if case.get("perturb"):
        perturb(engine)
    loss = SelfDistillLoss(LossParams(**case["loss"]), policy_loss=policy_loss)
    data = mini_batch(folder, case, rank, world)
    initial = {name: full(p.detach()).clone() for name, p in engine.module.named_parameters()}
    with engine.train_mode():
        engine.optimizer_zero_grad()
        outputs = engine.forward_backward_batch(data, loss)
        gradients = {name: full(p.grad).clone() for name, p in engine.module.named_parameters() if p.grad is not None}
        teachers = []
        for _ in range(case.get("steps", 0)):
            engine.optimizer_step()
            engine.lr_scheduler_step()
            teachers.append({name: full(p).clone() for name, p in engine.teacher.module.named_parameters()})
            teachers.append({name: full(p.detach()).clone() for name, p in engine.module.named_parameters()})
    restored = None
    if case.get("steps") and engine.teacher is not None and case["teacher"]["weights"] != "frozen":
        engine.teacher.save(folder / "saved", rank=rank, world_size=world)
        before = {name: full(p).clone() for name, p in engine.teacher.module.named_parameters()}
        with torch.no_grad():
            for parameter in engine.teacher.module.parameters():
                parameter.zero_()
        engine.teacher.steps = -1
        engine.teacher.load(folder / "saved", rank=rank, world_size=world)
        after = {name: full(p) for name, p in engine.teacher.module.named_parameters()}
        restored = all(torch.equal(before[name], after[name]) for name in before), engine.teacher.steps
    metrics = {name: value if isinstance(value, list) else value.values for name, value in outputs["metrics"].items()}
    spoiled = skipped_update(engine, mini_batch(folder, case, rank, world), loss, rank) if case.get("spoil") else None
    again = resumed(engine, folder, case, mini_batch(folder, case, rank, world), loss) if case.get("resume") else None
    return {
        "spoiled": spoiled,
        "resumed": again,
        "loss": outputs["loss"],
        "gradients": gradients,
        "initial": initial,
        "metrics": metrics,
        "teachers": teachers,
        "restored": restored,
    }


def save(folder: Path, case: dict) -> dict[str, torch.Tensor]:
    """Write a checkpoint of weights that differ from the model's files; returns them whole."""
    engine = build(folder, case)
    perturb(engine)
    engine.save_checkpoint(str(folder / case["save"]))
    return {name: full(p.detach()).clone() for name, p in engine.module.named_parameters()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    cases = json.loads((folder / "cases.json").read_text())
    results = {}
    for name, case in cases.items():
        torch.manual_seed(0)
        results[name] = save(folder, case) if "save" in case else run(folder, case, rank, world)
    torch.save(results, folder / f"result_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
