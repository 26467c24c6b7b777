"""Reports: what is read from a run, what is computed from it, and that no text of a model becomes markup."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hydra import initialize_config_dir

from config import CONFIG_DIR
from recipes.common.record import run_dir as files
from recipes.report import compare
from recipes.report.figures import Line, curves, smoothed
from recipes.report.heat import heat, level
from recipes.report.page import comparison_page, run_page, write_report
from recipes.report.panels import mean_curve, run_panels, stage_panel
from recipes.report.preset import NoPreset, compare_with_preset, sourced_values
from recipes.report.run_data import NotARun, find_runs, load_run, status, validations, warnings
from tests.builders.runs import record, response, validated, write_run

# ---------------------------------------------------------------------- reading a run


def test_a_corrupt_line_is_counted_and_a_torn_one_ignored(tmp_path):
    directory = write_run(tmp_path / "run", [record(1), record(2)])
    with (directory / files.METRICS).open("ab") as file:
        file.write(
            b'{"step": 3, "x"\n\xff\xfe\n[1]\n{"step": "4"}\n' + json.dumps(record(5)).encode() + b'\n{"step": 6'
        )
    run = load_run(directory)
    assert [r["step"] for r in run.records] == [1, 2, 5]
    assert run.unreadable == 4
    assert any("4 lines" in w.text for w in warnings(run))


def test_steps_done_again_count_once(tmp_path):
    lives = [record(s, critic__score__mean=0.1) for s in (1, 2, 3)] + [record(2, critic__score__mean=0.9)]
    run = load_run(write_run(tmp_path / "run", lives))
    assert run.curve("critic/score/mean") == ([1, 2], [0.1, 0.9])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, "no config.yaml"),
        (lambda d: (d / files.CONFIG).write_text("- 1"), "no mapping"),
        (lambda d: (d / files.CONFIG).write_text("a: [1"), "not YAML"),
        (lambda d: (d / files.CONFIG).write_text("a: 1"), "no record"),
    ],
)
def test_what_is_no_run_is_said_so(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(NotARun, match=message):
        load_run(tmp_path)


def test_runs_are_found_below_a_directory(tmp_path):
    runs = [write_run(tmp_path / "sweep" / name, [record(1)]) for name in ("a", "b")]
    assert find_runs(tmp_path) == runs
    assert find_runs(runs[1]) == [runs[1]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARun, match="no run here"):
        find_runs(tmp_path / "empty")


def test_the_interval_over_sets_adds_in_squares(tmp_path):
    both = {**validated(3, 0.2, 0.03, "a"), **validated(3, 0.6, 0.04, "b")}
    run = load_run(write_run(tmp_path / "run", [validated(0, 0.5, 0.1), both]))
    first, second = validations(run)
    assert (first.step, first.mean, first.half) == (0, 0.5, 0.1)
    assert (second.name, second.mean) == ("mean@16", pytest.approx(0.4))
    assert second.half == pytest.approx(0.025)  # sqrt(0.03² + 0.04²) / 2
    assert second.sets == {"a": 0.2, "b": 0.6}


@pytest.mark.parametrize(
    ("ending", "reason", "kind", "text"),
    [
        ("done", "", "done", "finished after step 2"),
        ("stopped", "", "stopped", "stopped after step 2 of 30"),
        ("failed", "BrokenNumbers: nan", "failed", "failed after step 2 of 30: BrokenNumbers: nan"),
        ("update", "", "unfinished", "last seen in update, step 2"),
        (None, "", "unfinished", "running, or killed, after step 2 of 30"),
    ],
)
def test_how_a_run_ended(tmp_path, ending, reason, kind, text):
    found = status(load_run(write_run(tmp_path / "run", [record(1), record(2)], ending=ending, reason=reason)))
    assert found.kind == kind and text in found.text


def test_warnings_say_where_and_how_much(tmp_path):
    records = [
        record(1, training__rollouts_missing=2.0),
        record(2, credit__correction_ratio=7.0, training__rollouts_missing=3.0),
        record(3, credit__correction_ratio=9.0, actor__grad_norm=None, response_length__clip_ratio=0.25),
        {"step": 3, "val-aux/sums/timeout/mean@16": 0.125},
    ]
    records[-1] |= {k: v for k, v in records[-2].items() if k not in records[-1]}
    found = {w.text: w.where for w in warnings(load_run(write_run(tmp_path / "run", records)))}
    text = "\n".join(found)
    assert found[next(t for t in found if "correction_ratio=7" in t)] == "2 of 3 records, steps 2 to 3"
    assert "5 rollouts of the whole run failed" in text
    assert "not a number: actor/grad_norm" in text
    assert "25% of the responses were cut" in text
    assert "grading timed out for 12.5% of the validation responses of sums" in text


def test_a_clean_run_has_no_warnings(tmp_path):
    assert warnings(load_run(write_run(tmp_path / "run", [record(1, training__rollouts_missing=0.0)]))) == []


# ---------------------------------------------------------------------- configuration


def test_the_changes_are_exactly_the_overrides(tmp_path):
    directory = write_run(
        tmp_path / "run", [record(1)], "algorithm.dasd.beta=0.5", "actor_rollout_ref.actor.optim.lr=1e-6"
    )
    found = compare_with_preset(directory, load_run(directory).config)
    assert {s.key: (s.preset, s.value) for s in found.changed} == {
        "actor_rollout_ref.actor.optim.lr": ("5e-05", "1e-06"),
        "algorithm.dasd.beta": ("null", "0.5"),
    }
    method = {s.key: s for s in found.method}
    assert method["algorithm.dasd.router_quantile"].source == "rho, §5 and Table 11"
    assert method["algorithm.dasd.beta"].source.startswith("ours") and method["algorithm.dasd.beta"].differs
    assert not method["algorithm.dasd.gap_eps"].differs


def test_the_preset_is_composed_within_a_running_command_too(tmp_path):
    directory = write_run(tmp_path / "run", [record(1)], "trainer.total_training_steps=3")
    config = load_run(directory).config
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        found = compare_with_preset(directory, config)
    assert [s.key for s in found.changed] == ["trainer.total_training_steps"]


def test_a_bundle_built_on_another_has_the_values_of_both():
    values = sourced_values("method", "pw_opsd")
    assert values["self_distill.loss.clip"] == (0.05, "each vocabulary entry, from above")  # of opsd
    assert values["self_distill.loss.weighting"][0] == "position"  # its own, over opsd's "uniform"
    assert values["algorithm.pw_opsd.floor"] == (None, "null: the schedule's")
    assert "defaults" not in values
    assert sourced_values("protocol", "opsd")["actor_rollout_ref.model.lora_rank"] == (64, "OPSD")


def test_a_protocols_values_have_their_source_where_they_are_in_force(tmp_path):
    directory = write_run(tmp_path / "run", [record(1)], "trainer.save_freq=3", experiment="qwen3_1_7b_openthoughts")
    found = compare_with_preset(directory, load_run(directory).config)
    assert [(s.key, s.preset, s.value, s.source) for s in found.changed] == [("trainer.save_freq", "20", "3", "ours")]
    sources = {s.key: s.source for s in found.method}
    assert sources["actor_rollout_ref.rollout.n"] == "App. F: G" and sources["algorithm.dasd.router_quantile"]
    # The starter has a rollout count of its own: whatever the protocol's comment says, it is not of that number.
    starter = write_run(tmp_path / "starter", [record(1)], protocol="opsd")
    sources = {s.key: s.source for s in compare_with_preset(starter, load_run(starter).config).method}
    assert sources["actor_rollout_ref.rollout.n"] == ""


def test_a_preset_that_is_not_known_is_said_so(tmp_path):
    directory = write_run(tmp_path / "run", [record(1)])
    config = load_run(directory).config
    hydra = directory / ".hydra" / "hydra.yaml"
    hydra.write_text("hydra: {runtime: {choices: {method: gone, experiment: starter}}}")
    with pytest.raises(NoPreset, match="gone"):
        compare_with_preset(directory, config)
    hydra.write_text("hydra: {runtime: {choices: {method: '../../x', experiment: 'a=b'}}}")
    with pytest.raises(NoPreset, match="not names"):
        compare_with_preset(directory, config)
    hydra.unlink()
    with pytest.raises(NoPreset, match="does not say"):
        compare_with_preset(directory, config)
    assert "The differences from the preset are not shown" in run_page(load_run(directory))


def test_secrets_are_not_shown(tmp_path):
    directory = write_run(tmp_path / "run", [record(1)], "+trainer.wandb_api_key=hunter2", "+trainer.max_token=7")
    page = run_page(load_run(directory))
    assert "hunter2" not in page and "(not shown)" in page


# ---------------------------------------------------------------------- curves and times


def _path(svg: str, colour: str) -> np.ndarray:
    """The points of the curve in a colour, (N, 2), in the figure's coordinates (y downwards)."""
    (d,) = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\({colour}\)', svg)
    return np.array([[float(n) for n in pair.split()] for pair in re.split(r"[ML]", d)[1:]])


