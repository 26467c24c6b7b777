"""`python -m recipes.data.prepare dataset=<name> [source=<file or folder>] [out=data]`: see config/prepare.yaml.

Reads a dataset, drops what cannot be used, holds a probe (and a validation) split out of training sets, reports copies
of evaluation problems, and writes parquet files with a card. A second run finds its files up to date and does nothing;
an interrupted one leaves no card and is simply started again. ``dataset=local file=mine.jsonl`` does this to a file of
the user's own.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config import CONFIG_DIR
from recipes.command_line import Command, run
from recipes.data import contamination
from recipes.data.card import readme_text
from recipes.data.convert import Item, problem_key, prompt_messages, to_item, to_row
from recipes.data.readers import DataError, Place, Row
from recipes.data.sources import identity, local_files, read_rows, spec_of
from recipes.data.spec import DatasetSpec
from recipes.data.store import is_intact, read_card, refuse_foreign_files, write_dataset
from rewards.normalize import quick_verdict

# Raise it when the meaning of the output changes, so that files of an older version are made anew.
FORMAT_VERSION = 3
PROBE_SIZE = 64  # if probe_size is null


@dataclass
class Collected:
    """Items in the source's order, one for each problem, and what became of the others.

    Attributes:
        items: those that are kept.
        counts: number of rows that were read, and of those that were dropped for each reason.
    """

    items: list[Item] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def collect(
    rows: Iterable[tuple[Place, Row]], spec: DatasetSpec, conflicts: str, require_answer: bool, seed: int = 1
) -> Collected:
    """Convert rows, keeping the first of each problem.

    Memory is that of the kept items, however many rows there are.

    Args:
        rows: the source's rows in order, with their places for messages.
        spec: the dataset: which columns hold what.
        conflicts: what to do with a problem that occurs with different answers: "drop" leaves it out, "first" keeps its
            first row.
        require_answer: whether a row without a gold answer is dropped.
        seed: orders the options of multiple choice.

    Raises:
        DataError: if a value cannot be read as text; the message names its place and column.
    """
    result = Collected()
    counts = result.counts
    kept: dict[bytes, Item] = {}
    contradicted: set[bytes] = set()
    for index, (place, row) in enumerate(rows):
        counts["rows read"] += 1
        try:
            item = to_item(row, spec, index, seed)
        except DataError as error:
            raise DataError(f"{place}, {error}") from error
        if not item.problem:
            counts["without a problem"] += 1
            continue
        if item.dropped:
            counts[item.dropped] += 1
            continue
        if require_answer and not item.answer and not item.gold:
            counts["without an answer"] += 1
            continue
        key = hashlib.sha256(problem_key(item.problem).encode()).digest()
        first = kept.setdefault(key, item)
        if first is not item:
            counts["duplicates"] += 1
            if first.gold != item.gold or (item.gold is None and quick_verdict(first.answer, item.answer) is not True):
                contradicted.add(key)
            continue
        if not item.unwrapped:
            counts["without the expected instructions"] += 1
        if item.boxed and spec.answer:
            counts["answered by the box of their solution"] += 1
    counts["problems with contradicting answers"] = len(contradicted)
    for key, item in kept.items():
        if conflicts == "first" or key not in contradicted:
            result.items.append(item)
    return result


def hold_out(items: list[Item], sizes: dict[str, int | None], seed: int) -> dict[str, list[Item]]:
    """Split items into "train" and disjoint parts that are held out of it.

    A hash of seed and problem chooses, so the order of rows does not matter. Each part keeps the source's order.

    Args:
        items: all of them, no problem twice.
        sizes: name of a part -> its number of items; None for `PROBE_SIZE`, or a tenth of the items if that is less.
        seed: other seeds hold out other items.

    Returns:
        Name of a part -> its items; parts of size 0 are left out.

    Raises:
        DataError: if no item would be left to train on.
    """
    numbers = {name: min(PROBE_SIZE, len(items) // 10) if size is None else size for name, size in sizes.items()}
    if sum(numbers.values()) >= len(items):
        asked = " and ".join(f"{name}_size={number}" for name, number in numbers.items() if number)
        raise DataError(f"{asked} leaves nothing of {len(items)} items to train on; make it smaller")
    order = _by_hash(items, seed)
    part_of = dict.fromkeys(order, "train")
    chosen = iter(order)
    for name, number in numbers.items():
        part_of.update(dict.fromkeys(islice(chosen, number), name))
    parts: dict[str, list[Item]] = {"train": [], **{name: [] for name, number in numbers.items() if number}}
    for number, item in enumerate(items):
        parts[part_of[number]].append(item)
    return parts


def hold_out_levels(items: list[Item], size: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Hold a test set out that has each difficulty equally often.

    Args:
        items: all of them; ``extra["difficulty"]`` is an item's level, and those without one are a level of their own.
        size: number of items of the test set; they are drawn from each level in turn, within it as `hold_out` chooses.
        seed: other seeds hold out other items.

    Returns:
        (train, test), each in the source's order.

    Raises:
        DataError: if no item would be left to train on.
    """
    if size >= len(items):
        raise DataError(f"dataset.test_size={size} leaves nothing of {len(items)} items to train on; make it smaller")
    levels: dict[float | None, list[Item]] = {}
    for number in _by_hash(items, seed):
        levels.setdefault(items[number].extra.get("difficulty"), []).append(items[number])
    turns = zip_longest(*(levels[level] for level in sorted(levels, key=lambda d: (d is None, d))))
    held = list(islice((item for turn in turns for item in turn if item is not None), size))
    chosen = {item.source_index for item in held}
    return (
        [item for item in items if item.source_index not in chosen],
        [item for item in items if item.source_index in chosen],
    )


