"""Programming problems with tests: HumanEval+ and MBPP+, read from the columns that they have on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recipes.data.cells import cell, cells
from recipes.data.sets.fields import Fields
from recipes.data.spec import DatasetSpec
from rewards.code import Task, ground_truth_of

NO_ENTRY = "without an entry point"
NO_TESTS = "without tests"


def entry_point_of(solution: str, examples: list[str]) -> str | None:
    """The function that the examples call, which MBPP+ does not name; the last one of several, None for none.

    Args:
        solution: the reference program, which defines the function.
        examples: assertions that call it.
    """
    names = re.findall(r"^(?:async +)?def +(\w+)", solution, re.MULTILINE)
    called = [name for name in names if any(re.search(rf"\b{name}\s*\(", example) for example in examples)]
    return called[-1] if called else None


def read(row: Mapping[str, Any], spec: DatasetSpec, seed: int) -> Fields:
    """A programming problem.

    HumanEval+ states the head of the function; what stands before it (imports, helpers) is executed before any program.
    MBPP+ states a task in words, to which the first of its examples is added, because only that names the function.

    Args:
        row: column to value.
        spec: which columns hold the problem, tests, solution, and entry point or examples.
        seed: not used; `read_fields` calls every reader alike.
    """
    problem = cell(row, spec.problem).strip("\n")
    tests, solution = cell(row, spec.tests), cell(row, spec.solution)
    setup = ""
    if spec.entry_point:
        entry = cell(row, spec.entry_point).strip()
        head = re.search(rf"^(?:async +)?def +{re.escape(entry)}\b", problem, re.MULTILINE) if entry else None
        if head is not None:
            setup = problem[: head.start()].strip("\n")
            # The reference solution is the function's body.
            whole = re.match(r"\s*?^(?:def|from|import|class|@)", solution, re.MULTILINE)
            solution = f"{problem}\n{solution}" if solution.strip() and not whole else solution
    else:
        examples = cells(row, spec.examples)
        entry = entry_point_of(solution, examples) or ""
        problem = f'"""\n{problem.strip()}\n{examples[0].strip()}\n"""' if examples else problem
    if not problem.strip():
        return Fields("")
    if not tests.strip():
        return Fields(problem, dropped=NO_TESTS)
    if not entry:
        return Fields(problem, dropped=NO_ENTRY)
    return Fields(
        problem=problem,
        answer=ground_truth_of(Task(tests, entry, setup)),
        shown=None,
        solution=f"```python\n{solution.strip()}\n```" if solution.strip() else "",
    )
