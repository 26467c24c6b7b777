"""Our grader beside verl's and TRL's, on the same answers in one run: `python -m benchmarks.grading`.

Keys (`key=value`): trl=DIR, where `pip install --no-deps --target DIR trl` put it (needed only where TRL is not
installed; without it there is no TRL row, and the reason is printed);
cases=FILE,FILE, labelled cases as JSON lines (gold, answer, equal); gradings=100000, the length of the memory run;
graders=a,b and only=agreement,speed,…, to run some only; quick=true, a small version of everything.

Every grader works in a process of its own, reads the same tasks, and answers one line a verdict, so that a hang or a
crash costs it its own verdicts only.  Times exclude imports and a warm-up.  Ends with 1 where ours misses its bar.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = [ROOT / "tests" / "data" / name for name in ("grading_cases.jsonl", "grading_kinds.jsonl")]
DEADLINE_S = 10.0
BAR = {"hidden_correct": 400, "gradings_per_s": 300.0, "late_s": 0.5, "memory_mib": 16.0}
Task = tuple[str, str]  # gold, response


@dataclass
class Settings:
    """The command line."""

    trl: str | None = None
    cases: str = ",".join(map(str, CASES))
    gradings: int = 100_000
    graders: str = "ours,verl math_verify,verl prime_math,verl math_dapo,trl"
    only: str = "agreement,survival,behind_towers,speed,memory"
    quick: bool = False
    role: str = "parent"
    threads: int = 1
    grader: str = "ours"
    patience_s: float = 0.0


def parse_settings(arguments: list[str]) -> Settings:
    """Settings from `key=value` words.  Raises SystemExit for a word that is none of ours."""
    settings = Settings()
    for word in arguments:
        key, sign, value = word.partition("=")
        if not sign or key not in vars(settings):
            raise SystemExit(f"{word!r}: expected key=value with a key among {sorted(vars(settings))}")
        old = getattr(settings, key)
        kind = str if old is None else type(old)
        new = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
        setattr(settings, key, new)
    return settings


# --- the answers -----------------------------------------------------------------------------------------------------


def respond(answer: str) -> str:
    """A response that ends in a boxed answer."""
    return f"Let us see. It follows that the result is $\\boxed{{{answer}}}$."


def towers(count: int) -> list[Task]:
    """Distinct towers of powers: parsed in no time, never evaluated."""
    tops = [(base, top) for base in range(9, 1, -1) for top in range(9, 1, -1)][:count]
    return [("6", respond(f"{b}^{{{b}^{{{b}^{{{b}^{t}}}}}}}")) for b, t in tops]


def sums(count: int) -> list[Task]:
    """Distinct sums of a billion terms: parsed in no time, added up for hours."""
    return [("6", respond(f"\\sum_{{n=1}}^{{10^{{9}}}} \\sin({k}n^{{n}})")) for k in range(2, count + 2)]


def hostile() -> list[tuple[str, str, str]]:
    """(family, gold, answer) of answers that hang, eat memory or break parsers, none of them right."""
    nested_fraction = "\\frac{1}{1+" * 200 + "x" + "}" * 200
    return [
        ("tower of powers", "6", "9^{9^{9^{9^9}}}"),
        ("tower in a fraction", "\\frac{1}{2}", "\\frac{1}{7^{7^{7^{7}}}}"),
        ("tower against a surd", "\\sqrt{2}", "\\sqrt{9^{9^{9^{9}}}}"),
        ("big factorial", "6", "(10^{9})!"),
        ("factorial of factorials", "6", "((10!)!)!"),
        ("binomial", "6", "\\binom{10^{12}}{5\\cdot 10^{11}}"),
        ("long sum", "6", "\\sum_{n=1}^{10^{9}} \\sin(n^{n})"),
        ("long product", "6", "\\prod_{k=1}^{10^{8}} k^{k}"),
        ("integral", "6", "\\int_{0}^{1} \\sin(x^{x^{x}})\\cos(e^{x^{x}}) dx"),
        ("memory", "6", "2^{10^{11}}"),
        ("large power of a sum", "x+1", "(x+y+z+1)^{2000}-(x+y+z+2)^{1999}"),
        ("trigonometry", "\\sin x", "+".join(f"\\sin^{{{k}}}({k}x)\\cos^{{{k}}}(x/{k})" for k in range(2, 14))),
        ("equation", "x^5-x=1", "x^{11}-x^{7}+3x^2=\\sin(x)+e^{x}"),
        ("nested fractions", "6", nested_fraction),
        ("nested braces", "6", "{" * 1500 + "5" + "}" * 1500),
        ("nested parentheses", "6", "(" * 400 + "5" + ")" * 400),
        ("million digits", "6", "9" * 1_000_000),
        ("giant text", "6", "x+" * 200_000 + "y"),
        ("two thousand terms", "x", "+".join(f"x_{{{k}}}" for k in range(2000))),
        ("many open boxes", "6", "\\boxed{" * 2000),
        ("tower as an endpoint", "(0,1)", "(0, 9^{9^{9^{9}}})"),
        ("tower in an inequality", "x>2", "x^{9^{9^{9}}} > 9^{9^{9^{9}}}"),
        ("nearly equal at a million digits", "\\sqrt{2}", "\\sqrt{2}+10^{-10^{6}}"),
        ("system of equations", "x+y=1", "x^9 y^7+\\sin(xy)+e^{x+y}=x^y"),
        ("many choices", "A", "A or B or " * 400),
        ("many unread letters", "6", "sin" * 1300),
    ]


def ordinary(problems: int, rollouts: int, seed: int, algebra_only: bool = False) -> list[Task]:
    """Gradings as a batch brings them: each problem's gold with several answers, half of them right.

    Of the problems 55 % are integers, 15 % fractions and decimals, 30 % need algebra (surds, tuples, lists, intervals,
    polynomials, percentages); ``algebra_only`` leaves only the last kind.
    """
    pick = random.Random(seed)
    tasks: list[Task] = []
    for _ in range(problems):
        kind = pick.random() if not algebra_only else 0.7 + 0.3 * pick.random()
        a, b, c = pick.randint(2, 97), pick.randint(2, 97), pick.randint(3, 31)
        if kind < 0.55:
            gold, right, wrong = f"{a * b}", [f"{a * b}", f"{a * b:,}"], [f"{a * b + 1}", f"{a + b}"]
        elif kind < 0.70:
            gold = f"\\frac{{{a}}}{{{c}}}"
            right, wrong = [f"\\dfrac{{{a}}}{{{c}}}", f"{a}/{c}"], [f"\\frac{{{a + 1}}}{{{c}}}", f"{a / c:.2f}"]
        elif kind < 0.79:
            gold = f"{a}\\sqrt{{{b}}}+\\frac{{{c}}}{{7}}"
            right = [f"\\frac{{{c}}}{{7}}+{a}\\sqrt{{{b}}}", f"\\frac{{{c}+{7 * a}\\sqrt{{{b}}}}}{{7}}"]
            wrong = [f"{a}\\sqrt{{{b + 1}}}+\\frac{{{c}}}{{7}}", f"{a + c}\\sqrt{{{b}}}"]
        elif kind < 0.85:
            gold = f"({a}, {b}\\sqrt{{{c}}})"
            right, wrong = [f"\\left({a},\\sqrt{{{c}}}\\cdot {b}\\right)"], [f"({b}, {a}\\sqrt{{{c}}})"]
        elif kind < 0.91:
            gold = f"{a}, {b}, -{c}\\pi"
            right, wrong = [f"-{c}\\pi, {b}, {a}"], [f"{a}, {b}, {c}\\pi"]
        elif kind < 0.97:
            gold = f"{a}x^2+{b}x-{c}"
            right, wrong = [f"{b}x-{c}+{a}x^{{2}}"], [f"{a}x^2-{b}x-{c}", f"{a}x^2+{b}x"]
        else:
            gold, right, wrong = f"{a}\\%", [f"\\frac{{{a}}}{{100}}"], [f"\\frac{{{a}}}{{10}}"]
        tasks += [(gold, respond(pick.choice(right if pick.random() < 0.5 else wrong))) for _ in range(rollouts)]
    return tasks


# --- the graders -----------------------------------------------------------------------------------------------------


def make_grader(name: str) -> Callable[[str, str], bool]:
    """A function (gold, response) -> right or not.  The others get the gold in the form they ask for."""
    if name == "ours":
        from rewards.math import compute_score

        return lambda gold, response: (
            compute_score("benchmark", response, gold, deadline_s=DEADLINE_S)["status"] == "correct"
        )
    if name == "trl":
        from trl.rewards import accuracy_reward

        return lambda gold, response: accuracy_reward([[{"content": response}]], [f"${gold}$"])[0] == 1.0
    if name == "verl math_verify":
        from verl.utils.reward_score import math_verify

        return lambda gold, response: math_verify.compute_score(response, gold) == 1.0
    if name == "verl prime_math":
        from verl.utils.reward_score import prime_math

        return lambda gold, response: bool(prime_math.compute_score(response, gold)[0])
    if name == "verl math_dapo":
        from verl.utils.reward_score import math_dapo

        return lambda gold, response: bool(math_dapo.compute_score(response, gold)["acc"])
    raise SystemExit(f"grader={name!r}: expected one of {Settings().graders}")


# Those that protect themselves by signals work in a main thread only.
THREADED = ("ours", "verl math_verify")


def serve(settings: Settings) -> None:
    """The worker: reads tasks (one JSON list), grades warm-up tasks, then answers a line a verdict."""
    grade = make_grader(settings.grader)
    request = json.loads(sys.stdin.buffer.readline())
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # graders print
    lock = threading.Lock()

    def one(index: int, gold: str, response: str, report: bool = True) -> None:
        begin = time.perf_counter()
        try:
            verdict = grade(gold, response)
        except Exception as error:
            verdict = type(error).__name__
        if report:
            with lock:
                replies.write(json.dumps([index, verdict, time.perf_counter() - begin]) + "\n")

    def warm_up() -> None:
        run(lambda task: one(-1, *task, report=False), request["warm_up"])

    def run(call: Callable, items: list) -> None:
        if settings.threads == 1:
            list(map(call, items))  # in the main thread, as some graders need it
        else:
            with ThreadPoolExecutor(settings.threads) as threads:
                list(threads.map(call, items))

    if settings.patience_s:
        replies.write(json.dumps(["ready"]) + "\n")
        for index, task in enumerate(request["tasks"]):
            grade_apart(warm_up, lambda index=index, task=task: one(index, *task), settings.patience_s)
    else:
        warm_up()
        replies.write(json.dumps(["ready"]) + "\n")
        run(lambda item: one(item[0], *item[1]), list(enumerate(request["tasks"])))
    replies.flush()
    os._exit(0)  # a pool of hung processes would keep the interpreter waiting


def grade_apart(warm_up: Callable[[], object], call: Callable[[], object], patience_s: float) -> None:
    """Make a call in a warm fork of this process; kill the fork, with all it started, when it takes ``patience_s``."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        try:
            warm_up()
            os.write(write, b"w")
            call()
        finally:
            os._exit(0)
    os.close(write)
    os.read(read, 1)  # warm (or dead)
    os.close(read)
    end = time.monotonic() + patience_s
    while time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def worker_environment(settings: Settings) -> dict[str, str]:
    """Environment of a worker: quiet, and with TRL's directory on its path where one is given."""
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", VERL_LOGGING_LEVEL="ERROR")
    if settings.trl:
        environment["PYTHONPATH"] = os.pathsep.join([settings.trl, environment.get("PYTHONPATH", "")])
    return environment


