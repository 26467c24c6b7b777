"""What a run changed: its configuration against the preset of its method and experiment, with each value's source.

The preset is what Hydra composes today for the run's `method` and `experiment`, as the command line would without any
override.  Where a value comes from stands as a comment beside it in config/method/*.yaml: a section of the paper, or
"ours".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from yaml.nodes import MappingNode, ScalarNode

from recipes.common.entry import CONFIG_DIR

# Where a run is, not what it does.
_PLACES = ("self_distill.run_dir", "trainer.default_local_dir", "ray_kwargs.ray_init", "dry_run")
_SECRET = re.compile(r"(api_?key|secret|password|passwd|(^|_)token)$")
MISSING = "–"


class NoPreset(ValueError):
    """The preset of a run cannot be composed."""


@dataclass(frozen=True)
class Setting:
    """A key of the configuration: the preset's value, the run's, both as text, and the comment beside the preset's."""

    key: str
    preset: str
    value: str
    source: str

    @property
    def differs(self) -> bool:
        return self.preset != self.value


@dataclass(frozen=True)
class Comparison:
    """`changed`: every key in which the run departs from its preset. `method`: every key of the method's bundle."""

    name: str
    changed: list[Setting]
    method: list[Setting]


def compare_with_preset(directory: Path, config: DictConfig) -> Comparison:
    """Compare a run's configuration with the preset of its method and experiment.

    Raises:
        NoPreset: the run does not say which they were, or they do not exist any more.
    """
    method, experiment = _choices(directory)
    values = flat(config)
    preset = _composed(method, experiment, values)
    bundle = method_values(method)
    sources = {key: source for key, (_, source) in bundle.items()}

    def setting(key: str) -> Setting:
        return Setting(key, shown(key, preset), shown(key, values), sources.get(key, ""))

    keys = [k for k in sorted({*preset, *values}) if not k.startswith(_PLACES)]
    return Comparison(
        name=f"method={method} experiment={experiment}",
        changed=[s for s in map(setting, keys) if s.differs],
        method=[setting(key) for key in bundle],
    )


def method_values(method: str, folder: Path = CONFIG_DIR / "method") -> dict[str, tuple[Any, str]]:
    """Every key that a method's YAML sets, with its value and the comment beside it; bundles that it builds on first.

    Raises:
        NoPreset: there is no such file.
    """
    path = folder / f"{method}.yaml"
    if Path(method).name != method or not path.exists():
        raise NoPreset(f"there is no method {method!r} in config/method any more")
    text = path.read_text(encoding="utf-8")
    found: dict[str, tuple[Any, str]] = {}
    for base in (yaml.safe_load(text) or {}).get("defaults", []):
        if base != "_self_":
            found.update(method_values(base, folder))
    lines = text.splitlines()

    def walk(node: MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if isinstance(value, MappingNode):
                walk(value, f"{name}.")
            elif name != "defaults" and isinstance(value, ScalarNode):
                comment = lines[value.end_mark.line][value.end_mark.column :].partition("#")[2].strip()
                found[name] = (yaml.safe_load(value.value) if value.style is None else value.value, comment)

    root = yaml.compose(text)
    if isinstance(root, MappingNode):
        walk(root, "")
    return found


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a configuration; lists, and empty mappings, are values."""
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    found: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", container).items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(key: str, values: Mapping[str, Any]) -> str:
    """A value as a person reads it; secrets are not shown."""
    if key not in values:
        return MISSING
    value = values[key]
    if value is not None and _SECRET.search(key.rpartition(".")[2].lower()):
        return "(not shown)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(directory: Path) -> tuple[str, str]:
    """The `method` and `experiment` that a run was started with, as Hydra wrote them down."""
    path = directory / ".hydra" / "hydra.yaml"
    try:
        chosen = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["runtime"]["choices"]
        return str(chosen["method"]), str(chosen["experiment"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise NoPreset(f"{path} does not say which method and experiment the run was started with") from error


def _composed(method: str, experiment: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's values; what only Hydra's run can know (its output directory, its choices) is taken from the run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    import recipes.common.settings  # noqa: F401  registers the resolver for the embedded files

    def composed() -> DictConfig:
        return compose("train", overrides=[f"method={method}", f"experiment={experiment}"])

    if not all(re.fullmatch(r"[\w-]+", name) for name in (method, experiment)):
        raise NoPreset(f"method={method!r} experiment={experiment!r}: not names of configurations")
    try:
        if GlobalHydra.instance().is_initialized():  # within a training command
            cfg = composed()
        else:
            with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
                cfg = composed()
        OmegaConf.set_struct(cfg, False)
        for key, value in flat(cfg).items():
            if isinstance(value, str) and "${hydra:" in value:
                OmegaConf.update(cfg, key, values.get(key))
        return flat(OmegaConf.to_container(cfg, resolve=True))
    except (HydraException, ValueError) as error:  # omegaconf's errors are ValueErrors
        raise NoPreset(f"method={method} experiment={experiment} cannot be composed any more: {error}") from error
