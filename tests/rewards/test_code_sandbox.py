"""Programs that attack the sandbox, the machine that does not isolate, and what is left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.programs import HOSTILE, LIMITS, RIGHT, TESTS
from rewards.code_pool import CodePool, Limits
from tests.builders.configs import ROOT
from tests.builders.processes import alive, descendants

USER = 12345  # an ordinary user, known to nobody
# Enters a user namespace in which no further one may be made, gives up its rights, and runs what follows: on such a
# machine an ordinary user has no means of isolation but limits.
WITHOUT_NAMESPACES = """
import ctypes, os
libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
assert libc.unshare(0x10000000) == 0
for path, text in (("self/setgroups", "deny"), ("self/gid_map", f"{group} {group} 1"),
                   ("self/uid_map", f"{user} {user} 1"), ("sys/user/max_user_namespaces", "0")):
    with open(f"/proc/{path}", "w") as file:
        file.write(text)
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
assert libc.prctl(38, 1, 0, 0, 0) == 0  # root would get them back where it starts a program
"""
RUN = """
import json, sys
from rewards.code_pool import CodePool, IsolationError, Limits
pool = CodePool(2, sys.argv[1])
try:
    found = {"missing": pool.missing(), "verdicts": {}}
    for name, program in json.load(sys.stdin).items():
        verdict = pool.run(program, "assert f(2) == 4", "f", Limits(wall_s=2, cpu_s=1, memory_mb=128))
        found["verdicts"][name] = [verdict.status, verdict.how]
except IsolationError as error:
    found["refused"] = str(error)
