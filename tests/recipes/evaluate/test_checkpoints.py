"""A run's checkpoints: which are evaluated, what their curve and the best of them say, and those that vanish."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from config import STARTER
from recipes.common.checks.errors import SettingsError
from recipes.evaluate import checkpoints, estimates, members, plan
from recipes.evaluate.breakdowns import by_length
from recipes.evaluate.results import RESULTS, Incidents, ResultsFile, encode, read_records
from recipes.evaluate.run import _sample_member as sample_member
from recipes.evaluate.summary import summary_of
from tests.builders.evaluations import answers
from tests.recipes.evaluate.test_inputs import checkpoint, configured, planned, refusal

MODEL = STARTER / "model"


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 10, 20, 30, of which the last was interrupted while it was written."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    place = tmp_path / "runs" / "mine"
    for step in (10, 20, 30):
        with torch.no_grad():
            next(model.parameters()).add_(0.01)
        checkpoint(place / "checkpoints" / f"global_step_{step}", model)
    (place / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("20")
    write_validations(place, {0: 0.1, 10: 0.5, 20: 0.4}, exposure={10: 0.3})
    return place


def write_validations(place, accuracies, exposure=None):
    records = [
        {"step": step, "val-core/chains/acc/mean@4": value}
        | ({"exposure/alpha": exposure[step]} if exposure and step in exposure else {})
        for step, value in accuracies.items()
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def named(made):
    return [(m.label, m.located.step, m.run) for m in made.members]


def test_all_complete_checkpoints_of_a_run_are_evaluated(tmp_path, run):
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=2")
    assert named(made) == [("mine, step 10", 10, "mine"), ("mine, step 20", 20, "mine")]
    assert named(planned(tmp_path / "out", f"model={run}", "limit=2")) == [("mine", 20, None)]
    both = planned(tmp_path / "out", f"model=[{MODEL},{run}]", "checkpoints=all", "limit=2")
    assert [label for label, _, _ in named(both)] == ["model", "mine, step 10", "mine, step 20"]


def test_the_best_checkpoint_by_the_runs_own_validation(tmp_path, run):
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=best", "limit=2")
    assert named(made) == [("mine", 10, None)]
    assert made.notes == (
        "mine: step 10 is the best of 2 checkpoints by the run's own validation on chains (50.0 %), where "
        "its accuracy is therefore biased upwards",
    )
    write_validations(run, {0: 0.9})
    assert "no checkpoint of model=" in refusal(tmp_path / "out", f"model={run}", "checkpoints=best")


def test_choices_that_choose_nothing_are_refused(tmp_path, run):
    assert "none of the models is a run directory" in refusal(tmp_path, "checkpoints=all")
    assert "checkpoints=some: must be last, all, best" in refusal(tmp_path, "checkpoints=some")
    assert "there is nothing to choose" in refusal(tmp_path, f"model={run}", "selection=val")
    said = refusal(tmp_path, f"model={run}", "checkpoints=all", "selection=aime_2024")
    assert "selection=aime_2024: must be one of the sets (starter_arithmetic), val for" in said


def test_a_checkpoint_that_cannot_be_used_is_left_out_and_said(tmp_path, run):
    (run / "checkpoints" / "global_step_10" / "actor" / "fsdp_config.json").unlink()
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=2")
    assert named(made) == [("mine, step 20", 20, "mine")]
    assert "fsdp_config.json is missing" in made.notes[0] and made.notes[0].endswith("left out")
    (run / "checkpoints" / "global_step_20" / "actor" / "fsdp_config.json").unlink()
    assert "fsdp_config.json is missing" in refusal(tmp_path / "out", f"model={run}", "checkpoints=all")


def test_a_checkpoint_with_the_weights_of_the_one_before_is_left_out(tmp_path, run):
    first, second = (run / "checkpoints" / f"global_step_{step}" / "actor" for step in (10, 20))
    shutil.copy(first / "model_world_size_1_rank_0.pt", second)
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=2")
    assert named(made) == [("mine, step 10", 10, "mine")]
    assert made.notes == ("mine, step 20 has the same weights as mine, step 10; left out",)


# ------------------------------------------------------------------ vanishing


class Quiet:
    """A console that notes what it is told of failures."""

    def __init__(self):
        self.failed = []

    def problem_failed(self, reason):
        self.failed.append(reason)

    def __getattr__(self, _):
        return lambda *args: None


def write_results(made, member, right):
    """Answers of a member to the plan's problems: ``right`` of four each."""
    with (made.directory / RESULTS).open("ab") as file:
        for problem_set in made.sets:
            for p in problem_set.problems:
                given = answers("r" * right + "w" * (4 - right))
                record = {
                    "model": member.fingerprint, "seed": 1, "data": problem_set.name, "index": p.index, "id": p.id,
                    "problem": p.text, "source": p.source, "gold": p.gold, "responses": given,
                    "majority": 0,
                }  # fmt: skip
                file.write(encode(record))


