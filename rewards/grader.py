"""Grades mathematical answers: text first, then the cache, then a grading child; shared by all threads of a process.

What the pool of children leaves open is settled here: identical questions asked at the same time are computed once
(eight rollouts of a prompt often end alike), verdicts are remembered by hash in bounded memory, timeouts are counted,
and a fork of the process starts without its parent's children.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from hashlib import blake2b
from typing import Any

from rewards.normalize import quick_verdict
from rewards.pool import MAX_TEXT_CHARS, GradingPool, Verdict

logger = logging.getLogger(__name__)

TIMEOUT_RATE_LIMIT = 0.01
_MIN_COUNT_TO_WARN = 100
# A timeout can be the machine's fault, so it is believed, and remembered, only the second time.
_STRIKES = 2


def gold_text(ground_truth: Any) -> str:
    """The gold answer as one text.

    Args:
        ground_truth: a string, which stays as it is; a number; or a list of these, all of which are required. A string
            that is a JSON list of strings (``'["$2$"]'``) counts as that list.

    Returns:
        The text, several answers joined with commas; "" for None, NaN or nothing.

    Raises:
        TypeError: it is of another type.
    """
    if isinstance(ground_truth, str):
        text = ground_truth.strip()
        if text.startswith('["') and text.endswith('"]'):
            try:
                return gold_text(json.loads(text))
            except json.JSONDecodeError:
                return text
        return text
    if ground_truth is None or (isinstance(ground_truth, float) and math.isnan(ground_truth)):
        return ""
    if hasattr(ground_truth, "tolist"):  # numpy scalars and arrays, as parquet columns are read
        return gold_text(ground_truth.tolist())
    if isinstance(ground_truth, bool):
        return str(ground_truth)
    if isinstance(ground_truth, int | float):
        return repr(int(ground_truth)) if float(ground_truth).is_integer() else repr(ground_truth)
    if isinstance(ground_truth, Sequence):
        return ", ".join(part for part in map(gold_text, ground_truth) if part)
    raise TypeError(
        f"ground_truth is a {type(ground_truth).__name__}, but a gold answer is a string, a number or a list of these"
    )


class Grader:
    """Grades from any thread.

    Args:
        deadline_s: wall time of one comparison in seconds, counted from when a child starts on it; only a starved
            machine reaches it.
        cpu_s: likewise CPU time; a tower of powers ends here.
        children: see ``GradingPool``.
        memory_mb: see ``GradingPool``.
        cache_size: verdicts remembered (about 200 bytes each).

    Attributes:
        counts: how often each status occurred, and "cached".

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        deadline_s: float = 10.0,
        cpu_s: float = 2.0,
        children: int = 2,
        memory_mb: int = 1024,
        cache_size: int = 65536,
    ):
        if not (deadline_s > 0 and cpu_s > 0):
            raise ValueError(
                f"deadline_s={deadline_s}, cpu_s={cpu_s}: a comparison needs some time; set both above 0 (10 and 2)"
            )
        self.deadline_s, self.cpu_s = deadline_s, cpu_s
        self.counts: Counter[str] = Counter()  # statuses, and "cached"
        self._cache_size = cache_size
        self._pool = GradingPool(children, memory_mb)
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._strikes: OrderedDict[bytes, int] = OrderedDict()
        self._running: dict[bytes, Future[Verdict]] = {}
        self._warn_at = _MIN_COUNT_TO_WARN

    def grade(self, gold: str, answer: str) -> Verdict:
        """Whether an answer equals the gold answer; blocks until the verdict.

        Args:
            gold: the gold answer, LaTeX with or without delimiters.
            answer: likewise, as a response has it.

        Raises:
            GradingSetupError: the grading children cannot start.
        """
        quick = quick_verdict(gold, answer)
        if quick is not None:
            return self._count(Verdict("correct" if quick else "wrong", "text"))
        if len(gold) > MAX_TEXT_CHARS or len(answer) > MAX_TEXT_CHARS:
            # Longer than any answer in the sets by far, and not the gold's own text: a rule, not a failure.
            return self._count(Verdict("wrong", "too long"))
        key = blake2b(f"{gold}\0{answer}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            verdict = self._cache.get(key)
            if verdict is not None:
                self._cache.move_to_end(key)
                self.counts["cached"] += 1
            else:
                future = self._running.get(key)
                mine = future is None
                if mine:
                    future = self._running[key] = Future()
        if verdict is None:
            verdict = self._compute(key, gold, answer, future) if mine else future.result()
        return self._count(verdict)

    def _compute(self, key: bytes, gold: str, answer: str, future: Future[Verdict]) -> Verdict:
        try:
            verdict = self._pool.compare(gold, answer, self.deadline_s, self.cpu_s)
        except BaseException as error:
            with self._lock:
                del self._running[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            if verdict.status in ("timeout", "error"):
                strikes = self._strikes.pop(key, 0) + 1
                self._remember(self._strikes, key, strikes)
                keep = strikes >= _STRIKES
            else:
                keep = True
            if keep:
                self._remember(self._cache, key, verdict)
        future.set_result(verdict)
        return verdict

    def _remember(self, store: OrderedDict, key: bytes, value: Any) -> None:
        store[key] = value
        if len(store) > self._cache_size:
            store.popitem(last=False)

    def _count(self, verdict: Verdict) -> Verdict:
        with self._lock:
            self.counts[verdict.status] += 1
            total = sum(self.counts[status] for status in ("correct", "wrong", "timeout", "error"))
            timeouts = self.counts["timeout"]
            warn = total >= self._warn_at and timeouts > TIMEOUT_RATE_LIMIT * total
            if warn:
                self._warn_at = 2 * total
        if warn:
            logger.warning(
                "%d of %d answers (%.1f %%, limit %.0f %%) were not graded within cpu_s=%g and deadline_s=%g; their "
                "`status` is neither correct nor wrong. If they are no towers of powers and the like, raise the two or "
                "free some CPU.",
                timeouts, total, 100 * timeouts / total, 100 * TIMEOUT_RATE_LIMIT, self.cpu_s, self.deadline_s,
            )  # fmt: skip
        return verdict

    @property
    def timeout_rate(self) -> float:
        """Share of answers graded so far, cached ones included, that missed the deadline, 0 to 1."""
        with self._lock:
            total = sum(self.counts[status] for status in ("correct", "wrong", "timeout", "error"))
            return self.counts["timeout"] / total if total else 0.0

    def close(self) -> None:
        """Kill the children; the grader stays usable."""
        self._pool.close()


_graders: dict[tuple, Grader] = {}
_graders_lock = threading.Lock()


def shared_grader(
    deadline_s: float = 10.0, cpu_s: float = 2.0, children: int = 2, memory_mb: int = 1024, cache_size: int = 65536
) -> Grader:
    """This process's grader with these settings, made when first asked for.

    Args:
        deadline_s: as in `Grader`.
        cpu_s: as in `Grader`.
        children: as in `Grader`.
        memory_mb: as in `Grader`.
        cache_size: as in `Grader`.
    """
    key = (deadline_s, cpu_s, children, memory_mb, cache_size)
    grader = _graders.get(key)
    if grader is None:
        with _graders_lock:
            grader = _graders.get(key)
            if grader is None:
                grader = _graders[key] = Grader(*key)
    return grader


def _close_all() -> None:
    for grader in list(_graders.values()):
        grader.close()


def _forget_after_fork() -> None:
    # The children talk to the parent; this process starts its own.  Locks may have been held at the fork.
    global _graders_lock
    _graders_lock = threading.Lock()
    for grader in _graders.values():
        grader._pool.abandon()
    _graders.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_after_fork)
