"""Benchmarks that start engines and workers still run: small, once, and without writing a result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "row"), [("learner", "weight sync"), ("step", "sum of")])
def test_it_runs(name: str, row: str):
    results = {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_file()}
    command = [sys.executable, f"benchmarks/{name}.py", "--quick"]
    environment = {**os.environ, "COLUMNS": "200"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert row in ended.stdout
    assert {path: path.read_bytes() for path in results} == results
