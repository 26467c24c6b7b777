"""One process of a training engine without Ray: trains a tiny model and writes down its gradients, or a checkpoint.

Run as `python -m tests.workers.training.full_vocabulary_worker <folder>`; `cases.json` there says what to do, one after
the other, `model/` is the model, `batch.pt` has the sequences.  RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from
outside.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tensordict import NonTensorData, TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import TrainingWorkerConfig

import workers.register  # noqa: F401
from benchmarks.engine_run import build, configs, first_gradient, full, loss_of, mini_batch, perturb, scores
from workers.training.engine import SelfDistillEngine
from workers.training.loss import SelfDistillLoss
from workers.training.params import LossParams, TeacherWeights
from workers.training.worker import SelfDistillTrainingWorker


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


def state(engine: SelfDistillEngine) -> dict[str, list]:
    """What a training consists of, each part as a list of tensors."""
    teacher = engine.teacher
    return {
        "weights": [p.detach().clone() for p in engine.module.parameters()],
        "optimiser": [v.clone() for moments in engine.optimizer.state.values() for v in moments.values()],
        "schedule": [torch.tensor(engine.lr_scheduler.get_last_lr()), torch.tensor(engine.lr_scheduler.last_epoch)],
        "rates": [torch.tensor(group["lr"]) for group in engine.optimizer.param_groups],
        "teacher": [] if teacher is None else [p.clone() for p in teacher.module.parameters()],
        # a frozen teacher has no use for its count
        "teacher's steps": [torch.tensor(teacher.steps if teacher and teacher.settings.weights != "frozen" else 0)],
    }


def equal(one: dict[str, list], other: dict[str, list]) -> dict[str, bool]:
    """Whether each part of two states is the same, bit for bit."""
    return {
        name: len(values) == len(other[name])
        and all(torch.equal(full(a), full(b)) for a, b in zip(values, other[name], strict=True))
        for name, values in one.items()
    }


def update(engine: SelfDistillEngine, data: TensorDict, loss: SelfDistillLoss) -> None:
    """A training step of one mini-batch."""
    with engine.train_mode():
        engine.train_batch(data, loss)
        engine.lr_scheduler_step()


def taken_back(engine: SelfDistillEngine, data: TensorDict, loss: SelfDistillLoss) -> dict[str, bool]:
    """Whether an engine that tried an update is the one that did not, and whether what was tried changed anything."""
    before = state(engine)
    engine.keep_state()
    torch.rand(3)
    update(engine, data, loss)
    tried = state(engine)
    update(engine, data, loss)
    engine.put_back_state()
    found = {f"{name} put back": same for name, same in equal(before, state(engine)).items()}
    random = torch.get_rng_state()
    update(engine, data, loss)
    found |= {f"{name} of the next": same for name, same in equal(tried, state(engine)).items()}
    engine.keep_state()
    torch.rand(3)
    engine.put_back_state()
    return found | {
        "random numbers": torch.equal(random, torch.get_rng_state()),
        "tried": not equal(before, tried)["weights"] and not equal(before, tried)["schedule"],
    }


def resumed(
    engine: SelfDistillEngine, folder: Path, case: dict, data: TensorDict, loss: SelfDistillLoss
) -> dict[str, bool]:
    """Whether an engine that starts from a checkpoint does what the one that wrote it goes on to do, bit for bit."""
    path = str(folder / case["resume"])

    update(engine, data, loss)
    engine.save_checkpoint(path, global_step=1)
    random = torch.rand(3)
    update(engine, data, loss)
    through = state(engine)
    torch.manual_seed(99)
    again = build(folder, case)
    perturb(again)  # nothing may be right by chance
    again.load_checkpoint(path)
    same = {"random numbers": torch.equal(random, torch.rand(3))}
    update(again, data, loss)
    return same | equal(through, state(again))


def teacher_between_updates(engine: SelfDistillEngine, data: TensorDict, loss: SelfDistillLoss) -> dict[str, bool]:
    """Whether two updates of one step have the same teacher, and the next step another one."""
    seen, inner = [], engine._teacher_pass

    def watched(micro_batch: TensorDict) -> tuple:
        seen.append(inner(micro_batch))
        return seen[-1]

    engine._teacher_pass = watched
    with engine.train_mode():
        for _ in range(2):
            engine.train_batch(data, loss)
        engine.lr_scheduler_step()
        engine.train_batch(data, loss)
    first, second, next_step = (states for states, _ in seen)
    return {"same in a step": torch.equal(first, second), "same in the next": torch.equal(second, next_step)}


def run(folder: Path, case: dict, rank: int, world: int) -> dict:
    engine = build(folder, case)
    if case.get("perturb"):
        perturb(engine)
    loss = loss_of(case)
    data = mini_batch(folder, case, rank, world)
    initial = {name: full(p.detach()).clone() for name, p in engine.module.named_parameters()}
    with engine.train_mode():
        found = first_gradient(engine, case, data)
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
    spoiled = skipped_update(engine, mini_batch(folder, case, rank, world), loss, rank) if case.get("spoil") else None
    again = resumed(engine, folder, case, mini_batch(folder, case, rank, world), loss) if case.get("resume") else None
    between = teacher_between_updates(engine, data, loss) if case.get("updates") else None
    scored = None
    if case.get("scores"):
        scored = scores(engine, mini_batch(folder, case, rank, world), case.get("measures"))
        with engine.as_teacher():
            scored["by the teacher"] = scores(engine, mini_batch(folder, case, rank, world))
    undone = taken_back(engine, mini_batch(folder, case, rank, world), loss) if case.get("undo") else None
    return {
        **found,
        "between": between,
        "undone": undone,
        "scored": scored,
        "spoiled": spoiled,
        "resumed": again,
        "initial": initial,
        "teachers": teachers,
        "restored": restored,
    }


def through_the_worker(folder: Path, case: dict, rank: int, world: int) -> dict:
    """A scoring pass, and a step of a mini-batch for each row, by verl's training worker, as a task runner calls it."""
    settings = configs(folder, case)
    settings["engine_config"].infer_micro_batch_size_per_gpu = 1
    settings["engine_config"].micro_batch_size_per_gpu = 1
    worker = SelfDistillTrainingWorker(
        TrainingWorkerConfig(model_type="language_model", **settings),
        LossParams(**case["loss"]),
        TeacherWeights(**case.get("teacher", {})),
    )
    worker.reset()
    worker.set_loss_fn(loss_of(case))
    scored, trained = (mini_batch(folder, case, rank, world) for _ in range(2))
    lengths = NonTensorData(scored["input_ids"].offsets().diff().tolist())
    tu.assign_non_tensor(scored, calculate_entropy=True, compute_loss=False, global_token_num=lengths)
    rows = len(trained)
    tu.assign_non_tensor(trained, mini_batch_size=world, epochs=1, seed=1, dataloader_kwargs={"shuffle": False})
    scores = worker.infer_batch(scored)
    told = tu.get(worker.train_mini_batch(trained), "metrics")
    metrics = {name: [float(value) for value in values] for name, values in told.items()}  # some are numpy's
    return {"dtype": scores["log_probs"].dtype, "metrics": metrics, "mini-batches": rows}


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
        if "save" in case:
            results[name] = save(folder, case)
        else:
            results[name] = (through_the_worker if case.get("worker") else run)(folder, case, rank, world)
    torch.save(results, folder / f"result_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