def why_absent(settings: Settings, name: str) -> str:
    """Why a grader cannot be measured here, "" where it can: asked of a fresh interpreter, as it will run."""
    code = f"from benchmarks.grading import make_grader; make_grader({name!r})"
    environment = worker_environment(settings)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    return "" if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


@dataclass
class Outcome:
    """Verdicts by task (absent: none came), seconds each took, and the whole run's seconds."""

    verdicts: dict[int, object] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    wall_s: float = 0.0


def measure(
    settings: Settings, name: str, tasks: list[Task], threads: int, limit_s: float, warm_up=(), patience_s: float = 0
) -> Outcome:
    """Let a fresh worker grade ``tasks``; kill it ``limit_s`` after it was ready.

    ``patience_s``: grade each task in a fork of the worker, killed after so long, so that one hang costs one verdict.
    """
    environment = worker_environment(settings)
    words = [
        "role=worker",
        f"grader={name}",
        f"threads={threads if name in THREADED else 1}",
        f"patience_s={patience_s}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.grading", *words],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    process.stdin.write(json.dumps({"tasks": tasks, "warm_up": list(warm_up)}).encode() + b"\n")
    process.stdin.flush()
    outcome, buffer, begin, end = Outcome(), b"", None, time.monotonic() + 300
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while time.monotonic() < end:
                if not selector.select(max(end - time.monotonic(), 0)):
                    break
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for reply in map(json.loads, lines):
                    if reply == ["ready"]:
                        begin = time.monotonic()
                        end = begin + limit_s
                    else:
                        outcome.verdicts[reply[0]], outcome.seconds[reply[0]] = reply[1:]
        outcome.wall_s = time.monotonic() - (begin or time.monotonic())
    finally:  # Ctrl-C too: a grader that hangs would hang on
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return outcome


