"""Rebuild an embedded world from nothing: tokenizer, data, weights; then state what the model can do.

    python -m recipes.starter.build [--world shortcut] [--out DIR]
    python -m recipes.starter.build [--world shortcut] --measure     # what the weights that are there can do

Writes ``model/`` and ``data/`` under DIR (by default in place) and ends with the tables that the README quotes.
The seed fixes every draw; the weights are the same on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as hub_logging

from recipes.command_line import Command, help_asked
from recipes.evaluate.metrics import Estimate
from recipes.starter import corpus, measure
from recipes.starter.pretrain import POSITIONS, pretrain
from recipes.starter.tokenizer import build_tokenizer, save_tokenizer
from recipes.starter.worlds import HOME, WORLDS, World

SAMPLES = 16  # of each validation problem, where what a model can do is stated
MEASURED = ("val", "train")


def write_data(folder: Path, world: World, seed: int) -> dict[str, list[dict]]:
    """Write train, val and probe as parquet and return their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, chains in corpus.draw_splits(world, seed).items():
        splits[name] = [corpus.row(chain, name, index) for index, chain in enumerate(chains)]
        pq.write_table(pa.Table.from_pylist(splits[name]), folder / f"{name}.parquet", compression="zstd")
        print(f"data: {len(splits[name]):4d} problems in {name}.parquet", flush=True)
    return splits


def save_model(model, tokenizer, folder: Path) -> None:
    """Write weights (fp32 safetensors), configs and tokenizer as transformers expects them."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    hub_logging.disable_progress_bar()  # one shard of two megabytes
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def _shown(estimate: Estimate | None, digits: int = 3) -> str:
    return "–" if estimate is None else f"{estimate.value:.{digits}f} ± {estimate.half_width:.{digits}f}"


def report(model, tokenizer, rows: list[dict], training: list[dict]) -> None:
    """Print what the model answers with and without a reference, as the tables of the README.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: validation problems, for all of the tables.
        training: training problems, for the student alone: many, so that its accuracy is not the luck of a few.
    """
    scores = {None: measure.measure(model, tokenizer, rows, None, samples=SAMPLES)}
    student = scores[None]
    print(f"\n{len(rows)} problems x {SAMPLES} samples at temperature 1; ± is the 95 % interval, clustered by problem")
    by_steps = ", ".join(f"{number}: {estimate.value:.2f}" for number, estimate in student.by_steps.items())
    print(f"student: mean length {student.tokens:.1f} tokens, finished {student.finished:.4f}")
    print(f"accuracy by number of steps: {by_steps}")
    print("by habit: " + ", ".join(f"{habit} {_shown(estimate)}" for habit, estimate in student.by_habit.items()))
    many = measure.measure(model, tokenizer, training, None, samples=2)
    print(
        f"student on {len(training)} training problems x 2: {_shown(many.accuracy)}; "
        + ", ".join(f"{habit} {_shown(estimate)}" for habit, estimate in many.by_habit.items())
        + f"; worked out {_shown(many.worked_out)}"
    )
    print("exposure: share of the reference's reasoning that is shown; the answer always is\n")
    names = list(student.habits)
    columns = [
        "exposure",
        "accuracy",
        *names,
        "worked out: right",
        "steps right",
        "follows",
        "markers",
        "log p(ref.)",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for exposure in (None, *measure.EXPOSURES):
        if exposure is not None:
            scores[exposure] = measure.measure(model, tokenizer, rows, exposure, samples=SAMPLES)
        score, name = scores[exposure], "no reference (student)" if exposure is None else f"{exposure:.2f}"
        shares = " | ".join(_shown(score.habits.get(habit), 2) for habit in names)
        closeness = measure.reference_log_prob(model, tokenizer, rows, exposure)
        cells = [name, _shown(score.accuracy), shares, _shown(score.worked_out), _shown(score.step_accuracy)]
        cells += [f"{score.follows:.3f}", _shown(score.markers, 2), f"{closeness:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


COMMAND = Command(
    module="recipes.starter.build",
    what=(
        "Rebuild an embedded world from nothing: tokenizer, problems, weights; then measure what the model can do. "
        "The seed fixes every draw; the weights are the same on the same machine with as many threads."
    ),
    examples=(
        ("--out /tmp/starter", "model/ and data/ in a folder of their own"),
        ("--world shortcut --out /tmp/shortcut", "the second world, where the teacher takes a short cut"),
        ("--world shortcut --measure", "what the weights that are there can do"),
        ("", "in place, over the ones in the package"),
        ("--out /tmp/starter --steps 50", "a short try"),
        ("--out /tmp/starter --seed 21", "another draw of problems and weights"),
        ("--out /tmp/starter --threads 8", "faster, with slightly other weights"),
    ),
    keys=(
        ("--world <name>", f"one of {', '.join(WORLDS)}; starter"),
        ("--out <folder>", "where model/ and data/ are written; in place, in the package"),
        ("--seed <number>", "of every draw; the world's"),
        ("--steps <number>", "of the pre-training; the world's"),
        ("--threads <number>", "CPU threads, part of what fixes the weights; 2"),
        ("--measure", "build nothing, measure the weights that are there"),
    ),
    more="What the worlds are: recipes/starter/README.md.",
)


def main() -> None:
    """Command line entry."""
    help_asked(COMMAND)
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND.module}", add_help=False)
    parser.add_argument("--world", choices=WORLDS, default="starter")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begun, world = time.perf_counter(), WORLDS[args.world]
    out, seed = args.out or HOME / world.folder, world.seed if args.seed is None else args.seed
    if args.measure:
        tokenizer = AutoTokenizer.from_pretrained(out / "model")
        model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
        report(model, tokenizer, *(pq.read_table(out / "data" / f"{name}.parquet").to_pylist() for name in MEASURED))
        return
    tokenizer = build_tokenizer(POSITIONS)
    splits = write_data(out / "data", world, seed)
    forbidden = {corpus.task.parse_problem(row["problem"]) for rows in splits.values() for row in rows}
    model = pretrain(
        tokenizer,
        forbidden | corpus.reserved(world),
        world,
        seed=seed,
        steps=args.steps or world.steps,
        report=lambda line: print(line, flush=True),
    )
    save_model(model, tokenizer, out / "model")
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {size:,} parameters in {out / 'model'}", flush=True)
    report(model, tokenizer, *(splits[name] for name in MEASURED))
    print(f"\nbuilt in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
