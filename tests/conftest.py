"""Shared by all tests: an environment without a network, and a configuration of the test's own."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may depend on a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: on tensors this small a second thread only spins

import pytest

from tests.builders.configs import composed


@pytest.fixture
def compose_config(tmp_path):
    """`composed` with a run directory of the test's own."""
    return lambda *overrides: composed(*overrides, run_dir=tmp_path / "run")
