"""The starter's task: chains of operations modulo 10, the habits of solving them, and an exact checker of steps.

A problem is a chain such as ``7+5*3-4``, evaluated strictly from left to right, every result reduced modulo 10.  The
habits in which a solution can be written:

careful   ``7+5=2`` / blank line / ``2*3=6`` / ... / ``\\boxed{2}``; slips are rare;
revising  the same notation, slips are frequent and most are noticed: ``7+5=9 wait 7+5=2``;
hasty     a notation of its own, all on one line, ``+5>2 *3>6 -4>2 \\boxed{2}``; slips are frequent and stay;
direct    the answer at once, ``\\boxed{2}``.

Since every step is a statement about single digits, a response can be checked step by step without a model.  This
module needs nothing beyond the standard library.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from rewards.boxes import last_box

PROBLEM_PREFIX = "Evaluate strictly from left to right, reducing modulo 10 after each operation: "
MARKERS = ("wait", "hmm", "alternatively")
HABITS = ("careful", "revising", "hasty", "direct")
MIN_STEPS, MAX_STEPS = 3, 7

STEP_SEPARATOR = "\n\n"  # a blank line, as in the step-level metrics of large models
_OPERATIONS = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}
# Operands that would make a step trivial (+0, *0, *1) never occur.
_OPERANDS = {"+": range(1, 10), "-": range(1, 10), "*": range(2, 10)}

_CHAIN = re.compile(r"(\d)((?:[+\-*]\d)+)\s*$")
_TOKEN = re.compile(
    r"(?P<careful>(?P<left>\d)(?P<op>[+\-*])(?P<right>\d)=(?P<value>\d))"
    r"|(?P<hasty>(?<![\d=])(?P<hop>[+\-*])(?P<hright>\d)>(?P<hvalue>\d))"
    r"|(?P<marker>\b(?:" + "|".join(MARKERS) + r")\b)"
)


@dataclass(frozen=True)
class Chain:
    """A problem: a first digit and the operations that follow, each an (operator, operand) pair."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def steps(self) -> int:
        """Number of operations, the problem's difficulty (3 to 7)."""
        return len(self.operations)

    @property
    def expression(self) -> str:
        """The chain alone, such as ``7+5*3``."""
        return str(self.start) + "".join(f"{op}{right}" for op, right in self.operations)

    @property
    def problem(self) -> str:
        """The problem's full text."""
        return PROBLEM_PREFIX + self.expression

    def values(self) -> list[int]:
        """The right result of every operation, in order; the last one is the answer."""
        value, results = self.start, []
        for op, right in self.operations:
            value = _OPERATIONS[op](value, right)
            results.append(value)
        return results


@dataclass(frozen=True)
class Step:
    """One written step and its verdict.

    ``right`` judges the step on its own: the operation and operand are those of the problem at ``index``, the left
    operand is the value the response stood at, and the result is right for it.  An earlier slip is therefore counted
    once and not inherited by the steps that build on it.  ``withdrawn`` says that a marker followed and the step was
    written again, ``revises`` that this step is such a second version.
    """

    index: int
    text: str
    value: int
    right: bool
    withdrawn: bool = False
    revises: bool = False


def random_chain(rng: random.Random, steps: int | None = None) -> Chain:
    """Draw a problem with the given number of steps, or with 3 to 7 at random."""
    steps = rng.randint(MIN_STEPS, MAX_STEPS) if steps is None else steps
    operations = []
    for _ in range(steps):
        op = rng.choice("+-*")
        operations.append((op, rng.choice(_OPERANDS[op])))
    return Chain(rng.randrange(10), tuple(operations))


def parse_problem(problem: str) -> Chain:
    """Read the chain back from a problem's text; raises ValueError for any other text."""
    match = _CHAIN.search(problem)
    if match is None:
        raise ValueError(f"no chain of one-digit operations at the end of the problem: {problem!r}")
    return Chain(int(match[1]), tuple((part[0], int(part[1])) for part in re.findall(r"[+\-*]\d", match[2])))


def boxed(value: int | str) -> str:
    """The final answer as every solution states it."""
    return f"\\boxed{{{value}}}"


def boxed_answer(response: str) -> str | None:
    """The content of the last box of a response (`rewards.boxes`), or None."""
    box = last_box(response)
    return box.content if box else None