def _by_hash(items: list[Item], seed: int) -> list[int]:
    """Numbers of the items in an order that depends on seed and problems only."""
    keys = [hashlib.sha256(f"{seed}\0{problem_key(item.problem)}".encode()).digest() for item in items]
    return sorted(range(len(items)), key=keys.__getitem__)


def evaluation_sets(out: Path, names: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """The prepared evaluation sets that training problems are compared with.

    Args:
        out: the folder that holds the prepared sets, each in a folder of its name.
        names: the sets to compare with.

    Returns:
        (set -> its problems, set -> hash of its rows' content, sets that are not prepared or damaged).
    """
    import pyarrow.parquet as pq

    problems, hashes, missing = {}, {}, []
    for name in names:
        card = read_card(out / name)
        if card is None or not is_intact(out / name, card):
            missing.append(name)
            continue
        problems[name] = pq.read_table(out / name / "test.parquet", columns=["problem"])["problem"].to_pylist()
        hashes[name] = card["files"]["test.parquet"]["rows_sha256"]
    return problems, hashes, missing


def check_copies(items: list[Item], sets: dict[str, list[str]], ngram: int, min_share: float) -> dict[str, Any]:
    """Compare training items with evaluation sets.

    Args:
        items: the training items.
        sets: name of an evaluation set -> its problems.
        ngram: length of the runs of words that are compared.
        min_share: share of an evaluation problem's n-grams that makes an item its copy.

    Returns:
        For each set "sharing an n-gram", the number of items that share any with it, and "copies", a list of
        ``{source_index, evaluation_index, share}``.
    """
    report = {}
    texts = [item.problem for item in items]
    for name, problems in sets.items():
        matches, touched = contamination.find(texts, contamination.Index(problems, ngram), min_share)
        report[name] = {
            "sharing an n-gram": touched,
            "copies": [
                {
                    "source_index": items[match.train].source_index,
                    "evaluation_index": match.evaluation,
                    "share": round(match.share, 3),
                }
                for match in matches
            ],
        }
    return report


def prepare(cfg: DictConfig) -> str:
    """Prepare one dataset.

    Args:
        cfg: config/prepare.yaml with the user's choices.

    Returns:
        What to tell the user: files, counts, and how to train on them.

    Raises:
        DataError: if a setting is wrong, the source cannot be read, or nothing usable is left.
    """
    source = source_of(cfg)
    spec = named(cfg, source)
    check_settings(cfg)
    out = Path(cfg.out).expanduser()
    folder = out / spec.name
    training = spec.role == "train"
    # With the sets of contamination.against, which are mathematics; a generated problem is nobody's copy.
    compared = training and spec.grader == "math" and (spec.generate is None or source is not None)
    sets, set_hashes, missing = evaluation_sets(out, cfg.contamination.against) if compared else ({}, {}, [])
    sizes = {"probe": cfg.probe_size, "val": cfg.val_size} if training else {}
    template = cfg.prompt or spec.prompt
    made_from = {
        "format": FORMAT_VERSION,
        "dataset": {**OmegaConf.to_container(cfg.dataset, resolve=True), "name": spec.name},
        "input": identity(spec, source, cfg.revision),
        "settings": {
            **{key: cfg[key] for key in ("limit", "seed", "conflicts", "require_answer")},
            **{f"{part}_size": size for part, size in sizes.items()},
        },
        "prompt": prompt_messages("{problem}", template),
        "contamination": {
            **{key: cfg.contamination[key] for key in ("ngram", "min_share", "remove")},
            "against": set_hashes,
        },
    }
    card = read_card(folder)
    if card and not cfg.force and card["made_from"] == made_from and is_intact(folder, card):
        return f"{folder} is up to date ({_sizes(card)}); force=true makes it anew"
    refuse_foreign_files(folder, local_files(source, spec.split, spec.subset) if source else ())

    rows = read_rows(spec, source, cfg.revision, answers=cfg.require_answer)
    with progress_of_reading() as progress:
        collected = collect(
            counted(islice(rows, cfg.limit), progress), spec, cfg.conflicts, cfg.require_answer, cfg.seed
        )
    counts = collected.counts
    if not collected.items:
        found = ", ".join(f"{number} {what}" for what, number in counts.items() if number and what != "rows read")
        raise DataError(f"no usable row among {counts['rows read']} read{f': {found}' if found else ''}")
    parts = split_of(collected.items, spec, sizes, cfg.seed)
    overlap = check_copies(collected.items, sets, cfg.contamination.ngram, cfg.contamination.min_share)
    copies = {copy["source_index"] for report in overlap.values() for copy in report["copies"]}
    counts["copies of evaluation problems"] = len(copies)
    if cfg.contamination.remove:
        parts = {name: [item for item in items if item.source_index not in copies] for name, items in parts.items()}
        if not parts.get("train", True):
            raise DataError(
                "every item to train on is a copy of an evaluation problem; contamination.remove=false keeps them"
            )
        parts = {name: items for name, items in parts.items() if items}
    splits = {
        name: [to_row(item, spec.name, name, index, template) for index, item in enumerate(items)]
        for name, items in parts.items()
    }
    solved = 0
    for name, split_rows in splits.items():
        counts[f"written to {name}"] = len(split_rows)
        solved += (with_solution := sum(bool(row["solution"]) for row in split_rows))
        counts[f"of these with a solution ({name})"] = with_solution
    card = {
        "name": spec.name,
        "counts": dict(counts),
        "contamination": {"sets": overlap, "not checked, since not prepared": missing},
        "made_from": made_from,
        "versions": _versions(),
    }
    published = published_note(spec, made_from["input"])
    if published:
        card["published"] = published
    write_dataset(folder, splits, card, readme_text(card))
    lines = [f"{folder}: " + ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())]
    lines += [f"  {what}: {number}" for what, number in counts.items()]
    if published:
        lines.append(f"  {published}")
    if missing:
        lines.append(f"  not checked for copies of {', '.join(missing)}: prepare these first, into the same out={out}")
    if copies and not cfg.contamination.remove:
        lines.append(
            f"  {len(copies)} copies of evaluation problems are still in; contamination.remove=true drops them"
        )
    if training:
        lines += how_to_train(folder, splits, solved, spec.grader)
    return "\n".join(lines)


