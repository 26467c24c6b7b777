"""`python -m recipes.diagnose.exposure_sweep`: what a teacher who sees less of the solution changes (ATESD, §3.2).

The student's rollouts are sampled once and scored by the teacher at every exposure α, so that nothing but the reference
changes:

    mismatch      M(α), Eq. 4: KL(p_T^α ‖ p_S) averaged over a rollout's tokens, then over rollouts   (Fig. 2B)
    disagreement  share of tokens where the two likeliest tokens differ                               (Fig. 2B)
    difficulty    the same by the student's own accuracy on the problem                               (Fig. 2C)
    replay        a rollout under two exposures, token by token, right and wrong rollouts apart  (§5.3, Fig. 4A)

Departures: no training, so Fig. 2A's accuracies and Fig. 2C's preferred exposures are not here.  In their place (ours)
`separation`: whether the teacher's mean gap δ ranks a problem's right rollouts above its wrong ones (AUROC, centred
within problem), which is what distillation's credit lives on.  The clipped loss (OPSD's, what the paper's "KD loss
tail" is made of) stands beside the unclipped KL of Eq. 4.  Keys: config/diagnose_exposure.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from recipes.command_line import run
from recipes.diagnose import figures
from recipes.diagnose.distributions import top1_disagreement
from recipes.diagnose.engine import (
    Engine,
    Problem,
    grade,
    material,
    respond,
    response_logits,
    scoring_batches,
)
from recipes.diagnose.runner import Findings, Records, command, execute, rounded, shown
from recipes.diagnose.statistics import Interval, Pivot, auroc, centered_within, cluster_bootstrap
from workers.divergence import sampled_token_gap, token_divergence
from workers.rollout.generation import SamplingParams

QUANTITIES = {
    "kl": "M(α), nats a token",
    "clipped": "clipped loss",
    "disagreement": "top-1 disagreement",
    "gap": "mean gap δ",
}
FORMS = {"clipped": "{:.4f}"}
BINS = ("hard", "medium", "easy")


def prepare(cfg: DictConfig) -> tuple[Sequence[Problem], Callable[[int, Sequence[Problem]], Records]]:
    """Check the settings, load the model and the problems; see `runner.execute`.

    Raises:
        SettingsError: if a setting is not allowed, or what it names is not there.
    """
    wrong = []
    exposures = list(cfg.exposures)
    if len(exposures) < 2 or sorted(set(exposures)) != exposures or not 0 <= exposures[0] <= exposures[-1] <= 1:
        wrong.append(f"exposures={exposures}: give at least two numbers from 0 to 1, ascending")
    replay = list(cfg.replay)
    if len(replay) != 2 or any(alpha not in exposures for alpha in replay) or len(set(replay)) < 2:
        wrong.append(f"replay={replay}: give two different ones of exposures={exposures}")
    if cfg.teacher.context != "solution":
        wrong.append(f"teacher.context={cfg.teacher.context}: only a solution can be shown in part; use solution")
    if cfg.rollouts < 2:
        wrong.append(f"rollouts={cfg.rollouts}: difficulty is the accuracy over rollouts, so take at least 2 (ours: 8)")
    low, high = cfg.summary.hard_below, cfg.summary.easy_above
    if not 0 <= low <= high <= 1:
        wrong.append(f"summary.hard_below={low}, summary.easy_above={high}: need 0 <= hard_below <= easy_above <= 1")
    engine, problems, teacher = material(cfg, wrong)
    return problems, lambda seed, chunk: measure(engine, teacher, cfg, seed, chunk)


def measure(engine: Engine, teacher: Any, cfg: DictConfig, seed: int, problems: Sequence[Problem]) -> Records:
    """Sample rollouts of a chunk of problems, and score each at every exposure.

    Args:
        engine: the model.
        teacher: makes a row's privileged prompt at an exposure (`PrivilegedPrompts`).
        cfg: the diagnostic's configuration.
        seed: decides the rollouts.
        problems: the chunk.

    Returns:
        One record a rollout.
    """
    params = SamplingParams(temperature=cfg.temperature, top_p=cfg.top_p, max_tokens=cfg.max_tokens, logprobs=False)
    asked = [(problem, number) for problem in problems for number in range(cfg.rollouts)]
    prompts = [problem.prompt for problem, _ in asked]
    names = [("exposure_sweep", seed, problem.index, number) for problem, number in asked]
    responses = respond(engine, prompts, params, names)
    ids = [response.ids for response in responses]
    verdicts = grade(engine, [response.text for response in responses], [problem for problem, _ in asked])
    references = {alpha: [teacher(problem.row, alpha) for problem, _ in asked] for alpha in cfg.exposures}
    full = references[cfg.exposures[-1]]
    records: Records = [
        {
            "problem": problem.index,
            "rollout": number,
            "correct": verdict,
            "finished": response.finished,
            "tokens": len(response.ids),
            "text": response.text,
            "forced_full": any(references[alpha][i].forced_full for alpha in cfg.exposures),
            "reference_cut": any(references[alpha][i].truncated for alpha in cfg.exposures),
            "at": {},
            "replay": {},
        }
        for i, ((problem, number), response, verdict) in enumerate(zip(asked, responses, verdicts, strict=True))
    ]
    lengths = [len(reference.token_ids) + len(tokens) for reference, tokens in zip(full, ids, strict=True)]
    with torch.no_grad():
        for batch in scoring_batches(engine, lengths):
            answers = [ids[i] for i in batch]
            student = response_logits(engine, [prompts[i] for i in batch], answers)
            for alpha in cfg.exposures:
                shown_part = [references[alpha][i].token_ids for i in batch]
                for i, p, q in zip(batch, student, response_logits(engine, shown_part, answers), strict=True):
                    means, per_token = compare(p, q, torch.as_tensor(ids[i], device=p.device), cfg)
                    records[i]["at"][f"{alpha:g}"] = means
                    if alpha in cfg.replay:
                        records[i]["replay"][f"{alpha:g}"] = rounded(per_token)
    return records


def compare(
    student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, cfg: DictConfig
) -> tuple[dict[str, float], list[float]]:
    """Means over a rollout of the quantities in `QUANTITIES`, by name, and KL(p_T ‖ p_S) of each token in nats.

    Args:
        student: (L, V) logits.
        teacher: (L, V) logits.
        ids: (L,) tokens of the rollout.
        cfg: the diagnostic's configuration; `loss` has temperatures and clip.
    """
    kl = token_divergence(student, teacher, temperature=cfg.loss.temperature)
    clipped = token_divergence(student, teacher, temperature=cfg.loss.clip_temperature, clip=cfg.loss.clip)
    means = {
        "kl": float(kl.mean()),
        "clipped": float(clipped.mean()),
        "disagreement": float(top1_disagreement(student, teacher).mean()),
        "gap": float(sampled_token_gap(student, teacher, ids, temperature=cfg.loss.temperature).mean()),
    }
    return means, kl.tolist()


# --- what the records say ---------------------------------------------------------------------------------------------


def summarise(records: Records, cfg: DictConfig) -> Findings:
    """Every quantity by exposure, over all problems and by difficulty, the separation, and the replay.

    Args:
        records: those of all chunks and seeds.
        cfg: the diagnostic's configuration.
    """
    draws = {"resamples": cfg.summary.resamples, "seed": cfg.summary.seed}
    names = [f"{alpha:g}" for alpha in cfg.exposures]
    counts = {
        "problems": len({r["problem"] for r in records}),
        "rollouts": len(records),
        "tokens": sum(r["tokens"] for r in records),
        "right": sum(r["correct"] is True for r in records),
        "ungraded": sum(r["correct"] is None for r in records),
        "unfinished": sum(not r["finished"] for r in records),
        "forced_full": sum(r["forced_full"] for r in records),
        "references_cut": sum(r["reference_cut"] for r in records),
    }
    results: dict[str, Any] = {"counts": counts, "all": sweep(records, names, draws)}
    groups = difficulty(records, cfg.summary.hard_below, cfg.summary.easy_above)
    results["difficulty"] = {
        group: {"problems": len(members), **sweep([r for r in records if r["problem"] in members], names, draws)}
        for group, members in groups.items()
        if members
    }
    results["separation"] = separation(records, names, draws)
    results["by_seed"] = {
        str(seed): point_values([r for r in records if r["seed"] == seed], names)
        for seed in sorted({r["seed"] for r in records})
    }
    results["replay"] = replayed(records, f"{cfg.replay[0]:g}", f"{cfg.replay[1]:g}", draws)
    return Findings(tables(results, cfg), results, notes(counts))


REPLAY = ("mean_first", "mean_second", "max_first", "max_second", "falls")


def tables(results: dict[str, Any], cfg: DictConfig) -> list[tuple[str, list[str], list[list[str]]]]:
    """The findings as tables (title, columns, rows): by exposure, by difficulty, replay.

    An exposure is a row, so that they fit a terminal.

    Args:
        results: what `summarise` has computed.
        cfg: the diagnostic's configuration.
    """
    by_alpha = [
        [
            f"{alpha:g}",
            *(shown(results["all"][q][i], FORMS.get(q, "{:.3f}")) for q in QUANTITIES),
            shown(results["separation"][i]),
        ]
        for i, alpha in enumerate(cfg.exposures)
    ]
    by_alpha.append(
        ["last − first", *(shown(results["all"][f"{q}_change"], FORMS.get(q, "{:.3f}")) for q in QUANTITIES), ""]
    )
    bins = results["difficulty"]
    first, second = (f"α = {alpha:g}" for alpha in cfg.replay)
    return [
        ("By exposure", ["α", *QUANTITIES.values(), "separation, AUROC"], by_alpha),
        (
            "M(α) by difficulty: the student's accuracy over its rollouts",
            ["α", *(f"{name} ({row['problems']} problems)" for name, row in bins.items())],
            [[f"{a:g}", *(shown(row["kl"][i]) for row in bins.values())] for i, a in enumerate(cfg.exposures)],
        ),
        (
            "Replay of the same rollouts at two exposures",
            ["rollouts", f"mean KL, {first}", second, f"max KL, {first}", second, "share where the mean falls"],
            [
                [f"{name} ({row['rollouts']})", *(shown(row[key]) for key in REPLAY)]
                for name, row in results["replay"].items()
            ],
        ),
    ]


def point_values(records: Records, names: Sequence[str]) -> dict[str, list[float]]:
    """Every quantity by exposure, without intervals.

    Args:
        records: one for each rollout, from `measure`.
        names: the exposures, as records are keyed by them.
    """
    found = sweep(records, names, {"resamples": 0, "seed": 0})
    return {quantity: [interval.value for interval in found[quantity]] for quantity in QUANTITIES}


def notes(counts: dict[str, int]) -> list[str]:
    """Sentences for those counts that change how the results are to be read."""
    sentences = {
        "ungraded": "rollouts could not be graded and are left out of difficulty, separation and replay",
        "unfinished": "rollouts reached max_tokens without ending",
        "forced_full": "rollouts belong to references without an answer, which were shown whole at every exposure",
        "references_cut": "rollouts had a reference that did not fit teacher.max_prompt_length and was cut",
    }
    return [f"{counts[key]} {sentence}" for key, sentence in sentences.items() if counts[key]]


def sweep(records: Records, names: Sequence[str], draws: dict[str, int]) -> dict[str, Any]:
    """Means of every quantity by exposure.

    Args:
        records: one for each rollout, from `measure`.
        names: the exposures, as records are keyed by them, ascending.
        draws: `resamples` and `seed` of the bootstrap over problems.

    Returns:
        Quantity -> an interval for each exposure; ``<quantity>_change`` -> that of the last exposure minus the first.
    """

    def observations() -> Iterator[tuple[int, tuple[str, str], float]]:
        for record in records:
            for name in names:
                for quantity in QUANTITIES:
                    yield record["problem"], (quantity, name), record["at"][name][quantity]

    pivot = Pivot(observations())
    at = pivot.columns

    def derive(means: np.ndarray) -> list[float]:
        values = [means[at[q, name]] for q in QUANTITIES for name in names]
        return [*values, *(means[at[q, names[-1]]] - means[at[q, names[0]]] for q in QUANTITIES)]

    intervals = pivot.intervals(derive, **draws)
    found: dict[str, Any] = {q: intervals[i * len(names) : (i + 1) * len(names)] for i, q in enumerate(QUANTITIES)}
    changes = intervals[len(QUANTITIES) * len(names) :]
    return found | {f"{q}_change": change for q, change in zip(QUANTITIES, changes, strict=True)}


def difficulty(records: Records, hard_below: float, easy_above: float) -> dict[str, set[int]]:
    """Problems by the student's accuracy over all their graded rollouts.

    Args:
        records: one for each rollout, from `measure`.
        hard_below: accuracy under which a problem is hard.
        easy_above: accuracy over which it is easy; between the two, bounds included, it is medium.

    Returns:
        Each of `BINS` -> indices of its problems.
    """
    verdicts: dict[int, list[bool]] = {}
    for record in records:
        if record["correct"] is not None:
            verdicts.setdefault(record["problem"], []).append(record["correct"])
    groups: dict[str, set[int]] = {name: set() for name in BINS}
    for problem, given in verdicts.items():
        accuracy = sum(given) / len(given)
        groups["hard" if accuracy < hard_below else "easy" if accuracy > easy_above else "medium"].add(problem)
    return groups


def separation(records: Records, names: Sequence[str], draws: dict[str, int]) -> list[Interval]:
    """AUROC of a rollout's mean gap for being right, centred within problem, for each exposure; NaN unless both occur.

    Args:
        records: one for each rollout, from `measure`.
        names: the exposures, as records are keyed by them.
        draws: `resamples` and `seed` of the bootstrap over problems.
    """
    graded = [r for r in records if r["correct"] is not None]
    right = np.array([r["correct"] for r in graded], dtype=bool)
    problems = np.array([r["problem"] for r in graded])
    gaps = [centered_within(np.array([r["at"][name]["gap"] for r in graded]), problems) for name in names]
    return cluster_bootstrap(lambda rows: [auroc(gap[rows], right[rows]) for gap in gaps], problems, **draws)


def replayed(records: Records, first: str, second: str, draws: dict[str, int]) -> dict[str, Any]:
    """Mean and largest KL of right and of wrong rollouts under two exposures, and how often the mean falls.

    Args:
        records: one for each rollout, from `measure`.
        first: the one exposure, as records are keyed by it.
        second: the other.
        draws: `resamples` and `seed` of the bootstrap over problems.

    Returns:
        "right" and "wrong", where there are such rollouts -> their number, and an interval for each of `REPLAY`.
    """
    found = {}
    for group, right in (("right", True), ("wrong", False)):
        members = [r for r in records if r["correct"] is right]
        if not members:
            continue
        curves = [(r["problem"], np.asarray(r["replay"][first]), np.asarray(r["replay"][second])) for r in members]
        pivot = Pivot(
            (problem, name, value)
            for problem, one, other in curves
            for name, value in zip(
                REPLAY, (one.mean(), other.mean(), one.max(), other.max(), other.mean() < one.mean()), strict=True
            )
        )
        found[group] = {"rollouts": len(members), **pivot.means(**draws)}
    return found


COMMAND = command(
    "exposure_sweep",
    "ATESD's fixed-exposure analysis: what a teacher who sees less of the solution changes.",
    (
        ("exposures=[0.0,0.3,1.0]", "shares of the reasoning that the teacher sees"),
        ("replay=[1.0,0.3]", "the two that are replayed"),
    ),
)


def _job(cfg: DictConfig) -> int:
    return execute("exposure_sweep", cfg, prepare, summarise, figures.exposure_sweep)


if __name__ == "__main__":
    run(COMMAND, _job, "diagnose_exposure")
