"""Programs in the sandbox: what hostile ones get, and how many run a second: `python -m benchmarks.programs`.

Keys (`key=value`): programs=200, of each measurement of speed; isolation=required.

Speed is compared, in the same run, with the plain way: a fresh interpreter for each program without any isolation.  It
imports numpy where the tests do, as those of HumanEval+ and MBPP+ do.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rewards.code_pool import CodePool, Limits
from rewards.pool import Verdict

TESTS = "assert f(2) == 4"
RIGHT = "def f(x):\n    return x * x\n"
LIMITS = Limits(wall_s=2.0, cpu_s=1.0, memory_mb=64)

# What it attempts -> (program, the verdicts that are right).
HOSTILE: dict[str, tuple[str, set[str]]] = {
    "loop without end": ("while True:\n    pass", {"timeout"}),
    "sleep": ("import time\ntime.sleep(1000)", {"timeout"}),
    "sleep, CPU clock's signal ignored": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        {"timeout"},
    ),
    "stop itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"timeout"}),
    "tests that never end": ("def f(x):\n    while True:\n        pass", {"timeout"}),
    "fork bomb": ("import os\nwhile True:\n    os.fork()", {"error"}),
    "fork bomb that catches its errors": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        {"timeout"},
    ),
    "threads without end": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(100,)).start()",
        {"error"},
    ),
    "daemon that outlives it": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "memory": ("x = []\nwhile True:\n    x.append(bytearray(2**20))", {"memory"}),
    "memory at once": ("x = bytearray(2**40)", {"memory"}),
    "memory in children": (
        "import os\nfor _ in range(100):\n    try:\n        if os.fork() == 0:\n            break\n"
        "    except OSError:\n        pass\nx = []\nwhile True:\n    x.append(bytearray(2**20))",
        {"memory", "error", "timeout"},
    ),
    "shared memory segments": (
        "import ctypes\nc = ctypes.CDLL(None)\nc.shmat.restype = ctypes.c_void_p\nwhile True:\n"
        "    n = c.shmget(0, 2**23, 0o1600)\n    assert n >= 0, 'refused'\n    p = c.shmat(n, None, 0)\n"
        "    ctypes.memset(p, 1, 2**23)\n    c.shmdt(ctypes.c_void_p(p))",
        {"memory", "failed", "error"},
    ),
    "output without end": ("while True:\n    print('x' * 10000)", {"output"}),
    "errors without end": ("import os\nwhile True:\n    os.write(2, b'x' * 10000)", {"output"}),
    "large files": (
        "n = 0\nwhile True:\n    with open(f'large{n}', 'wb') as file:\n        file.write(bytes(2**22))\n    n += 1",
        {"error"},
    ),
    "many files": ("n = 0\nwhile True:\n    open(f'small{n}', 'w').close()\n    n += 1", {"error"}),
    "write outside": (
        "import os\nfound = []\n"
        "for where in ('/', '/usr/lib', '/tmp/../..', os.path.dirname(os.__file__), '/dev', '/box'):\n"
        "    try:\n        open(os.path.join(where, 'written'), 'w').close()\n        found.append(where)\n"
        "    except OSError:\n        pass\nassert not found, found\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "read outside": (
        "import os\nfor where in ('/etc/passwd', '/proc/self/environ', '/proc/1/environ', '/root/.bashrc', '/sys'):\n"
        "    assert not os.path.exists(where), where\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "read the environment": (
        "import os\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'PATH', 'LANG'}, set(os.environ)\n"
        "assert os.listdir(os.environ['HOME']) == [] and os.listdir('.') == []\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "network": (
        "import socket\nfor kind, address in ((socket.AF_INET, ('127.0.0.1', 22)), (socket.AF_INET, ('8.8.8.8', 53)),\n"
        "                      (socket.AF_INET6, ('::1', 22)), (socket.AF_UNIX, '\\0/tmp/.X11-unix/X0')):\n"
        "    try:\n        socket.socket(kind).connect(address)\n        raise AssertionError(address)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "signals to its parent": (
        "import os, signal\nfor number in range(1, 65):\n    for target in (os.getppid(), 1):\n        try:\n"
        "            os.kill(target, number)\n        except OSError:\n            pass\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "signals to everybody": (
        "import os, signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError:\n    pass\n"
        "def f(x):\n    return x * x",
        {"passed"},
    ),
    "trace its parent": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "new rights": (
        "import ctypes, os\nc = ctypes.CDLL(None)\nassert c.unshare(0x10000000) == -1 and c.unshare(0x20000) == -1\n"
        "assert c.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == -1 and c.chroot(b'/tmp') == -1\n"
        "for user in (0, 1000, 65534):\n    try:\n        os.setuid(user)\n    except OSError:\n        pass\n"
        "assert c.unshare(0x20000) == -1\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "higher limits": (
        "import resource\nfor kind in range(16):\n    if resource.getrlimit(kind)[1] != -1:\n        try:\n"
        "            resource.setrlimit(kind, (-1, -1))\n            raise AssertionError(kind)\n"
        "        except ValueError:\n            pass\ndef f(x):\n    return x * x",
        {"passed"},
    ),
    "leave early, all well": ("import os\nos._exit(0)", {"error"}),
    "leave early, politely": ("raise SystemExit(0)", {"error"}),
    "a verdict of its own": (
        "import os\nos.write(3, b'{\"token\": \"\", \"status\": \"passed\", \"how\": \"\"}\\n')\nos._exit(0)",
        {"error"},
    ),
    "a verdict that hurts to read": (
        "import os\nos.write(3, b'[' * 60000)\nos.write(3, b'\\n')\nos._exit(0)",
        {"error"},
    ),
    "no channel for the verdict": ("import os\nos.closerange(0, 64)\ndef f(x):\n    return x * x", {"error"}),
    "equal to everything": (
        "class A:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return A()",
        {"failed"},
    ),
    "builtins replaced": (
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.zip = lambda *_: ()\nlen = 3\n"
        "def f(x):\n    return 5",
        {"failed"},
    ),
    "a message that is code": (
        "class A(Exception):\n    def __str__(self):\n        while True:\n            pass\nraise A",
        {"timeout"},
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef g(x):\n    return [g(x)]\ng(1)",
        {"error", "memory", "timeout"},
    ),
    "killed by a signal without a name": ("import os\nos.kill(os.getpid(), 37)", {"error"}),
    "crash": ("import ctypes\nctypes.string_at(0)", {"error"}),
    "not Python": ("def f(x)", {"error"}),
    "deep nesting": ("x = " + "(" * 100_000, {"error", "memory"}),
    "no entry point": ("def g(x):\n    return x", {"error"}),
}  # fmt: skip


def run_hostile(pool: CodePool) -> dict[str, Verdict]:
    """The verdict of every hostile program, with right ones in between whose verdicts must not suffer.

    Raises:
        RuntimeError: a right program between them did not pass.
    """
    verdicts = {}
    with ThreadPoolExecutor(2) as threads:
        for name, (program, _) in HOSTILE.items():
            beside = threads.submit(pool.run, RIGHT, TESTS, "f", Limits(wall_s=30))
            verdicts[name] = pool.run(program, TESTS, "f", LIMITS)
            if beside.result().status != "passed":
                raise RuntimeError(f"beside {name!r} a right program ended with {beside.result()}")
    return verdicts


def a_second(run: Callable[[int], str], programs: int) -> float:
    """Programs a second, two at a time; each must pass."""
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(run, range(programs)))
    seconds = time.monotonic() - begin
    if set(ended) != {"passed"}:
        raise RuntimeError(f"not all passed: {set(ended)}")
    return programs / seconds


def plain(program: str) -> str:
    """A program in an interpreter of its own, without isolation."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    return "passed" if done.returncode == 0 else "failed"


