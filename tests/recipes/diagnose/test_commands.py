"""The commands on the embedded model: what they write, refuse and resume."""

from __future__ import annotations

import json
import math

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from config import CONFIG_DIR, STARTER
from recipes.common.checks.errors import SettingsError
from recipes.diagnose import branch_viability, dasd_probes, exposure_sweep, figures, forks_and_revisions, runner

COMMANDS = {
    "diagnose_dasd": ("dasd_probes", dasd_probes, figures.dasd_probes),
    "diagnose_branches": ("branch_viability", branch_viability, figures.branch_viability),
    "diagnose_exposure": ("exposure_sweep", exposure_sweep, figures.exposure_sweep),
    "diagnose_forks": ("forks_and_revisions", forks_and_revisions, figures.forks_and_revisions),
}
SMALL = ("limit=4", "rollouts=2", "chunk=2", "seeds=[1]", "summary.resamples=100", "max_tokens=60")


def run(config, out, *overrides):
    """Run a command in this process; returns its JSON."""
    name, module, draw = COMMANDS[config]
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(config, overrides=[*SMALL, f"out={out}", *overrides])
    runner.execute(name, cfg, module.prepare, module.summarise, draw)
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("config", COMMANDS)
def test_a_command_writes_table_figure_and_json_and_resumes(config, tmp_path, capsys):
    name = COMMANDS[config][0]
    whole = run(config, tmp_path / "whole")
    assert whole["results"]["counts"]["problems"] == 4
    for suffix in ("json", "md", "png"):
        assert (tmp_path / "whole" / f"{name}.{suffix}").stat().st_size > 500

    # A part that is lost and one that a full disk has cut are measured again; the others are kept as they are.
    part = tmp_path / "whole/parts/seed_1_chunk_1.json"
    text = part.read_text()
    part.write_text(text[: len(text) // 2])
    (tmp_path / "whole/parts/seed_1_chunk_0.json").touch()
    kept = (tmp_path / "whole/parts/seed_1_chunk_0.json").read_text()
    assert run(config, tmp_path / "whole")["results"] == whole["results"]
    assert part.read_text() == text and (tmp_path / "whole/parts/seed_1_chunk_0.json").read_text() == kept
    assert "1 of 2 parts were measured before" in capsys.readouterr().out

    with pytest.raises(SettingsError, match=r"was measured with temperature=1\.0, not 0\.7"):
        run(config, tmp_path / "whole", "temperature=0.7")


@pytest.mark.slow
def test_several_files_are_pooled_and_found_by_file_too(tmp_path):
    config, files = "diagnose_exposure", [str(STARTER / f"data/{name}.parquet") for name in ("val", "probe")]
    alone = [run(config, tmp_path / str(i), f"data={file}", "limit=2") for i, file in enumerate(files)]
    both = run(config, tmp_path / "both", f"data=[{','.join(files)}]", "limit=2")["results"]
    assert both["counts"]["problems"] == 4 and list(both["by_source"]) == files
    assert both["by_source"][files[0]] == alone[0]["results"]  # its problems are named as they are alone
    assert both["by_source"][files[1]]["counts"]["problems"] == 2
    assert "by_source" not in alone[0]["results"]
    text = (tmp_path / "both/exposure_sweep.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {file}" for file in files]


@pytest.mark.slow
def test_speed_does_not_change_what_is_measured(tmp_path):
    one = run("diagnose_dasd", tmp_path / "a", "step.lr=null")
    other = run("diagnose_dasd", tmp_path / "b", "step.lr=null", "tokens_per_pass=300")
    assert one["results"]["interventions"] == other["results"]["interventions"]
    assert one["results"]["spearman"]["gap"]["value"] == pytest.approx(
        other["results"]["spearman"]["gap"]["value"], abs=0.01
    )


@pytest.mark.slow
def test_a_second_seed_is_added_to_the_first(tmp_path):
    run("diagnose_exposure", tmp_path, "seeds=[1]")
    both = run("diagnose_exposure", tmp_path, "seeds=[1,2]")["results"]
    assert both["counts"]["rollouts"] == 16 and both["counts"]["problems"] == 4
    one, two = (both["by_seed"][seed]["kl"] for seed in ("1", "2"))
    assert one != two
    assert both["all"]["kl"][0]["value"] == pytest.approx((one[0] + two[0]) / 2)


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("diagnose_dasd", "dtype=bfloat16", "rounded away"),
        ("diagnose_dasd", "interventions.alpha=2", "must be in [0, 1]"),
        ("diagnose_dasd", "seeds=[1,1]", "each once"),
        ("diagnose_dasd", "temperature=0", "all alike"),
        ("diagnose_dasd", "model=/nowhere", "model=/nowhere"),
        ("diagnose_dasd", "code={wall_s: 0}", "wall_s"),
        ("diagnose_branches", "candidates.children=1", "at least 2"),
        ("diagnose_branches", "dropout.rate=1.0", "between 0 and 1"),
        ("diagnose_forks", "forks.router_quantile=1", "between 0 and 1"),
        ("diagnose_forks", "revisions.markers=[]", "a list of words"),
        ("diagnose_forks", "revisions.teacher_tokens=0", "at least 1"),
        ("diagnose_forks", "prm_threshold=2", "a probability"),
        ("diagnose_forks", "summary.beside={GRPO: /nowhere}", "/nowhere: no directory of recipes.diagnose.forks"),
        ("diagnose_exposure", "exposures=[1.0,0.5]", "ascending"),
        ("diagnose_exposure", "replay=[1.0,0.9]", "different ones of exposures"),
        ("diagnose_exposure", "teacher.context=answer", "only a solution"),
        ("diagnose_exposure", "summary.resamples=5", "at least 100"),
        ("diagnose_exposure", "engine=sglang", "must be transformers or vllm"),
        ("diagnose_exposure", "data=[]", "at least one file"),
    ],
)
def test_wrong_settings_are_refused(config, override, message, tmp_path):
    with pytest.raises(SettingsError) as refused:
        run(config, tmp_path / "out", override)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_other_data_under_a_half_measured_directory_is_noticed(tmp_path):
    run("diagnose_exposure", tmp_path)
    part = tmp_path / "parts/seed_1_chunk_0.json"
    part.write_text(json.dumps({**json.loads(part.read_text()), "rows": "0" * 64}))
    with pytest.raises(SettingsError, match="holds other problems"):
        run("diagnose_exposure", tmp_path)


