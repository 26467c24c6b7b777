"""Configurations, composed as the command line does."""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from config import CONFIG_DIR
from recipes.entry import resolve

ROOT = Path(__file__).resolve().parents[2]
VALUE = re.compile(r"(?!hydra\.)\w+(\.\w+)+=")  # of a key that is there; no group, nothing added or taken away
RUN_DIR = "/directory-of-the-run"  # stands in what is kept, for the one that a test asks for


def composed(*overrides: str, run_dir: Path) -> DictConfig:
    """The configuration that the command line would train with, resolved; composed once for equal overrides."""
    cfg = cast(DictConfig, pickle.loads(_composed(overrides, Path.cwd())))
    _replace(cfg, str(run_dir))
    return cfg


@functools.cache
def _composed(overrides: tuple[str, ...], started_in: Path) -> bytes:
    """Pickled; where it is started counts, because relative paths are resolved there."""
    values = [override for override in overrides if VALUE.match(override)]
    cfg = cast(DictConfig, pickle.loads(_chosen(tuple(override for override in overrides if override not in values))))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    HydraConfig.instance().set_config(cfg)
    del_hydra(cfg)
    return pickle.dumps(resolve(cfg))


@functools.cache
def _chosen(overrides: tuple[str, ...]) -> bytes:
    """What Hydra composes before it comes to values, which is most of the time that it takes."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        where = [f"hydra.run.dir={RUN_DIR}", f"hydra.runtime.output_dir={RUN_DIR}"]
        return pickle.dumps(compose("train", overrides=[*overrides, *where], return_hydra_config=True))


def _replace(node: DictConfig, run_dir: str) -> None:
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            _replace(value, run_dir)
        elif isinstance(value, str) and RUN_DIR in value:
            node[key] = value.replace(RUN_DIR, run_dir)


def del_hydra(cfg: DictConfig) -> None:
    with open_dict(cfg):
        cfg.pop("hydra", None)
