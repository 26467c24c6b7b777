"""Reasoning health by hand: markers, revisions, trigrams, steps; and the process reward model's loader."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AddedToken, Qwen2Config, Qwen2Model

from recipes.common.checks.errors import SettingsError
from recipes.evaluate import health, process_reward
from tests.builders.tiny_tokenizer import tiny_tokenizer


def test_markers_are_whole_words_whatever_their_case():
    assert health.count_markers("Wait, maybe. WAIT! Hmm... unlikely, waiting, checked, mighty") == 4
    assert health.count_markers("double-check it; perhaps\nalternatively (actually) it seems likely, might be") == 7
    assert health.count_markers("") == 0


def test_density_is_the_mean_over_responses_and_length_and_truncation_are_counted():
    sums = health.exploration(["wait wait", "no"], [10, 1000], [False, True])
    assert sums["e_per_1k"] == (pytest.approx(200.0), 2)  # (2 in 10 tokens, 0 in 1000): mean 100, not 1.98
    assert sums["e_per_response"] == (2, 2)
    assert sums["length"] == (1010, 2) and sums["truncated"] == (1, 2)
    assert health.exploration([""], [0], [False])["e_per_1k"] == (0, 1)
    assert health.exploration([""], [0], [False])["dist_3"] == (0.0, 0.0)  # nothing to count: no weight


def test_a_marker_that_repeats_what_was_said_is_no_revision():
    said = "we add three and four to get seven"
    assert not health.revises(f"{said} wait {said}")
    assert health.revises(f"{said} wait the product of both is twelve instead")
    assert not health.revises("the product is twelve, wait")  # turns nowhere
    assert not health.revises("wait the product of both is twelve")  # from nothing
    assert not health.revises(f"{said} and then something entirely different follows")  # no marker


def test_overlap_is_measured_on_distinct_trigrams_of_the_continuation_and_may_be_three_tenths():
    # Before: a..l has ten trigrams; the continuation shares exactly its first three of ten.
    before = "a b c d e f g h i j k l"
    shared_three = "a b c d e v w x y z q r"  # abc bcd cde of ten
    assert len(health.trigrams(shared_three.split())) == 10
    assert health.revises(f"{before} wait {shared_three}")
    shared_four = "a b c d e f w x y z q r"
    assert not health.revises(f"{before} wait {shared_four}")


def test_only_sixty_four_words_on_each_side_count():
    old = " ".join(f"old{i}" for i in range(70))
    new = " ".join(f"new{i}" for i in range(64))
    # What is repeated lies further back than 64 words: a revision for the window, though said before.
    assert health.revises(f"{new} {old} wait {new}")
    assert not health.revises(f"{old} {new} wait {new}")


def test_a_second_marker_can_turn_where_the_first_did_not():
    said = "one two three four five six"
    assert health.revises(f"{said} wait {said} hmm seven eight nine ten eleven twelve thirteen fourteen")


def test_distinct_3_is_over_all_rollouts_of_a_prompt():
    assert health.distinct_3(["a b c d", "a b c d"]) == 0.5
    assert health.distinct_3(["a b c", "d e f"]) == 1.0
    assert health.distinct_3(["a b", ""]) is None
    assert health.distinct_3(["a b", "c d"]) is None  # no trigram runs from one response into the next


def test_steps_are_split_on_blank_lines():
    assert health.split_steps("one\nstill one\n\n two\n \t\n\n\nthree\n\n") == ["one\nstill one", "two", "three"]
    assert health.split_steps(" \n\n ") == []


def test_execution_by_hand():
    sums = health.execution([[True, True, False, True], [False, True], [True, True, True], []])
    assert sums["step_acc"] == (pytest.approx(0.75 + 0.5 + 1.0), 3)  # responses weigh alike
    assert sums["csr"] == (7, 9)  # steps weigh alike
    assert sums["fes"] == (3 + 1, 2)  # only responses with an error
    assert sums["error_free"] == (1, 3)


def test_the_starters_steps_are_checked_by_arithmetic():
    problem = "Evaluate strictly from left to right, reducing modulo 10 after each operation: 7+5*3-4"
    assert health.arithmetic_verdicts(problem, "7+5=2\n\n2*3=6\n\n6-4=2\n\n\\boxed{2}") == [True, True, True]
    assert health.arithmetic_verdicts(problem, "7+5=2\n\n2*3=5\n\n5-4=1\n\n\\boxed{1}") == [True, False, True]
    # A slip that is taken back is no error; hasty notation counts alike.
    assert health.arithmetic_verdicts(problem, "7+5=9 wait 7+5=2\n\n2*3=6") == [True, True]
    assert health.arithmetic_verdicts(problem, "+5>3 *3>9 -4>5 \\boxed{5}") == [False, True, True]
    with pytest.raises(ValueError, match="no chain"):
        health.arithmetic_verdicts("What is one and one?", "2")


# ------------------------------------------------------------------ process reward model


def published_like(folder, *, context=256, seed=0, head=True):
    """A checkpoint as Qwen2.5-Math-PRM is published: a Qwen2 body, `score.0`, `score.2`, and code of its own."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(AddedToken(process_reward.SEPARATOR, special=True))
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context,
    )  # fmt: skip
    body = Qwen2Model(config).eval()
    for parameter in body.parameters():  # far enough from 0 for the steps to differ
        nn.init.normal_(parameter, std=0.5)
    score = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.normal_(score[2].weight, std=1.0)
    tensors = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    if head:
        tensors |= {f"score.{name}": tensor for name, tensor in score.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    published = config.to_dict() | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    }
    (folder / "config.json").write_text(json.dumps(published))
    (folder / "modeling_qwen2_rm.py").write_text("raise SystemExit('remote code was executed')")
    return body, score, tokenizer


