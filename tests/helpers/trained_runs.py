"""What a run that was interrupted and went on has to show, and which processes of a cluster are left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the run may be writing the last one."""
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def steps_of(run: Path) -> list[int]:
    """The steps that metrics.jsonl tells of, in its order."""
    return [row["step"] for row in rows(run / "metrics.jsonl") if "time/step_s" in row]


def status_of(run: Path) -> dict[str, Any]:
    file = run / "status.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {"state": "not begun"}


def learned(run: Path) -> bool:
    """A gradient for both roles: an exit code proves little."""
    steps = [row for row in rows(run / "metrics.jsonl") if "time/step_s" in row]
    return all(any(row.get(f"policy/{role}/grad_norm", 0) > 0 for row in steps) for role in ("attacker", "assessor"))


def until(ready: Callable[[], object], deadline_s: float, what: str, otherwise: Callable[[], str] = str) -> None:
    """Raises AssertionError with ``otherwise()`` after ``deadline_s``."""
    deadline = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < deadline, f"no {what} within {deadline_s:g} s: {otherwise()}"
        time.sleep(0.05)


def processes_with(text: str) -> list[str]:
    """Command lines, or working directories, of living processes that contain ``text``."""
    found = []
    for process in psutil.process_iter():
        try:
            seen = " ".join(process.cmdline()) + " in " + process.cwd()
            if text in seen and process.status() != psutil.STATUS_ZOMBIE:
                found.append(seen)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
