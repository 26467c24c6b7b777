"""The methods' pages say what their YAMLs set: the defaults in each table of parameters."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from config import CONFIG_DIR
from tests.builders.configs import ROOT

METHODS = sorted(p.stem for p in (CONFIG_DIR / "method").glob("*.yaml"))
PAGES = [name for name in METHODS if (ROOT / "recipes" / name / "README.md").exists()]
NODES = ("self_distill.", "algorithm.", "actor_rollout_ref.", "data.")
ROW = re.compile(r"^\| (?P<keys>[^|]*`[^|]*) \| (?P<defaults>[^|]+) \|", re.M)


def parameters(page: str) -> list[tuple[str, str]]:
    """(key, default) of a page's last table; `.b` after `a.x` is `a.b`. Rows whose defaults are prose are left out."""
    found: list[tuple[str, str]] = []
    for row in ROW.finditer(page.rpartition("## Parameters")[2]):
        keys, whole = [], ""
        for key in re.findall(r"`([\w.*]+)`", row["keys"]):
            whole = f"{whole.rpartition('.')[0]}{key}" if key.startswith(".") else key
            keys.append(whole)
        listed = re.fullmatch(r"\[.*\]", row["defaults"].strip("` "))
        defaults = [listed[0]] if listed else [part.strip("` ") for part in row["defaults"].split(", ")]
        if len(keys) == len(defaults) and "*" not in row["keys"]:
            found += [pair for pair in zip(keys, defaults, strict=True) if pair[0].startswith(NODES)]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_the_defaults_of_a_methods_page_are_its_yamls(compose_config, name):
    cfg = compose_config(f"method={name}", "experiment=qwen3_1_7b_openthoughts")
    page, compared = (ROOT / "recipes" / name / "README.md").read_text(), 0
    for key, default in parameters(page):
        value = OmegaConf.select(cfg, key, default="absent")
        shown = default.removesuffix(" nat").removesuffix(" nats")
        if not re.fullmatch(r"[\w.+-]+|\[.*\]", shown):
            continue  # a sentence
        assert value == OmegaConf.create(f"v: {'null' if shown == 'none' else shown}").v, key
        compared += 1
    assert compared or name in ("atesd", "grpo"), "none of the page's parameters can be read"  # these write keys short