# --- the measurements ------------------------------------------------------------------------------------------------


def agreement(settings: Settings, name: str) -> dict:
    """Verdicts against the labels of the case files: right ones, wrong answers accepted, right answers refused."""
    lines = [line for file in settings.cases.split(",") for line in Path(file).read_text().splitlines()]
    cases = [json.loads(line) for line in lines]
    tasks = [(case["gold"], respond(case["answer"])) for case in cases]
    outcome = measure(settings, name, tasks, threads=2, limit_s=600, warm_up=[("1", respond("\\frac{1}{1}"))])
    accepted = sum(outcome.verdicts.get(i) is True and not case["equal"] for i, case in enumerate(cases))
    refused = sum(outcome.verdicts.get(i) is not True and case["equal"] for i, case in enumerate(cases))
    return {
        "agree": f"{len(cases) - accepted - refused}/{len(cases)}",
        "wrong accepted": accepted,
        "right refused": refused,
    }


def survival(settings: Settings, name: str) -> dict:
    """Hostile answers one at a time: a verdict (and not "right") within the deadline + 0.5 s."""
    cases = hostile()[:: 5 if settings.quick else 1]
    tasks = [(gold, respond(answer)) for _, gold, answer in cases]
    warm_up = [("1", respond("\\frac{1}{1}")), ("\\sqrt{2}", respond("\\sqrt{3}"))]
    outcome = measure(settings, name, tasks, 1, 60.0 * len(tasks), warm_up, patience_s=20.0)
    in_time = [i for i, seconds in outcome.seconds.items() if seconds <= DEADLINE_S + BAR["late_s"]]
    survived = sum(outcome.verdicts[i] is False for i in in_time)
    lost = ", ".join(cases[i][0] for i in range(len(cases)) if i not in in_time)
    if lost:
        print(f"  {name}: no verdict in time on {lost}", file=sys.stderr)
    slowest = max(outcome.seconds.values(), default=0.0)
    hung = len(tasks) - len(outcome.verdicts)
    return {"hostile in time": f"{survived}/{len(tasks)}", "slowest s": f"{slowest:.2f}", "none in 20 s": hung}


