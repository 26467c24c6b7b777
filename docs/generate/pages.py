"""The pages of the site: every Markdown file of the repository that people read, those that are generated, and files.

Markdown stays where it is and links as GitHub wants it, relative to its folder. Here each page gets its place in the
site, and links are rewritten: to other pages, and, for files that are none, to a page that shows the file. A link to
nothing is an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs.generate import keys, notebook, papers
from recipes import methods

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("advantage", "config", "recipes", "rewards", "workers")
# Generated pages: their place, as a file of docs/ that they would be, and what makes them.
GENERATED: dict[str, Callable[[], str]] = {
    "keys.md": keys.page,
    "papers.md": papers.page,
    "methods.md": lambda: METHODS + methods.markdown().replace("](recipes/", "](../recipes/") + "\n",
}
METHODS = """# Methods

What each method of `config/method` trains a token with, and the command that does it. A method is a bundle of teacher,
exposure, credit and loss ([how it is put together](architecture.md)); a new one is a module, a YAML and a page
([contributing](../CONTRIBUTING.md)). Values and sections: [papers](papers.md).

"""
_FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$|(?<!`)`[^`\n]+`(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^()\s]+)(?P<after>\))")


class DeadLink(ValueError):
    """A page links to a file that is not there."""


@dataclass
class Site:
    """All pages, and what they link to.

    Attributes:
        pages: place in the site -> Markdown.
        origin: place in the site -> file of the repository that a page is, or stands for.
        methods: places of the methods' pages.
        modules: places of the pages of modules.
        pictures: place in the site -> PNG, of the notebook.
    """

    pages: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


def place_of(path: str) -> str | None:
    """Where a Markdown file of the repository stands in the site; None for files that are no pages."""
    parts = path.split("/")
    if parts[0] == "docs" and len(parts) == 2 and path.endswith(".md"):
        return None if parts[1].startswith(("README", "_")) else parts[1]
    if path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        return "index.md" if path == "README.md" else path.lower()
    if parts[-1] != "README.md" or parts[0] in ("docs", "tests") or parts[0].startswith("."):
        return None
    if parts[0] == "recipes" and (methods.BUNDLES / f"{parts[-2]}.yaml").exists():
        return f"methods/{parts[-2]}.md"
    return f"guides/{parts[-2]}.md"


def collect(root: Path = ROOT) -> Site:
    """Every page of the site, with its links rewritten.

    Raises:
        DeadLink: lists every link to something that is not there.
    """
    site = Site()
    written: dict[str, str] = {}
    for path in markdown_files(root):
        place = place_of(path)
        if place is not None:
            site.origin[place], written[place] = path, (root / path).read_text(encoding="utf-8")
            if place.startswith("methods/"):
                site.methods.append(place)
    for name, make in GENERATED.items():
        site.origin[name], written[name] = f"docs/{name}", make()
    site.origin["tour.md"] = notebook.NOTEBOOK.relative_to(ROOT).as_posix()
    written["tour.md"], site.pictures = notebook.page((root / site.origin["tour.md"]).read_text(encoding="utf-8"))
    for place, text in module_pages(root):
        site.pages[place] = text
        site.modules.append(place)
    places = {origin: place for place, origin in site.origin.items()}
    dead: list[str] = []
    for place, text in written.items():
        site.pages[place] = rewritten(text, site.origin[place], place, places, site, root, dead)
    if dead:
        raise DeadLink("\n".join(dead))
    return site


def markdown_files(root: Path) -> Iterator[str]:
    """Relative paths of the Markdown files that may be pages; hidden folders and environments are passed over."""
    for path in sorted(root.rglob("*.md")):
        relative = path.relative_to(root)
        if not any(part.startswith(".") or part in ("site", "outputs", "build") for part in relative.parts):
            yield relative.as_posix()


def rewritten(
    text: str, origin: str, place: str, places: dict[str, str], site: Site, root: Path, dead: list[str]
) -> str:
    """A page's Markdown with the links of its place in the site; files that it links to become pages of `site`."""

    def link(match: re.Match[str]) -> str:
        target, hash_sign, fragment = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target) or target in site.pictures:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        there = place_for(path, places, site, root)
        if there is None:
            dead.append(f"{origin}: ({match['target']}) is not there")
            return match[0]
        to = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{match['before']}{to}{hash_sign}{fragment}{match['after']}"

    kept: list[str] = []
    parts, end = [], 0
    for code in _FENCE.finditer(text):  # nothing in code is a link
        parts += [_LINK.sub(link, text[end : code.start()]), code[0]]
        end = code.end()
    kept = [*parts, _LINK.sub(link, text[end:])]
    return "".join(kept)


def place_for(path: str, places: dict[str, str], site: Site, root: Path) -> str | None:
    """Where a link to a path of the repository leads; None where there is no such path."""
    if path in places:
        return places[path]
    if f"{path}/README.md" in places:
        return places[f"{path}/README.md"]
    if not (root / path).exists() or path.startswith(".."):
        return None
    if path.startswith("docs/") and (root / path).is_file() and not path.endswith((".md", ".py")):
        return path.removeprefix("docs/")  # pictures
    place = f"files/{path}.md"
    if place not in site.pages:
        site.pages[place] = file_page(root / path, path)
        site.origin[place] = path
    return place


def file_page(file: Path, path: str) -> str:
    """A page that shows a file, or what a folder holds."""
    if file.is_dir():
        inside = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if not p.name.startswith(("_", ".")))
        return f"# `{path}`\n\n" + "\n".join(f"- `{name}`" for name in inside) + "\n"
    languages = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml"}
    language = languages.get(file.suffix, "text")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"# `{path}`\n\n{file.stat().st_size} bytes, not text.\n"
    return f"# `{path}`\n\n`````{language}\n{text.rstrip()}\n`````\n"


def module_pages(root: Path) -> Iterator[tuple[str, str]]:
    """(place, Markdown) of a page for each package, with all of its modules.

    Links to what docs/python.md documents lead there, and not to these pages.
    """
    kept = re.findall(r"^::: ([\w.]+)$", (root / "docs" / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    for top in PACKAGES:
        for init in sorted((root / top).rglob("__init__.py")):
            folder = init.parent.relative_to(root)
            name = ".".join(folder.parts)
            modules = [name] + [f"{name}.{m.stem}" for m in sorted(init.parent.glob("[!_]*.py"))]
            entries = (
                f"::: {module}" + "\n    options:\n      skip_local_inventory: true" * _overlaps(module, kept)
                for module in modules
            )
            yield f"modules/{name}.md", f"# `{name}`\n\n" + "\n\n".join(entries) + "\n"


def _overlaps(module: str, kept: list[str]) -> bool:
    return any(f"{path}.".startswith(f"{module}.") or f"{module}.".startswith(f"{path}.") for path in kept)
