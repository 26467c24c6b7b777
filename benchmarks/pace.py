"""Seconds of a training step, stage by stage, beside TRL's trainer and a plain loop: `python -m benchmarks.pace`.

The starter's model, batch and rewards in each: this package's commands (Ray, FSDP2, TransferQueue and all), TRL's
`GRPOTrainer`, and the same step in plain torch in one process, which is what none of the others can be faster than by
much.  One after the other in one run, so that ratios mean something; wall seconds want an idle machine, and seconds of
CPU (user and system, of all processes) are steadier on a busy one.  Medians over the steps after the first.

`--methods all --no-trl --no-validation --json recipes/step_cost.json` is what each method costs a step beside GRPO,
which the README's table shows.
TRL is taken from the environment, else installed without its dependencies into build/; where that fails it is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.divergence import TRL_FOLDER, find_trl
from recipes.common.method import shipped
from recipes.common.record import run_dir as files

PROMPTS, ROLLOUTS, LIMIT, RATE = 16, 8, 96, 5e-5  # experiment=starter's
STARTER = Path(__file__).resolve().parents[1] / "recipes" / "starter"
STAGES = {"gen": "rollout", "old_log_prob": "log-probs", "teacher": "teacher", "update_actor": "update"}
TRL = "TRL GRPOTrainer"
MODEL_PROCESSES = ("WorkerDict", "TransformersServer")  # the others move, grade and store what these two compute


def training_command(method: str, steps: int, directory: Path, *, validate: bool) -> list[str]:
    command = [sys.executable, "-m", "recipes.entry", "experiment=starter", f"method={method}"]
    command += [f"hydra.run.dir={directory}", f"trainer.total_training_steps={steps}", "trainer.save_freq=-1"]
    return [*command, f"trainer.test_freq={steps if validate else -1}", "trainer.val_before_train=false"]


def cpu_seconds(root: psutil.Process, seen: dict[int, tuple[str, float]]) -> dict[str, float]:
    """Seconds of CPU by kind of process, of a process and all below it; those that have ended keep what they had.

    Args:
        seen: by process id, its kind and seconds; brought up to date.
    """
    for process in [root, *root.children(recursive=True)]:
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        kind = title.removeprefix("ray::").split(".")[0].split()[0] if title.startswith("ray::") else "others"
        seen[process.pid] = kind, times.user + times.system
    total: dict[str, float] = defaultdict(float)
    for kind, value in seen.values():
        total[kind] += value
    return total


def ours(method: str, steps: int, folder: Path, *, validate: bool) -> dict[str, float]:
    """Medians of a training command: wall seconds by stage, CPU seconds, and the validation after the last step."""
    directory = folder / method
    with (folder / f"{method}.txt").open("w") as output:
        process = subprocess.Popen(
            training_command(method, steps, directory, validate=validate), stdout=output, stderr=output
        )
    root, seen, started = psutil.Process(process.pid), {}, time.monotonic()
    cpu: dict[int, dict[str, float]] = {}  # at the moment that a step's record is there
    first_step: float | None = None
    while process.poll() is None:
        time.sleep(0.1)
        done = len(steps_of(directory))
        if done and done not in cpu:
            cpu[done] = cpu_seconds(root, seen)
            first_step = first_step or time.monotonic() - started
        elif not done:
            cpu_seconds(root, seen)
    if process.returncode:
        raise SystemExit(
            f"{method} ended with {process.returncode}:\n" + (folder / f"{method}.txt").read_text()[-2000:]
        )
    records = steps_of(directory)
    measured = records[1:]
    result = {
        name: statistics.median(record.get(f"timing_s/{stage}", 0.0) for record in measured)
        for stage, name in STAGES.items()
    }
    result["step"] = statistics.median(record["timing_s/step"] for record in measured)
    if validate:
        result["validation"] = records[-1]["timing_s/testing"]
    result["start and first step"] = first_step or 0.0
    before, after = cpu[min(cpu)], cpu[max(step for step in cpu if step < steps)]
    spent = {
        kind: (after[kind] - before.get(kind, 0.0)) / (max(s for s in cpu if s < steps) - min(cpu)) for kind in after
    }
    result["cpu"] = sum(spent.values())
    outside = sum(value for kind, value in spent.items() if kind not in MODEL_PROCESSES)
    result["cpu ms a rollout outside the model"] = 1000 * outside / (PROMPTS * ROLLOUTS)
    return result


def steps_of(directory: Path) -> list[dict[str, Any]]:
    return [record for record in files.read_metrics(directory) if "training/global_step" in record]


def apart(part: str, steps: int) -> dict[str, float]:
    """A part of this module in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{TRL_FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "benchmarks.pace", "--part", part, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


# ------------------------------------------------------------------------------------------------ in another process


def problems() -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(STARTER / "data" / "train.parquet").to_pylist()


def score(text: str, row: dict[str, Any]) -> float:
    from rewards.math import compute_score

    return compute_score("chains", text, row["reward_model"]["ground_truth"])["score"]


def plain(steps: int) -> dict[str, float]:
    """GRPO's step by hand: sample, grade, one padded pass and one update."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workers.rollout.generation import SamplingParams, generate_batch, stop_token_ids

    model = AutoModelForCausalLM.from_pretrained(STARTER / "model")
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    stops, pad, rows, times = stop_token_ids(tokenizer, model.generation_config), tokenizer.pad_token_id, problems(), []
    for step in range(steps):
        batch = [row for row in rows[step * PROMPTS : (step + 1) * PROMPTS] for _ in range(ROLLOUTS)]
        start, cpu = time.perf_counter(), time.process_time()
        prompts = [
            tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, enable_thinking=False, return_dict=False
            )
            for row in batch
        ]
        seeds = [step * len(batch) + i for i in range(len(batch))]
        params = SamplingParams(max_tokens=LIMIT, logprobs=False)
        answers = generate_batch(model, prompts, params, seeds, stop_token_ids=stops, pad_token_id=pad)
        sampled = time.perf_counter()
        texts = [tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers]
        scores = torch.tensor([score(text, row) for text, row in zip(texts, batch, strict=True)])
        graded = time.perf_counter()
        groups = scores.view(PROMPTS, ROLLOUTS)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(-1, 1)
        sequences = [torch.tensor([*p, *a.token_ids]) for p, a in zip(prompts, answers, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
        column = torch.arange(ids.shape[1] - 1)
        first = torch.tensor([len(p) - 1 for p in prompts])[:, None]
        last = torch.tensor([len(s) - 1 for s in sequences])[:, None]
        mask = ((column >= first) & (column < last)).float()
        log_probs = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        ratio = (log_probs - log_probs.detach()).exp()
        loss = -((ratio * advantages * mask).sum(1) / mask.sum(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        end = time.perf_counter()
        times.append({"step": end - start, "rollout": graded - start, "update": end - graded})
        times[-1] |= {"cpu": time.process_time() - cpu, "grading": graded - sampled}
    return medians(times)


def trl(steps: int) -> dict[str, float]:
    """TRL's GRPOTrainer, from one step's end to the next."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": row["prompt"], "reward_model": row["reward_model"]} for row in problems()]

    def reward(completions: list[Any], reward_model: list[dict], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [score(text, {"reward_model": gold}) for text, gold in zip(texts, reward_model, strict=True)]

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PROMPTS * ROLLOUTS,
            num_generations=ROLLOUTS,
            max_completion_length=LIMIT,
            chat_template_kwargs={"enable_thinking": False},
            learning_rate=RATE,
            beta=0.0,
            loss_type="grpo",
            max_steps=steps,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            str(STARTER / "model"), reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()]
        )
        trainer.train()
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]
    return {"step": statistics.median(s for s, _ in spans), "cpu": statistics.median(c for _, c in spans)}


