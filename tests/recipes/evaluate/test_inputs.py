"""What an evaluation accepts and what it refuses: models of every kind, sets, values, damaged results."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import CONFIG_DIR, STARTER
from recipes.common import models
from recipes.common.checks.errors import SettingsError
from recipes.evaluate import plan, problems
from recipes.evaluate.results import ResultsFile, corrupt_file, decode, encode, read_records

MODEL = STARTER / "model"


def configured(*overrides):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


def planned(directory, *overrides, gpus=0):
    return plan.make_plan(configured("preset=starter", *overrides), directory, gpus)


def refusal(directory, *overrides, gpus=0):
    with pytest.raises(SettingsError) as error:
        planned(directory, *overrides, gpus=gpus)
    return str(error.value)


# ------------------------------------------------------------------ values


def test_the_protocols_are_the_papers():
    dasd, pw, atesd = (configured(f"preset={name}", "model=x") for name in ("dasd", "pw_opsd", "atesd"))
    assert (dasd.samples, dasd.temperature, dasd.top_p, dasd.max_tokens) == (16, 1.0, 0.9, 8192)
    assert not dasd.template_kwargs.enable_thinking and len(dasd.data) == 6
    for cfg in (pw, atesd):
        assert (cfg.samples, cfg.temperature, cfg.top_p, cfg.max_tokens) == (12, 1.0, 0.95, 38912)
        assert cfg.template_kwargs.enable_thinking
    known = {p.stem for p in problems.KNOWN_SETS.glob("*.yaml")}
    assert set(dasd.data) | set(pw.data) | set(atesd.data) <= known


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["samples=4", "k=[1,8]"], "k=8 with samples=4: Pass@k needs 1 <= k <= samples; set samples=8"),
        (["samples=0"], "samples=0"),
        (["temperature=0"], "greedy samples are all the same; set samples=1"),
        (["top_p=1.5"], "top_p=1.5"),
        (["seeds=[1,1]"], "each once"),
        (["limit=0"], "limit=0"),
        (["engine=vllm"], "no GPU"),
        (["engine=sglang"], "auto, vllm, transformers or openai"),
        (["+reward_kwargs.nonsense=1"], "nonsense"),
        (["prm_threshold=1"], "between 0 and 1"),
        (["data=[]"], "data= is empty"),
        (["max_tokens=5000"], "reads 1024 in all; set max_tokens to at most 9"),
        (["data=math_501"], "nor a known set (aime_2024, aime_2025"),
        (["data=math_500"], "python -m recipes.data.prepare dataset=math_500"),
        (["data=nowhere.parquet"], "no such file"),
        (["model=no/such-model"], "no folder here, and the hub does not give it"),
        (["compare=[nowhere]"], "compare=nowhere"),
    ],
)
def test_wrong_values_are_refused_with_value_rule_and_fix(tmp_path, overrides, said):
    assert said in refusal(tmp_path, *overrides)


def test_the_format_of_own_files_is_no_set(tmp_path):
    said = refusal(tmp_path, "data=local")
    assert "data=local: neither a parquet file" in said and ", local" not in said


def test_everything_wrong_is_said_at_once(tmp_path):
    said = refusal(tmp_path, "samples=0", "data=math_501", "model=no/such-model")
    assert "samples=0" in said and "math_501" in said and "no/such-model" in said


def test_pass_at_k_is_for_powers_of_two_and_the_samples(tmp_path):
    assert planned(tmp_path, "samples=12", "limit=2").ks == (1, 2, 4, 8, 12)


def test_models_get_names_that_tell_them_apart():
    assert plan.named_models("a/b/model") == [("model", "a/b/model")]
    assert plan.named_models(["a/x/m", "a/y/m"]) == [("x/m", "a/x/m"), ("y/m", "a/y/m")]
    named = plan.named_models({"dasd": ["r/1", "r/2"], "grpo": "r/3"})
    assert named == [("dasd", "r/1"), ("dasd", "r/2"), ("grpo", "r/3")]


def test_the_same_weights_twice_are_refused(tmp_path):
    shutil.copytree(MODEL, tmp_path / "copy")
    said = refusal(tmp_path / "out", f"model=[{MODEL},{tmp_path / 'copy'}]")
    assert "same weights" in said


# ------------------------------------------------------------------ sets


def starter_rows(count=3, **changes):
    rows = pd.read_parquet(STARTER / "data" / "val.parquet").head(count)
    return rows.assign(**changes)


def test_a_row_without_answer_or_prompt_is_refused_by_its_place(tmp_path):
    starter_rows(reward_model=[{"ground_truth": a, "style": "rule"} for a in ("1", "", "2")]).to_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(SettingsError, match=r"a\.parquet, row 1: no ground truth"):
        problems.load_set(str(tmp_path / "a.parquet"), "data", None)
    starter_rows(prompt=[[{"role": "user", "content": "x"}], [], []]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(SettingsError, match="row 1: no chat"):
        problems.load_set(str(tmp_path / "b.parquet"), "data", None)
    assert len(problems.load_set(str(tmp_path / "b.parquet"), "data", 1).problems) == 1


def test_a_prepared_set_is_found_by_name_and_a_file_that_is_no_parquet_refused(tmp_path):
    (tmp_path / "aime_2024").mkdir()
    starter_rows().to_parquet(tmp_path / "aime_2024" / "test.parquet")
    assert problems.find_file("aime_2024", str(tmp_path)) == tmp_path / "aime_2024" / "test.parquet"
    (tmp_path / "c.parquet").write_text("not a table")
    with pytest.raises(SettingsError, match="cannot be read as parquet"):
        problems.load_sets([str(tmp_path / "c.parquet")], "data", None)


def test_ids_name_the_row_and_its_content(tmp_path):
    starter_rows().to_parquet(tmp_path / "a.parquet")
    starter_rows(5).iloc[[0, 3, 2]].to_parquet(tmp_path / "b.parquet")
    a = problems.load_set(str(tmp_path / "a.parquet"), "data", None).problems
    b = problems.load_set(str(tmp_path / "b.parquet"), "data", None).problems
    assert a[0].id == b[0].id and a[2].id == b[2].id and a[1].id != b[1].id


# ------------------------------------------------------------------ models


def logits(model):
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        return model(ids).logits


@pytest.fixture(scope="module")
def moved():
    """The starter's model with weights of its own, so that a wrong file cannot pass for the right one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def checkpoint(folder, model, *, shards=1, tokenizer=True):
    """What verl leaves of an unsharded model: `actor/` with shards, fsdp_config.json and `huggingface/`."""
    (folder / "actor" / "huggingface").mkdir(parents=True)
    for rank in range(shards):
        torch.save(model.state_dict(), folder / "actor" / f"model_world_size_{shards}_rank_{rank}.pt")
    (folder / "actor" / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": shards}))
    model.config.save_pretrained(folder / "actor" / "huggingface")
    if tokenizer:
        AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "actor" / "huggingface")


