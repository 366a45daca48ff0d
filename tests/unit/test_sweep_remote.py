"""What Ray and Slurm are asked, and what is made of their answers. Scripted here; tests/stack has the real ones."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_medical.config import load_config
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.sweep import remote
from openrlhf_medical.sweep.remote import RaySubmitter, SlurmSubmitter
from openrlhf_medical.sweep.submitters import Job, JobState, Seen

ROOT = Path(__file__).parents[2]


def job(folder: Path, trains: bool = True) -> Job:
    config = load_config(ROOT / "configs" / "tiny.yaml") if trains else None
    return Job("s.run.1", ["echo", "a b"], config, folder / "c.yaml", folder / "l.log", folder / "e.json", 30.0)


class ScriptedCluster:
    """Knows the jobs of ``states``: (status, exit code), or an exception."""

    def __init__(self, states: dict[str, Any]) -> None:
        self.states, self.submitted, self.stopped = states, [], []  # type: ignore[var-annotated]

    def submit(self, asked: Any) -> str:
        self.submitted.append(asked)
        return str(asked.name)

    def details(self, name: str) -> Any:
        if name not in self.states:
            raise UserError("no such job")
        status, code = self.states[name]
        terminal = status in ("SUCCEEDED", "FAILED", "STOPPED")

        class Status(str):
            def is_terminal(self) -> bool:
                return terminal

        return SimpleNamespace(status=Status(status), driver_exit_code=code)

    def stop(self, name: str) -> None:
        self.stopped.append(name)


def test_ray_is_given_train_as_it_is_and_other_programs_with_a_watcher(tmp_path: Path) -> None:
    cluster = ScriptedCluster({})
    place = RaySubmitter(cluster, tmp_path)  # type: ignore[arg-type]
    assert place.submit(job(tmp_path)) == "s.run.1"
    place.submit(job(tmp_path, trains=False))
    train, other = cluster.submitted
    words = shlex.split(train.entrypoint)
    assert words[:5] == ["exec", sys.executable, "-m", "openrlhf_medical", "train"]
    assert words[words.index("--resume") + 1] == "auto"
    assert words[-3:] == [">>", str(tmp_path / "l.log"), "2>&1"]
    assert (train.working_dir, train.stop_grace_s) == (tmp_path, 30)
    words = shlex.split(other.entrypoint)
    assert words[1:4] == [sys.executable, "-m", "openrlhf_medical.sweep.job"]
    assert words[words.index("--") + 1 : -3] == ["echo", "a b"]


def test_a_job_that_is_there_is_not_submitted_twice(tmp_path: Path) -> None:
    cluster = ScriptedCluster({"s.run.1": ("RUNNING", None)})
    assert RaySubmitter(cluster, tmp_path).submit(job(tmp_path)) == "s.run.1"  # type: ignore[arg-type]
    assert cluster.submitted == []


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (("PENDING", None), Seen(JobState.QUEUED)),
        (("RUNNING", None), Seen(JobState.RUNNING)),
        (("SUCCEEDED", 0), Seen(JobState.ENDED, 0)),
        (("FAILED", 2), Seen(JobState.ENDED, 2)),
        (("STOPPED", None), Seen(JobState.ENDED, 143)),
        (None, Seen(JobState.GONE)),
    ],
)
def test_states_of_ray(state: Any, seen: Seen, tmp_path: Path) -> None:
    place = RaySubmitter(ScriptedCluster({"j": state} if state else {}), tmp_path)  # type: ignore[arg-type]
    assert place.poll(["j"]) == {"j": seen}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH whose programs write down how they are called and print what ``<name>.out`` holds, or fail
    where that is not there."""
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        program = tmp_path / name
        out = tmp_path / f"{name}.out"
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n'
            f"if [ -e {out} ]; then cat {out}; else echo {name}: nothing >&2; exit 1; fi\n"
        )
        program.chmod(0o755)
        out.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def calls(slurm: Path) -> list[str]:
    return (slurm / "calls").read_text().splitlines()


def test_slurm_is_given_the_script_for_train_and_the_words_for_others(slurm: Path) -> None:
    (slurm / "sbatch.out").write_text("17;cluster\n")
    script = ROOT / "launch" / "slurm.sbatch"
    place = SlurmSubmitter(script, ["--partition=gpu", "--nodes=2"])
    assert place.submit(job(slurm)) == "17"
    asked = calls(slurm)[-1]
    assert asked.startswith(
        f"sbatch --parsable --job-name=s.run.1 --output={slurm}/l.log --open-mode=append --partition"
    )
    assert asked.endswith(f"--nodes=2 {script} --python {sys.executable} --config {slurm}/c.yaml --resume auto")
    place.submit(job(slurm, trains=False))
    assert "--wrap=exec " in calls(slurm)[-1] and calls(slurm)[-1].endswith("-- echo 'a b'")
    (slurm / "squeue.out").write_text("12\n")
    assert place.submit(job(slurm)) == "12", "a job of this name is there already"
    assert calls(slurm)[-1].startswith("squeue")
    (slurm / "squeue.out").write_text("")
    with pytest.raises(UserError, match="set slurm_script"):
        SlurmSubmitter(slurm / "none.sbatch", []).submit(job(slurm))
    (slurm / "sbatch.out").unlink()
    with pytest.raises(RunError, match="sbatch failed: sbatch: nothing"):
        place.submit(job(slurm))


@pytest.mark.parametrize(
    ("queued", "told", "seen"),
    [
        ("7 PENDING", None, Seen(JobState.QUEUED)),
        ("7 RUNNING\n8 PENDING", None, Seen(JobState.RUNNING)),
        ("7 COMPLETING", None, Seen(JobState.RUNNING)),
        ("", "JobId=7 JobState=COMPLETED ExitCode=0:0", Seen(JobState.ENDED, 0)),
        ("", "JobId=7 JobState=FAILED ExitCode=3:0", Seen(JobState.ENDED, 3)),
        ("", "JobId=7 JobState=FAILED ExitCode=0:9", Seen(JobState.ENDED, 137)),
        ("", "JobId=7 JobState=CANCELLED ExitCode=0:15", Seen(JobState.ENDED, 143)),
        ("", "JobId=7 JobState=NODE_FAIL ExitCode=1:0", Seen(JobState.ENDED)),
        ("8 RUNNING", None, Seen(JobState.GONE)),
    ],
)
def test_states_of_slurm(slurm: Path, queued: str, told: str | None, seen: Seen) -> None:
    (slurm / "squeue.out").write_text(queued)
    if told is None:
        (slurm / "scontrol.out").unlink()
    else:
        (slurm / "scontrol.out").write_text(told)
    assert SlurmSubmitter(Path("x"), []).poll(["7"]) == {"7": seen}


def test_a_running_job_of_slurm_may_save_its_state(slurm: Path) -> None:
    (slurm / "scancel.out").unlink()  # it has ended: no error
    SlurmSubmitter(Path("x"), []).stop("7")
    assert calls(slurm) == ["scancel --state=PENDING 7", "scancel --batch --signal=TERM --state=RUNNING 7"]


def test_a_slurm_that_does_not_answer_is_told(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(remote, "_ANSWER_S", 0.2)
    with pytest.raises(RunError, match=r"squeue has not answered within 0.2 s"):
        SlurmSubmitter(Path("x"), []).poll(["7"])
