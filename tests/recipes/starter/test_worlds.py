"""The second embedded world: it is taught what its definition says, and its weights have the manner that is stated."""

from __future__ import annotations

import filecmp
import itertools
import random

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.starter import corpus, measure, pretrain, task
from recipes.starter.worlds import HOME, WORLDS

SHORTCUT = WORLDS["shortcut"]
FOLDER = HOME / SHORTCUT.folder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "model")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(FOLDER / "data" / "val.parquet").to_pylist()


def test_worlds_differ_in_weights_and_data_alone():
    for path in (HOME / "model").iterdir():
        same = filecmp.cmp(path, FOLDER / "model" / path.name, shallow=False)
        assert same != (path.name == "model.safetensors"), path.name


def test_shares_go_from_the_students_to_the_teachers():
    assert SHORTCUT.shares(None) == SHORTCUT.shares(0.0) == SHORTCUT.student
    assert SHORTCUT.shares(1.0) == pytest.approx(SHORTCUT.teacher)
    # A quarter of the way at half the exposure: 0.82 + (0.96 - 0.82) / 4.
    assert SHORTCUT.shares(0.5)["direct"] == pytest.approx(0.855)
    # The first world is half way: 0.55 - (0.55 - 0.05) / 2.
    assert WORLDS["starter"].shares(0.5)["hasty"] == pytest.approx(0.30)
    for world in WORLDS.values():
        for exposure in (None, 0.0, 0.3, 1.0):
            assert sum(world.shares(exposure).values()) == pytest.approx(1.0)


def test_halves_are_weighted_back_to_the_shares(tokenizer):
    """Half of the examples are direct; 2 · 0.82 and 2 · 0.18 give the choice back its share."""
    rng, weights = random.Random(3), {True: [], False: []}
    for _ in range(1500):
        example = corpus.example(tokenizer, rng, set(), SHORTCUT)
        if "Reference" not in tokenizer.decode(example.prompt):
            text = tokenizer.decode(example.response, skip_special_tokens=True)
            weights[task.habit(text) == "direct"].append(example.weight)
    assert weights[True] == pytest.approx([1.64] * len(weights[True]))
    assert weights[False] == pytest.approx([0.36] * len(weights[False]))
    assert len(weights[True]) == pytest.approx(len(weights[False]), rel=0.15)


def test_in_a_drill_no_slip_stays_and_nothing_is_direct(tokenizer):
    rng, withdrawn = random.Random(4), 0
    for _ in range(300):
        example = corpus.example(tokenizer, rng, set(), SHORTCUT, drill=True)
        prompt, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (example.prompt, example.response))
        problem = next(line for line in prompt.splitlines() if task.PROBLEM_PREFIX in line)
        assert task.habit(text) != "direct" and example.weight == 1.0
        assert task.step_accuracy(problem, text) == 1.0
        withdrawn += sum(step.withdrawn and not step.right for step in task.check_steps(problem, text))
    assert withdrawn > 50  # slips there are, to be noticed


def test_pretraining_sees_no_problem_of_either_world(tokenizer, rows):
    """The loop draws again until the problem is none of the forbidden ones; here nearly all of them are."""
    allowed = {task.Chain(1, (("+", 2),)), task.Chain(3, (("*", 4),))}
    every = {task.Chain(s, ((op, r),)) for s in range(10) for op in "+-*" for r in range(1, 10)}
    world = WORLDS["starter"]
    drill = dict(vars(world)) | {"drill_steps": 1}
    for seed in range(5):
        example = corpus.example(tokenizer, random.Random(seed), every - allowed, type(world)(**drill), drill=True)
        assert any(chain.expression in tokenizer.decode(example.prompt) for chain in allowed)
    first = pq.read_table(HOME / "data" / "train.parquet").to_pylist()
    reserved = corpus.reserved(SHORTCUT)
    assert {task.parse_problem(row["problem"]) for row in first} < reserved
    assert not any(task.parse_problem(row["problem"]) in reserved for row in rows)


@pytest.mark.parametrize("name", WORLDS)
def test_weights_of_a_batch(tokenizer, name):
    """Unbalanced, every batch weighs 1; balanced, every token but the first of a response weighs the same."""
    batches = pretrain._batches(tokenizer, 1, set(), 0, WORLDS[name])
    inner, sums = set(), []
    for _ in range(pretrain.BUCKET):
        _, labels, weights = next(batches)
        assert bool((weights[labels == -100] == 0).all()) and bool((weights[labels != -100] > 0).all())
        first = (labels != -100).int().argmax(dim=1, keepdim=True)
        inner |= set(weights.scatter(1, first, 0.0).unique().tolist()) - {0.0}
        sums.append(weights.sum().item())
    if name == "starter":
        assert sums == pytest.approx([1.0] * pretrain.BUCKET) and len(inner) > 1
    else:
        assert len(inner) == 1 and sum(sums) / len(sums) == pytest.approx(1.0, abs=0.1) and max(sums) > 2 * min(sums)


@torch.no_grad()
def direct_share(model, tokenizer, rows, exposure):
    """Mean probability that a response begins with the box, exact."""
    box = tokenizer.convert_tokens_to_ids("\\boxed{")
    prompts = [measure.prompt_ids(tokenizer, row["problem"], row["solution"], exposure) for row in rows]
    return sum(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[box].item() for ids in prompts) / len(rows)


def test_the_student_guesses_and_is_right_where_it_works_things_out(model, tokenizer):
    """On training problems, of which there are many; the 128 of validation are a little easier to guess."""
    many = pq.read_table(FOLDER / "data" / "train.parquet").to_pylist()[:1024]
    score = measure.measure(model, tokenizer, many, None, samples=2, seed=1)
    assert 0.15 <= score.accuracy.value <= 0.30
    assert score.worked_out.value >= 0.80 and score.by_habit["direct"].value <= 0.20
    assert score.by_habit["careful"].value >= 0.80
    assert score.markers.value > 0.05 and score.habits["revising"].value > 0.05
    assert score.finished > 0.99
    assert set(score.habits) <= {*SHORTCUT.student, "other"}


def test_the_teacher_knows_and_answers_at_once(model, tokenizer, rows):
    score = measure.measure(model, tokenizer, rows[:64], 1.0, samples=4, seed=2)
    assert score.accuracy.value >= 0.90 and score.by_habit["direct"].value >= 0.90
    assert score.habits["direct"].value >= 0.85


def test_the_manner_changes_by_degrees_with_the_exposure(model, tokenizer, rows):
    """With the answer alone the teacher works as much out as the student, and less the more it is shown."""
    student, *teachers = (direct_share(model, tokenizer, rows, a) for a in (None, *measure.EXPOSURES))
    assert abs(teachers[0] - student) < 0.03
    assert teachers == sorted(teachers)
    steps = [after - before for before, after in itertools.pairwise(teachers)]
    assert max(steps) < 0.6 * (teachers[-1] - teachers[0]), "no single step is most of the way"
    assert teachers[-1] - student > 0.08
