"""Refusals of data: what is wrong with the files of a run is seen in seconds, before Ray starts.

`data` opens every file that the run will read.  It looks at schemas and row counts first, reads one column for
empty references, and renders a few hundred prompts, the shortest or the longest, for their length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig

from config import CONFIG_DIR
from recipes.common.method import Method
from recipes.common.teacher.contexts import ALWAYS_THERE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDERED = 256  # prompts whose length is counted
SECONDS = 10.0  # after which no further prompt is rendered: what was seen until then decides
_KNOWN_SETS = CONFIG_DIR / "dataset"
_OWN_REWARDS = "pkg://rewards.math"
_RAW = (".jsonl", ".json", ".csv")  # what `prepare` reads, also packed
_PREPARE = "python -m recipes.data.prepare"


def data(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Refuse training, validation and probe files that verl, the reward or the teacher could not use.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn; it says which columns the teacher is shown.
    """
    for key, files in (("data.train_files", cfg.data.train_files), ("data.val_files", cfg.data.val_files)):
        if not (isinstance(files, str | list | ListConfig) and files and all(isinstance(f, str) and f for f in files)):
            yield f"{key}={files}: must be a prepared parquet file, or a list of them; {_PREPARE} makes one"
            continue
        listed = [files] if isinstance(files, str) else list(files)
        here = [file for file in listed if "://" not in file]  # hdfs:// is verl's to read
        yield from _file_problems(cfg, method, key, here)
    yield from _probe_problems(cfg)
    yield from _teacher_validation_problems(cfg, method)


