"""What a run changed: its configuration against the preset of its method and experiment, with each value's source.

The preset is what Hydra composes today for the run's `method` and `experiment`, as the command line would without any
override. Where a value comes from stands as a comment beside it in config/method/*.yaml and config/protocol/*.yaml: a
section of the paper, or "ours".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from yaml.nodes import MappingNode, ScalarNode

from config import CONFIG_DIR
from recipes.common.paths import make_absolute

# Where a run is, not what it does.
_PLACES = (
    *("self_distill.about", "self_distill.run_dir", "trainer.default_local_dir", "ray_kwargs.ray_init", "dry_run"),
    *("model", "data_dir", "compare", "workers"),  # of an evaluation
)
_MODEL_LENGTH = "actor_rollout_ref.rollout.max_model_len"
_LENGTHS = ("data.max_prompt_length", "data.max_response_length")
_SECRET = re.compile(r"(api_?key|secret|password|passwd|(^|_)token)$")
MISSING, NOT_SHOWN = "–", "(not shown)"


class NoPreset(ValueError):
    """The preset of a run cannot be composed."""


@dataclass(frozen=True)
class Setting:
    """A key of the configuration.

    Attributes:
        key: dotted.
        preset: the preset's value as text.
        value: the run's value as text.
        source: the comment beside the preset's value; "" if there is none.
    """

    key: str
    preset: str
    value: str
    source: str

    @property
    def differs(self) -> bool:
        """Whether the run's value is not the preset's."""
        return self.preset != self.value


@dataclass(frozen=True)
class Comparison:
    """A configuration beside its preset.

    Attributes:
        name: the choices that make the preset, as the command line has them.
        changed: every key in which the run departs from it.
        method: every key that the method and the protocol set.
    """

    name: str
    changed: list[Setting]
    method: list[Setting]


def compare_with_preset(directory: Path, config: DictConfig) -> Comparison:
    """Compare a run's configuration with the preset of its method and experiment.

    Args:
        directory: the run directory, in which Hydra wrote down the choices.
        config: the run's configuration, resolved.

    Raises:
        NoPreset: if the run does not say which method and experiment it had, or they do not exist any more.
    """
    choices, started_in = _choices(directory)
    config = OmegaConf.create(OmegaConf.to_container(config))
    make_absolute(config, started_in)  # a run of an older version has them as they were written
    values = flat(config)
    chosen = {group: choices[group] for group in ("method", "experiment")}
    preset = composed("train", _overrides(chosen), values, started_in)
    if preset.get(_MODEL_LENGTH) is None and values.get(_MODEL_LENGTH) == sum(values.get(key) or 0 for key in _LENGTHS):
        values[_MODEL_LENGTH] = None  # the start of the run filled it in (`recipes.entry.resolve`)
    bundle = sourced_values("protocol", choices["protocol"]) if "protocol" in choices else {}
    bundle |= sourced_values("method", choices["method"])
    return _comparison(chosen, preset, values, bundle)


def compare_evaluation(name: str, config: Mapping[str, Any]) -> Comparison:
    """Compare an evaluation's configuration with the preset it was started with.

    Args:
        name: the preset's, a file of config/preset.
        config: the evaluation's configuration, resolved.

    Raises:
        NoPreset: if the preset does not exist any more.
    """
    values = flat(config)
    return _comparison(
        {"preset": name},
        composed("evaluate", _overrides({"preset": name}), values),
        values,
        sourced_values("preset", name),
    )


def _comparison(
    chosen: Mapping[str, str],
    preset: Mapping[str, Any],
    values: Mapping[str, Any],
    bundle: Mapping[str, tuple[Any, str]],
) -> Comparison:
    def setting(key: str) -> Setting:
        # An experiment may have set the key anew, and then the comment is not of this value.
        of_bundle = key in bundle and shown(key, {key: bundle[key][0]}) == shown(key, preset)
        return Setting(key, shown(key, preset), shown(key, values), bundle[key][1] if of_bundle else "")

    keys = [k for k in sorted({*preset, *values}) if not k.startswith(_PLACES)]
    return Comparison(
        name=" ".join(f"{group}={choice}" for group, choice in chosen.items()),
        changed=[s for s in map(setting, keys) if s.differs],
        method=[setting(key) for key in bundle if not key.startswith(_PLACES)],
    )


def sourced_values(group: str, name: str) -> dict[str, tuple[Any, str]]:
    """Every key that a YAML of a group sets, with its value and the comment beside it; those it builds on first.

    Args:
        group: the configuration group, a folder of config.
        name: the choice, a file of it without its suffix.

    Returns:
        Dotted key -> (value, comment; "" if there is none).

    Raises:
        NoPreset: if there is no such file.
    """
    path = CONFIG_DIR / group / f"{name}.yaml"
    if Path(name).name != name or not path.exists():
        raise NoPreset(f"there is no {name!r} in config/{group} any more")
    text = path.read_text(encoding="utf-8")
    found: dict[str, tuple[Any, str]] = {}
    for base in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(base, str) and base != "_self_":  # the others choose from other groups
            found.update(sourced_values(group, base))
    lines = text.splitlines()

    def walk(node: MappingNode, prefix: str) -> None:
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            if isinstance(value, MappingNode):
                walk(value, f"{dotted}.")
            elif dotted != "defaults" and isinstance(value, ScalarNode):
                comment = lines[value.end_mark.line][value.end_mark.column :].partition("#")[2].strip()
                found[dotted] = (yaml.safe_load(value.value) if value.style is None else value.value, comment)

    root = yaml.compose(text)
    if isinstance(root, MappingNode):
        walk(root, "")
    return found


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a configuration; lists, and empty mappings, are values.

    Args:
        config: OmegaConf's, or plain mappings; interpolations stay as they are.
        prefix: what the keys begin with, its last dot included.
    """
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    found: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", container).items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is for its owner only."""
    return bool(_SECRET.search(key.rpartition(".")[2].lower()))


