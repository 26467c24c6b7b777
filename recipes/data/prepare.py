"""`python -m recipes.data.prepare dataset=<name> [source=<file or folder>] [out=data]`: see config/prepare.yaml.

Reads a dataset, drops what cannot be used, holds a probe split out of training sets, reports copies of evaluation
problems, and writes parquet files with a card.  A second run finds its files up to date and does nothing; an
interrupted one leaves no card, and is simply run again.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

import config as config_package
from recipes.data import contamination
from recipes.data.card import readme_text
from recipes.data.convert import Item, problem_key, prompt_messages, to_item, to_row
from recipes.data.sources import DataError, DatasetSpec, identity, read_rows
from recipes.data.store import is_intact, read_card, write_dataset
from rewards.by_grader import GRADERS
from rewards.normalize import quick_verdict

CONFIG_DIR = Path(config_package.__file__).resolve().parent
# Raise it when the meaning of the output changes, so that files of an older version are made anew.
FORMAT_VERSION = 2


@dataclass
class Collected:
    """Items in the source's order, one for each problem, and what became of the others."""

    items: list[Item] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def collect(
    rows: Iterable[dict[str, Any]], spec: DatasetSpec, conflicts: str, require_answer: bool, seed: int = 1
) -> Collected:
    """Convert rows, keeping the first of each problem.  Memory is that of the kept items, however many rows there are.

    ``conflicts``: "drop" leaves out every problem that occurs with different answers, "first" keeps its first row.
    """
    result = Collected()
    counts = result.counts
    kept: dict[bytes, Item] = {}
    contradicted: set[bytes] = set()
    for index, row in enumerate(rows):
        counts["rows read"] += 1
        item = to_item(row, spec, index, seed)
        if not item.problem:
            counts["without a problem"] += 1
            continue
        if item.dropped:
            counts[item.dropped] += 1
            continue
        if require_answer and not item.answer and not item.gold:
            counts["without an answer"] += 1
            continue
        key = hashlib.sha256(problem_key(item.problem).encode("utf-8", "surrogatepass")).digest()
        first = kept.setdefault(key, item)
        if first is not item:
            counts["duplicates"] += 1
            if quick_verdict(first.answer, item.answer) is not True:
                contradicted.add(key)
        elif not item.unwrapped:
            counts["without the expected instructions"] += 1
    counts["problems with contradicting answers"] = len(contradicted)
    for key, item in kept.items():
        if conflicts == "first" or key not in contradicted:
            result.items.append(item)
    return result


def hold_out(items: list[Item], size: int, seed: int) -> tuple[list[Item], list[Item]]:
    """(train, probe): ``size`` items chosen by a hash of seed and problem, both in the source's order.

    Raises DataError where no training item would be left.
    """
    if size == 0:
        return items, []
    if size >= len(items):
        raise DataError(f"probe_size={size} leaves nothing of {len(items)} items to train on; make it smaller")
    chosen = set(_by_hash(items, seed)[:size])
    train = [item for number, item in enumerate(items) if number not in chosen]
    return train, [item for number, item in enumerate(items) if number in chosen]


