"""Real processes: how they end is written down, and none outlives the sweep. And the lock, and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.sweep import shared
from openrlhf_medical.sweep.folder import SweepFolder
from openrlhf_medical.sweep.shared import data_keys, judge_keys, prepare_once
from openrlhf_medical.sweep.spec import Prepare, SharedJudge
from openrlhf_medical.sweep.submitters import Job, JobState, LocalSubmitter

ROOT = Path(__file__).parents[2]
# A run that saves when it is told to, with a worker that hears nothing.
RUN = """
import signal, subprocess, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
def save(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save if sys.argv[2] == "saves" else signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
(folder / "worker.partial").write_text(str(worker.pid))
(folder / "worker.partial").rename(folder / "worker")
time.sleep(300)
"""


def wait(done: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def job(folder: Path, *words: str, grace_s: float = 20.0) -> Job:
    return Job("s.r.1", words, None, folder / "c.yaml", folder / "log", folder / "exit.json", grace_s)


def ended(folder: Path) -> dict[str, object]:
    wait((folder / "exit.json").exists, "an exit file")
    return {key: value for key, value in json.loads((folder / "exit.json").read_text()).items() if key != "time"}


def test_a_jobs_end_and_words_are_kept(tmp_path: Path) -> None:
    place = LocalSubmitter()
    job_id = place.submit(job(tmp_path, sys.executable, "-c", "print('hello'); exit(3)"))
    wait(lambda: place.poll([job_id])[job_id].state is JobState.ENDED, "the end")
    assert place.poll([job_id])[job_id].code == 3
    assert ended(tmp_path) == {"code": 3, "stopped": False}
    assert (tmp_path / "log").read_text() == "hello\n"
    assert LocalSubmitter().poll([job_id])[job_id].state is JobState.GONE, "to a sweep that did not start it"
    place.stop(job_id)  # no error


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    place = LocalSubmitter()
    job_id = place.submit(job(tmp_path, "/none/program"))
    wait(lambda: place.poll([job_id])[job_id].state is JobState.ENDED, "the end")
    assert ended(tmp_path) == {"code": 127, "stopped": False}
    assert "/none/program cannot be started" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("manner", "code"), [("saves", 143), ("deaf", 137)])
def test_a_job_that_is_stopped_may_save_and_leaves_no_worker(tmp_path: Path, manner: str, code: int) -> None:
    place = LocalSubmitter()
    words = (sys.executable, "-c", RUN, str(tmp_path), manner)
    job_id = place.submit(job(tmp_path, *words, grace_s=20.0 if manner == "saves" else 0.3))
    wait((tmp_path / "worker").exists, "the worker")
    assert place.poll([job_id])[job_id].state is JobState.RUNNING
    assert LocalSubmitter().poll([job_id])[job_id].state is JobState.RUNNING, "to a sweep that did not start it"
    place.stop(job_id)
    assert ended(tmp_path) == {"code": code, "stopped": True}
    assert (tmp_path / "saved").exists() == (manner == "saves")
    wait(lambda: not alive(int((tmp_path / "worker").read_text())), "the worker's end", 5)


def test_jobs_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from openrlhf_medical.sweep.submitters import Job, LocalSubmitter\n"
        "f = Path(sys.argv[1]); words = [sys.executable, '-c', sys.argv[3], str(f), 'saves']\n"
        "job = Job('s.r.1', words, None, f / 'c', f / 'log', f / 'exit.json', 20)\n"
        "print(LocalSubmitter().submit(job), flush=True)\n"
        "time.sleep(300)\n"
    )
    sweep = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(ROOT), RUN])
    try:
        wait((tmp_path / "worker").exists, "the worker")
    finally:
        sweep.kill()
        sweep.wait()
    assert ended(tmp_path) == {"code": 143, "stopped": True}
    assert (tmp_path / "saved").exists()
    wait(lambda: not alive(int((tmp_path / "worker").read_text())), "the worker's end", 5)


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    assert folder.holder() is None
    with folder.lock():
        assert folder.holder() == {"pid": os.getpid(), "host": os.uname().nodename}
        with pytest.raises(UserError, match=rf"another sweep \(process {os.getpid()}"), folder.lock():
            pass
    assert folder.holder() is None
    with folder.lock():
        pass


def test_data_is_prepared_once_and_never_exchanged(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    prepare = Prepare(num_samples=40)
    assert "synthetic" in str(prepare_once(prepare, folder))
    train = Path(data_keys(prepare, folder)["data.train"])
    before = train.read_bytes()
    assert prepare_once(prepare, folder) is None
    with pytest.raises(UserError, match=r"prepared otherwise \(seed was 0\)"):
        prepare_once(Prepare(num_samples=40, seed=1), folder)
    assert train.read_bytes() == before and data_keys(None, folder) == {}


def test_a_judge_that_does_not_start_ends_the_sweep(tmp_path: Path) -> None:
    judge = SharedJudge(options=("--max-queue", "none"))
    with pytest.raises(RunError, match="max-queue"), judge_keys(judge, SweepFolder(tmp_path)):
        pass
    with judge_keys(SharedJudge(urls=("http://a:1",)), SweepFolder(tmp_path)) as keys:
        assert keys == {"judge.urls": ["http://a:1"]}
    with judge_keys(None, SweepFolder(tmp_path)) as keys:
        assert keys == {}


def test_a_judge_takes_another_port_where_its_own_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    @contextlib.contextmanager
    def kept_running(log_file: Path, port: int, **options: object) -> Iterator[str]:
        asked.append(port)
        if port == 1:
            raise RuntimeError("taken")
        yield f"http://127.0.0.1:{port or len(asked)}"

    monkeypatch.setattr(shared, "kept_running", kept_running)
    folder = SweepFolder(tmp_path)
    for expected in ([0], [0, 1, 0], [0, 1, 0, 3]):  # a free one, another in its place, and that one again
        with judge_keys(SharedJudge(), folder) as keys:
            assert asked == expected and keys == {"judge.urls": [f"http://127.0.0.1:{3 if len(asked) > 1 else 1}"]}


def sweep_file(folder: Path, **keys: object) -> Path:
    content = {
        "name": "s", "dir": str(folder / "runs"), "base": str(ROOT / "configs" / "tiny.yaml"), "seeds": [1],
        "variants": {"a": {}, "b": {"game.cott": 1}}, "command": ["true"],
    }  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(content | keys))
    return path


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of the test's own process
    monkeypatch.chdir(ROOT)

    def run(*words: object):
        return CliRunner().invoke(app, ["sweep", *map(str, words)])

    path = sweep_file(tmp_path)
    dry = run("--config", path, "--dry-run")
    assert dry.exit_code == 0 and "a-seed1" in dry.stdout and "1 of them cannot be started" in dry.stderr
    assert not (tmp_path / "runs").exists()
    assert "holds no sweep yet" in run("status", path).stderr
    done = run("--config", path)
    assert done.exit_code == 1, done.output
    assert "warning: variant b cannot be started" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 runs did not finish: b-seed1")
    status = run("status", tmp_path / "runs" / "s")
    assert status.exit_code == 0 and "1 invalid, 1 finished" in status.stdout and "no sweep is at work" in status.stdout
    assert run("summary", tmp_path / "runs" / "s").exit_code == 0
    assert run("stop", tmp_path / "runs" / "s").stderr == "stopped: nothing was under way\n"
    assert run("--config", sweep_file(tmp_path, variants={"a": {}})).exit_code == 0, "all of it is finished"
    for words, part in (((), "sweep needs --config"), (("status",), "needs the sweep's folder"),
                        (("status", tmp_path / "runs"), "has no sweep.yaml"),
                        (("--config", "/none.yaml"), "cannot be read")):  # fmt: skip
        refused = run(*words)
        assert refused.exit_code == 2 and part in refused.stderr


WAITS_ONCE = """
import pathlib, sys, time
begun = pathlib.Path(sys.argv[1])
if not begun.exists():
    begun.touch()
    time.sleep(300)
"""


def test_a_sweep_that_is_told_to_end_stops_all_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS_ONCE, "{folder}/begun"]
    path = sweep_file(tmp_path, variants={"a": {}, "b": {}, "c": {}}, command=command, concurrency=2)
    words = [sys.executable, "-m", "openrlhf_medical", "sweep", "--config", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    sweep = subprocess.Popen(words, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    folder = SweepFolder(tmp_path / "runs" / "s")
    try:
        wait(lambda: all((folder.run_folder(f"{run}-seed1") / "begun").exists() for run in "ab"), "two runs")
        (folder.run_folder("c-seed1")).mkdir()
        (folder.run_folder("c-seed1") / "begun").touch()
        sweep.send_signal(signal.SIGTERM)  # as Ctrl-C
        told = sweep.communicate(timeout=30)[1]
    finally:
        sweep.kill()
    assert sweep.returncode == 130
    assert told.splitlines()[-2:] == [
        f"stopped; go on with: openrlhf-medical sweep --config {path} --submit local",
        "interrupted",
    ]
    assert [str(folder.record(f"{run}-seed1").state) for run in "abc"] == ["interrupted", "interrupted", "pending"]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [folder.record(f"{run}-seed1").attempt for run in "abc"] == [2, 2, 1]


def test_places_that_are_not_there_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    path = sweep_file(tmp_path)
    refused = CliRunner().invoke(app, ["sweep", "--config", str(path), "--submit", "slurm"])
    assert refused.exit_code == 2 and "needs sbatch, squeue" in refused.stderr
    path = sweep_file(tmp_path, judge={"backend": "reference"})
    refused = CliRunner().invoke(app, ["sweep", "--config", str(path), "--submit", "slurm"])
    assert refused.exit_code == 2 and "cannot reach a judge" in refused.stderr
    assert not (tmp_path / "runs").exists()
