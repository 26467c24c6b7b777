"""recipes.common.teacher.exposure and .difficulty: per-problem exposure from a running accuracy, and what is saved."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.checks.learning import exposure, too_short_to_learn
from recipes.common.method import read
from recipes.common.teacher.controller import ExposureController
from recipes.common.teacher.decisions import PROGRESS_SIGNALS, ControllerConfig, Observation
from recipes.common.teacher.difficulty import ProblemAccuracy
from recipes.common.teacher.exposure import ExposureLoop, ExposureParams, controller_config, exposure_params
from tests.builders.configs import composed


def test_accuracy_by_hand():
    known = ProblemAccuracy(memory=0.5, prior=2.0)
    first = known.visit(["7", "7", "8", "8"], [True, False, False, False])
    # All problems: 1 of 4. Problem 7: (1 + 2 · 0.25) / 4, problem 8: (0 + 0.5) / 4.
    assert first.tolist() == pytest.approx([0.375, 0.375, 0.125, 0.125])
    second = known.visit(["7", "9"], [True, True])
    # Problem 7 keeps half of (1, 2): (1.5, 2). All: (1.5 + 0 + 1) / (2 + 2 + 1) = 0.5.
    assert second.tolist() == pytest.approx([(1.5 + 1.0) / 4.0, (1.0 + 1.0) / 3.0])
    # A filler row counts for nothing and is as hard as all of them. Problem 8 keeps (0, 1) and adds (0, 1).
    third = known.visit([None, "8"], [True, False])
    assert third.tolist() == pytest.approx([0.5, (0.0 + 1.0) / 4.0])


def test_seen_once_without_a_prior_it_is_the_groups_mean():
    known = ProblemAccuracy(memory=0.9, prior=0.0)
    assert known.visit(["a", "b", "a"], [True, False, False]).tolist() == [0.5, 0.0, 0.5]
    assert ProblemAccuracy(memory=0.9, prior=1.0).visit([None], [True]).tolist() == [0.5]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 5),
)
def test_it_is_what_the_whole_history_says(steps, memory, prior):
    """Against every visit weighed by its age in visits, counted anew after each step."""
    known = ProblemAccuracy(memory, prior)
    visits: dict[int, list[tuple[int, int]]] = {}
    for responses in steps:
        got = known.visit([str(p) for p, _ in responses], [c for _, c in responses])
        for problem in {p for p, _ in responses}:
            own = [c for p, c in responses if p == problem]
            visits.setdefault(problem, []).append((sum(own), len(own)))
        counts = {
            problem: [sum(memory**age * v[part] for age, v in enumerate(reversed(seen))) for part in (0, 1)]
            for problem, seen in visits.items()
        }
        overall = sum(c[0] for c in counts.values()) / sum(c[1] for c in counts.values())
        wanted = [(counts[p][0] + prior * overall) / (counts[p][1] + prior) for p, _ in responses]
        assert got.tolist() == pytest.approx(wanted, abs=1e-12)


def loop(**params):
    settings = ExposureParams(mode="fixed", fixed_exposure=0.6, **params)
    return ExposureLoop(settings, ControllerConfig(total_steps=9, mode="fixed", fixed_exposure=0.6))


def test_problems_that_the_student_fails_show_less():
    problems, correct = ["a", "a", "b", "b"], [True, True, False, False]
    assert loop().of_responses(problems, correct) == [0.6] * 4
    given = loop(difficulty_strength=2.0, difficulty_prior=0.0).of_responses(problems, correct)
    centre = math.log(0.6 / 0.4)
    by_hand = [1 / (1 + math.exp(-(centre + sign))) for sign in (1, 1, -1, -1)]
    assert given == pytest.approx(by_hand, rel=1e-6)


def test_one_lucky_rollout_moves_a_known_problem_less_than_a_new_one():
    known = loop(difficulty_strength=2.0)
    for _ in range(5):
        known.of_responses(["a", "b"], [False, True])
    lucky_old, easy, lucky_new = known.of_responses(["a", "b", "c"], [True, True, True])
    assert lucky_old < lucky_new < easy


def test_a_resumed_run_knows_its_problems(tmp_path):
    whole, first = (loop(difficulty_strength=1.5) for _ in range(2))
    steps = [
        (["a", "b", "a"], [True, False, False]),
        (["b", "c", None], [True, False, True]),
        (["c", "a", "b"], [False, True, True]),
    ]
    wanted = []
    for step in steps:
        wanted.append(whole.of_responses(*step))
        whole.observe(Observation(loss=1.0))
    for step in steps[:2]:
        first.of_responses(*step)
        first.observe(Observation(loss=1.0))
    first.save(tmp_path)
    second = loop(difficulty_strength=1.5)
    second.load(tmp_path)
    assert second.of_responses(*steps[2]) == wanted[2] != loop(difficulty_strength=1.5).of_responses(*steps[2])


def test_a_checkpoint_without_accuracies_is_refused(tmp_path):
    plain = loop()
    plain.of_responses(["a"], [True])
    plain.save(tmp_path)
    loop().load(tmp_path)
    with pytest.raises(RuntimeError, match="difficulty_strength=0"):
        loop(difficulty_strength=1.0).load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("difficulty_memory", 1.5),
        ("difficulty_memory", -0.1),
        ("difficulty_prior", -1.0),
        ("difficulty_prior", math.inf),
    ],
)
def test_values_that_mean_nothing_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        ExposureParams(**{key: value}).validate()


def test_the_controllers_seed_is_the_runs_unless_it_is_given(tmp_path):
    for overrides, seed in ((["data.seed=7"], 7), (["data.seed=7", "self_distill.exposure.controller.seed=3"], 3)):
        cfg = composed("method=atesd", "experiment=starter", *overrides, run_dir=tmp_path)
        assert controller_config(cfg.self_distill, exposure_params(cfg.self_distill)).seed == seed


@pytest.mark.parametrize("signal", PROGRESS_SIGNALS)
def test_a_run_too_short_to_learn_is_warned_of_and_one_update_more_is_not(signal, tmp_path):
    """The rule of the warning against what the controller does: it must learn before the last exposure is chosen."""
    short = {"hold": 2, "lookahead": 3, "decisions_per_update": 2, "progress_signal": signal}
    cfg = composed("method=atesd", "experiment=starter", run_dir=tmp_path)
    cfg.self_distill.exposure.controller.update(short)
    controller = ExposureController(ControllerConfig(total_steps=20, **short))
    controller.step()
    steps = 0
    while not controller.memory.updates:
        steps += 1
        controller.step(Observation(loss=1.0 / steps, probe_loss=1.0 / steps, grounded=-1.0))
    for total, warned in ((steps, True), (steps + 1, False)):
        cfg.trainer.total_training_steps = total
        assert bool(list(too_short_to_learn(cfg, read(cfg)))) is warned


def test_a_counterfactual_credit_needs_an_exposure_that_acts_through_the_divergence_alone(tmp_path):
    credit = "self_distill.exposure.controller.credit=counterfactual"
    for method, refused in (("atesd", False), ("atesd_sampled", True)):
        cfg = composed(f"method={method}", "experiment=starter", credit, run_dir=tmp_path)
        assert read(cfg).problems == ()
        said = [problem for problem in exposure(cfg, read(cfg)) if problem.startswith(credit)]
        assert len(said) == refused