def main(words: list[str]) -> int:
    """Print both tables; 1 where a hostile program got a wrong verdict or speed is below 20 programs a second."""
    settings = {"programs": "200", "isolation": "required", **dict(word.split("=", 1) for word in words)}
    count = int(settings["programs"])
    pool = CodePool(2, settings["isolation"])
    print("open here:", ", ".join(pool.missing()) or "nothing")
    wrong = 0
    print("\n| attempt | verdict | seconds | last line |\n| --- | --- | --- | --- |")
    for name, verdict in run_hostile(pool).items():
        fits = verdict.status in HOSTILE[name][1]
        wrong += not fits
        how = verdict.how.replace("|", "\\|")[:70]
        print(f"| {name} | {verdict.status}{'' if fits else ' (wrong)'} | {verdict.seconds:.2f} | {how} |")
    numpy_tests = f"import numpy as np\nassert np.allclose(f(2), 4)\n{TESTS}"
    ours = {
        "right programs": a_second(lambda n: pool.run(f"{RIGHT}# {n}", TESTS, "f").status, count),
        "with numpy": a_second(lambda n: pool.run(f"{RIGHT}# {n}", numpy_tests, "f").status, count),
    }
    theirs = {
        "right programs": a_second(lambda n: plain(f"{RIGHT}# {n}\n{TESTS}"), max(20, count // 5)),
        "with numpy": a_second(lambda n: plain(f"{RIGHT}# {n}\n{numpy_tests}"), max(20, count // 5)),
    }
    print("\n| programs a second, two at a time | sandbox | plain interpreter | ratio |\n| --- | --- | --- | --- |")
    for name in ours:
        print(f"| {name} | {ours[name]:.0f} | {theirs[name]:.0f} | {ours[name] / theirs[name]:.1f} |")
    pool.close()
    print(f"threads left: {threading.active_count()}")
    return int(wrong > 0 or min(ours.values()) < 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
