"""Accuracy of any Hugging Face model on problems with answers: Avg@n, Pass@k and their intervals, in one process.

    python examples/evaluate_model.py                                         # the embedded model, 16 problems × 4
    python examples/evaluate_model.py --model Qwen/Qwen3-1.7B --data data/math_500/test.parquet --device cuda

The parts of `self-distill evaluate`, which adds vLLM, workers, resuming, seeds, differences of models and the report.
"""

from __future__ import annotations

import argparse

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import STARTER
from recipes.common.teacher.prompts import render, student_messages
from recipes.evaluate.metrics import pass_at_k, ratio
from rewards.by_grader import compute_score
from workers.rollout.generation import SamplingParams, generate_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(STARTER / "model"), help="a folder, or a name on the hub")
    parser.add_argument("--data", default=str(STARTER / "data" / "val.parquet"), help="prepared problems")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model).to(options.device).eval()
    sampling = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=options.max_tokens, logprobs=False)
    right: list[int] = []  # of the samples of each problem
    for number, row in enumerate(pd.read_parquet(options.data).head(options.problems).to_dict("records")):
        prompt = render(tokenizer, student_messages(row["problem"]), {"enable_thinking": False})
        responses = generate_batch(
            model,
            [prompt] * options.samples,  # read once
            sampling,
            seeds=[number * options.samples + sample for sample in range(options.samples)],
            stop_token_ids=[tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = [tokenizer.decode(response.token_ids, skip_special_tokens=True) for response in responses]
        graded = [compute_score(row["data_source"], text, row["answer"], row.get("extra_info")) for text in texts]
        right.append(sum(round(verdict["acc"]) for verdict in graded))
    n = options.samples
    for name, estimate in (
        (f"avg@{n}", ratio([c / n for c in right])),
        (f"pass@{n}", ratio([pass_at_k(n, c, n) for c in right])),
    ):
        print(f"{name:<8} {100 * estimate.value:5.1f} ± {100 * estimate.half_width:.1f}  over {len(right)} problems")


if __name__ == "__main__":
    main()
