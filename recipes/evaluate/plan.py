"""From a configuration to what exactly will be done, or to a list of everything that is wrong with it.

Nothing is started and no weights are loaded here, so a mistake costs seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from recipes.common.checks.errors import SettingsError
from recipes.common.checks.machine import vllm_is_for_cpus
from recipes.common.models import Located
from recipes.common.record.run_dir import write_atomically
from recipes.common.teacher.prompts import render
from recipes.evaluate import server
from recipes.evaluate.checkpoints import CHOICES, VALIDATION, Trained, trained_runs
from recipes.evaluate.members import (
    Member,
    local_members,
    named_models,
    server_members,
    texts,
    vanished,
    with_fingerprints,
    with_teachers,
)
from recipes.evaluate.metrics import default_ks
from recipes.evaluate.problems import Problem, ProblemSet, load_sets, prompt_problems
from recipes.evaluate.teacher import privileged_messages, teacher_problems
from rewards.code import CodeOptions
from rewards.options import RewardOptions
from rewards.pool import GradingSetupError
from workers.rollout.generation import SamplingParams

if TYPE_CHECKING:
    pass

SETTINGS = "evaluation.json"
GRADING_THREADS = 8  # they wait for the grading children


@dataclass(frozen=True)
class Plan:
    """All that an evaluation needs; ``settings`` is what its results depend on apart from models, sets and seeds.

    ``selection``: on what the best checkpoint is chosen, see `checkpoints.best`; ``trained``: what runs say of their
    own steps, by label; ``notes``: what a reader of the results should know of how the models were chosen.
    """

    directory: Path
    members: tuple[Member, ...]
    sets: tuple[ProblemSet, ...]
    seeds: tuple[int, ...]
    samples: int
    params: SamplingParams
    template_kwargs: dict[str, Any]
    reward_kwargs: dict[str, Any]
    ks: tuple[int, ...]
    engine: str
    workers: int
    dtype: str
    gpus: int
    settings: dict[str, Any]
    compare: tuple[Path, ...]
    code: CodeOptions = field(default_factory=CodeOptions)
    server: server.ServerOptions | None = None
    selection: str | None = None
    trained: Mapping[str, Trained] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def messages(self, member: Member, problem: Problem) -> list[dict[str, str]]:
        """A problem's chat as the member is asked it."""
        if member.privileged is None:
            return problem.messages
        return privileged_messages(problem, member.privileged, member.tokenizer)

    def prompt(self, member: Member, problem: Problem) -> list[int]:
        """A problem's prompt as the member reads it: token ids up to where the assistant speaks."""
        if member.tokenizer is None:
            raise ValueError(f"{member.located} has no tokenizer here")
        return render(member.tokenizer, self.messages(member, problem), self.template_kwargs)

    def tasks(self, member: Member, done: set[Any]) -> list[tuple[int, ProblemSet, Problem]]:
        """(seed, set, problem) still to be sampled by a member; ``done`` holds keys as `result_key` makes them."""
        return [
            (seed, problem_set, problem)
            for seed in self.seeds
            for problem_set in self.sets
            for problem in problem_set.problems
            if (member.fingerprint, seed, problem_set.name, problem.id) not in done
        ]


def result_key(record: dict[str, Any]) -> tuple:
    """What a record of results.jsonl answers."""
    return record["model"], record["seed"], record["data"], record["id"]


