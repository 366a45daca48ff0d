"""launch/ray_submit.sh on a real cluster (ray start --head, logical GPUs): a training that is stopped in the middle,
goes on in a second job, and ends; and a training whose workers and engine are on two nodes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from local_slurm import free_ports
from test_train import ROOT, data, moved  # noqa: F401  (data is a fixture)
from trained_runs import learned, processes_with, rows, status_of, steps_of, until
from transformers import AutoModelForCausalLM

from openrlhf_medical.state_store import StateStore

MANY, MORE = 500, 2
"""Steps of the job that is stopped, and what the next one does beyond it."""


@pytest.fixture(scope="module")
def head():
    """(address of the dashboard, Ray's folder) of a cluster of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Unix sockets have names of 107 bytes
    port, client_port = free_ports(2)
    log = (folder / "start.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", f"--temp-dir={folder}",
         f"--dashboard-port={port}", f"--ray-client-server-port={client_port}", "--dashboard-agent-listen-port=0",
         "--min-worker-port=0", "--max-worker-port=0",
         "--num-gpus=4", "--num-cpus=8", "--disable-usage-stats"],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        until(lambda: not processes_with(str(folder)), 30, "end of Ray", lambda: str(processes_with(str(folder))))
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def script(head, data):  # noqa: F811
    def call(*words: str, expect: int = 0) -> str:
        done = subprocess.run([ROOT / "launch/ray_submit.sh", *words, "--address", head[0]], capture_output=True,
                              text=True, timeout=300)  # fmt: skip
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return call


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):  # noqa: F811
    return [
        *("--config", str(ROOT / "configs/tiny.yaml"), "--run.name", "on-ray", "--run.eval_games", "0"),
        *("--run.dir", str(tmp_path_factory.mktemp("runs")), "--run.steps", str(MANY)),
        *("--actor.model_name_or_path", str(ROOT / "models/tiny")),
        *("--roles.policy", "shared", "--train.colocate_all", "true", "--ckpt.save_steps", "1"),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
    ]


@pytest.fixture(scope="module")
def stopped(head, script, options):
    """(folder of the run, name of the job, what runs in the cluster afterwards)."""
    run = Path(options[options.index("--run.dir") + 1]) / "on-ray"
    job = script(*options, "--no-wait").strip()
    until(
        lambda: steps_of(run) or status_of(run)["state"] == "failed", 240, "first step", lambda: script("status", job)
    )
    told = script("stop", job)
    assert "STOPPED" in told, told
    return run, job


def test_stopping_leaves_a_state_and_no_orphan(stopped, head, script):
    run, job = stopped
    assert re.search(rf"{job}  STOPPED", script("list"))
    status = status_of(run)
    assert status["state"] == "interrupted" and 1 <= status["steps_done"] < MANY
    state = StateStore(run, 3).newest_good(print)
    assert state is not None and state.steps_done == status["steps_done"], "what the next job goes on from"
    folders = [path.parent for path in (run / "checkpoints").glob("step_*/shared/config.json")]
    assert folders, "what was saved after the first step"
    for folder in folders:
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    # Ray keeps idle workers and the one that watched over the job; both are the cluster's own.
    clusters = re.compile(r"ray::IDLE|JobSupervisor|ray::\w*Agent")

    def orphans() -> list[str]:
        seen = [*processes_with(str(head[1])), *processes_with("serve-judge"), *processes_with("VLLM::")]
        return [
            text
            for text in seen
            if re.search("ray::|serve-judge|working_dir_files|VLLM", text) and not clusters.search(text)
        ]

    until(lambda: not orphans(), 30, "end of the job's processes", lambda: str(orphans()))


def test_the_next_job_goes_on_and_ends_well(stopped, script, options):
    run, _ = stopped
    steps = status_of(run)["steps_done"] + MORE
    done = script(*options, "--run.steps", str(steps), "--resume", "auto")
    assert "going on from" in done and f"step {steps}/{steps}" in done, "what the run tells is what the caller sees"
    assert steps_of(run) == list(range(steps)) and status_of(run)["state"] == "finished"
    games = [(game["step"], game["game_idx"]) for game in rows(run / "games.jsonl")]
    assert len(games) == len(set(games)) == steps * 16
    assert learned(run) and moved(run / "checkpoints" / "final" / "shared") > 0


def test_a_job_that_fails_ends_the_call_as_it_ended_itself(stopped, script, options):
    assert "no-such-file" in script(*options, "--data.train", "/no-such-file.jsonl", expect=2)


@pytest.mark.slow  # test_slurm has two nodes, too
def test_two_nodes(data, tmp_path):  # noqa: F811
    """Two raylets with two places each; workers and engine need three of one place each."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(data), str(tmp_path)],
                          capture_output=True, text=True, timeout=300, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    places = json.loads(done.stdout.splitlines()[-1])
    assert len(set(places.values())) == 2, places
    assert len(places) >= 3, "policy, reference and engine"
    run = tmp_path / "two-nodes"
    assert steps_of(run) == [0] and learned(run)
