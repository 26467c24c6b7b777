"""Which training problems are copies of evaluation problems: overlap of word n-grams."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"[a-z]+|\d+")
_MARKUP = re.compile(r"\\(?:text|mathrm|left|right|displaystyle|frac|dfrac|tfrac|cdot|times|begin|end)(?![a-zA-Z])")
MIN_WORDS = 4  # of an evaluation problem, to be looked for at all


def words(problem: str) -> list[str]:
    """Words and numbers of a problem in lower case; LaTeX markup, punctuation and spacing do not count."""
    return _WORD.findall(_MARKUP.sub(" ", problem).lower())


def ngrams(tokens: list[str], size: int) -> set[int]:
    """Hashes of all runs of ``size`` tokens; a shorter text is one run."""
    if len(tokens) <= size:
        return {hash(tuple(tokens))}
    return {hash(tuple(tokens[start : start + size])) for start in range(len(tokens) - size + 1)}


@dataclass(frozen=True)
class Match:
    """A training problem that contains ``share`` of an evaluation problem's n-grams."""

    train: int
    evaluation: int
    share: float


class Index:
    """n-grams of evaluation problems.  A problem shorter than ``size`` words is looked for as a whole."""

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
        """Share of each evaluation problem's n-grams that ``problem`` contains, for those with any."""
        tokens = words(problem)
        found: set[int] = set()
        for length in self._lengths:
            if len(tokens) >= length:
                found |= ngrams(tokens, length) if len(tokens) > length else {hash(tuple(tokens))}
        hits = Counter(number for gram in found for number in self._holders.get(gram, ()))
        return {number: count / self._counts[number] for number, count in hits.items()}


def find(problems: list[str], index: Index, min_share: float) -> tuple[list[Match], int]:
    """Copies (the best match of each training problem, at ``min_share`` or above), and how many share any n-gram."""
    matches, touched = [], 0
    for number, problem in enumerate(problems):
        shares = index.shares(problem)
        touched += bool(shares)
        if shares:
            evaluation = max(shares, key=shares.__getitem__)
            if shares[evaluation] >= min_share:
                matches.append(Match(number, evaluation, shares[evaluation]))
    return matches, touched
