"""How much of the reference the teacher sees: ATESD's truncation (arXiv 2605.11458, eq. 2).

A reference is (reason, answer).  At exposure α the teacher reads the first ⌊α · |reason|⌋ tokens of the reasoning and
then the answer, always.  α = 1 gives the reference back byte for byte (so ATESD at α = 1 is OPSD), α = 0 only the
answer.

What the paper leaves open, and our reading of it:
* The answer is the last box of the solution (`rewards.boxes`), the outermost of nested ones; without one, the data
  set's answer column in a box; with neither there is nothing to preserve, so the whole reference is shown and `info`
  says so.
* What follows the box (a closing "$.", a remark) is neither reasoning nor answer: shown at α = 1 only.
* Prefix and answer are joined by `separator`, empty by default, as in eq. 2.
* The prefix is a substring of the solution wherever the tokenizer can tell offsets; a character that is split over
  several tokens is shown only once all of its tokens are.
* `difficulty_exposures` is the per-sample control that the paper names as future work (its §6), in a form of our own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rewards.boxes import last_box

_REPLACEMENT = "\ufffd"


def split_reference(solution: str, answer: Any) -> tuple[str, str | None, str | None]:
    """(reason, boxed answer, "boxed" or "column") of a reference solution (ATESD §3.2).

    The boxed answer is the solution's last box that is not empty, as written there; the reason is what precedes it.
    Without one, the answer column is boxed and the whole solution is the reason; with neither the boxed answer and
    where it came from are None.

    Args:
        solution: the data set's column.
        answer: likewise, anything with a str(); None where there is none.
    """
    box = last_box(solution)
    if box is not None:
        return solution[: box.start], solution[box.start : box.end], "boxed"
    column = "" if answer is None else str(answer).strip()
    if not column:
        return solution, None, None
    inner = last_box(column)
    return solution, column[inner.start : inner.end] if inner else f"\\boxed{{{column}}}", "column"


def _token_prefix(tokenizer: Any, text: str, exposure: float) -> tuple[str, int, int]:
    """(text of the first ⌊α · n⌋ tokens, that number, n)."""
    offsets = None
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        ids = offsets
    else:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if hasattr(ids, "offsets"):  # a tokenizers.Tokenizer
            offsets = ids = ids.offsets
    total = len(ids)
    shown = math.floor(exposure * total)
    if shown == 0:
        return "", 0, total
    if shown == total:
        return text, total, total
    if offsets is not None:
        # The next token starts before this one ends where they share a character: leave that character out.
        return text[: min(offsets[shown - 1][1], offsets[shown][0])], shown, total
    # No offsets: decode, and drop the bytes of a character that was cut in the middle.
    prefix = _decode(tokenizer, ids[:shown])
    kept = shown
    while kept and prefix.endswith(_REPLACEMENT) and not text.startswith(prefix):
        kept -= 1
        prefix = _decode(tokenizer, ids[:kept])
    return prefix, shown, total


def _decode(tokenizer: Any, ids: list[int]) -> str:
    try:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    except TypeError:  # a decoder without transformers' options
        return tokenizer.decode(ids)


def check_exposure(exposure: float) -> float:
    """The exposure as a float.

    Raises:
        ValueError: if it lies outside of [0, 1].
    """
    value = float(exposure)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"exposure={exposure} must lie in [0, 1]: it is the share of the reasoning that is shown")
    return value


def truncate_reference(
    tokenizer: Any, solution: str, exposure: float, answer: Any = None, *, separator: str = ""
) -> tuple[str, dict[str, Any]]:
    """The reference as the teacher sees it at exposure α (ATESD eq. 2), and what was done.

    Args:
        tokenizer: a transformers tokenizer (fast ones give exact substrings), a tokenizers.Tokenizer, or anything with
            encode(text, add_special_tokens=False) -> ids and decode(ids); without offsets the prefix is decoded, so a
            tokenizer that normalises text shows the normalised form.
        solution, answer: the data set's columns.
        exposure: α in [0, 1].
        separator: between a non-empty prefix and the answer, for α < 1 only; a line break keeps the answer off a cut
            formula.

    Returns:
        (text, info): info has exposure (as asked), effective_exposure, reason_tokens, shown_tokens, answer_source
        ("boxed", "column" or None) and forced_full: True where no answer was found, so that α was taken as 1 (to be
        counted by the caller).  reason_tokens and shown_tokens are None where nothing had to be tokenised.

    Raises:
        ValueError: if α lies outside of [0, 1].
    """
    exposure = check_exposure(exposure)
    reason, boxed, source = split_reference(solution, answer)
    forced = boxed is None and exposure < 1.0
    info: dict[str, Any] = {
        "exposure": exposure,
        "effective_exposure": 1.0 if boxed is None else exposure,
        "reason_tokens": None,
        "shown_tokens": None,
        "answer_source": source,
        "forced_full": forced,
    }
    if boxed is None or exposure == 1.0:
        return solution, info
    prefix, info["shown_tokens"], info["reason_tokens"] = _token_prefix(tokenizer, reason, exposure)
    return (prefix + separator if prefix else "") + boxed, info


def difficulty_exposures(
    exposure: float,
    difficulty: Tensor,
    *,
    strength: float,
    exposure_min: float = 0.0,
    exposure_max: float = 1.0,
) -> Tensor:
    """Exposure of each sample from the global one and the sample's difficulty, (B,), fp32.  Ours, not the paper's.

    α_i = σ(logit(α) − strength · (d_i − mean d)), clipped to [exposure_min, exposure_max]: the controller's α is kept
    as the centre, problems harder than the batch's average show less, easier ones more (ATESD fig. 2C: easy problems
    prefer full exposure, hard ones the lowest tested).  strength 0, or equal difficulties, is the paper's single α;
    α = 0 and α = 1 stay themselves.

    Args:
        exposure: α in [0, 1], of the whole batch.
        difficulty: (B,), any scale; 1 − the prompt's mean reward is the natural one.
        strength: how far the exposures spread with difficulty.
        exposure_min, exposure_max: the clip, in [0, 1].

    Raises:
        ValueError: if the exposure, the strength or the clip is out of its range.
    """
    exposure = check_exposure(exposure)
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength} must be finite; 0 switches the conditioning off")
    if not 0.0 <= exposure_min <= exposure_max <= 1.0:
        raise ValueError(
            f"exposure_min={exposure_min}, exposure_max={exposure_max}: need 0 <= exposure_min <= exposure_max <= 1"
        )
    shift = strength * (difficulty.double() - difficulty.double().mean())
    centre = torch.logit(torch.full_like(shift, exposure))
    return torch.sigmoid(centre - shift).clamp(exposure_min, exposure_max).float()
