"""Engines that share a machine's cores compute one step at a time (rollout/core_turns.py)."""

from __future__ import annotations

import threading

import pytest

from openrlhf_medical.rollout import core_turns
from openrlhf_medical.rollout.core_turns import take_turns


class Worker:
    def __init__(self, output: object = None) -> None:
        self.output = output

    def execute_model(self, scheduled: str) -> object:
        if isinstance(self.output, Exception):
            raise self.output
        return self.output

    def sample_tokens(self, grammar: str) -> str:
        return f"sampled {grammar}"


@pytest.fixture
def turns(tmp_path, monkeypatch):
    monkeypatch.setattr(core_turns, "FOLDER", tmp_path)

    def worker(output: object = None) -> Worker:
        made = Worker(output)
        take_turns(made)
        return made

    return worker


def computes_within(worker: Worker, seconds: float) -> bool:
    done = threading.Event()

    def step() -> None:
        worker.execute_model("")
        worker.sample_tokens("")
        done.set()

    threading.Thread(target=step, daemon=True).start()
    return done.wait(seconds)


def test_a_step_ends_with_sampling(turns):
    first, second = turns(), turns()
    assert first.execute_model("a step") is None
    assert not computes_within(second, 0.3)
    assert first.sample_tokens("a token") == "sampled a token"
    assert computes_within(turns(), 20)


@pytest.mark.parametrize("output", ["nothing was scheduled", MemoryError("too long")])
def test_a_step_without_sampling_ends_by_itself(turns, output):
    worker = turns(output)
    if isinstance(output, Exception):
        with pytest.raises(MemoryError, match="too long"):
            worker.execute_model("a step")
    else:
        assert worker.execute_model("a step") == output
    assert computes_within(turns(), 20)


def test_who_waits_in_vain_goes_on_without_turns(turns, monkeypatch, caplog):
    stopped, other = turns(), turns("a step")
    monkeypatch.setattr(core_turns, "WAIT_S", 0.2)
    assert stopped.execute_model("never sampled") is None
    assert other.execute_model("") == "a step"
    assert "take no turns any more" in caplog.text
    monkeypatch.setattr(core_turns, "WAIT_S", 3600)
    assert computes_within(other, 20), "it waits only once"


@pytest.mark.parametrize("lock", ["a link", "a folder"])
def test_what_somebody_else_put_there_is_left_alone(tmp_path, monkeypatch, caplog, lock):
    monkeypatch.setattr(core_turns, "FOLDER", tmp_path)
    target = tmp_path / "precious"
    target.write_text("text")
    if lock == "a link":
        core_turns.lock_path().symlink_to(target)
    else:
        core_turns.lock_path().mkdir()
    worker = Worker("a step")
    take_turns(worker)
    assert worker.execute_model("") == "a step" and "cannot be opened" in caplog.text
    assert target.read_text() == "text"


def test_engines_on_other_cores_have_turns_of_their_own(monkeypatch):
    monkeypatch.setattr(core_turns.os, "sched_getaffinity", lambda pid: {0, 1})
    first = core_turns.lock_path()
    monkeypatch.setattr(core_turns.os, "sched_getaffinity", lambda pid: {2, 3})
    assert core_turns.lock_path() != first
