"""The starter: its data are right, its tokenizer loses nothing, its weights load and stand where the README says.

What sets the second world apart is in test_worlds.py.
"""

from __future__ import annotations

import functools
import random
import re
import string

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.common.teacher.prompts import student_messages, teacher_messages
from recipes.starter import corpus, measure, task
from recipes.starter.tokenizer import build_tokenizer, render, truncate_reference
from recipes.starter.worlds import HOME, WORLDS

CHAIN = "7+5*3-4"  # 7+5=2, 2*3=6, 6-4=2
PROBLEM = task.PROBLEM_PREFIX + CHAIN


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HOME / "model")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(HOME / "model", dtype=torch.float32).eval()


def read_splits(world):
    folder = HOME / WORLDS[world].folder / "data"
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("train", "val", "probe")}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return request.param


@pytest.fixture(scope="module")
def splits(world):
    return read_splits(world)


def evaluate(expression: str) -> int:
    """Python's own arithmetic, parenthesised from the left: independent of `task`, reduced modulo 10 at the end."""
    parts = re.findall(r"[+\-*]?\d", expression)
    nested = "(" * (len(parts) - 1) + parts[0] + "".join(part + ")" for part in parts[1:])
    return eval(nested) % 10


def test_splits_are_disjoint_and_sized(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4096, "val": 128, "probe": 64}
    problems = [row["problem"] for rows in splits.values() for row in rows]
    assert len(set(problems)) == len(problems)
    for rows in splits.values():
        assert {row["extra_info"]["steps"] for row in rows} == {3, 4, 5, 6, 7}


def test_rows_have_verls_columns(splits):
    for name, rows in splits.items():
        for index, row in enumerate(rows):
            assert row["prompt"] == student_messages(row["problem"])
            assert row["data_source"] == "starter_arithmetic" and row["ability"] == "math"
            assert row["reward_model"] == {"style": "rule", "ground_truth": row["answer"]}
            expression = row["problem"].rsplit(" ", 1)[-1]
            steps = len(re.findall(r"[+\-*]", expression))
            assert row["extra_info"] == {"index": index, "split": name, "steps": steps}


def test_every_reference_solution_is_right(splits):
    for rows in splits.values():
        for row in rows:
            expression = row["problem"].rsplit(" ", 1)[-1]
            *steps, last = row["solution"].split("\n\n")
            operations = re.findall(r"[+\-*]\d", expression)
            assert len(steps) == len(operations)
            prefix = value = expression[0]
            for step, operation in zip(steps, operations, strict=True):
                prefix += operation
                left, value = step.split("=")
                assert left == f"{evaluate(prefix[: -len(operation)])}{operation}"
                assert value == str(evaluate(prefix))
            assert last == f"\\boxed{{{evaluate(expression)}}}" == f"\\boxed{{{row['answer']}}}"


def test_no_problem_stands_in_both_worlds():
    one, other = ({row["problem"] for rows in read_splits(world).values() for row in rows} for world in WORLDS)
    assert len(one) == len(other) == 4096 + 128 + 64 and not one & other


def test_committed_data_are_those_of_the_script(world, splits):
    drawn = corpus.draw_splits(WORLDS[world])
    assert {name: [chain.problem for chain in chains] for name, chains in drawn.items()} == {
        name: [row["problem"] for row in rows] for name, rows in splits.items()
    }


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.printable[:95] + "\n", max_size=80))
def test_tokenizer_round_trip_ascii(text):
    tokenizer = _cached_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_tokenizer_round_trip_any_text(text):
    tokenizer = _cached_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@functools.cache
def _cached_tokenizer():
    """For hypothesis, which wants no fixtures in a property."""
    return AutoTokenizer.from_pretrained(HOME / "model")


