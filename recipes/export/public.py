"""A run's configuration as it may leave the machine: no secrets, and no paths that mean something only there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from recipes.report.preset import NOT_SHOWN, is_secret

# How processes were started and connected on that machine: addresses, environments.
LEFT_OUT = ("ray_kwargs", "transfer_queue")
# An absolute path within a text, of two parts or more; neither the rest of a relative one nor a URL's.
_INSIDE = re.compile(r"(?<![\w./~-])~?(?:/[\w.@+=-]+){2,}/?")
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://")
_EMBEDDED = re.compile(r"(?:^|/)(recipes/starter/.+)$")  # files of this package, wherever it is installed
_USER_IN_URL = re.compile(r"://[^/\s@]*@")


def portable(text: str, run_dir: str | None = None) -> str:
    """A text without paths of the machine, credentials in addresses and names of private stores.

    Args:
        text: a value of the configuration, or a message.
        run_dir: paths below it become relative to it; of others the last part is kept.
    """
    if _USER_IN_URL.search(text):
        return NOT_SHOWN
    scheme = _SCHEME.match(text)
    if scheme:
        # A module's file and a public address say the same everywhere; a bucket or a cluster's store does not.
        return text if scheme[1] in ("pkg", "http", "https") else PurePosixPath(text).name
    if text.startswith(("/", "~", "../")):
        return _portable_path(text, run_dir)
    return _INSIDE.sub(lambda found: _portable_path(found[0], run_dir), text)


def _portable_path(text: str, run_dir: str | None) -> str:
    embedded = _EMBEDDED.search(text)
    if embedded:
        return embedded[1]
    path = PurePosixPath(text)
    if run_dir and path.is_relative_to(run_dir):
        return str(path.relative_to(run_dir))
    return path.name or "/"


def public_config(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, without secrets, paths of the machine and the keys of `LEFT_OUT`."""
    run_dir = OmegaConf.select(config, "self_distill.run_dir", default=None)

    def walk(value: Any, key: str) -> Any:
        if value is not None and is_secret(key):
            return NOT_SHOWN
        if isinstance(value, Mapping):
            return {k: walk(v, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, key) for v in value]
        return portable(value, run_dir) if isinstance(value, str) else value

    plain = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    return {k: walk(v, k) for k, v in plain.items() if k not in LEFT_OUT}
