"""The reward for programs: ``reward.custom_reward_function.path=pkg://rewards.code name=compute_score``.

The response's program is run against the problem's tests in a sandbox (``rewards.code_pool``). A ground truth is JSON
with ``tests``, and if the problem has them ``entry_point`` and ``setup`` (see `ground_truth_of`).

Known limits: a program shares the interpreter with its tests, so one that sets out to fool them (a patched numpy, an
object that answers every comparison as it should) can. What is common is closed: leaving early, replacing builtins,
an object that equals everything. Look at what is rewarded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from rewards.code_pool import ISOLATION, CodePool, Limits, shared_pool
from rewards.components import mixed, warn_ungradable
from rewards.extract import MAX_RESPONSE_CHARS, after_thoughts
from rewards.options import MixOptions, read_options
from rewards.pool import Verdict

_FENCED = re.compile(
    r"(?:```|~~~)[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("", "python", "python3", "py")
_FIRST_LINE = re.compile(r"^(?:import |from \w|def |class |async def |@\w)", re.MULTILINE)


@dataclass(frozen=True)
class CodeOptions(Limits, MixOptions):
    """The mix, and what a program may use.

    Attributes:
        children: programs at a time in each reward worker; None for one a CPU core. In an evaluation, unless it is set,
            as many as there are cores, up to eight.
        isolation: "required" or "available", see ``rewards.code_pool.CodePool``.

    Raises:
        ValueError: if a value is out of its range.
    """

    children: int | None = 2
    isolation: str = "required"

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        MixOptions.__post_init__(self)
        if self.isolation not in ISOLATION:
            raise ValueError(f"isolation={self.isolation}: must be one of {', '.join(ISOLATION)}")
        whole = isinstance(self.children, int) and not isinstance(self.children, bool)
        if self.children is not None and not (whole and self.children >= 1):
            raise ValueError(f"children={self.children}: must be a whole number from 1 on; null: one a CPU core")

    @property
    def limits(self) -> Limits:
        """What one program may use."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @property
    def pool(self) -> CodePool:
        """This process's pool with these options."""
        return shared_pool(self.children, self.isolation)


@dataclass(frozen=True)
class Task:
    """What a program is held against.

    Attributes:
        tests: source that raises an exception if the program is wrong.
        entry_point: the function that the program must define; "" for none.
        setup: source that is executed before the program.
    """

    tests: str
    entry_point: str = ""
    setup: str = ""


def ground_truth_of(task: Task) -> str:
    """A task as the text that a data set's row carries."""
    return json.dumps(vars(task), ensure_ascii=False)


@lru_cache(maxsize=512)
def task_of(ground_truth: Any) -> Task | None:
    """The task of a row's ground truth; None if it holds no tests."""
    try:
        content = json.loads(ground_truth)
        task = Task(*(str(content.get(name) or "") for name in ("tests", "entry_point", "setup")))
    except (TypeError, ValueError, AttributeError):
        return None
    return task if task.tests.strip() else None


def extract_program(response: str, entry_point: str = "") -> tuple[str | None, bool]:
    """The program of a response.

    It is the last Python block after the thoughts that defines the entry point, else the last one. A response without
    blocks is read from its first line of code on. A block that never closes, of a response cut at its limit, counts.

    Args:
        response: decoded.
        entry_point: the function that the program must define; "" for none.

    Returns:
        (program, whether it stood in a code block); (None, False) if there is none.
    """
    text = after_thoughts(response[-MAX_RESPONSE_CHARS:])
    if text is None:
        return None, False
    blocks = [body for language, body in _FENCED.findall(text) if language.lower() in _PYTHON and body.strip()]
    name = re.escape(entry_point)
    defines = re.compile(rf"^(?:(?:async +)?def|class)\s+{name}\b|^{name}\s*=", re.MULTILINE)
    if blocks:
        fitting = [body for body in blocks if entry_point and defines.search(body)]
        return (fitting or blocks)[-1], True
    first = _FIRST_LINE.search(text)
    bare = text[first.start() :] if first else ""
    return (bare, False) if bare and (not entry_point or defines.search(bare)) else (None, False)


def judge(response: str, ground_truth: Any, options: CodeOptions) -> tuple[str, str | None, bool, Verdict]:
    """Run a response's program against the tests.

    Args:
        response: decoded.
        ground_truth: see `ground_truth_of`.
        options: what the program may use.

    Returns:
        (status, program, whether it stood in a code block, verdict). The status is one of
        ``rewards.components.STATUSES``: a program that reaches one of its limits is wrong, like one that fails; "error"
        is for a row without tests.

    Raises:
        IsolationError: if the machine does not hold programs back as required.
        GradingSetupError: if no program can be run here.
    """
    task = task_of(ground_truth)
    if task is None:
        return "error", None, False, Verdict("error", "no tests")
    program, fenced = extract_program(response, task.entry_point)
    if program is None:
        return "no_answer", None, False, Verdict("error", "no program")
    verdict = options.pool.run(program, task.tests, task.entry_point, options.limits, task.setup)
    return ("correct" if verdict.status == "passed" else "wrong"), program, fenced, verdict


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score one response by its program's tests.

    Args:
        data_source: the set's name; used in messages only.
        solution_str: the decoded response.
        ground_truth: see `ground_truth_of`.
        extra_info: may carry ``response_length`` (tokens) for the overlong component.
        **kwargs: fields of ``CodeOptions``.

    Returns:
        As `rewards.components.mixed`; ``format`` is 1 for a program in a code block.

    Raises:
        ValueError: if an option is unknown, or options contradict each other.
        IsolationError: if the machine does not hold programs back as required.
        GradingSetupError: if no program can be run here.
    """
    options = read_options(CodeOptions, kwargs)
    status, program, fenced, _ = judge(solution_str, ground_truth, options)
    if status == "error":
        warn_ungradable(str(data_source), "tests in its ground truth")
    return mixed(status, program, float(fenced), solution_str, extra_info, options)
