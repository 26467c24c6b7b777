"""Equivalence of two answers by math-verify.  Runs only inside a grading child: it may hang, crash or eat memory."""

from __future__ import annotations

from functools import lru_cache

from rewards.normalize import canonical, strip_wrappers


@lru_cache(maxsize=1)
def _targets():
    from math_verify import LatexExtractionConfig

    return (LatexExtractionConfig(boxed_match_priority=0),)


def parse_answer(answer: str) -> list:
    """sympy expressions math-verify reads from ``answer`` (LaTeX without delimiters), [] where it reads none.

    Only the whole answer is read: looking for "some number" inside a sentence would find right answers that are not.
    """
    from math_verify import parse

    return parse(
        "\\boxed{" + strip_wrappers(answer) + "}", _targets(), fallback_mode="no_fallback", parsing_timeout=None
    )


def equivalent(gold: str, answer: str) -> tuple[bool, str]:
    """Whether ``answer`` equals ``gold``, and what decided: "math", "text", or "unparsed" where one side has no meaning.

    math-verify's comparison follows the first argument's form, so both directions are tried.
    """
    from math_verify import verify

    gold_parsed = parse_answer(gold)
    answer_parsed = parse_answer(answer) if gold_parsed else []
    if gold_parsed and answer_parsed:
        if verify(gold_parsed, answer_parsed, timeout_seconds=None) or verify(
            answer_parsed, gold_parsed, timeout_seconds=None
        ):
            return True, "math"
        return canonical(gold) == canonical(answer), "math"
    return canonical(gold) == canonical(answer), "unparsed"
