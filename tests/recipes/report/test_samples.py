"""Samples of responses: which are kept, in which form, and that a training run keeps them and ends with a report."""

from __future__ import annotations

import json
import math

import pytest
import torch

from advantage.dasd import DasdParams, dasd_credit, direction_coefficient
from advantage.estimators import CreditInputs
from advantage.pw_opsd import position_weight
from recipes.common.record import run_dir as files
from recipes.common.record import samples
from tests.builders.processes import read_json_lines, train
from tests.recipes.report.test_report import Page


class Trainer:
    test_freq, save_freq = 10, 4


def test_samples_are_due_first_last_and_with_validations_and_checkpoints():
    assert [step for step in range(1, 24) if samples.due(Trainer, step, 23)] == [1, 4, 8, 10, 12, 16, 20, 23]
    never = type("Never", (), {"test_freq": -1, "save_freq": 0})
    assert [step for step in range(1, 6) if samples.due(never, step, 5)] == [1, 5]


def test_a_best_and_a_worst_response_of_problems_that_differ_come_first():
    scores = [1, 1, 0, 0.5, 1, 0, 0]
    groups = ["solved", "solved", "mixed", "mixed", "mixed", "failed", "failed"]
    assert samples.choose(scores, groups, 3) == [4, 2, 0]
    assert samples.choose(scores, groups, 5) == [4, 2, 0, 5, 1]
    assert samples.choose([0.0] * 3, ["a", "b", "c"], 9) == [0, 1, 2]  # a problem, a response each


def test_a_sample_has_null_where_there_is_no_number():
    found = samples.sample(
        problem="p",
        reward=1.0,
        tokens=["a", "b", "c"],
        mask=[1, 0, 1],
        fields={"delta": [0.123456, 5.0, math.nan, 7.0], "entropy": [math.inf, 1.0, 12345.678]},
    )
    assert found["fields"] == {"delta": [0.1235, None, None], "entropy": [None, None, 12350.0]}
    json.dumps(found, allow_nan=False)


def test_of_a_long_response_the_middle_is_left_out():
    length = samples.HEAD + samples.TAIL + 5
    found = samples.sample(
        problem="p",
        reward=0.0,
        tokens=[str(i) for i in range(length)],
        mask=[1] * length,
        fields={"delta": [float(i) for i in range(length)]},
    )
    assert found["omitted"] == 5
    assert found["tokens"][samples.HEAD - 1 : samples.HEAD + 1] == [str(samples.HEAD - 1), str(samples.HEAD + 5)]
    assert found["fields"]["delta"][samples.HEAD] == samples.HEAD + 5 and len(found["tokens"]) == length - 5


def test_a_torn_record_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / files.METRICS
    path.write_text('{"step": 1}\n{"ste')
    log = files.MetricsFile(tmp_path)
    log.log({}, step=2)
    assert [r["step"] for r in read_json_lines(path)] == [1, 2]


def test_samples_of_steps_to_be_done_again_are_forgotten(tmp_path):
    (tmp_path / files.SAMPLES).write_text('{"step": 1}\n{"step": 4}\n')
    (tmp_path / files.METRICS).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert files.forget_metrics_after(tmp_path, 1) == 2
    assert [r["step"] for r in read_json_lines(tmp_path / files.SAMPLES)] == [1]


def test_omega_is_what_the_credit_was_made_of():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    entropy, gap = torch.rand(2, 5), torch.randn(2, 5)
    inputs = CreditInputs(
        group_advantage=torch.tensor([[1.0], [-1.0]]) * mask,
        response_mask=mask,
        scores=torch.tensor([1.0, 0.0]),
        equal_reward_rows=torch.tensor([False, False]),
        entropy=entropy,
        log_prob_gap=gap,
    )
    credit = dasd_credit(inputs, DasdParams(beta=0.5, gap_eps=1.0))
    omega, normalized = direction_coefficient(entropy, gap, mask, gap_eps=1.0, entropy_eps=0.1)
    assert torch.equal(credit.tokens["omega"], omega) and omega.abs().max() > 0.01
    assert torch.allclose(credit.advantages, inputs.group_advantage + 0.5 * omega * normalized)


def squeezed(text: str) -> str:
    """Without white space and the marks that stand for it."""
    return "".join(text.replace("↵", "").split())


@pytest.mark.slow
def test_a_run_that_fails_still_shows_its_samples_and_why(tmp_path):
    """PW-OPSD on the real stack, whose first checkpoint, in step 2, cannot be written."""
    directory = tmp_path / "run"
    (directory / files.CHECKPOINTS).mkdir(parents=True)
    (directory / files.CHECKPOINTS / "global_step_2").write_text("in the way")
    run = train(
        "pw_opsd",
        directory,
        "method=pw_opsd_sampled",
        "trainer.total_training_steps=3",
        "trainer.save_freq=2",
        timeout=600,
    )
    assert run.code == 1 and list(run.steps) == [1], run.console + run.log[-2000:]
    assert f"report: {directory / files.REPORT}" in run.console.replace("\n", "")
    page = Page((directory / files.REPORT).read_text())
    assert "failed after step 1 of 3" in page.text and "could not save the checkpoint of step 2" in page.text

    first = read_json_lines(directory / files.SAMPLES)[0]
    assert first["step"] == 1 and len(first["samples"]) == samples.COUNT
    for sample in first["samples"]:
        fields, count = sample["fields"], len(sample["tokens"])
        assert set(fields) == {"entropy", "advantage", "weight", "delta"}
        expected = position_weight(torch.ones(1, count))[0].tolist()
        assert fields["weight"] == pytest.approx(expected, rel=1e-3)
        assert min(fields["entropy"]) >= 0 and max(map(abs, fields["delta"])) > 0
        # Without β·w·δ one number for all tokens of a response: A_G. Samples keep four significant digits.
        pulls = [0.1 * w * d for w, d in zip(fields["weight"], fields["delta"], strict=True)]
        group = [a - pull for a, pull in zip(fields["advantage"], pulls, strict=True)]
        silent = not any(fields["advantage"])  # the response's group has equal rewards
        assert silent or max(group) - min(group) < 1e-3 * (1 + max(map(abs, pulls)))
        assert sample["problem"].startswith("Evaluate") and sample["problem"] in page.text
        assert squeezed("".join(sample["tokens"])) in squeezed(page.text)
    best, worst = first["samples"][:2]
    assert best["problem"] == worst["problem"] and (best["reward"], worst["reward"]) == (1.0, 0.0)
    assert best["fields"]["advantage"][0] > 0 > worst["fields"]["advantage"][0]
    assert len(set(best["fields"]["advantage"])) > 1
