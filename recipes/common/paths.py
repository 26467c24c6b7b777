"""The configuration's paths, made absolute, so that they mean the same in every process of a run.

On a running Ray cluster the trainer works in the directory of Ray's node process and not in the user's.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

# Files and folders, or lists of them.
FILES = (
    "data.train_files",
    "data.val_files",
    "data.custom_cls.path",
    "self_distill.exposure.probe_file",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
    "trainer.resume_from_path",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
)
# Files and folders where there is one of that name; else names on the hub, or files of verl's.
FILES_OR_NAMES = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "data.tool_config_path",
    "data.function_tool_path",
    "data.tokenizer",
    "reward.custom_reward_function.reward_kwargs.tokenizer",
)


def make_absolute(cfg: DictConfig, base: Path | None = None) -> None:
    """Replace every relative path of a resolved configuration, in place; ``~`` is the home directory.

    Addresses (``pkg://``, ``hdfs://``) stay, and so do values that are no paths, which the checks report.

    Args:
        cfg: the resolved configuration.
        base: where relative paths begin; the working directory by default.
    """
    base = base or Path.cwd()

    def absolute(value: Any, must_exist: bool) -> Any:
        if isinstance(value, list | ListConfig):
            return [absolute(item, must_exist) for item in value]
        if not isinstance(value, str) or not value:
            return value
        address, _, rest = value.rpartition("file://")  # verl's other way to say that a module is a file
        if address or "://" in rest:
            return value
        path = base / Path(rest).expanduser()
        return str(path) if not must_exist or path.exists() else value

    with open_dict(cfg):
        for keys, must_exist in ((FILES, False), (FILES_OR_NAMES, True)):
            for key in keys:
                with suppress(ConfigTypeError):  # a list or a text where keys should be, which the checks report
                    value = OmegaConf.select(cfg, key, default=None)
                    if value is not None:
                        OmegaConf.update(cfg, key, absolute(value, must_exist))
