"""Shapes of the models that presets train, and what follows from a shape: parameters, adapter, cache, activations.

Counts are exact, in elements or bytes: tests/recipes/common/plan/test_memory.py builds each model on the meta device
and compares.  The shapes of the presets' models stand here as numbers, so that a run can be planned where there is no
network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bytes that autograd keeps inside one decoder layer for each token, in 16-bit training with an attention that keeps no
# scores: factors of (hidden, intermediate, heads · head_dim, kv_heads · head_dim).  Fitted to the tensors that autograd
# saves in transformers 5.10, where norms in fp32 are most of it; the test measures them again.
SAVED_BYTES = {
    "qwen3": (16, 8, 10, 10),
    "llama": (16, 8, 4, 4),
    "olmo3": (18, 8, 12, 12),
}


@dataclass(frozen=True)
class Architecture:
    """Shape of a dense decoder of the Llama kind, as its config.json has it.

    Attributes:
        family: transformers' `model_type`.
        hidden: width of the hidden states, h.
        layers: number of decoder layers, L.
        heads: query heads, H.
        kv_heads: key and value heads, K.
        head_dim: width of a head, d.
        intermediate: width inside the feed-forward block, i.
        vocab: rows of the embedding, V.
        tied: whether the output head is the embedding.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        h, i, q, k = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h)

    @property
    def layer_parameters(self) -> int:
        """Elements of one layer, norms included."""
        query_key_norms = {
            "qwen3": 2 * self.head_dim,
            "olmo3": (self.heads + self.kv_heads) * self.head_dim,
        }
        maps = sum(a * b for a, b in self.linear_shapes)
        return maps + 2 * self.hidden + query_key_norms.get(self.family, 0)

    @property
    def root_parameters(self) -> int:
        """Elements outside the layers: embedding, output head, last norm."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """Elements of the whole model; a tied head counts once."""
        return self.layers * self.layer_parameters + self.root_parameters

    @property
    def product_parameters(self) -> int:
        """Elements that every token is multiplied with: the linear maps and the output head."""
        return self.layers * sum(a * b for a, b in self.linear_shapes) + self.vocab * self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Elements of a LoRA adapter of that rank on all linear maps but the output head."""
        return self.layers * sum(rank * (a + b) for a, b in self.linear_shapes)

    def cache_bytes(self, element: int = 2) -> int:
        """Bytes of keys and values for one token in all layers.

        Layers with a sliding window count as full ones: vLLM reserves what a long response needs.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * element

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps inside one layer for one token, 16-bit; the largest family's for an unknown one."""
        a, b, c, d = SAVED_BYTES.get(self.family, SAVED_BYTES["olmo3"])
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return a * self.hidden + b * self.intermediate + c * q + d * k

    def attention_flops(self, tokens: int) -> int:
        """Operations of attention in a causal forward pass over one sequence of `tokens`.

        Scores and values take 2 operations a product, over half of a square.
        """
        return 2 * self.layers * self.heads * self.head_dim * tokens * tokens


# From each model's config.json on the hub.
KNOWN = {
    "Qwen/Qwen3-1.7B": Architecture("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen3-4B": Architecture("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B": Architecture("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, False),
    "allenai/Olmo-3-7B-Think": Architecture("olmo3", 4096, 32, 32, 32, 128, 11008, 100278, False),
    "allenai/Olmo-3-7B-Instruct": Architecture("olmo3", 4096, 32, 32, 32, 128, 11008, 100278, False),
    "meta-llama/Llama-3.1-8B-Instruct": Architecture("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": Architecture("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),
}


def from_config(config: Mapping[str, Any]) -> Architecture | None:
    """The shape in a config.json; None for what is no dense decoder of this kind (no `intermediate_size`, experts)."""
    needed = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    )
    if any(config.get(name) is None for name in needed) or any("expert" in name for name in config):
        return None
    heads = config["num_attention_heads"]
    return Architecture(
        family=config.get("model_type", ""),
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def of_model(path: str) -> Architecture | None:
    """The shape of a model folder or hub name: its config.json here or in the hub's cache, else `KNOWN`, else None."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        return from_config(json.loads(file.read_text())) if file.exists() else None
    if path in KNOWN:
        return KNOWN[path]
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json") if path.count("/") == 1 else None
    return from_config(json.loads(Path(cached).read_text())) if isinstance(cached, str) else None
