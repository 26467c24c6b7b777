"""Hydra configuration: `train.yaml` is the entry point, `method/` the bundles, `experiment/` on what and where."""