def test_a_curve_is_drawn_where_its_numbers_are():
    points = _path(curves([Line([1, 2, 3, 7], [0.0, 1.0, 0.5, 1.0])]), "--s1")
    x, y = points.T
    assert (x - x[0]) / (x[-1] - x[0]) == pytest.approx([0, 1 / 6, 1 / 3, 1], abs=1e-4)
    assert (y[0] - y) / (y[0] - y[1]) == pytest.approx([0, 1, 0.5, 1], abs=1e-4)


def test_figures_leave_their_colours_and_font_to_the_page():
    svg = curves([Line([1, 2], [0, 1], colour=i, low=[0, 0], high=[1, 2]) for i in range(10)], percent=True, limit=1.0)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= set()
    assert {f"--s{i}" for i in range(1, 9)} <= set(re.findall(r"var\((--\w+)\)", svg))
    assert ">100%</text>" in svg
    assert not re.search(r"<metadata|<\?xml|<!|xlink|https?://(?!www\.w3\.org/2000/svg)", svg)


def test_the_running_mean_uses_the_neighbours_there_are():
    values = [float(i % 2) for i in range(50)]  # window 5
    found = smoothed(values)
    assert found[10] == pytest.approx(2 / 5) and found[11] == pytest.approx(3 / 5)
    assert found[0] == pytest.approx(1 / 3)


