"""`python -m recipes.data.prepare dataset=<name> [source=<file or folder>] [out=data]`: see config/prepare.yaml.

Reads a dataset, drops what cannot be used, holds a probe split out of training sets, reports copies of evaluation
problems, and writes parquet files with a card.  A second run finds its files up to date and does nothing; an
interrupted one leaves no card, and is simply run again.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.command_line import Command, run
from recipes.common.teacher.prompts import student_messages
from recipes.data import contamination
from recipes.data.card import readme_text
from recipes.data.convert import Item, problem_key, to_item, to_row
from recipes.data.sources import DataError, DatasetSpec, identity, read_rows
from recipes.data.store import is_intact, read_card, write_dataset
from rewards.normalize import quick_verdict

# Raise it when the meaning of the output changes, so that files of an older version are made anew.
FORMAT_VERSION = 1


@dataclass
class Collected:
    """Items in the source's order, one for each problem, and what became of the others."""

    items: list[Item] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


def collect(rows: Iterable[dict[str, Any]], spec: DatasetSpec, conflicts: str, require_answer: bool) -> Collected:
    """Convert rows, keeping the first of each problem.  Memory is that of the kept items, however many rows there are.

    ``conflicts``: "drop" leaves out every problem that occurs with different answers, "first" keeps its first row.
    """
    result = Collected()
    counts = result.counts
    kept: dict[bytes, Item] = {}
    contradicted: set[bytes] = set()
    for index, row in enumerate(rows):
        counts["rows read"] += 1
        item = to_item(row, spec, index)
        if not item.problem:
            counts["without a problem"] += 1
            continue
        if require_answer and not item.answer:
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
    order = sorted(
        range(len(items)), key=lambda n: hashlib.sha256(f"{seed}\0{problem_key(items[n].problem)}".encode()).digest()
    )
    chosen = set(order[:size])
    train = [item for number, item in enumerate(items) if number not in chosen]
    return train, [item for number, item in enumerate(items) if number in chosen]


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
    sets, set_hashes, missing = evaluation_sets(out, cfg.contamination.against) if training else ({}, {}, [])
    settings = {key: cfg[key] for key in ("limit", "probe_size", "seed", "conflicts", "require_answer")}
    made_from = {
        "format": FORMAT_VERSION,
        "dataset": OmegaConf.to_container(cfg.dataset, resolve=True),
        "input": identity(spec, cfg.source, cfg.revision),
        "settings": settings if training else {**settings, "probe_size": 0},
        "prompt": student_messages("{problem}"),
        "contamination": {
            **{key: cfg.contamination[key] for key in ("ngram", "min_share", "remove")},
            "against": set_hashes,
        },
    }
    card = read_card(folder)
    if card and not cfg.force and card["made_from"] == made_from and is_intact(folder, card):
        return f"{folder} is up to date ({_sizes(card)}); force=true makes it anew"

    rows = read_rows(spec, cfg.source, cfg.revision)
    collected = collect(_first(rows, cfg.limit), spec, cfg.conflicts, cfg.require_answer)
    counts = collected.counts
    if not collected.items:
        raise DataError(f"{spec.name}: no usable row among {counts['rows read']} read: {dict(counts)}")
    train, probe = hold_out(collected.items, cfg.probe_size if training else 0, cfg.seed)
    parts = {"train": train, "probe": probe} if training else {"test": train}
    overlap = check_copies(collected.items, sets, cfg.contamination.ngram, cfg.contamination.min_share)
    copies = {copy["source_index"] for report in overlap.values() for copy in report["copies"]}
    counts["copies of evaluation problems"] = len(copies)
    if cfg.contamination.remove:
        parts = {name: [item for item in items if item.source_index not in copies] for name, items in parts.items()}
    splits = {
        name: [to_row(item, spec.name, name, index) for index, item in enumerate(items)]
        for name, items in parts.items()
        if items or name != "probe"
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
    write_dataset(folder, splits, card, readme_text(card))
    lines = [f"{folder}: " + ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())]
    lines += [f"  {what}: {number}" for what, number in counts.items()]
    if missing:
        lines.append(f"  not checked for copies of {', '.join(missing)}: prepare these first, into the same out={out}")
    if copies and not cfg.contamination.remove:
        lines.append(
            f"  {len(copies)} copies of evaluation problems are still in; contamination.remove=true drops them"
        )
    return "\n".join(lines)


def check_settings(cfg: DictConfig, spec: DatasetSpec) -> None:
    """Raises DataError for a value out of its range."""
    rules = [
        (cfg.conflicts in ("drop", "first"), "conflicts", "drop or first"),
        (cfg.probe_size >= 0, "probe_size", "0 or more"),
        (cfg.limit is None or cfg.limit > 0, "limit", "null or at least 1"),
        (cfg.contamination.ngram >= 3, "contamination.ngram", "at least 3; a common phrase is no copy"),
        (0 < cfg.contamination.min_share <= 1, "contamination.min_share", "above 0 and at most 1"),
    ]
    for holds, key, rule in rules:
        if not holds:
            raise DataError(f"{key}={OmegaConf.select(cfg, key)}: must be {rule}")
    if spec.role not in ("train", "eval"):
        raise DataError(f"dataset.role={spec.role}: must be train or eval; see config/dataset/*.yaml")


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


COMMAND = Command(
    module="recipes.data.prepare",
    what=(
        "Make training and evaluation files of a dataset: problems, answers and solutions in one schema, without "
        "duplicates, compared with the evaluation sets that are already prepared."
    ),
    examples=(
        ("dataset=dapo_math_17k", "from the hub to data/dapo_math_17k"),
        ("-m dataset=math_500,aime_2024,aime_2025", "several; evaluation sets first"),
        ("dataset=math_500 source=downloads/math500", "from a local file or folder, without a network"),
        ("dataset=dapo_math_17k limit=1000 out=try", "only the first rows, elsewhere"),
        ("dataset=openthoughts_math_30k contamination.remove=true", "without copies of evaluation problems"),
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
        ("require_answer=false", "keep rows that cannot be graded"),
        ("contamination.remove=true", "leave copies of evaluation problems out"),
    ),
    types={"limit": "whole", "source": "text", "revision": "text"},
    more="Every key with what it means: config/prepare.yaml; own sets, columns, contamination: recipes/data/README.md.",
    not_started="Nothing was prepared:",
)


def _job(cfg: DictConfig) -> int:
    try:
        print(prepare(cfg))
    except DataError as error:
        print(f"{cfg.dataset.name} was not prepared: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> None:
    """The command line; exits with 2 where the user has something to put right."""
    run(COMMAND, _job, "prepare")


if __name__ == "__main__":
    main()
