"""Carrying out a plan: sample what is missing, grade it, write each problem down as soon as it is complete."""

from __future__ import annotations

import contextlib
import operator
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from recipes.common.models import materialize
from recipes.evaluate import health, process_reward, server
from recipes.evaluate.members import Member
from recipes.evaluate.metrics import majority_vote
from recipes.evaluate.plan import GRADING_THREADS, Plan, result_key, write_settings
from recipes.evaluate.problems import Problem, ProblemSet
from recipes.evaluate.results import RESULTS, STEPS, Incidents, ResultsFile, read_records
from recipes.evaluate.sampling import (
    SAMPLERS,
    EngineOptions,
    on_ray,
    run_on_workers,
    seeds_of,
    start_workers,
    stop_on_sigterm,
    stop_workers,
)
from rewards.by_grader import compute_score
from rewards.code import judge, task_of
from rewards.grader import shared_grader
from workers.rollout.generation import stop_token_ids

if TYPE_CHECKING:
    from recipes.evaluate.console import EvaluationConsole

MERGED = "merged"  # folder of joined checkpoints
Graded = tuple[Member, int, ProblemSet, Problem]


def evaluate(cfg: DictConfig, plan: Plan, incidents: Incidents, console: EvaluationConsole) -> None:
    """Sample, grade and score steps.

    Args:
        cfg: the resolved configuration of config/evaluate.yaml.
        plan: made from it.
        incidents: is told what goes wrong without ending the evaluation.
        console: is told how far the evaluation is.

    Raises:
        SettingsError: if the directory is in use, a checkpoint cannot be merged, or the process reward model cannot be
            read.
        server.ServerError: if the server cannot be used.
        ray.exceptions.RayError: if a worker failed.  All that was complete before is on disk.
    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    with ResultsFile(plan.directory / RESULTS, result_key) as results:
        incidents.corrupt[RESULTS] = results.corrupt
        write_settings(plan)
        console.begin(plan, results)
        if cfg.prm is not None:
            process_reward.check(cfg.prm)  # before hours of sampling, not after
        if cfg.prm is None and not any(plan.tasks(member, results.done) for member in plan.members):
            return
        stop_on_sigterm()
        needs_workers = plan.engine != server.ENGINE or cfg.prm is not None
        with on_ray(plan.workers, plan.gpus) if needs_workers else contextlib.nullcontext():
            for member in plan.members:
                _sample_member(cfg, plan, member, results, incidents, console)
            if cfg.prm is not None:
                with ResultsFile(plan.directory / STEPS, lambda r: (r["prm"], *result_key(r))) as steps:
                    incidents.corrupt[STEPS] = steps.corrupt
                    _score_steps(cfg, plan, results.path, steps, console)


def _threads(plan: Plan) -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS", 0)) or (os.cpu_count() or 1) // plan.workers)


def _sample_member(
    cfg: DictConfig, plan: Plan, member: Member, results: ResultsFile, incidents: Incidents, console: EvaluationConsole
) -> None:
    """Sample, grade and write down what a member has not answered yet."""
    tasks = plan.tasks(member, results.done)
    if tasks and member.tokenizer is None and member.located.kind != server.KIND:
        return  # gone before this start: what it answered is in the summary, with a warning
    console.member(member, len(tasks))
    if not tasks:
        return
    count, began = {"responses": 0, "tokens": 0}, time.time()
    sample = _from_server if plan.engine == server.ENGINE else _from_workers
    try:
        answers = sample(cfg, plan, member, tasks, console)
        began = time.time()  # loading is no sampling
        with ThreadPoolExecutor(GRADING_THREADS) as graders, contextlib.closing(answers):
            for (seed, problem_set, problem), found in answers:
                if isinstance(found, server.Failed):
                    incidents.failed(member.label, member.fingerprint, found.reason)
                    console.problem_failed(found.reason)
                    continue
                record = grade(plan, problem, found, graders)
                results.append({"model": member.fingerprint, "seed": seed, "data": problem_set.name, **record})
                count["responses"] += len(found)
                count["tokens"] += sum(tokens for _, tokens, _ in found)
                console.problem_done(record, time.time() - began)
    except Exception as error:
        # Another process may delete old checkpoints while this one reads them: no reason to lose the other models.
        if member.there or member.run is None:
            raise
        left = len(plan.tasks(member, results.done))
        reason = f"its checkpoint vanished meanwhile ({member.located.path}: {type(error).__name__})"
        incidents.failed(member.label, member.fingerprint, reason, left)
        console.problem_failed(reason)
    finally:
        seconds = round(time.time() - began, 3)
        incidents.sampled.append({"label": member.label, "model": member.fingerprint, **count, "seconds": seconds})


Task = tuple[int, ProblemSet, Problem]
Answers = Generator[tuple[Task, "list[server.Answer] | server.Failed"], None, None]


def _from_server(
    cfg: DictConfig,
    plan: Plan,
    member: Member,
    tasks: list[Task],
    console: EvaluationConsole,
) -> Answers:
    assert plan.server is not None
    calls = ((task, (plan.messages(member, task[2]), seeds_of(task[0], task[2].id, plan.samples))) for task in tasks)
    return server.sample_from_server(
        plan.server, member.located.name, plan.params, plan.template_kwargs, calls, console.server_quiet
    )


def _from_workers(
    cfg: DictConfig,
    plan: Plan,
    member: Member,
    tasks: list[Task],
    console: EvaluationConsole,
) -> Answers:
    from transformers import GenerationConfig

    weights = member.fingerprint.partition("+")[0]  # a teacher has its student's
    folder = materialize(member.located, plan.directory / MERGED / weights)
    generation_config = None
    with contextlib.suppress(OSError):  # not every model has one
        generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer: Any = member.tokenizer
    stops = stop_token_ids(tokenizer, generation_config)
    prompts = {(s.name, p.id): plan.prompt(member, p) for _, s, p in tasks}
    options = EngineOptions(
        engine=plan.engine,
        dtype=plan.dtype,
        max_model_len=max(map(len, prompts.values())) + plan.params.max_tokens,
        tensor_parallel_size=cfg.vllm.tensor_parallel_size if plan.engine == "vllm" else 1,
        gpu_memory_utilization=cfg.vllm.gpu_memory_utilization,
        max_num_seqs=cfg.vllm.max_num_seqs,
        batch_size=cfg.batch_size,
        gpus=min(1, plan.gpus),
        threads=_threads(plan),
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0] if stops else 0
    count = min(plan.workers, len(tasks))
    workers = start_workers(SAMPLERS[plan.engine], count, options, (folder, stops, pad, plan.params, options))
    calls = ((task, (prompts[task[1].name, task[2].id], seeds_of(task[0], task[2].id, plan.samples))) for task in tasks)
    # Two calls wait at each worker, so that none idles while a result is graded; vLLM is kept full.
    in_flight = max(2, 2 * options.max_num_seqs // plan.samples) if plan.engine == "vllm" else 2

    def answers() -> Answers:
        for task, found in run_on_workers(workers, "sample", calls, in_flight):
            yield task, [(str(tokenizer.decode(ids, skip_special_tokens=True)), len(ids), stop) for ids, stop in found]
        stop_workers(workers)

    return answers()


def grade(plan: Plan, problem: Problem, answers: list[server.Answer], threads: ThreadPoolExecutor) -> dict[str, Any]:
    """Grade the answers to a problem.

    Args:
        plan: of the evaluation, for the graders' options.
        problem: the problem.
        answers: (text, number of tokens, "completed" or "length") each.
        threads: those in which to wait for the grading children.

    Returns:
        The problem's record for results.jsonl: its responses with their verdicts, and the vote among them.
    """
    texts = [text for text, _, _ in answers]

    def score(number: int) -> dict[str, Any]:
        if problem.grader == "code":
            status, _, _, verdict = judge(texts[number], problem.gold, plan.code)
            said = {"verdict": verdict.status, "extracted": f"{verdict.status} {verdict.how}".strip()}
            return {"status": status, **said}
        extra = {**problem.extra_info, "grader": problem.grader, "response_length": answers[number][1]}
        return compute_score(problem.source, texts[number], problem.gold, extra, math=plan.reward_kwargs)

    verdicts = list(threads.map(score, range(len(texts))))
    # A response without an answer is INVALID; so is nothing else.
    votes = [None if v["status"] == "no_answer" else v["extracted"] for v in verdicts]
    same = _equivalent if problem.grader == "math" else operator.eq
    task = task_of(problem.gold) if problem.grader == "code" else None
    return {
        "index": problem.index,
        "id": problem.id,
        "problem": problem.text,
        "source": problem.source,
        "grader": problem.grader,
        "difficulty": problem.difficulty,
        "gold": f"tests of {task.entry_point}" if task else problem.gold,
        "responses": [
            {
                "text": text,
                "tokens": tokens,
                "stop": stop,
                **{key: verdict[key] for key in ("status", "extracted", "verdict") if key in verdict},
            }
            for (text, tokens, stop), verdict in zip(answers, verdicts, strict=True)
        ],
        "majority": majority_vote(votes, same) if task is None else None,  # programs do not vote
    }


def _equivalent(one: str, other: str) -> bool:
    return shared_grader().grade(one, other).status == "correct"


def _score_steps(cfg: DictConfig, plan: Plan, results: Path, steps: ResultsFile, console: EvaluationConsole) -> None:
    """Judge the steps of every response of the plan with the process reward model."""
    wanted = {(m.fingerprint, seed, s.name) for m in plan.members for seed in plan.seeds for s in plan.sets}

    def todo() -> Iterator[tuple[dict[str, Any], tuple]]:
        for record in read_records(results):
            if record is None or (record["model"], record["seed"], record["data"]) not in wanted:
                continue
            if (cfg.prm, *result_key(record)) not in steps.done:
                yield record, (record["problem"], [health.split_steps(r["text"]) for r in record["responses"]])

    total = sum(1 for _ in todo())
    console.step_scoring(cfg.prm, total)
    if not total:
        return
    gpus = min(cfg.prm_gpus, plan.gpus)
    options = EngineOptions("transformers", "bfloat16" if gpus else "float32", None, gpus=gpus)
    workers = start_workers(
        process_reward.ProcessRewardScorer,
        min(plan.gpus // gpus if gpus else plan.workers, total),
        options,
        (cfg.prm, options.dtype, gpus, _threads(plan)),
    )
    for record, scores in run_on_workers(workers, "score", todo(), 2):
        lengths = [len(health.split_steps(r["text"])) for r in record["responses"]]
        unscored = sum(lengths) - sum(map(len, scores))
        key = {name: record[name] for name in ("model", "seed", "data", "id")}
        steps.append({**key, "prm": cfg.prm, "scores": scores, "unscored": unscored})
        console.problem_scored()
    stop_workers(workers)