def test_revisions_of_another_model_are_shown_beside(tmp_path):
    other = run("diagnose_forks", tmp_path / "other", "seeds=[2]")["results"]
    mine = run("diagnose_forks", tmp_path / "mine", f"summary.beside={{other: {tmp_path / 'other'}}}")["results"]
    assert mine["models"]["other"] == other["models"]["this model"]
    assert (tmp_path / "mine/forks_and_revisions.png").stat().st_size > 500
    # The teacher's and the student's top choice at a certain token are the token: the responses are the same ones.
    for place in mine["places"].values():
        for kind, of in place.items():
            if of["changed"]["value"] == 0 and "accuracy_difference" in of:
                assert of["accuracy_difference"]["low"] == of["accuracy_difference"]["high"] == 0, kind
    (tmp_path / "other/parts/seed_2_chunk_0.json").unlink()
    (tmp_path / "other/parts/seed_2_chunk_1.json").unlink()
    with pytest.raises(SettingsError, match="nothing is measured"):
        run("diagnose_forks", tmp_path / "third", f"summary.beside={{other: {tmp_path / 'other'}}}")


# --- summaries, from records made by hand -----------------------------------------------------------------------------


def candidate(u, verdicts, **scores):
    defaults = dict.fromkeys(
        ("predictive_entropy", "mutual_information", "truncated_entropy", "student_entropy", "kl"), 0.0
    )
    children = [{"correct": list(v)} for v in verdicts]
    return {"u": u, "dirichlet_precision": 1.0, "children": children, **defaults, **scores}


def test_position_is_scored_within_problems():
    dead, alive = [(False,) * 4] * 2, [(True,) * 4] * 2
    # Problem 0 fails early, problem 1 too, but all of problem 1 is later than all of problem 0: pooled, u says nothing.
    records = [
        {"problem": 0, "seed": 1, "spine": "greedy", "candidates": [candidate(0.1, dead), candidate(0.3, alive)]},
        {"problem": 1, "seed": 1, "spine": "greedy", "candidates": [candidate(0.5, dead), candidate(0.9, alive)]},
    ]
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("diagnose_branches", overrides=["out=.", "summary.resamples=100"])
    results = branch_viability.summarise(records, cfg).results
    assert results["counts"]["labels"] == {"diversity": 2, "real-uncertain": 2, "gray": 0}
    assert results["residual"]["early"]["auroc"].value == 1.0
    assert results["raw"]["early"]["auroc"].value == 0.75
    assert results["residual"]["kl"]["auroc"].value == 0.5  # all ties
    assert [row["failure"].value for row in results["failure_by_position"]] == [1.0, 0.0, 1.0, 0.0]


