"""What an intervention is judged by: the share of right steps, markers of doubt, revision, the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from recipes.evaluate import process_reward
from recipes.evaluate.health import arithmetic_verdicts, count_markers, revises, split_steps
from recipes.starter.task import PROBLEM_PREFIX


@dataclass(frozen=True)
class StepJudge:
    """A process reward model that is loaded.

    Attributes:
        model: its weights.
        tokenizer: its own.
        threshold: probability from which a step counts as right.
    """

    model: process_reward.Qwen2ProcessRewardModel
    tokenizer: Any
    threshold: float


def judge_problems(cfg: DictConfig) -> list[str]:
    """Sentences for what is wrong with a diagnostic's keys of the process reward model; quick, it loads none.

    Args:
        cfg: the diagnostic's configuration.

    Raises:
        SettingsError: if the model that is named cannot be used.
    """
    if cfg.prm is not None:
        process_reward.check(cfg.prm)
    if 0 < cfg.prm_threshold < 1:
        return []
    return [f"prm_threshold={cfg.prm_threshold}: a probability, between 0 and 1"]


def step_judge(cfg: DictConfig) -> StepJudge | None:
    """Load the process reward model of a diagnostic.

    Args:
        cfg: the diagnostic's configuration.

    Returns:
        The model; None if none is named.

    Raises:
        SettingsError: if it cannot be used.
    """
    if cfg.prm is None:
        return None
    model, tokenizer = process_reward.load(cfg.prm, cfg.dtype, cfg.prm_device or cfg.device)
    return StepJudge(model, tokenizer, cfg.prm_threshold)


def judge_steps(judge: StepJudge | None, answered: Sequence[tuple[str, str]]) -> list[list[bool]]:
    """Judge the steps of responses.

    The starter's steps are judged by arithmetic, exactly; those of other problems by ``judge``, all in shared forward
    passes.  Steps beyond its context are left out.

    Args:
        judge: the process reward model; None if there is none.
        answered: (problem, response) texts.

    Returns:
        Whether each step of each response is right; [] for a response whose steps nobody can judge.
    """
    verdicts: list[list[bool]] = [
        arithmetic_verdicts(problem, text) if problem.startswith(PROBLEM_PREFIX) else [] for problem, text in answered
    ]
    others = [i for i, (problem, _) in enumerate(answered) if not problem.startswith(PROBLEM_PREFIX)]
    if judge is not None and others:
        solutions = [(answered[i][0], split_steps(answered[i][1])) for i in others]
        scores = process_reward.score_steps(judge.model, judge.tokenizer, solutions)
        for i, of_steps in zip(others, scores, strict=True):
            verdicts[i] = [score >= judge.threshold for score in of_steps]
    return verdicts


def measures(steps: Sequence[bool], text: str, tokens: int, correct: bool | None) -> dict[str, float | None]:
    """What is measured of a response.

    Args:
        steps: of `judge_steps`.
        text: text of the response.
        tokens: its length.
        correct: the grader's verdict; None if it could not tell.

    Returns:
        ``step_acc``, the share of standing steps that are right (None where steps cannot be judged or there are none),
        ``e_per_1k``, epistemic markers per 1000 tokens, ``rev_rate``, 1 if it turns after a marker, else 0, and
        ``accuracy``, 0 or 1 (None if the grader could not tell).
    """
    return {
        "step_acc": sum(steps) / len(steps) if steps else None,
        "e_per_1k": 1000 * count_markers(text) / max(tokens, 1),
        "rev_rate": float(revises(text)),
        "accuracy": None if correct is None else float(correct),
    }
