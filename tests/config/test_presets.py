"""Every combination of model, problems, machine and protocol passes the checks, fits, and has its paper's values."""

from __future__ import annotations

import itertools

import pytest
from omegaconf import OmegaConf

from config import CONFIG_DIR
from recipes.common import checks
from recipes.common.checks import check
from recipes.common.checks.errors import SettingsError
from recipes.common.method import read
from recipes.common.plan import memory as planner
from tests.builders.configs import composed
from tests.config.test_config import ABOUT_THE_MACHINE

MODELS = sorted(p.stem for p in (CONFIG_DIR / "base_model").glob("[!_]*.yaml"))
PROBLEMS = sorted(p.stem for p in (CONFIG_DIR / "problems").glob("*.yaml"))
HARDWARE = sorted(p.stem for p in (CONFIG_DIR / "hardware").glob("*.yaml"))
# A method for each protocol.
PROTOCOLS = {"dasd": "dasd", "opsd": "opsd"}


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """(method, model, problems) -> configuration; composed once, since composing is what takes time."""
    run_dir = tmp_path_factory.mktemp("presets")
    return {
        (method, model, problems): composed(f"method={method}", f"experiment={model}_{problems}", run_dir=run_dir)
        for method, model, problems in itertools.product(PROTOCOLS, MODELS, PROBLEMS)
    }


def on(cfg, hardware):
    """A preset on another machine. Each hardware file sets every key that any other sets to something else."""
    fresh = OmegaConf.load(CONFIG_DIR / "hardware" / f"{hardware}.yaml")
    moved = OmegaConf.merge(cfg, fresh)
    moved.actor_rollout_ref.rollout.n_gpus_per_node = moved.trainer.n_gpus_per_node  # resolved when composed
    return moved


def test_the_groups_are_what_the_papers_and_clusters_have():
    assert MODELS == [
        "deepseek_r1_llama_8b", "llama3_1_8b", "olmo3_7b", "olmo3_7b_instruct", "qwen3_1_7b", "qwen3_4b", "qwen3_8b"
    ]  # fmt: skip
    assert PROBLEMS == ["dapo", "openthoughts"]
    assert HARDWARE == sorted(f"{count}x{gpu}" for count in ("1", "4", "8", "2x8") for gpu in ("h100", "h200"))


def test_an_experiment_for_each_model_and_problem_set():
    names = {p.stem for p in (CONFIG_DIR / "experiment").glob("*.yaml")}
    shipped = names - {"starter", "starter_shortcut", "starter_vllm", "smollm2_135m", "smollm2_135m_warm_up"}
    assert shipped == {f"{model}_{problems}" for model in MODELS for problems in PROBLEMS}


def test_merging_a_machine_is_choosing_it_on_the_command_line(presets, tmp_path):
    chosen = composed("method=dasd", "experiment=qwen3_8b_dapo", "hardware=1xh200", run_dir=tmp_path)
    merged = on(presets["dasd", "qwen3_8b", "dapo"], "1xh200")
    chosen.self_distill.run_dir = merged.self_distill.run_dir
    chosen.trainer.default_local_dir = merged.trainer.default_local_dir
    assert chosen == merged


@pytest.mark.parametrize("hardware", HARDWARE)
def test_every_combination_passes_the_checks_and_fits(presets, hardware, monkeypatch):
    monkeypatch.setattr(
        checks, "CHECKS", [part for part in checks.CHECKS if part is not checks.model.model]
    )  # tokenizers are on the hub
    if hardware.startswith("2x"):
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    for (method, model, problems), preset in presets.items():
        cfg = on(preset, hardware)
        try:
            check(cfg, read(cfg), gpus=8)
            found = []
        except SettingsError as error:
            found = [p for p in error.problems if not p.startswith(ABOUT_THE_MACHINE)]
        assert found == [], (method, model, problems)
        job = planner.job_of(cfg, read(cfg), planner.GPUS[cfg.self_distill.gpu])
        assert planner.overfull(job) == []
        nodes, gpus = (2, 8) if hardware.startswith("2x8") else (1, int(hardware[0]))
        assert (cfg.trainer.nnodes, cfg.trainer.n_gpus_per_node) == (nodes, gpus)


def values(cfg):
    arr, data = cfg.actor_rollout_ref, cfg.data
    return {
        "batch": data.train_batch_size,
        "mini": arr.actor.ppo_mini_batch_size,
        "n": arr.rollout.n,
        "lr": arr.actor.optim.lr,
        "schedule": arr.actor.optim.lr_scheduler_type,
        "lora": (arr.model.lora_rank, arr.model.lora_alpha, arr.model.target_modules) if arr.model.lora_rank else None,
        "grad": arr.actor.grad_clip,
        "tokens": data.max_response_length,
        "sampling": (arr.rollout.temperature, arr.rollout.top_p, arr.rollout.top_k),
        "evaluation": (arr.rollout.val_kwargs.n, arr.rollout.val_kwargs.temperature, arr.rollout.val_kwargs.top_p),
        "steps": cfg.trainer.total_training_steps,
    }


