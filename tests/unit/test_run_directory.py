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


def test_metrics_that_are_no_numbers_are_not_written(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("")
    with pytest.raises(ValueError, match="JSON compliant"):
        directory.add_metrics(0, {"policy/attacker/kl": float("nan")})


def test_environment_names_versions_and_hardware(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create("run: {name: run}\n")
    environment = json.loads((directory.folder / "environment.json").read_text())
    assert environment["versions"]["openrlhf"] == "0.11.2"
    assert environment["cpu_cores"] >= 1 and environment["memory_gib"] > 1
    assert "git_commit" in environment
