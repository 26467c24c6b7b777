"""`python -m recipes.data.validate file=<parquet or folder> [tokenizer=… max_prompt_length=…]`.

Reads prepared files and tells, row by row, what training or evaluation would stumble over, before any GPU is taken.
Ends with 0 if all is well, 1 if something was found, 2 if it could not look. Keys: see ``ValidateConfig``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from recipes.command_line import Command, run, show
from recipes.common.teacher.prompts import render, teacher_messages
from recipes.data.convert import problem_key
from recipes.data.readers import DataError, first_line, suffix_of
from rewards.extract import last_boxed
from rewards.grader import Grader, gold_text
from rewards.normalize import simple_fraction, tidy

CHECKS = {
    "missing_column": "a column that verl or the privileged prompt needs is not there",
    "wrong_type": "a value is no text (reward_model: no mapping) where the privileged prompt and the reward need one",
    "empty_prompt": "the prompt is no chat with a user turn, so nothing can be asked",
    "empty_problem": "the problem is empty, so the privileged prompt would ask nothing",
    "missing_answer": "there is no ground truth, so no response can be graded",
    "answer_differs": "the answer column and the ground truth are not the same",
    "unparseable_answer": "math-verify cannot read the gold answer: only its exact spelling would be right",
    "slow_answer": "the gold answer cannot be compared within cpu_s: every response would time out",
    "unboxed_reference": "the reference solution has no boxed answer, so it cannot be cut to its answer",
    "reference_disagrees": "the reference's boxed answer is not the gold answer",
    "duplicate_problem": "the problem occurs before, in this file or another one given",
    "long_prompt": "the prompt exceeds max_prompt_length tokens",
    "long_teacher_prompt": "the privileged prompt exceeds max_teacher_prompt_length tokens",
}
COLUMNS = ("data_source", "prompt", "ability", "reward_model", "problem", "solution", "answer", "extra_info")
# Any gold answer that can be read at all can be compared with this one.
_PROBE_ANSWER = "\\frac{7919}{6101}+\\sqrt{7907}"


@dataclass
class ValidateConfig:
    """The command line."""

    file: str = "???"  # a parquet file, or a folder of them
    tokenizer: str | None = None  # path or name; needed for the limits
    max_prompt_length: int | None = None  # tokens, as data.max_prompt_length
    max_teacher_prompt_length: int | None = None  # tokens, as self_distill.teacher.max_prompt_length
    teacher_context: str = "solution"  # solution | answer: what the privileged prompt shows
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # as data.apply_chat_template_kwargs
    ignore: list[str] = field(default_factory=list)  # checks whose findings are listed but do not count
    cpu_s: float = 2.0  # of one comparison, as in reward_kwargs
    show: int = 20  # findings printed for each check; all are counted
    report: str | None = None  # write all findings here, as JSON lines


@dataclass(frozen=True)
class Finding:
    """Something wrong with a row.

    Attributes:
        file: name of the parquet file.
        row: the row's number there, from 0.
        check: one of `CHECKS`.
        detail: what was found, shortened.
    """

    file: str
    row: int
    check: str
    detail: str


def parquet_files(where: str) -> list[Path]:
    """The prepared files that a path names: the file itself, or a folder's parquet files.

    Raises:
        DataError: if there is none, or the file is of a format that has to be prepared first.
    """
    path = Path(where).expanduser()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"file={where}: no parquet file there; make one with python -m recipes.data.prepare")
    if suffix_of(path) not in (None, ".parquet"):
        raise DataError(f"{path} is not prepared yet: python -m recipes.data.prepare dataset=local file={path}")
    return files


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file as plain Python values.

    Raises:
        DataError: if the file is not parquet, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise DataError(f"{path} cannot be read as parquet: {first_line(error)}") from error


class Lengths:
    """Counts the tokens of rendered prompts.

    Args:
        tokenizer: a folder, or a name on the hub; it must have a chat template.
        template_kwargs: further arguments of the chat template, as `data.apply_chat_template_kwargs`.

    Raises:
        DataError: if the tokenizer cannot be loaded, or has no chat template.
    """

    def __init__(self, tokenizer: str, template_kwargs: dict[str, Any]):
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer={tokenizer} cannot be loaded: {str(error).splitlines()[0]}") from error
        if not self._tokenizer.chat_template:
            raise DataError(
                f"tokenizer={tokenizer} has no chat template, so prompts cannot be rendered; use the model's"
            )
        self._kwargs = template_kwargs

    def __call__(self, messages: list[dict[str, str]]) -> int:
        return len(render(self._tokenizer, messages, self._kwargs))


def well_typed(row: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Separate values of a wrong type from a row.

    Args:
        row: column to value.

    Returns:
        (the row with None in place of such values, (check, detail) of each of them).
    """
    row, found = dict(row), []
    for column, kind in (("problem", str), ("solution", str), ("answer", str), ("reward_model", dict)):
        value = row.get(column)
        if value is not None and not isinstance(value, kind):
            found.append(("wrong_type", f"{column} is {type(value).__name__} {str(value)[:80]!r}"))
            row[column] = None
    return row, found


