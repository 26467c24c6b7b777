"""Configurations, composed as the command line does."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from config import CONFIG_DIR
from recipes.entry import resolve

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str, run_dir: Path | None = None) -> DictConfig:
    """The configuration that the command line would train with, resolved."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        where = [f"hydra.run.dir={run_dir}", f"hydra.runtime.output_dir={run_dir}"] if run_dir else []
        cfg = compose("train", overrides=[*overrides, *where], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        plain = cfg.copy()
        del_hydra(plain)
        return resolve(plain)


def del_hydra(cfg: DictConfig) -> None:
    with open_dict(cfg):
        cfg.pop("hydra", None)