# ------------------------------------------------------------------------------------------------ the table


def show(results: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"seconds a step: {PROMPTS} prompts × {ROLLOUTS} rollouts of the starter")
    columns = ["step", *STAGES.values(), "cpu"]
    table.add_column("")
    first = next(iter(results))
    reference, of = (results[TRL], "TRL") if TRL in results else (results[first], first)
    for name in [*columns, f"step × {of}", f"cpu × {of}"]:
        table.add_column(name, justify="right")
    for name, result in results.items():
        cells = [f"{result[column]:.2f}" if column in result else "" for column in columns]
        table.add_row(name, *cells, *(f"{result[c] / reference[c]:.2f}" for c in ("step", "cpu")))
    console = Console(width=140)
    console.print(table)
    for name, result in results.items():
        if "start and first step" in result:
            console.print(
                f"{name}: {result['cpu ms a rollout outside the model']:.1f} ms of CPU a rollout outside the model; "
                f"start and first step {result['start and first step']:.0f} s"
                + (f"; validation (128 problems × 16) {result['validation']:.1f} s" if "validation" in result else "")
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of each trainer, the first of which does not count")
    parser.add_argument("--methods", nargs="+", default=["grpo", "dasd"], help="of this package; all: all of them")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--no-validation", action="store_true", help="leave the validation out")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--part", choices=["plain", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 4:
        parser.error(f"--steps {options.steps}: must be at least 4, for a median without the first and the last")
    if options.part:
        print(json.dumps({"plain": plain, "trl": trl}[options.part](options.steps)))
        return
    why = "--no-trl" if options.no_trl else find_trl(install=True)
    if options.methods == ["all"]:
        options.methods = ["grpo", *(method.name for method in shipped() if method.name != "grpo")]
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods:
            print(f"{method} …", flush=True)
            results[method] = ours(method, options.steps, Path(folder), validate=not options.no_validation)
            if method == options.methods[0]:
                if why is None:
                    results[TRL] = apart("trl", options.steps)
                results["plain torch, grpo"] = apart("plain", options.steps)
    if why is not None:
        print(f"TRL is not compared: {why}")
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
