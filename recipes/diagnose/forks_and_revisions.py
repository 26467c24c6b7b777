"""`python -m recipes.diagnose.forks_and_revisions`: do a model's forks and revisions change its answers? (DASD, Fig. 7)

    forks      the most uncertain token gives way to the teacher's top choice; a certain token, any token (Fig. 7a,b)
    revisions  at the same prefix: the marker preserved, suppressed, or the teacher's words in its place (Fig. 7c,d)

After the tokens that are put there the student finishes without the reference.  What is compared has the same prefix
and the same random numbers, so equal tokens give equal responses.  Fig. 7d's models are measured one by one, each with
``model=<its run>``, and shown together by ``summary.beside``.  What the paper leaves open: forks.py.  Keys:
config/diagnose_forks.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from recipes.command_line import run
from recipes.diagnose import figures, interventions
from recipes.diagnose.distributions import entropy
from recipes.diagnose.engine import Engine, Problem, both_logits, material, sample
from recipes.diagnose.forks import (
    FORCED,
    PLACE_NAMES,
    PLACES,
    REVISED,
    REVISION,
    first_revision,
    fork_sites,
    in_answer,
    marker_pattern,
    marker_tokens,
    suppressed_token,
)
from recipes.diagnose.health import StepJudge, judge_problems, step_judge
from recipes.diagnose.interventions import Site, counts, intervened, notes, roll_out
from recipes.diagnose.runner import Findings, Records, command, execute, read_records, shown
from recipes.diagnose.statistics import Interval, Pivot
from workers.rollout.generation import SamplingParams, response_seed

NAME = "forks_and_revisions"
# What is measured of a response.
METRICS = {
    "accuracy": "accuracy",
    "step_acc": "StepAcc",
    "rev_rate": "RevRate",
    "markers_on": "markers on from it",
}
SENTENCES = {
    "without_fork": "rollouts have no token above the router's quantile, hence no fork to force",
    "forks_in_answers": (
        "rollouts are most uncertain inside their boxed answer: what is forced there gives it away, and is no fork"
    ),
    "without_certain_token": "rollouts have no token below the router's quantile, hence no certain one to force",
    "teacher_ended_sooner": "times the teacher ended, or the limit came, before revisions.teacher_tokens",
    **interventions.SENTENCES,
}
BASES = {**dict.fromkeys(PLACES, "kept"), REVISION: "preserved"}
KINDS = {**dict.fromkeys(PLACES, FORCED), REVISION: REVISED}


def prepare(cfg: DictConfig) -> tuple[Sequence[Problem], Callable[[int, Sequence[Problem]], Records]]:
    """Check the settings, load the model and the problems; see `runner.execute`.

    Raises:
        SettingsError: if a setting is not allowed, or what it names is not there.
    """
    wrong = judge_problems(cfg)
    if not 0 < cfg.forks.router_quantile < 1:
        wrong.append(f"forks.router_quantile={cfg.forks.router_quantile}: must be between 0 and 1 (paper: 0.2)")
    markers = cfg.revisions.markers
    if not markers or not all(isinstance(marker, str) and marker.strip() for marker in markers):
        wrong.append(f"revisions.markers={markers}: must be a list of words, such as [wait]")
    if cfg.revisions.teacher_tokens < 1:
        wrong.append(f"revisions.teacher_tokens={cfg.revisions.teacher_tokens}: must be at least 1")
    for directory in (cfg.summary.beside or {}).values():
        read_records(Path(directory), NAME)  # before minutes of sampling, not after
    engine, problems, teacher = material(cfg, wrong)
    judge = step_judge(cfg)
    barred = marker_tokens(engine.tokenizer, engine.model.config.vocab_size, markers)
    return problems, lambda seed, chunk: measure(engine, judge, teacher, barred, cfg, seed, chunk)


def measure(
    engine: Engine,
    judge: StepJudge | None,
    teacher: Any,
    barred: torch.Tensor,
    cfg: DictConfig,
    seed: int,
    problems: Sequence[Problem],
) -> Records:
    """Sample rollouts of a chunk of problems, put other tokens at their forks and revisions, and go on.

    Args:
        engine: the model.
        judge: of steps of other problems than the starter's; None where there is none.
        teacher: makes a row's privileged prompt (`PrivilegedPrompts`).
        barred: (V,) bool, tokens that spell a marker.
        cfg: the diagnostic's configuration.
        seed: decides every random number.
        problems: the chunk.

    Returns:
        One record a rollout.
    """
    rollouts = roll_out(engine, teacher, cfg, NAME, seed, problems)
    ids, identities, privileged = rollouts.ids, rollouts.identities, rollouts.teacher_prompts
    pattern = marker_pattern(cfg.revisions.markers)
    turns = [first_revision(engine.tokenizer, tokens, pattern) for tokens in ids]
    words = teacher_words(engine, privileged, ids, turns, cfg)
    sites: list[list[Site]] = [[] for _ in ids]
    for i, p, q in both_logits(engine, rollouts.prompts, privileged, ids):
        sites[i] = fork_sites(
            entropy(p, cfg.temperature).cpu(), p, q, ids[i],
            router_quantile=cfg.forks.router_quantile, identity=identities[i],
        )  # fmt: skip
        turn = turns[i]
        if turn is not None:
            first, last = turn
            uniform = response_seed("suppressed", *identities[i]) / 2**63
            other = suppressed_token(
                p[first], barred, ids[i][first], temperature=cfg.temperature, top_p=cfg.top_p, uniform=uniform
            )
            tokens = {"preserved": tuple(ids[i][first:last]), "suppressed": (other,), "forced": words[i]}
            sites[i].append(Site(REVISION, first, tokens))
    unmodified = rollouts.measured(engine, judge)
    outcomes = [
        intervened(
            engine, judge, rollouts, [[s for s in found if BASES[s.bucket] == base] for found in sites], own=base
        )
        for base in dict.fromkeys(BASES.values())
    ]  # fmt: skip
    return [
        {
            "problem": problem.index,
            "rollout": number,
            "reference_cut": rollouts.privileged[i].truncated,
            "finished": rollouts.responses[i].finished,
            "teacher_tokens": len(words[i]),
            "fork_in_answer": any(
                in_answer(engine.tokenizer, ids[i], site.position) for site in sites[i] if site.bucket == "high"
            ),
            "unmodified": unmodified[i],
            "interventions": [record for found in outcomes for record in found[i]],
        }
        for i, (problem, number) in enumerate(rollouts.asked)
    ]


def teacher_words(
    engine: Engine,
    privileged: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
    turns: Sequence[tuple[int, int] | None],
    cfg: DictConfig,
) -> list[tuple[int, ...]]:
    """What the teacher says where a rollout turned: greedy, at most ``revisions.teacher_tokens``; () without a turn.

    Args:
        engine: the model.
        privileged: token ids of the teacher's prompts.
        ids: of the rollouts.
        turns: of `first_revision`.
        cfg: the diagnostic's configuration.
    """
    greedy = SamplingParams(temperature=0.0, max_tokens=cfg.max_tokens, logprobs=False)
    turned = [(i, turn[0]) for i, turn in enumerate(turns) if turn is not None]
    said = sample(
        engine,
        [[*privileged[i], *ids[i][:first]] for i, first in turned],
        greedy,
        [("teacher", i) for i, _ in turned],
        limits=[min(cfg.revisions.teacher_tokens, cfg.max_tokens - first) for _, first in turned],
    )
    words: list[tuple[int, ...]] = [()] * len(ids)
    for (i, _), tokens in zip(turned, said, strict=True):
        words[i] = tuple(tokens)
    return words


# --- what the records say ---------------------------------------------------------------------------------------------


def summarise(records: Records, cfg: DictConfig) -> Findings:
    """What forcing and suppressing change at equal prefixes; each with its interval over problems.

    Args:
        records: those of all chunks and seeds.
        cfg: the diagnostic's configuration.
    """
    draws = {"resamples": cfg.summary.resamples, "seed": cfg.summary.seed}
    found = counts(records) | places_counted(records, cfg.revisions.teacher_tokens)
    sites = effects(records, draws)
    results: dict[str, Any] = {"counts": found, "places": sites}
    tables = [("What was measured", ["", "number"], [[k.replace("_", " "), str(v)] for k, v in found.items()])]
    names = [*METRICS.values(), "accuracy, changed ones"]
    rows = [
        [f"{PLACE_NAMES[place]}, {kind}'s", _shown(of[kind], "changed", "{:.2f}"), *_differences(of[kind])]
        for place, of in sites.items()
        if place in PLACES
        for kind in FORCED[1:]
    ]
    tables.append(("One token forced, minus the rollout's own kept", ["place, top choice", "changed", *names], rows))
    sentences = notes(found, SENTENCES)
    if not found["with_revision"]:
        sentences.append("no rollout turns with one of revisions.markers, so there is none to preserve or suppress")
    if REVISION in sites:
        of = sites[REVISION]
        rows = [[kind, _shown(of[kind], "accuracy", "{:.3f}"), *_differences(of[kind])[:-1]] for kind in REVISED]
        tables.append(("A revision; differences are to preserved", ["kind", "accuracy itself", *names[:-1]], rows))
    results["models"] = models(sites, cfg, draws)
    rows = [[name, shown(interval, "{:+.3f}")] for name, interval in results["models"].items()]
    tables.append(("Accuracy of revisions, preserved minus suppressed", ["model", "gain"], rows))
    return Findings(tables, results, sentences)


def _differences(of_kind: dict[str, Interval]) -> list[str]:
    names = [*(f"{name}_difference" for name in METRICS), "accuracy_difference_where_changed"]
    return [_shown(of_kind, name, "{:+.2f}") for name in names]


def _shown(of_kind: dict[str, Interval], name: str, form: str) -> str:
    """What was not measured is a dash."""
    return shown(of_kind[name], form) if name in of_kind else "–"


def places_counted(records: Records, teacher_tokens: int) -> dict[str, int]:
    """How many rollouts have each place, and how often the teacher said less than it might.

    Args:
        records: one for each rollout.
        teacher_tokens: that the teacher says at most where a rollout turned.
    """
    places = [{o["bucket"] for o in r["interventions"]} for r in records]
    return {
        "without_fork": sum("high" not in found for found in places),
        "forks_in_answers": sum(r["fork_in_answer"] for r in records),
        "without_certain_token": sum("low" not in found for found in places),
        "with_revision": sum(REVISION in found for found in places),
        "teacher_ended_sooner": sum(0 < r["teacher_tokens"] < teacher_tokens for r in records),
    }


def effects(records: Records, draws: dict[str, int]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Means and paired differences, by place and kind.

    Args:
        records: one for each rollout, with its interventions.
        draws: ``resamples`` and ``seed`` of the bootstrap over problems.

    Returns:
        place -> kind -> name -> interval: each metric's mean by its name, ``<metric>_difference`` to the place's base
        over the sites where both have it, ``<metric>_difference_where_changed`` over those where the tokens differ, and
        ``changed``, the share of those; the base itself has no differences.  What has no observation is absent.
    """
    pivot = Pivot(_observations(records))
    if not pivot.columns:
        return {}
    found: dict[str, dict[str, dict[str, Interval]]] = {}
    for quantity, interval in pivot.means(**draws).items():
        place, kind, name = quantity  # type: ignore[misc]
        found.setdefault(place, {}).setdefault(kind, {})[name] = interval
    return {place: {kind: found[place][kind] for kind in KINDS[place]} for place in BASES if place in found}


