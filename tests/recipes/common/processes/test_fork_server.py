"""A worker that was forked is what an interpreter of its own would have been, and does not outlive who asked for it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.common.processes import fork_client
from recipes.common.processes.fork_server import command_server
from recipes.common.processes.reaper import started
from tests.builders.configs import ROOT


@contextlib.contextmanager
def serving(address: Path, imports: str, **settings):
    """A running server with these arguments after its address; gives its process."""
    code = f"from recipes.common.processes import fork_server as f; f.serve({str(address)!r}, {imports})"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT, **settings)
    try:
        wait_for(address.exists)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def server(tmp_path):
    """A running server that has imported next to nothing: (its process, its address)."""
    address = tmp_path / "fork"
    with serving(address, "['json'], ['csv']") as process:
        yield process, address


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def client(address: Path, script: Path, *arguments: str, **settings) -> subprocess.Popen:
    command = [sys.executable, "-I", "-S", fork_client.__file__, str(address), str(script), *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


def test_a_worker_has_its_clients_arguments_environment_folder_output_and_exit_code(server, tmp_path):
    program = script(
        tmp_path,
        "import os, sys, json\n"
        "assert 'csv' in sys.modules, 'nothing was imported before'\n"
        "here = [sys.argv[1:], os.getcwd(), os.environ.get('MINE'), os.environ.get('HOME'), __name__, sys.path[0]]\n"
        "assert os.getpgid(0) == os.getpid(), 'Ray kills by process groups'\n"
        "print(json.dumps([*here, os.getpriority(os.PRIO_PROCESS, 0)]))\n"
        "print('an error', file=sys.stderr)\n"
        "sys.exit(7)\n",
    )
    folder = tmp_path / "a folder"
    folder.mkdir()
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + 3
    asked = client(
        server[1], program, "a b", "--c=d", cwd=folder, env={"MINE": "é"}, preexec_fn=lambda: os.nice(3)
    )  # fmt: skip
    out, errors = asked.communicate(timeout=60)
    seen = [["a b", "--c=d"], str(folder), "é", None, "__main__", str(tmp_path), niceness]
    assert (json.loads(out), errors, asked.returncode) == (seen, "an error\n", 7)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit", 0),
        ("raise SystemExit('text')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_however_a_worker_ends_its_client_ends_alike(server, tmp_path, ending, code):
    asked = client(server[1], script(tmp_path, ending))
    _, errors = asked.communicate(timeout=60)
    assert asked.returncode == code
    assert ("ZeroDivisionError" in errors) == ("/" in ending)


def test_two_workers_draw_different_numbers(server, tmp_path):
    program = script(tmp_path, "import random; print(random.random())")
    drawn = {client(server[1], program).communicate(timeout=60)[0] for _ in range(2)}
    assert len(drawn) == 2


def test_a_worker_has_as_many_threads_as_its_own_environment_says(tmp_path):
    """torch has counted when the server imported it; with too many, processes beside each other wait by spinning."""
    address, program = tmp_path / "fork", script(tmp_path, "import torch; print(torch.get_num_threads())")
    with serving(address, "['torch'], []", env={**os.environ, "OMP_NUM_THREADS": "2"}):
        said = [
            client(address, program, env={**os.environ, "OMP_NUM_THREADS": number}).communicate(timeout=60)[0]
            for number in ("3", "1")
        ]
    assert said == ["3\n", "1\n"]


DRAWS = """
import sys, threading
import ray
drawn = []
for _ in range(2):
    drawn.append(ray.ObjectID.from_random().hex())
    thread = threading.Thread(target=lambda: drawn.append(ray.ObjectID.from_random().hex()))
    thread.start()
    thread.join()
print(*drawn, 'transfer_queue' in sys.modules, 'colorsys' in sys.modules)
"""


def of_two_workers(tmp_path, imports: str) -> tuple[list[list[str]], str]:
    """What two workers of a server with these imports draw, and what the second says besides."""
    address, program = tmp_path / "fork", script(tmp_path, DRAWS)
    with serving(address, f"[], {imports}", stderr=subprocess.DEVNULL):
        said = [client(address, program).communicate(timeout=120) for _ in range(2)]
    return [out.split() for out, _ in said], said[1][1]


def test_two_workers_draw_different_identifiers_of_rays(tmp_path):
    """With all that a run imports: what draws one before the fork makes all workers draw the same."""
    (*first, imported, _), (*second, _, _) = of_two_workers(tmp_path, "f.WITH_RAY")[0]
    assert imported == "True" and len({*first, *second}) == 8


def test_where_something_has_drawn_before_the_fork_nothing_is_forked(tmp_path):
    """Workers start on their own then, with the same result."""
    (tmp_path / "draws.py").write_text("import ray\nray.ObjectID.from_random()\n")
    path = f"__import__('sys').path.append({str(tmp_path)!r}) or ['draws', 'colorsys']"
    (*first, _, imported), (*second, _, _) = (drawn := of_two_workers(tmp_path, path))[0]
    assert imported == "False" and len({*first, *second}) == 8 and "this process imports everything itself" in drawn[1]


def test_a_client_that_is_killed_takes_its_worker_with_it_and_the_server_serves_on(server, tmp_path):
    program = script(tmp_path, "import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    asked = client(server[1], program)
    worker = int(asked.stdout.readline())
    assert worker != asked.pid and started(worker)
    asked.send_signal(signal.SIGKILL)
    wait_for(lambda: started(worker) is None)
    assert client(server[1], script(tmp_path, "print('next')")).communicate(timeout=60)[0] == "next\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_is_ended_while_it_waits_leaves_nothing_and_the_server_serves_on(tmp_path, number):
    """In the first seconds, before the server has imported everything."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(3)\n")
    began = tmp_path / "began"
    program = script(
        tmp_path,
        f"import os, pathlib, time\npathlib.Path({str(began)!r}).write_text(str(os.getpid()))\ntime.sleep(600)",
    )
    address = tmp_path / "fork"
    with serving(address, f"__import__('sys').path.append({str(tmp_path)!r}) or ['slow'], []"):
        asked = client(address, program)
        time.sleep(1)
        asked.send_signal(number)
        assert asked.wait(timeout=60) == (-number if number == signal.SIGKILL else 128 + number)
        next_one = tmp_path / "next.py"
        next_one.write_text("print('next')")
        assert client(address, next_one).communicate(timeout=60) == ("next\n", "")
        wait_for(lambda: not began.exists() or started(int(began.read_text())) is None)


