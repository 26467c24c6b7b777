"""Hydra configuration: `train.yaml` is the entry point, `method/` the bundles, `experiment/` on what and where.

Importing this package makes the resolver ``${starter:path}`` known: a path below the folder of the embedded experiment.
"""

from pathlib import Path

from omegaconf import OmegaConf

CONFIG_DIR = Path(__file__).resolve().parent
# The embedded experiment's model and data lie in the package recipes.starter, which need not be imported for its path.
STARTER = CONFIG_DIR.parent / "recipes" / "starter"

OmegaConf.register_new_resolver("starter", lambda path: str(STARTER / path), replace=True)
