"""The rooms that docs/architecture.md has: no import runs back up in recipes/common, none anywhere in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from tests.builders.configs import ROOT

COMMON = ROOT / "recipes" / "common"
# From the ground up: a room imports rooms before it only. `checks.errors` is the word for a refusal, which all may say.
FLOORS = ("paths", "metric_names", "teacher", "method", "record", "plan", "step", "checks", "models", "processes")
FREE = "recipes.common.checks.errors"


def imported(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if parts[:2] == ["recipes", "common"] and len(parts) > 2 else None


def test_no_import_runs_back_up():
    files = [p for p in COMMON.rglob("*.py") if p != COMMON / "__init__.py"]
    assert len(files) > 30
    for path in files:
        own = path.relative_to(COMMON).parts[0].removesuffix(".py")
        for module in imported(path):
            room = room_of(module)
            if room is None or module.startswith(FREE):
                continue
            assert FLOORS.index(room) <= FLOORS.index(own), f"{path.relative_to(ROOT)} imports {module}"


def test_nothing_below_imports_what_is_made_of_runs():
    above = ("recipes.entry", "recipes.report", "recipes.export", "recipes.evaluate", "recipes.diagnose")
    for folder in ("recipes/common", "workers", "advantage", "rewards", "config"):
        for path in (ROOT / folder).rglob("*.py"):
            wrong = [module for module in imported(path) if module.startswith(above)]
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_modules_import_each_other_in_a_circle():
    """Imports within functions and for types count too: who reads one file of a circle has to read all."""
    rooms = ("advantage", "config", "recipes", "rewards", "workers")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    # A package's face hands names on from its modules, which name the package in turn for its other modules.
    faces = {name for name, path in names.items() if path.name == "__init__.py"}
    modules = names.keys() - faces
    graph = {name: imported(names[name]) & modules for name in modules}
    assert len(list(TopologicalSorter(graph).static_order())) > 200  # raises graphlib.CycleError, which names a circle