RESPONSES = [["7+5=2", "2*3=6", "\\boxed{6}"], ["a single step"], [], ["one", "two " * 9]]


def test_scores_are_those_of_the_published_architecture(tmp_path):
    body, score, tokenizer = published_like(tmp_path)
    model, loaded_tokenizer = process_reward.load(str(tmp_path), "float32", "cpu")
    got = process_reward.score_steps(model, loaded_tokenizer, [("7+5*3", steps) for steps in RESPONSES])
    assert [len(steps) for steps in got] == [3, 1, 0, 2]
    for steps, scores in zip(RESPONSES, got, strict=True):
        if not steps:
            continue
        # One response at a time, from the text, without padding.
        text = (
            f"<|system|>{process_reward.BOXED_INSTRUCTION}<|end|><|user|>7+5*3<|end|>"
            f"<|assistant|>{''.join(step + '<extra_0>' for step in steps)}<|end|>"
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            right = score(body(ids).last_hidden_state).softmax(-1)[0, :, 1]
        expected = right[ids[0] == tokenizer.convert_tokens_to_ids("<extra_0>")]
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(max(s) for s in got if s) - min(min(s) for s in got if s) > 0.05  # a constant would prove nothing


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_problems_share_passes_and_change_no_score(tmp_path, monkeypatch, device):
    """Solutions of several problems, in passes of a few, wherever the layers are."""
    published_like(tmp_path)
    model, tokenizer = process_reward.load(str(tmp_path), "float32", device)
    solutions = [(problem, steps) for problem in ("7+5*3", "1+1", "a longer problem") for steps in RESPONSES]
    alone = [process_reward.score_steps(model, tokenizer, [solution])[0] for solution in solutions]
    calls = []
    monkeypatch.setattr(process_reward, "BATCH_TOKENS", 700)
    model.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    together = process_reward.score_steps(model, tokenizer, solutions)
    assert 1 < len(calls) < 9 == sum(calls)  # three of twelve have no steps
    assert [len(s) for s in together] == [3, 1, 0, 2] * 3
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_separator_in_a_response_shifts_no_verdict(tmp_path):
    *_, tokenizer = published_like(tmp_path)
    ids, positions = process_reward.step_ids(tokenizer, "p <extra_0>", ["one<extra_0><extra_0>", "two"])
    assert len(positions) == 2 and ids.count(tokenizer.convert_tokens_to_ids("<extra_0>")) == 2
    assert tokenizer.decode(ids[positions[0] + 1 : positions[1]]) == "two"


def test_steps_beyond_the_context_get_no_score_and_change_none(tmp_path):
    published_like(tmp_path, context=160)
    model, tokenizer = process_reward.load(str(tmp_path), "float32", "cpu")
    _, positions = process_reward.step_ids(tokenizer, "p", ["x" * 10] * 9)
    fitting = sum(place < 160 for place in positions)
    assert 0 < fitting < 9
    (scores,) = process_reward.score_steps(model, tokenizer, [("p", ["x" * 10] * 9)])
    (alone,) = process_reward.score_steps(model, tokenizer, [("p", ["x" * 10] * fitting)])
    assert len(scores) == fitting and scores == pytest.approx(alone, abs=1e-5)


def test_what_is_no_process_reward_model_is_refused(tmp_path):
    published_like(tmp_path, head=False)
    with pytest.raises(SettingsError, match=r"score\.0\.bias.*no process reward model"):
        process_reward.load(str(tmp_path), "float32", "cpu")
    with pytest.raises(SettingsError, match="no folder here"):
        process_reward.check(str(tmp_path / "nowhere"))
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="model_type 'llama'"):
        process_reward.check(str(tmp_path))


def test_a_tokenizer_without_the_separator_is_refused(tmp_path):
    published_like(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="<extra_0>"):
        process_reward.check(str(tmp_path))
