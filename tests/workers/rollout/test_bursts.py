"""Rollouts that are handled together: the same requests, responses, rewards and stored fields as verl's one by one."""

from __future__ import annotations

import asyncio
import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.utils import hf_tokenizer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.workers.rollout.replica import TokenOutput

import workers.attention  # noqa: F401  which the configuration names
from rewards.manager import LengthRewardManager
from tests.builders.configs import composed
from workers.rollout import bursts
from workers.rollout.agent_loop import NAME, SeededSingleTurnAgentLoop
from workers.rollout.bursts import (
    PROMPT_IDS,
    BurstAgentLoopWorker,
    Rollout,
    _object_array,
    reward_data,
    rows_of,
    stored_fields,
)


class Server:
    """Answers as a server does: tokens that depend on the request alone. Remembers what it was asked."""

    def __init__(self, limit: int, log_probs: bool):
        self.limit, self.log_probs = limit, log_probs
        self.asked: list[tuple[list[int], dict]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict, **_: Any) -> TokenOutput:
        self.asked.append((list(prompt_ids), dict(sampling_params)))
        generator = torch.Generator().manual_seed(sampling_params["seed"] % 2**31)
        length = int(torch.randint(1, self.limit + 3, (1,), generator=generator))  # longer than allowed, too
        ids = torch.randint(20, 300, (length,), generator=generator).tolist()
        steps = {"global_steps": 7, "min_global_steps": 7, "max_global_steps": 7}  # verl's client adds the last two
        return TokenOutput(
            token_ids=ids,
            log_probs=[-0.01 * i for i in ids] if self.log_probs else None,
            stop_reason="completed",
            extra_fields=steps,
        )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return composed("experiment=starter", "method=grpo", run_dir=tmp_path_factory.mktemp("run"))


def agent_loop(config, server=None) -> SeededSingleTurnAgentLoop:
    cfg = copy.deepcopy(config)
    return SeededSingleTurnAgentLoop(
        trainer_config=DictConfigWrap(cfg),
        server_manager=server,
        tokenizer=hf_tokenizer(cfg.actor_rollout_ref.model.path),
        processor=None,
        dataset_cls=get_dataset_class(cfg.data),
        data_config=DictConfigWrap(cfg.data),
        hf_model_type="qwen3",
    )


def dataset_row(index: int) -> dict[str, Any]:
    return {
        "uid": f"uid-{index}",
        "raw_prompt": [{"role": "user", "content": f"{index}+5*3"}],
        "data_source": "chains",
        "reward_model": {"ground_truth": "6", "style": "rule"},
        "extra_info": {"index": index, "nested": {"kept": True}},
        "index": index,
        "global_steps": 7,
    }


@pytest.mark.parametrize("log_probs", [False, True])
def test_a_rollout_is_the_one_that_verls_agent_loop_makes(config, log_probs):
    server = Server(limit=96, log_probs=log_probs)
    loop = agent_loop(config, server)
    params = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": log_probs}
    lengths = set()
    for index, session in itertools.product(range(4), range(5)):
        row = {**dataset_row(index), "session_id": session}

        async def by_verl(row=row) -> AgentLoopOutput:
            loop.loop = asyncio.get_running_loop()
            return await loop.run(params, **row)

        expected = asyncio.run(by_verl())
        asked_prompt, asked_params = server.asked[-1]
        assert loop.prompt_ids(row["raw_prompt"]) == asked_prompt
        assert {**params, "seed": loop.seed(row)} == asked_params
        answer = asyncio.run(server.generate("", prompt_ids=asked_prompt, sampling_params=asked_params))
        output = loop.output(asked_prompt, answer, 0.0)
        output.metrics.generate_sequences = expected.metrics.generate_sequences
        assert output == expected
        assert output.model_dump(exclude_unset=True).keys() == expected.model_dump(exclude_unset=True).keys()
        lengths.add(len(output.response_ids))
    assert len(lengths) > 5 and max(lengths) == 96


def test_a_prompt_that_is_too_long_is_cut_from_the_left_as_verl_cuts_it(config):
    loop = agent_loop(config)
    long = loop.prompt_ids([{"role": "user", "content": "1+2*" * 100}])
    assert len(long) == config.data.max_prompt_length
    assert long == loop.continuous_token_builder.build_initial_tokens([{"role": "user", "content": "1+2*" * 100}])[-64:]


