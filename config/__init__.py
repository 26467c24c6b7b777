"""Hydra configuration: `train.yaml` is the entry point, `method/` the bundles, `experiment/` models, data and machines."""