def test_panels_show_what_the_run_has(tmp_path):
    records = [
        record(
            s, critic__score__mean=0.1 * s, teacher__log_prob__mean=-0.5, student__log_prob__mean=-0.2, actor__ppo_kl=0
        )
        for s in (1, 2)
    ]
    shown = {p.title: p for p in run_panels(load_run(write_run(tmp_path / "run", records)))}
    assert list(shown) == ["Reward", "KL to the teacher, estimated"]  # a KL of zero throughout says nothing
    run = load_run(write_run(tmp_path / "other", [validated(0, 0.4), {**validated(1, 0.5), **record(1)}]))
    assert "interval over problems" in run_panels(run)[0].note


def test_stage_times_add_up_to_the_steps(tmp_path):
    records = [
        record(1, timing_s__update_actor=2.0, timing_s__testing=6.0),
        record(2, timing_s__update_actor=1.0),
    ]
    _, rows = stage_panel(load_run(write_run(tmp_path / "run", records)))
    seconds = {label: (mean, share) for label, _, mean, share in rows}
    # Two steps of 4 s, the validation after the first: 14 s in all.
    assert seconds == {
        "validation": (3.0, pytest.approx(6 / 14)),
        "update": (1.5, pytest.approx(3 / 14)),
        "other": (1.5, pytest.approx(3 / 14)),
        "rollout": (1.0, pytest.approx(2 / 14)),
    }


# ---------------------------------------------------------------------- heat


def test_levels():
    assert [level(v, 2.0) for v in (0.0, 0.19, 0.21, -0.9, 2.0, 7.0, -7.0)] == [0, 0, 1, -2, 5, 5, -5]


def test_tokens_have_the_level_of_each_field(tmp_path):
    samples = [
        {"step": 1, "samples": [response(["old"], omega=[1.0])]},
        {"step": 4, "samples": [response(["a", "\n\n", "c"], omega=[1.0, -0.5, None], entropy=[0.0, 4.0, 4.0])]},
    ]
    found = heat(load_run(write_run(tmp_path / "run", [record(4)], samples=samples)))
    assert [(field.name, scale) for field, scale in found.fields] == [("omega", 1.0), ("entropy", 4.0)]
    assert [step for step, _ in found.records] == [4, 1]
    (newest,) = found.records[0][1]
    assert [t.classes for t in newest.tokens] == ["f0p5", "f0n3 f1p5", "f1p5"]
    assert newest.tokens[1].text == "↵↵\n"
    assert newest.tokens[1].title == "ω −0.5  H +4"


@pytest.mark.parametrize(
    "broken",
    [
        {"problem": "p", "reward": 1, "tokens": ["a"], "fields": {"omega": [1.0, 2.0]}},
        {"problem": "p", "reward": 1, "tokens": ["a"], "fields": {"omega": ["<b>"]}},
        {"problem": "p", "reward": "1", "tokens": ["a"], "fields": {}},
        {"problem": 3, "reward": 1, "tokens": ["a"], "fields": {}},
        [],
    ],
)
def test_samples_of_another_form_are_left_out(tmp_path, broken):
    samples = [{"step": 1, "samples": [broken, response(["good"], omega=[0.5])]}]
    (record_,) = heat(load_run(write_run(tmp_path / "run", [record(1)], samples=samples))).records
    assert [r.tokens[0].text for r in record_[1]] == ["good"]


