"""Rewards: what is extracted, what counts as equal, how the parts are mixed and reported."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.common.record.console import warnings_of
from rewards.components import overlong_component
from rewards.extract import extract_answer, last_answer_line, last_boxed
from rewards.grader import gold_text, shared_grader
from rewards.math import STATUSES, compute_score
from rewards.metrics import reward_metrics
from rewards.normalize import canonical, is_words, plain_number, quick_verdict, tidy

CASES = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "grading_cases.jsonl").read_text().splitlines()
]
PATIENT = {"deadline_s": 60.0, "cpu_s": 20.0}  # verdicts are tested here, not the machine's speed


def score(answer: str, gold: object, **options) -> dict:
    return compute_score("test", f"so it is $\\boxed{{{answer}}}$.", gold, **{**PATIENT, **options})


# --- extraction ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{6}", "6"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}} units", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\left\{x : x > 1\right.}", r"\left\{x : x > 1\right."),  # an escaped brace is no brace
        (r"\boxed{x=\boxed{5}}", "5"),
        (r"\boxed{7} and then \boxed{8", "7"),  # cut at the length limit
        (r"\boxed{7}, as asked within \boxed{}.", "7"),
        (r"\boxed {9}", "9"),
        (r"\fbox{10}", "10"),
        (r"{ an open brace, then \boxed{3}", "3"),
        (r"a } closed brace, then \boxed{4}", "4"),
        (r"\\{\boxed{5}", "5"),
        (r"first \boxed{1}, then $x=\boxed 2$.", "2"),
        ("no box", None),
        (r"\boxed{", None),
        (r"\boxed{ }", None),
        ("", None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 34", "34"),
        ("answer : $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("Answer: 1\nmore\n**Answer:** 2", "2"),
        ("The Answer:\n", None),
        ("**Answer**: 73", "73"),
        ("so\n**Answer:** 73.", "73"),
        ("**Answer: 73**", "73"),
        ("*Answer*: **73**", "73"),
        ("__Answer__: `73`", "73"),
        ("### Final Answer: $73$", "73"),
        ("**Final Answer**\n", None),
        ("**Answer:**\n\n73", "73"),
        ("\\textbf{Answer}: 73", "73"),
        ("\\textbf{Answer:} 73", "73"),
        ("Answer：73", "73"),
        ("**Answer**: 5\n**Answer**:", "5"),  # the last that says something
        ("Answer: x_", "x_"),
        ("the answers are: 5", None),
        ("unanswer: 5", None),
        ("nothing", None),
    ],
)
def test_answer_line(text, expected):
    assert last_answer_line(text) == expected


def test_answer_line_only_where_asked_and_only_without_a_box():
    assert extract_answer("Answer: 5") is None
    assert extract_answer("Answer: 5", answer_line=True) == "5"
    assert extract_answer("\\boxed{4}\nAnswer: 5", answer_line=True) == "4"


@given(
    st.recursive(st.text("ab1+ ", min_size=1), lambda inner: st.lists(inner, min_size=1).map("{}".join), max_leaves=5)
)
@settings(max_examples=60, deadline=None)
def test_any_balanced_content_comes_back(content):
    content = "1" + content.replace("{}", "{x}")
    assert last_boxed(f"text {{ \\boxed{{{content}}} text") == content.strip()


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 100_000, "\\boxed{1}" + "{" * 500_000, "\\fbox{{}" * 50_000, "}" * 10**6]
)
def test_extraction_is_linear(text):
    begin = time.process_time()
    extract_answer(text, answer_line=True)
    assert time.process_time() - begin < 2.0


def test_of_megabytes_only_the_end_is_read():
    assert extract_answer("\\boxed{1}" + "x" * 10**6) is None
    assert extract_answer("{" * 10**7 + "\\boxed{1}" + "}" * 1000) == "1"
    assert compute_score("t", "\\boxed{2}" * 10**6 + "\\boxed{1}", "1")["acc"] == 1.0


# --- equivalence ---


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['gold']} | {case['answer']}"[:60])
def test_labelled_case(case):
    result = score(case["answer"], case["gold"])
    assert result["status"] == ("correct" if case["equal"] else "wrong")


def test_gold_may_be_a_number_or_a_list():
    assert score("6", 6)["acc"] == 1.0
    assert score("0.5", 0.5)["acc"] == 1.0
    assert score("3, 1", ["1", "3"])["acc"] == 1.0
    assert score("1", ["1", "3"])["acc"] == 0.0  # all are required
    assert score("3, 1", np.array(["$1$", "$3$"], dtype=object))["acc"] == 1.0
    assert score("3,1", '["$1$", "$3$"]')["acc"] == 1.0
    assert gold_text(np.int64(7)) == "7"
    assert gold_text(np.float64("nan")) == gold_text(None) == ""
    with pytest.raises(TypeError, match="dict"):
        gold_text({"answer": 1})


def test_no_answer_and_no_gold():
    assert compute_score("test", "I do not know", "6")["status"] == "no_answer"
    assert score("6", "")["status"] == "error"
    assert score("6", None)["status"] == "error"


def test_long_answers_are_wrong_by_rule_without_being_graded():
    begin = time.perf_counter()
    result = score("x+" * 100_000 + "y", "6")
    assert result["status"] == "wrong"
    assert time.perf_counter() - begin < 1.0
    assert len(result["extracted"]) <= 1024


@given(st.text(max_size=80), st.text(alphabet="0123456789.,-+\\{}()[]$%^_ abfrctex", max_size=60))
@settings(max_examples=300, deadline=None)
def test_text_verdicts_never_fail(one, other):
    quick_verdict(one, other)
    quick_verdict(other, one)
    assert quick_verdict(other, other) in ((True,) if canonical(other) else (True, None, False))


@pytest.mark.parametrize(
    "unit",
    [
        "9",
        "1,",
        "1 ",
        "1\\,",
        "a ",
        "\\text{",
        "{",
        "$",
        ".,",
        "\\!",
        "0.1\\overline{",
        "e1",
        "√(",
        "1 days ",
        "\\text{1 ",
        "5^{\\text{th",
        "² ",
        "(cm ",
        "\\quad ab",
        "\\begin{x}",
        "\\begin{x}\\end{x}",
        "{\\rm ",
        "\\frac",
        "sqrt(",
        "\\text{a} ",
        "\\textcolor{",
        "A or ",
        "(A)",
        "1 1/2 ",
        "½",
        "和",
        "1 000",
        "^",
        "\\left",
        "\\over ",
        "**",
        "or ",
    ],
)
def test_text_verdicts_are_fast_on_anything(unit):
    text = unit * (20_000 // len(unit))
    begin = time.process_time()
    quick_verdict("\\frac{1}{2}", text)
    quick_verdict(text, "5")
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize(
    ("text", "digits"),
    [("007", "7"), ("-0.50", "-0.5"), ("1,234", "1234"), ("-0", "0"), ("+5.", "5"), ("9" * 5000, "9" * 5000)],
)
def test_plain_number(text, digits):
    assert plain_number(text).digits == digits


@pytest.mark.parametrize("text", ["1,23", "1e3", "", ".", "1.2.3", "x", "0,123", "1/2"])
def test_not_a_plain_number(text):
    assert plain_number(text) is None


def test_words_are_no_mathematics():
    assert is_words("\\text{Evelyn}") and is_words("no solution") and is_words("\\text{(B)}")
    assert not is_words("xyz") and not is_words("x") and not is_words("\\text{2 hours}")
    assert tidy("$0.1\\overline{6}$") == "\\frac{1}{6}"


# --- the mix ---


def test_keys_and_types_are_the_same_for_every_sample():
    samples = [score("6", "6"), score("5", "6"), compute_score("t", "none", "6"), score("6", None)]
    for sample in samples:
        assert list(sample) == list(samples[0])
        assert all(type(sample[key]) is type(samples[0][key]) for key in sample)
        assert sample["status"] in STATUSES
        json.dumps(sample)  # it travels between processes and into dumps


def test_weights_mix_components_that_are_reported_apart():
    options = {
        "correctness_weight": 2.0, "wrong_value": -1.0, "format_weight": 0.5, "overlong_weight": 1.0,
        "max_response_length": 100, "overlong_buffer": 20,
    }  # fmt: skip
    response = "<think>hm</think> so \\boxed{6}"
    right = compute_score("t", response, "6", {"response_length": 90}, **options)
    assert (right["acc"], right["format"], right["overlong"]) == (1.0, 1.0, -0.5)
    assert right["score"] == pytest.approx(2.0 + 0.5 - 0.5)
    wrong = compute_score("t", "<think>so \\boxed{6}", "7", {"response_length": 300}, **options)
    assert (wrong["acc"], wrong["format"], wrong["overlong"]) == (0.0, 0.0, -1.0)
    assert wrong["score"] == pytest.approx(-2.0 - 1.0)


def test_overlong_is_dapos_soft_form():
    # Eq. 13 with L_max 20480 and L_cache 4096
    expected = {16384: 0.0, 16385: -1 / 4096, 18432: -0.5, 20480: -1.0, 30000: -1.0, 0: 0.0}
    for length, value in expected.items():
        assert overlong_component(length, 20480, 4096) == pytest.approx(value)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("\\boxed{1}", 1.0),
        ("no box", 0.0),
        ("<think>a</think>\\boxed{1}", 1.0),
        ("a</think>\\boxed{1}", 1.0),  # the prompt opened the thought
        ("<think>\\boxed{1}</think> done", 0.0),
        ("<think>\\boxed{1}", 0.0),
        ("<think>a</think>b</think>\\boxed{1}", 0.0),
        ("<think>\\boxed{1}</think> The answer is in my thoughts.", 0.0),
        ("<think>\\boxed{1}</think> I put it into \\boxed{}.", 0.0),
        ("<think>\\boxed{1}</think> as \\boxed says", 0.0),
        ("<think>\\boxed{1}</think> so \\boxed{1", 0.0),  # cut at the length limit
        ("<think>\\boxed{1}</think> so $\\boxed 1$", 1.0),
        ("a</think><think>\\boxed{1}", 0.0),
        ("<think>a</think><think>b</think>\\boxed{1}", 0.0),
        ("</think>\\boxed{1}", 1.0),
    ],
)
def test_format(response, expected):
    assert compute_score("t", response, "1")["format"] == expected


def test_format_of_answer_lines():
    options = {"answer_line": True}
    assert compute_score("t", "<think>a</think>\nAnswer: 1", "1", **options)["format"] == 1.0
    assert compute_score("t", "<think>Answer: 1</think>\nno more", "1", **options)["format"] == 0.0
    assert compute_score("t", "<think>a</think>\nAnswer: 1", "1")["format"] == 0.0  # not asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlong_wieght": 1}, "unknown reward option.*overlong_wieght.*overlong_weight"),
        ({"overlong_weight": 1.0}, "needs max_response_length"),
        ({"max_response_length": 10}, "belong together"),
        ({"max_response_length": 10, "overlong_buffer": 11}, "between 1 and"),
        ({"correct_value": 0.0}, "must exceed"),
        ({"deadline_s": 0}, "deadline_s=0"),
        ({"cpu_s": -1}, "cpu_s=-1"),
        ({"children": 0}, "children=0"),
        ({"memory_mb": 10}, "memory_mb=10"),
    ],
)
def test_bad_options_are_refused_with_the_rule(options, message):
    with pytest.raises(ValueError, match=message):
        compute_score("t", "\\boxed{\\sqrt{2}}", "\\frac{2}{3}", **options)


def test_overlong_without_a_length_says_what_to_do():
    with pytest.raises(ValueError, match=r"rewards\.manager"):
        compute_score("t", "\\boxed{1}", "1", max_response_length=10, overlong_buffer=5)


def test_what_verl_passes_of_its_own_is_accepted():
    result = compute_score(
        data_source="t", solution_str="\\boxed{1}", ground_truth="1", extra_info={"num_turns": 2},
        reward_router_address="x", reward_model_tokenizer=None,
    )  # fmt: skip
    assert result["score"] == 1.0


def test_metrics_of_a_batch():
    batch = [score("6", "6")] * 90 + [compute_score("t", "none", "6")] * 8
    timed_out = {**score("5", "6"), "status": "timeout", "timeout": 1.0}
    metrics = reward_metrics(batch + [timed_out] * 2)
    assert metrics["reward/correct_rate"] == pytest.approx(0.9)
    assert metrics["reward/timeout_rate"] == pytest.approx(0.02)
    assert metrics["reward/timeout_rate_graded"] == pytest.approx(2 / 92)
    assert metrics["reward/acc"] == pytest.approx(0.9)
    assert reward_metrics([]).keys() == reward_metrics(batch).keys()


def test_a_person_is_told_of_timeouts_past_one_percent_and_of_every_error():
    right, none = score("6", "6"), compute_score("t", "none", "6")
    timed_out = {**right, "status": "timeout", "acc": 0.0}

    def kinds(batch: list[dict]) -> list[str]:
        return [kind for kind, _ in warnings_of({"step": 3, **reward_metrics(batch)})]

    assert kinds([right] * 99 + [timed_out]) == []
    assert kinds([right] * 98 + [timed_out]) == ["grading timeouts"]
    assert kinds([right] * 50 + [none] * 49 + [timed_out]) == ["grading timeouts"]  # of what had an answer to grade
    assert kinds([right] * 199 + [score("6", None)]) == ["grading errors"]
    assert kinds([]) == warnings_of({"step": 3}) == []
    assert kinds([]) == [
        kind for kind, _ in warnings_of({"val-aux/aime/timeout/mean@8": 0.01, "val-core/aime/acc": 0.5})
    ]
    [(_, sentence)] = warnings_of({"val-aux/aime/timeout/mean@8": 0.02})
    assert "2.0% of the answers to aime" in sentence
    [(_, sentence)] = warnings_of(reward_metrics([right] * 49 + [timed_out]))
    assert "2.0%" in sentence and "cpu_s" in sentence


def test_cached_verdicts_are_not_computed_again():
    grader = shared_grader(**PATIENT)
    before = grader.counts["cached"]
    for _ in range(3):
        assert score("\\sqrt{50}-\\sqrt{2}", "4\\sqrt{2}")["acc"] == 1.0
    assert grader.counts["cached"] >= before + 2


def test_reward_manager_passes_the_exact_length():
    import asyncio

    import torch
    from omegaconf import OmegaConf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from verl import DataProto

    from rewards.manager import LengthRewardManager

    vocabulary = {"<pad>": 0, "so": 1, "\\boxed{6}": 2}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")
    data = DataProto.from_dict(
        tensors={
            "responses": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 2, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1] + [1] * 8 + [0, 0]]),
        },
        non_tensors={
            "data_source": np.array(["t"], dtype=object),
            "reward_model": np.array([{"ground_truth": "6", "style": "rule"}], dtype=object),
            "extra_info": np.array([{"index": 0}], dtype=object),
        },
    )

    async def run() -> dict:
        def reward(**call):
            return compute_score(max_response_length=10, overlong_buffer=4, overlong_weight=1.0, **call)

        return await LengthRewardManager(OmegaConf.create({}), tokenizer, reward).run_single(data)

    result = asyncio.run(run())
    assert result["reward_extra_info"]["acc"] == 1.0
    assert result["reward_extra_info"]["overlong"] == -0.5  # 8 tokens, 2 of the last 4
    assert result["reward_score"] == 0.5
