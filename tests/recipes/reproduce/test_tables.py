"""Descriptions of tables: what is shipped is right, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from config import CONFIG_DIR
from recipes.common.checks.errors import SettingsError
from recipes.common.method import shipped
from recipes.reproduce import main, results, tables
from recipes.reproduce.tables import GPU, STARTER

METHODS = [method.name for method in shipped()]
WANTED = [
    *(f"dasd_{number}" for number in range(1, 15)),
    *(f"dasd_fig_{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10)),
    "dasd_fig_6bc",
    *(f"pw_opsd_{number}" for number in range(1, 7)),
    *("pw_opsd_fig_1", "pw_opsd_fig_2", "atesd_1", "atesd_2"),
    *("atesd_fig_2", "atesd_fig_2b", "atesd_fig_4", "atesd_fig_4b"),
]
OURS = {"compare", "compare_quick", "dasd_scale", "smollm2", "atesd_fig_2_clip"}


def test_every_table_and_figure_of_the_papers_is_there():
    assert set(WANTED) == set(tables.names()) - OURS


@pytest.mark.parametrize("name", tables.names())
def test_what_is_shipped_can_be_had_or_says_why_not(name):
    table = tables.read(name)
    assert table.scales or table.commands or table.missing
    if name in WANTED:
        assert table.source.startswith("arXiv ")
    if table.scales:  # the first row is the baseline: it must be trained
        assert table.rows[0].overrides, name


def test_every_row_of_every_table_has_keys_that_there_are(tmp_path):
    """A key that was renamed would fail after an hour. Values are checked where a run starts."""
    wanted: dict[str, set[str]] = {}
    for name in tables.names():
        table = tables.read(name)
        for scale in table.scales.values():
            for job in results.plan(table, scale, tmp_path).jobs.values():
                given = dict(override.split("=", 1) for override in job.overrides)
                for group in ("experiment", "protocol"):
                    choice = given.pop(group, None)
                    assert choice is None or (CONFIG_DIR / group / f"{choice}.yaml").exists(), (name, choice)
                wanted.setdefault(given.pop("method"), set()).update(given)
    assert len(wanted) > 15
    everywhere = set.intersection(*wanted.values())  # these are asked of one method only
    wanted = {method: keys - everywhere for method, keys in wanted.items() if keys - everywhere} | {"grpo": everywhere}
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for method, keys in wanted.items():
            cfg = compose("train", overrides=[f"method={method}", "experiment=starter"])
            for key in keys:
                OmegaConf.update(cfg, key, None, force_add=False)  # struct mode: refuses what is not there


def test_compare_has_every_method_and_grpo_first():
    table = tables.read("compare")
    assert [row.label for row in table.rows if not row.control] == sorted(METHODS, key=lambda name: name != "grpo")
    contexts = {o.partition("=")[2] for row in table.rows if row.control for o in row.overrides if "context" in o}
    assert contexts == {"none", "other_problem"}


def test_a_method_that_appears_is_compared():
    table = tables.table_of("t", {"title": "t", "rows": "all"}, ["brand_new", "grpo"])
    assert [row.label for row in table.rows] == ["grpo", "brand_new"]


def test_what_is_wrong_with_a_description_is_listed():
    row = {"label": "a", "overrides": ["method=grpo"]}
    wrong = {
        "title": "t",
        "colour": "red",
        "sets": ["one", "two"],
        "rows": [row, {**row, "label": "b", "paper": {"x": [1.0]}}, {"label": "c", "sizes": 1}],
    }
    with pytest.raises(SettingsError) as error:
        tables.table_of("t", wrong, METHODS)
    text = "\n".join(error.value.problems)
    for said in ("'colour'", "1 numbers of 2 sets", "'sizes'", "share the folder grpo"):
        assert said in text


def test_rows_without_their_method_are_left_out_and_said():
    rows = [{"label": "G", "overrides": ["method=grpo"]}, {"label": "N", "overrides": ["method=nobody"]}]
    table = tables.table_of("t", {"title": "t", "rows": rows}, METHODS)
    assert [row.label for row in table.rows] == ["G"] and table.absent == ("N: this version has no method=nobody",)


def test_runs_are_shared_between_tables(tmp_path):
    scales = [(table := tables.read(name), table.scales[STARTER]) for name in ("dasd_12", "dasd_13")]
    folders = [
        {job.directory for place, job in results.plan(*pair, tmp_path).jobs.items() if place[0].startswith("DASD")}
        for pair in scales
    ]
    assert folders[0] == folders[1] and len(folders[0]) == 6


def test_seeds_come_before_rows(tmp_path):
    """A table that was interrupted has all of its rows with the first seeds."""
    table = tables.read("compare_quick")
    scale = tables.changed(table.scales[STARTER], seeds=[1, 2], steps=3)
    seeds = [seed for _, _, seed in results.plan(table, scale, tmp_path).jobs]
    assert seeds == [1] * 6 + [2] * 6


def test_an_evaluation_on_gpus_is_one_command_that_hydra_can_read(tmp_path):
    table = tables.read("atesd_2")
    planned = results.plan(table, table.scales[GPU], tmp_path)
    (command,) = results.evaluations(planned)
    overrides = [part for part in command[3:] if not part.startswith("hydra.")]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("evaluate", overrides=overrides)
    assert OmegaConf.to_container(cfg.model) == {
        row.slug: [str(planned.jobs[row.label, "qwen3_1_7b_openthoughts", 1].directory)] for row in table.rows
    }
    assert cfg.max_tokens == 38912


def test_a_directory_stands_for_one_command(tmp_path):
    """Tables share runs; what is shared must be the same run, whatever a table asks of all its rows."""
    commands: dict[Path, set[tuple[str, ...]]] = {}
    for name in tables.names():
        table = tables.read(name)
        for scale in table.scales.values():
            for extra in ((), ("actor_rollout_ref.rollout.n=4",)):
                for job in results.plan(table, scale, tmp_path, extra).jobs.values():
                    commands.setdefault(job.directory, set()).add(tuple(sorted(job.overrides)))
    assert len(commands) > 500 and {directory for directory, found in commands.items() if len(found) > 1} == set()


def test_diagnostics_are_commands_that_there_are():
    configs = {
        "recipes.diagnose.dasd_probes": "diagnose_dasd",
        "recipes.diagnose.branch_viability": "diagnose_branches",
        "recipes.diagnose.forks_and_revisions": "diagnose_forks",
        "recipes.diagnose.exposure_sweep": "diagnose_exposure",
    }
    commands = {line for name in tables.names() for lines in tables.read(name).commands.values() for line in lines}
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for module, *overrides in commands:
            cfg = compose(configs[module], overrides=overrides)
            assert OmegaConf.select(cfg, "model") and OmegaConf.select(cfg, "data"), module
            if cfg.device == "cuda":  # the starter's defaults are for its short answers and its own solutions
                assert cfg.max_tokens >= 8192, module
                prepared = OmegaConf.load(CONFIG_DIR / "dataset" / f"{str(cfg.data).split('/')[-2:][0]}.yaml")
                assert cfg.teacher.context == "answer" or prepared.solution, module
    assert len(commands) == 14


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel=dasd_2"], "did you mean table"),
        (["table=dasd_2", "scale=huge"], "one of starter, gpu"),
        (["table=dasd_2", "seeds=3"], "a list of whole numbers"),
        (["table=dasd_2", "seeds=[1,1]"], "each once"),
        (["table=dasd_2", "steps=0"], "above 0"),
        (["table=dasd_2", "report=yes please"], "true or false"),
        (["table=dasd_2", "overrides=fast"], "a list such as"),
        (["steps=2"], "table=: must be given"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(SettingsError, match=said):
        main.parsed(arguments)


def test_what_cannot_be_had_is_refused_with_the_reason(tmp_path):
    for name, scale, said in (("pw_opsd_5", "starter", "nothing to measure"), ("compare", "gpu", "scale=starter")):
        with pytest.raises(SettingsError, match=said):
            main.reproduce(tables.read(name), main.parsed([f"table={name}", f"scale={scale}", f"out={tmp_path}"]))


def test_the_list_names_all_of_them():
    text = main.listing()
    assert all(f"\n{name}: " in f"\n{text}" for name in WANTED)