# ---------------------------------------------------------------------- comparison


def _seeds(tmp_path, name, accuracies, *overrides, method="dasd", step=10):
    return [
        load_run(
            write_run(
                tmp_path / name / str(seed),
                [validated(0, 0.1), {**record(step, critic__score__mean=value), **validated(step, value)}],
                *overrides,
                method=method,
                seed=seed,
            )
        )
        for seed, value in accuracies.items()
    ]


def test_seeds_of_one_setting_are_one_group(tmp_path):
    runs = _seeds(tmp_path, "a", {1: 0.5, 2: 0.6}) + _seeds(tmp_path, "b", {1: 0.7}, "algorithm.dasd.beta=0.5")
    runs += _seeds(tmp_path, "g", {1: 0.8}, "trainer.val_before_train=false", method="grpo")
    groups = compare.group_runs(runs)
    assert [g.label for g in groups] == ["grpo", "dasd (dasd.beta=null)", "dasd (dasd.beta=0.5)"]
    assert [[r.seed for r in g.runs] for g in groups] == [[1], [1, 2], [1]]


def test_labels_say_what_differs_and_not_where_files_lie_or_what_follows(tmp_path):
    runs = _seeds(tmp_path, "a", {1: 0.5}, "actor_rollout_ref.rollout.n=4", "data.max_response_length=64")
    runs += _seeds(tmp_path, "b", {1: 0.5}, "data.train_files=/elsewhere/train.parquet")
    labels = [group.label for group in compare.group_runs(runs)]
    assert labels == [
        "dasd (rollout.n=4, data.max_response_length=64)",
        "dasd (rollout.n=8, data.max_response_length=96)",
    ]
    moved = _seeds(tmp_path, "c", {1: 0.5}, "data.train_files=/other/train.parquet")
    assert [group.label for group in compare.group_runs(runs[1:] + moved)] == [
        "dasd (data.train_files=elsewhere/train.parquet)",  # nothing else tells them apart
        "dasd (data.train_files=other/train.parquet)",
    ]


def test_names_of_the_users_own(tmp_path, monkeypatch, capsys):
    from recipes.report import main

    _seeds(tmp_path, "a", {1: 0.5, 2: 0.6}) + _seeds(tmp_path, "g", {1: 0.9}, method="grpo")
    out = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["main", f"mine={tmp_path / 'a'}", f"{tmp_path / 'g'}", "--out", str(out)])
    assert main.main() == 0
    page = out.read_text()
    assert "mine" in page and "grpo" in page and ">dasd<" not in page
    monkeypatch.setattr(sys, "argv", ["main", f"={tmp_path / 'a'}"])
    assert main.main() == 2 and "no name" in capsys.readouterr().err


def test_intervals_over_seeds():
    found = compare.estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t(0.975, 2) * 1 / sqrt(3)
    assert compare.estimate([0.5]) == compare.Estimate(0.5, None, 1)
    assert compare.estimate([]) is None


def test_differences_are_paired_by_seed(tmp_path):
    base = _seeds(tmp_path, "g", {1: 0.5, 2: 0.5, 3: 0.9}, method="grpo")
    group = _seeds(tmp_path, "a", {1: 0.6, 2: 0.8, 4: 0.0})
    row = compare.table(compare.group_runs(base + group)).rows[1]
    assert row.difference.count == 2 and row.difference.mean == pytest.approx(0.2)
    assert row.difference.half == pytest.approx(12.706205 * 0.1, rel=1e-6)  # t(0.975, 1) * sd(0.1, 0.3) / sqrt(2)
    assert row.accuracy.mean == pytest.approx(1.4 / 3)


def test_accuracies_are_of_the_last_step_that_all_have(tmp_path):
    long = _seeds(tmp_path, "a", {1: 0.5}) + _seeds(tmp_path, "g", {1: 0.9}, method="grpo", step=20)
    found = compare.table(compare.group_runs(long))
    assert found.step == 0 and [r.accuracy.mean for r in found.rows] == [0.1, 0.1]
    assert found.rows[0].problems_half == 0.05