def _file_problems(cfg: DictConfig, method: Method, key: str, files: list[str]) -> Iterator[str]:
    paths = [Path(file).expanduser() for file in files]
    if cfg.data.custom_cls.path is not None:  # a dataset class of the user's reads whatever it reads
        yield from (f"{key}: {path} does not exist" for path in paths if not path.exists())
        return
    found = [f"{key}: {problem}" for path in paths if (problem := unreadable(path))]
    yield from found
    if found or not paths:
        return
    schemas = {path: pq.read_schema(path) for path in paths}
    found = [f"{key}: {path} {wrong}" for path in paths for wrong in _columns(cfg, method, key, path, schemas[path])]
    found += [f"{key}: {problem}" for problem in _differing(schemas)]
    yield from found
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    if key == "data.train_files":
        used, limit, batch = rows, cfg.data.get("train_max_samples", -1), _batch(cfg)
        if isinstance(limit, int) and 0 < limit < rows:
            used = limit
        if used < batch:
            what = "rows" if used == rows else f"rows by data.train_max_samples, of {rows},"
            yield (
                f"{key}: {used} {what} are fewer than data.train_batch_size={batch}, so there would be no step; set "
                "data.train_batch_size and actor_rollout_ref.actor.ppo_mini_batch_size to at most "
                f"{used}, or prepare more data"
            )
        elif batch:
            yield from _epoch_problems(cfg, used // batch)
    if not found:
        yield from _length_problems(cfg, key, paths, rows)


def _epoch_problems(cfg: DictConfig, steps: int) -> Iterator[str]:
    """Refuse more steps than the epochs have: verl ends with them, before the last step is saved and validated.

    Args:
        cfg: the resolved configuration.
        steps: how many one epoch has.
    """
    wanted, epochs = cfg.trainer.total_training_steps, cfg.trainer.total_epochs
    if isinstance(wanted, int) and isinstance(epochs, int) and wanted > steps * epochs:
        yield (
            f"trainer.total_epochs={epochs}: the data are {steps} steps an epoch, so the run would end after "
            f"{steps * epochs} of trainer.total_training_steps={wanted}, without its last checkpoint and validation; "
            f"set trainer.total_epochs to at least {-(-wanted // steps)}"
        )


def _batch(cfg: DictConfig) -> int:
    """Prompts of a step; 0 where the value is no number, which another check reports."""
    return cfg.data.train_batch_size if isinstance(cfg.data.train_batch_size, int) else 0


def unreadable(path: Path) -> str | None:
    """Why a path is no parquet file with rows, and what to do; None if it is one."""
    if not path.exists():
        folder = path.parent
        there = sorted(p.name for p in folder.glob("*.parquet")) if folder.is_dir() else []
        known = (_KNOWN_SETS / f"{folder.name}.yaml").exists()
        fix = f"{_PREPARE} dataset={folder.name} out={folder.parent}" if known else f"{_PREPARE} writes such files"
        return f"{path} does not exist; " + (f"beside it there are {', '.join(there)}; " if there else "") + fix
    if path.is_dir():
        there = sorted(p.name for p in path.glob("*.parquet"))
        return f"{path} is a directory; name the file" + (f": {', '.join(there)}" if there else "")
    if path.suffix != ".parquet":
        if path.name.lower().removesuffix(".gz").endswith(_RAW):
            return (
                f"{path} is data as they were collected, and training reads prepared parquet files: "
                f"{_PREPARE} dataset=local file={path}"
            )
        return f"{path} is no .parquet file, and verl goes by the name; {_PREPARE} makes one of other data"
    try:
        if pq.read_metadata(path).num_rows == 0:
            return f"{path} has no rows; prepare it again with {_PREPARE}"
    except (pa.ArrowException, OSError) as error:
        reason = "it is empty" if path.stat().st_size == 0 else str(error).splitlines()[0]
        return f"{path} cannot be read as parquet ({reason}); prepare it again with {_PREPARE}"
    return None


def _columns(cfg: DictConfig, method: Method, key: str, path: Path, schema: pa.Schema) -> Iterator[str]:
    """What verl, the reward and the teacher need and do not find, each to follow the file's name."""
    prompt, shown = cfg.data.prompt_key, set()
    if key == "data.train_files" and method.uses_teacher:
        shown = set(method.contexts.named) & {"solution", "answer", "hint", "feedback"}
    if cfg.reward.custom_reward_function.path != _OWN_REWARDS:  # another reward function may give feedback itself
        shown.discard("feedback")
    if key == "data.train_files" and method.trains_references:
        shown.add("solution")
    # The answer may be the verifier's ground truth.
    required = [prompt, cfg.data.reward_fn_key, "reward_model", *sorted(shown - {"answer"})]
    absent = [name for name in required if name not in schema.names]
    if absent:
        hint = ""
        if "solution" in absent and method.trains_references:
            hint = "; supervised fine-tuning needs worked solutions, as experiment=qwen3_1_7b_openthoughts has"
        elif "solution" in absent:
            hint = "; without worked solutions, show the teacher the answer: self_distill.teacher.context=answer"
        if "feedback" in absent:
            hint = "; rewards.math says nothing in words, so feedback is a column or another reward function's"
        if prompt in absent or "reward_model" in absent:
            hint += f"; data of other columns: {_PREPARE} dataset=local file={path}"
        yield f"has no column {', '.join(absent)} (it has {', '.join(schema.names)}){hint}"
        return
    kind = schema.field(prompt).type
    if not (_is_list(kind) and _has_fields(kind.value_type, "role", "content")):
        yield (
            f"has a {prompt} of type {kind}, and verl renders chats, lists of {{role, content}}; prepare it with "
            f"{_PREPARE} dataset=local file={path} dataset.problem={prompt}"
        )
    if not _has_fields(schema.field("reward_model").type, "ground_truth"):
        yield (
            f"has a reward_model of type {schema.field('reward_model').type}, and verl reads its field ground_truth; "
            f"prepare it with {_PREPARE}"
        )
        return
    for context in sorted(shown):
        empty, total = _rows_without(path, context, schema)
        if len(empty) == total and context not in ALWAYS_THERE:
            yield f"has an empty {context} in every row: the teacher has nothing to show"
        elif empty and context in ALWAYS_THERE:  # of the others, rows without one have no teacher and are counted
            rows = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
            hint = ", or show it the answer: self_distill.teacher.context=answer" if context == "solution" else ""
            yield (
                f"has an empty {context} in {len(empty)} of {total} rows (rows {rows}), and the teacher has nothing to "
                f"show there: fill or remove them{hint}"
            )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _has_fields(kind: pa.DataType, *names: str) -> bool:
    return pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def _rows_without(path: Path, context: str, schema: pa.Schema) -> tuple[list[int], int]:
    """(numbers of the rows that have nothing to show, all rows); the answer may stand in the ground truth."""
    columns = [context] if context != "answer" else [c for c in ("answer", "reward_model") if c in schema.names]
    rows = pq.read_table(path, columns=columns).to_pylist()

    def shown(row: dict[str, Any]) -> str:
        text = row.get(context)
        if context == "answer" and not text:
            text = (row["reward_model"] or {}).get("ground_truth")
        return str("" if text is None else text).strip()

    return [number for number, row in enumerate(rows) if not shown(row)], len(rows)


def _differing(schemas: dict[Path, pa.Schema]) -> Iterator[str]:
    """verl joins the files, and cannot where a column has two types."""
    (first, schema), *others = schemas.items()
    for path, other in others:
        for name in other.names:
            if name in schema.names and other.field(name).type != schema.field(name).type:
                yield (
                    f"{name} is {schema.field(name).type} in {first} and {other.field(name).type} in {path}, and verl "
                    f"cannot join them; prepare both with {_PREPARE}"
                )


def _probe_problems(cfg: DictConfig) -> Iterator[str]:
    """The controller's probe: held-out rows with solutions."""
    exposure, key = cfg.self_distill.exposure, "self_distill.exposure.probe_file"
    if exposure.mode == "full" or exposure.probe_file is None:
        return
    if not isinstance(exposure.probe_file, str):
        yield f"{key}={exposure.probe_file}: must be a prepared parquet file; {_PREPARE} writes a probe split"
        return
    path = Path(exposure.probe_file).expanduser()
    problem = unreadable(path)
    if problem:
        yield f"{key}: {problem}" + ("" if "probe split" in problem else "; the probe split is probe.parquet")
        return
    schema = pq.read_schema(path)
    absent = [name for name in (cfg.data.prompt_key, "problem", "solution") if name not in schema.names]
    if absent:
        yield f"{key}: {path} has no column {', '.join(absent)} (it has {', '.join(schema.names)}); use a prepared file"
    else:
        empty, total = _rows_without(path, "solution", schema)
        if len(empty) == total:
            yield f"{key}: none of the {total} rows of {path} has a solution to score; use data with worked solutions"


def _teacher_validation_problems(cfg: DictConfig, method: Method) -> Iterator[str]:
    """Validation problems of which none has what the teacher is shown; rows without it are left out and counted."""
    every, shown = cfg.self_distill.teacher.test_freq, method.contexts
    columns = {kind for kind in (shown.kinds[0], shown.fallback) if kind in ("solution", "answer", "hint")}
    if not method.uses_teacher or every <= 0 or not columns or cfg.data.custom_cls.path is not None:
        return
    files = [cfg.data.val_files] if isinstance(cfg.data.val_files, str) else list(cfg.data.val_files or [])
    paths = [Path(file).expanduser() for file in files if "://" not in file]
    if len(paths) < len(files) or any(unreadable(path) for path in paths):
        return  # said of the files themselves, or verl's to read
    for path in paths:
        schema = pq.read_schema(path)
        for kind in columns:
            if kind in schema.names or (kind == "answer" and "reward_model" in schema.names):
                empty, total = _rows_without(path, kind, schema)
                if len(empty) < total:
                    return
    yield (
        f"self_distill.teacher.test_freq={every}: no row of data.val_files has a {' or '.join(sorted(columns))} to "
        "show the teacher; validate on data that have it, or set test_freq to -1"
    )


# --- lengths ---


def _length_problems(cfg: DictConfig, key: str, paths: list[Path], rows: int) -> Iterator[str]:
    """Prompts over `data.max_prompt_length`: verl leaves them out or, without its filter, cuts off their beginning."""
    limit, filtered = cfg.data.max_prompt_length, cfg.data.filter_overlong_prompts
    tokenizer = _tokenizer(cfg)
    chosen = extreme_prompts(paths, cfg.data.prompt_key, RENDERED, longest=not filtered)
    if tokenizer is None or not isinstance(limit, int) or not chosen:
        return
    lengths: list[int] = []
    until = time.monotonic() + SECONDS
    for where, messages in chosen:
        if time.monotonic() > until:
            break
        try:
            lengths.append(_tokens(tokenizer, messages, dict(cfg.data.get("apply_chat_template_kwargs") or {})))
        except Exception as error:  # whatever a template's own code raises
            yield f"{key}: the prompt in {where} cannot be rendered ({type(error).__name__}: {error})"
            return
        if not filtered and lengths[-1] > limit:
            yield (
                f"data.max_prompt_length={limit}: the prompt in {where} of {key} takes {lengths[-1]} tokens, and verl "
                f"would cut off its beginning; set it to at least {lengths[-1]}, or leave such prompts out with "
                "data.filter_overlong_prompts=true"
            )
            return
    fitting = sum(length <= limit for length in lengths)
    if filtered and not fitting:
        yield (
            f"data.max_prompt_length={limit}: none of the {rows} prompts of {key} is that short, and all would be left "
            f"out; the shortest takes {min(lengths)} tokens: set it to more than that"
        )
    elif filtered and len(lengths) == rows and key == "data.train_files" and fitting < (batch := _batch(cfg)):
        yield (
            f"data.max_prompt_length={limit}: {fitting} of the {rows} prompts of {key} are that short, fewer than "
            f"data.train_batch_size={batch}; raise the one or lower the other"
        )


def extreme_prompts(paths: list[Path], column: str, count: int, *, longest: bool) -> list[tuple[str, list[dict]]]:
    """The prompts with the most characters, or the fewest, from that end; only a few are in memory at once.

    Args:
        paths: parquet files.
        column: the one that holds the chats.
        count: prompts that are wanted, over all files.
        longest: whether those with the most characters.

    Returns:
        (place, chat) of each, the place as in "row 3 of train.parquet". Empty where a turn's content is no text, as in
        chats with images.
    """
    kept: list[tuple[int, str, list[dict]]] = []
    for path in paths:
        start = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=10_000, columns=[column]):
                chats = batch.column(0)
                contents = pc.struct_field(chats.flatten(), "content")
                if not (pa.types.is_string(contents.type) or pa.types.is_large_string(contents.type)):
                    return []
                turns = pa.table({"row": pc.list_parent_indices(chats), "size": pc.utf8_length(contents)})
                sizes = turns.group_by("row").aggregate([("size", "sum")])
                sizes = sizes.sort_by([("size_sum", "descending" if longest else "ascending")])[:count]
                numbers = sizes["row"].to_pylist()
                taken = chats.take(pa.array(numbers, pa.int64())).to_pylist()
                kept += [
                    (size or 0, f"row {start + number} of {path.name}", chat)
                    for number, size, chat in zip(numbers, sizes["size_sum"].to_pylist(), taken, strict=True)
                ]
                kept = sorted(kept, key=lambda item: item[0], reverse=longest)[:count]
                start += len(chats)
    return [(where, chat) for _, where, chat in kept]


def _tokenizer(cfg: DictConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer with the template that verl will use; None without one, which another check reports."""
    from transformers import AutoTokenizer

    model = cfg.actor_rollout_ref.model
    where = str(Path(model.get("tokenizer_path") or model.path).expanduser())
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        return None
    if model.get("custom_chat_template"):
        tokenizer.chat_template = model.custom_chat_template
    return tokenizer if tokenizer.chat_template else None


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict], template_kwargs: dict[str, Any]) -> int:
    from recipes.common.teacher.prompts import render

    return len(render(tokenizer, messages, template_kwargs))
