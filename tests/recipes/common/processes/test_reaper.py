"""What a run's end leaves: no process, no named shared memory, no folder of its own, and those of others untouched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from recipes.common.processes import reaper
from tests.builders.configs import ROOT
from tests.builders.forked import python

# A worker as Ray ends one: killed, and before it the process that removes what it leaves.
WORKER = """
import os, signal, time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from tempfile import mkdtemp
from recipes.common.processes.reaper import temporary_prefix
memory = shared_memory.SharedMemory(create=True, size=4096)
folder = mkdtemp(prefix=temporary_prefix())
Path(folder, "a file").touch()
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
print(memory.name, os.getpid(), folder, flush=True)
time.sleep(120)
"""
LAUNCHER = """
import subprocess, sys
from recipes.common.processes.reaper import reaper
with reaper():
    worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    sys.stdin.readline()
    worker.kill()
    worker.wait()
"""
# The same where nothing is started but forked: the launcher, its server for workers, and the worker.
FORKING_LAUNCHER = """
import shlex, subprocess, sys
from pathlib import Path
from recipes.common.processes import fork_server
from recipes.common.processes.reaper import reaper
fork_server.WITH_RAY = ("csv",)
program = Path("worker.py")
root = fork_server.__file__.rpartition("/recipes/")[0]
program.write_text(f"import sys; sys.path.insert(0, {root!r})" + sys.argv[1])
with reaper(), fork_server.fork_server() as python:
    worker = subprocess.Popen([*shlex.split(python), str(program)])
    sys.stdin.readline()
    worker.kill()
    worker.wait()
"""


@pytest.mark.parametrize("forked", [False, True], ids=["started", "forked"])
@pytest.mark.parametrize("ending", ["clean", "killed"])
def test_shared_memory_and_folders_go_with_the_run_that_made_them(tmp_path, ending, forked):
    command, cwd = [sys.executable, "-c", LAUNCHER], ROOT
    if forked:
        (tmp_path / "launcher.py").write_text(FORKING_LAUNCHER)
        command, cwd = [*python(), "-m", "launcher"], tmp_path
    launcher = subprocess.Popen([*command, WORKER], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name, pid, folder = launcher.stdout.readline().split()
    left, others = Path("/dev/shm") / name, shared_memory.SharedMemory(create=True, size=4096)
    try:
        assert reaper.shared_memory_of({int(pid)}) == {str(left)}
        time.sleep(1.25 * reaper.LOOK_SECONDS)
        assert left.exists() and Path(folder).exists()
        if ending == "clean":
            launcher.communicate("end\n", timeout=30)
            assert launcher.returncode == 0
        else:
            os.kill(launcher.pid, signal.SIGKILL)
        deadline = time.time() + 15
        while any(map(Path.exists, (left, Path(folder), Path(f"/proc/{pid}")))) and time.time() < deadline:
            time.sleep(0.1)
        assert not any(map(Path.exists, (left, Path(folder), Path(f"/proc/{pid}"))))
        assert (Path("/dev/shm") / others.name).exists()
    finally:
        launcher.kill()
        left.unlink(missing_ok=True)
        others.close()
        others.unlink()
