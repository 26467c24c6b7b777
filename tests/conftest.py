"""Shared by all tests: an environment without a network, and a configuration of the test's own."""

from __future__ import annotations

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job, where no Ctrl-C would be seen
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may depend on a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: on tensors this small a second thread only spins

import pytest

from tests.builders.configs import composed


@pytest.fixture
def compose_config(tmp_path):
    """`composed` with a run directory of the test's own."""
    return lambda *overrides: composed(*overrides, run_dir=tmp_path / "run")


def pytest_collection_finish(session):
    """What was imported and collected stays: a collection of garbage need not go through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """In CI a file of which every test was skipped is a failure: what it tests was not tested."""
    whole = _skipped_whole(terminalreporter.stats)
    if os.environ.get("CI") and whole:
        terminalreporter.section("files that were skipped whole", red=True)
        for name, reason in whole.items():
            terminalreporter.line(f"{name}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and exitstatus == 0 and _skipped_whole(reporter.stats):
        session.exitstatus = 1


def _skipped_whole(stats) -> dict[str, str]:
    """Files without a test that ran, and why the first of each was skipped."""
    ran = {r.nodeid.split("::")[0] for kind in ("passed", "failed", "error", "xfailed") for r in stats.get(kind, ())}
    skipped = {r.nodeid.split("::")[0]: str(r.longrepr[-1]) for r in stats.get("skipped", ())}
    return {name: reason for name, reason in skipped.items() if name not in ran}