def make_plan(cfg: DictConfig, directory: Path, gpus: int) -> Plan:
    """Check the configuration and everything it points to.

    Args:
        directory: where the evaluation writes.
        gpus: of this machine.

    Raises:
        SettingsError: listing every problem found.
    """
    problems = list(_value_problems(cfg, gpus))
    sets: list[ProblemSet] = []
    members: list[Member] = []
    notes: list[str] = []
    try:
        templates = {name: text for name, text in _prompts(cfg).items() if isinstance(text, str)}  # others: below
        sets = load_sets(texts(cfg.data), cfg.data_dir, cfg.limit, templates)
        problems += prompt_problems(_prompts(cfg), sets)
    except SettingsError as error:
        problems += error.problems
    problems += teacher_problems(cfg.teacher.context, cfg.teacher.exposures, sets)
    try:
        members, notes = server_members(cfg) if cfg.engine == server.ENGINE else local_members(cfg)
    except SettingsError as error:
        problems += error.problems
    if cfg.selection not in (None, VALIDATION) and sets and cfg.selection not in [s.name for s in sets]:
        problems.append(
            f"selection={cfg.selection}: must be one of the sets ({', '.join(s.name for s in sets)}), {VALIDATION} for "
            "the run's own validation, or null"
        )
    problems += [
        f"compare={place}: no {SETTINGS} and results there; give the directory of an evaluation"
        for place in texts(cfg.compare)
        if not ((Path(place) / SETTINGS).exists() and (Path(place) / "results.jsonl").exists())
    ]
    if problems:
        raise SettingsError(problems)
    code = CodeOptions.from_kwargs(
        {**_plain(cfg.code), "children": cfg.code.children or min(GRADING_THREADS, os.cpu_count() or 1)}
    )
    if any(p.grader == "code" for s in sets for p in s.problems):
        try:
            code.pool.check()  # before hours of sampling, not after
        except GradingSetupError as error:
            held = ", ".join(s.name for s in sets if any(p.grader == "code" for p in s.problems))
            raise SettingsError([f"{held}: {error}"]) from error

    engine = cfg.engine if cfg.engine != "auto" else ("vllm" if gpus else "transformers")
    workers = cfg.workers or max(1, gpus // (cfg.vllm.tensor_parallel_size if engine == "vllm" else 1))
    settings = {
        **{key: cfg[key] for key in ("samples", "temperature", "top_p", "top_k", "max_tokens", "tokenizer")},
        "template_kwargs": _plain(cfg.template_kwargs),
        "reward_kwargs": _plain(cfg.reward_kwargs),
        "code": {key: value for key, value in _plain(cfg.code).items() if key != "children"},
        "prompts": _prompts(cfg),
        "engine": engine,
        "dtype": cfg.dtype if cfg.dtype != "auto" or gpus else "float32",
    }
    members, left_out = with_fingerprints(members)
    members = list(with_teachers([*members, *vanished(members, read_settings(directory))], cfg.teacher))
    plan = Plan(
        directory=directory,
        members=tuple(members),
        sets=tuple(sets),
        seeds=tuple(cfg.seeds),
        samples=cfg.samples,
        params=SamplingParams(cfg.temperature, cfg.top_p, cfg.top_k, cfg.max_tokens, logprobs=False),
        template_kwargs=settings["template_kwargs"],
        reward_kwargs=settings["reward_kwargs"],
        code=code,
        ks=tuple(cfg.k) if cfg.k is not None else tuple(default_ks(cfg.samples)),
        engine=engine,
        workers=workers,
        dtype=settings["dtype"],
        gpus=gpus,
        settings=settings,
        compare=tuple(Path(place) for place in texts(cfg.compare)),
        server=server.ServerOptions.of(cfg) if engine == server.ENGINE else None,
        selection=cfg.selection,
        trained=trained_runs((m.run, m.located.name) for m in members if m.run is not None),
        notes=(*notes, *left_out),
    )
    problems = [*_duplicates(plan), *_length_problems(plan), *_differs_from_before(plan)]
    if problems:
        raise SettingsError(problems)
    return plan


def _plain(node: DictConfig | None) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(node, resolve=True) if node else {}
    return dict(plain)


def _prompts(cfg: DictConfig) -> dict[str, Any]:
    return {name: template for name, template in _plain(cfg.prompts).items() if template is not None}


def _value_problems(cfg: DictConfig, gpus: int) -> Iterator[str]:
    if cfg.samples < 1:
        yield f"samples={cfg.samples}: must be at least 1"
    for k in cfg.k or []:
        if not 1 <= k <= cfg.samples:
            yield f"k={k} with samples={cfg.samples}: Pass@k needs 1 <= k <= samples; set samples={k} or leave it out"
    try:
        SamplingParams(cfg.temperature, cfg.top_p, cfg.top_k, cfg.max_tokens)
    except ValueError as error:
        yield str(error)
    if cfg.temperature == 0 and cfg.samples > 1:
        yield f"temperature=0 with samples={cfg.samples}: greedy samples are all the same; set samples=1"
    try:
        RewardOptions.from_kwargs(_plain(cfg.reward_kwargs))
        CodeOptions.from_kwargs(_plain(cfg.code))
    except (ValueError, TypeError) as error:
        yield str(error)
    seeds = list(cfg.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        yield f"seeds={seeds}: needs at least one seed, each once"
    if not 0 < cfg.prm_threshold < 1:
        yield f"prm_threshold={cfg.prm_threshold}: a probability, between 0 and 1"
    if cfg.prm_gpus < 1 or cfg.prm_gpus > max(1, gpus):
        yield f"prm_gpus={cfg.prm_gpus}: must be from 1 to the GPUs of this machine, {gpus}"
    if cfg.limit is not None and cfg.limit < 1:
        yield f"limit={cfg.limit}: must be at least 1, or null for all problems"
    if cfg.batch_size < 1:
        yield f"batch_size={cfg.batch_size}: must be at least 1"
    if cfg.workers is not None and cfg.workers < 1:
        yield f"workers={cfg.workers}: must be at least 1, or null"
    if cfg.checkpoints not in CHOICES:
        yield f"checkpoints={cfg.checkpoints}: must be {', '.join(CHOICES)}"
    elif cfg.selection is not None and cfg.checkpoints != "all":
        yield (
            f"selection={cfg.selection} with checkpoints={cfg.checkpoints}: there is nothing to choose; set "
            "checkpoints=all"
        )
    if cfg.engine != server.ENGINE and cfg.base_url is not None:
        yield f"base_url={cfg.base_url} with engine={cfg.engine}: only engine={server.ENGINE} asks a server"
    if cfg.engine not in ("auto", "vllm", "transformers", server.ENGINE):
        yield f"engine={cfg.engine}: must be auto, vllm, transformers or {server.ENGINE}"
    elif cfg.engine == "vllm" and not gpus and not vllm_is_for_cpus():
        yield "engine=vllm, but this machine has no GPU that torch can use; set engine=transformers"
    for key, names in (("data", texts(cfg.data)), ("model", [n for _, n in named_models(cfg.model)])):
        if not names:
            yield f"{key}= is empty: give at least one"


def _duplicates(plan: Plan) -> Iterator[str]:
    seen: dict[str, Member] = {}
    for member in plan.members:
        first = seen.setdefault(member.fingerprint, member)
        if first is not member:
            yield (
                f"model={member.located.name} has the same weights as {first.located.name}: it would be compared with "
                "itself; leave one out"
            )


def _length_problems(plan: Plan) -> Iterator[str]:
    """Prompt and response must fit into what the model was made for."""
    for member in plan.members:
        if member.tokenizer is None or member.located.kind == server.KIND:
            continue  # a server says itself what does not fit
        limit = context_of(member.located)
        longest = max(
            ((len(plan.prompt(member, p)), s.name, p.index) for s in plan.sets for p in s.problems), default=None
        )
        if limit is not None and longest is not None and longest[0] + plan.params.max_tokens > limit:
            length, name, index = longest
            room = limit - length
            yield (
                f"max_tokens={plan.params.max_tokens}: the prompt of {name}, row {index}, has {length} tokens, and "
                f"model={member.located.name} reads {limit} in all; "
                + (f"set max_tokens to at most {room}" if room > 0 else "its prompts do not fit")
            )


def context_of(located: Located) -> int | None:
    """Tokens that a model can read, prompt and response together; None where its configuration does not say."""
    from transformers import AutoConfig

    while located.base is not None:
        located = located.base
    path = str(Path(located.path) / "huggingface") if located.kind == "verl" else located.path
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _differs_from_before(plan: Plan) -> Iterator[str]:
    """An evaluation goes on only with the settings it was begun with."""
    before = read_settings(plan.directory)
    if before is None:
        return
    for key in changed_settings(plan, before):
        yield (
            f"{key}={plan.settings[key]}, but {plan.directory} was begun with {before['settings'].get(key)}; go on "
            "with that, or choose another hydra.run.dir"
        )
    for problem_set in plan.sets:
        known = before["data"].get(problem_set.name)
        if known and known["sha256"] != problem_set.sha256:
            yield (
                f"{problem_set.file} is not the file that {plan.directory} was begun with under the name "
                f"{problem_set.name}; restore it, or choose another hydra.run.dir"
            )


def read_settings(directory: Path) -> dict[str, Any] | None:
    """What an evaluation directory was begun with, or None where there is none."""
    path = directory / SETTINGS
    return json.loads(path.read_text()) if path.exists() else None


def changed_settings(plan: Plan, before: dict[str, Any]) -> list[str]:
    """Settings of a plan that an earlier evaluation was not begun with."""
    # Evaluations from before there were these asked with the prepared prompts, and ran no program.
    known = {"prompts": {}, "code": plan.settings.get("code"), **before["settings"]}
    return [key for key, value in plan.settings.items() if known.get(key) != value]


def write_settings(plan: Plan) -> None:
    """Note settings, sets and models for those who go on with, or compare with, this evaluation."""
    before = read_settings(plan.directory) or {"data": {}, "models": {}}
    data = {s.name: {"file": s.file, "sha256": s.sha256} for s in plan.sets}
    models = {
        m.fingerprint: {
            "label": m.label,
            "name": m.located.name,
            "kind": m.located.kind,
            "step": m.located.step,
            **({"run": m.run} if m.run is not None else {}),
        }
        for m in plan.members
    }
    content = {
        "settings": plan.settings,
        "data": {**before["data"], **data},
        "models": {**before["models"], **models},
    }
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.directory / SETTINGS, json.dumps(content, indent=2) + "\n")
