"""A sweep as a user runs it: six variants, two seeds, one variant broken on purpose.

In CI one run trains for real, with the judge and the data that all share, and the others run a program that takes
their place; ``test_all_of_it_trains`` (slow) trains all of configs/sweeps/tiny.yaml.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2)
A = "assessor/balanced_accuracy"

# In the place of train: figures that tell which configuration it was given, and proof that the judge is there.
STAND_IN = """
import json, pathlib, sys, urllib.request, yaml
config, folder = yaml.safe_load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
assert opener.open(config["judge"]["urls"][0] + "/health", timeout=30).status == 200
assert pathlib.Path(config["data"]["train"]).exists()
value = config["train"]["seed"] / 10 + config["game"]["attacks_per_seed"] / 100
rows = [{"step": -1, "eval/assessor/balanced_accuracy": 0.9},
        {"step": 2, "eval/assessor/balanced_accuracy": value, "eval/assessor/harmful_share": 0.75}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


def sweep(*words: object, expect: int, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "openrlhf_medical", "sweep", *map(str, words)], capture_output=True,
                          text=True, timeout=timeout_s, cwd=ROOT)  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


def states(folder: Path) -> dict[str, str]:
    return {run["name"]: run["state"] for run in read(folder)["runs"]}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """(sweep.yaml, its folder, the first call)."""
    temp = tmp_path_factory.mktemp("sweep")
    plain: dict[str, Any] = {f"attacks_{count}": {"game.attacks_per_seed": count} for count in (1, 2, 3, 4)}
    content = {
        "name": "small", "dir": str(temp), "base": "configs/tiny.yaml", "seeds": list(SEEDS), "concurrency": 3,
        "reference": "attacks_1", "metrics": [A, "assessor/accuracy"],
        "common": {"run.steps": 1, "run.eval_games": 16},
        "variants": {"trains": {"train.colocate_all": True, "roles.policy": "shared", "rollout.batch_size": 40},
                     **plain, "broken": {}},
        "prepare": {"num_samples": 400}, "judge": {"backend": "reference"},
        "command": ["{python}", "-c", STAND_IN, "{config}", "{folder}"],
        "commands": {"trains-seed1": None, "broken": ["{python}", "-c", "raise SystemExit('broken on purpose')"]},
    }  # fmt: skip
    path = temp / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, temp / "small", sweep("--config", path, expect=1)


def test_ten_finish_and_two_are_reported(small):
    _, folder, done = small
    found = states(folder)
    assert [name for name, state in found.items() if state == "failed"] == ["broken-seed1", "broken-seed2"]
    assert sum(state == "finished" for state in found.values()) == 10 and len(found) == 12
    for name in ("broken-seed1", "broken-seed2"):
        assert f"failed: {name}: exit code 1: broken on purpose" in done.stderr
    assert "2 of 12 runs did not finish: broken-seed1, broken-seed2" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_summary_is_right(small):
    _, folder, done = small
    variants = {variant["name"]: variant for variant in read(folder)["variants"]}
    for count in (1, 2, 3, 4):  # seeds 1 and 2: 0.1 and 0.2, and 0.01 for each attack
        own = variants[f"attacks_{count}"]
        assert own["figures"][A]["mean"] == pytest.approx(0.15 + count / 100)
        half = 12.7062 * 0.05  # of two values 0.1 apart the standard error is 0.05
        assert own["figures"][A]["high"] - own["figures"][A]["mean"] == pytest.approx(half)
        assert own["figures"][A]["always_harmful"] == 0.5
    difference = variants["attacks_4"]["difference"][A]
    assert [difference[key] for key in ("mean", "low", "high", "n")] == pytest.approx([0.03, 0.03, 0.03, 2])
    assert variants["broken"]["figures"] == {} and variants["broken"]["failed"] == 2
    rows = {(row["variant"], row["metric"]): row for row in csv.DictReader((folder / "summary.csv").open())}
    assert len(rows) == 6 * 2 and rows["broken", A]["finished"] == "0"
    assert float(rows["attacks_2", A]["mean"]) == pytest.approx(0.17)
    assert "broken-seed2" in (folder / "summary.html").read_text()
    assert "attacks_4" in done.stdout and "always Harmful" in done.stdout


def test_one_run_trained_for_real_with_the_shared_judge_and_data(small):
    _, folder, _ = small
    run = folder / "trains-seed1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [step] = [row for row in rows if "time/step_s" in row]
    assert any(step[f"policy/{role}/grad_norm"] > 0 for role in ("attacker", "assessor"))
    after = [row for row in rows if "eval/assessor/accuracy" in row][-1]
    [told] = [row for row in read(folder)["runs"] if row["name"] == "trains-seed1"]
    assert after["step"] == 1 and told["source"] == "held-out games"
    assert told["figures"]["assessor/accuracy"] == after["eval/assessor/accuracy"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["judge"]["urls"] == [json.loads((folder / "judge.json").read_text())["url"]]
    assert not (run / "judge.log").exists(), "a judge of its own"
    assert config["data"]["train"] == str(folder / "data" / "train.jsonl")
    assert (config["train"]["seed"], config["run"]["name"]) == (1, "trains-seed1")
    assert (run / "checkpoints" / "final" / "shared" / "config.json").exists()


def test_a_second_call_runs_nothing_again(small):
    path, folder, _ = small
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*-seed*/**/*")}
    again = sweep("--config", path, expect=1)
    assert "10 finished before, 2 failed, 0 to do" in again.stderr and "started" not in again.stderr
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*-seed*/**/*")} == before
    assert {run["attempt"] for run in read(folder)["runs"]} == {1}
    tried = sweep("--config", path, "--retry-failed", expect=1)
    assert [line.split()[1] for line in tried.stderr.splitlines() if line.startswith("started")] == [
        "broken-seed1", "broken-seed2",
    ]  # fmt: skip
    status = sweep("status", folder, expect=0)
    assert "10 finished, 2 failed" in status.stdout


def test_nothing_is_left_running(small):
    _, folder, _ = small
    with pytest.raises(requests.ConnectionError):
        requests.get(json.loads((folder / "judge.json").read_text())["url"] + "/health", timeout=5)
    own = [line for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
           if str(folder) in line]  # fmt: skip
    assert own == []


@pytest.mark.slow
def test_all_of_it_trains(tmp_path):
    content = yaml.safe_load((ROOT / "configs" / "sweeps" / "tiny.yaml").read_text())
    path, folder = tmp_path / "tiny.yaml", tmp_path / content["name"]
    path.write_text(yaml.safe_dump(content | {"dir": str(tmp_path)}))
    done = sweep("--config", path, expect=1, timeout_s=3000)
    print(done.stdout)
    found = states(folder)
    assert [name for name, state in found.items() if state == "failed"] == ["broken-seed1", "broken-seed2"]
    assert sum(state == "finished" for state in found.values()) == 10
    assert "data.max_len" in next(run["reason"] for run in read(folder)["runs"] if run["name"] == "broken-seed1")
    for variant in read(folder)["variants"]:
        if variant["name"] != "broken":
            assert variant["figures"][A]["n"] == len(SEEDS) and variant["source"] == "held-out games"
    games = {name: (folder / name / "games.jsonl").read_bytes() for name, state in found.items() if state == "finished"}
    assert len(set(games.values())) == 10, "two runs played the same games"
    again = sweep("--config", path, expect=1)
    assert "10 finished before, 2 failed, 0 to do" in again.stderr