def test_other_validation_problems_are_pointed_out(tmp_path):
    runs = _seeds(tmp_path, "a", {1: 0.5}, "data.val_max_samples=8") + _seeds(tmp_path, "g", {1: 0.9}, method="grpo")
    notice = compare.validation_notice(compare.group_runs(runs))
    assert "data.val_max_samples" in notice and "not comparable" in notice
    assert [row.difference for row in compare.table(compare.group_runs(runs)).rows] == [None, None]
    assert compare.validation_notice(compare.group_runs(runs[:1])) is None


def test_the_mean_curve_is_over_shared_steps():
    assert mean_curve([([1, 2, 3], [0.0, 1.0, 2.0]), ([2, 3, 4], [3.0, 4.0, 5.0])]) == ([2, 3], [2.0, 3.0])


# ---------------------------------------------------------------------- pages

HOSTILE = (
    '</b></p></style></title><script>document.title="pwned"</script>',
    '"><img src=x onerror="document.title=1">',
    "<!-- {{ 7 * 7 }} {% raw %} ]]> &lt; $\\frac{1",
    "\ud800 half a pair, \x00 and \u202eeno thgir ot tfel",
)
TAGS = """html head meta title style body main header h1 h2 h3 p span div strong small code figure svg g path defs use
    clippath rect text br section details summary article b i input label table thead tbody tr th td footer"""


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.text += " "
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "data", "action")]

    def handle_data(self, data):
        self.text += data


def hostile_run(directory):
    """A run whose every text wants to be markup."""
    bad, image, template, odd = HOSTILE
    samples = [
        {
            "step": 1,
            "samples": [
                response([*HOSTILE, "plain"], problem=bad, omega=[0.9, -0.9, None, 0.1, 0.2], delta=[1, 2, 3, 4, -5]),
                response([image], reward=0, problem=template, omega=[0.5], **{image: [1.0]}),
            ],
        }
    ]
    records = [
        {**record(1, critic__score__mean=0.5), **validated(1, 0.5, source=image), image: None},
        {**record(2, critic__score__mean=0.6), **validated(2, 0.7, source=image)},
    ]
    quoted = image.replace('"', '\\"')
    write_run(
        directory,
        records,
        f'+data.note="{quoted}"',
        f'self_distill.method="{bad.replace(chr(34), chr(92) + chr(34))}"',
        samples=samples,
        ending=files.FAILED,
        reason=bad + odd,
    )
    return directory


def test_no_text_becomes_markup(tmp_path):
    directory = hostile_run(tmp_path / "<i onmouseover=x>run & co")
    page = Page(write_report(directory).read_text())
    assert page.tags <= set(TAGS.split())
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(re.fullmatch(r"#\w+", link) for link in page.links), "nothing is fetched"
    for text in HOSTILE[:3]:
        assert text in page.text
    assert "<i onmouseover=x>run & co" in page.text

    other = load_run(write_run(tmp_path / "other", [record(1), validated(2, 0.5)]))
    both = Page(comparison_page([load_run(directory), other], notices=[HOSTILE[0]]))
    assert both.tags <= set(TAGS.split()) and HOSTILE[0] in both.text


def test_a_page_holds_what_the_run_did(tmp_path):
    records = [
        {**record(s, critic__score__mean=0.4 + 0.1 * s, divergence__mean=-0.0041), **validated(s, 0.5 + 0.1 * s)}
        for s in (1, 2)
    ]
    samples = [
        {"step": 2, "samples": [response(["7", "+", "8"], reward=0.0, problem="What is 7+8?", delta=[0.1, -2, 0])]}
    ]
    directory = write_run(tmp_path / "run", records, "algorithm.dasd.beta=0.5", samples=samples)
    text = re.sub(r"\s+", " ", Page(write_report(directory).read_text()).text)
    for part in (
        "Validation mean@16, step 2 70.0 ± 5.0 60.0 at step 1, best 70.0 at step 2",
        "Reward 0.600 0.500 at step 1",
        "Divergence −0.0041",
        "algorithm.dasd.beta null 0.5 ours",
        "What is 7+8?",
        "reward 0",
    ):
        assert part in text, part
    assert "Warning" not in text


def test_long_runs_are_thinned_in_the_table(tmp_path):
    records = [record(s, critic__score__mean=0.5) for s in range(1, 131)]
    page = write_report(write_run(tmp_path / "run", records)).read_text()
    assert "(44 of 130 steps)" in page  # 1, 4, … 130
    assert page.count('<td class="number">130</td>') == 1
