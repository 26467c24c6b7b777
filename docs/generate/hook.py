"""What MkDocs asks for while it builds the site: pages, navigation, formulas. See `mkdocs.yml`."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from docs.generate.pages import Site, collect

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Take every page from the repository, in place of what lies in docs/ alone, and complete the navigation."""
    site = collect()
    for place, text in site.pages.items():
        present = files.get_file_from_path(place)
        if present is not None:
            files.remove(present)
        files.append(File.generated(config, place, content=text))
    for place, picture in site.pictures.items():
        files.append(File.generated(config, place, content=picture))
    config.nav = completed(config.nav, site)
    return files


def completed(nav: list[Any], site: Site) -> list[Any]:
    """The navigation of mkdocs.yml with the pages that are found: methods, modules, and what stands nowhere else."""
    known = set(_leaves(nav))
    rest = [
        page for page in site.pages if page not in known and not page.startswith(("files/", "methods/", "modules/"))
    ]
    more = {"methods/": sorted(site.methods), "modules/": [{"Modules": sorted(site.modules)}], "rest/": sorted(rest)}
    return [
        {title: [page for entry in pages for page in more.get(str(entry), [entry])] for title, pages in section.items()}
        for section in nav
    ]


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in below for leaf in _leaves(part)]


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves: no script, no font from elsewhere."""

    def drawn(match: re.Match[str]) -> str:
        return convert(html.unescape(match["latex"]), display="block" if match["tag"] == "div" else "inline")

    return _FORMULA.sub(drawn, content)
