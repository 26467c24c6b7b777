"""The paper index: each paper, the bundles that implement it, where their code is, and every value with its section.

Made of what the bundles in config/method say of themselves, and of the comments beside their values.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import yaml

from advantage.estimators import ESTIMATORS
from advantage.token_weights import TOKEN_WEIGHTS
from config import CONFIG_DIR
from docs.generate.keys import shown
from docs.generate.text import cell, code, table
from recipes.common.method import About, shipped
from recipes.methods import BUNDLES, command, recipe_of
from recipes.report.preset import sourced_values

ROOT = CONFIG_DIR.parent
INTRODUCTION = """# Papers

Each paper, what of it is implemented and where, the command that trains with it, and every value with the section it is
from; "ours" marks what a paper leaves open. All of it stands in `config/`, beside the values that are used."""
USUAL_PROTOCOL = "dasd"  # of bundles that name none: config/train.yaml
_NOT_SHOWN = ("self_distill.about", "self_distill.method")


def by_paper() -> dict[str, list[About]]:
    """arXiv number -> the bundles that implement it, first the one after which most of the others are called."""
    found: dict[str, list[About]] = {}
    for method in shipped():
        if "arxiv" in method.paper:
            found.setdefault(method.paper["arxiv"], []).append(method)
    for of_paper in found.values():
        names = [method.name for method in of_paper]
        of_paper.sort(key=lambda m: (-sum(name.startswith(m.name) for name in names), len(m.name), m.name))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def page() -> str:
    """The index as one Markdown page; links are those of a page in docs/."""
    parts = [INTRODUCTION]
    rows = []
    for arxiv, methods in by_paper().items():
        title = methods[0].paper.get("title", arxiv)
        rows.append((f"[{cell(title)}](#arxiv-{arxiv.replace('.', '-')})", _link(arxiv), cell(_titles(methods))))
    parts.append(table(("paper", "arXiv", "implemented"), rows))
    for arxiv, methods in by_paper().items():
        parts += _section(arxiv, methods)
    return "\n\n".join(parts) + "\n"


def _section(arxiv: str, methods: list[About]) -> Iterator[str]:
    paper = methods[0].paper
    yield f"## {paper.get('title', arxiv)} {{#arxiv-{arxiv.replace('.', '-')}}}"
    authors = f"{cell(_authors(paper['authors']))}. " if "authors" in paper else ""
    yield f"{authors}{_link(arxiv)}"
    yield table(
        ("method", "command", "trained with", "code"),
        ((_page_of(m), code(command(m.name)), cell(m.credit), ", ".join(_files(m.name))) for m in methods),
    )
    own: dict[str, str] = {}
    for number, method in enumerate(methods):
        values = {
            key: (shown(value), source)
            for key, (value, source) in sourced_values("method", method.name).items()
            if not key.startswith(_NOT_SHOWN)
        }
        # The first bundle whole; of its relatives what they do otherwise.
        rows = [(key, *value) for key, value in values.items() if not number or own.get(key) != value[0]]
        own = own or {key: value for key, (value, _) in values.items()}
        if rows:
            yield f"### `method={method.name}`" + (" differs in" if number else "")
            yield table(("key", "value", "source"), ((code(k), code(v), cell(s)) for k, v, s in rows))
    protocol = protocol_of(methods[0].name)
    values = sourced_values("protocol", protocol)
    yield f"### How it is trained: `protocol={protocol}`"
    yield table(("key", "value", "source"), ((code(k), code(shown(v)), cell(s)) for k, (v, s) in values.items()))
    if (CONFIG_DIR / "preset" / f"{methods[0].name}.yaml").exists():
        values = sourced_values("preset", methods[0].name)
        yield f"### How it is evaluated: `preset={methods[0].name}`"
        yield table(("key", "value", "source"), ((code(k), code(shown(v)), cell(s)) for k, (v, s) in values.items()))


def protocol_of(name: str) -> str:
    """The protocol that a bundle chooses, itself or through the bundles that it is built on."""
    found = USUAL_PROTOCOL
    for base in (yaml.safe_load((BUNDLES / f"{name}.yaml").read_text(encoding="utf-8")) or {}).get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found = protocol_of(base)
        elif isinstance(base, dict) and "override /protocol" in base:
            found = base["override /protocol"]
    return found


def _files(name: str) -> Iterator[str]:
    """Links to what a bundle is made of: its YAML, its estimator or divergence, its weight, its exposure."""
    values = {key: value for key, (value, _) in sourced_values("method", name).items()}
    yield _file(BUNDLES / f"{name}.yaml")
    estimator = ESTIMATORS.get(str(values.get("algorithm.adv_estimator")))
    if estimator is not None:
        yield _file(_module_file(estimator.credit.__module__))
    if values.get("self_distill.loss.kind", "none") != "none":
        yield "[workers/divergence](../workers/divergence)"
    weight = TOKEN_WEIGHTS.get(str(values.get("self_distill.loss.weighting")))
    if weight is not None:
        yield _file(_module_file(weight.weigh.__module__))
    if values.get("self_distill.exposure.mode", "full") != "full":
        yield _file(ROOT / "recipes" / "common" / "teacher" / "exposure.py")


def _module_file(name: str) -> Path:
    return Path(str(inspect.getsourcefile(importlib.import_module(name))))


def _file(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return f"[{relative}](../{relative})"


def _page_of(method: About) -> str:
    recipe = recipe_of(method.name)
    return f"[{cell(method.title)}](../recipes/{recipe}/README.md)" if recipe else cell(method.title)


def _titles(methods: list[About]) -> str:
    return "; ".join(method.title for method in methods)


def _authors(bibtex: str) -> str:
    """BibTeX's "Last, First and …" as "First Last, …"."""
    names = [" ".join(reversed(name.split(", "))) for name in bibtex.split(" and ")]
    return ", ".join(names).replace(", others", " and others")


def _link(arxiv: str) -> str:
    return f"[arXiv {arxiv}](https://arxiv.org/abs/{arxiv})"