@pytest.mark.parametrize("killed", [False, True], ids=["it ended", "it was killed"])
def test_workers_do_not_outlive_whoever_started_the_server(tmp_path, killed):
    program = script(tmp_path, "import time\nprint('here', flush=True)\ntime.sleep(600)")
    address = tmp_path / "folder" / "fork"
    address.parent.mkdir()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(address), str(program), fork_client.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    processes = [int(each) for each in starter.stdout.readline().split()]
    assert all(started(each) for each in processes)
    if killed:
        starter.kill()
    starter.communicate(timeout=60)
    wait_for(lambda: not any(started(each) for each in processes))
    assert not address.parent.exists()


STARTER = """
import subprocess, sys
address, program, client = sys.argv[1:]
code = "import sys; from recipes.common.processes import fork_server; fork_server.serve(sys.argv[1], [], [])"
server = subprocess.Popen([sys.executable, "-c", code, address], stdin=subprocess.PIPE)
import os, time
while not os.path.exists(address):
    time.sleep(0.02)
asked = subprocess.Popen([sys.executable, client, address, program], stdout=subprocess.PIPE)
asked.stdout.readline()
print(server.pid, asked.pid, flush=True)
sys.stdin.read()
"""


def test_a_command_and_its_own_server_are_forked_from_a_server_of_commands(tmp_path):
    """A module of `-m`, run as a command; what it starts for its workers need not import torch again."""
    (tmp_path / "mine.py").write_text(COMMAND)
    with command_server() as python:
        asked = subprocess.run(
            [*python, "-m", "mine", "a b"],
            cwd=tmp_path,
            env={**os.environ, "MINE": "1"},
            capture_output=True,
            text=True,
        )
    assert asked.returncode == 5, asked.stderr
    name, arguments, path, parent, torch, worker, workers_parent = json.loads(asked.stdout)
    assert (name, arguments, path, torch) == ("__main__", ["a b"], str(tmp_path), True)
    assert workers_parent not in (os.getpid(), parent) and worker == "1", "the worker comes from a server of the run"


COMMAND = """
import json, os, pathlib, subprocess, shlex, sys
torch = "torch" in sys.modules
from recipes.common.processes import fork_server
fork_server.WITH_RAY = ("csv",)
program = pathlib.Path("worker.py")
program.write_text("import os, sys; assert 'torch' in sys.modules; print(os.environ['MINE'], os.getppid())")
with fork_server.fork_server() as python:
    worker = subprocess.run([*shlex.split(python), str(program)], capture_output=True, text=True)
mine, parent = worker.stdout.split()
print(json.dumps([__name__, sys.argv[1:], sys.path[0], os.getppid(), torch, mine, int(parent)]))
sys.exit(5)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_client_is_one_to_what_was_forked(server, tmp_path, number):
    program = script(
        tmp_path,
        "import os, signal, time\n"
        f"signal.signal({int(number)}, lambda number, _: (print(number, flush=True), os._exit(9)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n",
    )
    asked = client(server[1], program)
    assert asked.stdout.readline() == "ready\n"
    asked.send_signal(number)
    assert (asked.communicate(timeout=60)[0], asked.returncode) == (f"{int(number)}\n", 9)


def test_without_a_server_the_client_is_the_interpreter(tmp_path):
    program = script(tmp_path, "import sys\nprint(sys.argv[1:])\nsys.exit(3)")
    asked = client(tmp_path / "nobody", program, "x")
    out, errors = asked.communicate(timeout=60)
    assert (out, asked.returncode) == ("['x']\n", 3)
    assert "this process imports everything itself" in errors


def test_a_server_that_cannot_import_leaves_the_client_to_itself(tmp_path):
    address = tmp_path / "fork"
    code = (
        f"from recipes.common.processes import fork_server; fork_server.serve({str(address)!r}, [], ['no_such_module'])"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    wait_for(address.exists)
    out, errors = client(address, script(tmp_path, "print('alone')")).communicate(timeout=60)
    assert out == "alone\n" and "imports everything itself" in errors
    assert b"no_such_module" in server.communicate(timeout=60)[1]


def test_rays_executable_is_one_command_line():
    from recipes.common.processes.fork_server import fork_server

    with fork_server() as executable:
        program, *options, address = shlex.split(executable)
        assert program == sys.executable and fork_client.__file__ in options
        wait_for(Path(address).exists)
    assert not Path(address).exists()
