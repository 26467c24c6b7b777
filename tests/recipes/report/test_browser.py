"""Reports in a real browser: how they look in light and dark, on a desk and on a phone, and what cannot run in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.report.page import comparison_page, write_evaluation_report, write_page, write_report
from recipes.report.run_data import load_run
from tests.builders.evaluations import answers, write_evaluation
from tests.builders.evaluations import response as answer
from tests.builders.runs import record, response, validated, write_run
from tests.recipes.report.test_report import HOSTILE, hostile_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

LIGHT, DARK = (0xF5, 0xF4, 0xF0), (0x12, 0x12, 0x11)  # --page of style.css
FIRST_LIGHT, FIRST_DARK = (0x2A, 0x78, 0xD6), (0x55, 0x98, 0xE7)  # --s1

# Run in a copy of the page; answers through the title, which `--dump-dom` shows.
PROBE = """<script>
const found = {};
const colour = (field) => {
  document.getElementById(field).click();
  return [...document.querySelectorAll(".text b")].slice(0, 3).map(b => getComputedStyle(b).backgroundColor);
};
addEventListener("load", () => {
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.panels = document.querySelectorAll(".panel svg path").length;
  if (document.getElementById("h1")) { found.first = colour("h0"); found.second = colour("h1"); }
  found.title = document.title;
  document.title = "found " + JSON.stringify(found);
});
</script>"""


FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars"""


def chromium(page: Path, profile: Path, *arguments: str) -> str:
    """What the browser prints for a file."""
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


def screenshot(page: Path, folder: Path, *, width: int, dark: bool) -> np.ndarray:
    """Pixels (height, width, 3)."""
    picture = folder / f"{page.stem}_{width}_{dark}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    chromium(page, folder / "profile", scheme, f"--screenshot={picture}", f"--window-size={width},1400")
    return np.asarray(Image.open(picture).convert("RGB"))


def share(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels.astype(int) - colour).max(-1) <= 2).mean())


def probed(page: Path, folder: Path, *, width: int) -> dict:
    """What `PROBE` finds in a copy of the page, shown in a frame of a width that a window need not be able to have."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = folder / "probe.html"
    copy.write_text(html.replace("</head>", PROBE + "</head>"))
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe src="probe.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>setInterval(() => document.title = frames[0].document.title, 50)</script>"
    )
    dom = chromium(
        frame, folder / "profile", "--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom"
    )
    found = re.search(r"<title>found (.*?)</title>", dom, flags=re.DOTALL)
    assert found, dom[:2000]
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    records = [
        {
            **record(s, critic__score__mean=0.4 + 0.02 * s, actor__entropy=0.2, timing_s__update_actor=2.0),
            **validated(s, 0.5),
        }
        for s in range(1, 9)
    ]
    long = "x" * 300
    samples = [
        {"step": 8, "samples": [response(["up", "down", long], problem=long, omega=[1, -1, 0], delta=[-2.0, 2.0, 2.0])]}
    ]
    directory = tmp_path_factory.mktemp("browser") / "run"
    return write_report(write_run(directory, records, f"+data.note={long}", samples=samples))


@pytest.mark.slow
def test_light_and_dark_each_have_their_colours(report, tmp_path):
    light = screenshot(report, tmp_path, width=1280, dark=False)
    dark = screenshot(report, tmp_path, width=1280, dark=True)
    for pixels, page, other, curve in ((light, LIGHT, DARK, FIRST_LIGHT), (dark, DARK, LIGHT, FIRST_DARK)):
        assert share(pixels, page) > 0.15 and share(pixels, other) < 0.01
        assert share(pixels, curve) > 0.0005, "curves are drawn in the page's first colour"
        # Text on the page: near white on dark, near black on light.
        contrast = np.abs(pixels[20:60, 20:200].astype(int) - page).max()
        assert contrast > 180


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_and_the_heat_follows_the_switch(report, tmp_path, width):
    found = probed(report, tmp_path, width=width)
    assert found["overflow"] <= 0
    assert found["panels"] > 10
    warm, cool, none = found["first"][1], found["first"][0], "rgba(0, 0, 0, 0)"
    assert found["first"] == [cool, warm, none] and len({cool, warm, none}) == 3
    assert found["second"] == [warm, cool, cool]  # delta: negative, positive, positive at full colour


@pytest.mark.slow
def test_hostile_text_does_not_run(tmp_path):
    directory = hostile_run(tmp_path / "run")
    page = write_report(directory)
    # Without the content security policy: escaping alone must hold.
    found = probed(page, tmp_path, width=800)
    assert "run" in found["title"] and found["title"] not in ("pwned", "1")
    other = load_run(write_run(tmp_path / "other", [record(1), validated(2, 0.5)]))
    compared = write_page(tmp_path / "compared.html", comparison_page([load_run(directory), other]))
    assert "2 runs" not in probed(compared, tmp_path, width=360)["title"]
    assert probed(compared, tmp_path, width=360)["overflow"] <= 0


@pytest.mark.slow
def test_an_evaluation_stays_within_a_phone_and_runs_nothing(tmp_path):
    bad, image = HOSTILE[:2]
    texts = [answer(text=bad * 40, extracted=image), answer("wrong", "y" * 500), *answers("tc")]
    results = {label: {image: {1: [texts, answers("rrww")]}} for label in (bad, "z" * 200)}
    page = write_evaluation_report(write_evaluation(tmp_path / "e", results, problem="x" * 300))
    found = probed(page, tmp_path, width=360)
    assert found["overflow"] <= 0 and found["panels"] > 2
    assert found["title"].startswith("Evaluation") and bad in found["title"]
