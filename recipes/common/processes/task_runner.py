"""The Ray actor in which the trainer lives: verl's own task runner, once our trainer has been registered with verl."""

from __future__ import annotations

import importlib

import ray
from omegaconf import DictConfig


@ray.remote(num_cpus=1)
class SelfDistillTaskRunner:
    """`verl.trainer.main_ppo.TaskRunnerV1`, with this package's trainer and estimators registered."""

    def run(self, config: DictConfig) -> None:
        """Register ours in this process, then train as verl's task runner does."""
        from verl.trainer.main_ppo import TaskRunnerV1

        # Imported for what they register; the method's name decides which of it is used.
        for module in ("workers.register", "advantage.register", "recipes.common.step.trainer"):
            importlib.import_module(module)
        # The class under @ray.remote: its run() belongs in this process, where the registrations are.
        TaskRunnerV1.__ray_metadata__.modified_class().run(config)
