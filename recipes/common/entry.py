"""The command line of every method: `recipes/<method>/main.py` calls `main("<method>")` and nothing else.

The method's name becomes the Hydra override ``method=<name>``, so ``config/method/<name>.yaml`` is the bundle, and
all of Hydra works as usual: overrides, ``--cfg job``, ``-m`` for sweeps, ``hydra.run.dir=`` to choose or resume a run
directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

import config as config_package
from recipes.common.paths import make_absolute

CONFIG_DIR = Path(config_package.__file__).resolve().parent


def main(method: str, **groups: str) -> None:
    """Run the command line for a method; exits the process with 0, 1 (failed), 2 (refused) or 130 (stopped).

    groups: other choices, such as the paper's experiment, for what the command line leaves open.
    """
    for group, choice in {"method": method, **groups}.items():
        if not any(argument.startswith(f"{group}=") for argument in sys.argv[1:]):
            sys.argv.append(f"{group}={choice}")
    # The resolver for the embedded experiment's paths must be there before Hydra composes.
    import recipes.common.settings  # noqa: F401

    hydra.main(config_path=str(CONFIG_DIR), config_name="train", version_base="1.3")(_job)()


def _job(cfg: DictConfig) -> None:
    from recipes.common import settings

    resolved = resolve(cfg)
    if cfg.dry_run:  # shown first: the numbers help with what is wrong
        from recipes.common.forecast import show

        show(resolved)
    try:
        settings.check(resolved, gpus=count_gpus())
    except settings.SettingsError as error:
        print(f"This configuration was not started:\n{error}", file=sys.stderr)
        sys.exit(2)
    if cfg.dry_run:
        return
    from recipes.common.launch import launch

    code = launch(resolved)
    if code:
        sys.exit(code)


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations and relative paths: Ray's processes lack Hydra's resolvers and this folder."""
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    resolved.self_distill.run_dir = str(Path(resolved.self_distill.run_dir).resolve())
    resolved.trainer.default_local_dir = f"{resolved.self_distill.run_dir}/checkpoints"
    make_absolute(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved


def count_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