def split_of(items: list[Item], spec: DatasetSpec, sizes: dict[str, int | None], seed: int) -> dict[str, list[Item]]:
    """The items of each file that is to be written: all as "test" of an evaluation set, else as `hold_out` names them.

    Args:
        items: all that are used.
        spec: the dataset, with its role and the size of its test set.
        sizes: as in `hold_out`; not used for an evaluation set.
        seed: chooses what is held out.

    Raises:
        DataError: if no item would be left to train on.
    """
    if spec.role != "train":
        return {"test": items}
    left, test = hold_out_levels(items, spec.test_size, seed)
    return {**hold_out(left, sizes, seed), **({"test": test} if test else {})}


def published_note(spec: DatasetSpec, source: dict[str, Any]) -> str:
    """A sentence that says whether a local file is the one whose hash its users published; "" if none is published.

    Args:
        spec: the dataset, with the published hash and whose it is.
        source: what `identity` says of the input.
    """
    if spec.published_sha256 is None:
        return ""
    by, files = spec.published_by, source.get("files")
    if files is None:
        return f"not compared with the hash that {by} published, which is of a file: give the file as source="
    if spec.published_sha256 in files.values():
        return f"this is the file that {by} used: SHA-256 {spec.published_sha256}"
    return f"this is not the file that {by} used, whose SHA-256 is {spec.published_sha256}: its problems may differ"