def test_one_label_alone_is_said_and_not_scored():
    records = [{"problem": 0, "seed": 1, "spine": "greedy", "candidates": [candidate(0.1, [(True,), (True,)])]}]
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("diagnose_branches", overrides=["out=.", "summary.resamples=100"])
    findings = branch_viability.summarise(records, cfg)
    assert "residual" not in findings.results and "only one of the two labels" in findings.notes[0]


def test_difficulty_and_separation():
    def rollout(problem, correct, gap):
        return {"problem": problem, "correct": correct, "at": {"1": {"gap": gap}}}

    records = [
        rollout(0, True, -0.1), rollout(0, False, -0.3), rollout(1, False, 0.9), rollout(1, True, 1.0),
        rollout(2, False, 5.0), rollout(3, True, 0.0), rollout(3, None, 9.0),
    ]  # fmt: skip
    assert exposure_sweep.difficulty(records, 0.33, 0.67) == {"hard": {2}, "medium": {0, 1}, "easy": {3}}
    found = exposure_sweep.separation(records, ["1"], {"resamples": 100, "seed": 0})[0]
    # Centred: right +0.1, +0.05, 0; wrong −0.1, −0.05, 0: eight of nine pairs in order and one tie.
    assert found.value == pytest.approx(8.5 / 9)


def test_effects_are_relative_to_unmodified_and_to_the_own_draw():
    def outcome(kind, value, changed):
        return {
            "bucket": "low",
            "kind": kind,
            "changed": changed,
            "step_acc": value,
            "e_per_1k": None,
            "accuracy": None,
        }

    unmodified = {"step_acc": 0.5, "e_per_1k": None, "accuracy": None}
    records = [
        {
            "problem": p,
            "unmodified": unmodified,
            "interventions": [
                outcome("conformity", 0.75, p == 0),
                outcome("novelty", 0.25, True),
                outcome("resampled", 0.5, False),
            ],
        }
        for p in (0, 1)
    ]
    found = dasd_probes.effects(records, {"resamples": 100, "seed": 0})
    effect = found["effects"]["step_acc/low/conformity"]
    assert effect["versus_unmodified_percent"].value == pytest.approx(50.0)
    assert effect["versus_resampled"].value == pytest.approx(0.25)
    assert found["effects"]["step_acc/low/novelty"]["versus_unmodified_percent"].value == pytest.approx(-50.0)
    assert found["changed"]["low/conformity"].value == 0.5
    assert "e_per_1k/low/conformity" not in found["effects"]  # never measured, so not reported


def test_where_markers_and_steps_have_no_change_the_figure_has_that_of_the_accuracy():
    """Of a model that says none, on problems without steps that can be judged."""
    metrics = {"step_acc": None, "e_per_1k": 0.0, "accuracy": 0.5}
    kinds = ("conformity", "novelty", "resampled")
    drawn = [{"bucket": "low", "kind": kind, "changed": False, **metrics, "accuracy": 0.25} for kind in kinds]
    records = [{"problem": p, "unmodified": metrics, "interventions": drawn} for p in (0, 1)]
    axes = Figure().subplots()
    figures._interventions(axes, dasd_probes.effects(records, {"resamples": 100, "seed": 0}))
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        f"accuracy\n{b} H" for b in ("low", "high", "random")
    ]
    points = [container.lines[0].get_ydata() for container in axes.containers]
    assert [list(values) for values in points] == [[-50.0]] * 3


def test_correlation_is_over_tokens():
    records = [
        {"problem": 0, "seed": 1, "entropy": [1.0, 2.0, 3.0], "gap": [0.1, 0.2, 0.3], "shift": {}},
        {"problem": 1, "seed": 1, "entropy": [4.0], "gap": [-9.0], "shift": {}},
    ]
    found = dasd_probes.correlation(records, {"resamples": 100, "seed": 0})
    # Ranks of H 1234, of A 2341: 1 − 6·(1+1+1+9)/(4·15).
    assert found["gap"].value == pytest.approx(1 - 72 / 60)
    assert found["magnitude"].value == pytest.approx(1.0)
    assert math.isfinite(found["gap"].low)
