"""Files of the user that hide packages of this one: `config.py`, or a folder `rewards`, where a command is started.

Python looks into the folder that it is started in before it looks where packages are installed, and Ray adds that
folder to the path of every process of a run. What is then imported under our names is somebody else's, and what fails
does so much later and with another reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("advantage", "config", "recipes", "rewards", "workers")
HOME = Path(__file__).resolve().parents[1]


def hiding(folder: Path | None = None) -> Iterator[tuple[str, Path]]:
    """(package, path of what hides it) of each of our packages that Python would find elsewhere.

    Args:
        folder: looked into before all others, as Ray's processes do with the current one; None: the path as it is.
    """
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        for name in NAMES:
            place = _place(name)
            if place is not None and HOME != place.parent:
                yield name, place
    finally:
        sys.path[:] = before


def _place(name: str) -> Path | None:
    """The folder of the package, or the file of the module, that an import would find; None where there is none."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            inside = next(iter(spec.submodule_search_locations or ()), None)
            found = Path(inside or spec.origin or "").resolve()
            return found if inside or spec.origin else None
    return None


def sentences(folder: Path | None = None) -> list[str]:
    """What `hiding` finds, for people, with what to do about it."""
    return [
        f"{place} hides the package {name!r} of verl-self-distill ({HOME / name}): rename it, or start elsewhere"
        for name, place in hiding(folder)
    ]


def refuse() -> None:
    """Raise ImportError where one of our packages cannot be imported because another is in its way."""
    found = sentences()
    if found:
        raise ImportError("; ".join(found))