def test_a_row_may_bring_its_prompt_as_tokens_of_any_length(config):
    worker = object.__new__(BurstAgentLoopWorker)
    worker.agent_loop, worker.rollout_config = agent_loop(config), config.actor_rollout_ref.rollout
    batch = tu.get_tensordict(
        {
            "raw_prompt": _object_array([dataset_row(i)["raw_prompt"] for i in range(2)]),
            "uid": _object_array(["uid-0", "uid-1"]),
            PROMPT_IDS: [[7] * 200, [8]],
        }
    )
    tu.assign_non_tensor_data(batch, "global_steps", 7)
    first, second = rows_of(batch)
    for row, ids in ((first, [7] * 200), (second, [8])):
        made = worker._rollouts(dict(row), validate=True)
        assert len(made) == config.actor_rollout_ref.rollout.val_kwargs.n
        assert all(each.prompt_ids == ids and each.sampling_params["max_tokens"] == 96 for each in made)
        assert PROMPT_IDS not in made[0].row
    assert "max_tokens" not in worker._rollouts(dataset_row(0), validate=True)[0].sampling_params


def rollouts(config, count: int = 5) -> list[Rollout]:
    loop, server = agent_loop(config), Server(limit=90, log_probs=True)
    found = []
    for index in range(count):
        row = dataset_row(index)
        prompt_ids = loop.prompt_ids([{"role": "user", "content": "9*" * index + "1"}])  # of different lengths
        for session in range(2):
            params = {"seed": 31 * index + session}
            answer = asyncio.run(server.generate("", prompt_ids=prompt_ids, sampling_params=params))
            found.append(Rollout(row, session, prompt_ids, params, output=loop.output(prompt_ids, answer, 0.1)))
    return found


def test_stored_fields_are_verls(config):
    """What verl's own worker stores of a response: its output's fields, the row's columns, and four more."""
    for rollout in rollouts(config):
        rollout.output.reward_score = 0.5
        fields = stored_fields(rollout)
        expected = rollout.output.as_dict()
        prompt, response = torch.tensor(rollout.prompt_ids), torch.tensor(rollout.output.response_ids)
        assert fields.keys() == (expected.keys() - {"multi_modal_data"}) | dataset_row(0).keys() | {
            "session_id", "loss_mask", "input_ids", "position_ids", "multi_modal_inputs"
        }  # fmt: skip
        assert torch.equal(fields["prompts"], prompt) and torch.equal(fields["responses"], response)
        assert torch.equal(fields["input_ids"], torch.cat([prompt, response]))
        assert torch.equal(fields["position_ids"], torch.arange(len(prompt) + len(response)))
        assert torch.equal(fields["response_mask"], torch.ones_like(response))
        assert torch.equal(fields["loss_mask"], fields["response_mask"])
        assert fields["rm_scores"].tolist() == [0.0] * (len(response) - 1) + [0.5]
        assert fields["rollout_log_probs"].shape == response.shape
        assert fields["session_id"] == rollout.session and fields["uid"] == rollout.row["uid"]
        assert fields["num_turns"] == 2 and fields["extra_fields"]["max_global_steps"] == 7


def saw(data_source, solution_str, ground_truth, extra_info, **_: Any) -> dict[str, Any]:
    """A reward function that gives back what it was given, and writes into it."""
    extra_info["nested"].setdefault("seen", []).append(solution_str)
    return {"score": float(extra_info["index"]), "text": solution_str, "gold": ground_truth, "info": extra_info}


@pytest.mark.parametrize("manager_class", [NaiveRewardManager, LengthRewardManager])
def test_reward_managers_see_each_response_as_if_it_were_alone(config, manager_class):
    tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
    group = rollouts(config)

    async def graded() -> list[dict]:
        manager = manager_class(config, tokenizer, saw)
        manager.loop = asyncio.get_running_loop()
        data = reward_data(group)
        return await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(data))))

    for rollout, result in zip(group, asyncio.run(graded()), strict=True):
        info = result["reward_extra_info"]
        assert info["text"] == tokenizer.decode(rollout.output.response_ids, skip_special_tokens=True)
        assert result["reward_score"] == rollout.row["index"] and info["gold"] == "6"
        assert info["info"]["nested"] == {"kept": True, "seen": [info["text"]]}  # its own, and only its own
        if manager_class is LengthRewardManager:
            assert info["info"]["response_length"] == len(rollout.output.response_ids)
    assert all("seen" not in rollout.row["extra_info"]["nested"] for rollout in group)


def test_the_reward_batch_has_verls_layout(config):
    group = rollouts(config)
    data = reward_data(group)
    prompts, responses = data.batch["prompts"], data.batch["responses"]
    assert torch.equal(data.batch["input_ids"], torch.cat([prompts, responses], dim=1))
    for i, rollout in enumerate(group):
        mask = data.batch["attention_mask"][i].bool()
        sequence = rollout.prompt_ids + rollout.output.response_ids
        assert data.batch["input_ids"][i][mask].tolist() == sequence
        assert data.batch["position_ids"][i][mask].tolist() == list(range(len(sequence)))
        assert prompts[i, prompts.shape[1] - len(rollout.prompt_ids) :].tolist() == rollout.prompt_ids
        assert responses[i, : len(rollout.output.response_ids)].tolist() == rollout.output.response_ids
        assert data.non_tensor_batch["response_len"][i] == len(rollout.output.response_ids)


