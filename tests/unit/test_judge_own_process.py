"""A backend in a process of its own: same findings, failures told without text, a death survived."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.findings import BlindPair
from openrlhf_medical.judge.own_process import BackendDied, BackendFailed, OwnProcess

PAIR = BlindPair("He was given amoxicillin.", "He was given vancomycin.")


MOODY = """
import os, signal, time
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.findings import Finding

class Moody:
    model_name = "moody"
    def __init__(self, loads=True):
        self.loads = loads
    def load(self):
        if not self.loads:
            raise OSError("no such model")
    def judge(self, pairs):
        match pairs[0].medical_note:
            case "fail":
                raise ValueError(f"cannot read {pairs[0].original_note}")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(60)
        return [Finding("ok", Truth.SAFE, reasoning=str(os.getpid()))] * len(pairs)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the backend does is written in the note; its class is in a file that its process can import."""
    (tmp_path / "moody_backend.py").write_text(MOODY)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("moody_backend").Moody
    del sys.modules["moody_backend"]


@pytest.fixture
def moody(make: Any) -> Iterator[OwnProcess]:
    backend = OwnProcess(make())
    backend.load()
    yield backend
    backend.close()


def test_findings_are_those_of_the_backend() -> None:
    backend = OwnProcess(ReferenceBackend())
    backend.load()
    try:
        assert backend.judge([PAIR, PAIR]) == ReferenceBackend().judge([PAIR, PAIR])
    finally:
        backend.close()


def test_a_backend_that_cannot_be_loaded_says_why(make: Any) -> None:
    with pytest.raises(BackendFailed, match="OSError: no such model"):
        OwnProcess(make(loads=False)).load()


def test_a_failure_quotes_no_note_and_ends_nothing(moody: OwnProcess) -> None:
    with pytest.raises(BackendFailed, match="ValueError at ") as failure:
        moody.judge([BlindPair("amoxicillin", "fail")])
    assert "amoxicillin" not in str(failure.value)
    assert moody.judge([PAIR])[0].status == "ok"


def test_a_process_that_died_is_started_anew(moody: OwnProcess) -> None:
    before = moody.judge([PAIR])[0].reasoning
    with pytest.raises(BackendDied):
        moody.judge([BlindPair("", "die")])
    after = moody.judge([PAIR])[0].reasoning
    assert before != after and os.getpid() not in (int(before), int(after))


def test_the_signals_that_stop_a_server_do_not_stop_its_backend(moody: OwnProcess) -> None:
    pid = int(moody.judge([PAIR])[0].reasoning)
    os.kill(pid, signal.SIGTERM)
    assert moody.judge([PAIR])[0].reasoning == str(pid)


def test_close_ends_a_call_that_hangs(moody: OwnProcess) -> None:
    raised: list[BaseException] = []

    def hang() -> None:
        try:
            moody.judge([BlindPair("", "hang")])
        except BackendDied as error:
            raised.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    moody.close()
    thread.join(20)
    assert len(raised) == 1
    with pytest.raises(BackendDied):
        moody.judge([PAIR])