def _observations(records: Records) -> Iterator[tuple[int, Hashable, float | None]]:
    for record in records:
        at: dict[str, dict[str, dict[str, Any]]] = {}
        for outcome in record["interventions"]:
            at.setdefault(outcome["bucket"], {})[outcome["kind"]] = outcome
        for place, of in at.items():
            base = of[BASES[place]]
            for kind, outcome in of.items():
                yield record["problem"], (place, kind, "changed"), outcome["changed"]
                for name in METRICS:
                    value, other = outcome[name], base[name]
                    yield record["problem"], (place, kind, name), value
                    if value is None or other is None or outcome is base:
                        continue
                    yield record["problem"], (place, kind, f"{name}_difference"), value - other
                    if outcome["changed"]:
                        yield record["problem"], (place, kind, f"{name}_difference_where_changed"), value - other


def models(sites: dict[str, Any], cfg: DictConfig, draws: dict[str, int]) -> dict[str, Interval]:
    """What preserving a revision gains over suppressing it, in accuracy: this model, and those beside it.

    Args:
        sites: of `effects`, this model's.
        cfg: the diagnostic's configuration.
        draws: ``resamples`` and ``seed`` of the bootstrap over problems.

    Returns:
        label -> interval; a model without a revision is left out.
    """
    all_sites = {"this model": sites}
    for label, directory in (cfg.summary.beside or {}).items():
        all_sites[label] = effects(read_records(Path(directory), NAME), draws)
    gains = {}
    for label, found in all_sites.items():
        lost = found.get(REVISION, {}).get("suppressed", {}).get("accuracy_difference")
        if lost is not None:
            gains[label] = Interval(-lost.value, -lost.high, -lost.low, lost.undefined)
    return gains


COMMAND = command(
    NAME,
    "DASD's causal tests: tokens forced by the teacher at forks, and revisions preserved, suppressed or forced.",
    (
        ("prm=<path or name>", "a process reward model for StepAcc of other problems than the starter's"),
        ("revisions.teacher_tokens=6", "that the teacher says in place of a revision"),
        ("summary.beside={GRPO: <directory>}", "other models' directories of this diagnostic, shown beside"),
    ),
)


def _job(cfg: DictConfig) -> int:
    return execute(NAME, cfg, prepare, summarise, figures.forks_and_revisions)


if __name__ == "__main__":
    run(COMMAND, _job, "diagnose_forks")