def behind_towers(settings: Settings, name: str) -> dict:
    """All at once, 40 towers and endless sums first: how many of 400 right answers get their due."""
    front, count = (40, 400) if not settings.quick else (4, 40)
    correct = [task for task in ordinary(4 * count, 1, seed=5) if task[1] == respond(task[0])][:count]
    correct += [(str(n), respond(str(n))) for n in range(count - len(correct))]
    # Spelled differently from their gold, so that they need algebra: text alone would be too easy a test.
    correct = [(f"\\sqrt{{{n * n + 1}}}", respond(f"\\sqrt{{1+{n}^2}}")) if n % 2 else t for n, t in enumerate(correct)]
    limit = 240.0
    ahead = towers(front // 2) + sums(front // 2)
    outcome = measure(settings, name, ahead + correct, front + count, limit, warm_up=correct[:2])
    right = sum(outcome.verdicts.get(front + i) is True for i in range(count))
    return {"right behind towers": f"{right}/{count}", "took s": round(outcome.wall_s, 1)}


def speed(settings: Settings, name: str) -> dict:
    """Gradings a second once warm, two threads: an ordinary mix (with its repetitions), and algebra without any."""
    scale = 1 if not settings.quick else 4
    mixed = ordinary(300 // scale, 8, seed=1)
    algebra = ordinary(600 // scale, 1, seed=2, algebra_only=True)
    row = {}
    for label, tasks in (("mix /s", mixed), ("algebra /s", algebra)):
        outcome = measure(settings, name, tasks, 4, 240, warm_up=ordinary(40, 1, seed=3, algebra_only=True))
        row[label] = round(len(outcome.verdicts) / outcome.wall_s, 1) if outcome.wall_s else 0.0
    return row


def lateness(quick: bool) -> float:
    """Seconds by which the latest verdict of ours on hostile answers is past its own deadline (below 0: none is)."""
    from rewards.extract import extract_answer
    from rewards.grader import Grader

    # No limit of CPU time, so that the deadline decides; more items at a time than children, so that some have to wait.
    deadline_s, grader = 1.0, Grader(deadline_s=1.0, cpu_s=60.0, children=2)
    cases = [(gold, extract_answer(respond(answer))) for _, gold, answer in hostile()[:: 5 if quick else 1]]
    try:
        with ThreadPoolExecutor(4) as threads:
            verdicts = list(threads.map(lambda case: grader.grade(case[0], case[1] or ""), cases))
    finally:
        grader.close()
    return max(verdict.seconds for verdict in verdicts) - deadline_s


def memory(gradings: int) -> dict:
    """Resident memory of this process in MiB along ``gradings`` distinct gradings by ours, one in three by algebra.

    With a small cache, so that its filling up is not taken for a leak.
    """
    from rewards.math import compute_score

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def grade(task: Task) -> str:
        return compute_score("memory", task[1], task[0], cache_size=100)["status"]

    marks, counts, begin = {}, Counter(), time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        for block in range(10):
            tasks = []
            for number in range(block * gradings // 10, (block + 1) * gradings // 10):
                if number % 3:
                    tasks.append((str(number), respond(str(number + number % 2))))
                else:
                    tasks.append((f"{number + 2}\\sqrt{{2}}", respond(f"\\sqrt{{2}}\\cdot {number + 2 + number % 2}")))
            counts.update(threads.map(grade, tasks))
            marks[(block + 1) * gradings // 10] = round(resident(), 1)
    values = list(marks.values())
    return {"MiB": marks, "growth after the first tenth": round(values[-1] - values[0], 1), "statuses": dict(counts),
            "gradings/s": round(gradings / (time.perf_counter() - begin), 1)}  # fmt: skip


def main(settings: Settings) -> int:
    """Run everything, print tables; 0 where ours meets its bar."""
    names = settings.graders.split(",")
    for name in list(names):
        if reason := why_absent(settings, name):
            names.remove(name)
            print(f"{name}: not measured, {reason}" + ("; see trl=DIR" if name == "trl" else ""))
    load = [f"{value:.1f}" for value in os.getloadavg()]
    print(f"{os.cpu_count()} cores, load average {' '.join(load)} (1, 5, 15 min) at the start\n", flush=True)
    table: dict[str, dict] = {}
    for name in names:
        table[name] = {}
        for part in (agreement, survival, behind_towers, speed):
            if part.__name__ in settings.only.split(","):
                table[name] |= part(settings, name)
            print(f"  {name}: {table[name]}", file=sys.stderr)
    columns = list(next(iter(table.values()), {}))
    print("| grader | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")
    if set(settings.only.split(",")) != set(Settings().only.split(",")) or "ours" not in table:
        return 0
    grown = memory(settings.gradings if not settings.quick else settings.gradings // 20)
    print(f"\nmemory of ours over {sum(grown['statuses'].values())} gradings: {json.dumps(grown)}")
    late = lateness(settings.quick)
    print(f"latest verdict of ours: {late:+.2f} s from its deadline; load average now {os.getloadavg()[0]:.1f}")
    ours = table["ours"]
    right, wanted = ours["right behind towers"].split("/")
    survived, hostile_count = ours["hostile in time"].split("/")
    failures = [
        reason
        for failed, reason in (
            (right != wanted, f"{right} of {wanted} right answers behind towers"),
            (survived != hostile_count, f"{survived} of {hostile_count} hostile answers in time"),
            (ours["mix /s"] < BAR["gradings_per_s"], f"{ours['mix /s']} gradings/s, bar {BAR['gradings_per_s']}"),
            (late > BAR["late_s"], f"a verdict came {late:.2f} s after its deadline"),
            (set(grown["statuses"]) > {"correct", "wrong"}, f"statuses {grown['statuses']} among ordinary gradings"),
            (grown["growth after the first tenth"] > BAR["memory_mib"], f"memory grew {grown}"),
        )
        if failed
    ]
    print("bar: " + ("met" if not failures else "MISSED: " + "; ".join(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    chosen = parse_settings(sys.argv[1:])
    if chosen.role == "worker":
        serve(chosen)
    else:
        sys.exit(main(chosen))
