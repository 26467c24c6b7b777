"""Forks and revisions: where they are, what is put there, and what is made of the records."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from config import CONFIG_DIR, STARTER
from recipes.diagnose import figures, forks_and_revisions
from recipes.diagnose.forks import (
    first_revision,
    fork_sites,
    in_answer,
    marker_pattern,
    marker_tokens,
    suppressed_token,
)
from tests.builders.tiny_tokenizer import tiny_tokenizer

MARKERS = ("wait", "hmm", "alternatively")
PATTERN = marker_pattern(MARKERS)


@pytest.fixture(scope="module")
def starter():
    return AutoTokenizer.from_pretrained(str(STARTER / "model"))


def one_hot(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), 8).float()


def test_forks_by_hand():
    # The 0.2 quantile of 0.1 0.2 4 5 5 is 0.18: one token lies below it, and the first of the two highest is the fork.
    sites = fork_sites(
        torch.tensor([4.0, 5.0, 0.1, 0.2, 5.0]), one_hot(0, 1, 2, 3, 4), one_hot(5, 6, 2, 3, 4), [0, 7, 2, 3, 4],
        router_quantile=0.2, identity=("x",),
    )  # fmt: skip
    assert [site.bucket for site in sites] == ["high", "low", "random"]
    assert sites[0].position == 1 and sites[0].tokens == {"kept": (7,), "teacher": (6,), "student": (1,)}
    assert sites[1].position == 2 and sites[1].tokens == {"kept": (2,), "teacher": (2,), "student": (2,)}


def test_any_token_is_any_and_repeats():
    arguments = torch.arange(5.0), one_hot(0, 1, 2, 3, 4), one_hot(0, 1, 2, 3, 4), [0, 1, 2, 3, 4]
    found = [fork_sites(*arguments, router_quantile=0.5, identity=(n,)) for n in range(60)]
    assert {sites[2].position for sites in found} == set(range(5))
    assert {sites[1].position for sites in found} == {0, 1}  # below the median
    assert found[3] == fork_sites(*arguments, router_quantile=0.5, identity=(3,))


def test_a_rollout_without_forks_has_none():
    for length in (1, 4):  # one token alone is its own quantile
        ids = list(range(length))
        sites = fork_sites(
            torch.full((length,), 0.3), one_hot(*ids), one_hot(*ids), ids, router_quantile=0.2, identity=()
        )
        assert [site.bucket for site in sites] == ["random"]


@pytest.mark.parametrize(
    ("text", "before", "marker"),
    [
        ("7+5=9 wait 7+5=2", "7+5=9", " wait"),
        ("7+5=9\n\nHMM, 7+5=2 wait", "7+5=9\n\n", "HMM"),
        ("wait 1+1=2 hmm 1", "wait 1+1=2", " hmm"),  # what begins a response revises nothing
        ("αβ – wait", "αβ –", " wait"),  # characters of several tokens
        ("1+1=3 alternatively 1+1=2", "1+1=3", " alternatively"),
    ],
)
def test_revisions_by_hand(text, before, marker):
    tokenizer = tiny_tokenizer()  # a byte is a token
    ids = tokenizer(text, add_special_tokens=False).input_ids
    first, last = first_revision(tokenizer, ids, PATTERN)
    assert tokenizer.decode(ids[:first]) == before and tokenizer.decode(ids[first:last]) == marker


def test_revisions_in_larger_tokens(starter):
    for text, wanted in (("7+5=9 wait 7+5=2", (5, 6)), ("1+1=3 alternatively", (5, 7))):
        assert first_revision(starter, starter(text, add_special_tokens=False).input_ids, PATTERN) == wanted


@pytest.mark.parametrize("text", ["", "7+5=2", "waiting 7+5=2", "a waits", "  wait 7+5=2", "wait", "check 7"])
def test_no_revision(text):
    tokenizer = tiny_tokenizer()
    assert first_revision(tokenizer, tokenizer(text, add_special_tokens=False).input_ids, PATTERN) is None


def test_what_is_inside_a_boxed_answer_by_hand(starter):
    tokenizer, text = tiny_tokenizer(), "so \\boxed{3} or \\boxed{\\frac{1}{2}} and"  # a byte is a token
    ids = tokenizer(text, add_special_tokens=False).input_ids
    inside = "".join(sign for i, sign in enumerate(text) if in_answer(tokenizer, ids, i))
    assert inside == "3}\\frac{1}{2}}"  # a closing brace is decided inside what it closes
    ids = starter("7+5=2\n\n\\boxed{2}", add_special_tokens=False).input_ids
    found = [starter.decode([token]) for i, token in enumerate(ids) if in_answer(starter, ids, i)]
    assert found == ["2", "}"]


def test_markers_are_tokens_with_and_without_blanks(starter):
    found = marker_tokens(starter, len(starter) + 3, MARKERS)  # logits may be more than tokens
    assert len(found) == len(starter) + 3 and not found[-3:].any()
    texts = {starter.decode([i]) for i in found.nonzero().flatten().tolist()}
    assert {" wait ", "alternatively"} <= texts and {text.strip() for text in texts} <= set(MARKERS)


def test_suppressing_draws_from_what_is_left():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    barred = torch.tensor([True, False, False, False, False])
    options = {"temperature": 1.0, "top_p": 1.0}
    # 0 is a marker, 1 the rollout's own beginning: left are 0.15, 0.1, 0.05 of 0.3.
    for uniform, token in ((0.0, 2), (0.49, 2), (0.51, 3), (0.82, 3), (0.84, 4), (0.999, 4)):
        assert suppressed_token(logits, barred, 1, uniform=uniform, **options) == token
    assert suppressed_token(logits, barred, 1, temperature=1.0, top_p=0.4, uniform=0.999) == 2  # of what is left
    assert logits[1] == pytest.approx(torch.tensor(0.2).log())  # the caller's stay as they are


# --- summaries, from records made by hand -----------------------------------------------------------------------------


def outcome(bucket, kind, accuracy, markers, changed=True):
    rest = {"step_acc": None, "rev_rate": 0.0, "e_per_1k": 0.0, "position": 3}
    return {"bucket": bucket, "kind": kind, "accuracy": accuracy, "markers_on": markers, "changed": changed, **rest}


def record(problem, *outcomes, teacher_tokens=0, fork_in_answer=False):
    unmodified = {"step_acc": None, "rev_rate": 0.0, "e_per_1k": 0.0, "accuracy": 1.0}
    flags = {"seed": 1, "rollout": 0, "reference_cut": False, "finished": True, "teacher_tokens": teacher_tokens}
    flags["fork_in_answer"] = fork_in_answer
    return {"problem": problem, "unmodified": unmodified, "interventions": list(outcomes), **flags}


def forced(kept, teacher, student, changed=True):
    return (
        outcome("high", "kept", kept, 1, False), outcome("high", "teacher", teacher, 0, changed),
        outcome("high", "student", student, 1, False),
    )  # fmt: skip


def revised(preserved, suppressed, forced):
    kinds = {"preserved": preserved, "suppressed": suppressed, "forced": forced}
    return tuple(outcome("revision", kind, right, 1, kind != "preserved") for kind, right in kinds.items())


def summary(records):
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("diagnose_forks", overrides=["out=.", "summary.resamples=100"])
    findings = forks_and_revisions.summarise(records, cfg)
    assert figures.forks_and_revisions(findings, records, cfg).axes
    return findings


def test_differences_are_paired_and_those_of_changed_tokens_apart():
    findings = summary(
        [
            record(0, *forced(1.0, 0.0, 1.0), *revised(1.0, 0.0, 0.0), teacher_tokens=6, fork_in_answer=True),
            record(0, *forced(1.0, 1.0, 1.0, changed=False)),
            record(1, *forced(1.0, 0.0, None), *revised(1.0, 1.0, 0.0), teacher_tokens=2),
            record(1, *forced(0.0, None, 0.0)),  # ungraded: it has no difference
        ]
    )
    high, turned = findings.results["places"]["high"], findings.results["places"]["revision"]
    assert high["kept"]["accuracy"].value == pytest.approx(3 / 4) and "accuracy_difference" not in high["kept"]
    assert high["teacher"]["changed"].value == pytest.approx(3 / 4)
    assert high["teacher"]["accuracy_difference"].value == pytest.approx(-2 / 3)
    assert high["teacher"]["accuracy_difference_where_changed"].value == pytest.approx(-1.0)
    assert high["student"]["accuracy_difference"].value == 0.0
    assert "step_acc" not in high["teacher"]  # nobody could judge a step
    assert high["teacher"]["markers_on_difference"].value == pytest.approx(-1.0)
    assert turned["suppressed"]["accuracy_difference"].value == pytest.approx(-0.5)
    gain = findings.results["models"]["this model"]
    assert gain.value == pytest.approx(0.5) and (gain.low, gain.high) == (0.0, 1.0)
    counts = findings.results["counts"]
    assert (counts["with_revision"], counts["without_certain_token"], counts["ungraded"]) == (2, 4, 2)
    assert counts["teacher_ended_sooner"] == 1
    assert any("1 times the teacher ended" in note for note in findings.notes)
    assert any("1 rollouts are most uncertain inside their boxed answer" in note for note in findings.notes)


def test_no_revision_and_no_fork_are_said():
    any_token = [outcome("random", kind, 1.0, 0, False) for kind in ("kept", "teacher", "student")]
    findings = summary([record(0, *any_token), record(1, *any_token)])
    assert findings.results["models"] == {} and "revision" not in findings.results["places"]
    said = " ".join(findings.notes)
    assert "no rollout turns" in said and "2 rollouts have no token above" in said
