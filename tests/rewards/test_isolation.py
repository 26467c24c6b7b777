"""Grading under attack: hostile answers, dead processes, forks, threads, event loops, Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.grading import hostile, sums
from rewards.extract import extract_answer
from rewards.grader import Grader
from rewards.math import compute_score

ROOT = Path(__file__).resolve().parents[2]
SUMS = [(gold, extract_answer(response)) for gold, response in sums(8)]  # they end at a limit only
RIGHT = ("3\\sqrt{2}", "\\sqrt{18}")
SLACK_S = 0.5


@pytest.fixture
def grader():
    made = []

    def make(**options) -> Grader:
        made.append(Grader(**{"deadline_s": 1.0, "children": 2, **options}))
        made[-1].grade("\\sqrt{3}", "\\sqrt{5}")  # warm
        return made[-1]

    yield make
    for each in made:
        each.close()


def processes_of(grader: Grader) -> list[int]:
    """The nursery's process id, then its children's."""
    nursery = grader._pool._nursery._process.pid
    return [nursery, *(int(pid) for pid in Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split())]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_every_hostile_answer_gets_a_verdict_in_time_and_never_a_reward(grader):
    small = grader(deadline_s=0.5, children=3)
    answers = [(family, gold, extract_answer(f"\\boxed{{{answer}}}")) for family, gold, answer in hostile()]
    with ThreadPoolExecutor(3) as threads:
        graded = [(family, threads.submit(small.grade, gold, answer)) for family, gold, answer in answers if answer]
        for family, verdict in graded:
            verdict = verdict.result(timeout=60)
            assert verdict.status in ("timeout", "wrong", "error"), family
            assert verdict.seconds <= 0.5 + SLACK_S, family
    assert small.counts["timeout"] >= 3  # endless sums, at least: else this test attacks nothing
    assert small.grade(*RIGHT).status == "correct"


def test_an_endless_sum_ends_at_its_cpu_limit(grader):
    verdict = grader(deadline_s=60.0, cpu_s=0.5).grade(*SUMS[0])
    assert verdict.status == "timeout"
    assert 0.45 < verdict.seconds < 30.0


def test_a_busy_machine_is_no_reason_to_give_up(grader):
    patient = grader(deadline_s=60.0, cpu_s=1.0, children=1)
    pids = processes_of(patient)[1:]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # gets no CPU at all for longer than its CPU limit
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(patient.grade, *RIGHT)
        time.sleep(1.5)
        assert not future.done()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert future.result().status == "correct"


def test_an_endless_sum_is_a_timeout_not_a_wrong_answer():
    result = compute_score("t", f"\\boxed{{{SUMS[0][1]}}}", "6", deadline_s=0.5, timeout_value=-0.25)
    assert (result["status"], result["timeout"], result["acc"], result["score"]) == ("timeout", 1.0, 0.0, -0.25)


def test_waiting_behind_endless_sums_costs_no_verdict(grader):
    one = grader(children=1)
    with ThreadPoolExecutor(8) as threads:
        front = [threads.submit(one.grade, *endless) for endless in SUMS[:3]]
        time.sleep(0.2)
        begin = time.monotonic()
        behind = [threads.submit(one.grade, f"\\sqrt{{{n}}}", f"\\frac{{{n}}}{{\\sqrt{{{n}}}}}") for n in (7, 11, 13)]
        assert [future.result().status for future in behind] == ["correct"] * 3
        waited = time.monotonic() - begin
        assert [future.result().status for future in front] == ["timeout"] * 3
    assert waited > 1.0  # they did wait longer than their own deadline


def test_the_same_question_at_the_same_time_is_computed_once(grader):
    one = grader(children=1, deadline_s=1.0)
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda _: one.grade(*SUMS[0]), range(8)))
    assert {verdict.status for verdict in verdicts} == {"timeout"}
    assert time.monotonic() - begin < 2.5


def test_a_timeout_is_remembered_the_second_time(grader):
    one = grader(deadline_s=0.3)
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        assert one.grade(*SUMS[0]).status == "timeout"
        seconds.append(time.monotonic() - begin)
    assert seconds[0] >= 0.29 and seconds[1] >= 0.29 and seconds[2] < 0.1


def test_killed_processes_are_replaced(grader):
    one = grader()
    for victims in (lambda pids: pids[1:], lambda pids: pids[:1], lambda pids: pids):
        for pid in victims(processes_of(one)):
            os.kill(pid, signal.SIGKILL)
        number = int(time.monotonic_ns() % 10**6)  # asked never before, so not from the cache
        assert one.grade(f"{number}\\sqrt{{2}}", f"\\sqrt{{2}}\\cdot {number}").status == "correct"


def test_children_killed_while_idle_cost_no_verdict(grader):
    one = grader(children=3, deadline_s=60.0)
    with ThreadPoolExecutor(3) as threads:  # three at once, so that all three are there
        list(threads.map(lambda n: one.grade(f"{n}\\sqrt{{6}}", f"\\sqrt{{6}}\\cdot {n}"), range(2, 30)))
    children = processes_of(one)[1:]
    assert len(children) == 3
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, children)), 10.0)
    assert one.grade("5\\sqrt{7}", "\\sqrt{175}").status == "correct"


def test_a_death_and_a_second_try_share_one_deadline(grader):
    one = grader(children=1, deadline_s=2.0, cpu_s=60.0)
    child = processes_of(one)[1]
    killer = threading.Timer(1.0, os.kill, (child, signal.SIGKILL))
    killer.start()
    verdict = one.grade(*SUMS[0])
    killer.join()
    assert verdict.status == "timeout"
    assert 1.9 < verdict.seconds < 2.0 + SLACK_S


def test_a_child_that_dies_of_its_item_is_an_error_and_leaves_no_trace(grader):
    one = grader(children=1, deadline_s=20.0, cpu_s=20.0)
    done = threading.Event()

    def assassin():
        while not done.wait(0.02):
            for pid in processes_of(one)[1:]:
                if Path(f"/proc/{pid}/wchan").exists():
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=assassin)
    thread.start()
    try:
        verdict = one.grade(*SUMS[0])
    finally:
        done.set()
        thread.join()
    assert (verdict.status, verdict.how) == ("error", "child died")
    assert one.grade(*RIGHT).status == "correct"


def test_children_are_limited_and_bare(grader):
    one = grader(memory_mb=300)
    nursery, child, *_ = processes_of(one)
    limits = Path(f"/proc/{child}/limits").read_text()
    assert str(300 * 2**20) in next(line for line in limits.splitlines() if "address space" in line)
    maps = Path(f"/proc/{nursery}/maps").read_text() + Path(f"/proc/{child}/maps").read_text()
    assert "libtorch" not in maps and "_raylet" not in maps and "numpy" not in maps


def test_plain_answers_start_no_process():
    idle = Grader()
    assert idle.grade("6", "6").status == "correct"
    assert idle.grade("6", "7").status == "wrong"
    assert idle.grade("\\frac{3}{4}", "0.75").status == "correct"
    assert idle._pool._nursery._process is None


def test_nothing_is_left_when_the_parent_is_killed():
    code = (
        f"endless = {SUMS[0]!r}\n"
        "import threading, time\n"
        "from rewards.grader import Grader\n"
        "g = Grader(deadline_s=60, cpu_s=60, children=2)\n"
        "g.grade('\\\\sqrt{3}', '\\\\sqrt{5}')\n"
        "threading.Thread(target=g.grade, args=endless).start()\n"
        "time.sleep(0.5)\n"
        "print(g._pool._nursery._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    nursery = int(parent.stdout.readline())
    children = [int(pid) for pid in Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()]
    assert children and all(map(alive, [nursery, *children]))
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(map(alive, [nursery, *children])), 5.0)


def test_children_die_at_the_deadline_though_the_parent_is_stopped():
    code = (
        f"endless = {SUMS[0]!r}\n"
        "import threading, time\n"
        "from rewards.grader import Grader\n"
        "g = Grader(deadline_s=2, children=2)\n"
        "g.grade('\\\\sqrt{3}', '\\\\sqrt{5}')\n"
        "threading.Thread(target=g.grade, args=endless).start()\n"
        "time.sleep(0.3)\n"
        "print(g._pool._nursery._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        nursery = int(parent.stdout.readline())
        parent.send_signal(signal.SIGSTOP)
        children = [int(pid) for pid in Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()]
        assert children and all(map(alive, children))
        assert wait_until(lambda: not any(map(alive, children)), 6.0)
    finally:
        parent.kill()
        parent.wait()


def test_a_fork_starts_its_own_children():
    options = {"children": 1, "deadline_s": 3.0}  # a grader whose only place is taken at the time of the fork
    busy = threading.Thread(target=compute_score, args=("t", f"\\boxed{{{SUMS[0][1]}}}", "6"), kwargs=options)
    busy.start()
    time.sleep(0.5)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            result = compute_score("t", "\\boxed{\\sqrt{75}}", "5\\sqrt{3}", **options)
            os.write(write, result["status"].encode())
        finally:
            os._exit(0)
    os.close(write)
    assert compute_score("t", "\\boxed{\\sqrt{147}}", "7\\sqrt{3}", **options)["acc"] == 1.0
    busy.join()
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"correct"
    os.close(read)


def test_many_threads_get_the_same_verdicts(grader):
    one = grader(deadline_s=60.0)
    questions = [(f"{n}\\sqrt{{3}}", f"\\sqrt{{{3 * n * n + n % 2}}}") for n in range(2, 42)]
    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(lambda question: one.grade(*question).status, questions))
    assert verdicts == ["wrong" if n % 2 else "correct" for n in range(2, 42)]


def test_inside_an_event_loop():
    async def rollouts() -> list[dict]:
        loop = asyncio.get_running_loop()
        direct = compute_score("t", "\\boxed{2\\sqrt{5}}", "\\sqrt{20}", deadline_s=60.0)
        others = [
            loop.run_in_executor(
                None,
                lambda n=n: compute_score("t", f"\\boxed{{{n}\\sqrt{{5}}}}", f"\\sqrt{{{5 * n * n}}}", deadline_s=60),
            )
            for n in range(3, 13)
        ]
        return [direct, *await asyncio.gather(*others)]

    assert [result["status"] for result in asyncio.run(rollouts())] == ["correct"] * 11


def test_too_many_timeouts_are_warned_of(grader, caplog):
    one = grader(deadline_s=0.2)
    with caplog.at_level(logging.WARNING):
        for endless in SUMS[:3]:
            one.grade(*endless)
        assert not caplog.records  # too few to tell
        for number in range(120):
            one.grade(str(number), str(number))
    assert "not graded within cpu_s=2 and deadline_s=0.2" in caplog.text
    assert one.timeout_rate == pytest.approx(3 / 124)


def test_a_broken_installation_is_said_to_be_one(tmp_path, monkeypatch):
    broken = tmp_path / "math_verify.py"
    broken.write_text("raise ImportError('no such thing')")
    monkeypatch.setattr("rewards.pool._import_path", lambda: os.pathsep.join([str(tmp_path), str(ROOT), *sys.path]))
    from rewards.pool import GradingSetupError

    with pytest.raises(GradingSetupError, match=r"no such thing.*install math-verify"):
        Grader().grade(*RIGHT)


def test_memory_stays_flat(grader):
    one = grader(cache_size=100, deadline_s=60.0)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def batch(start: int, count: int) -> None:
        for n in range(start, start + count):
            one.grade(str(n), str(n + n % 2))
            if n % 50 == 0:
                one.grade(f"{n}\\sqrt{{2}}", f"\\sqrt{{2}}\\cdot {n}")

    batch(0, 2000)
    before = resident()
    batch(2000, 8000)
    assert resident() - before < 8 * 2**20
    assert len(one._cache) <= 100


@pytest.mark.slow
def test_inside_ray_as_verl_calls_it():
    import ray
    from omegaconf import OmegaConf

    ray.init(address="local", num_cpus=1, include_dashboard=False, ignore_reinit_error=True, logging_level="ERROR")
    try:

        @ray.remote(num_cpus=0)
        class Worker:
            """Loads the reward as verl's reward loop does, and calls it from its event loop's threads."""

            def __init__(self):
                from verl.trainer.ppo.reward import get_custom_reward_fn

                function = {"path": "pkg://rewards.math", "name": "compute_score", "reward_kwargs": {"deadline_s": 2.0}}
                self.reward = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))

            async def grade(self, answer: str, gold: str) -> dict:
                loop = asyncio.get_running_loop()
                call = {"data_source": "t", "solution_str": f"\\boxed{{{answer}}}", "ground_truth": gold}
                return await loop.run_in_executor(None, lambda: self.reward(extra_info={}, **call))

        worker = Worker.remote()
        pairs = [(SUMS[0][1], "6"), ("\\sqrt{18}", "3\\sqrt{2}"), ("6", "6"), ("\\sqrt{19}", "3\\sqrt{2}")]
        results = ray.get([worker.grade.remote(*pair) for pair in pairs], timeout=120)
        assert [result["status"] for result in results] == ["timeout", "correct", "correct", "wrong"]
    finally:
        ray.shutdown()