pool.close()
print(json.dumps(found))
"""


def pool_process(pool: CodePool) -> int:
    return pool._nursery._process.pid


def quiet(pool: CodePool, before: list[int], seconds: float = 3.0) -> bool:
    """Whether nothing runs below the sandbox that did not run before."""
    return wait_until(lambda: set(descendants(pool_process(pool))) <= set(before), seconds)


def processes_of(user: int) -> list[str]:
    table = subprocess.run(["ps", "-eo", "uid=,stat=,args="], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in table.splitlines()]
    return [row[-1] for row in rows if row[0] == str(user) and not row[1].startswith("Z")]


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def pool():
    """A pool in full isolation; skipped only where the machine has no namespaces, which is asked of the machine."""
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x20000 | 0x40000000 | 0x20000000) != 0)"
    if subprocess.run([sys.executable, "-c", ask]).returncode:
        pytest.skip("this machine has no namespaces for us")
    made = CodePool(2)
    made.check()
    yield made
    made.close()


# ------------------------------------------------------------------ hostile programs


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_program_gets_its_verdict_and_leaves_nothing(pool, name):
    program, right = HOSTILE[name]
    pool.run(RIGHT, TESTS, "f")
    before, files = descendants(pool_process(pool)), set(os.listdir("/tmp"))
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        beside = threads.submit(lambda: [pool.run(RIGHT, TESTS, "f", Limits(wall_s=60)).status for _ in range(3)])
        verdict = pool.run(program, TESTS, "f", LIMITS)
        assert verdict.status in right, verdict
        assert beside.result() == ["passed"] * 3  # what runs beside it does not suffer
    assert time.monotonic() - begin < 60
    assert pool.run(RIGHT, TESTS, "f", Limits(wall_s=60)).status == "passed"  # nor what comes after it
    assert quiet(pool, before)
    assert not {name for name in set(os.listdir("/tmp")) - files if name.startswith("program-")}


def test_the_rest_of_a_batch_keeps_its_verdicts(pool):
    """All hostile programs at once, four at a time, with right and wrong ones between them."""
    programs = []
    for program, right in HOSTILE.values():
        programs += [(RIGHT, {"passed"}), (program, right), ("def f(x):\n    return x", {"failed"})]
    large = CodePool(4)
    patient = Limits(wall_s=30, cpu_s=1, memory_mb=64)
    try:
        with ThreadPoolExecutor(8) as threads:
            verdicts = list(threads.map(lambda p: large.run(p[0], TESTS, "f", patient), programs))
    finally:
        large.close()
    wrong = [(p, v) for (p, right), v in zip(programs, verdicts, strict=True) if v.status not in right]
    # A program that burns the wall clock beside three others may end at another of its limits.
    assert not [w for w in wrong if w[1].status not in ("timeout", "memory", "error")], wrong
    assert [v.status for v in verdicts[::3]] == ["passed"] * len(HOSTILE)
    assert [v.status for v in verdicts[2::3]] == ["failed"] * len(HOSTILE)


def test_nothing_that_is_written_inside_reaches_this_machine(pool):
    marker = f"written-{os.getpid()}-{time.time_ns()}"
    program = (
        f"import os\nname = {marker!r}\n"
        "for where in ('.', os.environ['HOME'], os.environ['TMPDIR'], '/tmp', '/dev', '/', '/usr/lib'):\n"
        "    try:\n        open(os.path.join(where, name), 'w').write('here')\n    except OSError:\n        pass\n"
        "assert os.path.exists(name)\ndef f(x):\n    return x * x"
    )
    assert pool.run(program, TESTS, "f").status == "passed"
    for where in ("/tmp", "/dev", "/dev/shm", "/", "/usr/lib", os.getcwd(), str(Path.home())):
        assert not os.path.exists(os.path.join(where, marker))
    again = f"import os\nassert not os.path.exists({marker!r})\ndef f(x):\n    return x * x"
    assert pool.run(again, TESTS, "f").status == "passed"  # nor the next program


def test_secrets_of_this_process_are_not_inherited(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "a-secret-that-nobody-may-read")
    found = "import ctypes, gc, os, sys\ndef f(x):\n    return 'SOME_TOKEN' in os.environ or " + (
        "'a-secret' in open('/proc/self/environ').read() if os.path.exists('/proc/self/environ') else x * x"
    )
    fresh = CodePool(1)
    try:
        assert fresh.run(found, TESTS, "f").status == "passed"
        # Nor are they in the memory of the process that programs are forked from.
        assert b"a-secret" not in Path(f"/proc/{pool_process(fresh)}/environ").read_bytes()
    finally:
        fresh.close()


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("program", "tests", "status", "how"),
    [
        (RIGHT, TESTS, "passed", ""),
        ("def f(x):\n    return x", TESTS, "failed", "AssertionError: assert f(2) == 4"),
        ("def f(x):\n    return x", "assert f(2) == 4, 'two squared'", "failed", "AssertionError: two squared"),
        ("def f(x):\n    return 1 / 0", TESTS, "error", "ZeroDivisionError: division by zero"),
        ("def g(x):\n    return x", TESTS, "error", "NameError: the program has no function 'f'"),
        ("f = 4", TESTS, "error", "NameError: the program has no function 'f'"),
        ("f = lambda x: x * x", TESTS, "passed", ""),
        ("def f(x):", TESTS, "error", "IndentationError"),
        (RIGHT, "def check(candidate):\n    assert candidate(2) == 5", "failed", "assert candidate(2) == 5"),
        (RIGHT, "def check(candidate):\n    assert candidate(2) == 4", "passed", ""),
        # A check of the program's own is not the tests'.
        ("def check(c):\n    raise ValueError\ndef f(x):\n    return x * x", TESTS, "passed", ""),
        # Tests do not see what a program puts in place of builtins.
        ("def zip(*_):\n    return ()\ndef f(x):\n    return 0", "for a, b in zip([2], [4]):\n    assert f(a) == b",
         "failed", "assert f(a) == b"),
        ("import builtins\nbuiltins.zip = lambda *_: ()\ndef f(x):\n    return 0",
         "for a, b in zip([2], [4]):\n    assert f(a) == b", "failed", "assert f(a) == b"),
        # Names of the program that the tests need.
        ("class Pair:\n    def __init__(self, a):\n        self.a = a\ndef f(p):\n    return p.a",
         "assert f(Pair(3)) == 3", "passed", ""),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    a: 'int'\ndef f(x):\n    return P(x)",
         "assert f(2).a == 2 and f(2) == f(2)", "passed", ""),
        ("import numpy as np\ndef f(x):\n    return np.array([x * x])", "assert f(2)[0] == 4", "passed", ""),
        ("def f(x):\n    import wave, xml.etree.ElementTree\n    return x * x", TESTS, "passed", ""),
        ("def f(x):\n    return '\\ud800'", TESTS, "failed", "assert f(2) == 4"),
        ("x = '\ud800'", TESTS, "error", "UnicodeEncodeError"),
        ("x = 1\0", TESTS, "error", ""),
        ("print('the last', end='')\nimport os\nprint(flush=True)\nos._exit(3)", TESTS, "error",
         "ended with code 3 before its tests had; its last line: the last"),
        ("input()", TESTS, "error", "EOFError"),
        ("if __name__ == '__main__':\n    raise ValueError\ndef f(x):\n    return x * x", TESTS, "passed", ""),
    ],
)  # fmt: skip
def test_verdicts(pool, program, tests, status, how):
    verdict = pool.run(program, tests, "f", Limits(wall_s=60))
    assert verdict.status == status and how in verdict.how, verdict


def test_a_program_without_entry_point_is_a_script_with_tests(pool):
    assert pool.run("x = 3", "assert x == 3").status == "passed"
    assert pool.run("x = 3", "assert x == 4").status == "failed"


def test_the_setup_comes_before_the_program(pool):
    verdict = pool.run("def f(x: List[int]):\n    return helper(x)", TESTS, "f", setup="from typing import List\n"
                       "def helper(x):\n    return x * x")  # fmt: skip
    assert verdict.status == "passed", verdict


def test_limits_are_those_that_are_asked_for(pool):
    hog = "def f(x):\n    return len(bytearray(300 * 2**20)) and x * x"
    assert pool.run(hog, TESTS, "f", Limits(memory_mb=200)).status == "memory"
    assert pool.run(hog, TESTS, "f", Limits(memory_mb=600)).status == "passed"
    talk = "print('x' * 3000)\ndef f(x):\n    return x * x"
    assert pool.run(talk, TESTS, "f", Limits(output_kb=2)).status == "output"
    assert pool.run(talk, TESTS, "f", Limits(output_kb=4)).status == "passed"
    forks = "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        os._exit(0)\n" + RIGHT
    assert pool.run(forks, TESTS, "f", Limits(processes=3)).status == "error"
    assert pool.run(forks, TESTS, "f", Limits(processes=8)).status == "passed"
    spin = "def f(x):\n    while True:\n        pass"
    assert pool.run(spin, TESTS, "f", Limits(cpu_s=1, wall_s=60)).how == "used 1 s of CPU time"
    sleeper = "import time\ndef f(x):\n    time.sleep(1)\n    return x * x"
    assert pool.run(sleeper, TESTS, "f", Limits(wall_s=0.5)).status == "timeout"
    assert pool.run(sleeper, TESTS, "f", Limits(wall_s=30)).status == "passed"


@pytest.mark.parametrize("name, value", [("wall_s", 0), ("memory_mb", 1), ("processes", 0), ("cpu_s", "5"),
                                         ("output_kb", 1.5), ("files_mb", True)])  # fmt: skip
def test_limits_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_large_tests_are_no_obstacle(pool):
    numbers = list(range(300_000))
    tests = f"inputs = {numbers}\nfor n in inputs:\n    assert f(n) == n * n"
    assert len(tests) > 2**21
    assert pool.run(RIGHT, tests, "f", Limits(wall_s=60)).status == "passed"


# ------------------------------------------------------------------ processes


def test_a_killed_sandbox_is_replaced(pool):
    made = CodePool(2)
    try:
        assert made.run(RIGHT, TESTS, "f").status == "passed"
        first = pool_process(made)
        below = descendants(first)
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(made.run, "import time\ntime.sleep(1)\n" + RIGHT, TESTS, "f", Limits(wall_s=60))
            time.sleep(0.5)
            os.kill(first, signal.SIGKILL)
            assert slow.result().status == "passed"  # tried again
        assert pool_process(made) != first
        assert not alive([first, *below])
    finally:
        made.close()


def test_nothing_stays_where_the_parent_is_killed():
    script = (
        "import threading, time\nfrom rewards.code_pool import CodePool\nmade = CodePool(2)\n"
        "made.run('x = 1', 'assert x', '')\n"
        "threading.Thread(target=made.run, args=('import time\\ntime.sleep(100)', '1')).start()\n"
        "time.sleep(0.5)\nprint('up', flush=True)\ntime.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "up\n"
    below = descendants(parent.pid)
    assert len(below) >= 4  # launcher, sandbox, supervisor, program
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(below), 10.0)


def test_a_sandbox_outlives_the_thread_that_started_it():
    made = CodePool(1)
    try:
        starter = threading.Thread(target=made.run, args=("x = 1", "assert x"))
        starter.start()
        starter.join()
        first = pool_process(made)
        time.sleep(0.3)
        assert made.run(RIGHT, TESTS, "f").status == "passed" and pool_process(made) == first
    finally:
        made.close()


def test_a_closed_pool_leaves_nothing_and_starts_again():
    made = CodePool(1)
    made.run(RIGHT, TESTS, "f")
    below = [pool_process(made), *descendants(pool_process(made))]
    made.close()
    assert wait_until(lambda: not alive(below), 5.0)  # killed at once; the system takes a moment to bury them
    assert made.run(RIGHT, TESTS, "f").status == "passed"
    made.close()


# ------------------------------------------------------------------ other users, other machines


def other_python() -> str | None:
    """A Python that any user may execute; this one's may lie in a directory of root's."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]
        try:
            if subprocess.run(command, user=USER, group=USER, extra_groups=[], cwd="/").returncode == 0:
                return path
        except OSError:
            continue
    return None