def test_rows_of_a_batch():
    batch = tu.get_tensordict({
        "numbers": torch.arange(6).view(3, 2),
        "raw_prompt": np.array([[{"role": "user", "content": str(i)}] for i in range(3)] + [None], dtype=object)[:3],
        "uid": np.array(["a", "b", "c"], dtype=object),
    })  # fmt: skip
    tu.assign_non_tensor_data(batch, "global_steps", 4)
    rows = rows_of(batch[1:])
    assert [row["uid"] for row in rows] == ["b", "c"]
    assert [row["numbers"].tolist() for row in rows] == [[2, 3], [4, 5]]
    assert [row["global_steps"] for row in rows] == [4, 4]
    assert [message["content"] for row in rows for message in row["raw_prompt"]] == ["1", "2"]


# ------------------------------------------------------------------------------------------------ the worker's course


class Remote:
    """Stands where a Ray actor's method would: `.remote(...)` gives something to await."""

    def __init__(self, function):
        self.remote = function


class BatchServer(Server):
    def __init__(self, broken: set[str], decode):
        super().__init__(limit=40, log_probs=False)
        self.batches: list[int] = []

        async def generate_batch(prompts, params):
            self.batches.append(len(prompts))
            answers = []
            for prompt, param in zip(prompts, params, strict=True):
                broken_one = any(text in decode(prompt) for text in broken)
                answer = await self.generate("", prompt_ids=prompt, sampling_params=param)
                answers.append(FloatingPointError("NaN") if broken_one else answer)
            return answers

        self.generate_batch = Remote(generate_batch)


class RewardWorker:
    def __init__(self, config, tokenizer, function):
        self.batches: list[int] = []

        async def one(data):
            manager = NaiveRewardManager(config, tokenizer, function)
            manager.loop = asyncio.get_running_loop()
            return await manager.run_single(data)

        async def many(data):
            self.batches.append(len(data))
            return await asyncio.gather(*(one(data[i : i + 1]) for i in range(len(data))))

        self.compute_score, self.compute_score_batch = Remote(one), Remote(many)


@pytest.fixture
def stage(config, monkeypatch):
    """A worker whose neighbours are in this process, and what it stores and publishes."""
    stored: dict[str, dict] = {}
    statuses: dict[str, str] = {}
    puts: list[int] = []

    async def put(keys, partition_id, fields=None, tags=None):
        puts.append(len(keys))
        for i, key in enumerate(keys):
            if fields is None:
                statuses[key] = tags[i]["status"]
            else:
                stored[key] = {"partition": partition_id, "tag": tags[i], "fields": fields[i]}

    monkeypatch.setattr(bursts.tq, "async_kv_batch_put", put)

    def make(*, broken=frozenset(), reward=saw, servers=1, **rollout: Any):
        cfg = copy.deepcopy(config)
        for key, value in rollout.items():
            cfg.actor_rollout_ref.rollout[key] = value
        worker = object.__new__(BurstAgentLoopWorker)
        worker.agent_loop = agent_loop(cfg)
        worker.rollout_config = omega_conf_to_dataclass(cfg.actor_rollout_ref.rollout)
        worker.processor, worker.distillation_enabled, worker.background_tasks = None, False, set()
        tokenizer = worker.agent_loop.tokenizer
        worker.servers = [BatchServer(broken, tokenizer.decode) for _ in range(servers)]
        worker.llm_client = Server(limit=40, log_probs=False)
        worker.reward_loop_worker_handles = [RewardWorker(cfg, tokenizer, reward) for _ in range(2)]
        return worker

    make.stored, make.statuses, make.puts = stored, statuses, puts
    return make


def batch_of(count: int, validate: bool = False) -> TensorDict:
    rows = [dataset_row(index) for index in range(count)]
    columns = {}
    for name in rows[0].keys() - {"global_steps"}:
        columns[name] = np.empty(count, dtype=object)
        columns[name][:] = [row[name] for row in rows]
    batch = tu.get_tensordict(columns)
    tu.assign_non_tensor_data(batch, "global_steps", 7)
    if validate:
        tu.assign_non_tensor_data(batch, "validate", True)
    return batch


def run(worker, batch) -> None:
    async def both() -> None:
        await worker.generate_sequences(batch)
        await worker.wait()

    asyncio.run(both())


