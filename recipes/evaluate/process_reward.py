"""Step verdicts from a process reward model of the Qwen2.5-Math-PRM kind, without executing its repository's code.

Such a checkpoint is a Qwen2 body with a head of two linear layers (h -> h, ReLU, h -> 2) at ``score.0`` and
``score.2``, published with a modelling file of its own that only ``trust_remote_code`` would run.  The architecture is
small enough to stand here, on transformers' Qwen2.

A solution is shown as a chat whose assistant turn has ``<extra_0>`` after each step; softmax over the two logits at
these places gives the probability that the step is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from recipes.common.checks.errors import SettingsError
from recipes.common.teacher.prompts import BOXED_INSTRUCTION

SEPARATOR = "<extra_0>"
BATCH_TOKENS = 32_768  # of one forward pass


class Qwen2ProcessRewardModel(Qwen2PreTrainedModel):
    """A Qwen2 body and the two-layer head; (B, T) ids -> (B, T, 2) logits of wrong and right."""

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2)
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The two logits, wrong and right, at every token: (B, T, 2)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.score(hidden)


def check(path: str) -> tuple[Qwen2Config, Any]:
    """(configuration, tokenizer) of a folder or hub name, without loading its weights.

    Raises:
        SettingsError: if it is not there, its body is not a Qwen2, or its tokenizer has no separator or chat template.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the hub's client or a parser raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        what = "cannot be loaded" if Path(path).exists() else "is no folder here, and the hub does not give it"
        raise SettingsError([f"prm={path} {what}: {reason}"]) from error
    if config.model_type != "qwen2":
        raise SettingsError(
            [f"prm={path} has model_type {config.model_type!r}; only the Qwen2.5-Math-PRM kind (qwen2) can be read"]
        )
    if tokenizer.encode(SEPARATOR, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(SEPARATOR)]:
        raise SettingsError(
            [f"prm={path}: its tokenizer does not know {SEPARATOR} as one token, which marks the steps"]
        )
    if not tokenizer.chat_template:
        raise SettingsError([f"prm={path}: its tokenizer has no chat template"])
    return config, tokenizer


def load(path: str, dtype: str, device: str) -> tuple[Qwen2ProcessRewardModel, Any]:
    """(model, tokenizer) of a folder or hub name.

    Args:
        path: the folder or name.
        dtype: torch's name of the weights' type.
        device: torch's name of one, or "auto" to spread the layers over all that this process sees.

    Raises:
        SettingsError: if `check` refuses it, or the weights have no such head.
    """
    config, tokenizer = check(path)
    spread = {"device_map": "auto"} if device == "auto" else {}
    loaded: Any = Qwen2ProcessRewardModel.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **spread
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise SettingsError(
            [f"prm={path} lacks {missing[:4]} ({len(missing)} tensors in all): it is no process reward model"]
        )
    if device == "cpu":
        from workers.cpu.products import use_onednn

        use_onednn(model.config)
    return (model if spread else model.to(device)).eval(), tokenizer


def step_ids(tokenizer: Any, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """Write a solution as the model reads it, with one separator after each step.

    A separator written inside a step by the model under evaluation is taken out: it would shift every verdict.

    Args:
        tokenizer: the process reward model's.
        problem: text of the problem.
        steps: of the solution.

    Returns:
        Token ids, and the positions of the separators among them.

    Raises:
        ValueError: if the tokens hold another number of separators than there are steps.
    """
    steps = [step.replace(SEPARATOR, " ") for step in steps]
    messages = [
        {"role": "system", "content": BOXED_INSTRUCTION},
        {"role": "user", "content": problem.replace(SEPARATOR, " ")},
        {"role": "assistant", "content": SEPARATOR.join(steps) + SEPARATOR},
    ]
    ids = list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR)
    positions = [place for place, token in enumerate(ids) if token == separator]
    if len(positions) != len(steps):
        raise ValueError(f"{len(steps)} steps became {len(positions)} separators: does the chat template rewrite them?")
    return ids, positions


@torch.inference_mode()
def score_steps(
    model: Qwen2ProcessRewardModel, tokenizer: Any, solutions: Sequence[tuple[str, Sequence[str]]]
) -> list[list[float]]:
    """Probability in [0, 1] that each step is right, for each solution.

    Solutions of whatever problems share forward passes of at most `BATCH_TOKENS` tokens, similar lengths together.

    Args:
        model: the process reward model, in evaluation mode.
        tokenizer: its tokenizer.
        solutions: (problem, steps) each.

    Returns:
        A list for each solution.  Steps whose separator lies beyond the model's context (``max_position_embeddings``)
        get no score: the list of such a solution is shorter than its steps.
    """
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    rows = [
        (number, *step_ids(tokenizer, problem, steps)) for number, (problem, steps) in enumerate(solutions) if steps
    ]
    rows.sort(key=lambda row: len(row[1]))
    scores: list[list[float]] = [[] for _ in solutions]
    while rows:
        width = min(len(rows[-1][1]), limit)
        count = max(1, BATCH_TOKENS // width)
        batch, rows = rows[-count:], rows[:-count]
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (_, tokens, _) in enumerate(batch):
            kept = tokens[:width]
            ids[row, : len(kept)] = torch.as_tensor(kept)
            mask[row, : len(kept)] = 1
        right = model(ids.to(device), mask.to(device)).float().softmax(dim=-1)[..., 1].cpu()
        for row, (number, _, positions) in enumerate(batch):
            scores[number] = [float(right[row, place]) for place in positions if place < width]
    return scores


class ProcessRewardScorer:
    """A Ray actor around `score_steps`."""

    def __init__(self, path: str, dtype: str, gpus: int, threads: int):
        torch.set_num_threads(threads)
        self.model, self.tokenizer = load(path, dtype, "auto" if gpus > 1 else "cuda" if gpus else "cpu")

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def close(self) -> None:
        """Nothing outlives the actor."""

    def score(self, problem: str, responses: list[list[str]]) -> list[list[float]]:
        """Score the steps of all responses to one problem, as `score_steps` does.

        Args:
            problem: its text.
            responses: the steps of each response.
        """
        return score_steps(self.model, self.tokenizer, [(problem, steps) for steps in responses])
