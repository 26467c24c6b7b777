"""Sampling, scoring, the one-step shift and the interventions, on the embedded model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import STARTER
from recipes.common.checks.errors import SettingsError
from recipes.diagnose.distributions import entropy
from recipes.diagnose.engine import (
    Problem,
    as_response,
    grade,
    load_model,
    load_problems,
    response_logits,
    sample,
    scoring_batches,
    teacher_prompts,
)
from recipes.diagnose.health import StepJudge, judge_steps, measures
from recipes.diagnose.interventions import Site, bucket_positions, choose_sites, finish
from recipes.diagnose.mc_dropout import dropout_hooks
from recipes.diagnose.one_step import STEPS, adam_first_step, one_step_shifts, pressure_gradients, stepped
from recipes.diagnose.vllm_rollouts import engine_problem
from recipes.evaluate import process_reward
from recipes.starter.task import PROBLEM_PREFIX
from rewards.code import Task, ground_truth_of
from tests.builders.benchmark_sets import write_rows
from tests.recipes.evaluate.test_health import published_like
from workers.divergence import sampled_token_gap, token_log_probs
from workers.rollout.generation import SamplingParams, response_seed

KWARGS = {"enable_thinking": False}
STARTER_MODEL = str(STARTER / "model")
NOWHERE = Path("/nowhere")  # nothing has to be merged


@pytest.fixture(scope="module")
def engine():
    return load_model(STARTER_MODEL, merged=NOWHERE, device="cpu", dtype="float32", tokens_per_pass=2048)


@pytest.fixture(scope="module")
def problems(engine):
    return load_problems(str(STARTER / "data/val.parquet"), 4, engine, KWARGS)


@pytest.fixture(scope="module")
def scored(engine, problems):
    """Prompts, sampled responses and the teacher's gaps."""
    prompts = [p.prompt for p in problems]
    ids = sample(engine, prompts, SamplingParams(max_tokens=60), [("t", p.index) for p in problems])
    teacher = teacher_prompts(engine, problems, context="solution", max_length=512, template_kwargs=KWARGS)
    with torch.no_grad():
        student = response_logits(engine, prompts, ids)
        privileged = response_logits(engine, [teacher(p.row).token_ids for p in problems], ids)
    gaps = [sampled_token_gap(s, t, torch.tensor(r)) for s, t, r in zip(student, privileged, ids, strict=True)]
    return prompts, ids, gaps, student, privileged


def test_row_t_is_the_distribution_that_token_t_was_drawn_from(engine, problems):
    greedy = SamplingParams(temperature=0.0, max_tokens=60)
    prompts = [p.prompt for p in problems]
    ids = sample(engine, prompts, greedy, [("g", i) for i in range(4)])
    assert len({len(r) for r in ids}) > 1  # so that padding is at work
    with torch.no_grad():
        rows = response_logits(engine, prompts, ids)
    assert [r.argmax(-1).tolist() for r in rows] == ids


def test_padding_does_not_change_logits(engine, scored):
    prompts, ids, _, student, _ = scored
    with torch.no_grad():
        for prompt, response, together in zip(prompts, ids, student, strict=True):
            alone = engine.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            assert torch.allclose(alone, together, atol=2e-4)


def test_a_sample_depends_on_its_name_alone(engine, problems):
    prompts, params = [p.prompt for p in problems], SamplingParams(max_tokens=40)
    names = [("s", p.index) for p in problems]
    together = sample(engine, prompts, params, names)
    alone = [sample(engine, [p], params, [name])[0] for p, name in zip(prompts, names, strict=True)]
    cut = sample(engine, prompts, params, names, limits=[3, 40, 1, 5])
    assert together == alone
    assert cut == [together[0][:3], together[1], together[2][:1], together[3][:5]]
    assert sample(engine, prompts, params, [("other", p.index) for p in problems]) != together


