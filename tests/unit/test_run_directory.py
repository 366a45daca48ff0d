"""What a run leaves behind."""

from __future__ import annotations

import json

import pytest

from openrlhf_medical.errors import UserError
from openrlhf_medical.run_directory import RunDirectory


def test_a_folder_with_a_run_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("run: {name: run}\n")
    with pytest.raises(UserError, match=r"run\.name"):
        RunDirectory(tmp_path / "run")


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