def test_a_checkpoint_that_vanishes_meanwhile_is_a_counted_failure(tmp_path, run):
    """The training deletes a checkpoint between the plan and its turn; the other one was answered before."""
    cfg = configured("preset=starter", f"model={run}", "checkpoints=all", "limit=3", "samples=4")
    made = plan.make_plan(cfg, tmp_path / "out", 0)
    first, second = made.members
    made.directory.mkdir()
    write_results(made, second, right=3)
    shutil.rmtree(first.located.path)
    incidents, console = Incidents(), Quiet()
    with ResultsFile(made.directory / RESULTS, plan.result_key) as results:
        for member in made.members:
            sample_member(cfg, made, member, results, incidents, console)
    (entry,) = incidents.failures
    assert (entry["label"], entry["problems"]) == ("mine, step 10", 3) and "vanished meanwhile" in entry["reason"]
    assert console.failed == [entry["reason"]]
    found = summary_of(made, None, 0.5, incidents, status="failed")
    assert any("mine, step 10: 3 problems without an answer: its checkpoint vanished" in w for w in found["warnings"])
    (curve,) = found["curves"]
    assert [(p["step"], p["value"]) for p in curve["points"]] == [(20, 0.75)]


def test_what_a_vanished_checkpoint_answered_stays_in_the_summary(tmp_path, run):
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=3", "samples=4")
    plan.write_settings(made)
    for member, right in zip(made.members, (1, 2), strict=True):
        write_results(made, member, right)
    shutil.rmtree(run / "checkpoints" / "global_step_10")
    again = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=3", "samples=4")
    assert {m.label: m.there for m in again.members} == {"mine, step 20": True, "mine, step 10": False}
    assert not any(again.tasks(m, {plan.result_key(r) for r in read_records(again.directory / RESULTS)})
                   for m in again.members)  # fmt: skip
    (curve,) = summary_of(again, None, 0.5, Incidents())["curves"]
    assert [(p["step"], p["value"]) for p in curve["points"]] == [(10, 0.25), (20, 0.5)]


def test_a_checkpoint_that_vanishes_while_its_weights_are_read(tmp_path, run, monkeypatch):
    real = members.fingerprint

    def vanishing(located):
        if located.step == 10:
            shutil.rmtree(located.path)
            raise FileNotFoundError(2, "gone", located.path)
        return real(located)

    monkeypatch.setattr(members, "fingerprint", vanishing)
    made = planned(tmp_path / "out", f"model={run}", "checkpoints=all", "limit=2")
    assert named(made) == [("mine, step 20", 20, "mine")] and "vanished while it was read" in made.notes[0]


# ------------------------------------------------------------------ curves and the best


def rows(values):
    """``metrics`` and ``runs`` of a run with these accuracies: set -> step -> value."""
    metrics = [
        {"label": f"r, step {step}", "data": data, "metric": metric, "value": value, "ci95": 0.1, "low": value - 0.1,
         "high": value + 0.1, "problems": 8}
        for data, steps in values.items() for step, value in steps.items() for metric in ("avg@4", "length")
    ]  # fmt: skip
    steps = dict.fromkeys(step for steps in values.values() for step in steps)
    runs = [{"label": f"r, step {step}", "run": "r", "step": step} for step in steps]
    return metrics, [*runs, {"label": "base", "step": None}]


VALUES = {"a": {2: 0.3, 10: 0.6, 4: 0.6}, "b": {2: 0.5, 10: 0.2, 4: 0.4}}


def test_curves_are_by_step_and_the_best_of_equals_is_the_earlier():
    drawn = checkpoints.curves(*rows(VALUES))
    assert [(c["run"], c["data"], [(p["step"], p["value"]) for p in c["points"]]) for c in drawn] == [
        ("r", "a", [(2, 0.3), (4, 0.6), (10, 0.6)]), ("r", "b", [(2, 0.5), (4, 0.4), (10, 0.2)])
    ]  # fmt: skip
    best = checkpoints.best(drawn, None, {})
    fields = ("data", "step", "value", "biased", "of", "last_step", "last_value")
    assert [tuple(b[field] for field in fields) for b in best] == [
        ("a", 4, 0.6, True, 3, 10, 0.6), ("b", 2, 0.5, True, 3, 10, 0.2)
    ]  # fmt: skip
    (note,) = checkpoints.bias_note(best)
    assert "on a, b was selected on the problems that it is reported on, of 3" in note


def test_a_set_or_the_validation_chooses_and_the_others_report():
    drawn = checkpoints.curves(*rows(VALUES))
    best = {b["data"]: b for b in checkpoints.best(drawn, "b", {})}
    assert (best["a"]["step"], best["a"]["value"], best["a"]["biased"]) == (2, 0.3, False)
    assert (best["b"]["step"], best["b"]["biased"]) == (2, True)
    assert "on b was selected" in checkpoints.bias_note(list(best.values()))[0]
    other = checkpoints.Trained({2: 0.1, 10: 0.9, 20: 1.0}, frozenset({"other"}), {})
    by_validation = checkpoints.best(drawn, "val", {"r": other})
    assert {(b["data"], b["step"], b["of"], checkpoints.selected_on(b)) for b in by_validation} == {
        ("a", 10, 2, "the run's validation (other)"), ("b", 10, 2, "the run's validation (other)")
    }  # fmt: skip
    assert checkpoints.bias_note(by_validation) == []
    assert checkpoints.best(drawn, "val", {}) == []


