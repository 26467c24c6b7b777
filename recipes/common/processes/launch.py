"""From a checked configuration to a running, watched and cleanly ended training run.

The user's process stays outside the work: it redirects everything that Ray and verl print into ``train.log``, starts
verl's `run_ppo`, and shows the run from the files it writes.  The first Ctrl-C or SIGTERM asks the run to save and end
after its step; the second ends it at once.  Whatever happens, Ray is shut down, and if this process is killed the
reaper ends what it started.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from recipes.common.checks.errors import SettingsError
from recipes.common.method import Method
from recipes.common.processes.failure import explain
from recipes.common.processes.reaper import reaper
from recipes.common.record import run_dir as files
from recipes.common.record.checkpoints import nothing_left
from recipes.common.record.console import RunConsole

# A running cluster lacks the environment of whoever starts a run on it. What is passed on is written into config.yaml
# too, so no variable that may hold a secret belongs here.
PASSED_ON = (
    *("WANDB_MODE", "WANDB_ENTITY", "WANDB_NOTES", "SWANLAB_MODE", "SWANLAB_LOG_DIR", "TRACKIO_DIR"),
    *("HF_HOME", "HF_HUB_OFFLINE"),
)
PASSED_ON_PREFIXES = ("NCCL_", "VLLM_")

COLLAPSED = 3  # exit code of a run that `self_distill.collapse.stop` ended


def launch(cfg: DictConfig, method: Method, *, report: Callable[[Path], str | None]) -> int:
    """Train as configured.

    Args:
        cfg: the resolved and checked configuration; Ray's settings are changed in place.
        method: what it asks to learn, read from it.
        report: writes the run's report when it is over; returns where it is, or None where there is nothing to report.

    Returns:
        The process's exit code: 0 done, 1 failed, 2 refused by verl, 3 ended because it collapsed, 130 stopped at once.
    """
    run_dir = Path(cfg.self_distill.run_dir).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / files.STOP).unlink(missing_ok=True)
    resumed_from = files.checkpointed_step(run_dir)
    environment = process_environment(cfg, run_dir)
    os.environ.update(environment)
    with open_dict(cfg):
        cfg.ray_kwargs.ray_init.runtime_env.env_vars = environment
        if "RAY_ADDRESS" in os.environ:
            for key in ("num_cpus", "num_gpus", "object_store_memory", "include_dashboard"):
                cfg.ray_kwargs.ray_init.pop(key, None)  # a running cluster has its own
        else:
            cfg.ray_kwargs.ray_init.address = "local"  # never join somebody else's cluster by accident
    files.write_atomically(run_dir / files.CONFIG, OmegaConf.to_yaml(cfg))

    began_at = (run_dir / files.LOG).stat().st_size if (run_dir / files.LOG).exists() else 0
    with output_into(run_dir / files.LOG) as terminal:
        console = RunConsole(cfg, method, run_dir, terminal, resumed_from=resumed_from)
        code, ending, reason = 0, files.DONE, ""
        with console, _signals(run_dir, console), reaper():
            try:
                if not nothing_left(cfg, resumed_from):
                    _run(cfg)
                ending = files.STOPPED if console.ended_early else files.DONE
            except KeyboardInterrupt:
                code, ending = 130, files.STOPPED
                console.stopped_at_once()
            except SettingsError as error:
                code, ending, reason = 2, files.FAILED, str(error)
                console.failed(reason)
            except Exception as error:
                code, ending, reason = 1, files.FAILED, explain(error, run_dir / files.LOG, began_at)
                console.failed(reason)
        if code == 0:
            console.summary()
            if collapsed := console.collapse():
                code, ending, reason = COLLAPSED, files.STOPPED, collapsed
        files.set_stage(run_dir, ending, files.read_stage(run_dir).get("step", 0), reason)
        _report(report, run_dir, console)
    return code


def _report(report: Callable[[Path], str | None], run_dir: Path, console: RunConsole) -> None:
    """Write the run's report; a run is not a failure because its report is."""
    try:
        written = report(run_dir)
    except Exception as error:
        traceback.print_exc()  # into train.log
        written = f"could not be written ({type(error).__name__}: {error}); details: {run_dir / files.LOG}"
    if written is not None:
        console.report(written)