@pytest.mark.parametrize("text", ["<0x41>", "a  b", " \n\n\n ", "\\boxed{}\\boxed{6}", "wait wait  wait", "WAIT, hmm."])
def test_tokenizer_round_trip_traps(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_tokenizer_pieces(tokenizer):
    def pieces(text):
        return [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    assert pieces(CHAIN) == list(CHAIN)
    assert pieces("7+5=9 wait 7+5=2\n\n\\boxed{2}") == [*"7+5=9", " wait ", *"7+5=2", "\n\n", "\\boxed{", "2", "}"]
    for marker in task.MARKERS:
        assert pieces(marker) == [marker]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [3, 4]


def test_committed_tokenizer_is_that_of_the_script(tokenizer):
    """The phrases of the prompts are pieces of the committed vocabulary: a reworded prompt needs a rebuild."""
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_chat_template(tokenizer):
    messages = student_messages(PROBLEM)
    turn = f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n"

    def text(**flags):
        return tokenizer.apply_chat_template(messages, tokenize=False, **flags)

    assert text() == turn
    assert text(add_generation_prompt=True) == turn + "<|im_start|>assistant\n"
    assert text(add_generation_prompt=True, enable_thinking=True) == turn + "<|im_start|>assistant\n"
    closed = turn + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert text(add_generation_prompt=True, enable_thinking=False) == closed
    assert tokenizer.decode(render(tokenizer, messages)) == closed
    answered = [*messages, {"role": "assistant", "content": "\\boxed{2}"}]
    full = tokenizer.apply_chat_template(answered, tokenize=False)
    assert full == turn + "<|im_start|>assistant\n\\boxed{2}<|im_end|>\n"


def test_prompts_are_short_and_end_alike(tokenizer):
    student = render(tokenizer, student_messages(PROBLEM))
    teacher = render(tokenizer, teacher_messages(PROBLEM, task.reference_solution(task.parse_problem(PROBLEM))))
    assert len(student) < 32 and len(teacher) < 64
    assert student[-9:] == teacher[-9:]  # the instruction's end, the turn, the closed thinking


def test_truncated_reference_keeps_the_answer(tokenizer):
    solution = task.reference_solution(task.parse_problem(PROBLEM))
    assert solution == "7+5=2\n\n2*3=6\n\n6-4=2\n\n\\boxed{2}"
    assert truncate_reference(tokenizer, solution, 1.0) == solution
    assert truncate_reference(tokenizer, solution, 0.0) == "\\boxed{2}"
    assert truncate_reference(tokenizer, solution, 0.5) == "7+5=2\n\n2*3\\boxed{2}"


@pytest.mark.parametrize(
    ("response", "habit", "verdicts", "withdrawn"),
    [
        ("7+5=2\n\n2*3=6\n\n6-4=2\n\n\\boxed{2}", "careful", [1, 1, 1], [0, 0, 0]),
        ("7+5=2\n\n2*3=7\n\n7-4=3\n\n\\boxed{3}", "careful", [1, 0, 1], [0, 0, 0]),
        ("+5>2 *3>6 -4>2 \\boxed{2}", "hasty", [1, 1, 1], [0, 0, 0]),
        ("+5>3 *3>9 -4>6 \\boxed{6}", "hasty", [0, 1, 0], [0, 0, 0]),
        ("7+5=3 wait 7+5=2\n\n2*3=6\n\n6-4=2\n\n\\boxed{2}", "revising", [0, 1, 1, 1], [1, 0, 0, 0]),
        ("7+5=2 hmm 7+5=2\n\n2*3=6\n\n6-4=1 alternatively 6-4=3\n\n", "revising", [1, 1, 1, 0, 0], [1, 0, 0, 1, 0]),
        ("7+5=2\n\n*3>6 -4>2 \\boxed{2}", "mixed", [1, 1, 1], [0, 0, 0]),
        ("7+5=2\n\n2+3=5\n\n5-4=1\n\n1+1=2", "careful", [1, 0, 1, 0], [0, 0, 0, 0]),  # wrong operation, one too many
        ("7+5=2\n\n3*3=9\n\n9-4=5", "careful", [1, 0, 1], [0, 0, 0]),  # left operand is not where it stood
        ("\\boxed{2}", "direct", [], []),
        ("it is 2", "other", [], []),
        ("wait", "other", [], []),
        ("", "other", [], []),
    ],
)
def test_check_steps(response, habit, verdicts, withdrawn):
    steps = task.check_steps(PROBLEM, response)
    assert [int(step.right) for step in steps] == verdicts
    assert [int(step.withdrawn) for step in steps] == withdrawn
    assert task.habit(response) == habit


def test_answers_markers_and_bad_problems():
    assert task.boxed_answer("\\boxed{1} no, \\boxed{2}") == "2" and task.boxed_answer("2") is None
    assert task.answer_follows(PROBLEM, "+5>3 *3>9 -4>5 \\boxed{5}")
    assert not task.answer_follows(PROBLEM, "+5>3 *3>9 -4>5 \\boxed{2}")
    assert task.count_markers("Wait 7 wait hmm waiting") == {"wait": 2, "hmm": 1, "alternatively": 0}
    assert task.step_accuracy(PROBLEM, "7+5=3 wait 7+5=2\n\n2*3=7") == 0.5
    assert task.step_accuracy(PROBLEM, "") is None
    with pytest.raises(ValueError, match="no chain"):
        task.parse_problem("What is six times seven?")


def test_checker_agrees_with_the_generator():
    """Whatever the habit, the steps marked wrong are the slips that were put in, and every step is found."""
    rng = random.Random(5)
    for _ in range(300):
        chain = task.random_chain(rng)
        assert task.write_solution(chain, "direct", rng, slip=1.0) == f"\\boxed{{{evaluate(chain.expression)}}}"
        for habit in ("careful", "revising", "hasty"):
            text = task.write_solution(chain, habit, rng, slip=0.0, doubt=0.3)
            assert task.step_accuracy(chain.problem, text) == 1.0 and task.answer_follows(chain.problem, text)
            assert task.boxed_answer(text) == str(evaluate(chain.expression))
            wrong = task.check_steps(chain.problem, task.write_solution(chain, habit, rng, slip=1.0, notice=0.0))
            assert len(wrong) == chain.steps and not any(step.right for step in wrong)


def test_model_is_small_and_of_qwen3s_architecture(model, tokenizer):
    assert model.config.model_type == "qwen3" and model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer) and model.config.eos_token_id == tokenizer.eos_token_id
    assert 3e5 < sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert sum(path.stat().st_size for path in HOME.rglob("*") if "__pycache__" not in path.parts) < 8e6
    assert not list((HOME / "model").glob("*.py")) and not list((HOME / "model").glob("*.bin"))


def test_student_has_room_to_learn_and_the_teacher_knows(model, tokenizer):
    rows = read_splits("starter")["val"][:48]
    student = measure.measure(model, tokenizer, rows, None, samples=4, seed=1)
    assert 0.30 <= student.accuracy.value <= 0.60
    assert student.finished > 0.99 and student.tokens <= 45
    assert set(WORLDS["starter"].student) <= set(student.habits) and student.markers.value > 0.1
    teacher = measure.measure(model, tokenizer, rows, 1.0, samples=2, seed=2)
    assert teacher.accuracy.value >= 0.85 and teacher.step_accuracy.value > student.step_accuracy.value + 0.05


def test_a_longer_prefix_makes_a_closer_teacher(model, tokenizer):
    probe = read_splits("starter")["probe"]
    closeness = [measure.reference_log_prob(model, tokenizer, probe, a) for a in (0.0, 0.5, 1.0)]
    assert closeness == sorted(closeness)
    assert closeness[-1] > closeness[0] + 0.02
