"""`python -m recipes.diagnose.branch_viability`: are the teacher's alternatives viable for the student? (PW-OPSD, §3.2)

A   a correct response of the student to each problem, greedy where that is right, else sampled: the spine
B   the privileged teacher reads the spine
C   candidates: positions where the teacher hesitates between plausible tokens
D   local uncertainty of the teacher at the candidates, Monte Carlo dropout among it
E   each alternative is forced after the student's prompt and the spine so far; the student goes on, without reference
F   viability of an alternative: share of right continuations; candidates are diversity, real-uncertain or gray
G   which score tells real-uncertain from diversity: AUROC of scores centred within problem, bootstrap over problems

Departures: the prompts are this project's (`recipes.common.teacher.prompts`); several seeds, each with spines of its
own where greedy decoding is wrong; two scores of the student beside the paper's.  Numbers:
config/diagnose_branches.yaml.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from recipes.command_line import run
from recipes.diagnose import figures
from recipes.diagnose.branches import (
    DIVERSITY,
    GRAY,
    MAX_PRECISION,
    REAL_UNCERTAIN,
    plausible_children,
    select_candidates,
    valid_tokens,
)
from recipes.diagnose.distributions import entropy, monte_carlo_scores, truncated_entropy
from recipes.diagnose.engine import (
    Engine,
    Problem,
    Response,
    as_response,
    grade,
    material,
    respond,
    response_logits,
    sample,
)
from recipes.diagnose.mc_dropout import dropout_hooks
from recipes.diagnose.runner import Findings, Records, command, execute, shown
from recipes.diagnose.viability import SCORES, by_seed, discrimination, failure_by_position, labelled
from workers.divergence import token_divergence
from workers.rollout.generation import SamplingParams, response_seed


def prepare(cfg: DictConfig) -> tuple[Sequence[Problem], Callable[[int, Sequence[Problem]], Records]]:
    """Check the settings, load the model and the problems; see `runner.execute`.

    Raises:
        SettingsError: if a setting is not allowed, or what it names is not there.
    """
    wrong = []
    c, d = cfg.candidates, cfg.dropout
    for key, value, least in (
        ("candidates.per_problem", c.per_problem, 1), ("candidates.spacing", c.spacing, 1),
        ("candidates.top_k", c.top_k, 2), ("candidates.children", c.children, 2),
        ("candidates.min_children", c.min_children, 2),
        ("continuations", cfg.continuations, 1), ("dropout.passes", d.passes, 2), ("dropout.layers", d.layers, 1),
    ):  # fmt: skip
        if value < least:
            wrong.append(f"{key}={value}: must be at least {least}")
    if c.min_children > c.children:
        wrong.append(f"candidates.min_children={c.min_children}: at most candidates.children={c.children}")
    if not 0 < d.rate < 1:
        wrong.append(f"dropout.rate={d.rate}: must be between 0 and 1")
    if not 0 <= c.min_probability < 1:
        wrong.append(f"candidates.min_probability={c.min_probability}: must be in [0, 1) (paper: 0.05)")
    engine, problems, teacher = material(cfg, wrong)
    allowed = valid_tokens(engine.tokenizer, engine.model.config.vocab_size, engine.stop_ids).to(engine.device)
    return problems, lambda seed, chunk: measure(engine, teacher, allowed, cfg, seed, chunk)


def measure(
    engine: Engine, teacher: Any, allowed: torch.Tensor, cfg: DictConfig, seed: int, problems: Sequence[Problem]
) -> Records:
    """Phases A to E for a chunk of problems.

    Args:
        engine: the model.
        teacher: makes a row's privileged prompt (`PrivilegedPrompts`).
        allowed: (V,) bool, tokens that may be forced.
        cfg: the diagnostic's configuration.
        seed: decides every random number.
        problems: the chunk.

    Returns:
        One record a problem; those without a spine have no candidates.
    """
    params = SamplingParams(temperature=cfg.temperature, top_p=cfg.top_p, max_tokens=cfg.max_tokens, logprobs=False)
    records: Records = []
    for problem, (spine, source) in zip(problems, spines(engine, problems, params, cfg.rollouts, seed), strict=True):
        record: dict[str, Any] = {"problem": problem.index, "spine": source, "length": 0, "candidates": []}
        if spine is not None:
            found = examine(engine, teacher(problem.row).token_ids, problem, spine, allowed, cfg, seed)
            record |= {"length": len(spine.ids), "text": spine.text, "candidates": found}
        records.append(record)
    force(engine, problems, records, params, cfg.continuations, seed)
    return records


def spines(
    engine: Engine, problems: Sequence[Problem], params: SamplingParams, tries: int, seed: int
) -> list[tuple[Response | None, str]]:
    """Phase A: find a right response to each problem: the greedy one, else the first right one of a few samples.

    Args:
        engine: the model.
        problems: those that are asked.
        params: how responses are sampled.
        tries: samples of each problem whose greedy response is wrong.
        seed: decides the samples.

    Returns:
        For each problem the response and "greedy" or "sampled", or (None, "none").
    """
    greedy = SamplingParams(temperature=0.0, max_tokens=params.max_tokens, logprobs=False)
    first = respond(engine, [p.prompt for p in problems], greedy, [("greedy", p.index) for p in problems])
    found: list[tuple[Response | None, str]] = [
        (response, "greedy") if right else (None, "none")
        for response, right in zip(first, grade(engine, [r.text for r in first], problems), strict=True)
    ]
    asked = [(i, number) for i, (spine, _) in enumerate(found) if spine is None for number in range(tries)]
    if asked:
        sampled = respond(
            engine,
            [problems[i].prompt for i, _ in asked],
            params,
            [("spine", seed, problems[i].index, n) for i, n in asked],
        )
        verdicts = grade(engine, [r.text for r in sampled], [problems[i] for i, _ in asked])
        for (i, _), response, right in zip(asked, sampled, verdicts, strict=True):
            if right and found[i][0] is None:
                found[i] = (response, "sampled")
    return found


@torch.no_grad()
def examine(
    engine: Engine,
    teacher_prompt: list[int],
    problem: Problem,
    spine: Response,
    allowed: torch.Tensor,
    cfg: Any,
    seed: int,
) -> list[dict[str, Any]]:
    """Phases B to D on one spine: let the teacher read it, choose candidates, score their uncertainty.

    Args:
        engine: the model.
        teacher_prompt: token ids of the privileged prompt.
        problem: the problem that the spine answers.
        spine: a right response.
        allowed: (V,) bool, tokens that may be forced.
        cfg: the diagnostic's configuration.
        seed: decides the dropout masks.

    Returns:
        One dict a candidate in order of position: position, prefix, u, scores, children.
    """
    options = cfg.candidates
    teacher = response_logits(engine, [teacher_prompt], [spine.ids])[0]
    student = response_logits(engine, [problem.prompt], [spine.ids])[0]
    hesitation = truncated_entropy(teacher, allowed, options.top_k)
    children = plausible_children(teacher, allowed, count=options.children, min_probability=options.min_probability)
    positions = select_candidates(
        hesitation.tolist(), children, limit=options.per_problem, spacing=options.spacing,
        min_children=options.min_children, end=reasoning_end(engine, spine.ids),
    )  # fmt: skip
    if not positions:
        return []
    rows = torch.as_tensor(positions, device=teacher.device)

    def passes() -> Any:
        for number in range(cfg.dropout.passes):
            drawn = response_seed("dropout", seed, problem.index, number)
            with dropout_hooks(engine.model, layers=cfg.dropout.layers, rate=cfg.dropout.rate, seed=drawn):
                yield response_logits(engine, [teacher_prompt], [spine.ids])[0][rows]

    perturbed = monte_carlo_scores(passes())
    columns = {
        "predictive_entropy": perturbed["predictive_entropy"],
        "mutual_information": perturbed["mutual_information"],
        "dirichlet_precision": perturbed["dirichlet_precision"].clamp(-MAX_PRECISION, MAX_PRECISION),
        "truncated_entropy": hesitation[rows],
        "student_entropy": entropy(student[rows]),
        "kl": token_divergence(student[rows], teacher[rows]),
    }
    probabilities = teacher.softmax(-1)
    return [
        {
            "position": t,
            "prefix": spine.ids[:t],
            "u": (t + 0.5) / len(spine.ids),  # PW-OPSD §3.4: (t − 0.5) / L with t from 1
            **{name: float(column[i]) for name, column in columns.items()},
            "children": [
                {"token": v, "text": engine.tokenizer.decode([v]), "probability": float(probabilities[t, v])}
                for v in children[t]
            ],
        }
        for i, t in enumerate(positions)
    ]


def reasoning_end(engine: Engine, ids: Sequence[int]) -> int:
    """Number of tokens before the first ``</think>``, where phase C stops looking; all of them if there is none.

    Args:
        engine: the model, for its tokenizer.
        ids: token ids of a response.
    """
    closing = engine.tokenizer.convert_tokens_to_ids("</think>")
    return next((t for t, token in enumerate(ids) if token == closing), len(ids))


def force(
    engine: Engine, problems: Sequence[Problem], records: Records, params: SamplingParams, count: int, seed: int
) -> None:
    """Phase E: add ``correct``, a verdict for each continuation, to every child of every candidate.

    Args:
        engine: the model.
        problems: those of the records, in their order.
        records: changed in place; the candidates lose their ``prefix``.
        params: how continuations are sampled.
        count: continuations of each child.
        seed: decides the continuations.
    """
    starts: list[tuple[Problem, dict[str, Any], list[int], tuple]] = []
    for problem, record in zip(problems, records, strict=True):
        for candidate in record["candidates"]:
            prefix = candidate.pop("prefix")
            for child in candidate["children"]:
                child["correct"] = []
                for number in range(count):
                    name = ("branch", seed, problem.index, candidate["position"], child["token"], number)
                    starts.append((problem, child, [*prefix, child["token"]], name))
    limits = [params.max_tokens - len(response) for _, _, response, _ in starts]
    going = [i for i, limit in enumerate(limits) if limit > 0]
    continued = sample(
        engine, [[*starts[i][0].prompt, *starts[i][2]] for i in going], params, [starts[i][3] for i in going],
        limits=[limits[i] for i in going],
    )  # fmt: skip
    tails = dict(zip(going, continued, strict=True))
    texts = [as_response(engine, [*start[2], *tails.get(i, [])]).text for i, start in enumerate(starts)]
    verdicts = grade(engine, texts, [problem for problem, *_ in starts])
    for (_, child, _, _), verdict in zip(starts, verdicts, strict=True):
        child["correct"].append(verdict)


# --- phases F and G ---------------------------------------------------------------------------------------------------


def _counted(value: int | dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in value.items()) if isinstance(value, dict) else str(value)


def summarise(records: Records, cfg: DictConfig) -> Findings:
    """Phases F and G: labels, which score tells them apart, and the failure of forced alternatives along the spine.

    Args:
        records: those of all chunks and seeds.
        cfg: the diagnostic's configuration.
    """
    draws = {"resamples": cfg.summary.resamples, "seed": cfg.summary.seed}
    candidates = labelled(records, cfg)
    labels = Counter(c["label"] for c in candidates)
    pool = [c for c in candidates if c["label"] != GRAY]
    verdicts = [v for r in records for c in r["candidates"] for child in c["children"] for v in child["correct"]]
    found = {
        "problems": len({r["problem"] for r in records}),
        "spines": dict(Counter(r["spine"] for r in records)),
        "candidates": len(candidates),
        "labels": {name: labels[name] for name in (DIVERSITY, REAL_UNCERTAIN, GRAY)},
        "problems_in_pool": len({c["problem"] for c in pool}),
        "continuations": len(verdicts),
        "ungraded": sum(v is None for v in verdicts),
    }
    results: dict[str, Any] = {"counts": found}
    tables = [("What was measured", ["", "number"], [[k.replace("_", " "), _counted(v)] for k, v in found.items()])]
    sentences = []
    if labels[DIVERSITY] and labels[REAL_UNCERTAIN]:
        results["residual"] = discrimination(candidates, residual=True, **draws)
        results["raw"] = discrimination(candidates, residual=False, **draws)
        results["residual_by_seed"] = by_seed(candidates)
        tables.append(
            (
                f"{REAL_UNCERTAIN} ({labels[REAL_UNCERTAIN]}) against {DIVERSITY} ({labels[DIVERSITY]})",
                ["score", "residual AUROC", "residual AUPRC", "raw AUROC"],
                [
                    [text, shown(values["auroc"]), shown(values["auprc"]), shown(results["raw"][name]["auroc"])]
                    for (name, text), values in zip(SCORES.items(), results["residual"].values(), strict=True)
                ],
            )
        )
    else:
        sentences.append(f"only one of the two labels occurs ({found['labels']}), so no score can tell them apart")
    if candidates:
        results["failure_by_position"] = failure_by_position(candidates, cfg.summary.bins, draws)
        tables.append(
            ("Failure rate of forced alternatives along the spine", ["u", "candidates", "1 − viability"],
             [[f"{row['from']:.2f} – {row['to']:.2f}", str(row["candidates"]), shown(row["failure"])]
              for row in results["failure_by_position"]])
        )  # fmt: skip
    if found["ungraded"]:
        sentences.append(f"{found['ungraded']} continuations could not be graded and are left out of the viabilities")
    return Findings(tables, results, sentences)


COMMAND = command(
    "branch_viability",
    "PW-OPSD's diagnostic: are the alternatives that a teacher offers along a response viable, and which score tells?",
    (
        ("candidates.per_problem=8", "positions tried of each response"),
        ("continuations=4", "of each forced alternative"),
    ),
)


def _job(cfg: DictConfig) -> int:
    return execute("branch_viability", cfg, prepare, summarise, figures.branch_viability)


if __name__ == "__main__":
    run(COMMAND, _job, "diagnose_branches")
