"""Templates that open a thinking block whatever the flag says: closed alike for rollouts, student and teacher."""

from __future__ import annotations

import asyncio
import copy

import pytest
from transformers import AutoTokenizer

from config import STARTER
from recipes.common.teacher.prompts import render, student_messages, teacher_messages
from tests.builders.configs import composed
from tests.workers.rollout.test_bursts import agent_loop
from workers.rollout.thinking import thinking_is_open, with_thinking_closed

OFF = {"enable_thinking": False}
STUDENT, TEACHER = student_messages("7+5*3"), teacher_messages("7+5*3", "7+5=2;2*3=6;\\boxed{6}")


@pytest.fixture(scope="module")
def usual():
    return AutoTokenizer.from_pretrained(STARTER / "model")


@pytest.fixture(scope="module")
def stubborn(usual):
    """The starter's tokenizer with a template that always opens a thinking block, as DeepSeek-R1-Distill's does."""
    tokenizer = copy.deepcopy(usual)
    before, condition, _ = tokenizer.chat_template.partition("{%- if enable_thinking is defined")
    assert condition
    opened = before + "{{- '<think>\\n' -}}{%- endif -%}"
    tokenizer.chat_template = opened
    text = tokenizer.apply_chat_template(STUDENT, add_generation_prompt=True, tokenize=False, **OFF)
    assert text.endswith("<think>\n")
    return tokenizer


@pytest.mark.parametrize("messages", [STUDENT, TEACHER])
def test_what_should_be_off_is_closed(stubborn, messages):
    text = stubborn.decode(render(stubborn, messages, OFF))
    assert text.endswith("<think>\n</think>\n\n") and text.count("<think>") == 1


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": True}])
def test_what_may_be_open_stays_open(stubborn, kwargs):
    ids = render(stubborn, STUDENT, kwargs)
    assert thinking_is_open(stubborn, ids) and with_thinking_closed(stubborn, ids, kwargs) == ids


def test_templates_that_know_the_flag_are_left_alone(usual):
    ids = usual.apply_chat_template(STUDENT, add_generation_prompt=True, return_dict=False, **OFF)
    assert render(usual, STUDENT, OFF) == list(ids) and not thinking_is_open(usual, ids)
    assert with_thinking_closed(usual, [], OFF) == []


def test_rollouts_begin_where_the_teacher_begins(stubborn, tmp_path_factory):
    config = composed("experiment=starter", "method=grpo", run_dir=tmp_path_factory.mktemp("run"))
    loop = agent_loop(config)
    loop.tokenizer.chat_template = stubborn.chat_template

    async def by_verl() -> list[int]:
        loop.loop = asyncio.get_running_loop()
        return await loop.ct_build_initial_tokens(STUDENT)

    wanted = render(stubborn, STUDENT, OFF)[-64:]
    assert loop.prompt_ids(STUDENT)[-60:] == asyncio.run(by_verl())[-60:] == wanted[-60:]