def test_seeds_can_be_left_to_the_engine(config):
    """vLLM samples seeded rows one by one."""
    row = {**dataset_row(0), "session_id": 0}
    assert isinstance(agent_loop(config).seed(row), int)
    unseeded = config.copy()
    unseeded.self_distill.seeded_rollouts = False
    assert agent_loop(unseeded).seed(row) is None


def test_a_burst_is_one_request_one_put_and_one_status(stage):
    worker = stage()
    run(worker, batch_of(16))
    assert worker.servers[0].batches == [128]
    assert stage.puts == [128, 16]
    assert [handle.batches for handle in worker.reward_loop_worker_handles] == [[64], [64]]
    assert stage.statuses == {f"uid-{i}": "finished" for i in range(16)}
    assert set(stage.stored) == {f"uid-{i}_{session}_0" for i in range(16) for session in range(8)}
    seeds = [params["seed"] for _, params in worker.servers[0].asked]
    assert len(set(seeds)) == 128
    one = stage.stored["uid-3_5_0"]
    assert one["partition"] == "train" and one["fields"]["rm_scores"].sum() == 3.0
    tag = one["tag"]
    assert tag["seq_len"] == tag["prompt_len"] + tag["response_len"] == len(one["fields"]["input_ids"])
    assert (tag["status"], tag["global_steps"], tag["min_global_steps"], tag["max_global_steps"]) == (
        "success",
        7,
        7,
        7,
    )


def test_validation_samples_as_validation_does_and_in_batches_of_whole_prompts(stage):
    worker = stage(max_num_seqs=40)
    run(worker, batch_of(5, validate=True))
    assert worker.servers[0].batches == [32, 32, 16]  # 16 responses to a prompt, so 2 prompts a batch
    assert {params["top_p"] for _, params in worker.servers[0].asked} == {0.9}
    assert {one["partition"] for one in stage.stored.values()} == {"val"}
    assert len(stage.stored) == 80


def test_several_servers_share_a_burst_and_the_same_one_gets_the_same(stage):
    asked = []
    for _ in range(2):
        worker = stage(servers=3)
        run(worker, batch_of(7))
        assert [server.batches for server in worker.servers] == [[24], [24], [8]]
        asked.append([server.asked for server in worker.servers])
    assert asked[0] == asked[1]


def test_another_server_is_asked_for_each_response_and_graded_for_each_prompt(stage):
    worker = stage()
    worker.servers = []
    run(worker, batch_of(3))
    assert len(worker.llm_client.asked) == 24
    assert sorted(stage.puts) == [1, 1, 1, 8, 8, 8]
    assert stage.statuses == {f"uid-{i}": "finished" for i in range(3)}


def test_a_failed_response_fails_its_prompt_and_no_other(stage):
    def reward(extra_info, solution_str, **rest: Any):
        if extra_info["index"] == 2 and len(solution_str) % 2:
            raise RuntimeError("a reward function of the user's")
        return saw(extra_info=extra_info, solution_str=solution_str, **rest)

    worker = stage(broken={"1+5*3"}, reward=reward)
    run(worker, batch_of(4))
    assert stage.statuses == {"uid-0": "finished", "uid-1": "failure", "uid-2": "failure", "uid-3": "finished"}
    kept = [sum(key.startswith(f"uid-{i}_") for key in stage.stored) for i in range(4)]
    assert kept[0] == kept[3] == 8 and kept[1] == 0 and 0 < kept[2] < 8


def test_a_broken_server_fails_all_and_hangs_nothing(stage):
    worker = stage()

    async def broken(*_):
        raise ConnectionError("the server is gone")

    worker.servers[0].generate_batch = Remote(broken)
    run(worker, batch_of(4))
    assert stage.statuses == {f"uid-{i}": "failure" for i in range(4)} and not stage.stored


@pytest.mark.parametrize("change", ["agent", "processor", "distillation", "determinism"])
def test_what_is_more_than_a_turn_of_text_goes_through_verls_worker(stage, monkeypatch, change):
    worker, batch, taken = stage(), batch_of(2), []

    async def verls(self, batch):
        taken.append(batch)

    monkeypatch.setattr(bursts.AgentLoopWorkerTQ, "generate_sequences", verls)
    if change == "agent":
        batch["agent_name"] = tu.get_tensordict({"x": np.array([NAME, "tool_agent"], dtype=object)})["x"]
    elif change == "processor":
        worker.processor = object()
    elif change == "distillation":
        worker.distillation_enabled = True
    else:
        object.__setattr__(worker.rollout_config, "full_determinism", True)
    run(worker, batch)
    assert len(taken) == 1 and not stage.stored
