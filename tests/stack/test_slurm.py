"""launch/slurm.sbatch on a real Slurm with two nodes (both this machine): two steps of real training, told to stop
in the middle, requeued, finished."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from local_slurm import slurm, why_not
from test_train import BASE, ROOT, data, moved  # noqa: F401  (data is a fixture)
from trained_runs import learned, processes_with, rows, status_of, steps_of, until

STEPS = 2


@pytest.fixture(scope="module")
def cluster():
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"CI has to have a real Slurm: {reason}")
        pytest.skip(reason)
    with slurm() as running:
        yield running


@pytest.fixture(scope="module")
def finished(cluster, data, tmp_path_factory):  # noqa: F811
    """(folder of the run, the job's number, its output, steps when it was told to stop)."""
    folder = tmp_path_factory.mktemp("slurm")
    output = folder / "output.txt"
    cluster.environment["PYTHONPATH"] = str(ROOT)
    job = cluster.run(
        *("sbatch", "--parsable", "--nodes=2", f"--output={output}", "launch/slurm.sbatch"),
        *("--python", str(ROOT / ".venv/bin/python"), "--config", "configs/tiny.yaml", "--run.name", "on-slurm"),
        *("--run.dir", str(folder / "runs"), "--run.steps", str(STEPS), "--run.eval_games", "0"),
        *("--roles.policy", "shared", "--train.colocate_all", "true"),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        cwd=ROOT,
    )
    run = folder / "runs" / "on-slurm"

    def told() -> str:
        said = output.read_text()[-4000:] if output.exists() else ""
        return f"{cluster.state(job)}\n{cluster.logs()}\n{said}"

    until(lambda: rows(run / "games.jsonl") or cluster.state(job)["JobState"] == "FAILED", 240, "first game", told)
    assert cluster.state(job)["JobState"] == "RUNNING", told()
    when = steps_of(run)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    until(lambda: cluster.state(job)["Restarts"] == "1", 120, "requeue", told)
    interrupted = status_of(run)
    until(lambda: cluster.state(job)["JobState"] == "PENDING", 60, "end of the first part", told)
    left = processes_with(f"/tmp/ray-{job}-0")
    # By itself Slurm waits two minutes; slurmd refuses a credential of the same second as the last one's end.
    time.sleep(3)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: cluster.state(job)["JobState"] in ("COMPLETED", "FAILED"), 240, "end", told)
    assert cluster.state(job)["JobState"] == "COMPLETED", told()
    return run, job, output.read_text(), when, interrupted, left


def test_signalled_in_the_middle_it_saved_and_went_on(finished):
    run, _, output, when, interrupted, _ = finished
    assert len(when) < STEPS, "the signal came before the end"
    assert interrupted["state"] == "interrupted" and interrupted["steps_done"] < STEPS
    assert status_of(run)["state"] == "finished"
    assert output.count("starting Ray on 2 nodes") == 2 and output.count("requeued") == 1


def test_each_step_is_there_once_and_taught_something(finished):
    run = finished[0]
    assert steps_of(run) == list(range(STEPS))
    games = [(game["step"], game["game_idx"]) for game in rows(run / "games.jsonl")]
    assert len(games) == len(set(games)) == STEPS * 16
    assert learned(run) and moved(run / "checkpoints" / "final" / "shared") > 0


def test_nothing_is_left(finished, cluster):
    _, job, _, _, _, left = finished
    assert not left, "of the first part, while it waited"
    until(
        lambda: not processes_with(f"/tmp/ray-{job}-"),
        30,
        "end of all",
        lambda: str(processes_with(f"/tmp/ray-{job}-")),
    )
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
    assert not cluster.run("squeue", "-h")
