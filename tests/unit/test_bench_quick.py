"""The benchmarks that cost seconds run to their end with ``--quick``, and leave the committed results alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "words"), [
    ("schedule", "lockstep"), ("judge", "p99 at half load"), ("scale", "limited by"),
])  # fmt: skip
def test_quick(name, words):
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert words in done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before
