"""A sweep whose runs are jobs of a real Slurm and of a real Ray cluster: they outlive it, are found again, and stopped.

The runs are small programs: that ``train`` runs as a job of either is tested in test_slurm.py and test_ray_jobs.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from test_ray_jobs import head  # noqa: F401  (a fixture)
from test_slurm import cluster  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]

# Ends at once, but for the runs that are told to wait, and for those only the first time.
PROGRAM = """
import json, pathlib, sys, time
folder, waits = pathlib.Path(sys.argv[1]), sys.argv[2] == "waits"
if waits and not (folder / "begun").exists():
    (folder / "begun").touch()
    time.sleep(600)
row = {"step": 0, "assessor/balanced_accuracy": int(sys.argv[3]) / 10}
(folder / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
"""


def wait(done: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def test_slurm(cluster, tmp_path):  # noqa: F811
    outlive_and_are_found("slurm", {}, {**cluster.environment, "PYTHONPATH": str(ROOT)}, tmp_path)


def test_ray(head, tmp_path):  # noqa: F811
    outlive_and_are_found("ray", {"ray_address": head[0]}, dict(os.environ), tmp_path)


def outlive_and_are_found(kind: str, keys: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> None:
    """Jobs go on when the sweep is killed; the next one watches them and starts none twice; stop ends them."""
    content = {
        "name": "s", "dir": str(tmp_path), "base": "configs/tiny.yaml", "seeds": [1], "concurrency": 3, **keys,
        "variants": {"quick": {}, "waits": {}, "broken": {}}, "poll_s": 0.5, "stop_grace_s": 20,
        "command": ["{python}", "-c", PROGRAM, "{folder}", "quick", "3"],
        "commands": {"waits": ["{python}", "-c", PROGRAM, "{folder}", "waits", "4"],
                     "broken": ["{python}", "-c", "raise SystemExit('on purpose')"]},
    }  # fmt: skip
    path, folder = tmp_path / "s.yaml", tmp_path / "s"
    path.write_text(yaml.safe_dump(content))

    def call(*words: object) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "openrlhf_medical", "sweep"]
        return subprocess.Popen([*program, *map(str, words)], cwd=ROOT, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def states() -> dict[str, str]:
        found = {}
        for run in ("quick", "waits", "broken"):
            file = folder / "jobs" / f"{run}-seed1.json"
            found[run] = json.loads(file.read_text())["state"] if file.exists() else "pending"
        return found

    first = call("--config", path, "--submit", kind)
    begun = folder / "waits-seed1" / "begun"
    wait(lambda: first.poll() is not None or (begun.exists() and states()["quick"] == "finished"
         and states()["broken"] == "failed"), "the first runs")  # fmt: skip
    first.kill()
    assert begun.exists(), first.communicate()[1][-3000:]
    first.communicate()
    assert states() == {"quick": "finished", "waits": "running", "broken": "failed"}

    again = call("--config", path, "--submit", kind)
    assert "1 finished before, 1 failed, 1 to do" in str(again.stderr and again.stderr.readline())
    time.sleep(2)
    assert again.poll() is None, "it watches the job of the sweep that was killed"
    again.send_signal(signal.SIGINT)
    told = again.communicate(timeout=60)[1]
    assert again.returncode == 130 and "jobs that are under way go on" in told and "started" not in told
    assert states()["waits"] == "running"

    stopped = call("stop", folder)
    assert stopped.communicate(timeout=120)[1] == "stopped: waits-seed1\n"
    assert states()["waits"] == "interrupted"

    last = call("--config", path, "--submit", kind)
    told = last.communicate(timeout=120)[1]
    assert last.returncode == 1, told
    assert "started waits-seed1 (try 2)" in told and "started quick" not in told
    assert "failed: broken-seed1: exit code 1: on purpose" in told
    assert states() == {"quick": "finished", "waits": "finished", "broken": "failed"}
    summary = {v["name"]: v for v in json.loads((folder / "sweep.json").read_text())["variants"]}
    assert summary["waits"]["figures"]["assessor/balanced_accuracy"]["mean"] == 0.4