def shown(key: str, values: Mapping[str, Any]) -> str:
    """A value as a person reads it; "–" if the key is not there, and no value of a secret.

    Args:
        key: dotted.
        values: dotted keys and values, as `flat` gives them.
    """
    if key not in values:
        return MISSING
    value = values[key]
    if value is not None and is_secret(key):
        return NOT_SHOWN
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(directory: Path) -> tuple[dict[str, str], Path]:
    """What a run was started with, `method` and `experiment` among it, and in which folder, as Hydra wrote it down."""
    path = directory / ".hydra" / "hydra.yaml"
    try:
        runtime = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["runtime"]
        chosen = runtime["choices"]
        groups = ["method", "experiment"] + ["protocol"] * ("protocol" in chosen)
        return {group: str(chosen[group]) for group in groups}, Path(runtime.get("cwd", Path.cwd()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise NoPreset(f"{path} does not say which method and experiment the run was started with") from error


def _overrides(chosen: Mapping[str, str]) -> list[str]:
    """Of the command line, for what a run says that it was started with: group -> choice."""
    overrides = [f"{group}={choice}" for group, choice in chosen.items()]
    if not all(re.fullmatch(r"[\w-]+", choice) for choice in chosen.values()):
        raise NoPreset(f"{' '.join(overrides)}: not names of configurations")
    return overrides


def composed(
    primary: str, overrides: Sequence[str], values: Mapping[str, Any], started_in: Path | None = None
) -> dict[str, Any]:
    """What the command line would compose now, resolved and flat.

    Args:
        primary: name of the primary configuration.
        overrides: of the command line.
        values: a run's, flat: what only Hydra's run can know (its output directory, its choices) is taken from them.
        started_in: where relative paths begin; None leaves them relative.

    Raises:
        NoPreset: if these overrides cannot be composed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    def compose_it() -> DictConfig:
        return compose(primary, overrides=list(overrides))

    try:
        if GlobalHydra.instance().is_initialized():  # within a training command
            cfg = compose_it()
        else:
            with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
                cfg = compose_it()
        OmegaConf.set_struct(cfg, False)
        for key, value in flat(cfg).items():
            if isinstance(value, str) and "${hydra:" in value:
                OmegaConf.update(cfg, key, values.get(key))
        resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        if started_in is not None:
            make_absolute(resolved, started_in)
        return flat(resolved)
    except (HydraException, ValueError) as error:  # omegaconf's errors are ValueErrors
        raise NoPreset(f"{' '.join(overrides)} cannot be composed any more: {error}") from error