def test_a_validation_on_an_evaluated_set_biases_it_and_the_average():
    values = {**VALUES, "average": {step: (VALUES["a"][step] + VALUES["b"][step]) / 2 for step in VALUES["a"]}}
    drawn = checkpoints.curves(*rows(values))
    validated = checkpoints.Trained({2: 0.1, 10: 0.9}, frozenset({"b"}), {})
    for selection in ("val", "b"):
        found = {b["data"]: b["biased"] for b in checkpoints.best(drawn, selection, {"r": validated})}
        assert found == {"a": False, "b": True, "average": True}
    (note,) = checkpoints.bias_note(checkpoints.best(drawn, "val", {"r": validated}))
    assert "on b was selected" in note


def test_several_runs_of_a_label_are_validated_together(tmp_path):
    for name, accuracies in (("a", {10: 0.2, 20: 0.6}), ("b", {10: 0.4, 30: 0.9})):
        (tmp_path / name).mkdir()
        write_validations(tmp_path / name, accuracies, exposure={10: 0.5})
    places = [("r", str(tmp_path / name / "checkpoints" / "global_step_10")) for name in "aab"]
    found = checkpoints.trained_runs([*places, ("other", str(tmp_path / "nowhere"))])
    assert found == {"r": checkpoints.Trained({10: pytest.approx(0.3)}, frozenset({"chains"}), {10: 0.5})}


def test_the_summary_has_the_exposure_of_each_step_and_pairs_only_the_last(tmp_path, run):
    made = planned(tmp_path / "out", f"model=[{MODEL},{run}]", "checkpoints=all", "selection=val", "limit=3",
                   "samples=4")  # fmt: skip
    made.directory.mkdir()
    for member, right in zip(made.members, (1, 3, 2), strict=True):
        write_results(made, member, right)
    found = summary_of(made, None, 0.5, Incidents())
    (curve,) = found["curves"]
    assert [(p["step"], p["value"], p.get("exposure")) for p in curve["points"]] == [(10, 0.75, 0.3), (20, 0.5, None)]
    assert {(d["a"], d["b"]) for d in found["differences"]} == {("mine, step 20", "model")}
    (best,) = found["best"]
    assert (best["step"], best["selected_on"]) == (10, "the run's validation (chains)")


# ------------------------------------------------------------------ accuracy by length


def of_lengths(label, by_problem):
    problems = {i: {"avg@2": (0.0, 1.0)} for i in by_problem}
    return estimates.Evaluation(label, label, 1, "d", problems, estimates.Counter(), by_problem)


def test_accuracy_by_the_quarters_of_all_responses_lengths():
    one = of_lengths("m", {"0-x": [(1, True), (2, True)], "1-x": [(3, True), (4, False)]})
    other = of_lengths("n", {"0-x": [(5, True), (6, False)], "1-x": [(7, False), (8, False)]})
    found = {(r["label"], r["level"]): r for r in by_length([one, other])}
    # Eight lengths, two in each quarter; each model has two of them.
    assert {key: (r["range"], r["value"], r["responses"], r["problems"]) for key, r in found.items()} == {
        ("m", 1): ("1–2", 1.0, 2, 1), ("m", 2): ("3–4", 0.5, 2, 1),
        ("n", 3): ("5–6", 0.5, 2, 1), ("n", 4): ("7–8", 0.0, 2, 1),
    }  # fmt: skip
    assert found["m", 1]["ci95"] is None  # all of one problem: nothing says how others would do
    spread = by_length([of_lengths("m", {f"{n}-x": [(1, n < 2), (9, True)] for n in range(4)})])
    assert [(r["value"], r["problems"]) for r in spread] == [(0.5, 4), (1.0, 4)]
    assert spread[0]["ci95"] == pytest.approx(3.18245 * 0.57735 / 2, rel=1e-4)  # t_3 times sd over √4


def test_equal_lengths_have_no_quarters():
    assert by_length([of_lengths("m", {"0-x": [(5, True), (5, False)]})]) == []
    two = by_length([of_lengths("m", {"0-x": [(1, True)] * 6 + [(9, False)] * 2})])
    assert [(r["range"], r["value"], r["responses"]) for r in two] == [("1", 1.0, 6), ("9", 0.0, 2)]


def test_a_run_without_any_complete_checkpoint_is_refused(tmp_path, run):
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(SettingsError, match="instead of a step number"):
        checkpoints.chosen_models([("r", str(run))], "all")
