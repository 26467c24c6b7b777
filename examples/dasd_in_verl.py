"""DASD's credit in a plain verl run: verl's trainer, configuration and workers, and one stage of the step overridden.

    python examples/dasd_in_verl.py --starter trainer.total_training_steps=2      # without a GPU: the embedded model
    python examples/dasd_in_verl.py actor_rollout_ref.model.path=… data.train_files=… data.val_files=…

For recipes of your own that should have a method of this package, and not its trainer. Three things are needed:

registration   `import advantage.register` in the process of the trainer makes `algorithm.adv_estimator=dasd` known to
               verl. (Where this package is installed, verl's plugin entry point has already done it.)
signals        verl hands an estimator rewards and masks. Entropies are in the batch, the teacher's log-probs are not:
               they come from one more pass of the actor over (privileged prompt, the same response ids), in
               `DasdTrainer._compute_advantage`, which wraps verl's in `advantage.token_signals`.
configuration  `CONFIGURATION` below; the data need a column `solution` beside verl's own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

STARTER_FLAG = "--starter"
CONFIGURATION = [
    "algorithm.adv_estimator=dasd",
    "+algorithm.dasd.target_ratio=0.005",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",  # DASD averages within each response first
    "actor_rollout_ref.actor.entropy_from_logits_with_chunking=true",  # exact: verl's other is off by up to 0.18 nat
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.model.external_lib=workers.register",  # exact log-probs; the rollout of a machine without GPUs
    "actor_rollout_ref.rollout.n=8",
    "reward.custom_reward_function.path=pkg://rewards.math",
    "reward.custom_reward_function.name=compute_score",
    "trainer.v1.trainer_mode=dasd_in_verl",
    "trainer.logger=[console]",
    "trainer.use_v1=true",
]


def trainer_class() -> type:
    """verl's synchronous trainer with DASD's signals; a function, so that this file can be read without verl."""
    import torch
    import transfer_queue as tq
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    import advantage.register
    from advantage import token_signals
    from recipes.common.teacher.prompts import render, teacher_messages
    from recipes.common.teacher.sequences import sequence_scores, teacher_sequences
    from workers.training.worker import SelfDistillWorker

    @register_trainer("dasd_in_verl")
    class DasdTrainer(PPOTrainerSync):
        def __init__(self, config: DictConfig):
            with open_dict(config):
                config.trainer.v1.trainer_mode = "sync"  # verl takes every other name for an asynchronous mode
            super().__init__(config)

        def _init_resource_pool_mgr(self) -> None:
            super()._init_resource_pool_mgr()
            if self.config.trainer.device == "cpu":  # opens the process group that verl would ask GPUs for
                for role in self.role_worker_mapping:
                    self.role_worker_mapping[role] = ray.remote(SelfDistillWorker)

        def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
            fields = ["responses", "response_mask", "old_log_probs", "entropy", "problem", "solution"]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
            teacher = self._teacher_log_probs(batch, data)
            shape = (len(batch), int(data["response_mask"].offsets().diff().max()))
            student, entropy = (data[name].to_padded_tensor(0.0, shape) for name in ("old_log_probs", "entropy"))
            gap = teacher.to_padded_tensor(0.0, shape) - student  # (B, T) nats, in the order of the batch
            with token_signals(entropy=entropy, log_prob_gap=gap) as signals:
                batch = super()._compute_advantage(batch, metrics)
            metrics.update(signals.diagnostics)
            return batch

        def _teacher_log_probs(self, batch: KVBatchMeta, data: Any) -> torch.Tensor:
            """log p_T of the responses' tokens, jagged (B, T_i): the policy itself, at the weights that sampled."""
            template = self.config.data.get("apply_chat_template_kwargs", {})
            prompts = [
                render(self.tokenizer, teacher_messages(problem, solution), template)
                for problem, solution in zip(data["problem"], data["solution"], strict=True)
            ]
            responses, masks = data["responses"].unbind(), data["response_mask"].unbind()
            lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
            scores = sequence_scores(
                self.actor_rollout_wg,
                keys=[f"{key}_teacher" for key in batch.keys],
                fields=teacher_sequences(prompts, responses, masks),
                tags=[{**tag, "seq_len": length} for tag, length in zip(batch.tags, lengths, strict=True)],
                response_mask=data["response_mask"],
                weights="current",
                temperature=self.config.actor_rollout_ref.rollout.temperature,
            )
            return scores["log_probs"]

    assert advantage.register  # imported for what it does
    return DasdTrainer


@ray.remote(num_cpus=1)
class TaskRunner:
    """verl's task runner, in a process where the trainer has been registered."""

    def run(self, config: DictConfig) -> None:
        from verl.trainer.main_ppo import TaskRunnerV1

        trainer_class()
        TaskRunnerV1.__ray_metadata__.modified_class().run(config)


def starter(config: DictConfig) -> DictConfig:
    """The embedded model and data, and verl's engines as they are without a GPU: config/experiment/starter.yaml."""
    from config import CONFIG_DIR

    experiment = OmegaConf.load(CONFIG_DIR / "experiment" / "starter.yaml")
    for ours in ("defaults", "self_distill"):
        experiment.pop(ours)
    with open_dict(config):
        config = OmegaConf.merge(config, experiment)
        config.trainer.save_freq, config.trainer.val_before_train = -1, False
        config.ray_kwargs.ray_init.address = "local"  # never join somebody else's cluster by accident
    return config


def main() -> None:
    given = [argument for argument in sys.argv[1:] if argument != STARTER_FLAG]
    if STARTER_FLAG in sys.argv[1:]:
        os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "workers.cpu.platform"}
        os.environ |= {"OMP_NUM_THREADS": "1", "TQ_NUM_THREADS": "1"}
    with initialize_config_module("verl.trainer.config", version_base="1.3"):
        config = compose("ppo_trainer", overrides=CONFIGURATION)
    if STARTER_FLAG in sys.argv[1:]:
        config = starter(config)
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(given))
    OmegaConf.resolve(config)  # here: Ray's processes do not know the resolver of the starter's paths
    from verl.trainer.main_ppo import run_ppo

    run_ppo(config, task_runner_class=TaskRunner)


if __name__ == "__main__":
    main()
