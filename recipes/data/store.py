"""Prepared files on disk: schema, atomic writing, and the dataset card that says what they are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.data.sources import file_sha256

CARD = "card.json"
# One schema for all sets: verl concatenates the files it is given, and refuses differing columns.
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("problem", pa.string()),
        ("solution", pa.string()),
        ("answer", pa.string()),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("split", pa.string()),
                    ("source_index", pa.int64()),
                    ("grader", pa.string()),  # rewards.by_grader; null for mathematics
                    ("options", pa.list_(pa.string())),
                    ("difficulty", pa.float64()),
                ]
            ),
        ),
    ]
)


def rows_sha256(rows: Iterable[dict[str, Any]]) -> str:
    """Hash of the rows' content: the same for the same data, whatever version of pyarrow wrote the file."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a finished dataset, None where there is none (or only a part of one)."""
    try:
        return json.loads((folder / CARD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def is_intact(folder: Path, card: dict[str, Any]) -> bool:
    """Whether the files on disk are those of the card, byte for byte."""
    files = card.get("files", {})
    return bool(files) and all(
        (folder / name).is_file() and file_sha256(folder / name) == entry["sha256"] for name, entry in files.items()
    )


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_dataset(folder: Path, splits: dict[str, list[dict[str, Any]]], card: dict[str, Any], readme: str) -> None:
    """Write ``<split>.parquet``, README.md and, last, the card.

    Everything is written beside its place and then moved, and the old card goes before the first move: at any moment
    the folder holds a complete dataset with its card, or no card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / ".partial"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was interrupted
    staging.mkdir()
    files = {}
    for split, rows in splits.items():
        path = staging / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
        files[path.name] = {"rows": len(rows), "sha256": file_sha256(path), "rows_sha256": rows_sha256(rows)}
    (staging / "README.md").write_text(readme)
    (staging / CARD).write_text(json.dumps({**card, "files": files}, indent=2, ensure_ascii=False) + "\n")
    for path in staging.iterdir():
        sync(path)
    (folder / CARD).unlink(missing_ok=True)
    for stale in folder.glob("*.parquet"):
        if stale.name not in files:
            stale.unlink()
    for name in [*files, "README.md", CARD]:
        os.replace(staging / name, folder / name)
    sync(folder)
    staging.rmdir()
