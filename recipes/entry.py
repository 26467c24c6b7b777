"""The command line of every method: `recipes/<method>/main.py` calls `main("<method>")` and nothing else.

The method's name becomes the Hydra override ``method=<name>``, so ``config/method/<name>.yaml`` is the bundle, and all
of Hydra works as usual: overrides, ``--cfg job``, ``-m`` for sweeps, ``hydra.run.dir=`` to choose or resume a run
directory.  A method without a main of its own starts with ``python -m recipes.entry method=<name>``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from config import CONFIG_DIR
from recipes.common.paths import make_absolute

# What a command line may still say, and what it is called now.
RENAMED = {
    "method=atesd_ppo": "method=atesd_sampled",
    "method=pw_opsd_ppo": "method=pw_opsd_sampled",
}


def main(method: str | None = None, **groups: str) -> None:
    """Run the command line for a method; exits the process with 0, 1 (failed), 2 (refused) or 130 (stopped).

    Args:
        method: the bundle for a command line that names none; None where it must.
        groups: other choices, such as the paper's experiment, for what the command line leaves open.
    """
    given = sys.argv[1:]
    for old in (argument for argument in given if argument in RENAMED):
        sys.exit(_refused(f"- {old}: it is called {RENAMED[old]} now"))
    choices = {"method": method, **groups}
    chosen = [f"{k}={v}" for k, v in choices.items() if v and not any(a.startswith(f"{k}=") for a in given)]
    sys.argv[1:] = [*chosen, *given]  # before the user's, whose last argument may be an option's
    hydra.main(config_path=str(CONFIG_DIR), config_name="train", version_base="1.3")(_job)()


def _job(cfg: DictConfig) -> None:
    from recipes.common import method as methods
    from recipes.common.checks import check
    from recipes.common.checks.errors import SettingsError
    from recipes.common.checks.machine import count_gpus

    resolved = resolve(cfg)
    method = methods.read(resolved)
    if cfg.dry_run:  # shown first: the numbers help with what is wrong
        from recipes.common.plan.forecast import show

        show(resolved, method)
    try:
        check(resolved, method, gpus=count_gpus())
    except SettingsError as error:
        sys.exit(_refused(str(error)))
    if cfg.dry_run:
        return
    from recipes.common.processes.launch import launch

    code = launch(resolved, method, report=report)
    if code:
        sys.exit(code)


def _refused(problems: str) -> int:
    print(f"This configuration was not started:\n{problems}", file=sys.stderr)
    return 2


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations and relative paths: Ray's processes lack Hydra's resolvers and this folder."""
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    resolved.self_distill.run_dir = str(Path(resolved.self_distill.run_dir).resolve())
    resolved.trainer.default_local_dir = f"{resolved.self_distill.run_dir}/checkpoints"
    rollout, data = resolved.actor_rollout_ref.rollout, resolved.data
    if (
        rollout.max_model_len is None
    ):  # verl would take the model's maximum, and vLLM want a cache for one such sequence
        rollout.max_model_len = data.max_prompt_length + data.max_response_length
    make_absolute(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved


def report(run_dir: Path) -> str | None:
    """Write a run's report; returns its path, or None where the run ended before its first step."""
    from recipes.report.page import write_report
    from recipes.report.run_data import NotARun

    try:
        return str(write_report(run_dir))
    except NotARun:
        return None


if __name__ == "__main__":
    main()
