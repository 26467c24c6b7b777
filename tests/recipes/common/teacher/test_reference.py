"""recipes.common.teacher.reference: what the teacher is shown at each exposure, by different tokenizers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.common.teacher.reference import difficulty_exposures, split_reference, truncate_reference

CORPUS = ["First add 2 and 2, which is 4. Then 4 times 3 is 12, so the answer is twelve.", "Nächster Schritt: π ≈ 3"]


def byte_level() -> Tokenizer:
    """A byte-level BPE as Qwen's: characters outside ASCII are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


class Bytes:
    """The least a tokenizer can be: no offsets, one token a byte."""

    def encode(self, text, add_special_tokens=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


RAW = byte_level()
FAST = PreTrainedTokenizerFast(tokenizer_object=byte_level())
WORDS = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # every word unknown: decoding would lose the text
WORDS.pre_tokenizer = pre_tokenizers.Whitespace()
WORDS.normalizer = normalizers.Lowercase()
TOKENIZERS = {"raw": RAW, "fast": FAST, "bytes": Bytes(), "words": WORDS}


# --- splitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "reason", "boxed"),
    [
        (r"2+2=4, so $\boxed{4}$.", "2+2=4, so $", r"\boxed{4}"),
        (r"\boxed{1} is wrong; \boxed{2}", r"\boxed{1} is wrong; ", r"\boxed{2}"),
        (r"x = \boxed{\frac{1}{\sqrt{2}}} done", "x = ", r"\boxed{\frac{1}{\sqrt{2}}}"),
        (r"set \boxed{\{1, 2\}}", "set ", r"\boxed{\{1, 2\}}"),
        (r"\boxed{\left\{ x \right.} end", "", r"\boxed{\left\{ x \right.}"),
        (r"\boxed{a \\} end", "", r"\boxed{a \\}"),
        (r"nested \boxed{\boxed{3}}", "nested ", r"\boxed{\boxed{3}}"),
        (r"first \boxed{5}, then broken \boxed{6", "first ", r"\boxed{5}"),
        (r"open \boxed{ and \boxed{7}", r"open \boxed{ and ", r"\boxed{7}"),
        (r"put it in \boxed{}. It is \boxed {8}", r"put it in \boxed{}. It is ", r"\boxed {8}"),
        (r"\boxed{9} (always use \boxed{})", "", r"\boxed{9}"),
    ],
)
def test_the_last_box_whose_braces_match(solution, reason, boxed):
    assert split_reference(solution, answer="ignored")[:2] == (reason, boxed)


@pytest.mark.parametrize(
    ("answer", "boxed"),
    [("12", r"\boxed{12}"), (12, r"\boxed{12}"), (r"$\boxed{12}$", r"\boxed{12}"), (None, None), ("  ", None)],
)
def test_without_a_box_the_answer_column_is_boxed(answer, boxed):
    assert split_reference("twelve, clearly", answer)[:2] == ("twelve, clearly", boxed)


# --- truncating -------------------------------------------------------------------------------------------------------


def test_by_hand():
    solution = r"abcdefgh$\boxed{4}$ (checked)"
    shown = {alpha: truncate_reference(Bytes(), solution, alpha)[0] for alpha in (0, 0.1, 0.25, 0.5, 0.99, 1)}
    assert shown == {  # the reason is nine one-byte tokens
        0: r"\boxed{4}",
        0.1: r"\boxed{4}",
        0.25: r"ab\boxed{4}",
        0.5: r"abcd\boxed{4}",
        0.99: r"abcdefgh\boxed{4}",
        1: solution,
    }
    text, info = truncate_reference(Bytes(), solution, 0.5, separator="\n")
    assert text == "abcd\n\\boxed{4}"
    assert info == {
        "exposure": 0.5,
        "effective_exposure": 0.5,
        "reason_tokens": 9,
        "shown_tokens": 4,
        "answer_source": "boxed",
        "forced_full": False,
    }
    assert truncate_reference(Bytes(), solution, 0.0, separator="\n")[0] == r"\boxed{4}"
    assert truncate_reference(Bytes(), solution, 1.0, separator="\n")[0] == solution


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_first_tokens_then_the_answer(name):
    tokenizer = TOKENIZERS[name]
    reason = "First add 2 and 2, which is 4. Then 4 times 3 is 12, so: "
    encoded = tokenizer.encode(reason, add_special_tokens=False)
    ids = getattr(encoded, "ids", encoded)
    for alpha in (0.0, 0.2, 0.5, 0.77, 0.999):
        text, info = truncate_reference(tokenizer, reason + r"\boxed{12}.", alpha)
        count = math.floor(alpha * len(ids))
        assert (info["shown_tokens"], info["reason_tokens"]) == (count, len(ids))
        assert text.endswith(r"\boxed{12}")
        prefix = text.removesuffix(r"\boxed{12}")
        assert reason.startswith(prefix)
        if name != "words":
            assert prefix == tokenizer.decode(ids[:count])


