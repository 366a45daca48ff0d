"""Threads follow who computes. Processes that only wait stand for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openrlhf_medical.learner.shared_cores import SharedCores


@pytest.fixture
def other(tmp_path: Path):
    """A process that computes, by its own word."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / str(process.pid)).touch()
        yield process
        process.communicate(b"\n")


def test_all_cores_when_alone_half_with_another_all_again_when_it_ends(tmp_path: Path, other) -> None:
    cores = SharedCores(4, tmp_path)
    with cores.computing():
        assert cores.share() == 2
        (tmp_path / str(other.pid)).unlink()  # it is done
        assert cores.share() == 4


def test_a_killed_process_does_not_count(tmp_path: Path, other) -> None:
    other.kill()
    other.wait()
    assert SharedCores(4, tmp_path).share() == 4


def test_there_is_always_one_thread(tmp_path: Path, other) -> None:
    assert SharedCores(1, tmp_path).share() == 1


def test_others_see_this_process_while_it_computes(tmp_path: Path) -> None:
    cores = SharedCores(2, tmp_path)
    with pytest.raises(RuntimeError), cores.computing(), cores.computing():
        assert (tmp_path / str(os.getpid())).exists()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_fixed_number_of_threads_stays(tmp_path: Path, other) -> None:
    before, cores = torch.get_num_threads(), SharedCores(None, tmp_path)
    with cores.computing():
        cores.take()
    assert torch.get_num_threads() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [str(other.pid)]
