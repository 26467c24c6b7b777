"""What stands in the place of a response where references are trained on."""

from __future__ import annotations

import asyncio

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset

from config import STARTER
from recipes.common.teacher.prompts import render, student_messages
from workers.rollout.agent_loop import ReferenceAgentLoop

MESSAGES = student_messages("1+1")
SOLUTION = "1+1=2\n\n\\boxed{2}"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STARTER / "model")


def respond(compose_config, tokenizer, solution, *overrides):
    cfg = compose_config("method=sft", "experiment=starter", *overrides)
    OmegaConf.set_struct(cfg, False)

    async def run():  # the loop wants the event loop that it is made in
        loop = ReferenceAgentLoop(
            trainer_config=DictConfigWrap(cfg),
            server_manager=None,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(cfg.data),
            hf_model_type="qwen3",
        )
        return await loop.run({}, raw_prompt=MESSAGES, solution=solution, global_steps=3)

    return asyncio.run(run())


def test_the_solution_and_the_end_of_the_turn_follow_the_students_prompt(compose_config, tokenizer):
    output = respond(compose_config, tokenizer, f" {SOLUTION} ").as_dict()
    assert output["prompts"].tolist() == render(tokenizer, MESSAGES, {"enable_thinking": False})
    assert output["responses"].tolist() == [*tokenizer.encode(SOLUTION), tokenizer.eos_token_id]
    assert torch.equal(output["response_mask"], torch.ones_like(output["responses"]))


def test_a_solution_that_is_too_long_is_cut_and_has_no_end(compose_config, tokenizer):
    output = respond(compose_config, tokenizer, SOLUTION, "data.max_response_length=4")
    assert output.response_ids == tokenizer.encode(SOLUTION)[:4]


def test_a_row_without_a_solution_is_an_error(compose_config, tokenizer):
    with pytest.raises(ValueError, match="a row has no solution"):
        respond(compose_config, tokenizer, " ")
