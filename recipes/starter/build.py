"""Rebuild the starter from nothing: tokenizer, data, weights; then state what the model can do.

    python -m recipes.starter.build [--out DIR]

Writes ``model/`` and ``data/`` under DIR (by default in place) and ends with the accuracies that the README quotes.
The seed fixes every draw; the weights are the same on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig
from transformers.utils import logging as hub_logging

from recipes.command_line import Command, help_asked
from recipes.starter import corpus, measure
from recipes.starter.pretrain import POSITIONS, STEPS, pretrain
from recipes.starter.tokenizer import build_tokenizer, save_tokenizer

HOME = Path(__file__).resolve().parent
SEED = 20


def write_data(folder: Path, seed: int = SEED) -> dict[str, list[dict]]:
    """Write train, val and probe as parquet and return their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, chains in corpus.draw_splits(seed).items():
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


def report(model, tokenizer, rows: list[dict]) -> None:
    """Print the accuracies, as the tables of the README."""
    student = measure.measure(model, tokenizer, rows, None, samples=8)
    print(f"\nstudent prompt, {len(rows)} validation problems x 8 samples at temperature 1:")
    print(f"  accuracy {student.accuracy:.3f}, steps right {student.step_accuracy:.3f}, ", end="")
    print(f"mean length {student.tokens:.1f} tokens, finished {student.finished:.4f}, ", end="")
    print(f"markers per response {student.markers:.2f}")
    print("  habits: " + ", ".join(f"{name} {share:.3f}" for name, share in student.habits.items()))
    print("  accuracy by number of steps: " + ", ".join(f"{n}: {acc:.2f}" for n, acc in student.by_steps.items()))
    print("\nteacher prompt by exposure (share of the reference's reasoning that is shown; the answer always is):\n")
    print("| exposure | accuracy | steps right | answer follows from steps | careful | markers | log p(reference) |")
    print("|---|---|---|---|---|---|---|")
    for exposure in (None, *measure.EXPOSURES):
        s = student if exposure is None else measure.measure(model, tokenizer, rows, exposure)
        name = "no reference (student)" if exposure is None else f"{exposure:.2f}"
        closeness = measure.reference_log_prob(model, tokenizer, rows, exposure)
        print(
            f"| {name} | {s.accuracy:.3f} | {s.step_accuracy:.3f} | {s.follows:.3f} | {s.habits.get('careful', 0):.2f} "
            f"| {s.markers:.2f} | {closeness:.3f} |",
            flush=True,
        )


COMMAND = Command(
    module="recipes.starter.build",
    what=(
        "Rebuild the embedded model and its data from nothing: tokenizer, problems, weights; then measure what the "
        "model can do. The seed fixes every draw; the weights are the same on the same machine with as many threads."
    ),
    examples=(
        ("--out /tmp/starter", "model/ and data/ in a folder of their own"),
        ("", "in place, over the ones in the package"),
        ("--out /tmp/starter --steps 50", "a short try"),
        ("--out /tmp/starter --seed 21", "another draw of problems and weights"),
        ("--out /tmp/starter --threads 8", "faster, with slightly other weights"),
    ),
    keys=(
        ("--out <folder>", f"where model/ and data/ are written; {HOME.name}, in place"),
        ("--seed <number>", f"of every draw; {SEED}"),
        ("--steps <number>", f"of the pre-training; {STEPS}"),
        ("--threads <number>", "CPU threads, part of what fixes the weights; 2"),
    ),
    more="What the starter is: recipes/starter/README.md.",
)


def main() -> None:
    """Command line entry."""
    help_asked(COMMAND)
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND.module}", add_help=False)
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begun = time.perf_counter()
    tokenizer = build_tokenizer(POSITIONS)
    splits = write_data(args.out / "data", args.seed)
    forbidden = {corpus.task.parse_problem(row["problem"]) for rows in splits.values() for row in rows}
    model = pretrain(
        tokenizer, forbidden, seed=args.seed, steps=args.steps, report=lambda line: print(line, flush=True)
    )
    save_model(model, tokenizer, args.out / "model")
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {size:,} parameters in {args.out / 'model'}", flush=True)
    report(model, tokenizer, splits["val"])
    print(f"\nbuilt in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
