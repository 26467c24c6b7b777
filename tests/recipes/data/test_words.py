"""Word problems: by hand, by an evaluator that reads only the story, and apart from those that are held out."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from config import CONFIG_DIR
from recipes.data.prepare import prepare
from recipes.data.readers import DataError
from recipes.data.sets import words
from recipes.data.sets.words import Operation
from rewards.boxes import last_box
from rewards.math import compute_score

# What each sentence of a story does to the quantity that it tells of, written from the sentences.
SENTENCES = (
    (r"\w+ has (\d+) \w+", lambda held, n: Fraction(n)),
    (r"\w+ gives (\w+) (\d+) more \w+", lambda held, n: held + n),
    (r"\w+ gives (\d+) \w+ to \w+", lambda held, n: held - n),
    (r"\w+ sells all of the \w+ for (\d+) dollars each", lambda held, n: held * n),
    (r"\w+ shares all of the \w+ equally among (\d+) friends", lambda held, n: held / n),
    (r"\w+ has (\d+) more \w+ than \w+ now has", lambda held, n: held + n),
    (r"\w+ has (\d+) fewer \w+ than \w+ now has", lambda held, n: held - n),
    (r"\w+ has (\d+) times as many \w+ as \w+ now has", lambda held, n: held * n),
)


def told(problem: str) -> Fraction:
    """The answer, from the words alone; fails on a sentence that it does not know."""
    *story, asked, _ = re.split(r"[.?] ?", problem)
    assert asked.startswith("How many ")
    held = Fraction(0)
    for sentence in story:
        pack = re.fullmatch(r"\w+ buys (\d+) \w+ with (\d+) \w+ in each \w+", sentence)
        if pack:
            held = Fraction(int(pack[1]) * int(pack[2]))
            continue
        (held,) = (
            effect(held, int(match.groups()[-1]))
            for pattern, effect in SENTENCES
            if (match := re.fullmatch(pattern, sentence))
        )
    return held


@pytest.fixture(scope="module")
def rows():
    return list(words.generate(1200, [1, 3], 7))


def test_answers_are_those_of_the_story_and_every_written_equation_holds(rows):
    for row in rows:
        assert told(row["problem"]) == int(row["answer"]), row
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", row["solution"])
        assert len(equations) == row["steps"]
        signs = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": Fraction}
        for left, sign, right, value in equations:
            assert signs[sign](int(left), int(right)) == int(value)
        for before, after in pairwise(equations):
            assert before[3] == after[0], "a step goes on from the result of the one before"
        assert equations[-1][3] == row["answer"] and 2 <= int(row["answer"]) <= words.LARGEST


def test_solutions_end_in_the_box_that_the_grader_accepts(rows):
    for row in rows[:60]:
        box = last_box(row["solution"])
        assert box.content == row["answer"] and box.end == len(row["solution"])
        assert compute_score("word_problems", row["solution"], row["answer"])["score"] == 1.0


def test_every_kind_of_story_is_told(rows):
    text = "\n".join(row["problem"] for row in rows)
    for part in ("buys", "more", "to", "sells", "shares", "fewer", "times", "more .* than"):
        assert re.search(rf"\b{part}\b", text), part
    assert [sum(row["steps"] == count for row in rows) for count in (1, 2, 3)] == [400, 400, 400]


def test_a_problem_by_hand():
    steps = (Operation("pack", 4, 6, 24), Operation("lose", 24, 4, 20), Operation("share", 20, 5, 4))
    problem, solution = words.problem_and_solution(random.Random(0), steps)
    names = r"(\w+) buys 4 (\w+) with 6 (\w+) in each (\w+)\. \1 gives 4 \3 to (\w+)\."
    who, several, things, one, giver = re.match(names, problem).groups()
    assert problem == (
        f"{who} buys 4 {several} with 6 {things} in each {one}. {who} gives 4 {things} to {giver}. {who} shares all of "
        f"the {things} equally among 5 friends. How many {things} does each friend get?"
    )
    assert (several, one) in {pair[::-1] for pair in words.CONTAINERS}
    assert solution == (
        f"{who} buys 4 * 6 = 24 {things}.\n\nAfter the gift to {giver}, {who} has 24 - 4 = 20 {things}.\n\n"
        f"Each friend gets 20 / 5 = 4 {things}.\n\nThe answer is \\boxed{{4}}"
    )
    assert told(problem) == 4


@pytest.mark.parametrize(
    ("kind", "left", "right", "value"),
    [("gain", 5, 7, 12), ("lose", 5, 4, None), ("share", 7, 2, None), ("share", 8, 2, 4), ("sell", 500, 2, None)],
)
def test_results_that_are_no_whole_numbers_in_range_are_not_drawn(kind, left, right, value):
    assert words.apply(kind, left, right) == value


def test_the_seed_says_which_problems(rows):
    assert list(words.generate(30, [1, 3], 7)) == rows[:30]
    assert list(words.generate(30, [1, 3], 8)) != rows[:30]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((10, [0, 3], 1), "steps=.*from 1 to 3"),
        ((10, [3, 1], 1), "steps="),
        ((10, 2, 1), "steps="),
        ((0, [1, 3], 1), "size=0"),
        ((6001, [1, 3], 1), "size=6001: must be a whole number from 1 to 6000"),
        ((True, [1, 3], 1), "size=True"),
        ((10, [1, 3], "x"), "seed=x"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(DataError, match=said):
        next(words.generate(*arguments))


def test_the_files_share_no_calculation(tmp_path):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        size = ["dataset.generate.size=600", "dataset.test_size=60"]
        said = prepare(compose("prepare", overrides=["dataset=word_problems", f"out='{tmp_path}'", *size]))
    assert "train 486, probe 54, test 60" in said and "not checked for copies" not in said
    parts = {n: pq.read_table(tmp_path / "word_problems" / f"{n}.parquet").to_pylist() for n in
             ("train", "probe", "test")}  # fmt: skip
    assert sorted(row["extra_info"]["difficulty"] for row in parts["test"]) == [1] * 20 + [2] * 20 + [3] * 20
    for name, others in (("probe", ("train", "test")), ("test", ("train",))):
        seen = {told_key(row) for other in others for row in parts[other]}
        assert not [row for row in parts[name] if told_key(row) in seen]
    for row in (row for rows in parts.values() for row in rows):
        assert row["reward_model"]["ground_truth"] == row["answer"] == str(told(row["problem"]))


def told_key(row: dict) -> tuple[str, ...]:
    """The story without names and things: numbers and the words between them."""
    plain = re.sub(r"\b(?:[A-Z][a-z]+|box(?:es)?|bags?|jars?|baskets?)\b", "", row["problem"])
    for thing in words.THINGS:
        plain = plain.replace(thing, "")
    return tuple(plain.split())
