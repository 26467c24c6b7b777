"""Commands of this package in processes of their own, which have what took most of their time: their imports."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
from pathlib import Path

from recipes.common.processes.fork_server import command_server
from tests.builders.configs import ROOT


@functools.cache
def python() -> tuple[str, ...]:
    """What stands in the interpreter's place, before ``-m`` and a module; its server lives as long as the tests."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return tuple(stack.enter_context(command_server()))


def command(module: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a module to its end; a traceback of Hydra's is as short as a user sees it."""
    env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [*python(), "-m", module, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