# Written from the papers, not from the YAML: DASD §5 and App. F; OPSD's reference implementation, PW-OPSD App. I.
PAPERS = {
    "dasd": {
        "batch": 128,
        "mini": 32,
        "n": 8,
        "lr": 3e-6,
        "schedule": "cosine",
        "lora": None,
        "grad": 1.0,
        "tokens": 8192,
        "sampling": (1.0, 1.0, -1),
        "evaluation": (16, 1.0, 0.9),
        "steps": 200,
    },
    "opsd": {
        "batch": 32,
        "mini": 32,
        "n": 1,
        "lr": 5e-6,
        "schedule": "constant",
        "lora": (64, 128, "all-linear"),
        "grad": 0.1,
        "tokens": 1024,
        "sampling": (1.1, 0.95, 20),
        "evaluation": (12, 1.0, 0.95),
        "steps": 100,
    },
}


def test_the_method_brings_its_papers_values_to_every_model_and_problem_set(presets):
    for (method, *_), cfg in presets.items():
        assert values(cfg) == PAPERS[PROTOCOLS[method]]


@pytest.mark.parametrize(("method", "protocol"), [("grpo", "dasd"), ("dasd_distribution", "dasd"), ("pw_opsd", "opsd")])
def test_relatives_share_a_protocol(method, protocol, tmp_path):
    cfg = composed(f"method={method}", "experiment=qwen3_4b_openthoughts", run_dir=tmp_path)
    assert values(cfg) == PAPERS[protocol]


# RLSD §5.1 and its release's script; SRPO App. B.2, Table 3; EOPD App. A, Table 9, with the settings of Qwen.
BASELINES = {
    "rlsd": (256, 256, 8, 1e-6, 4096, (1.0, 1.0, -1), (0.2, 0.28), "seq-mean-token-mean"),
    "srpo": (32, 32, 8, 5e-6, 8192, (1.0, 1.0, -1), (0.2, 0.28), "token-mean"),
    "eopd": (128, 32, 1, 3e-6, 4096, (1.0, 1.0, -1), (0.2, 0.2), "token-mean"),
    # RLCSD's plug-in form is trained as RLCSD's release trains it.
    "rlsd_contrast": (64, 16, 8, 1e-6, 16384, (1.0, 0.95, 20), (0.2, 0.2), "token-mean"),
}


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_bring_their_papers_values(method, tmp_path):
    cfg = composed(f"method={method}", "experiment=qwen3_1_7b_openthoughts", run_dir=tmp_path)
    found, actor = values(cfg), cfg.actor_rollout_ref.actor
    clip = (actor.clip_ratio_low, actor.clip_ratio_high)
    assert (
        *(found[key] for key in ("batch", "mini", "n", "lr", "tokens", "sampling")), clip, actor.loss_agg_mode
    ) == BASELINES[method]  # fmt: skip


def test_rlsds_teacher_is_shown_the_answer_and_never_a_worked_solution(tmp_path):
    """§5.1: the final answer alone, whatever the data have; a snapshot every 10 steps."""
    teacher = composed("method=rlsd", "experiment=qwen3_1_7b_openthoughts", run_dir=tmp_path).self_distill.teacher
    assert (teacher.context, teacher.weights, teacher.snapshot_every) == ("answer", "snapshot", 10)


def test_opsd_can_be_trained_by_dasds_protocol_as_that_paper_does(tmp_path):
    cfg = composed("method=opsd", "protocol=dasd", "experiment=qwen3_1_7b_dapo", run_dir=tmp_path)
    assert values(cfg) == PAPERS["dasd"]
    assert cfg.self_distill.loss.kind == "forward_kl"


def test_no_protocol_reaches_the_starter(tmp_path):
    cfg = composed("method=opsd", "experiment=starter", run_dir=tmp_path)
    arr = cfg.actor_rollout_ref
    assert (arr.model.lora_rank, arr.rollout.top_k, arr.rollout.temperature, arr.rollout.n) == (0, -1, 1.0, 8)


def test_problem_sets_choose_what_the_teacher_can_be_shown(presets):
    assert presets["dasd", "qwen3_8b", "dapo"].self_distill.teacher.context == "answer"
    assert presets["opsd", "qwen3_8b", "openthoughts"].self_distill.teacher.context == "solution"


@pytest.mark.parametrize("folder", ["protocol", "problems", "base_model"])
def test_every_value_says_where_it_is_from(folder):
    """A comment beside each leaf; paths, and switches of verl that change no result, apart."""
    exempt = {
        *("train_files", "val_files", "path", "seed", "use_remove_padding", "enable_gradient_checkpointing"),
        *("strategy", "use_dynamic_bsz", "name", "device", "do_sample"),
    }
    for file in (CONFIG_DIR / folder).glob("*.yaml"):
        above = ""
        for number, line in enumerate(file.read_text().splitlines(), 1):
            key, colon, value = line.strip().partition(": ")
            if colon and not key.startswith(("#", "-")) and key not in exempt:
                assert "#" in value or above.startswith("#"), f"{file.name}:{number}: {line}"
            above = line.strip()
