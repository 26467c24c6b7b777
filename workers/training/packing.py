"""Fields that self-distillation adds to verl's batches, and where response tokens lie in verl's packed sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NonTensorStack, TensorDict
from torch import Tensor

# Fields of the batch that hold the teacher's sequences, jagged (B, privileged prompt_i + response_i).
TEACHER_IDS, TEACHER_POSITIONS = "teacher_input_ids", "teacher_position_ids"
# Factors of the tokens' divergences, jagged (B, response_i); absent means one everywhere.
WEIGHTS = "distill_weights"
# Shares of the forward KL where the two KLs are mixed, jagged (B, response_i); absent means `loss.forward_share`.
FORWARD_SHARES = "distill_forward_shares"

# What a pass that scores tokens measures beside log-probs and entropies where its batch says so: the fields, jagged
# (B, prompt_i + response_i) fp32, and the options that ask for them: true, and one of `ATTENTION_LAYERS`.
GRADIENT_NORM, ATTENTION_ENTROPY = "gradient_norm", "attention_entropy"
CALCULATE_GRADIENT_NORM, CALCULATE_ATTENTION_ENTROPY = "calculate_gradient_norm", "calculate_attention_entropy"
ATTENTION_LAYERS = ("last", "all")


def without_row_objects(data: TensorDict) -> TensorDict:
    """A batch's tensors and what holds for all of its rows, without the rows' Python objects (questions, names).

    No pass of a model reads those, and each micro-batch would copy them, at the price of the pass itself where the
    model is small.  Inputs of other modalities stay where a row has any.

    Args:
        data: verl's batch, (B, ...); it is left as it is.
    """

    def needed(name: str) -> bool:
        value = data.get(name)
        return not isinstance(value, NonTensorStack) or (name == "multi_modal_inputs" and any(value.tolist()))

    return data.select(*filter(needed, list(data.keys())))


def response_rows(sequence_offsets: Tensor, response_offsets: Tensor) -> Tensor:
    """Packed rows whose logits predict the response tokens, (Σ response_i,) int64, in row order.

    Args:
        sequence_offsets: (B + 1,) offsets of the packed (prompt + response) sequences, whatever their prompts: the rows
            come from each sequence's end, so student and teacher share this function and, token by token, its order.
        response_offsets: (B + 1,) offsets of the responses.
    """
    lengths = response_offsets.diff()
    first = sequence_offsets[1:] - lengths - 1  # the token before the response predicts its first token
    rows = torch.repeat_interleave(first - response_offsets[:-1], lengths)
    return rows + torch.arange(rows.shape[0], device=rows.device)


def scored_rows(sequence_offsets: Tensor, response_mask: Tensor) -> Tensor:
    """The `response_rows` of valid tokens, (N,) int64.

    Args:
        sequence_offsets: (B + 1,) offsets of the packed (prompt + response) sequences.
        response_mask: jagged (B, response_i), 0/1.
    """
    return response_rows(sequence_offsets, response_mask.offsets())[response_mask.values().bool()]


def passes_within(lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Cut rows, in order, into runs that fit one pass; a row that is too long is a run of its own.

    Args:
        lengths: tokens of each row.
        budget: tokens of a run at most; None cuts nothing.

    Returns:
        The row numbers of each run.
    """
    runs: list[list[int]] = []
    tokens = 0
    for row, length in enumerate(lengths):
        if not runs or (budget is not None and tokens + length > budget):
            runs.append([])
            tokens = 0
        runs[-1].append(row)
        tokens += length
    return runs


def relative_positions(response_mask: Tensor) -> Tensor:
    """u = (t − 0.5) / L of each valid token, (N,) fp32, in row order; t counts from 1 among the row's own valid tokens.

    Args:
        response_mask: jagged (B, response_i), 0/1.
    """
    mask = response_mask.to_padded_tensor(0).bool()
    count = mask.cumsum(-1).float()
    return ((count - 0.5) / mask.sum(-1, keepdim=True).clamp(min=1))[mask]