def test_without_any_answer_everything_is_shown_and_it_says_so():
    text, info = truncate_reference(Bytes(), "no answer here", 0.3)
    assert text == "no answer here"
    assert info["forced_full"] and info["effective_exposure"] == 1.0 and info["answer_source"] is None
    assert not truncate_reference(Bytes(), "no answer here", 1.0)[1]["forced_full"]


def test_the_answer_column_is_appended_below_full_exposure_only():
    assert truncate_reference(Bytes(), "abcd", 0.5, answer=7)[0] == r"ab\boxed{7}"
    assert truncate_reference(Bytes(), "abcd", 0.0, answer=7)[0] == r"\boxed{7}"
    text, info = truncate_reference(Bytes(), "abcd", 1.0, answer=7)
    assert text == "abcd" and info["answer_source"] == "column"


@pytest.mark.parametrize("name", ["raw", "fast", "bytes"])
def test_a_character_cut_in_the_middle_is_left_out(name):
    tokenizer = TOKENIZERS[name]
    reason = "né 😀 π"
    encoded = tokenizer.encode(reason, add_special_tokens=False)
    ids = getattr(encoded, "ids", encoded)
    cut = 0
    for k in range(len(ids)):
        text, info = truncate_reference(tokenizer, reason + r"\boxed{1}", (k + 0.5) / len(ids))
        assert info["shown_tokens"] == k
        prefix = text.removesuffix(r"\boxed{1}")
        decoded = tokenizer.decode(ids[:k])
        cut += decoded.endswith("\ufffd")
        assert reason.startswith(prefix)
        # A space may share a token with the character that follows it.
        assert prefix.rstrip() == decoded.rstrip("\ufffd").rstrip()
    assert cut >= 4  # the tokenizer does cut inside: the emoji alone is four tokens


def test_a_replacement_character_of_the_text_itself_is_kept():
    solution = "ab\ufffdcd" + r"\boxed{1}"
    assert truncate_reference(Bytes(), solution, 0.75)[0] == "ab\ufffd\\boxed{1}"  # 5 of 7 bytes


@settings(max_examples=150, deadline=None)
@given(
    reason=st.text(max_size=40).filter(lambda text: "\\boxed" not in text),
    tail=st.text(max_size=5).filter(lambda text: "boxed" not in text),
    alpha=st.floats(0, 1),
    name=st.sampled_from(sorted(TOKENIZERS)),
)
def test_any_text(reason, tail, alpha, name):
    tokenizer = TOKENIZERS[name]
    # A reason that ends in an odd number of backslashes would escape the box's own.
    solution = reason + " " + r"\boxed{42}" + tail
    text, info = truncate_reference(tokenizer, solution, alpha)
    assert truncate_reference(tokenizer, solution, 1.0)[0] == solution
    assert truncate_reference(tokenizer, solution, 0.0)[0] == r"\boxed{42}"
    if alpha < 1.0:
        assert text.endswith(r"\boxed{42}")
        prefix = text.removesuffix(r"\boxed{42}")
        assert (reason + " ").startswith(prefix)
        assert info["shown_tokens"] == math.floor(alpha * info["reason_tokens"])
        longer = truncate_reference(tokenizer, solution, min(1.0, alpha + 0.3))[0]
        assert longer.startswith(prefix)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_exposure_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        truncate_reference(Bytes(), "a", alpha)


# --- per sample -------------------------------------------------------------------------------------------------------


def test_difficulty_moves_the_exposure_around_the_global_one():
    difficulty = torch.tensor([0.0, 0.5, 1.0])
    exposures = difficulty_exposures(0.6, difficulty, strength=2.0)
    logit = math.log(0.6 / 0.4)
    expected = [1 / (1 + math.exp(-(logit - shift))) for shift in (-1.0, 0.0, 1.0)]
    assert exposures.tolist() == pytest.approx(expected, rel=1e-6)
    assert exposures[0] > exposures[1] > exposures[2]
    assert (difficulty_exposures(0.6, difficulty, strength=0.0) == torch.tensor(0.6)).all()
    assert (difficulty_exposures(0.6, torch.full((3,), 0.3), strength=5.0) == torch.tensor(0.6)).all()
    for end in (0.0, 1.0):
        assert (difficulty_exposures(end, difficulty, strength=2.0) == end).all()
    bounded = difficulty_exposures(0.6, difficulty, strength=9.0, exposure_min=0.2, exposure_max=0.8)
    assert bounded.tolist() == pytest.approx([0.8, 0.6, 0.2])
    with pytest.raises(ValueError, match="exposure_min"):
        difficulty_exposures(0.6, difficulty, strength=1.0, exposure_min=0.9, exposure_max=0.1)
    with pytest.raises(ValueError, match="strength"):
        difficulty_exposures(0.6, difficulty, strength=math.inf)
