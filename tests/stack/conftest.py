"""The real stack with a tiny random model: one Ray for all in-process tests of a session."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from leftovers import LASTING, left_behind, scene, started_since

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
pytestmark = pytest.mark.stack


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def tiny_model() -> str:
    assert (TINY / "config.json").exists(), "models/tiny is missing: run ./launch/setup.sh --dev"
    return str(TINY)


@pytest.fixture(scope="session")
def ray_session():
    """Ray with eight logical places; test modules are importable in its workers."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    from openrlhf_medical import cluster

    before = scene()
    with cluster.session(8):
        LASTING.update(process.pid for process in started_since(before))
        yield
    LASTING.clear()
    left = left_behind(before)
    assert not left, f"the Ray that all tests share left behind: {left}"


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)