def how_to_train(folder: Path, splits: dict[str, list[Any]], solved: int, grader: str) -> Iterator[str]:
    """Lines that say what a training command has to be told of a prepared set.

    Args:
        folder: where the set was written.
        splits: name of a split -> its rows.
        solved: how many of the rows have a solution.
        grader: of the set, one of `rewards.by_grader.GRADERS`.
    """
    total = sum(map(len, splits.values()))
    words = [f"data.train_files={folder}/train.parquet"]
    words += [f"data.val_files={folder}/val.parquet"] if "val" in splits else []
    words += [f"reward.custom_reward_function.path=pkg://rewards.{grader}"] if grader != "math" else []
    if solved == 0:
        words.append("self_distill.teacher.context=answer")
        yield "  no row has a solution to show the teacher: it is shown the answer, self_distill.teacher.context=answer"
    elif solved < total:
        yield (
            f"  {total - solved} of {total} rows have no solution to show the teacher: show it the answer, with "
            "self_distill.teacher.context=answer, or leave these rows out"
        )
    yield f"  to train on it: {' '.join(words)}"


def source_of(cfg: DictConfig) -> Path | None:
    """The local file or folder that is to be read, which `file=` or `source=` names; None for the hub or the generator.

    Raises:
        DataError: if both are given, the value is no path, or the dataset is local and none is given.
    """
    given = {key: cfg[key] for key in ("file", "source") if cfg[key] is not None}
    if len(given) > 1:
        raise DataError(f"file={cfg.file} and source={cfg.source} are one key by two names; give one of them")
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise DataError(f"{key}={value}: must be the path of a file or folder")
        return Path(value).expanduser()
    if cfg.dataset.get("hub") is None and cfg.dataset.get("generate") is None:
        raise DataError("this dataset is not on the hub; say file=<a .jsonl, .json, .csv or .parquet file of yours>")
    return None


def named(cfg: DictConfig, source: Path | None) -> DatasetSpec:
    """The dataset that the configuration describes, named after its local file if it has no name.

    Args:
        cfg: config/prepare.yaml with the user's choices.
        source: the local file or folder, if one is read.

    Raises:
        DataError: if a key of the dataset is wrong, or a set of the user's has the name of one in config/dataset.
    """
    node = OmegaConf.to_container(cfg.dataset, resolve=True)
    if node.get("name") is None and source is not None:
        stem = re.sub(r"(\.[a-z]+)?(\.gz)?$", "", source.name, flags=re.IGNORECASE)
        node["name"] = re.sub(r"[^\w.-]", "_", stem).lstrip(".") or "local"
    spec = spec_of(node)
    if spec.hub is None and (CONFIG_DIR / "dataset" / f"{spec.name}.yaml").exists():
        raise DataError(f"{spec.name} is the name of a known set; choose another with dataset.name=")
    return spec


