"""The one model in both of its parts: it samples as the student, and gives logits of a response after either prompt.

What the diagnostics share and nothing else.  A response's tokens are never re-tokenised: teacher and student read
their own prompt's ids followed by the same response ids, and row t of either's logits is the distribution from which
token t was, or would have been, drawn.  With engine=vllm a second copy of the model samples (`vllm_rollouts`); logits
always come from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from recipes.common.checks.errors import SettingsError
from recipes.common.teacher.prompts import render, student_messages
from recipes.diagnose.vllm_rollouts import VLLM, vllm_of
from recipes.evaluate.members import texts
from rewards.by_grader import compute_score, grader_of
from rewards.code import CodeOptions, task_of
from rewards.grader import gold_text
from rewards.pool import GradingSetupError
from workers.rollout.generation import SamplingParams, generate_batch, response_seed, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """A loaded model with what sampling from it needs.

    Attributes:
        model: a causal language model of transformers.
        tokenizer: its own.
        stop_ids: ids that end a response.
        pad_id: id that fills batches.
        tokens_per_pass: sequences × longest sequence of one forward pass.
        code: options of rewards.code, for sets of programs.
        vllm: samples in the model's place; None: the model itself.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    pad_id: int
    tokens_per_pass: int
    code: dict[str, Any] = field(default_factory=dict)
    vllm: VLLM | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Response:
    """A sampled response.

    Attributes:
        ids: token ids, with the stop token if it ended.
        text: without special tokens.
        finished: whether it ended before the limit.
    """

    ids: list[int]
    text: str
    finished: bool


@dataclass(frozen=True)
class Problem:
    """A row of the data with its student's prompt.

    Attributes:
        index: its place among the rows that are read of all files, which names it everywhere.
        row: its columns.
        prompt: token ids of the student's prompt.
        source: what its file is called: the name of its set, or the file's path where two of them have that name.
    """

    index: int
    row: dict[str, Any]
    prompt: list[int]
    source: str = ""

    @property
    def gold(self) -> Any:
        """What its grader compares with; of a file that was not prepared, its answer."""
        return (self.row.get("reward_model") or {}).get("ground_truth") or self.row.get("answer")

    @property
    def grader(self) -> str:
        """One of rewards.by_grader.GRADERS.

        Raises:
            ValueError: if the row names another.
        """
        return grader_of(self.row.get("extra_info"))


def load_model(name: str, *, merged: Path, device: str, dtype: str, tokens_per_pass: int) -> Engine:
    """Load a model to sample and to score with: all that `recipes.common.models.locate` knows, so also run directories.

    Args:
        name: as the command has it.
        merged: where the whole weights of a checkpoint or an adapter are written; other models leave it alone.
        device: "cpu" or "cuda".
        dtype: one of `DTYPES`.
        tokens_per_pass: sequences × longest sequence of one forward pass.

    Raises:
        SettingsError: if it cannot be loaded, its tokenizer has no chat template, or the device is not there.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from recipes.common.models import load_tokenizer, locate, materialize

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError([f"device={device}: this machine has no CUDA device; use device=cpu"])
    if dtype not in DTYPES:
        raise SettingsError([f"dtype={dtype}: must be one of {', '.join(DTYPES)}"])
    disable_progress_bar()  # of the weights: on the starter it is most of the console
    located = locate(name)
    tokenizer = load_tokenizer(located, None)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            materialize(located, merged), dtype=DTYPES[dtype], attn_implementation="sdpa", trust_remote_code=False
        )
    except SettingsError:
        raise
    except Exception as error:  # corrupt weights raise whatever their parser raises
        raise SettingsError([f"model={name} cannot be loaded: {(str(error).splitlines() or [''])[0]}"]) from error
    stops = stop_token_ids(tokenizer, model.generation_config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model = model.to(device).eval()  # type: ignore[arg-type]
    if device == "cpu":
        from workers.cpu.products import use_onednn

        use_onednn(model.config)
    return Engine(model, tokenizer, stops, pad, tokens_per_pass)


def engine_of(cfg: DictConfig) -> Engine:
    """Load the model that a diagnostic's configuration names."""
    engine = load_model(
        cfg.model,
        merged=Path(cfg.out) / "model",
        device=cfg.device,
        dtype=cfg.dtype,
        tokens_per_pass=cfg.tokens_per_pass,
    )
    return replace(engine, code=dict(cfg.code or {}))


