"""The documentation site: complete, without a dead link, without anything from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.generate import keys, pages, papers
from docs.generate.comments import entries
from docs.generate.text import cell
from recipes.common.method import shipped
from tests.builders.configs import ROOT
from tests.recipes.report.test_browser import CHROMIUM, chromium

# ---------------------------------------------------------------------- configuration keys


def every_key() -> list[keys.Key]:
    of_commands = [key for config in keys.COMMANDS for key in keys.of_command(config)]
    of_estimators = [key for _, found in keys.estimators() for key in found]
    of_rewards = [key for _, found in keys.rewards() for key in found]
    return [*keys.training(), *of_estimators, *of_commands, *keys.of_dataset(), *of_rewards]


def test_every_key_has_a_type_a_default_and_a_meaning():
    lacking = [key.name for key in every_key() if not (key.meaning and key.kind and key.default)]
    assert lacking == [], "say it in a comment above or beside the key, or in the dataclass's docstring"


def test_every_parameter_of_a_method_has_a_source():
    lacking = [key.name for _, found in keys.estimators() for key in found if not key.source]
    assert lacking == [], "the paper's section, or ours, beside the value in config/method/<name>.yaml"


def test_the_reference_has_what_the_files_say():
    page = keys.page()
    assert "| `gap_eps` | number or null | `null` | floor in nats under the median \\|delta\\|" in page
    assert "| `clip` | number or null | `null` | Bound of each vocabulary entry before the sum" in page
    assert "opsd: 0.05 (each vocabulary entry, from above)" in page
    assert re.search(r"\| `actor_rollout_ref.actor.optim.lr` \| `protocol/dasd` \| `3e-06` \| App. F \|", page)
    assert re.search(r"\| `samples` \| a value \| `must be given` \| From the preset: samples per problem", page)


def test_comments_above_beside_and_shared(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "# a header\n\n# one: the first\n# two: the second\nchoice: one\n\nbare: 1\n"
        "# both\nleft: 1\nright: 2 # this one\nnode:\n  inner: null\n# of the node\nlast:\n  deep: [1, 2]\n"
    )
    found = {entry.key: entry for entry in entries(file)}
    assert found["choice"].meaning == "one: the first | two: the second."
    assert found["bare"].meaning == "" and found["node.inner"].meaning == "both."  # in the run under that comment
    assert found["left"].meaning == "both." and found["right"].meaning == "both. this one." and found["left"].shared
    assert found["last.deep"].meaning == "of the node." and found["last.deep"].value == [1, 2]


def test_text_cannot_break_a_table():
    assert cell("a | b\n*c* `d|e` <f>") == "a \\| b \\*c\\* `d\\|e` \\<f\\>"


# ---------------------------------------------------------------------- papers


def test_every_method_with_a_paper_is_in_the_index_with_its_values():
    page = papers.page()
    for method in shipped():
        arxiv = method.paper.get("arxiv")
        assert arxiv is None or f"`method={method.name}`" in page or f"method={method.name}" in page, method.name
        assert arxiv is None or f"https://arxiv.org/abs/{arxiv}" in page
    assert "| `algorithm.dasd.router_quantile` | `0.2` | rho, §5 and Table 11 |" in page
    assert "Hongbin Zhang, Chaozheng Wang" in page and "and others" in page


# ---------------------------------------------------------------------- pages and links


def test_a_link_to_nothing_stops_the_build():
    site, dead = pages.Site(), []
    pages.rewritten("[a](gone.md) `[b](too.md)`", "docs/x.md", "x.md", {}, site, ROOT, dead)
    assert dead == ["docs/x.md: (gone.md) is not there"]


def test_links_lead_to_pages_or_to_pages_of_files():
    site, dead = pages.Site(), []
    places = {"docs/cpu.md": "cpu.md", "recipes/dasd/README.md": "methods/dasd.md"}
    text = "[c](../../docs/cpu.md#x) [r](../dasd) [f](../../config/train.yaml) [w](https://x.y/z.md)"
    new = pages.rewritten(text, "recipes/opsd/README.md", "methods/opsd.md", places, site, ROOT, dead)
    assert new == "[c](../cpu.md#x) [r](dasd.md) [f](../files/config/train.yaml.md) [w](https://x.y/z.md)"
    assert dead == [] and "dry_run: false" in site.pages["files/config/train.yaml.md"]


def test_every_page_of_the_repository_is_in_the_site():
    site = pages.collect()
    assert {f"methods/{folder.parent.name}.md" for folder in (ROOT / "recipes").glob("*/main.py")} & set(site.pages)
    for place in ("index.md", "keys.md", "papers.md", "methods.md", "python.md", "own_data.md", "methods/dasd.md"):
        assert place in site.pages
    assert "modules/recipes.common.step.md" in site.pages
    assert len(site.pictures) == 3 and all(f"![]({name})" in site.pages["tour.md"] for name in site.pictures)


# ---------------------------------------------------------------------- the site itself


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect", "dns-prefetch"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site, as `make docs` builds it: strict, so that a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_dead_link_and_nothing_from_elsewhere(built):
    parsed = {path: Page(path.read_text(encoding="utf-8")) for path in built.rglob("*.html")}
    assert len(parsed) > 60
    dead, foreign = [], []
    for path, page in parsed.items():
        foreign += [f"{path.name}: {url}" for url in page.loaded if urlsplit(url).scheme not in ("", "data")]
        if path.name == "404.html":  # may be shown for any address, so its links are the server's
            continue
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                dead.append(f"{path.relative_to(built)}: {url}")
            elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].ids:
                dead.append(f"{path.relative_to(built)}: {url} (no such place)")
    assert dead == [] and foreign == []


def test_formulas_are_drawn_without_a_script(built):
    page = (built / "guides" / "advantage.html").read_text()
    assert page.count("<math") > 20 and "arithmatex" not in page


def test_what_people_look_for_is_in_the_search_index(built):
    index = (built / "search" / "search_index.json").read_text()
    for words in ("router_quantile", "direction_coefficient", "Avg@n", "self_distill.teacher"):
        assert words in index


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_in_a_browser_nothing_sticks_out_and_the_search_finds(built, tmp_path):
    """Opened from the folder, without a server, as wide as a phone: pages with the widest tables, and a search."""
    wanted = {"keys.html": 0, "papers.html": 0, "python.html": 0, "methods/dasd.html": 0}
    frames = "".join(f'<iframe src="{page}" style="width:360px;height:800px;border:0"></iframe>' for page in wanted)
    probe = built / "probe.html"
    probe.write_text(
        f"{frames}<iframe src='index.html?q=router_quantile' style='width:1280px;height:800px'></iframe><script>"
        "setInterval(() => { const out = [...Array(frames.length - 1).keys()].map("
        "i => frames[i].document.documentElement.scrollWidth);"
        "const found = frames[frames.length - 1].document.querySelectorAll('.md-search-result__item').length;"
        "document.title = 'found ' + JSON.stringify([out, found]); }, 100)</script>"
    )
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=15000", "--dump-dom")
    dom = chromium(probe, tmp_path / "profile", *flags)
    said = re.search(r"<title>found (.*?)</title>", dom)
    assert said, dom[:2000]
    widths, results = json.loads(said[1])
    assert max(widths) <= 360 and results > 0, (widths, results)
