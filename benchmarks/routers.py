"""What DASD's measured routers cost: the pass that scores the student's tokens, with and without them, in one process.

    python -m benchmarks.routers --tokens 512 2048

A random Qwen3 of --layers layers scores packed sequences of which seven eighths are response: log-probs and entropies,
as every run has them; the same with the norm of the log-prob's gradient; and with the attention's entropy of the last
layer, and of all.  The first is the best of --repeats in seconds, the others are ratios to it.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from workers.divergence import hidden_statistics
from workers.training.attention_entropy import AttentionEntropy, attention_watched
from workers.training.head import head_computes
from workers.training.packing import response_rows

PASSES: dict[str, tuple[bool, str | None]] = {
    "log-probs and entropies, s": (False, None),
    "+ gradient_norm": (True, None),
    "+ attention_entropy, last layer": (False, "last"),
    "+ attention_entropy, all layers": (False, "all"),
}


@torch.no_grad()
def seconds(model: torch.nn.Module, sequences: int, tokens: int, norms: bool, layers: str | None) -> float:
    """Of one pass over `sequences` packed sequences of `tokens` each."""
    device = next(model.parameters()).device
    number = torch.arange(sequences + 1, device=device)
    offsets, responses = number * tokens, number * (tokens - tokens // 8)
    rows = response_rows(offsets, responses)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (sequences * tokens,), generator=generator).to(device)
    positions = torch.arange(tokens, device=device).repeat(sequences)[None]

    def statistics(hidden: Tensor, head: Tensor) -> Tensor:
        return torch.stack(hidden_statistics(hidden[0], head, ids[rows + 1], gradient_norm=norms), -1)[None]

    seen = AttentionEntropy(model, layers, offsets, responses) if layers else None
    began = time.perf_counter()
    with head_computes(model, statistics), attention_watched(model, seen) if seen else nullcontext():
        model(input_ids=ids[None], position_ids=positions, use_cache=False, logits_to_keep=rows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048], help="of each sequence")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    heads = options.hidden // 64
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=64,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="packed").eval().to(options.device)
    print("| tokens a sequence | " + " | ".join(PASSES) + " |\n|---|" + "---|" * len(PASSES))
    for tokens in options.tokens:
        best = dict.fromkeys(PASSES, float("inf"))
        for _ in range(options.repeats):
            for name, what in PASSES.items():
                best[name] = min(best[name], seconds(model, options.sequences, tokens, *what))
        first, *others = best.values()
        print(
            f"| {tokens} | {first:.2f} | " + " | ".join(f"{other / first:.2f}" for other in others) + " |", flush=True
        )


if __name__ == "__main__":
    main()
