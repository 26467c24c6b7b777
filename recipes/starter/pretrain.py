"""Pre-training of the starter's model, on a CPU, from random weights, seeded."""

from __future__ import annotations

import math
import random
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from recipes.starter import corpus
from recipes.starter.worlds import World

POSITIONS = 1024
BATCH = 32
BUCKET = 8  # batches drawn together and sorted by length, which saves a third of the padding
LEARNING_RATE = 2e-3
WARMUP = 50


def new_model(tokenizer, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of about half a million parameters with random weights in fp32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def _batches(tokenizer, seed: int, forbidden: set, drills: int, world: World):
    """Endless batches: input ids, labels and the labels' weights in the loss, each (B, T), right-padded.

    Labels are -100 and weights 0 outside of the responses.  The weights of a batch sum to 1; in a balanced world
    they do on average over batches.

    The first `drills` batches (up to a bucket) are drills.
    """
    rng, made = random.Random(seed), 0
    while True:
        drill = made < drills
        made += BUCKET
        examples = [corpus.example(tokenizer, rng, forbidden, world, drill=drill) for _ in range(BUCKET * BATCH)]
        examples.sort(key=lambda item: len(item.prompt) + len(item.response))
        chunks = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
        rng.shuffle(chunks)
        bucket = sum(len(item.response) for item in examples)
        for chunk in chunks:
            length = max(len(item.prompt) + len(item.response) for item in chunk)
            ids = torch.full((len(chunk), length), tokenizer.pad_token_id)
            labels = torch.full((len(chunk), length), -100)
            weights = torch.zeros(len(chunk), length)
            tokens = bucket / BUCKET if world.balanced else sum(len(item.response) for item in chunk)
            for line, item in enumerate(chunk):
                end = len(item.prompt) + len(item.response)
                ids[line, :end] = torch.tensor(item.prompt + item.response)
                labels[line, len(item.prompt) : end] = torch.tensor(item.response)
                weights[line, len(item.prompt) : end] = 1 / tokens
                weights[line, len(item.prompt)] *= item.weight
            yield ids, labels, weights


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to a twentieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.05 + 0.475 * (1 + math.cos(math.pi * progress))


def pretrain(tokenizer, forbidden: set, world: World, *, seed: int, steps: int, report=print) -> Qwen3ForCausalLM:
    """Train from random weights on examples over problems outside of `forbidden`; returns the model in eval mode."""
    model = new_model(tokenizer, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    batches = _batches(tokenizer, seed, forbidden, int(world.drill_share * steps), world)
    begun, total = time.perf_counter(), 0.0
    for step in range(steps):
        ids, labels, weights = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, steps)
        # Padding stands on the right, so causal attention needs no mask; the loss reads the response rows only.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        target, weights = labels[:, 1:], weights[:, 1:]
        read = target != -100
        losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[read]), target[read], reduction="none")
        loss = (weights[read] * losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - begun
            count = (step % 50) + 1
            left = seconds / (step + 1) * (steps - step - 1)
            report(
                f"pre-training {step + 1:4d}/{steps}  loss {total / count:.4f}  {seconds:4.0f} s, {left:4.0f} s left"
            )
            total = 0.0
    return model.eval()