def elsewhere(code: str, programs: dict[str, str], isolation: str, **options) -> dict:
    """What `RUN` says after some code, in a process of its own."""
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}
    done = subprocess.run(
        [options.pop("python", sys.executable), "-c", code + RUN, isolation],
        input=json.dumps(programs), capture_output=True, text=True, env=environment, cwd="/", timeout=120, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


NAMES = ("fork bomb", "write outside", "read outside", "network", "new rights", "signals to its parent", "sleep",
         "daemon that outlives it")  # fmt: skip
ESCAPES = {name: HOSTILE[name][0] for name in NAMES}


def as_user() -> dict:
    """Options of `elsewhere` for an ordinary user: another one where we are root, else who we are."""
    if os.geteuid():
        return {}
    python = other_python()
    if python is None:
        pytest.skip("no Python that another user may execute")
    return {"python": python, "user": USER, "group": USER, "extra_groups": []}


def test_an_ordinary_user_is_isolated_as_well(pool):
    found = elsewhere("", ESCAPES, "required", **as_user())
    assert found["missing"] == []
    for name, (status, how) in found["verdicts"].items():
        assert status in HOSTILE[name][1], (name, status, how)


def test_a_machine_without_namespaces_is_refused_and_what_is_open_is_named(pool):
    found = elsewhere(WITHOUT_NAMESPACES, {"any": RIGHT}, "required", **as_user())
    assert found["verdicts"] == {}
    for said in ("the network can be reached", "files of this machine can be read", "may outlive it", "unshare",
                 "isolation=available", "max_user_namespaces"):  # fmt: skip
        assert said in found["refused"]
    assert "memory is not limited" not in found["refused"]


def test_told_otherwise_it_runs_there_with_what_limits_there_are(pool):
    programs = {
        "right": RIGHT,
        "wrong": "def f(x):\n    return x",
        **{name: HOSTILE[name][0] for name in ("loop without end", "sleep", "memory at once", "output without end",
                                               "leave early, all well", "fork bomb", "daemon that outlives it")},
        "rights": "import os\nos.makedirs('a/b')\nfor name in ('a/b', 'a', '..', '.'):\n    os.chmod(name, 0)\n"
        + RIGHT,
        "directory": "import os\nassert os.listdir('.') == [] and os.listdir(os.environ['HOME']) == []\n"
        "open('here', 'w').close()\n" + RIGHT,
    }  # fmt: skip
    before = set(os.listdir("/tmp"))
    found = elsewhere(WITHOUT_NAMESPACES, programs, "available", **as_user())
    assert len(found["missing"]) >= 3
    verdicts = {name: status for name, (status, _) in found["verdicts"].items()}
    assert verdicts == {
        "right": "passed", "wrong": "failed", "loop without end": "timeout", "sleep": "timeout",
        "memory at once": "memory", "output without end": "output", "leave early, all well": "error",
        "fork bomb": "error", "daemon that outlives it": "passed", "rights": "passed",
        "directory": "passed",
    }  # fmt: skip
    assert not {name for name in set(os.listdir("/tmp")) - before if name.startswith("program-")}
    if os.geteuid() == 0:  # then the user's processes are all of this test: the daemon is among them, or gone
        assert wait_until(lambda: not processes_of(USER), 3.0), processes_of(USER)
