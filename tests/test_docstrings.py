"""Every public name of the package says what it is, takes and refuses, in the one dialect of its docstrings.

A public name has no leading underscore, nor has its class.  A function with two parameters or more names each of them
under `Args:`; one that raises an error itself has `Raises:`, with entries that begin with "if".  A method of a class
with bases may be a library's hook, whose own documentation says that: one line is enough there.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
ROOMS = ("advantage", "workers", "rewards", "recipes", "config")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Gap = tuple[int, str]  # line, what is missing there


def gaps(source: str) -> list[Gap]:
    """What the docstrings of one module leave out."""
    module = ast.parse(source)
    has_own = not module.body or ast.get_docstring(module)
    return [*([] if has_own else [(1, "the module has no docstring")]), *_gaps_below(module, owner=None)]


def _gaps_below(parent: ast.Module | ast.ClassDef, owner: ast.ClassDef | None) -> Iterator[Gap]:
    for node in _definitions(parent.body):
        if node.name.startswith("_"):
            continue
        name = node.name if owner is None else f"{owner.name}.{node.name}"
        if isinstance(node, ast.ClassDef):
            if not ast.get_docstring(node):
                yield node.lineno, f"class {name} has no docstring"
            yield from _gaps_below(node, owner=node)
        elif not _is_setter(node):  # its property says what it is
            yield from ((node.lineno, f"{name} {gap}") for gap in _gaps_of(node, owner))


def _definitions(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """The functions and classes of a module or class, those below an `if` or a `try` with them."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for branch in ("body", "handlers", "orelse", "finalbody"):
                yield from _definitions(getattr(node, branch, []))


def _is_setter(function: Function) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter") for d in function.decorator_list)


def _gaps_of(function: Function, owner: ast.ClassDef | None) -> Iterator[str]:
    docstring = ast.get_docstring(function)
    if not docstring:
        yield "has no docstring"
        return
    arguments, raises = _entries(docstring, "Args"), _entries(docstring, "Raises")
    yield from (f'has an entry under `Raises:` that does not begin with "if": {r}' for r in raises if ": if " not in r)
    if owner is not None and owner.bases:
        return
    names = _parameters(function)
    described = {name for entry in arguments for name in re.findall(r"\w+", entry.partition(":")[0])}
    if len(names) > 1 and not arguments:
        yield f"has no `Args:` for {', '.join(names)}"
    elif len(names) > 1:
        yield from (f"does not name {name} under `Args:`" for name in names if name not in described)
    if not raises and (errors := sorted(set(_raised(function)))):
        yield f"has no `Raises:` for {', '.join(errors)}"


def _parameters(function: Function) -> list[str]:
    takes = function.args
    every = [*takes.posonlyargs, *takes.args, *takes.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def _entries(docstring: str, heading: str) -> list[str]:
    """First lines of the entries of a section, such as "low, high: the range."."""
    found = re.search(rf"^{heading}:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    return re.findall(r"^    (\S.*)$", found[1], re.MULTILINE) if found else []


def _raised(function: Function) -> Iterator[str]:
    """The errors that a function raises itself: not those of nested functions, nor what it only passes on."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            if error != "NotImplementedError":
                yield error
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_of_a_room_are_complete(room):
    modules = sorted((REPO / room).rglob("*.py"))
    assert modules
    missing = [
        f"{path.relative_to(REPO)}:{line}: {gap}" for path in modules for line, gap in gaps(path.read_text("utf-8"))
    ]
    assert not missing, "\n".join(["docstrings leave something out:", *missing])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", []),
        ("x = 1", [(1, "the module has no docstring")]),
        ('"""M."""\ndef f(): ...', [(2, "f has no docstring")]),
        ('"""M."""\nif x:\n  pass\nelse:\n  def f(): ...', [(5, "f has no docstring")]),
        ('"""M."""\ndef _f(a, b): ...\nclass _C:\n  def f(self): ...', []),
        ('"""M."""\nclass C:\n  def f(self): ...', [(2, "class C has no docstring"), (3, "C.f has no docstring")]),
        ('"""M."""\ndef f(a, *b, **c):\n  """F."""', []),
        ('"""M."""\ndef f(a, *, b):\n  """F."""', [(2, "f has no `Args:` for a, b")]),
        ('"""M."""\ndef f(a, b):\n  """F.\n\n  Args:\n      a, b: x.\n  """', []),
        ('"""M."""\ndef f(a, b):\n  """F.\n\n  Args:\n      a: b.\n  """', [(2, "f does not name b under `Args:`")]),
        ('"""M."""\ndef f():\n  """F."""\n  raise E("x")', [(2, "f has no `Raises:` for E")]),
        ('"""M."""\ndef f():\n  """F."""\n  def g():\n    raise E\n  raise', []),
        ('"""M."""\nclass C(B):\n  """C."""\n  def f(self, a, b):\n    """F."""\n    raise E', []),
        ('"""M."""\nclass C(B):\n  """C."""\n  def f(self): ...', [(4, "C.f has no docstring")]),
        (
            '"""M."""\ndef f():\n  """F.\n\n  Raises:\n      E: it is bad.\n  """\n  raise E',
            [(2, 'f has an entry under `Raises:` that does not begin with "if": E: it is bad.')],
        ),
    ],
)
def test_what_is_missing_is_named(source, expected):
    assert gaps(source) == expected