def progress_of_reading() -> Progress:
    """Shows the number of rows read, in place on a terminal; elsewhere `counted` prints the number now and then."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows read"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def counted(rows: Iterable[tuple[Place, Row]], progress: Progress) -> Iterator[tuple[Place, Row]]:
    """The same rows; shows their number while they are read.

    Args:
        rows: passed on unchanged, one at a time.
        progress: a started display; if it is disabled, the number is printed after 1000, 2000, 5000, 10000, … rows.
    """
    task = progress.add_task("", total=None)
    due = 1000
    for number, row in enumerate(rows, 1):
        yield row
        if number % 200 == 0:
            progress.update(task, completed=number)
        if number == due:
            if progress.disable:
                print(f"{number:,} rows read", file=sys.stderr, flush=True)
            due = due * 5 // 2 if str(due).startswith("2") else due * 2


def check_settings(cfg: DictConfig) -> None:
    """Check the values of a preparation's configuration.

    Raises:
        DataError: if a value is out of its range; the message says which, and the rule.
    """

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    share = cfg.contamination.min_share
    rules = [
        (cfg.conflicts in ("drop", "first"), "conflicts", "drop or first"),
        (cfg.probe_size is None or whole(cfg.probe_size, 0), "probe_size", "a whole number, 0 or more, or null"),
        (whole(cfg.val_size, 0), "val_size", "a whole number, 0 or more"),
        (cfg.limit is None or whole(cfg.limit, 1), "limit", "null or at least 1"),
        (
            cfg.prompt is None or (isinstance(cfg.prompt, str) and "{problem}" in cfg.prompt),
            "prompt",
            "null or contain {problem}",
        ),
        (whole(cfg.seed, 0), "seed", "a whole number, 0 or more"),
        (isinstance(cfg.out, str) and cfg.out != "", "out", "the path of a folder"),
        (isinstance(cfg.require_answer, bool), "require_answer", "true or false"),
        (isinstance(cfg.contamination.against, ListConfig), "contamination.against", "a list of sets, [] for none"),
        (whole(cfg.contamination.ngram, 3), "contamination.ngram", "at least 3; a common phrase is no copy"),
        (
            isinstance(share, int | float) and 0 < share <= 1,
            "contamination.min_share",
            "above 0 and at most 1",
        ),
    ]
    for holds, key, rule in rules:
        if not holds:
            raise DataError(f"{key}={OmegaConf.select(cfg, key)}: must be {rule}")


def _sizes(card: dict[str, Any]) -> str:
    return ", ".join(f"{name} {entry['rows']}" for name, entry in card["files"].items())


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("datasets", "pyarrow")}}


COMMAND = Command(
    module="recipes.data.prepare",
    what=(
        "Make training and evaluation files of a dataset: problems, answers and solutions in one schema, without "
        "duplicates, compared with the evaluation sets that are already prepared."
    ),
    examples=(
        ("dataset=dapo_math_17k", "from the hub to data/dapo_math_17k"),
        ("-m dataset=math_500,aime_2024,aime_2025", "several; evaluation sets first"),
        ("dataset=local file=mine.jsonl", "a file of your own (docs/own_data.md)"),
        ("dataset=math_500 source=downloads/math500", "from a local file or folder, without a network"),
        ("dataset=dapo_math_17k limit=1000 out=try", "only the first rows, elsewhere"),
    ),
    groups=("dataset",),
    keys=(
        ("dataset=<name>", "which set"),
        ("out=data", "files go to <out>/<name>/"),
        ("source=<file or folder>", "instead of the hub"),
        ("revision=<tag>", "branch, tag or commit on the hub"),
        ("force=true", "make it anew although the files are up to date"),
        ("limit=1000", "only the first rows of the source"),
        ("probe_size=64", "training problems held out for the exposure controller; 0 for none"),
        ("conflicts=first", "rows with different answers to one problem: drop | first"),
        ("'prompt=\"Solve this. {problem}\"'", "what is asked instead of the set's own prompt"),
        ("require_answer=false", "keep rows that cannot be graded"),
        ("contamination.remove=true", "leave copies of evaluation problems out"),
    ),
    types={"limit": "whole", "source": "text", "file": "text", "revision": "text", "prompt": "text"},
    more="Every key with what it means: config/prepare.yaml; own sets, columns, contamination: recipes/data/README.md.",
    not_started="Nothing was prepared:",
)


def _job(cfg: DictConfig) -> int:
    try:
        print(prepare(cfg))
    except (DataError, OSError) as error:  # OSError: no room, no right to read or write
        print(f"{cfg.dataset.get('name') or 'The file'} was not prepared: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> None:
    """The command line; exits with 2 if the user has something to put right."""
    run(COMMAND, _job, "prepare")


if __name__ == "__main__":
    main()