def process_environment(cfg: DictConfig, run_dir: Path) -> dict[str, str]:
    """The environment that every process of the run gets beside what it inherits.

    Args:
        cfg: the resolved configuration.
        run_dir: where TensorBoard and Weights & Biases write.
    """
    environment = {
        "TENSORBOARD_DIR": str(run_dir / "tensorboard"),
        "WANDB_DIR": str(run_dir),
        "WANDB_NOTES": f"report: {run_dir / files.REPORT}",
        "SWANLAB_LOG_DIR": str(run_dir / "swanlog"),
        "TRACKIO_DIR": str(run_dir / "trackio"),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "HYDRA_FULL_ERROR": "1",
        **{k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith(PASSED_ON_PREFIXES)},
    }
    if "wandb" in ([cfg.trainer.logger] if isinstance(cfg.trainer.logger, str) else cfg.trainer.logger):
        # A run that is started again goes on in the same run of Weights & Biases.
        environment |= {"WANDB_RUN_ID": files.wandb_id(run_dir), "WANDB_RESUME": "allow"}
    if cfg.trainer.device == "cpu":
        environment |= {
            "VERL_PLATFORM": "cpu",
            "VERL_USE_EXTERNAL_MODULES": "workers.cpu.platform",
            # One thread for each process: there are more processes than cores, and the matrices are small.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # TransferQueue would ask torch for eight around every transfer, and warn of it thousands of times a run.
            "TQ_NUM_THREADS": os.environ.get("TQ_NUM_THREADS", "1"),
        }
    return environment


def _run(cfg: DictConfig) -> None:
    if cfg.trainer.device == "cpu":
        # Hydra has imported verl to find its configuration, before the environment could name this module.
        import workers.cpu.platform  # noqa: F401
    import ray
    from verl.trainer.main_ppo import run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from recipes.common.processes.death_watch import deaths_watched
    from recipes.common.processes.fork_server import fork_server
    from recipes.common.processes.task_runner import SelfDistillTaskRunner

    try:
        validate_config(cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    except (AssertionError, ValueError) as error:
        raise SettingsError([str(error)]) from error
    with ExitStack() as stack:
        if cfg.trainer.device == "cpu" and "RAY_ADDRESS" not in os.environ:
            with open_dict(cfg):
                cfg.ray_kwargs.ray_init.runtime_env.py_executable = stack.enter_context(fork_server())
        stack.callback(ray.shutdown)
        with deaths_watched():
            run_ppo(cfg, task_runner_class=SelfDistillTaskRunner)


@contextmanager
def output_into(log: Path) -> Iterator[int]:
    """Send the process's output, and that of whatever it starts, to a file while the block runs.

    Args:
        log: is appended to.

    Returns:
        A context manager that gives a descriptor of the terminal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, errors = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(terminal, 1)
        os.dup2(errors, 2)
        os.close(terminal)
        os.close(errors)


@contextmanager
def _signals(run_dir: Path, console: RunConsole) -> Iterator[None]:
    """First SIGINT or SIGTERM: ask the trainer to save and end. Second: KeyboardInterrupt here, now.

    SIGUSR1 and SIGUSR2 are how a batch system says that time is up. Where somebody handles them (submitit, which queues
    the job again), the run ends with a checkpoint first, and they get theirs afterwards.
    """
    owed: list[tuple[Any, int]] = []

    def handle(number: int, frame: object) -> None:
        if (run_dir / files.STOP).exists():
            raise KeyboardInterrupt
        (run_dir / files.STOP).touch()
        console.stopping()

    def handle_later(number: int, frame: object) -> None:
        owed.append((previous[number], number))
        (run_dir / files.STOP).touch()
        console.stopping()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        if callable(signal.getsignal(number)):
            previous[number] = signal.signal(number, handle_later)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        (run_dir / files.STOP).unlink(missing_ok=True)
        for handler, number in owed[:1]:
            handler(number, None)
