"""`python -m recipes.diagnose.dasd_probes`: where the privileged teacher pushes, and what its pushes do (DASD, §3).

    pressure       A_t = log p_T(o_t) − log p_S(o_t) against the student's entropy H_t: Spearman's ρ (probe 2, Fig. 3a)
    shift          total variation after one gradient step of either sign, by entropy (probe 2, Fig. 3b)
    interventions  one token drawn anew in a bucket of entropy, the student goes on (probe 3, Table 1)

Probe 1, training with either sign, is `recipes.dasd.main algorithm.dasd.direction=constant algorithm.dasd.constant=±1`.
Departures: see one_step.py and interventions.py.  Keys: config/diagnose_dasd.yaml.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from scipy.stats import spearmanr

from recipes.command_line import run
from recipes.diagnose import figures
from recipes.diagnose.distributions import entropy
from recipes.diagnose.engine import Engine, Problem, both_logits, material
from recipes.diagnose.health import StepJudge, judge_problems, step_judge
from recipes.diagnose.interventions import BUCKETS, KINDS, Site, choose_sites, counts, intervened, notes, roll_out
from recipes.diagnose.one_step import STEPS, one_step_shifts
from recipes.diagnose.runner import Findings, Records, command, execute, rounded, shown
from recipes.diagnose.statistics import Pivot, cluster_bootstrap
from workers.divergence import sampled_token_gap

METRICS = ("step_acc", "e_per_1k", "accuracy")


def prepare(cfg: DictConfig) -> tuple[Sequence[Problem], Callable[[int, Sequence[Problem]], Records]]:
    """Check the settings, load the model and the problems; see `runner.execute`.

    Raises:
        SettingsError: if a setting is not allowed, or what it names is not there.
    """
    wrong = []
    if cfg.step.lr is not None and not cfg.step.lr > 0:
        wrong.append(f"step.lr={cfg.step.lr}: must be above 0, or null to leave the step out")
    if cfg.step.lr is not None and cfg.dtype != "float32":
        wrong.append(
            f"dtype={cfg.dtype} with step.lr={cfg.step.lr}: so small a step is rounded away in 16 bits; use "
            "dtype=float32, or step.lr=null to leave the step out"
        )
    if not 0 <= cfg.interventions.alpha <= 1:
        wrong.append(f"interventions.alpha={cfg.interventions.alpha}: must be in [0, 1] (paper: 0.5)")
    if cfg.interventions.per_bucket < 0:
        wrong.append(f"interventions.per_bucket={cfg.interventions.per_bucket}: must be at least 0 (0: left out)")
    wrong += judge_problems(cfg)
    engine, problems, teacher = material(cfg, wrong)
    judge = step_judge(cfg)
    return problems, lambda seed, chunk: measure(engine, judge, teacher, cfg, seed, chunk)


def measure(
    engine: Engine, judge: StepJudge | None, teacher: Any, cfg: DictConfig, seed: int, problems: Sequence[Problem]
) -> Records:
    """Sample rollouts of a chunk of problems, and measure all that the probes need.

    Args:
        engine: the model.
        judge: of steps of other problems than the starter's; None where there is none.
        teacher: makes a row's privileged prompt (`PrivilegedPrompts`).
        cfg: the diagnostic's configuration.
        seed: decides every random number.
        problems: the chunk.

    Returns:
        One record a rollout.
    """
    rollouts = roll_out(engine, teacher, cfg, "dasd_probes", seed, problems)
    prompts, ids, identities = rollouts.prompts, rollouts.ids, rollouts.identities

    entropies: list[Any] = [None] * len(ids)
    gaps: list[Any] = [None] * len(ids)
    sites: list[list[Site]] = [[]] * len(ids)
    for i, p, q in both_logits(engine, prompts, rollouts.teacher_prompts, ids):
        tokens = torch.as_tensor(ids[i], device=p.device)
        entropies[i] = entropy(p, cfg.temperature).cpu()
        gaps[i] = sampled_token_gap(p, q, tokens, temperature=cfg.temperature).cpu()
        sites[i] = choose_sites(
            entropies[i], p, q, per_bucket=cfg.interventions.per_bucket, alpha=cfg.interventions.alpha,
            temperature=cfg.temperature, top_p=cfg.top_p, identity=identities[i],
        )  # fmt: skip
    shifts = {}
    if cfg.step.lr is not None:
        shifts = one_step_shifts(engine, prompts, ids, gaps, lr=cfg.step.lr, temperature=cfg.temperature)
    unmodified = rollouts.measured(engine, judge)
    outcomes = intervened(engine, judge, rollouts, sites, own="resampled")
    return [
        {
            "problem": problem.index,
            "rollout": number,
            "reference_cut": rollouts.privileged[i].truncated,
            "finished": rollouts.responses[i].finished,
            "entropy": rounded(entropies[i]),
            "gap": rounded(gaps[i]),
            "shift": {step: rounded(shifts[step][i]) for step in shifts},
            "unmodified": unmodified[i],
            "interventions": outcomes[i],
        }
        for i, (problem, number) in enumerate(rollouts.asked)
    ]


# --- what the records say ---------------------------------------------------------------------------------------------


def summarise(records: Records, cfg: DictConfig) -> Findings:
    """Spearman's ρ, shifts by entropy, effects of the interventions; each with its interval over problems.

    Args:
        records: those of all chunks and seeds.
        cfg: the diagnostic's configuration.
    """
    draws = {"resamples": cfg.summary.resamples, "seed": cfg.summary.seed}
    results: dict[str, Any] = {"counts": {"tokens": sum(len(r["gap"]) for r in records), **counts(records)}}
    correlations = correlation(records, draws)
    results["spearman"] = correlations
    results["spearman_by_seed"] = {
        str(seed): {name: rho.value for name, rho in correlation(of_seed, {"resamples": 0, "seed": 0}).items()}
        for seed, of_seed in _by_seed(records).items()
    }
    tables = [
        ("Spearman's ρ with the student's entropy", ["quantity", "ρ [95 %]"],
         [[LABELS[name], shown(interval)] for name, interval in correlations.items()])
    ]  # fmt: skip
    edges, by_bin = by_entropy(records, cfg.summary.bins, draws)
    results["by_entropy"] = {"edges": edges, "bins": by_bin}
    quantities = [q for q in LABELS if q in by_bin[0]]
    tables.append(
        ("Means by entropy of the student", ["H (nats)", "tokens", *(LABELS[q] for q in quantities)],
         [[f"{low:.3g} – {high:.3g}", str(row["tokens"]), *(shown(row[q], "{:.2g}") for q in quantities)]
          for low, high, row in zip(edges, edges[1:], by_bin, strict=False)])
    )  # fmt: skip
    if cfg.interventions.per_bucket:
        results["interventions"] = effects(records, draws)
        tables += _effect_tables(results["interventions"])
    return Findings(tables, results, notes(results["counts"]))


LABELS = {
    "gap": "A_t",
    "magnitude": "|A_t|",
    "conformity": "TV, step +1",
    "novelty": "TV, step −1",
    "conformity_own": "TV, +1, tokens with A > 0",
    "novelty_own": "TV, −1, tokens with A < 0",
}


def _tokens(records: Records) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All tokens' quantities, (N,) each, and the problem of each token."""
    names = ["entropy", "gap"]
    columns = {name: np.concatenate([np.asarray(r[name]) for r in records]) for name in names}
    columns["magnitude"] = np.abs(columns["gap"])
    for step in STEPS:
        if step in records[0]["shift"]:
            columns[step] = np.concatenate([np.asarray(r["shift"][step]) for r in records])
    return columns, np.repeat([r["problem"] for r in records], [len(r["gap"]) for r in records])