def material(cfg: DictConfig, wrong: list[str]) -> tuple[Engine, list[Problem], Any]:
    """Load the model, the problems and the teacher's prompts of a diagnostic, after its own checks.

    Args:
        cfg: the diagnostic's configuration.
        wrong: sentences that those checks found.

    Returns:
        Model, problems, and the maker of privileged prompts.

    Raises:
        SettingsError: if those checks found anything, or `load_problems` or `teacher_prompts` refuse.
    """
    if wrong:
        raise SettingsError(wrong)
    engine = engine_of(cfg)
    kwargs = dict(cfg.template_kwargs)
    problems = load_problems(cfg.data, cfg.limit, engine, kwargs, data_dir=cfg.data_dir)
    if cfg.engine == "vllm":
        longest = max(len(problem.prompt) for problem in problems)
        engine = replace(engine, vllm=vllm_of(cfg, engine.stop_ids, engine.pad_id, longest))
    teacher = teacher_prompts(
        engine, problems, context=cfg.teacher.context, max_length=cfg.teacher.max_prompt_length, template_kwargs=kwargs
    )
    return engine, problems, teacher


def load_problems(
    entries: str | Sequence[str],
    count: int | None,
    engine: Engine,
    template_kwargs: dict[str, Any],
    *,
    data_dir: str = "data",
) -> list[Problem]:
    """Read the first rows of prepared sets or parquet files (`recipes.data.prepare`), one after the other.

    Args:
        entries: one or several names of prepared sets, parquet files, or folders with test.parquet.
        count: number of rows of each; None for all.
        engine: the model, whose tokenizer renders the prompts.
        template_kwargs: options of its chat template.
        data_dir: where prepared sets are.

    Raises:
        SettingsError: if one of them is not there, stands twice, or has no rows, or a row that cannot be graded.
    """
    from recipes.evaluate.problems import find_file

    files = [find_file(entry, data_dir) for entry in texts(entries)]
    if not files:
        raise SettingsError(["data= is empty: give at least one file"])
    twice = {str(path) for path in files if files.count(path) > 1}
    if twice:
        raise SettingsError([f"data: {', '.join(sorted(twice))} stands there twice; give each file once"])
    rows = [_rows(path, count) for path in files]
    named = [
        {str(row.get("data_source") or path) for row in of_file} for path, of_file in zip(files, rows, strict=True)
    ]
    problems: list[Problem] = []
    for path, of_file, names in zip(files, rows, named, strict=True):
        source = next(iter(names)) if len(names) == 1 and named.count(names) == 1 else str(path)
        for place, row in enumerate(of_file):
            messages = [dict(turn) for turn in row.get("prompt") or []] or student_messages(row["problem"])
            problem = Problem(len(problems), row, render(engine.tokenizer, messages, template_kwargs), source)
            try:
                gradable = gold_text(problem.gold) and (problem.grader != "code" or task_of(problem.gold) is not None)
            except ValueError as error:
                raise SettingsError([f"data={path}: {error}"]) from error
            if not gradable:
                raise SettingsError([f"data={path}: row {place} has no answer, so no response to it can be graded"])
            problems.append(problem)
    try:
        options = CodeOptions.from_kwargs(engine.code)
        if any(problem.grader == "code" for problem in problems):
            options.pool.check()  # before minutes of sampling, not after
    except (ValueError, GradingSetupError) as error:
        raise SettingsError([f"code: {error}"]) from error
    return problems


def _rows(path: Path, count: int | None) -> list[dict[str, Any]]:
    """The first rows of a file.

    Raises:
        SettingsError: if it cannot be read, or has none.
    """
    from recipes.data.readers import DataError
    from recipes.data.validate import read_rows

    try:
        rows = list(islice(read_rows(path), count))
    except (DataError, ValueError) as error:
        raise SettingsError([f"data={path}: {error}"]) from error
    if not rows:
        raise SettingsError([f"data={path} has no rows"])
    return rows


