"""What the probes compute at one position, and PW-OPSD's candidates and labels, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoTokenizer

from config import STARTER
from recipes.diagnose.branches import (
    DIVERSITY,
    GRAY,
    REAL_UNCERTAIN,
    label,
    plausible_children,
    select_candidates,
    uncertainty,
    valid_tokens,
    viability,
)
from recipes.diagnose.distributions import (
    draw,
    entropy,
    keep_top_p,
    monte_carlo_scores,
    novelty_log_probs,
    top1_disagreement,
    total_variation,
    truncated_entropy,
)


def logits(*rows):
    """Logits of some distributions, shifted: a shift must not matter."""
    return torch.tensor(rows, dtype=torch.float64).log().float() + 3.0


P, Q = (0.5, 0.3, 0.2), (0.81, 0.09, 0.1)


def test_distances_by_hand():
    assert total_variation(logits(P, P), logits(Q, P)).tolist() == pytest.approx([0.31, 0.0], abs=1e-6)
    assert top1_disagreement(logits(P, (0.2, 0.5, 0.3)), logits(Q, Q)).tolist() == [0.0, 1.0]
    assert entropy(logits(P)).item() == pytest.approx(-sum(p * math.log(p) for p in P), abs=1e-6)


def test_temperature_is_applied_to_both_sides():
    # At temperature 1/2 the distributions are squared and renormalised.
    squared = [[p * p / sum(x * x for x in d) for p in d] for d in (P, Q)]
    expected = 0.5 * sum(abs(a - b) for a, b in zip(*squared, strict=True))
    assert total_variation(logits(P), logits(Q), 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_novelty_by_hand():
    weights = [p / q**0.5 for p, q in zip(P, Q, strict=True)]  # 0.5/0.9, 0.3/0.3, 0.2/0.316…
    expected = [w / sum(weights) for w in weights]
    found = novelty_log_probs(logits(P), logits(Q), 0.5)[0].exp()
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found[0] < P[0] and found[1] > P[1]  # away from what the teacher favours
    assert novelty_log_probs(logits(P), logits(Q), 0.0)[0].exp().tolist() == pytest.approx(P, abs=1e-6)


def test_novelty_never_leaves_the_students_nucleus():
    student = keep_top_p(logits((0.6, 0.3, 0.1)), 0.7)
    assert student.isneginf().tolist() == [[False, False, True]]
    teacher = torch.tensor([[0.0, 0.0, -200.0]])  # excludes token 2: 1/p_T^0.5 would blow it up
    found = novelty_log_probs(student, teacher, 0.5)[0].exp()
    assert found.tolist() == pytest.approx([2 / 3, 1 / 3, 0.0], abs=1e-6)
    teacher[0, 2] = float("-inf")
    assert novelty_log_probs(student, teacher, 0.5)[0].exp().tolist() == pytest.approx([2 / 3, 1 / 3, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.4999, 0), (0.5001, 1), (0.79, 1), (0.81, 2), (1 - 1e-12, 2)]
)
def test_draw_inverts_the_distribution_function(uniform, token):
    assert draw(torch.tensor(P).log(), uniform) == token


def test_draw_skips_what_has_no_mass():
    assert draw(torch.tensor([0.0, 1.0, 0.0]).log(), 0.0) == 1


def test_truncated_entropy_renormalises_over_allowed_tokens():
    allowed = torch.tensor([True, False, True, True])
    rows = logits((0.4, 0.4, 0.1, 0.1))
    # The best two allowed ones are 0.4 and 0.1: (0.8, 0.2).
    expected = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert truncated_entropy(rows, allowed, 2).item() == pytest.approx(expected, abs=1e-6)
    expected = -(2 / 3 * math.log(2 / 3) + 2 * 1 / 6 * math.log(1 / 6))
    assert truncated_entropy(rows, allowed, 20).item() == pytest.approx(expected, abs=1e-6)


def test_monte_carlo_scores_by_hand():
    found = monte_carlo_scores([logits((0.9, 0.1)), logits((0.5, 0.5))])
    predictive = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    within = (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) + math.log(2)) / 2
    assert found["predictive_entropy"].item() == pytest.approx(predictive, abs=1e-6)
    assert found["mutual_information"].item() == pytest.approx(predictive - within, abs=1e-6)
    # Each entry's unbiased variance is 0.08; (1 − 0.49 − 0.09) / 0.16 − 1.
    assert found["dirichlet_precision"].item() == pytest.approx(0.42 / 0.16 - 1, rel=1e-5)


def test_monte_carlo_scores_at_the_limits():
    opposite = monte_carlo_scores([torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])])
    assert opposite["dirichlet_precision"].item() < 0  # more variance than a categorical has: the raw estimate stays
    assert uncertainty(opposite["dirichlet_precision"].item()) == pytest.approx(12 * math.log(10))
    equal = monte_carlo_scores([torch.tensor([[1.0, 0.0]])] * 2)
    assert equal["dirichlet_precision"].item() > 1e6
    assert uncertainty(math.inf) == pytest.approx(-12 * math.log(10))
    with pytest.raises(ValueError, match="at least two"):
        monte_carlo_scores([torch.zeros(1, 2)])


# --- PW-OPSD's phases C and F -----------------------------------------------------------------------------------------


def test_candidates_are_spread_and_keep_the_highest():
    two = [[1, 2]] * 8
    scores = [0.1, 0.9, 0.8, 0.2, 0.7, 0.7, 0.0, 0.95]
    # 7 first, then 1; 2 is too near to 1; 4 before its equal 5; 5 too near.
    assert select_candidates(scores, two, limit=9, spacing=3, min_children=2, end=8) == [1, 4, 7]
    assert select_candidates(scores, two, limit=2, spacing=1, min_children=2, end=8) == [1, 7]
    assert select_candidates(scores, two, limit=9, spacing=3, min_children=2, end=7) == [1, 4]
    alone = [*two[:7], [1]]
    assert 7 not in select_candidates(scores, alone, limit=9, spacing=1, min_children=2, end=8)


def test_children_are_plausible_and_allowed():
    allowed = torch.tensor([True, True, False, True])
    rows = logits((0.06, 0.3, 0.6, 0.04), (0.4, 0.3, 0.0001, 0.2999))
    assert plausible_children(rows, allowed, count=4, min_probability=0.05) == [[1, 0], [0, 1, 3]]
    assert plausible_children(rows, allowed, count=2, min_probability=0.05) == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("viabilities", "expected"),
    [
        ([0.5, 0.5, 0.0], DIVERSITY),
        ([1.0, 0.25], GRAY),  # one viable child is not diversity
        ([0.25, 0.0], REAL_UNCERTAIN),
        ([0.25, 0.25], GRAY),  # every child low enough, the mean is not
        ([0.0, 0.0, 0.0, 0.5], GRAY),
        ([0.0], REAL_UNCERTAIN),
    ],
)
def test_labels(viabilities, expected):
    assert label(viabilities) == expected


def test_viability_leaves_out_what_could_not_be_graded():
    assert viability([True, False, None, False]) == pytest.approx(1 / 3)
    assert viability([None]) is None
    with pytest.raises(ValueError, match="without children"):
        label([])


def test_no_special_token_is_ever_forced():
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    allowed = valid_tokens(tokenizer, len(tokenizer) + 5, [tokenizer.eos_token_id])
    assert not allowed[len(tokenizer) :].any()  # padding of the vocabulary
    for text in ("<|endoftext|>", "<|im_end|>", "<think>", "</think>"):
        assert not allowed[tokenizer.convert_tokens_to_ids(text)]
    for text in ("7", "\n\n", " wait ", "\\boxed{"):
        assert allowed[tokenizer.convert_tokens_to_ids(text)], text
    lone_byte = tokenizer.convert_tokens_to_ids("<0xC3>")  # half of an "é"
    assert tokenizer.decode([lone_byte]) == "\ufffd" and not allowed[lone_byte]
