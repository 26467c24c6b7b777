"""DASD's prefix interventions: put other tokens at a place of a rollout, let the student go on (arXiv 2605.22263).

What every one of them needs is here (`roll_out`, `Site`, `finish`, `intervened`), and the places and draws of §3's
probe 3.

There a token of an unmodified rollout is drawn from the teacher (Conformity) or from p_S / p_T^α (Novelty); the student
then finishes without the reference.  Positions come from the half of the rollout with low entropy, from the other half,
or from all of it (the control).

Ours, beside the paper's: a third draw from the student itself.  It changes nothing but the random numbers, so its
distance from the unmodified rollouts is noise, and the other two are compared with it pair by pair: all draws at a
position use one uniform number and their continuations one seed, so equal tokens give equal responses.
How many positions a rollout contributes, and that they are uniform within the bucket, is ours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from recipes.diagnose.distributions import draw, keep_top_p, novelty_log_probs
from recipes.diagnose.engine import Engine, Problem, Response, as_response, grade, respond, sample
from recipes.diagnose.health import StepJudge, judge_steps, measures
from recipes.evaluate.health import count_markers
from workers.rollout.generation import SamplingParams, response_seed

BUCKETS = ("low", "high", "random")
KINDS = ("conformity", "novelty", "resampled")


@dataclass(frozen=True)
class Rollouts:
    """Unmodified rollouts of a chunk of problems.

    Attributes:
        asked: problem and number of each.
        identities: what names each, for its random numbers.
        params: how they are sampled.
        responses: as they came.
        privileged: the teacher's prompt of each (`PrivilegedPrompt`).
    """

    asked: list[tuple[Problem, int]]
    identities: list[tuple]
    params: SamplingParams
    responses: list[Response]
    privileged: list[Any]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the student's prompts."""
        return [problem.prompt for problem, _ in self.asked]

    @property
    def teacher_prompts(self) -> list[list[int]]:
        """Token ids of the teacher's prompts."""
        return [prompt.token_ids for prompt in self.privileged]

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of the responses."""
        return [response.ids for response in self.responses]

    def measured(self, engine: Engine, judge: StepJudge | None) -> list[dict[str, Any]]:
        """`health.measures` of each response.

        Args:
            engine: the model, for the graders.
            judge: of steps of other problems than the starter's; None where there is none.
        """
        texts = [response.text for response in self.responses]
        verdicts = grade(engine, texts, [problem for problem, _ in self.asked])
        steps = judge_steps(judge, [(p.row["problem"], text) for (p, _), text in zip(self.asked, texts, strict=True)])
        return [
            measures(judged, response.text, len(response.ids), verdict)
            for judged, response, verdict in zip(steps, self.responses, verdicts, strict=True)
        ]


def roll_out(
    engine: Engine, teacher: Any, cfg: DictConfig, name: str, seed: int, problems: Sequence[Problem]
) -> Rollouts:
    """Sample ``rollouts`` responses to each problem, as a diagnostic's configuration says.

    Args:
        engine: the model.
        teacher: makes a row's privileged prompt (`PrivilegedPrompts`).
        cfg: the diagnostic's configuration.
        name: the diagnostic's; with the seed, the problem and the number it decides a response's random numbers.
        seed: of the measurement.
        problems: those that are asked.
    """
    params = SamplingParams(temperature=cfg.temperature, top_p=cfg.top_p, max_tokens=cfg.max_tokens, logprobs=False)
    asked = [(problem, number) for problem in problems for number in range(cfg.rollouts)]
    identities: list[tuple] = [(name, seed, problem.index, number) for problem, number in asked]
    privileged = [teacher(problem.row) for problem, _ in asked]
    responses = respond(engine, [problem.prompt for problem, _ in asked], params, identities)
    return Rollouts(asked, identities, params, responses, privileged)


@dataclass(frozen=True)
class Site:
    """A position of a rollout where other tokens are put.

    Attributes:
        bucket: what it was chosen for, such as one of `BUCKETS`.
        position: counted from 0.
        tokens: what each kind of intervention puts there, one token or several.
    """

    bucket: str
    position: int
    tokens: dict[str, tuple[int, ...]]


def bucket_positions(entropy: Tensor) -> dict[str, list[int]]:
    """Positions by bucket: ``low`` has H_t < τ, ``high`` H_t ≥ τ, with τ the rollout's own median; ``random`` has all.

    The median interpolates, as numpy's does.  A rollout of equal entropies has an empty ``low``.

    Args:
        entropy: (L,) nats.
    """
    values = entropy.double().numpy()
    low = values < np.median(values)
    return {"low": np.flatnonzero(low).tolist(), "high": np.flatnonzero(~low).tolist(), "random": list(range(len(low)))}


def choose_sites(
    entropy: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    per_bucket: int,
    alpha: float,
    temperature: float,
    top_p: float,
    identity: tuple,
) -> list[Site]:
    """Choose positions of a rollout for each bucket, and draw the tokens there.

    Args:
        entropy: (L,) nats, of the student.
        student_logits: (L, V).
        teacher_logits: (L, V).
        per_bucket: positions of a bucket at most.
        alpha: exponent of the Novelty draw.
        temperature: the rollouts' own; it shapes all three distributions, so that ``resampled`` is the rollouts' own.
        top_p: the rollouts' own, likewise.
        identity: names the rollout; all that is random follows from it.
    """
    rng = np.random.default_rng(response_seed("sites", *identity))
    sites = []
    for bucket, positions in bucket_positions(entropy).items():
        for position in rng.permutation(positions)[:per_bucket].tolist():
            row = slice(position, position + 1)
            student = keep_top_p(student_logits[row] / temperature, top_p)
            teacher = teacher_logits[row] / temperature
            uniform = float(rng.random())
            distributions = {
                "conformity": keep_top_p(teacher, top_p).log_softmax(-1),
                "novelty": novelty_log_probs(student, teacher, alpha),
                "resampled": student.log_softmax(-1),
            }
            drawn = {kind: (draw(d[0], uniform),) for kind, d in distributions.items()}
            sites.append(Site(bucket, position, drawn))
    return sites


def finish(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sites: Sequence[Sequence[Site]],
    params: SamplingParams,
    identities: Sequence[tuple],
) -> list[list[dict[str, list[int]]]]:
    """Let the student go on after every intervention; equal tokens at a site are continued once.

    Args:
        engine: the model.
        prompts: token ids of the student's prompt, one entry a rollout.
        responses: token ids of the unmodified rollouts.
        sites: those of each rollout.
        params: how continuations are sampled; ``max_tokens`` counts the whole response.
        identities: what names each rollout, for its random numbers.

    Returns:
        By rollout and site, {kind: token ids of the whole response}.
    """
    branches: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    for rollout, found in enumerate(sites):
        for number, site in enumerate(found):
            for tokens in set(site.tokens.values()):
                branches[rollout, number, tokens] = [*responses[rollout][: site.position], *tokens]
    open_ones = [
        key for key, ids in sorted(branches.items()) if ids[-1] not in engine.stop_ids and len(ids) < params.max_tokens
    ]
    continuations = sample(
        engine,
        [[*prompts[key[0]], *branches[key]] for key in open_ones],
        params,
        [("continuation", *identities[key[0]], key[1]) for key in open_ones],
        limits=[params.max_tokens - len(branches[key]) for key in open_ones],
    )
    for key, continuation in zip(open_ones, continuations, strict=True):
        branches[key] = branches[key] + continuation
    return [
        [{kind: branches[rollout, n, tokens] for kind, tokens in site.tokens.items()} for n, site in enumerate(found)]
        for rollout, found in enumerate(sites)
    ]


def intervened(
    engine: Engine,
    judge: StepJudge | None,
    rollouts: Rollouts,
    sites: Sequence[Sequence[Site]],
    *,
    own: str,
) -> list[list[dict[str, Any]]]:
    """Continue the rollouts after every intervention, and measure what comes of it.

    Args:
        engine: the model.
        judge: of the steps of responses; None for no measures of steps.
        rollouts: the unmodified ones; continuations are sampled as they were.
        sites: those of each rollout; ``tokens`` of each has ``own``.
        own: the kind that the others are compared with, such as the student's own draw.

    Returns:
        By rollout, one record for each site and kind: bucket, kind, position, whether the tokens are others than those
        of ``own``, ``markers_on``, the number of epistemic markers from the position on, and the measures.
    """
    asked, ids = rollouts.asked, rollouts.ids
    finished = finish(engine, rollouts.prompts, ids, sites, rollouts.params, rollouts.identities)
    flat = [
        (i, site, kind, as_response(engine, branch[kind]))
        for i, (found, branches) in enumerate(zip(sites, finished, strict=True))
        for site, branch in zip(found, branches, strict=True)
        for kind in site.tokens
    ]
    verdicts = grade(engine, [response.text for *_, response in flat], [asked[i][0] for i, *_ in flat])
    steps = judge_steps(judge, [(asked[i][0].row["problem"], response.text) for i, *_, response in flat])
    outcomes: list[list[dict[str, Any]]] = [[] for _ in asked]
    for (i, site, kind, response), verdict, judged in zip(flat, verdicts, steps, strict=True):
        onward = as_response(engine, response.ids[site.position :]).text
        outcomes[i].append(
            {
                "bucket": site.bucket,
                "kind": kind,
                "position": site.position,
                "changed": site.tokens[kind] != site.tokens[own],
                "markers_on": count_markers(onward),
                **measures(judged, response.text, len(response.ids), verdict),
            }
        )
    return outcomes


# --- what is counted --------------------------------------------------------------------------------------------------

SENTENCES = {
    "ungraded": "responses could not be graded (time-out or error) and are left out of the accuracies",
    "references_cut": "rollouts had a reference that did not fit teacher.max_prompt_length and was cut",
    "unfinished": "rollouts reached max_tokens without ending",
    "without_steps": "responses have no step that can be checked and are left out of StepAcc",
}


def counts(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How much was measured, and how much of it was left out.

    Args:
        records: one for each rollout, with its interventions.
    """
    outcomes = [o for r in records for o in (r["unmodified"], *r["interventions"])]
    return {
        "problems": len({r["problem"] for r in records}),
        "rollouts": len(records),
        "unfinished": sum(not r["finished"] for r in records),
        "references_cut": sum(r["reference_cut"] for r in records),
        "responses_graded": len(outcomes),
        "ungraded": sum(o["accuracy"] is None for o in outcomes),
        "without_steps": sum(o["step_acc"] is None for o in outcomes),
    }


def notes(found: dict[str, int], sentences: dict[str, str] = SENTENCES) -> list[str]:
    """Sentences for those counts that change how the results are to be read.

    Args:
        found: the counts by name.
        sentences: what is said of each that is above 0, after the number.
    """
    return [f"{found[key]} {sentence}" for key, sentence in sentences.items() if found[key]]