def teacher_prompts(
    engine: Engine, problems: Sequence[Problem], *, context: str, max_length: int, template_kwargs: dict[str, Any]
) -> Any:
    """Make a `PrivilegedPrompts`, once it is known that every problem has what the teacher is to be shown.

    Args:
        engine: the model, whose tokenizer renders the prompts.
        problems: all that will be measured.
        context: "solution" or "answer".
        max_length: longest privileged prompt, tokens.
        template_kwargs: options of the chat template.

    Raises:
        SettingsError: if the context is another, or rows lack it; names the first of them.
    """
    from recipes.common.teacher.contexts import MissingReference, PrivilegedPrompts, reference_of

    if context not in ("solution", "answer"):
        raise SettingsError([f"teacher.context={context}: must be solution or answer"])
    missing = []
    for problem in problems:
        try:
            reference_of(problem.row, context)
        except MissingReference:
            missing.append(problem)
    if missing:
        several = f" of all, in {missing[0].source}" if len({p.source for p in problems}) > 1 else ""
        raise SettingsError(
            [f"{len(missing)} of {len(problems)} rows have no {context} for the teacher to see, the first is row "
             f"{missing[0].index}{several}; use teacher.context={'answer' if context == 'solution' else 'solution'} or "
             "other data"]
        )  # fmt: skip
    return PrivilegedPrompts(engine.tokenizer, context, max_length, template_kwargs)


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    identities: Sequence[tuple],
    *,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Sample one continuation of each prompt, as ids with the stop token if it came.

    Args:
        engine: the model.
        prompts: token ids of each.
        params: how all of them are sampled.
        identities: what names each request (seed, problem, …); its random numbers are a function of it alone.
        limits: the longest continuation of each request, at least 1; ``params.max_tokens`` for all by default.
    """
    limits = list(limits) if limits is not None else [params.max_tokens] * len(prompts)
    if engine.vllm is not None:
        return engine.vllm.sample(prompts, params, [response_seed(*identity) for identity in identities], limits)
    # Long ones together, so that a batch ends early; results come back in the caller's order.
    order = sorted(range(len(prompts)), key=lambda i: -limits[i])
    found: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(order, [len(p) + limit for p, limit in zip(prompts, limits, strict=True)], engine):
        generated = generate_batch(
            engine.model,
            [prompts[i] for i in batch],
            replace(params, max_tokens=max(limits[i] for i in batch), logprobs=False),
            [response_seed(*identities[i]) for i in batch],
            stop_token_ids=engine.stop_ids,
            pad_token_id=engine.pad_id,
        )
        for i, one in zip(batch, generated, strict=True):
            found[i] = one.token_ids[: limits[i]]
    return found


def respond(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, identities: Sequence[tuple]
) -> list[Response]:
    """Sample a full response to each prompt; arguments are those of `sample`.

    Args:
        engine: the model.
        prompts: token ids of each.
        params: how all of them are sampled.
        identities: what names each request, for its random numbers.
    """
    return [as_response(engine, ids) for ids in sample(engine, prompts, params, identities)]


def as_response(engine: Engine, ids: Sequence[int]) -> Response:
    """A response from its ids.

    Args:
        engine: the model, for its tokenizer and stops.
        ids: token ids of the whole response.
    """
    text = str(engine.tokenizer.decode(list(ids), skip_special_tokens=True))
    return Response(list(ids), text, bool(ids) and ids[-1] in engine.stop_ids)


def grade(engine: Engine, texts: Sequence[str], problems: Sequence[Problem]) -> list[bool | None]:
    """Whether each response is right, by its problem's own grader; None where that could not tell (time-out, error).

    Args:
        engine: has the options for programs.
        texts: the responses.
        problems: what each answers.

    Returns:
        A verdict for each; callers count those that are None.
    """

    def one(text: str, problem: Problem) -> bool | None:
        extra = problem.row.get("extra_info")
        verdict = compute_score("diagnose", text, problem.gold, extra, code=engine.code)
        return None if verdict["status"] in ("timeout", "error") else verdict["acc"] == 1.0

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, texts, problems))


# --- scoring ----------------------------------------------------------------------------------------------------------


def scoring_batches(engine: Engine, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Batches of sequences that fit one forward pass, as lists of indices, similar lengths together.

    Args:
        engine: the model; `tokens_per_pass` is its limit.
        lengths: tokens of each sequence.
    """
    yield from _batches(sorted(range(len(lengths)), key=lambda i: lengths[i]), lengths, engine)


def response_logits(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    forward: Callable[..., Any] | None = None,
) -> list[Tensor]:
    """Logits over each response, from one forward pass.

    Sequences are padded on the left, so that all responses end in the same column and only their rows need logits.  The
    result carries gradients where the caller enabled them.

    Args:
        engine: the model.
        prompts: token ids of each.
        responses: token ids of each, read after its prompt.
        forward: what is called in the model's place, with the same arguments.

    Returns:
        A (L_i, V) fp32 tensor for each response; row t is the distribution of its token t.
    """
    sequences = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    width, longest = max(map(len, sequences)), max(map(len, responses))
    ids = torch.full((len(sequences), width), engine.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.as_tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = (forward or engine.model)(
        ids.to(engine.device),
        attention_mask=mask.to(engine.device),
        position_ids=positions.to(engine.device),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits
    # Column −1 would be the token after the response; row t predicts token t.
    return [logits[row, -1 - len(response) : -1].float() for row, response in enumerate(responses)]


@torch.no_grad()
def both_logits(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    privileged: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Logits over each response after either prompt, batch by batch; not in the caller's order.

    Args:
        engine: the model.
        prompts: token ids of the student's.
        privileged: of the teacher's.
        responses: of what both read.

    Yields:
        Index, and two (L, V) fp32 tensors: the student's and the teacher's.
    """
    for batch in scoring_batches(engine, [len(p) + len(r) for p, r in zip(privileged, responses, strict=True)]):
        read = [responses[i] for i in batch]
        student = response_logits(engine, [prompts[i] for i in batch], read)
        teacher = response_logits(engine, [privileged[i] for i in batch], read)
        yield from zip(batch, student, teacher, strict=True)


def _batches(order: Sequence[int], lengths: Sequence[int], engine: Engine) -> Iterator[list[int]]:
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if batch and longest * (len(batch) + 1) > engine.tokens_per_pass:
            yield batch
            batch, longest = [], lengths[i]
        batch.append(i)
    if batch:
        yield batch
