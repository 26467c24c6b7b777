"""verl's engine on a machine without Ray: packages that verl imports and its engine does not use are stubbed.

`stub()` makes `import ray` and its like succeed where the package is absent, and leaves an installed one alone.  What a
module does with such a package while it is imported works: decorators hand back what they decorate, base classes are
plain ones, annotations and `isinstance` find nothing.  Anything else, a call above all, raises `NotInstalled` with the
package's name, so no result can come from a stub.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# What verl 0.9.1 imports on the way to its FSDP engine and the engine does without.
UNUSED = ("ray", "transfer_queue", "datasets", "pandas", "dill", "PIL")


class NotInstalled(RuntimeError):
    """A package that is only a stub here was really asked for something."""


class _Anything:
    """A name of a stubbed package: may decorate, be a base class or an annotation, and nothing else."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self._name}.{name}")

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and not options and isinstance(args[0], type | types.FunctionType):
            return args[0]  # used as @name
        if not args and options:
            return self  # used as @name(option=...)
        raise NotInstalled(f"{self._name} is a stub here, and was called: install {self._name.split('.')[0]}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, value: Any) -> bool:
        return False

    def __or__(self, other: Any) -> _Anything:
        return self

    __ror__ = __getitem__ = __or__


class _StubModule(types.ModuleType):
    __path__: Sequence[str] = ()  # a package: its submodules are stubs too

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]):
        self.packages = frozenset(packages)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


def stub() -> tuple[str, ...]:
    """Answer the packages of `UNUSED` that are not installed by stubs, from now on; returns their names."""
    absent = tuple(name for name in UNUSED if name not in sys.modules and importlib.util.find_spec(name) is None)
    if absent:
        sys.meta_path.append(_Finder(absent))
    return absent