def correlation(records: Records, draws: dict[str, int]) -> dict[str, Any]:
    """Spearman's ρ of each quantity with H_t over all tokens, by name.

    Args:
        records: one for each rollout, from `measure`.
        draws: `resamples` and `seed` of the bootstrap over problems.
    """
    columns, problems = _tokens(records)
    names = [name for name in LABELS if name in columns]
    table = np.stack([columns["entropy"], *(columns[name] for name in names)], axis=1)

    def rho(rows: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant column has no ρ: NaN says so
            found = np.asarray(spearmanr(table[rows], axis=0).statistic)
        return found[0, 1:] if found.ndim else np.full(len(names), np.nan)

    return dict(zip(names, cluster_bootstrap(rho, problems, **draws), strict=True))


def by_entropy(records: Records, bins: int, draws: dict[str, int]) -> tuple[list[float], list[dict[str, Any]]]:
    """Means of every quantity in quantile bins of the student's entropy.

    Args:
        records: one for each rollout, from `measure`.
        bins: number of bins; equal edges are joined.
        draws: `resamples` and `seed` of the bootstrap over problems.

    Returns:
        The edges, nats, and for each bin its tokens, its mean entropy and the interval of every quantity's mean.
    """
    columns, problems = _tokens(records)
    edges = np.unique(np.quantile(columns["entropy"], np.linspace(0, 1, bins + 1)))
    where = np.clip(np.searchsorted(edges, columns["entropy"], side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [name for name in LABELS if name in columns]
    pivot = Pivot(
        (int(problem), (name, int(b)), value)
        for name in names
        for problem, b, value in zip(problems, where, columns[name], strict=True)
    )
    means = pivot.means(**draws)
    rows = []
    for b in range(max(len(edges) - 1, 1)):
        row: dict[str, Any] = {
            "tokens": int((where == b).sum()),
            "entropy": float(columns["entropy"][where == b].mean()),
        }
        rows.append({**row, **{name: means[name, b] for name in names}})
    return edges.tolist(), rows


def effects(records: Records, draws: dict[str, int]) -> dict[str, Any]:
    """Relative change (%) by metric, bucket and kind, against the unmodified rollouts and against `resampled`.

    Args:
        records: one for each rollout, with its interventions.
        draws: `resamples` and `seed` of the bootstrap over problems.

    Returns:
        ``effects``: "metric/bucket/kind" -> ``mean``, ``versus_unmodified_percent`` (the paper's) and
        ``versus_resampled``, the absolute difference from the same sites with the student's own draw.  ``changed``:
        "bucket/kind" -> share of sites where the kind's token is not the student's.  ``unmodified``: metric -> mean.
    """
    pivot = Pivot(_observations(records))
    at = pivot.columns
    # A draw by its metric's name: with none measured (steps of other problems) the metric is left out.
    wanted = [
        (metric, bucket, kind)
        for metric in METRICS
        for bucket in BUCKETS
        for kind in KINDS
        if (metric, bucket, kind) in at and (metric, bucket, "resampled") in at and (metric, "", "unmodified") in at
    ]

    def derive(means: np.ndarray) -> list[float]:
        values = []
        for metric, bucket, kind in wanted:
            base = means[at[metric, "", "unmodified"]]
            value = means[at[metric, bucket, kind]]
            values += [
                value,
                100 * (value / base - 1) if base else np.nan,
                value - means[at[metric, bucket, "resampled"]],
            ]
        return [*values, *(means[at["changed", b, k]] for b, k in changed)]

    changed = [(b, k) for b in BUCKETS for k in KINDS if ("changed", b, k) in at]
    intervals = pivot.intervals(derive, **draws)
    found: dict[str, Any] = {"effects": {}, "changed": {}, "unmodified": {}}
    for number, key in enumerate(wanted):
        mean, percent, difference = intervals[3 * number : 3 * number + 3]
        found["effects"]["/".join(key)] = {
            "mean": mean,
            "versus_unmodified_percent": percent,
            "versus_resampled": difference,
        }
    for pair, interval in zip(changed, intervals[3 * len(wanted) :], strict=True):
        found["changed"]["/".join(pair)] = interval
    means = pivot.means(**draws)
    found["unmodified"] = {m: means[m, "", "unmodified"] for m in METRICS if (m, "", "unmodified") in at}
    return found


def _observations(records: Records) -> Iterator[tuple[int, tuple[str, str, str], float | None]]:
    for record in records:
        for metric in METRICS:
            yield record["problem"], (metric, "", "unmodified"), record["unmodified"][metric]
        for outcome in record["interventions"]:
            for metric in (*METRICS, "changed"):
                yield record["problem"], (metric, outcome["bucket"], outcome["kind"]), outcome[metric]


def _effect_tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    changes, differences = [], []
    for bucket in BUCKETS:
        for metric, base in found["unmodified"].items():
            cells = [found["effects"].get(f"{metric}/{bucket}/{kind}") for kind in KINDS]
            if cells[0] is None:
                continue
            name = f"{bucket} H: {metric} ({base.value:.3g})"
            changes.append([name, *(shown(cell["versus_unmodified_percent"], "{:+.1f}") for cell in cells)])
            differences.append([name, *(shown(cell["versus_resampled"], "{:+.3f}") for cell in cells[:2])])
        shares = [found["changed"][f"{bucket}/{kind}"] for kind in KINDS[:2] if f"{bucket}/{kind}" in found["changed"]]
        differences.append([f"{bucket} H: share of tokens changed", *(shown(share, "{:.3f}") for share in shares)])
    first = "where: metric (unmodified)"
    return [
        ("One token drawn anew: change against the unmodified rollouts (%)", [first, *KINDS], changes),
        ("The same, minus the student's own draw at the same place", [first, *KINDS[:2]], differences),
    ]


def _by_seed(records: Records) -> dict[int, Records]:
    return {seed: [r for r in records if r["seed"] == seed] for seed in sorted({r["seed"] for r in records})}


COMMAND = command(
    "dasd_probes",
    "DASD's probes 2 and 3: where the privileged teacher pushes, and what its pushes do.",
    (
        ("prm=<path or name>", "a process reward model for StepAcc of other problems than the starter's"),
        ("step.lr=5e-5", "of the one diagnostic step; null leaves it out"),
        ("interventions.per_bucket=2", "positions of each rollout and bucket; 0 leaves them out"),
    ),
)


def _job(cfg: DictConfig) -> int:
    return execute("dasd_probes", cfg, prepare, summarise, figures.dasd_probes)


if __name__ == "__main__":
    run(COMMAND, _job, "diagnose_dasd")