def hold_out_levels(items: list[Item], size: int, seed: int) -> tuple[list[Item], list[Item]]:
    """(train, test): ``size`` items, one from each difficulty in turn, chosen within it as `hold_out` chooses.

    Raises DataError where no training item would be left.
    """
    if size >= len(items):
        raise DataError(f"dataset.test_size={size} leaves nothing of {len(items)} items to train on; make it smaller")
    levels: dict[float | None, list[Item]] = {}
    for number in _by_hash(items, seed):
        levels.setdefault(items[number].extra.get("difficulty"), []).append(items[number])
    turns = itertools.zip_longest(*(levels[level] for level in sorted(levels, key=lambda d: (d is None, d))))
    held = list(itertools.islice((item for turn in turns for item in turn if item is not None), size))
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
    """(problems by set, content hash by set, names not prepared) of the sets to check training problems against."""
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
    """For each evaluation set: how many items share an n-gram with it, and which are copies of its problems."""
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
    """Prepare one dataset; returns what to tell the user.  Raises DataError."""
    spec = DatasetSpec(**OmegaConf.to_container(cfg.dataset, resolve=True))
    check_settings(cfg, spec)
    out = Path(cfg.out)
    folder = out / spec.name
    training = spec.role == "train"
    compared = training and spec.grader == "math"  # with the sets of contamination.against, which are mathematics
    sets, set_hashes, missing = evaluation_sets(out, cfg.contamination.against) if compared else ({}, {}, [])
    settings = {key: cfg[key] for key in ("limit", "probe_size", "seed", "conflicts", "require_answer")}
    made_from = {
        "format": FORMAT_VERSION,
        "dataset": OmegaConf.to_container(cfg.dataset, resolve=True),
        "input": identity(spec, cfg.source, cfg.revision),
        "settings": settings if training else {**settings, "probe_size": 0},
        "prompt": prompt_messages("{problem}", cfg.prompt or spec.prompt),
        "contamination": {
            **{key: cfg.contamination[key] for key in ("ngram", "min_share", "remove")},
            "against": set_hashes,
        },
    }
    card = read_card(folder)
    if card and not cfg.force and card["made_from"] == made_from and is_intact(folder, card):
        return f"{folder} is up to date ({_sizes(card)}); force=true makes it anew"

    rows = read_rows(spec, cfg.source, cfg.revision)
    collected = collect(_first(rows, cfg.limit), spec, cfg.conflicts, cfg.require_answer, cfg.seed)
    counts = collected.counts
    if not collected.items:
        raise DataError(f"{spec.name}: no usable row among {counts['rows read']} read: {dict(counts)}")
    left, test = hold_out_levels(collected.items, spec.test_size, cfg.seed) if training else ([], collected.items)
    train, probe = hold_out(left, cfg.probe_size if training else 0, cfg.seed)
    parts = {"train": train, "probe": probe, "test": test} if training else {"test": test}
    overlap = check_copies(collected.items, sets, cfg.contamination.ngram, cfg.contamination.min_share)
    copies = {copy["source_index"] for report in overlap.values() for copy in report["copies"]}
    counts["copies of evaluation problems"] = len(copies)
    if cfg.contamination.remove:
        parts = {name: [item for item in items if item.source_index not in copies] for name, items in parts.items()}
    splits = {
        name: [to_row(item, spec.name, name, index, cfg.prompt or spec.prompt) for index, item in enumerate(items)]
        for name, items in parts.items()
        if items or name == "train" or not training
    }
    for name, split_rows in splits.items():
        counts[f"written to {name}"] = len(split_rows)
        counts[f"of these with a solution ({name})"] = sum(bool(row["solution"]) for row in split_rows)
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
    return "\n".join(lines)


def published_note(spec: DatasetSpec, source: dict[str, Any]) -> str:
    """Whether a local file is the one whose hash its users published, in a sentence; "" where none is published."""
    if spec.published_sha256 is None:
        return ""
    by, files = spec.published_by, source.get("files")
    if files is None:
        return f"not compared with the hash that {by} published, which is of a file: give the file as source="
    if spec.published_sha256 in files.values():
        return f"this is the file that {by} used: SHA-256 {spec.published_sha256}"
    return f"this is not the file that {by} used, whose SHA-256 is {spec.published_sha256}: its problems may differ"


def check_settings(cfg: DictConfig, spec: DatasetSpec) -> None:
    """Raises DataError for a value out of its range."""
    rules = [
        (cfg.conflicts in ("drop", "first"), "conflicts", "drop or first"),
        (cfg.probe_size >= 0, "probe_size", "0 or more"),
        (cfg.limit is None or cfg.limit > 0, "limit", "null or at least 1"),
        (cfg.contamination.ngram >= 3, "contamination.ngram", "at least 3; a common phrase is no copy"),
        (0 < cfg.contamination.min_share <= 1, "contamination.min_share", "above 0 and at most 1"),
    ]
    rules += [
        (spec.grader in GRADERS, "dataset.grader", f"one of {', '.join(GRADERS)}"),
        (spec.test_size >= 0, "dataset.test_size", "0 or more"),
        (_range_fits(spec), "dataset.difficulty_range", "null, or [lowest, highest] of a set with dataset.difficulty"),
        ("{problem}" in (cfg.prompt or "{problem}"), "prompt", "null or contain {problem}"),
        ("{problem}" in (spec.prompt or "{problem}"), "dataset.prompt", "null or contain {problem}"),
    ]
    for holds, key, rule in rules:
        if not holds:
            raise DataError(f"{key}={OmegaConf.select(cfg, key)}: must be {rule}")
    if spec.role not in ("train", "eval"):
        raise DataError(f"dataset.role={spec.role}: must be train or eval; see config/dataset/*.yaml")


def _range_fits(spec: DatasetSpec) -> bool:
    bounds = spec.difficulty_range
    return bounds is None or (spec.difficulty is not None and len(bounds) == 2 and bounds[0] <= bounds[1])


def _first(rows: Iterable[dict[str, Any]], limit: int | None) -> Iterable[dict[str, Any]]:
    for index, row in enumerate(rows):
        if limit is not None and index >= limit:
            return
        yield row


def _sizes(card: dict[str, Any]) -> str:
    return ", ".join(f"{name} {entry['rows']}" for name, entry in card["files"].items())


def _versions() -> dict[str, str]:
    import datasets
    import pyarrow

    return {"python": platform.python_version(), "datasets": datasets.__version__, "pyarrow": pyarrow.__version__}


@hydra.main(config_path=str(CONFIG_DIR), config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """The command line; exits with 2 where the user has something to put right."""
    try:
        print(prepare(cfg))
    except DataError as error:
        print(f"{cfg.dataset.name} was not prepared: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
