"""Exported folders: the weights are those of the training, the card says what was done, and nothing is half there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config

from config import CONFIG_DIR, STARTER
from recipes.common import models
from recipes.common.checks.errors import SettingsError
from recipes.common.method import cited, shipped
from recipes.export import card, write
from recipes.export.main import export_command
from recipes.export.public import portable, public_config
from tests.builders.processes import train
from tests.builders.runs import record, validated, write_run
from tests.recipes.evaluate.test_inputs import checkpoint, logits
from tests.workers.training.test_full_vocabulary import through_the_engine

MODEL = STARTER / "model"


def configured(source, out, *overrides):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return compose("export", overrides=[f"checkpoint={source}", f"out={out}", *overrides])


def exported(source, out, *overrides):
    assert export_command(configured(source, out, *overrides)) == 0
    assert not list(out.parent.glob(".*"))  # nothing is left beside it
    return out


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def refusal(capsys, source, out, *overrides):
    assert export_command(configured(source, out, *overrides)) == 2
    return capsys.readouterr().err


def text_of(folder):
    return "\n".join(f.read_text() for f in folder.iterdir() if f.suffix in (".md", ".yaml", ".json", ".jinja"))


# ------------------------------------------------------------------ round trips

ENGINE = {"loss": {"kind": "forward_kl"}}


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Checkpoints that verl wrote from two workers, and the whole weights that each of them had in memory."""
    start = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    # Heads of its own, unlike the starter's: tied and untied weights are stored differently.
    config = Qwen3Config(
        vocab_size=375, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=False, eos_token_id=2, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(start)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(start)
    folder, nothing = tmp_path_factory.mktemp("shards"), tmp_path_factory.mktemp("nothing")
    cases = {
        "full": {**ENGINE, "model": str(start), "save": "global_step_3/actor"},
        "lora": {**ENGINE, "model": str(MODEL), "save": "global_step_4/actor", "lora": True},
    }
    weights = through_the_engine(nothing, folder, cases, world=2)[0]
    return folder, start, weights


def test_full_weights_of_two_workers_come_back(two_workers, tmp_path):
    folder, start, weights = two_workers
    assert len(list((folder / "global_step_3" / "actor").glob("model_world_size_2_rank_*.pt"))) == 2
    out = exported(folder / "global_step_3", tmp_path / "model")
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert config.dtype == torch.bfloat16 and config.architectures == ["Qwen3ForCausalLM"]
    # Rounded once, and otherwise those of the training.
    exact = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    before = logits(exact)
    exact.load_state_dict(weights["full"], strict=True)
    rounded = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    rounded.load_state_dict({name: w.to(torch.bfloat16) for name, w in weights["full"].items()}, strict=True)
    assert torch.equal(logits(loaded(out)), logits(rounded))
    assert (logits(loaded(out)) - logits(exact)).abs().mean() < 0.05 * (before - logits(exact)).abs().mean()
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(start)
    chat = [{"role": "user", "content": "12 + 30"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert {f.stat().st_mode & 0o777 for f in out.iterdir()} == {0o666 & ~umask()}
    assert "after training step 3" in (out / "README.md").read_text()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def adapted(weights):
    """The base with the adapter on, by PEFT, from the training's own weights."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def test_an_adapter_of_two_workers_comes_back_merged_and_alone(two_workers, tmp_path):
    folder, _, weights = two_workers
    weights = weights["lora"]
    assert sum("lora_" in name for name in weights) == 42
    expected, base = logits(adapted(weights)), logits(loaded(MODEL))
    effect = (expected - base).abs().mean()
    assert effect > 0.05
    merged = exported(folder / "global_step_4", tmp_path / "merged")
    assert not list(merged.glob("*adapter*"))
    assert (logits(loaded(merged)) - expected).abs().mean() < 0.1 * effect
    name = "model.layers.1.mlp.down_proj"
    base_weight, a, b = (
        weights[f"base_model.model.{name}.{part}.weight"].to(torch.bfloat16).float()
        for part in ("base_layer", "lora_A.default", "lora_B.default")
    )
    exact = (base_weight + 2 * b @ a).to(torch.bfloat16)  # alpha / r = 2
    stored = load_file(merged / "model.safetensors")[f"{name}.weight"]
    assert stored.dtype == torch.bfloat16 and (stored != exact).float().mean() < 0.001  # sums in another order

    alone = exported(folder / "global_step_4", tmp_path / "alone", "adapter_only=true")
    assert not (alone / "model.safetensors").exists()
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), alone)
    assert (logits(with_adapter.eval()) - expected).abs().mean() < 0.05 * effect
    described = ModelCard.load(alone / "README.md")
    assert described.data.library_name == "peft" and "--max-lora-rank 4" in described.text
    assert AutoTokenizer.from_pretrained(alone).chat_template
    # And from there, as any PEFT adapter, into its base.
    again = exported(alone, tmp_path / "again", f"base={MODEL}")
    assert (logits(loaded(again)) - expected).abs().mean() < 0.05 * effect


@pytest.mark.slow
def test_opsd_trains_an_adapter_and_nothing_else_and_its_export_is_what_was_trained(tmp_path):
    run = train(
        "opsd", tmp_path / "run", "trainer.total_training_steps=2", "trainer.save_freq=2",
        "actor_rollout_ref.rollout.n=1", "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8",
        "actor_rollout_ref.model.target_modules=all-linear", "actor_rollout_ref.model.lora.merge=true",
    )  # fmt: skip
    assert run.code == 0, run.console + run.log[-3000:]
    assert all(record["actor/grad_norm"] > 0 for record in run.steps.values())
    actor = run.directory / "checkpoints" / "global_step_2" / "actor"
    state = torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=True, map_location="cpu")
    weights = {name: w.to_local() for name, w in state.items()}  # of one worker: the whole tensors
    # B starts at zero: where it is not, the adapter has learned.
    learned = [name for name, w in weights.items() if "lora_B" in name and w.abs().max() > 0]
    assert len(learned) == 21
    start = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).state_dict()
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): w
        for name, w in weights.items()
        if "lora_" not in name
    }
    assert base.keys() == start.keys() and all(torch.equal(w, start[name]) for name, w in base.items())
    out = exported(run.directory, tmp_path / "model")
    expected, before = logits(adapted(weights)), logits(loaded(MODEL))
    # Two steps move weights by less than bfloat16 can say of most: compare with the rounding of both.
    rounded = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).to(torch.float32)
    assert not torch.equal(expected, before)
    assert (logits(loaded(out)) - expected).abs().mean() < 1.5 * (logits(rounded) - before).abs().mean()
    alone = exported(run.directory, tmp_path / "alone", "adapter_only=true")
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), alone)
    assert (logits(with_adapter.eval()) - expected).abs().mean() < 0.02 * (expected - before).abs().mean()
    described = ModelCard.load(out / "README.md")
    assert "lora" in described.data.tags and "LoRA rank | 4" in described.text and "step 2 of 2" in described.text
    assert str(tmp_path) not in text_of(out) + text_of(alone)


# ------------------------------------------------------------------ the card


@pytest.fixture(scope="module")
def trained():
    """The starter's model with weights of its own."""
    torch.manual_seed(0)
    model = loaded(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def run(tmp_path, trained):
    """A run of DASD with checkpoints at steps 2 and 4, the last of them complete, and records beyond it."""
    records = [
        {**record(1), **validated(1, 0.25)}, {**record(2), **validated(2, 0.625, 0.03)},
        record(3), {**record(4), **validated(4, 0.5, 0.04)}, {**record(5), **validated(5, 0.9)},
    ]  # fmt: skip
    directory = write_run(
        tmp_path / "run", records, "algorithm.dasd.beta=0.125", "data.train_files=/home/lovelace/sets/maths.parquet",
        "+trainer.wandb_api_key=hunter2", "+trainer.proxy=http://lovelace:hunter2@proxy:80",
        "trainer.total_training_steps=8",
    )  # fmt: skip
    for step in (2, 4):
        checkpoint(directory / "checkpoints" / f"global_step_{step}", trained)
    (directory / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    return directory


def test_the_card_says_what_was_trained_how_and_what_was_measured(run, tmp_path):
    out = exported(run, tmp_path / "my-model", "base_name=org/base")
    described = ModelCard.load(out / "README.md")
    data, text = described.data.to_dict(), described.text
    assert (data["base_model"], data["library_name"], data["pipeline_tag"]) == (
        "org/base", "transformers", "text-generation",
    )  # fmt: skip
    assert {"dasd", "verl", "self-distillation"} <= set(data["tags"]) and "license" not in data
    (result,) = described.data.eval_results
    assert (result.metric_value, result.dataset_type, result.metric_name) == (0.5, "set", "accuracy, mean@16")
    assert "step 4 of 8" in text and "bfloat16" in text and "vllm serve ./my-model" in text
    # Of this checkpoint: the validation at step 5 is of other weights.
    assert "| first | 1 | 25.0 ± 5.0 |" in text
    assert "| last | 4 | 50.0 ± 4.0 |" in text
    assert "| best | 2 | 62.5 ± 3.0 |" in text
    assert "90.0" not in text
    assert "credit dasd, beta=0.125" in text and "current weights, shown the solution" in text
    assert "| `algorithm.dasd.beta` | null | 0.125 | ours: the paper gives no value" in text
    assert "| `algorithm.dasd.router_quantile` | 0.2 | rho, §5 and Table 11 |" in text
    assert "`maths.parquet`" in text and "arxiv.org/abs/2605.22263" in text and "| learning rate | 5e-05 |" in text
    # Each row of a table has as many cells as its head.
    for block in text.split("\n\n"):
        rows = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block
    everything = text_of(out)
    for secret in ("hunter2", "lovelace", "localhost", str(tmp_path), str(STARTER.parents[1])):
        assert secret not in everything


def test_the_training_configuration_is_the_runs_without_the_machine(run, tmp_path):
    out = exported(run / "checkpoints" / "global_step_2", tmp_path / "model")
    config = OmegaConf.load(out / "training_config.yaml")
    assert config.algorithm.dasd.beta == 0.125 and config.trainer.total_training_steps == 8
    assert config.data.train_files == "maths.parquet" and config.data.val_files == "recipes/starter/data/val.parquet"
    assert config.self_distill.run_dir == "." and config.trainer.default_local_dir == "checkpoints"
    assert config.trainer.wandb_api_key == config.trainer.proxy == "(not shown)"
    assert "ray_kwargs" not in config and config.reward.custom_reward_function.path == "pkg://rewards.math"
    # All else is there, and the same.
    original = OmegaConf.load(run / "config.yaml")
    assert config.actor_rollout_ref.actor == original.actor_rollout_ref.actor
    # The card of an earlier checkpoint is that of its own step.
    text = (out / "README.md").read_text()
    assert "step 2 of 8" in text and "| last | 2 | 62.5 ± 3.0 |" in text


@pytest.mark.parametrize(
    "text, public",
    [
        ("/data/x/train.parquet", "train.parquet"),
        ("/runs/a/checkpoints", "checkpoints"),
        ("~/my models/base", "base"),
        ("../base", "base"),
        ("data/dapo/train.parquet", "data/dapo/train.parquet"),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"),
        ("pkg://rewards.math", "pkg://rewards.math"),
        ("hdfs://cluster/user/ada/ck", "ck"),
        ("https://ada:secret@host/x", "(not shown)"),
        ("see /home/lovelace/x.yaml, and a/b, 1/2 or https://arxiv.org/abs/1", "see x.yaml, and a/b, 1/2 or https://arxiv.org/abs/1"),
        ("/opt/py/site-packages/recipes/starter/model", "recipes/starter/model"),
        ("[/a/b/c.parquet, /a/b/d.parquet]", "[c.parquet, d.parquet]"),
    ],
)  # fmt: skip
def test_paths_of_the_machine_become_names(text, public):
    assert portable(text, "/runs/a") == public


def test_the_base_is_named_and_its_licence_taken_from_its_own_card(run, tmp_path):
    base = tmp_path / "hub" / "models--Qwen--Qwen3-1.7B" / "snapshots" / "abc"
    shutil.copytree(MODEL, base)
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: theirs\nlicense_link: https://x.org/l\n---\nx\n"
    )
    config = OmegaConf.load(run / "config.yaml")
    config.actor_rollout_ref.model.path = str(base)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    data = ModelCard.load(exported(run, tmp_path / "model") / "README.md").data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-1.7B" and data["base_model_relation"] == "finetune"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "theirs", "https://x.org/l")


def test_every_method_says_what_it_is_and_has_its_papers():
    for method in shipped():
        assert method.title != method.name and method.description and method.credit, method
        assert f"https://arxiv.org/abs/{method.paper['arxiv']}" in card._citation(method), method
    atesd = next(method for method in shipped() if method.name == "atesd")
    assert [paper["arxiv"] for paper in cited(atesd)] == ["2605.11458", "2601.18734"]


def test_counting_shards_says_nothing_of_process_groups(two_workers):
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    log = logging.getLogger("torch.distributed.device_mesh")
    log.addHandler(handler)
    try:
        for step in (3, 4):
            assert models.shard_contents(models.locate(str(two_workers[0] / f"global_step_{step}"))).workers == 2
    finally:
        log.removeHandler(handler)
    assert not said


def test_a_checkpoint_without_its_run_has_a_card_that_claims_nothing(run, tmp_path, capsys):
    shutil.copytree(run / "checkpoints" / "global_step_4", tmp_path / "elsewhere" / "a" / "global_step_4")
    out = exported(tmp_path / "elsewhere" / "a" / "global_step_4", tmp_path / "model")
    assert "without the training" in capsys.readouterr().out
    described = ModelCard.load(out / "README.md")
    assert described.data.tags == ["verl"] and "## Method" not in described.text
    assert not (out / "training_config.yaml").exists() and loaded(out)


# ------------------------------------------------------------------ interrupted and refused


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_leaves_nothing(run, tmp_path, monkeypatch, capsys, number):
    seen = []

    def stopped_when_merged(located, folder):
        merged = models.materialize(located, folder)
        seen.extend(Path(merged).glob("*.safetensors"))
        os.kill(os.getpid(), number)
        return merged

    monkeypatch.setattr(write, "materialize", stopped_when_merged)
    assert export_command(configured(run, tmp_path / "out" / "model")) == 130
    assert seen and not list((tmp_path / "out").iterdir())
    assert "nothing was written" in capsys.readouterr().err
    monkeypatch.undo()
    exported(run, tmp_path / "out" / "model")


def test_a_failed_export_says_why_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "sync", full)
    assert export_command(configured(run, tmp_path / "out" / "model")) == 1
    said = capsys.readouterr().err
    assert "failed; nothing was written: OSError" in said and "No space left" in said
    assert not list((tmp_path / "out").iterdir())


def test_what_a_killed_export_left_cannot_pass_for_a_model_and_is_named(run, tmp_path, capsys):
    out = tmp_path / "out" / "model"
    (tmp_path / "out" / ".model.incomplete-abc" / "model").mkdir(parents=True)
    out.mkdir()  # an empty folder is as good as none
    assert export_command(configured(run, out)) == 0
    assert ".model.incomplete-abc" in capsys.readouterr().out
    assert (out / "README.md").exists()


def test_what_cannot_be_exported_is_refused_before_the_work(run, tmp_path, trained, capsys, monkeypatch):
    out = tmp_path / "model"
    said = refusal(capsys, "???", "???")
    assert "checkpoint= is not given; name a run" in said and "out= is not given; name the folder" in said
    assert "there is no such folder" in refusal(capsys, tmp_path / "nowhere", out)
    assert "is a whole model already" in refusal(capsys, MODEL, out)
    assert "not trained with LoRA; leave it out" in refusal(capsys, run, out, "adapter_only=true")
    actor = run / "checkpoints" / "global_step_4" / "actor"

    shard = actor / "model_world_size_1_rank_0.pt"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(capsys, run, out)
    shard.write_bytes(whole)
    shard.rename(actor / "model_world_size_2_rank_0.pt")
    assert "1 of 2 shards; copy those of the other nodes" in refusal(capsys, run, out)
    (actor / "model_world_size_2_rank_0.pt").rename(shard)

    template = actor / "huggingface" / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    assert "no chat template" in refusal(capsys, run, out)
    template.write_text(text)
    shutil.move(actor / "huggingface" / "tokenizer.json", tmp_path)
    (actor / "huggingface" / "tokenizer_config.json").unlink()
    assert "has no tokenizer" in refusal(capsys, run, out)

    # Everything that is wrong, at once.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    said = refusal(capsys, run, tmp_path / "full")
    assert "has no tokenizer" in said and "is not empty; empty it, or choose a folder" in said
    with_tokenizer = f"tokenizer={MODEL}"
    assert "is a file" in refusal(capsys, run, tmp_path / "full" / "x", with_tokenizer)
    assert "/proc cannot be written to" in refusal(capsys, run, "/proc/nowhere/model", with_tokenizer)

    (run / "config.yaml").write_text("a: [1")
    assert "not YAML" in refusal(capsys, run, out, with_tokenizer)
    (run / "config.yaml").unlink()

    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=10**6))
    said = refusal(capsys, run, out, with_tokenizer)
    assert "needs 68." in said and "has 1.0 MB free; make room, or choose another out=" in said
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_an_adapter_alone_in_its_shards_needs_its_base(tmp_path, trained, capsys):
    """verl's save_lora_only leaves the base out."""
    model = get_peft_model(loaded(MODEL), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    checkpoint(tmp_path / "global_step_1", trained)
    actor = tmp_path / "global_step_1" / "actor"
    state = {name: w for name, w in model.state_dict().items() if "lora_" in name}
    torch.save(state, actor / "model_world_size_1_rank_0.pt")
    assert "lora_alpha" in refusal(capsys, tmp_path / "global_step_1", tmp_path / "model")
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    assert "holds the adapter only (save_lora_only)" in refusal(capsys, tmp_path / "global_step_1", tmp_path / "model")
    alone = exported(tmp_path / "global_step_1", tmp_path / "adapter", "adapter_only=true", "base_name=org/base")
    assert load_file(alone / "adapter_model.safetensors").keys() == {n.replace(".default", "") for n in state}
    assert json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    with pytest.raises(SettingsError, match=r"adapter of org/base.*set base="):
        models.locate(str(alone))


def test_the_public_configuration_leaves_the_run_alone(run):
    config = OmegaConf.load(run / "config.yaml")
    before = OmegaConf.to_yaml(config)
    public_config(config)
    assert OmegaConf.to_yaml(config) == before