def test_a_run_directory_means_its_last_complete_checkpoint(tmp_path, moved):
    run = tmp_path / "run"
    for step in (10, 20):
        checkpoint(run / "checkpoints" / f"global_step_{step}", moved)
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    assert models.locate(str(run)).step == 10
    assert models.locate(str(run / "checkpoints")).step == 10
    assert models.locate(str(run / "checkpoints" / "global_step_20")).step == 20
    assert models.locate(str(run / "checkpoints" / "global_step_20" / "actor")).step == 20
    located = models.locate(str(run))
    merged = AutoModelForCausalLM.from_pretrained(models.materialize(located, tmp_path / "merged"), dtype=torch.float32)
    # verl's merger rounds to bfloat16.
    assert torch.allclose(logits(merged), logits(moved), atol=0.5)
    rounded = moved.state_dict()["model.norm.weight"].to(torch.bfloat16).float()
    assert torch.equal(merged.state_dict()["model.norm.weight"], rounded)
    before = (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns
    models.materialize(located, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns == before


def test_incomplete_checkpoints_are_refused(tmp_path, moved):
    checkpoint(tmp_path / "bare", moved, tokenizer=False)
    with pytest.raises(SettingsError, match=r"no tokenizer .*tokenizer="):
        models.load_tokenizer(models.locate(str(tmp_path / "bare")), None)
    assert models.load_tokenizer(models.locate(str(tmp_path / "bare")), str(MODEL)).chat_template
    checkpoint(tmp_path / "half", moved, shards=2)
    (tmp_path / "half" / "actor" / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(SettingsError, match="1 of 2 shards"):
        models.locate(str(tmp_path / "half"))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(SettingsError, match="without a complete checkpoint"):
        models.locate(str(run))
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(SettingsError, match=r"step 7, but .* holds no shards"):
        models.locate(str(run))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="none of a model"):
        models.locate(str(tmp_path / "empty"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """(folder, the adapted model): LoRA on the starter, with weights that matter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder, adapted


def test_an_adapter_is_merged_into_its_base(tmp_path, adapter):
    folder, adapted = adapter
    located = models.locate(str(folder))
    assert located.kind == "adapter" and located.base.path == str(MODEL)
    merged = AutoModelForCausalLM.from_pretrained(models.materialize(located, tmp_path / "m"), dtype=torch.float32)
    expected = logits(adapted.eval())
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    with adapted.disable_adapter():
        assert not torch.allclose(logits(adapted), expected, atol=0.1)  # the adapter does something
    assert models.load_tokenizer(located, None).chat_template
    assert models.fingerprint(located) != models.fingerprint(models.locate(str(MODEL)))


def test_a_checkpoint_trained_with_lora_needs_its_alpha(tmp_path, adapter):
    """FSDP shards of a LoRA run hold base and adapter; without alpha verl's merger would switch the adapter off."""
    _, adapted = adapter
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    checkpoint(tmp_path / "step", base)
    actor = tmp_path / "step" / "actor"
    torch.save(adapted.state_dict(), actor / "model_world_size_1_rank_0.pt")
    with pytest.raises(SettingsError, match="lora_alpha"):
        models.materialize(models.locate(str(tmp_path / "step")), tmp_path / "m")
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    merged = models.materialize(models.locate(str(tmp_path / "step")), tmp_path / "m")
    merged = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    exact = logits(adapted.eval())
    with adapted.disable_adapter():
        without = (logits(adapted) - exact).abs().mean()
    assert (logits(merged) - exact).abs().mean() < 0.1 * without  # bfloat16 rounds, and no more


def test_an_adapter_without_its_base_is_refused(tmp_path, adapter):
    shutil.copytree(adapter[0], tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for base, said in ((None, "say which with base="), ("/nowhere/base", "or set base=")):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(SettingsError, match=said):
            models.locate(str(tmp_path / "a"))
    assert models.locate(str(tmp_path / "a"), base=str(MODEL)).base.path == str(MODEL)


def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    shutil.copytree(MODEL, tmp_path / "m")
    same, other = models.locate(str(tmp_path / "m")), models.locate(str(MODEL))
    assert models.fingerprint(same) == models.fingerprint(other)
    weights = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(weights)
    assert models.fingerprint(same) != models.fingerprint(other)


# ------------------------------------------------------------------ results


def test_every_damaged_byte_of_a_line_is_noticed():
    record = {"id": "1-a", "text": 'she said "crc32": "00000000"} é \ud800', "n": [1, 2.5, None]}
    line = encode(record)
    assert decode(line) == record and line.count(b"\n") == 1
    for place in range(len(line)):
        broken = bytearray(line)
        broken[place] ^= 1
        assert decode(bytes(broken)) is None, place
    for end in range(len(line)):
        assert decode(line[:end]) is None


def test_corrupt_lines_are_set_aside_and_only_their_problems_done_again(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultsFile(path, lambda r: r["id"]) as results:
        for number in range(4):
            results.append({"id": number, "text": "x" * 50})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"xx", b"xy", 1)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # one damaged, one cut
    assert [r and r["id"] for r in read_records(path)] == [0, None, 2, None]
    with ResultsFile(path, lambda r: r["id"]) as results:
        assert results.corrupt == 2 and results.done == {0, 2}
        results.append({"id": 3, "text": "again"})  # not glued to the cut line
    assert [r["id"] for r in read_records(path)] == [0, 2, 3]
    assert corrupt_file(path).read_bytes() == lines[1] + lines[3][:20] + b"\n"  # nothing is lost
    with ResultsFile(path, lambda r: r["id"]) as results:
        assert results.corrupt == 0


def test_a_second_evaluation_in_the_same_directory_is_refused(tmp_path):
    with ResultsFile(tmp_path / "r.jsonl", lambda r: 0):
        with pytest.raises(SettingsError, match="another evaluation writes there"):
            ResultsFile(tmp_path / "r.jsonl", lambda r: 0)
    with ResultsFile(tmp_path / "r.jsonl", lambda r: 0):
        pass


def test_an_evaluation_goes_on_only_with_its_own_settings(tmp_path):
    first = planned(tmp_path, "limit=3", "samples=4")
    plan.write_settings(first)
    assert planned(tmp_path, "limit=5", "samples=4", "seeds=[1,2]").samples == 4  # more of the same is welcome
    said = refusal(tmp_path, "limit=3", "samples=4", "temperature=0.7")
    assert "temperature=0.7" in said and "begun with 1.0" in said
    changed = tmp_path / "changed.parquet"
    starter_rows(2).to_parquet(changed)
    assert "not the file" in refusal(tmp_path, "samples=4", f"data=[{changed}]")


def test_what_is_done_is_not_sampled_again(tmp_path):
    made = planned(tmp_path, "limit=3", "samples=4", "seeds=[1,2]")
    (member,) = made.members
    name, ids = made.sets[0].name, [p.id for p in made.sets[0].problems]
    done = {(member.fingerprint, 1, name, ids[0]), (member.fingerprint, 2, name, ids[2]), ("other", 1, name, ids[1])}
    left = [(seed, p.index) for seed, _, p in made.tasks(member, done)]
    assert left == [(1, 1), (1, 2), (2, 0), (2, 1)]
