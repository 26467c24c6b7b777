"""What we lean on in verl 0.9.1 without verl promising it. An upgrade of verl starts by making these pass."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

import pytest
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import torch_functional
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.distributed import initialize_global_process_group_ray
from verl.utils.tracking import Tracking
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from workers.verl_private import (
    ENGINE_ATTRIBUTES,
    ENGINE_MEMBERS,
    OVERRIDDEN_STAGES,
    ROLLOUT_ADAPTERS,
    agent_loop_worker,
)

AgentLoopWorkerTQ = agent_loop_worker()


def source(function) -> str:
    return inspect.getsource(function)


def test_the_installed_verl_is_the_one_we_pin():
    assert version("verl") == "0.9.1"


@pytest.mark.parametrize("stage", OVERRIDDEN_STAGES)
def test_overridden_stages_have_the_parameters_we_pass(stage):
    assert tuple(inspect.signature(getattr(PPOTrainer, stage)).parameters) == OVERRIDDEN_STAGES[stage]


def test_we_override_exactly_the_listed_private_stages():
    from recipes.common.step.trainer import SelfDistillTrainer

    ours = [part for part in SelfDistillTrainer.__mro__ if part.__module__.startswith("recipes.")]
    overridden = {
        name
        for part in ours
        for name in vars(part)
        if re.match("_[a-z]", name) and name != "_abc_impl" and hasattr(PPOTrainerSync, name)
    }
    assert overridden == set(OVERRIDDEN_STAGES)


def test_the_step_calls_the_stages_in_the_order_we_rely_on():
    body = source(PPOTrainer._step_once)
    order = ["_balance_batch", "_compute_old_log_prob", "_compute_advantage", "_update_actor"]
    positions = [body.index(f"self.{name}(batch, metrics=metrics)") for name in order]
    assert positions == sorted(positions)


def test_the_loop_saves_before_weight_sync_and_logs_after_validation():
    body = source(PPOTrainer.fit)
    order = ["self._save_checkpoint()", "self.on_step_end()", "self._validate()", "self.logger.log(data=metrics"]
    positions = [body.rindex(part) for part in order]
    assert positions == sorted(positions)
    assert "self.global_steps <= self.total_training_steps" in body  # how a requested stop ends the loop
    assert 'self.config.trainer.get("val_before_train", True)' in body


def test_the_tracker_file_is_written_after_everything_else_of_a_checkpoint():
    body = source(PPOTrainer._save_checkpoint)
    assert body.index("data.pt") < body.index("latest_checkpointed_iteration.txt")
    assert body.index("self.actor_rollout_wg.save_checkpoint") < body.index("latest_checkpointed_iteration.txt")


def test_a_missing_folder_is_verls_start_anew_and_the_tracker_alone_names_it():
    """Why `recipes.common.record.checkpoints` looks before verl does."""
    body = source(find_latest_ckpt_path)
    assert "if not os.path.exists(ckpt_path):" in body and "return None" in body


def test_an_update_whose_gradient_is_not_finite_is_not_made_and_its_norm_is_told():
    body = source(FSDPEngine.optimizer_step)
    assert "if not torch.isfinite(grad_norm):" in body
    assert body.index("self.optimizer.zero_grad()") < body.index("self.optimizer.step()")
    assert 'final_metrics["grad_norm"] = grad_norm' in source(TrainingWorker._postprocess_output)
    assert "self.actor.train_mini_batch(data=data)" in source(ActorRolloutRefWorker.update_actor)


def test_rays_table_of_actors_says_who_died_by_itself():
    from ray._private.state import GlobalState
    from ray.core.generated.common_pb2 import ActorDiedErrorContext

    assert "WORKER_DIED" in ActorDiedErrorContext.Reason.keys()  # noqa: SIM118 (not a mapping)
    body = source(GlobalState._gen_actor_info)
    assert all(f'"{key}"' in body for key in ("ActorClassName", "DeathCause", "EndTime", "Pid", "IPAddress"))


def test_old_log_probs_come_with_entropies():
    body = source(PPOTrainer._compute_old_log_prob)
    assert '"calculate_entropy": True' in body
    assert 'data.select("old_log_probs", "entropy")' in body


def test_the_estimator_runs_inside_compute_advantage_on_rows_in_batch_order():
    body = source(PPOTrainer._compute_advantage)
    assert "compute_advantage_for_multi_trajectories(" in body
    assert "tq.kv_batch_get(keys=batch.keys" in body and "data.to_padded_tensor()" in body


def test_worker_roles_are_a_table_that_can_be_changed():
    body = source(PPOTrainer._init_resource_pool_mgr)
    assert "self.role_worker_mapping[role] = ray.remote(ActorRolloutRefWorker)" in body
    assert "self.mapping[role]" in body


def test_trainers_are_found_by_name_in_the_process_of_the_task_runner():
    cls = TaskRunnerV1.__ray_metadata__.modified_class
    body = source(cls.run)
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in body
    assert list(inspect.signature(run_ppo).parameters) == ["config", "task_runner_class"]


def test_an_open_process_group_is_left_alone():
    assert "if not torch.distributed.is_initialized()" in source(initialize_global_process_group_ray)
    # ours opens it in the constructor, before verl builds the engine in init_model
    assert "initialize_global_process_group_ray" not in source(ActorRolloutRefWorker.__init__)


def test_rollout_adapters_are_found_by_name_and_mode():
    assert ("vllm", "async") in ROLLOUT_ADAPTERS
    assert all(isinstance(path, str) for path in ROLLOUT_ADAPTERS.values())


def test_agent_loops_get_what_seeds_a_response():
    assert "session_id=i, **prompt" in source(AgentLoopWorkerTQ._run_prompt)
    assert re.search(r"sampling_params=sampling_params", source(SingleTurnAgentLoop.run))


def test_rollouts_in_bursts_do_what_verls_worker_does():
    """What `workers.rollout.bursts` repeats of it: sampling, keys, tags, status, and the names of its attributes."""
    body = source(AgentLoopWorkerTQ)
    for part in (
        "repetition_penalty=1.0,",
        "logprobs=config.calculate_log_probs,",
        'sampling_params["top_p"] = config.val_kwargs.top_p',
        'prompt.pop("__rollout_n__", config.n if not trajectory["validate"] else config.val_kwargs.n)',
        'do_sample = prompt.pop("__do_sample__", True)',
        'keys.append(f"{uid}_{session_id}_{i}")',
        'partition_id="train" if not validate else "val"',
        'field["loss_mask"] = field["response_mask"]',
        'status = "failure"',
        'status = "finished"',
        'field.pop("multi_modal_data", None)',
    ):
        assert part in body, part
    tags = re.findall(r'^ +"(\w+)": ', source(AgentLoopWorkerTQ._agent_loop_postprocess), re.MULTILINE)
    assert sorted(tags) == sorted(
        ["status", "prompt_len", "response_len", "seq_len", "global_steps", "min_global_steps", "max_global_steps"]
    )
    made = source(AgentLoopWorker.__init__) + source(AgentLoopWorkerTQ.__init__)
    for name in (
        *("llm_client", "tokenizer", "processor", "dataset_cls", "rollout_config", "reward_loop_worker_handles"),
        *("distillation_enabled", "background_tasks"),
    ):
        assert f"self.{name} = " in made or f"self.{name}: " in made, name
    assert "self.hf_model_type: str | None = " in made
    assert "outputs = await asyncio.gather(*tasks)" in source(RewardLoopWorker.compute_score_batch)
    assert "load_class_from_fqn(manager_class_fqn" in source(
        TaskRunnerV1.__ray_metadata__.modified_class.init_agent_loop_manager
    )


def test_log_probs_without_flash_attn_are_asked_for_by_the_name_that_ours_takes():
    assert "output = logprobs_from_logits_v2(logits, labels)" in source(torch_functional.logprobs_from_logits)


def test_validation_is_summarised_in_one_place():
    body = source(PPOTrainer._validate)
    assert "return self._val_metrics_update(" in body and "expected_acc_counts=expected_acc_counts" in body


def test_tracking_loops_over_a_dict_of_loggers():
    assert "for default_backend, logger_instance in self.logger.items()" in source(Tracking.log)


def test_the_engine_calls_the_loss_with_logits_and_then_with_its_outputs():
    from verl.workers.engine import FSDPEngineWithLMHead as Engine

    outputs = source(Engine.prepare_model_outputs)
    assert outputs.count("logits_processor_func(student_logits=logits_rmpad.unsqueeze(0), data=micro_batch)") == 2
    # temperature is applied before the hook, and nothing reads the logits' old values after it
    assert outputs.index("_scale_logits_by_temperature(") < outputs.index("logits_processor_func(student_logits")
    step = source(Engine.forward_step)
    assert "model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()" in step
    assert tuple(inspect.signature(Engine.forward_step).parameters) == (
        "self",
        "micro_batch",
        "loss_function",
        "forward_only",
    )


def test_the_engine_has_what_our_subclass_calls():
    from verl.workers.engine import FSDPEngineWithLMHead as Engine

    assert tuple(inspect.signature(Engine.forward_backward_batch).parameters) == (
        "self",
        "data",
        "loss_function",
        "forward_only",
    )
    for name in ENGINE_MEMBERS:
        assert callable(getattr(Engine, name)), name
    attributes = source(FSDPEngine.__init__) + source(FSDPEngine._build_fsdp_module)
    for name in ENGINE_ATTRIBUTES:
        assert f"self.{name} = " in attributes, name
    # the module is ready when initialize() has ended, and built by name of the language model
    assert 'self.model_config.model_type == "language_model"' in source(FSDPEngine._build_module)
    assert "tu.assign_non_tensor(data, dp_size=self.get_data_parallel_size())" in source(Engine.forward_backward_batch)


def test_the_worker_accounts_for_its_work_where_we_add_the_teachers():
    from verl.utils.flops_counter import FlopsCounter

    assert list(inspect.signature(FlopsCounter.estimate_flops).parameters)[:3] == [
        "self",
        "batch_seqlens",
        "delta_time",
    ]
    body = source(TrainingWorker._postprocess_output)
    assert 'final_metrics["mfu"] = estimated_flops / promised_flops / torch.distributed.get_world_size()' in body
    assert "allgather_dict_into_dict(data=metrics, group=dp_group)" in body
    assert list(inspect.signature(TrainingWorker._postprocess_output).parameters) == [
        "self",
        "output",
        "global_token_num",
        "delta_time",
        "forward_only",
        "images_seqlens",
    ]


def test_the_hooks_outputs_are_taken_by_name_and_log_probs_may_be_among_them():
    from verl.workers.engine import FSDPEngineWithLMHead as Engine
    from verl.workers.utils.losses import ppo_loss

    outputs = source(Engine.prepare_model_outputs)
    assert "for k, v in outputs.items():" in outputs and "if not distillation_only:" in outputs
    assert 'model_output["log_probs"]' in source(ppo_loss)
    # a unit temperature leaves the logits as the head gave them, which may be no logits
    assert "is_unit_temperature=temperature_is_one" in outputs


def test_the_schedule_advances_once_a_training_step():
    """Which is when a teacher that follows the student may do so."""
    body = source(TrainingWorker.train_mini_batch)
    assert "update_lr_scheduler=batch_idx == total_num_iterations - 1" in body
    assert "lr = self.engine.lr_scheduler_step()" in source(TrainingWorker.train_batch)


def test_the_actors_worker_class_can_be_chosen():
    body = source(ActorRolloutRefWorker.init_model)
    assert "self.actor = self.actor_worker_cls(config=actor_training_config)" in body
    assert "self.loss_fn = partial(ppo_loss, config=actor_config)" in body
    assert body.index("self.actor_worker_cls(") < body.index("self.actor.reset()")
