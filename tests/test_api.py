"""The Python API that people build on: what docs/python.md documents, held to recorded signatures.

A change of a name, an argument or a default fails here. Where it is meant, `python -m tests.test_api` records it anew,
and the change log says so. The full reference is made of the same list.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.builders.configs import ROOT
from tests.builders.runs import record, response, write_run

SAMPLE = response(["a", "b"], delta=[0.5, None])
RECORDED = ROOT / "tests" / "data" / "api.txt"
PAGE = ROOT / "docs" / "python.md"
# Values that a signature shows by address or by all they contain.
_UNSTABLE = re.compile(r"<(?:function|factory|object)[^>]*>|Template\(.*?\.\)")


def documented() -> list[str]:
    """The modules, and single members of others, of docs/python.md, in its order."""
    return re.findall(r"^::: ([\w.]+)$", PAGE.read_text(), re.MULTILINE)


def entries(path: str) -> Iterator[tuple[str, Any]]:
    """Names and values of a documented module, or of the one member that the path names."""
    try:
        yield from public(importlib.import_module(path))
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        yield name, getattr(importlib.import_module(module), name)


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Names and values that a module gives to others: `__all__`, or what it defines itself without an underscore."""
    given = getattr(module, "__all__", None)
    for name in sorted(vars(module) if given is None else given):
        value = getattr(module, name)
        if given is not None or (
            not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
        ):
            yield name, value


def signature(value: Any) -> str:
    """Arguments with types and defaults, and the result's type, as text that every supported Python writes alike."""
    text = str(inspect.signature(value)).replace("'", "").replace('"', "")
    return _UNSTABLE.sub("…", text)


def described(name: str, value: Any) -> Iterator[str]:
    """A line for a name, and one for each public method or property of a class."""
    if inspect.isclass(value):
        # An exception's own constructor is BaseException's, which says nothing.
        plain = issubclass(value, Exception) and "__init__" not in vars(value)
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"class {name}({bases})" if plain else f"class {name}{signature(value).replace(' -> None', '')}"
        fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        for member, got in sorted(vars(value).items()):
            if member.startswith("_") or member in fields:
                continue
            if inspect.isfunction(got):
                yield f"    {member}{signature(got)}"
            elif isinstance(got, classmethod | staticmethod):
                yield f"    {member}{signature(got.__func__)}"
            else:
                yield f"    {member}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def recorded_text() -> str:
    """Everything, as it stands in the file."""
    parts = []
    for path in documented():
        lines = [line for entry in entries(path) for line in described(*entry)]
        parts.append("\n".join([f"[{path}]", *lines]))
    return "\n\n".join(parts) + "\n"


def test_the_api_is_the_recorded_one():
    assert recorded_text() == RECORDED.read_text(), "meant? `python -m tests.test_api` records it, CHANGELOG.md says it"


def test_everything_in_it_says_what_it_is():
    for path in documented():
        for name, value in entries(path):
            if callable(value):
                own = inspect.getdoc(value)
                assert own and not own.startswith(f"{name}("), f"{path}: {name} has no docstring"


def test_the_calls_of_the_page_run(tmp_path):
    """Each block of the page, in order, with the names of those before it; its run is one that is written here."""
    run = write_run(tmp_path / "run", [record(1, critic__score__mean=0.5)], samples=[{"step": 1, "samples": [SAMPLE]}])
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(re.sub(r'load_run\(".*?"\)', f"load_run({str(run)!r})", block), names)
    assert names["credit"].advantages.shape == (2, 3) and names["student"].grad.isfinite().all()
    assert names["run"].metrics["critic/score/mean"].tolist() == [0.5]
    assert names["run"].responses["delta"].tolist() == [[0.5, None]]


def test_a_changed_argument_or_default_would_be_seen():
    def before(x: int, *, y: float = 1.0) -> None: ...

    def after(x: int, *, y: float = 2.0) -> None: ...

    assert signature(before) != signature(after)

    class Old:
        def method(self) -> None: ...

    class New:
        def method(self, more: int) -> None: ...

    assert list(described("C", Old)) != list(described("C", New))


if __name__ == "__main__":
    Path(RECORDED).write_text(recorded_text(), encoding="utf-8")
    print(f"{RECORDED.relative_to(ROOT)} written")