def test_batches_cover_everything_once_and_fit(engine):
    lengths = [5, 900, 30, 2000, 31, 700, 3000]
    batches = list(scoring_batches(engine, lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= engine.tokens_per_pass


def test_grading_and_gold(engine, problems):
    gold = problems[0].gold
    texts = [f"so \\boxed{{{gold}}}", "\\boxed{77}", "no answer"]
    assert grade(engine, texts, problems[:1] * 3) == [True, False, False]


def graded(grader, gold, **extra):
    row = {"problem": "p", "answer": "shown", "reward_model": {"ground_truth": gold}}
    return Problem(0, {**row, "extra_info": {"grader": grader, **extra}}, [1])


def test_each_set_is_graded_by_its_own_grader(engine):
    """What mathematics would take for wrong, or for right."""
    choice = graded("choice", "B", options=["four", "five"])
    knights = graded("knights", "Ann: knight, Ben: knave")
    program = graded("code", ground_truth_of(Task("assert f(2) == 4", "f")))
    cases = [
        (choice, "The answer is (B).", True), (choice, "\\boxed{five}", True), (choice, "\\boxed{A}", False),
        (knights, "\\boxed{Ben: knave, Ann: knight}", True), (knights, "\\boxed{Ann: knight}", False),
        (program, "```python\ndef f(x):\n    return x * x\n```", True), (program, "\\boxed{4}", False),
    ]  # fmt: skip
    found = grade(engine, [text for _, text, _ in cases], [problem for problem, _, _ in cases])
    assert found == [right for *_, right in cases]


def test_sets_that_cannot_be_graded_are_refused(engine, tmp_path):
    def refused(rows, engine=engine):
        write_rows(tmp_path / "rows.parquet", rows)
        with pytest.raises(SettingsError) as error:
            load_problems(str(tmp_path / "rows.parquet"), None, engine, KWARGS)
        return str(error.value)

    row = {"problem": "p", "answer": "4", "prompt": [{"role": "user", "content": "p"}], "data_source": "s"}
    assert "grader='poems'" in refused([{**row, "extra_info": {"grader": "poems"}}])
    without = {**row, "extra_info": {"grader": "code"}, "reward_model": {"ground_truth": "{}"}}
    assert "row 0 has no answer" in refused([without])
    sound = {**without, "reward_model": {"ground_truth": ground_truth_of(Task("assert f(2) == 4", "f"))}}
    assert "wall_s" in refused([sound], replace(engine, code={"wall_s": 0}))


def test_steps_of_any_problem_are_judged(tmp_path):
    published_like(tmp_path)
    judge = StepJudge(*process_reward.load(str(tmp_path), "float32", "cpu"), threshold=0.5)
    chain = f"{PROBLEM_PREFIX}7+5*3"
    answered = [(chain, "7+5=2\n\n2*3=5"), ("What is 1+1?", "One and one.\n\nTwo."), ("Empty?", "")]
    exact, modelled, none = judge_steps(judge, answered)
    assert exact == [True, False] and none == []
    scores = process_reward.score_steps(judge.model, judge.tokenizer, [("What is 1+1?", ["One and one.", "Two."])])[0]
    for threshold in (min(scores), max(scores) + 1e-6):
        expected = [score >= threshold for score in scores]
        assert judge_steps(replace(judge, threshold=threshold), answered)[1] == expected
    assert len(modelled) == 2 and judge_steps(None, answered) == [[True, False], [], []]
    assert measures([True, False], "maybe", 4, True) == {
        "step_acc": 0.5,
        "e_per_1k": 250.0,
        "rev_rate": 0.0,
        "accuracy": 1.0,
    }
    assert measures([], "", 0, None) == {"step_acc": None, "e_per_1k": 0.0, "rev_rate": 0.0, "accuracy": None}


def test_problems_of_several_files_are_pooled_and_keep_their_source(engine, tmp_path):
    rows = [{"problem": f"{n}+1?", "answer": f"{n + 1}", "data_source": "sums"} for n in range(3)]
    write_rows(tmp_path / "sums.parquet", rows)
    mixed = [{**row, "data_source": source} for row, source in zip(rows, "abc", strict=True)]
    write_rows(tmp_path / "mixed.parquet", mixed)
    val, probe, sums, several = (
        *(str(STARTER / f"data/{name}.parquet") for name in ("val", "probe")),
        *(str(tmp_path / f"{name}.parquet") for name in ("sums", "mixed")),
    )
    found = load_problems([val, sums, several], 2, engine, KWARGS)
    assert [p.index for p in found] == list(range(6))  # no two problems have one name
    assert [p.source for p in found] == ["starter_arithmetic"] * 2 + ["sums"] * 2 + [several] * 2
    assert [p.row["problem"] for p in found[2:4]] == ["0+1?", "1+1?"]
    alone = load_problems(val, 2, engine, KWARGS)
    assert found[:2] == alone  # what was measured of the first file is not measured anew
    # Two files of one set have their paths for names, or they could not be told apart.
    assert [p.source for p in load_problems([val, probe], 1, engine, KWARGS)] == [val, probe]
    for problem in found[:4]:
        problem.row["solution"] = "shown"
    with pytest.raises(SettingsError, match=f"2 of 6 rows.*row 4 of all, in {several}"):
        teacher_prompts(engine, found, context="solution", max_length=512, template_kwargs=KWARGS)


def test_vllm_samples_in_the_models_place(engine, problems):
    """The interface alone: vLLM's build for CPUs is an environment of its own (tests/test_vllm.py)."""
    asked = []

    class Sampler:
        def sample(self, prompts, params, seeds, limits):
            asked.append((prompts, params, seeds, limits))
            return [[7] * limit for limit in limits]

    prompts, params = [p.prompt for p in problems], SamplingParams(max_tokens=9)
    names = [("s", p.index) for p in problems]
    assert sample(replace(engine, vllm=Sampler()), prompts, params, names, limits=[1, 2, 3, 4])[3] == [7] * 4
    assert asked == [(prompts, params, [response_seed(*name) for name in names], [1, 2, 3, 4])]
    with pytest.raises(SettingsError, match="engine=sglang: must be transformers or vllm"):
        raise SettingsError([engine_problem("sglang", "cpu")])


def test_bad_input_is_refused(engine, tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_problems(str(tmp_path / "none.parquet"), 4, engine, KWARGS)
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(SettingsError, match="cannot be read as parquet"):
        load_problems(str(tmp_path / "broken.parquet"), 4, engine, KWARGS)
    with pytest.raises(SettingsError, match="name the folder that holds one"):
        load_model(str(tmp_path), merged=NOWHERE, device="cpu", dtype="float32", tokens_per_pass=1)
    shutil.copytree(STARTER_MODEL, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes(b"cut short")
    with pytest.raises(SettingsError, match=r"model=.*cannot be loaded"):
        load_model(str(tmp_path / "cut"), merged=NOWHERE, device="cpu", dtype="float32", tokens_per_pass=1)
    with pytest.raises(SettingsError, match="must be one of"):
        load_model(STARTER_MODEL, merged=NOWHERE, device="cpu", dtype="int8", tokens_per_pass=1)
    twice = [str(STARTER / "data/val.parquet")] * 2
    with pytest.raises(SettingsError, match="stands there twice"):
        load_problems(twice, 2, engine, KWARGS)
    with pytest.raises(SettingsError, match="data= is empty"):
        load_problems([], 2, engine, KWARGS)
    found = load_problems(str(STARTER / "data/val.parquet"), 2, engine, KWARGS)
    found[1].row["solution"] = None
    with pytest.raises(SettingsError, match="1 of 2 rows have no solution.*row 1"):
        teacher_prompts(engine, found, context="solution", max_length=512, template_kwargs=KWARGS)


# --- Monte Carlo dropout ----------------------------------------------------------------------------------------------


def test_dropout_hooks_are_seeded_and_go_again(engine, scored):
    prompts, ids, _, student, _ = scored

    def once(seed=None, layers=2):
        with torch.no_grad():
            if seed is None:
                return response_logits(engine, prompts[:1], ids[:1])[0]
            with dropout_hooks(engine.model, layers=layers, rate=0.1, seed=seed):
                return response_logits(engine, prompts[:1], ids[:1])[0]

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    assert not torch.equal(once(1, layers=1), once(1, layers=2))
    with pytest.raises(RuntimeError, match="inside"), dropout_hooks(engine.model, layers=2, rate=0.1, seed=1):
        raise RuntimeError("inside")
    assert torch.allclose(once(), student[0], atol=2e-4)


def test_dropout_keeps_the_mean(engine):
    seen = []
    layer = engine.model.get_decoder().layers[-1]
    with dropout_hooks(engine.model, layers=1, rate=0.25, seed=5):
        handle = layer.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
        with torch.no_grad():
            engine.model(torch.arange(40, 300)[None])
        handle.remove()
    dropped = (seen[0] == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.02)


# --- one step ---------------------------------------------------------------------------------------------------------


def test_the_first_step_is_torchs_adamw():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    gradient = torch.tensor([0.3, -1e-7, 0.0], dtype=torch.float64)
    optimiser = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.0, maximize=True)
    before = parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimiser.step()
    assert torch.allclose(parameter.detach() - before, adam_first_step(gradient, 1e-3), atol=1e-9)


def test_pressure_is_the_gradient_of_the_objective(engine, scored):
    prompts, ids, gaps, _, _ = scored
    favoured, disfavoured = pressure_gradients(engine, prompts, ids, gaps, 1.0)
    objective = 0.0
    for prompt, response, gap in zip(prompts, ids, gaps, strict=True):
        rows = engine.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        objective = objective + (gap * token_log_probs(rows, torch.tensor(response))).mean() / len(ids)
    names, parameters = zip(*engine.model.named_parameters(), strict=True)
    for name, expected in zip(names, torch.autograd.grad(objective, parameters), strict=True):
        assert torch.allclose(favoured[name] + disfavoured[name], expected, atol=1e-5), name


def test_steps_move_the_objective_their_way_and_leave_the_model(engine, scored):
    prompts, ids, gaps, _, _ = scored
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    gradients = pressure_gradients(engine, prompts, ids, gaps, 1.0)

    def objective(parameters, part):
        from torch.func import functional_call

        with torch.no_grad():
            rows = response_logits(
                engine, prompts, ids, forward=lambda *a, **k: functional_call(engine.model, parameters, a, k)
            )
        shares = [
            (part(gap) * token_log_probs(r, torch.tensor(response))).mean()
            for gap, r, response in zip(gaps, rows, ids, strict=True)
        ]
        return float(torch.stack(shares).mean())

    everything, own_up, own_down = (lambda g: g), (lambda g: g.clamp(min=0)), (lambda g: g.clamp(max=0))
    for step, part, sign in (
        ("conformity", everything, 1), ("novelty", everything, -1), ("conformity_own", own_up, 1),
        ("novelty_own", own_down, -1),
    ):  # fmt: skip
        moved = stepped(engine, *gradients, step, 1e-5)
        assert sign * (objective(moved, part) - objective(before, part)) > 0, step
    shifts = one_step_shifts(engine, prompts, ids, gaps, lr=1e-5, temperature=1.0)
    assert set(shifts) == set(STEPS)
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, before[name])
    # The two signs of the printed formula are mirrors: equally far to first order in the learning rate.
    one, other = (torch.cat(shifts[s]) for s in ("conformity", "novelty"))
    certain = one > 1e-5
    assert certain.any() and torch.allclose(one[certain], other[certain], rtol=0.1)


# --- interventions ----------------------------------------------------------------------------------------------------


def test_buckets_split_at_the_rollouts_own_median():
    found = bucket_positions(torch.tensor([0.1, 5.0, 0.2, 4.0]))  # median 2.1
    assert found == {"low": [0, 2], "high": [1, 3], "random": [0, 1, 2, 3]}
    assert bucket_positions(torch.tensor([1.0, 1.0, 3.0]))["low"] == []  # the median itself counts as high


def test_sites_lie_in_their_bucket_and_equal_prompts_change_nothing(scored):
    _, _, _, student, privileged = scored
    heights = entropy(student[0])
    options = {"per_bucket": 3, "alpha": 0.5, "temperature": 1.0, "top_p": 1.0, "identity": ("x", 1)}
    sites = choose_sites(heights, student[0], privileged[0], **options)
    allowed = bucket_positions(heights)
    assert sites == choose_sites(heights, student[0], privileged[0], **options)
    assert all(site.position in allowed[site.bucket] for site in sites)
    assert [sum(s.bucket == b for s in sites) for b in ("low", "high", "random")] == [3, 3, 3]
    for site in choose_sites(heights, student[0], student[0], **options):  # a teacher that knows no more
        assert site.tokens["conformity"] == site.tokens["resampled"]


def test_the_three_draws_follow_their_distributions():
    student = torch.tensor([[0.6, 0.3, 0.1]]).log()
    teacher = torch.tensor([[0.05, 0.05, 0.9]]).log()
    options = {"per_bucket": 1, "alpha": 0.5, "temperature": 1.0, "top_p": 1.0}
    counts = {kind: np.zeros(3) for kind in ("conformity", "novelty", "resampled")}
    for number in range(3000):
        for site in choose_sites(torch.ones(1), student, teacher, identity=(number,), **options):
            for kind, (token,) in site.tokens.items():
                counts[kind][token] += 1
    weights = np.array([0.6, 0.3, 0.1]) / np.sqrt([0.05, 0.05, 0.9])
    for kind, expected in {
        "conformity": [0.05, 0.05, 0.9], "novelty": weights / weights.sum(), "resampled": [0.6, 0.3, 0.1]
    }.items():  # fmt: skip
        assert counts[kind] / counts[kind].sum() == pytest.approx(expected, abs=0.025), kind


def test_finishing_keeps_the_prefix_and_the_limit(engine, scored):
    prompts, ids, _, _, _ = scored
    stop = engine.stop_ids[0]
    digit = engine.tokenizer.convert_tokens_to_ids("7")
    sites = [
        [Site("low", 4, {"conformity": (digit,), "novelty": (digit,), "resampled": (ids[0][4],)})],
        [Site("high", 2, {"conformity": (stop,), "novelty": (digit,), "resampled": (digit, digit)})],
    ]
    params = SamplingParams(max_tokens=12)
    found = finish(engine, prompts[:2], ids[:2], sites, params, [("f", 0), ("f", 1)])
    first, second = found[0][0], found[1][0]
    assert first["conformity"] == first["novelty"] and first["conformity"][:5] == [*ids[0][:4], digit]
    assert first["resampled"][:5] == ids[0][:5]
    assert second["resampled"][:4] == [*ids[1][:2], digit, digit]
    assert second["conformity"] == [*ids[1][:2], stop]  # nothing follows a stop token
    assert all(len(r) <= 12 for site in (first, second) for r in site.values())
    assert as_response(engine, second["conformity"]).finished
    assert finish(engine, prompts[:2], ids[:2], sites, params, [("f", 0), ("f", 1)]) == found
