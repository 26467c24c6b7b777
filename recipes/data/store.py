"""Prepared files on disk: their columns, writing them whole or not at all, and the card that identifies them."""

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

from recipes.data.readers import DataError
from recipes.data.sources import file_sha256

CARD, README = "card.json", "README.md"
SPLITS = ("train", "probe", "val", "test")
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
    """Hex SHA-256 of the rows' content, which does not depend on the version of pyarrow that wrote the file."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def read_card(folder: Path) -> dict[str, Any] | None:
    """The content of a finished dataset's card; None if there is no card, or only a part of one."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return card if isinstance(card, dict) and {"made_from", "files"} <= card.keys() else None


def is_intact(folder: Path, card: dict[str, Any]) -> bool:
    """Whether the files on disk are those of the card, byte for byte.

    Args:
        folder: a prepared dataset's.
        card: content of its `card.json`.
    """
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


def refuse_foreign_files(folder: Path, sources: Iterable[Path]) -> None:
    """Check that writing a dataset takes no file away that is not one of ours.

    Args:
        folder: where the dataset is to be written.
        sources: the files that the dataset is made from.

    Raises:
        DataError: a source lies in the folder, or a file there has a name that would be written and is not ours.
    """
    inside = [path for path in sources if folder.resolve() in path.resolve().parents]
    if inside:
        raise DataError(
            f"{inside[0]} lies in {folder}, which the prepared files are written to; move it, or choose another folder "
            "with dataset.name= or out="
        )
    if read_card(folder) is not None:
        return
    for path in (*(folder / f"{split}.parquet" for split in SPLITS), folder / README):
        if path.exists() and not _is_ours(path):
            raise DataError(
                f"{path} is there and was not written by this command; move it, or choose another folder with "
                "dataset.name= or out="
            )


def _is_ours(path: Path) -> bool:
    try:
        if path.name == README:
            return "recipes.data.prepare" in path.read_text(encoding="utf-8")
        return pq.read_schema(path).equals(SCHEMA)
    except (pa.ArrowException, OSError, ValueError):
        return False


def write_dataset(folder: Path, splits: dict[str, list[dict[str, Any]]], card: dict[str, Any], readme: str) -> None:
    """Write ``<split>.parquet``, README.md and, last, the card; splits of an earlier run that are not written again go.

    Everything is written beside its place and then moved, and the old card goes before the first move: at any moment
    the folder holds a complete dataset with its card, or no card.

    Args:
        folder: made if it is not there.
        splits: name of a split, one of `SPLITS` -> its rows, with the columns of `SCHEMA`.
        card: the card's content without "files", which is added.
        readme: the text of README.md.
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
    (staging / README).write_text(readme, encoding="utf-8")
    (staging / CARD).write_text(
        json.dumps({**card, "files": files}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for path in staging.iterdir():
        sync(path)
    (folder / CARD).unlink(missing_ok=True)
    for split in SPLITS:
        if f"{split}.parquet" not in files:
            (folder / f"{split}.parquet").unlink(missing_ok=True)
    for name in [*files, README, CARD]:
        os.replace(staging / name, folder / name)
    sync(folder)
    staging.rmdir()
