"""The planner's sizes against real tensors: models on the meta device, the optimiser, logits, cache and activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from config import STARTER
from recipes.common.method import read
from recipes.common.plan import memory as planner
from recipes.common.plan import shapes as architectures
from recipes.common.plan.memory import GIB, GPUS
from recipes.common.plan.shapes import KNOWN, Architecture
from tests.builders.configs import composed
from workers.divergence import DivergenceSpec, hidden_divergence, hidden_statistics, logits_divergence


def meta_model(shape: Architecture):
    config = AutoConfig.for_model(
        shape.family,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=0,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_parameters_are_those_of_the_real_model(name):
    shape = KNOWN[name]
    model = meta_model(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())
    # what the hub's pages say: 1.7, 4.0, 8.2, 7.3 and 8.0 billion
    billions = {"1.7B": 1.72, "4B": 4.02, "Qwen3-8B": 8.19, "Olmo": 7.30, "Llama": 8.03}
    assert shape.parameters / 1e9 == pytest.approx(next(v for k, v in billions.items() if k in name), abs=0.005)


def test_the_adapters_parameters_are_pefts():
    from peft import LoraConfig, get_peft_model

    shape = replace(KNOWN["Qwen/Qwen3-4B"], layers=2)
    model = get_peft_model(meta_model(shape), LoraConfig(task_type="CAUSAL_LM", r=64, target_modules="all-linear"))
    assert shape.adapter_parameters(64) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def starter():
    return AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32)


@pytest.fixture
def job(tmp_path):
    cfg = composed("method=dasd", "experiment=starter", run_dir=tmp_path)
    return planner.job_of(cfg, read(cfg), gpu=None)


def preset(tmp_path, *overrides):
    cfg = composed(*overrides, run_dir=tmp_path)
    return planner.job_of(cfg, read(cfg), GPUS[cfg.self_distill.gpu])


def test_weights_gradients_optimiser_and_checkpoint_of_the_starter(starter, job, tmp_path):
    optimiser = torch.optim.AdamW(starter.parameters())
    ids = torch.arange(12)[None]
    starter(input_ids=ids).logits.sum().backward()
    optimiser.step()
    measured = {
        "weights": sum(p.nbytes for p in starter.parameters()),
        "gradients": sum(p.grad.nbytes for p in starter.parameters()),
        "optimiser": sum(s[name].nbytes for s in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")),
    }
    starter.zero_grad()
    planned = planner.memory(job)["update"]
    assert {name: planned[name] for name in measured} == measured
    torch.save([starter.state_dict(), optimiser.state_dict()], tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").stat().st_size == pytest.approx(planner.checkpoint_bytes(job), rel=0.02)


def test_logits_and_cache_of_the_starter(starter, job):
    ids = torch.arange(40)[None]
    cache = DynamicCache()
    with torch.no_grad():
        logits = starter(input_ids=ids, past_key_values=cache, use_cache=True).logits
    assert logits.nbytes == planner.logits_bytes(job, 40)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 40 * job.model.cache_bytes(element=4)


def saved_bytes(shape: Architecture, tokens: int) -> float:
    """Bytes a token that autograd keeps inside one layer, its input and the rotary tables apart."""
    model = AutoModelForCausalLM.from_config(meta_model(shape).config, attn_implementation="sdpa", dtype=torch.bfloat16)
    x = torch.randn(1, tokens, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(tokens)[None]
    rotary = model.model.rotary_emb(x, positions)
    outside = {t.untyped_storage().data_ptr() for t in (x, *rotary, *model.parameters())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](x, position_embeddings=rotary, attention_mask=None, position_ids=positions)
    return sum(size for size, _ in kept.values()) / tokens


@pytest.mark.parametrize("family", sorted(architectures.SAVED_BYTES))
@pytest.mark.parametrize("dims", [(256, 512, 4, 2), (128, 768, 8, 8)])
def test_saved_activations_are_those_of_a_real_layer(family, dims):
    hidden, intermediate, heads, kv_heads = dims
    shape = Architecture(family, hidden, 1, heads, kv_heads, 64, intermediate, 32, True)
    assert shape.saved_bytes() == pytest.approx(saved_bytes(shape, tokens=64), rel=0.02)


class PeakBytes(TorchDispatchMode):
    """The most bytes of new tensors alive at once within the block."""

    def __init__(self):
        super().__init__()
        self.sizes, self.alive, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._freed, key)
        return result

    def _freed(self, key):
        self.alive -= self.sizes.pop(key, 0)


@pytest.mark.parametrize(("tokens", "rows"), [(96, 96), (128, 40)])
def test_the_divergences_memory_is_what_it_allocates(tmp_path, monkeypatch, tokens, rows):
    """Teacher's logits in, forward and backward: what lives beside the student's logits and their gradient."""
    vocab = 4096
    monkeypatch.setattr(planner, "DIVERGENCE_ELEMENTS", 1 << 20)  # the CPU's block, which is what runs here
    job = preset(tmp_path, "method=opsd", "experiment=qwen3_4b_openthoughts")
    job = replace(job, model=replace(job.model, vocab=vocab))
    student = torch.randn(tokens, vocab, dtype=torch.bfloat16, requires_grad=True)
    with PeakBytes() as measured:
        teacher = torch.randn(rows, vocab, dtype=torch.bfloat16)
        value, _ = logits_divergence(
            student,
            teacher,
            DivergenceSpec(clip=0.05),
            rows=torch.arange(rows),
            stats=("top1_disagreement",),
            consume_teacher=True,
        )
        forward = measured.peak
        value.sum().backward()
    assert forward == pytest.approx(planner.divergence_bytes(job, rows), rel=0.15)
    # the student's gradient comes after the working buffers are gone
    assert measured.peak <= 1.02 * (planner.divergence_bytes(job, rows) + planner.logits_bytes(job, tokens))


@pytest.mark.parametrize(("rows", "frozen_head"), [(96, True), (96, False), (700, True)])
def test_the_divergence_from_hidden_states_is_what_it_allocates(tmp_path, monkeypatch, rows, frozen_head):
    """Hidden states in, forward and backward: nothing grows with (rows, V)."""
    vocab, hidden = 4096, 64
    monkeypatch.setattr(planner, "DIVERGENCE_ELEMENTS", 1 << 20)
    monkeypatch.setattr(planner, "CHUNK_ELEMENTS", 128 * vocab)
    job = preset(tmp_path, "method=opsd", "experiment=qwen3_4b_openthoughts")
    model = replace(job.model, vocab=vocab, hidden=hidden)
    job = replace(job, model=model, lora_rank=64 if frozen_head else 0, teacher_copy=False)
    head = torch.randn(vocab, hidden, dtype=torch.bfloat16, requires_grad=not frozen_head)
    with PeakBytes() as measured:
        student = torch.randn(rows, hidden, dtype=torch.bfloat16).requires_grad_()
        teacher = torch.randn(rows, hidden, dtype=torch.bfloat16)
        loss, _ = hidden_divergence(
            student, head, teacher, weights=torch.ones(rows), spec=DivergenceSpec(clip=0.05), chunk_size=128
        )
        loss.backward()
    assert measured.peak == pytest.approx(planner.hidden_divergence_bytes(job, rows), rel=0.15)


def test_log_probs_from_hidden_states_take_what_is_planned(tmp_path, monkeypatch):
    vocab, rows = 4096, 700
    monkeypatch.setattr(planner, "CHUNK_ELEMENTS", 128 * vocab)
    job = preset(tmp_path, "method=dasd", "experiment=qwen3_4b_dapo")
    job = replace(job, model=replace(job.model, vocab=vocab))
    hidden, head = torch.randn(rows, 64), torch.randn(vocab, 64)
    with PeakBytes() as measured:
        hidden_statistics(hidden, head, torch.arange(rows), chunk_size=128)
    seen_through_views = hidden.nbytes + head.nbytes
    assert measured.peak == pytest.approx(planner.statistics_bytes(job, rows) + seen_through_views, rel=0.02)


def test_a_teachers_passes_are_planned_within_the_budget(tmp_path):
    """Sequences as dealt, however short the responses; a single longer one is still a pass."""
    job = preset(tmp_path, "method=opsd", "experiment=qwen3_8b_openthoughts", "hardware=1xh100")
    dealt = job.mini_batch * job.rollouts
    assert dealt * job.teacher_sequence > job.token_budget  # what it would be otherwise
    interior = job.model.saved_bytes() * job.compute_bytes / 2
    planned = planner.memory(replace(job, checkpointing=True))["update"]["activations"]
    students = job.token_budget * (job.model.layers * job.model.hidden * job.compute_bytes + interior)
    assert planned == max(students, job.token_budget * interior / 2)
    longer = replace(job, teacher_prompt=2 * job.token_budget)
    assert planner.memory(longer)["update"]["activations"] == max(students, longer.teacher_sequence * interior / 2)


def test_a_teacher_of_two_passes_is_planned_as_two(tmp_path):
    """Two readings of every sequence; from hidden states both heads and both inputs, from logits both logits."""
    options = [
        "method=opsd",
        "experiment=qwen3_4b_openthoughts",
        "hardware=8xh100",
        "actor_rollout_ref.model.lora_rank=0",
    ]
    one = preset(tmp_path, *options)
    two = preset(tmp_path, *options, "self_distill.teacher.weights=trust_region")
    assert (one.teacher_passes, two.teacher_passes) == (1, 2) and one.teacher_copy and two.teacher_copy
    none, once, twice = (planner.seconds(job)["update"] for job in (replace(one, divergence=False), one, two))
    assert twice - once == pytest.approx(once - none) and once > none
    head, states = two.model.vocab * two.model.hidden * two.compute_bytes, 100 * two.model.hidden * two.compute_bytes
    more = planner.hidden_divergence_bytes(two, 100) - planner.hidden_divergence_bytes(one, 100)
    assert more == head + states
    of_logits = [planner.memory(replace(job, from_hidden=False))["update"]["teacher logits"] for job in (one, two)]
    assert of_logits[1] - of_logits[0] == planner.logits_bytes(one, 4 * 1024)  # 32 responses on 8 GPUs


def test_shards_fall_with_workers_and_the_rest_does_not(tmp_path):
    one = preset(tmp_path, "method=dasd", "experiment=qwen3_4b_dapo", "hardware=8xh100")
    two = replace(one, nodes=2)
    a, b = planner.memory(one)["update"], planner.memory(two)["update"]
    for name in ("weights", "gradients", "optimiser"):
        assert a[name] == 2 * b[name]
    assert a["gathered"] == b["gathered"]
    # 16 bytes a parameter in full fine-tuning: Qwen3-4B has 4,022 M of them
    assert sum(a[n] for n in ("weights", "gradients", "optimiser")) * 8 == 16 * 4_022_468_096


def test_a_run_that_cannot_fit_is_refused_with_what_would(tmp_path):
    job = preset(tmp_path, "method=dasd", "experiment=qwen3_8b_dapo", "hardware=1xh100")
    assert planner.refusal(job) == []
    job = replace(job, offload_policy=False)
    (sentence,) = planner.refusal(job)
    assert "79.6" in sentence and "actor_rollout_ref.actor.fsdp_config.offload_policy=true" in sentence
    assert "optimiser 61.0" in sentence  # 8.19 B parameters × 8 bytes
    assert "param_offload" not in sentence  # they come back for the update, which is what does not fit


def test_remedies_are_checked_by_the_planner_itself(tmp_path):
    job = replace(preset(tmp_path, "method=dasd", "experiment=qwen3_8b_dapo", "hardware=8xh100"), memory_share=0.95)
    assert planner.overfull(job)
    assert ("actor_rollout_ref.rollout.gpu_memory_utilization=0.5",) in list(planner.remedies(job))


def test_a_cache_too_small_for_one_sequence_is_refused(tmp_path):
    job = replace(preset(tmp_path, "method=dasd", "experiment=qwen3_8b_dapo", "hardware=8xh100"), memory_share=0.24)
    assert any("one sequence takes 10240" in problem for problem in planner.overfull(job))
    assert "gpu_memory_utilization=0.75" in planner.refusal(job)[0]


def test_the_command_names_what_would_fit(tmp_path, capsys):
    from recipes.common.plan import forecast

    overrides = ("method=opsd", "experiment=qwen3_8b_openthoughts", "hardware=8xh100")
    cfg = composed(*overrides, run_dir=tmp_path)
    forecast.show(cfg, read(cfg))
    shown = " ".join(capsys.readouterr().out.split())
    assert "32 × 1 = 32 sequences, 4 a worker" in shown
    assert "divergence" in shown and "KV cache" in shown and "not a measurement" in shown


def test_time_grows_as_the_work_does(tmp_path):
    job = preset(tmp_path, "method=dasd", "experiment=qwen3_4b_dapo", "hardware=8xh100")
    stages, doubled = planner.seconds(job), planner.seconds(replace(job, batch=256))
    assert doubled["update"] == pytest.approx(2 * stages["update"])
    assert planner.seconds(replace(job, nodes=2))["update"] == pytest.approx(stages["update"] / 2)
    # 1024 sequences × 10,240 tokens × 2 × products, at 0.4 × 989 TFLOP/s on 8 GPUs, attention beside it
    products = 1024 * 10_240 * 2 * job.model.product_parameters / (8 * 0.4 * 989e12)
    assert products < stages["student log-probs"] < 2 * products


def test_an_unknown_shape_is_not_planned(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 8}')
    assert architectures.of_model(str(tmp_path)) is None
    assert architectures.of_model("nobody/nothing") is None


def test_gib_is_binary():
    assert GIB == 2**30
