"""The fields that self-distillation adds to verl's batches, and where response tokens lie in its packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor

# Fields of the batch that hold the teacher's sequences, jagged (B, privileged prompt_i + response_i).
TEACHER_IDS, TEACHER_POSITIONS = "teacher_input_ids", "teacher_position_ids"
# Factors of the tokens' divergences, jagged (B, response_i); absent means one everywhere.
WEIGHTS = "distill_weights"


def scored_rows(sequence_offsets: Tensor, response_mask: Tensor) -> Tensor:
    """Packed rows whose logits predict the valid response tokens, (N,) int64, in row order.

    sequence_offsets: (B + 1,) offsets of the packed (prompt + response) sequences, whatever their prompts: the rows
        come from each sequence's end, so student and teacher share this function and, token by token, its order.
    response_mask: jagged (B, response_i), 0/1.
    """
    offsets = response_mask.offsets()
    lengths = offsets.diff()
    first = sequence_offsets[1:] - lengths - 1  # the token before the response predicts its first token
    rows = torch.repeat_interleave(first - offsets[:-1], lengths)
    rows = rows + torch.arange(rows.shape[0], device=rows.device)
    return rows[response_mask.values().bool()]


def relative_positions(response_mask: Tensor) -> Tensor:
    """u = (t − 0.5) / L of each valid token, (N,) fp32, in row order; t counts from 1 among the row's own valid tokens.

    response_mask: jagged (B, response_i), 0/1.
    """
    mask = response_mask.to_padded_tensor(0).bool()
    count = mask.cumsum(-1).float()
    return ((count - 0.5) / mask.sum(-1, keepdim=True).clamp(min=1))[mask]
