"""Reasoning health: does a model still doubt, revise and vary (exploration), and are its steps right (execution)?

DASD, App. F names the measures; what it leaves open is settled here and marked "ours".

exploration   E(y) marker density, RevRate, Dist-3, response length
execution     StepAcc, FES, CSR, from a verdict on every step (`recipes.evaluate.process_reward`, or arithmetic)

Pure text and numbers.  Everything is a pair (sum, weight) for each problem, so that `metrics.ratio` can average it over
problems with an interval.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# The paper names "wait", "hmm" and "alternatively"; the rest of the list is ours.
MARKERS = (
    "wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check",
)  # fmt: skip
WINDOW_WORDS = 64  # ours: the words compared on each side of a marker
MAX_OVERLAP = 0.3  # App. F

_MARKER = re.compile(r"\b(?:" + "|".join(MARKERS) + r")\b", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n\s*\n")

Sums = dict[str, tuple[float, float]]


def count_markers(text: str) -> int:
    """Number of epistemic markers in a response: whole words, whatever their case."""
    return sum(1 for _ in _MARKER.finditer(text))


def trigrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Consecutive triples, in order, repeated ones included."""
    return list(zip(words, words[1:], words[2:], strict=False))


def _words(text: str) -> list[str]:
    return text.casefold().split()


def revises(text: str) -> bool:
    """Whether some marker is followed by a substantively different continuation (RevRate, App. F).

    Compared are the 64 words before a marker with the 64 after it: different means that at most 0.3 of the
    continuation's distinct trigrams occur before (ours; the paper says "trigram overlap").  A marker with fewer than
    three words on either side turns nowhere or from nothing, and does not count.
    """
    for match in _MARKER.finditer(text):
        # A word takes at most a few dozen characters: looking at the windows' surroundings alone keeps this linear.
        before = set(trigrams(_words(text[max(0, match.start() - 64 * WINDOW_WORDS) : match.start()])[-WINDOW_WORDS:]))
        after = set(trigrams(_words(text[match.end() : match.end() + 64 * WINDOW_WORDS])[:WINDOW_WORDS]))
        if before and after and len(before & after) <= MAX_OVERLAP * len(after):
            return True
    return False


def distinct_3(texts: Sequence[str]) -> float | None:
    """Dist-3: unique over total word trigrams of a prompt's responses; None where there is no trigram.

    It falls with the number and the length of the responses: compare at equal samples only.
    """
    found = [trigram for text in texts for trigram in trigrams(_words(text))]
    return len(set(found)) / len(found) if found else None


def exploration(texts: Sequence[str], tokens: Sequence[int], truncated: Sequence[bool]) -> Sums:
    """Sums and weights of a problem's n responses; all but Dist-3 are means over responses.

    Args:
        texts: the responses.
        tokens: number of tokens of each.
        truncated: whether each reached the length limit.

    Returns:
        ``e_per_1k`` (markers per 1000 tokens of a response), ``e_per_response``, ``rev_rate``, ``dist_3``, ``length``
        (tokens), ``truncated`` (share that reached the length limit).
    """
    n = len(texts)
    markers = [count_markers(text) for text in texts]
    density = sum(1000 * m / t for m, t in zip(markers, tokens, strict=True) if t)
    dist_3 = distinct_3(texts)
    return {
        "e_per_1k": (density, n),
        "e_per_response": (sum(markers), n),
        "rev_rate": (sum(map(revises, texts)), n),
        "dist_3": (0.0, 0.0) if dist_3 is None else (dist_3, 1.0),
        "length": (sum(tokens), n),
        "truncated": (sum(map(bool, truncated)), n),
    }


def split_steps(text: str) -> list[str]:
    """The steps of a response: its parts between blank lines."""
    return [part.strip() for part in _BLANK_LINE.split(text) if part.strip()]


def execution(verdicts: Sequence[Sequence[bool]]) -> Sums:
    """Sums and weights of the step measures over a problem's responses.

    Args:
        verdicts: for each response, whether each of its steps is right, in order; a response without steps is left
            out of every mean.

    Returns:
        ``step_acc``: mean over responses of the share of right steps (StepAcc).  ``csr``: share of right ones among
        all steps of all responses, long responses weighing more (CSR).  ``fes``: mean position, from 1, of the first
        wrong step, over responses that have one (FES).  ``error_free``: share of responses without a wrong step, which
        FES does not see.  That StepAcc averages responses and CSR pools steps is ours: App. F words them alike.
    """
    checked = [list(steps) for steps in verdicts if steps]
    first_errors = [steps.index(False) + 1 for steps in checked if not all(steps)]
    return {
        "step_acc": (sum(sum(steps) / len(steps) for steps in checked), len(checked)),
        "csr": (sum(map(sum, checked)), sum(map(len, checked))),
        "fes": (sum(first_errors), len(first_errors)),
        "error_free": (len(checked) - len(first_errors), len(checked)),
    }


def arithmetic_verdicts(problem: str, response: str) -> list[bool]:
    """Exact verdicts on the starter's steps: those that stand, in order; a withdrawn slip is no error.

    Args:
        problem: text of a problem of the embedded world.
        response: a response to it.

    Raises:
        ValueError: if the problem is none of the starter's.
    """
    from recipes.starter.task import check_steps

    return [step.right for step in check_steps(problem, response) if not step.withdrawn]
