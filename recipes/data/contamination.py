"""Finds training problems that are copies of evaluation problems, by the word n-grams that they share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"[a-z]+|\d+")
_MARKUP = re.compile(r"\\(?:text|mathrm|left|right|displaystyle|frac|dfrac|tfrac|cdot|times|begin|end)(?![a-zA-Z])")
MIN_WORDS = 4  # of an evaluation problem, to be looked for at all


def words(problem: str) -> list[str]:
    """Words and numbers of a problem in lower case, without LaTeX markup, punctuation and spacing."""
    return _WORD.findall(_MARKUP.sub(" ", problem).lower())


def ngrams(tokens: list[str], size: int) -> set[int]:
    """Hashes of all n-grams of a text; a shorter text is hashed as a whole.

    Args:
        tokens: the text's words in order, as `words` gives them.
        size: n, in words.
    """
    if len(tokens) <= size:
        return {hash(tuple(tokens))}
    return {hash(tuple(tokens[start : start + size])) for start in range(len(tokens) - size + 1)}


@dataclass(frozen=True)
class Match:
    """A training problem that is a copy of an evaluation problem.

    Attributes:
        train: number of the training problem, from 0.
        evaluation: number of the evaluation problem, from 0.
        share: share of the evaluation problem's n-grams that the training problem contains, above 0 and at most 1.
    """

    train: int
    evaluation: int
    share: float


class Index:
    """The n-grams of a set of evaluation problems.

    Args:
        problems: the evaluation problems, whose places count from 0.
        size: n, in words. A problem shorter than that is looked for as a whole, one of fewer than `MIN_WORDS` words
            not at all.
    """

    def __init__(self, problems: Iterable[str], size: int):
        self._size = size
        self._counts: list[int] = []
        self._lengths: set[int] = {size}
        self._holders: dict[int, list[int]] = defaultdict(list)
        for number, problem in enumerate(problems):
            tokens = words(problem)
            grams = ngrams(tokens, size) if len(tokens) >= MIN_WORDS else set()
            self._counts.append(len(grams))
            self._lengths.add(min(len(tokens), size))
            for gram in grams:
                self._holders[gram].append(number)
        self._lengths = {length for length in self._lengths if length >= MIN_WORDS}

    def shares(self, problem: str) -> dict[int, float]:
        """What share of each evaluation problem's n-grams a text contains.

        Returns:
            Number of the evaluation problem -> share, above 0 and at most 1; only problems with a common n-gram.
        """
        tokens = words(problem)
        found: set[int] = set()
        for length in self._lengths:
            if len(tokens) >= length:
                found |= ngrams(tokens, length) if len(tokens) > length else {hash(tuple(tokens))}
        hits = Counter(number for gram in found for number in self._holders.get(gram, ()))
        return {number: count / self._counts[number] for number, count in hits.items()}


def find(problems: list[str], index: Index, min_share: float) -> tuple[list[Match], int]:
    """Find the training problems that are copies of evaluation problems.

    Args:
        problems: the training problems.
        index: of the evaluation problems.
        min_share: share of an evaluation problem's n-grams from which on a training problem is its copy, above 0 and at
            most 1.

    Returns:
        For each copy the evaluation problem that it is closest to; and how many training problems share any n-gram.
    """
    matches, touched = [], 0
    for number, problem in enumerate(problems):
        shares = index.shares(problem)
        touched += bool(shares)
        if shares:
            evaluation = max(shares, key=shares.__getitem__)
            if shares[evaluation] >= min_share:
                matches.append(Match(number, evaluation, shares[evaluation]))
    return matches, touched
