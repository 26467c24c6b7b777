"""A benchmark that no test runs must not be the last to hear that a module moved."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks
import workers.cpu.platform  # noqa: F401 (one module asks verl for it, whoever registers it)


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__)))
def test_it_imports(name):
    importlib.import_module(f"benchmarks.{name}")
