"""What a run leaves behind."""

from __future__ import annotations

import json
import signal

import pytest

from openrlhf_medical.errors import Interrupted, RunError, UserError
from openrlhf_medical.run_directory import RunDirectory


def test_a_folder_with_a_run_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("run: {name: run}\n")
    with pytest.raises(UserError, match=r"--resume auto, choose another run\.name"):
        RunDirectory(tmp_path / "run")
    RunDirectory(tmp_path / "run", resume=True)


def test_a_mistake_while_starting_leaves_nothing(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    directory.discard_if_unused()
    assert not directory.folder.exists()


def test_what_was_played_is_never_discarded(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    directory.add_metrics(-1, {"eval/assessor/accuracy": 0.5})
    directory.discard_if_unused()
    directory.close()
    [row] = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    assert row["step"] == -1 and row["eval/assessor/accuracy"] == 0.5


def test_figures_that_are_no_numbers_are_null(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    figures = {"a": float("nan"), "b": float("inf"), "c": -1.5}
    directory.add_metrics(0, figures)
    directory.add_warm_start(1, figures)
    directory.close()
    for file in (directory.metrics_file, directory.warm_start_file):
        [row] = [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
        assert {name: row[name] for name in figures} == {"a": None, "b": None, "c": -1.5}


def test_environment_names_versions_and_hardware(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("run: {name: run}\n")
    environment = json.loads((directory.folder / "environment.json").read_text())
    assert environment["versions"]["openrlhf"] == "0.11.2"
    assert environment["cpu_cores"] >= 1 and environment["memory_gib"] > 1
    assert "git_commit" in environment


# ── status.json ──


def status_after(directory: RunDirectory, error: BaseException | None) -> dict:
    directory.create("")
    try:
        with directory.status_of_run(2, 5):
            assert directory.status.read() == {"state": "running", "steps_done": 2, "steps": 5, "reason": None}
            directory.status.running(3, 5)
            if error is not None:
                raise error
    except BaseException as found:
        assert found is error
    return directory.status.read()


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", None),
        (RunError("the judge is gone"), "failed", "RunError: the judge is gone"),
        (UserError("no place"), "failed", "UserError: no place"),
        (Interrupted(signal.SIGTERM, "3 of 5 steps are done"), "interrupted", "3 of 5 steps are done"),
        (KeyboardInterrupt(), "interrupted", "interrupted"),
    ],
)
def test_the_status_says_how_a_run_ended(tmp_path, error, state, reason):
    found = status_after(RunDirectory(tmp_path / "run"), error)
    assert found == {"state": state, "steps_done": 3, "steps": 5, "reason": reason}


def test_a_status_that_is_no_status_is_none(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.status.read() == {}
    directory.create("")
    (directory.folder / "status.json").write_text("")
    assert directory.status.read() == {}


# ── Going on ──


def test_logs_are_cut_to_what_belongs_to_the_steps_done(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    directory.add_metrics(0, {"a": 1.0})
    sizes = directory.log_sizes()
    assert sizes["games.jsonl"] == 0 < sizes["metrics.jsonl"]
    directory.add_metrics(1, {"a": 2.0})
    directory.close()
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 2, "ti')
    directory.cut_logs(sizes)
    directory.add_metrics(1, {"a": 3.0})
    directory.close()
    assert [(row["step"], row["a"]) for row in map(json.loads, directory.metrics_file.read_text().splitlines())] == [
        (0, 1.0), (1, 3.0),
    ]  # fmt: skip


@pytest.mark.parametrize("warm", [False, True])
def test_an_unfinished_beginning_is_cleared_and_a_finished_warm_start_stays(tmp_path, warm):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    directory.add_metrics(-1, {"a": 1.0})
    directory.add_warm_start(1, {"a": 1.0})
    directory.close()
    for name in ("warm_start", "pool", "step_1", "state"):
        (directory.checkpoints / name).mkdir()
    if warm:
        directory.starts_file.write_text("{}")
    directory.start_anew()
    assert not directory.metrics_file.exists() and directory.warm_start_file.exists() == warm
    assert [path.name for path in directory.checkpoints.iterdir()] == (["warm_start"] if warm else [])
