"""The reward function of a run, tried before Ray starts: verl would find out in its workers that it cannot be called.

A function of the user's is loaded in a process of its own: whatever its module does when it is imported (claim a GPU,
print, end the process) is none of the run's business yet.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from recipes.common.method import Method

KEY = "reward.custom_reward_function"
SECONDS = 120.0  # for importing the user's module: it may import torch on a busy machine
# What verl's reward managers call it with, by name.
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")


def reward(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse a reward function that verl could not call.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; not needed here.
    """
    old = cfg.get("custom_reward_function") or {}
    if any(value is not None for value in old.values()):
        yield f"custom_reward_function={dict(old)} is verl's old key, which nothing reads; set {KEY}.path and .name"
    node = OmegaConf.to_container(cfg.reward.custom_reward_function)
    path, name, kwargs = node.get("path"), node.get("name"), node.get("reward_kwargs", {})
    if path is None:
        return  # verl's own, chosen by the rows' data_source
    if not isinstance(path, str) or not path:
        yield f"{KEY}.path={path}: must be a Python file, or pkg://<module>; pkg://rewards.math is ours"
    elif not isinstance(name, str) or not name:
        yield f"{KEY}.name={name}: must be the name of a function in {path}"
    elif not isinstance(kwargs, dict):
        yield f"{KEY}.reward_kwargs={kwargs}: must be names and values, {{}} for none"
    elif path.replace("/", ".").startswith("pkg:..rewards."):
        yield from judge(path, name, kwargs)
    else:
        yield from _judged_elsewhere(path, name, kwargs)


def _judged_elsewhere(path: str, name: str, kwargs: dict[str, Any]) -> list[str]:
    """`judge` in a fresh process; it, and whatever the module has started, ends with the verdict."""
    with tempfile.TemporaryDirectory() as folder:
        question, verdict, said = (Path(folder) / name for name in ("question", "verdict", "said"))
        question.write_text(json.dumps([path, name, kwargs]))
        with said.open("wb") as output:  # a file: a pipe would stay open as long as anything that the module started
            process = subprocess.Popen(
                [sys.executable, __file__, str(question), str(verdict)],  # by its path: the package would import torch
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return [
                f"{KEY}.path={path}: importing it takes more than {SECONDS:.0f} s, and every reward worker would wait "
                "for it; do slow work at the function's first call"
            ]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if verdict.exists():
            return list(json.loads(verdict.read_text()))
        last = (said.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]
        return [f"{KEY}.path={path}: importing it ended its process with code {code} ({last})"]


def judge(path: str, name: str, kwargs: dict[str, Any]) -> list[str]:
    """Load a module as verl does, and say what keeps a function in it from being called.

    Args:
        path: ``pkg://a.b``, ``file://…`` or a path, as verl takes it.
        name: the function.
        kwargs: the configured `reward_kwargs`.

    Returns:
        Sentences, none where it can be called.
    """
    try:
        module = load(path)
    except FileNotFoundError as error:
        return [f"{KEY}.path={path}: {error}; give a Python file, or pkg://<module>"]
    except BaseException as error:  # the module's own code ran: anything may come out of it, SystemExit too
        return [f"{KEY}.path={path} cannot be imported: {_where_from(error, path)}; every reward worker imports it"]
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        closest = difflib.get_close_matches(name, functions, n=1)
        hint = f"is it {closest[0]}?" if closest else f"it has {', '.join(functions) or 'no function at all'}"
        return [f"{KEY}.name={name}: {path} has no such function; {hint}"]
    function = getattr(module, name)
    if not callable(function):
        return [f"{KEY}.name={name}: in {path} it is of type {type(function).__name__}, and no function to call"]
    return list(_call_problems(function, f"{name} of {path}", kwargs))


def load(path: str) -> ModuleType:
    """The module behind ``pkg://a.b``, ``file://…`` or a path, as `verl.utils.import_utils.load_module` loads it.

    Raises:
        FileNotFoundError: if there is no such file, or it is no Python file.
        BaseException: whatever the module's own code raises.
    """
    if path.startswith("pkg://"):
        return importlib.import_module(path.removeprefix("pkg://").replace("/", "."))
    file = Path(path.removeprefix("file://"))
    if not file.is_file():
        raise FileNotFoundError("it is a directory" if file.is_dir() else "no such file")
    spec = importlib.util.spec_from_file_location(f"custom_module_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError("no Python file by its name (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _where_from(error: BaseException, path: str) -> str:
    """The error in a line, with the line of the user's file that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}{f': {text}' if text else ''}" + (f" (line {line})" if line else "")


def _call_problems(function: Callable[..., Any], called: str, kwargs: dict[str, Any]) -> Iterator[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C have none
        return
    try:
        signature.bind(**{**dict.fromkeys(ARGUMENTS), **kwargs})
    except TypeError as error:
        theirs = f" and reward_kwargs {', '.join(kwargs)}" if kwargs else ""
        yield (
            f"{KEY}: {called} takes {signature}, and verl calls it with {', '.join(ARGUMENTS)}{theirs}, by name "
            f"({error}); give it these parameters, or **kwargs for those that it does not use"
        )
        return
    from rewards.math import compute_score

    if function is compute_score:
        yield from (f"{KEY}.reward_kwargs: {problem}" for problem in _option_problems(kwargs))


def _option_problems(kwargs: dict[str, Any]) -> Iterator[str]:
    """What our own function would say of its options at the first response."""
    from rewards.grader import Grader
    from rewards.options import IGNORED, RewardOptions

    kinds = get_type_hints(RewardOptions)
    wrong = [
        f"{name}={value}: must be {_in_words(kinds[name])}"
        for name, value in kwargs.items()
        if name in kinds and name not in IGNORED and not _fits(value, kinds[name])
    ]
    yield from wrong
    if wrong:
        return
    try:
        options = RewardOptions.from_kwargs(kwargs)
        # Its limits are its own to check; it starts no process before the first answer.
        Grader(options.deadline_s, options.cpu_s, options.children, options.memory_mb, options.cache_size).close()
    except ValueError as error:
        yield str(error)


def _fits(value: Any, kind: Any) -> bool:
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def _in_words(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return " or ".join(words.get(part, str(part)) for part in get_args(kind) or (kind,))


def _main(question: str, verdict: str) -> None:
    sys.path[0] = os.getcwd()  # as in the command; this folder's modules are called data and model
    found = judge(*json.loads(Path(question).read_text()))
    Path(verdict).write_text(json.dumps(found))
    os._exit(0)  # threads that the module has started do not keep it alive


if __name__ == "__main__":
    _main(*sys.argv[1:])
