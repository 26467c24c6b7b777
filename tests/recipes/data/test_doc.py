"""docs/own_data.md, word for word: its files are written, its commands run, its output is what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.configs import ROOT

DOC = ROOT / "docs" / "own_data.md"
LONG = 900.0  # seconds for a command; for a machine with much else to do
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([\w./]+)`:\s*$")
_NUMBER = re.compile(r"\d[\d,.]*(?:e-\d+)?")


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, content) of each fenced block: "file", "run" or "output"; a file's name stands before it."""
    for match in _BLOCK.finditer(text):
        language, content = match.groups()
        name = _NAME.search(text[: match.start()])
        if name:
            yield "file", name[1], content
        elif language in ("bash", "text"):
            yield {"bash": "run", "text": "output"}[language], "", content


def run(commands: str, folder: Path) -> str:
    """What a shell prints for a block of commands; fails where one fails, and ends what they started."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=LONG)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end after {LONG:.0f} s:\n{commands}\n{process.communicate()[0]}")
    assert process.returncode == 0, f"{commands}\n{said}"
    return said


def unlike(expected: str, said: str) -> list[str]:
    """Lines of the documented output that the real one does not have in that order, numbers aside; … stands for any."""
    missing, lines = [], iter(said.splitlines())
    for line in expected.splitlines():
        if line.strip() == "…":
            continue
        pattern = _NUMBER.sub(lambda _: "\0", line.rstrip())
        pattern = re.escape(pattern).replace("\0", _NUMBER.pattern)
        if not any(re.fullmatch(pattern, found.rstrip()) for found in lines):
            missing.append(line)
    return missing


def test_documented_output_is_compared():
    assert unlike("a 1.5\n…\nb 2", "a 22\nx\nb 3,000  \n") == []
    assert unlike("a 1\nb", "b\na 1") == ["b"]
    assert unlike("a x", "a 1") == ["a x"]


def test_the_document_has_what_it_promises():
    kinds = [(kind, name) for kind, name, _ in blocks(DOC.read_text())]
    assert [name for kind, name in kinds if kind == "file"] == [
        "make_sums.py",
        "my_reward.py",
        "ask.py",
        "my/dataset/chains.yaml",
    ]
    commands = "".join(content for kind, _, content in blocks(DOC.read_text()) if kind == "run")
    for module in ("data.prepare dataset=local", "data.validate", "dasd.main", "export.main", "--config-dir"):
        assert module in commands
    assert "(docs/own_data.md)" in (ROOT / "README.md").read_text().partition("##")[0]


@pytest.mark.slow
def test_the_document_runs_word_for_word(tmp_path):
    said = ""
    for kind, name, content in blocks(DOC.read_text()):
        if kind == "file":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        elif kind == "run":
            said = run(content, tmp_path)
        else:
            assert unlike(content, said) == [], said
    assert (tmp_path / "runs" / "sums" / "report.html").exists()
    assert "`sums/train.parquet`" in (tmp_path / "models" / "sums" / "README.md").read_text()