def reference_solution(chain: Chain) -> str:
    """The reference: careful, without slips, a blank line between steps, the boxed answer last."""
    return write_solution(chain, "careful", random.Random(0), slip=0.0)


def write_solution(
    chain: Chain,
    habit: str,
    rng: random.Random,
    *,
    slip: float,
    notice: float = 0.0,
    doubt: float = 0.0,
    covered: int = 0,
    answer: int | None = None,
) -> str:
    """Write a solution in one habit.

    Args:
        slip: probability that a step's result comes out wrong.
        notice: probability that a slip is noticed and the step written again (``revising`` only).
        doubt: probability that a right step is written again all the same (``revising`` only).
        covered: the first steps that slip never (a reference shows them).
        answer: the value to box; by default the one that the steps arrive at, or, where none is written (``direct``),
            the right one.
    """
    if habit not in HABITS:
        raise ValueError(f"unknown habit {habit!r}; one of {', '.join(HABITS)}")
    if habit == "direct":
        return boxed(chain.values()[-1] if answer is None else answer)
    value, parts = chain.start, []
    for index, (op, right) in enumerate(chain.operations):
        true = _OPERATIONS[op](value, right)
        slipped = index >= covered and rng.random() < slip
        # A slip is a near miss: the digit next to the right one.
        written = (true + rng.choice((-1, 1))) % 10 if slipped else true
        if habit == "hasty":
            parts.append(f"{op}{right}>{written}")
        else:
            text = f"{value}{op}{right}={written}"
            if habit == "revising" and rng.random() < (notice if slipped else doubt):
                text += f" {rng.choice(MARKERS)} {value}{op}{right}={true}"
                written = true
            parts.append(text)
        value = written
    parts.append(boxed(value if answer is None else answer))
    return (" " if habit == "hasty" else STEP_SEPARATOR).join(parts)


def check_steps(problem: str, response: str) -> list[Step]:
    """Verdict on every step written in a response, in order, whatever the habit (see `Step`)."""
    chain = parse_problem(problem)
    steps: list[Step] = []
    before, value, index, revising = chain.start, chain.start, 0, False
    for match in _TOKEN.finditer(response):
        if match["marker"]:
            revising = bool(steps)
            continue
        if revising:
            steps[-1] = replace(steps[-1], withdrawn=True)
            value, index = before, index - 1
        before = value
        if match["careful"]:
            left, op, right, written = int(match["left"]), match["op"], int(match["right"]), int(match["value"])
        else:
            left, op, right, written = value, match["hop"], int(match["hright"]), int(match["hvalue"])
        expected = chain.operations[index] if index < chain.steps else None
        verdict = (op, right) == expected and left == value and written == _OPERATIONS[op](left, right)
        steps.append(Step(index, match[0], written, verdict, revises=revising))
        value, index, revising = written, index + 1, False
    return steps


def step_accuracy(problem: str, response: str) -> float | None:
    """Share of the standing (not withdrawn) steps that are right; None when the response has no step."""
    standing = [step.right for step in check_steps(problem, response) if not step.withdrawn]
    return sum(standing) / len(standing) if standing else None


def answer_follows(problem: str, response: str) -> bool:
    """Whether the boxed answer is the value at which the response's own steps arrive."""
    steps = check_steps(problem, response)
    return bool(steps) and boxed_answer(response) == str(steps[-1].value)


def count_markers(response: str) -> dict[str, int]:
    """How often each of the starter's epistemic markers occurs."""
    words = re.findall(r"[a-z]+", response.lower())
    return {marker: words.count(marker) for marker in MARKERS}


def habit(response: str) -> str:
    """The habit of a response: one of `HABITS`, ``mixed`` (both notations) or ``other``."""
    kinds = {kind for match in _TOKEN.finditer(response) for kind in ("careful", "hasty", "marker") if match[kind]}
    if "careful" in kinds and "hasty" in kinds:
        return "mixed"
    if "marker" in kinds and "careful" in kinds:
        return "revising"
    if not kinds:
        return "other" if boxed_answer(response) is None else "direct"
    return "careful" if "careful" in kinds else "hasty" if "hasty" in kinds else "other"