def _asks(turn: Any) -> bool:
    content = turn.get("content") if isinstance(turn, dict) and turn.get("role") == "user" else None
    return isinstance(content, str) and bool(content.strip())


def text_findings(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(check, detail) of what plain reading finds in a well-typed row."""
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        yield "missing_column", f"{missing}; the row has {sorted(row)}"
    prompt = row.get("prompt")
    if not (isinstance(prompt, list) and any(map(_asks, prompt))):
        yield "empty_prompt", f"prompt is {str(prompt)[:80]!r}"
    if "problem" in row and not (row["problem"] or "").strip():
        yield "empty_problem", ""
    gold = gold_of(row)
    if not gold:
        yield "missing_answer", f"reward_model is {row.get('reward_model')!r}"
    if gold and row.get("answer") not in (None, gold):
        yield "answer_differs", f"answer {row['answer']!r}, ground truth {gold!r}"
    boxes = graded_as_math(row) or row.get("answer") is not None
    if boxes and (row.get("solution") or "").strip() and last_boxed(row["solution"]) is None:
        yield "unboxed_reference", f"it ends in {row['solution'].strip()[-60:]!r}"


def gold_of(row: dict[str, Any]) -> str:
    """The row's ground truth as text; "" if there is none."""
    try:
        return gold_text((row.get("reward_model") or {}).get("ground_truth"))
    except TypeError:
        return ""


def graded_as_math(row: dict[str, Any]) -> bool:
    """Whether mathematics grades a row; a letter, an assignment or a program's tests are not read as formulas."""
    extra = row.get("extra_info")
    return not isinstance(extra, dict) or extra.get("grader") in (None, "math")


def answer_findings(row: dict[str, Any], grader: Grader) -> list[tuple[str, str]]:
    """(check, detail) of what grading finds in a row: a gold answer without meaning, a reference that disagrees.

    Args:
        row: well-typed; if mathematics does not grade it, nothing is found.
        grader: compares answers in its own processes.
    """
    gold = gold_of(row)
    if not gold or not graded_as_math(row):
        return []
    found = []
    if simple_fraction(tidy(gold)) is None:  # what text can read needs no parser
        verdict = grader.grade(gold, _PROBE_ANSWER)
        if verdict.status in ("timeout", "error"):
            return [("slow_answer", f"{gold[:120]!r}: {verdict.how}")]
        if verdict.how in ("unparsed", "too long"):
            found.append(("unparseable_answer", repr(gold[:120])))
    boxed = last_boxed(row.get("solution") or "")
    if boxed is not None and grader.grade(gold, boxed).status == "wrong":
        found.append(("reference_disagrees", f"gold {gold[:80]!r}, reference {boxed[:80]!r}"))
    return found


def length_findings(row: dict[str, Any], cfg: ValidateConfig, lengths: Lengths) -> Iterator[tuple[str, str]]:
    """(check, detail) of prompts over their limits.

    Args:
        row: well-typed.
        cfg: the limits, in tokens, and what the teacher is shown.
        lengths: counts the tokens.
    """
    prompt = row.get("prompt")
    if cfg.max_prompt_length is not None and isinstance(prompt, list) and any(map(_asks, prompt)):
        count = lengths(prompt)
        if count > cfg.max_prompt_length:
            yield "long_prompt", f"{count} tokens, limit {cfg.max_prompt_length}"
    if cfg.max_teacher_prompt_length is not None:
        answer = f"\\boxed{{{gold_of(row)}}}"
        reference = row.get("solution") or "" if cfg.teacher_context == "solution" else answer
        count = lengths(teacher_messages(row.get("problem") or "", reference))
        if count > cfg.max_teacher_prompt_length:
            yield "long_teacher_prompt", f"{count} tokens, limit {cfg.max_teacher_prompt_length}"


def validate(cfg: ValidateConfig) -> tuple[list[Finding], int]:
    """Look at every row of the files.

    Args:
        cfg: the command line's keys.

    Returns:
        (findings in the order of the rows, number of rows read).

    Raises:
        DataError: if the files, the tokenizer or the keys do not allow to look.
    """
    unknown = set(cfg.ignore) - set(CHECKS)
    if unknown:
        raise DataError(f"ignore={sorted(unknown)}: no such check; there are {sorted(CHECKS)}")
    if cfg.teacher_context not in ("solution", "answer"):
        raise DataError(f"teacher_context={cfg.teacher_context}: must be solution or answer")
    limits = (cfg.max_prompt_length, cfg.max_teacher_prompt_length)
    if any(limit is not None for limit in limits) and cfg.tokenizer is None:
        raise DataError("a limit in tokens needs tokenizer=<path or name of the model>")
    lengths = Lengths(cfg.tokenizer, dict(cfg.chat_template_kwargs)) if cfg.tokenizer else None
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    count = 0
    grader = Grader(deadline_s=60.0, cpu_s=cfg.cpu_s)
    try:
        for path in parquet_files(cfg.file):
            with ThreadPoolExecutor(4) as threads:
                rows = [well_typed(row) for row in read_rows(path)]
                graded = threads.map(lambda item: answer_findings(item[0], grader), rows)
                for number, ((row, of_types), of_answer) in enumerate(zip(rows, graded, strict=True)):
                    found = [*of_types, *text_findings(row), *of_answer]
                    key = problem_key(row.get("problem") or "")
                    if key and key in seen:
                        found.append(("duplicate_problem", f"as in {seen[key]}"))
                    seen.setdefault(key, f"{path.name} row {number}")
                    if lengths is not None:
                        found += length_findings(row, cfg, lengths)
                    findings += [Finding(path.name, number, check, detail) for check, detail in found]
            count += len(rows)
    finally:
        grader.close()
    if count == 0:
        raise DataError(f"file={cfg.file} has no rows")
    return findings, count


def report(findings: list[Finding], rows: int, cfg: ValidateConfig) -> str:
    """The findings in words, and the counts of each check.

    Args:
        findings: all of them.
        rows: number of rows read.
        cfg: ``show`` is how many findings of each check are listed, ``ignore`` which checks do not count.
    """
    totals = Counter(finding.check for finding in findings)
    lines = []
    for check in CHECKS:
        of_check = [finding for finding in findings if finding.check == check]
        lines += [f"{f.file} row {f.row}: {check}: {f.detail}".rstrip(": ") for f in of_check[: cfg.show]]
        if len(of_check) > cfg.show:
            lines.append(f"… and {len(of_check) - cfg.show} more of {check} (report=FILE lists all)")
    lines.append(f"{rows} rows, {len(findings)} findings")
    for check, number in totals.items():
        lines.append(f"  {number:6d} {check}{' (ignored)' if check in cfg.ignore else ''}: {CHECKS[check]}")
    return "\n".join(lines)


ConfigStore.instance().store(name="validate", node=ValidateConfig)


COMMAND = Command(
    module="recipes.data.validate",
    what=(
        "Read prepared files and tell, row by row, what training or evaluation would stumble over. Ends with 0 where "
        "all is well, 1 where something was found, 2 where it could not look."
    ),
    examples=(
        ("file=data/dapo_math_17k", "all parquet files of a folder"),
        ("file=data/aime_2024/test.parquet show=20", "one file, more findings of each check"),
        ("file=data/math_500 tokenizer=Qwen/Qwen3-1.7B max_prompt_length=2048", "lengths too"),
        ("file=data/dapo_math_17k teacher_context=answer", "for a teacher that is shown the answer"),
        ("file=data/mine ignore=[unboxed_reference] report=findings.jsonl", "what is listed but does not count"),
    ),
    keys=(
        ("file=<path>", "a prepared parquet file, or a folder of them"),
        ("tokenizer=<path or name>", "of the model; needed for the limits"),
        ("max_prompt_length=2048", "tokens, as data.max_prompt_length"),
        ("max_teacher_prompt_length=4096", "tokens, as self_distill.teacher.max_prompt_length"),
        ("teacher_context=answer", "what the privileged prompt shows: solution | answer"),
        ("chat_template_kwargs.enable_thinking=false", "as data.apply_chat_template_kwargs (+ before a new one)"),
        ("ignore=[<check>,…]", "checks whose findings are listed but do not count"),
        ("cpu_s=2.0", "seconds of one comparison, as in reward_kwargs"),
        ("show=5", "findings of each check that are printed"),
        ("report=<file>", "all findings, as JSON lines"),
    ),
    checks_types=False,  # Hydra does, with the dataclass
    more=f"Checks: {', '.join(CHECKS)}. What they mean: recipes/data/README.md.",
    not_started="Nothing was validated:",
)


def _job(cfg: DictConfig) -> int:
    try:
        settings: ValidateConfig = OmegaConf.to_object(cfg)
        findings, rows = validate(settings)
    except DataError as error:
        print(f"not validated: {error}", file=sys.stderr)
        return 2
    show(report(findings, rows, settings))
    if settings.report is not None:
        lines = [json.dumps(vars(finding), ensure_ascii=False) + "\n" for finding in findings]
        Path(settings.report).write_text("".join(lines))
    return 1 if any(finding.check not in settings.ignore for finding in findings) else 0


def main() -> None:
    """The command line."""
    # No outputs/ folder for a command that only looks.
    quiet = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    run(COMMAND, _job, "validate", defaults=quiet, stored=True)


if __name__ == "__main__":
    main()
