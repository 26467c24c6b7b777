"""Word problems from a seed: one to three operations in a story, with a worked solution of each.

A story opens with a quantity ("Ada has 12 marbles." or a product, "Ada buys 4 bags with 6 marbles in each bag."), goes
on with gifts, and ends with the quantity itself or with one more operation on it: sold, shared, or compared with
somebody else's. All quantities are whole numbers from 2 to `LARGEST`. Two problems of a set never have the same
operations with the same numbers, whatever the names and things in them, so that files held out of a set share no
calculation with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.data.readers import DataError
from recipes.data.sets.knights import NAMES

MIN_STEPS, MAX_STEPS = 1, 3
LARGEST = 999
PER_STEPS = 2000  # problems of each number of steps: the fewest different ones there are, with room for the draw
THINGS = (
    "apples", "balloons", "beads", "buttons", "cards", "coins", "cookies", "eggs", "marbles", "pears", "pencils",
    "ribbons", "shells", "stamps", "stickers", "stones", "tickets", "toys",
)  # fmt: skip
CONTAINERS = (("bag", "bags"), ("basket", "baskets"), ("box", "boxes"), ("jar", "jars"))
MIDDLES = ("gain", "lose")
ENDINGS = ("sell", "share", "more", "fewer", "times")
SIGNS = {"pack": "*", "gain": "+", "lose": "-", "sell": "*", "share": "/", "more": "+", "fewer": "-", "times": "*"}
_RANGES = {"gain": (2, 40), "lose": (2, 40), "sell": (2, 9), "share": (2, 9), "more": (2, 30), "fewer": (2, 30),
           "times": (2, 5)}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One step of a problem.

    Attributes:
        kind: a key of `SIGNS`.
        left, right: the operands.
        value: the result.
    """

    kind: str
    left: int
    right: int
    value: int

    @property
    def equation(self) -> str:
        """Such as ``24 + 5 = 29``."""
        return f"{self.left} {SIGNS[self.kind]} {self.right} = {self.value}"


def apply(kind: str, left: int, right: int) -> int | None:
    """The result of an operation; None where it is no whole number from 2 to `LARGEST`.

    Args:
        kind: a key of `SIGNS`.
        left, right: the operands, positive.
    """
    sign = SIGNS[kind]
    if sign == "/" and left % right:
        return None
    value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
    return value if 2 <= value <= LARGEST else None


def draw_operations(rng: random.Random, steps: int) -> tuple[Operation, ...] | None:
    """Operations that follow from one another; None where the draw came to no whole number.

    Args:
        rng: the source of chance, which moves on.
        steps: how many, `MIN_STEPS` to `MAX_STEPS`.
    """
    packed = rng.random() < 0.5
    ending = rng.choice(ENDINGS) if rng.random() < 0.6 else None
    between = steps - packed - (ending is not None)
    if between < 0:
        return None
    made: list[Operation] = []
    if packed:
        count, each = rng.randint(2, 9), rng.randint(3, 12)
        made.append(Operation("pack", count, each, count * each))
    held = made[0].value if packed else rng.randint(5, 60)
    for kind in [*(rng.choice(MIDDLES) for _ in range(between)), *([ending] if ending else [])]:
        number = rng.randint(*_RANGES[kind])
        value = apply(kind, held, number)
        if value is None:
            return None
        made.append(Operation(kind, held, number, value))
        held = value
    return tuple(made)


def problem_and_solution(rng: random.Random, operations: Sequence[Operation]) -> tuple[str, str]:
    """The story and its worked solution, which ends in the boxed answer.

    Args:
        rng: chooses names and things; it moves on.
        operations: the steps, in order; only the first may be a "pack", and only the last one of `ENDINGS`.
    """
    (who, giver, other), things = rng.sample(NAMES, 3), rng.choice(THINGS)
    one, several = rng.choice(CONTAINERS)
    first = operations[0]
    story, worked = [], []
    if first.kind != "pack":
        story.append(f"{who} has {first.left} {things}.")
    asked = f"How many {things} does {who} have now?"
    for step in operations:
        n, equation = step.right, step.equation
        if step.kind == "pack":
            story.append(f"{who} buys {step.left} {several} with {n} {things} in each {one}.")
            worked.append(f"{who} buys {equation} {things}.")
        elif step.kind == "gain":
            story.append(f"{giver} gives {who} {n} more {things}.")
            worked.append(f"With those of {giver}, {who} has {equation} {things}.")
        elif step.kind == "lose":
            story.append(f"{who} gives {n} {things} to {giver}.")
            worked.append(f"After the gift to {giver}, {who} has {equation} {things}.")
        elif step.kind == "sell":
            story.append(f"{who} sells all of the {things} for {n} dollars each.")
            worked.append(f"{who} gets {equation} dollars.")
            asked = f"How many dollars does {who} get?"
        elif step.kind == "share":
            story.append(f"{who} shares all of the {things} equally among {n} friends.")
            worked.append(f"Each friend gets {equation} {things}.")
            asked = f"How many {things} does each friend get?"
        else:
            compared = {"more": f"{n} more", "fewer": f"{n} fewer", "times": f"{n} times as many"}[step.kind]
            than = "as" if step.kind == "times" else "than"
            story.append(f"{other} has {compared} {things} {than} {who} now has.")
            worked.append(f"{other} has {equation} {things}.")
            asked = f"How many {things} does {other} have?"
    worked.append(f"The answer is \\boxed{{{operations[-1].value}}}")
    return " ".join([*story, asked]), "\n\n".join(worked)


def generate(size: int, steps: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a set: every number of steps equally often, all calculations different.

    Args:
        size: number of problems, at most `PER_STEPS` for each number of steps.
        steps: least and greatest number of steps, 1 to 3.
        seed: the same seed gives the same problems.

    Yields:
        Rows with ``problem``, ``answer``, ``solution``, ``steps``.

    Raises:
        DataError: if an argument is of a wrong type or out of its range.
    """
    pair = isinstance(steps, Sequence) and len(steps) == 2 and all(type(count) is int for count in steps)
    if not pair or not MIN_STEPS <= steps[0] <= steps[1] <= MAX_STEPS:
        raise DataError(f"dataset.generate.steps={steps}: must be [least, greatest] from {MIN_STEPS} to {MAX_STEPS}")
    counts = range(steps[0], steps[1] + 1)
    if type(size) is not int or not 1 <= size <= PER_STEPS * len(counts):
        raise DataError(
            f"dataset.generate.size={size}: must be a whole number from 1 to {PER_STEPS * len(counts)}, "
            f"{PER_STEPS} for each number of steps"
        )
    if type(seed) is not int:
        raise DataError(f"dataset.generate.seed={seed}: must be a whole number")
    rng, seen, made = random.Random(seed), set(), 0
    while made < size:
        operations = draw_operations(rng, counts[made % len(counts)])
        if operations is None or operations in seen:
            continue
        seen.add(operations)
        made += 1
        problem, solution = problem_and_solution(rng, operations)
        yield {
            "problem": problem,
            "answer": str(operations[-1].value),
            "solution": solution,
            "steps": len(operations),
        }
