"""What a failed run says: the first exception of its workers and its line, not what came of it."""

from __future__ import annotations

import contextlib

from recipes.common.processes.failure import explain, first_of_workers, root_cause

WORKER, RUNNER = "\x1b[36m(WorkerDict pid=11)\x1b[0m ", "\x1b[36m(TaskRunner pid=7, ip=10.0.0.1)\x1b[0m "
OLD = f"{WORKER}Traceback (most recent call last):\n{WORKER}ValueError: of the run before\n"
LOG = (
    "(raylet) warning\n"
    f"{WORKER}UserWarning: nothing of it\n"
    f"{WORKER}Traceback (most recent call last):\n"
    f"{RUNNER}step 3\n"
    f'{WORKER}  File "worker.py", line 5, in step\n'
    f"{RUNNER}Traceback (most recent call last):\n"
    f'{RUNNER}  File "runner.py", line 9\n'
    f"{RUNNER}RuntimeError: the worker is gone; lower gpu_memory_utilization\n"
    f"{WORKER}    raise KeyError(name)\n"
    f"{WORKER}KeyError: 'reward' [repeated 3x across cluster] (Ray deduplicates logs)\n"
)


def test_the_first_is_the_one_that_began_first(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(OLD + LOG)
    first = first_of_workers(log, offset=len(OLD.encode()))
    assert (first.line, first.process, first.text) == (5, "WorkerDict pid=11", "KeyError: 'reward'")
    assert first_of_workers(log).text == "ValueError: of the run before"
    log.write_text("nothing\n(TaskRunner pid=7) no traceback\n")
    assert first_of_workers(log) is None


def test_what_is_said_of_it(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    said = {}
    with log.open("a") as target, contextlib.redirect_stderr(target):
        for name, error in (("other", RuntimeError("no rollouts came")), ("same", KeyError("reward"))):
            try:
                raise error
            except Exception as caught:
                said[name] = explain(caught, log)
    assert said["other"].splitlines() == [
        "KeyError: 'reward'", "(WorkerDict pid=11, line 3 of train.log)",
        "which ended in: RuntimeError: no rollouts came (line 11)",
    ]  # fmt: skip
    assert said["same"].splitlines() == ["KeyError: 'reward'", "(WorkerDict pid=11, line 3 of train.log)"]
    lines = log.read_text().splitlines()
    assert lines[10].startswith("Traceback") and any(line == "RuntimeError: no rollouts came" for line in lines)


def test_without_a_worker_the_own_traceback_is_named(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("one\ntwo\n")
    with log.open("a") as target, contextlib.redirect_stderr(target):
        said = explain(ValueError("of ours"), log)
    assert said == "ValueError: of ours\n(line 3 of train.log)"


def test_the_cause_within_rays_message():
    text = (
        'ray::TaskRunner.run() (pid=1, ip=1)\n  File "a.py", line 1, in run\n    step()\n'
        "ray.exceptions.RayTaskError(TypeError): ray::WorkerDict.init() (pid=2, ip=1)\n"
        "  File \"b.py\", line 2, in init\n    build(**options)\nTypeError: no such option 'nonsense'\nuse another"
    )
    assert root_cause(RuntimeError(text)) == "TypeError: no such option 'nonsense'\nuse another"
    assert root_cause(ValueError()) == "ValueError"
