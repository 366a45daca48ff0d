"""Frozen opponents with scripted engines: what a replaced engine is given. No Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_medical.errors import RunError
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout import fleet, opponents
from openrlhf_medical.rollout.fleet import Fleet
from openrlhf_medical.rollout.opponents import Opponent
from openrlhf_medical.rollout.pool import Member
from openrlhf_medical.rollout.weights import WeightStamp


class Engine:
    """Holds what it loaded last, adapters by name."""

    def __init__(self) -> None:
        self.held: dict[str, WeightStamp] = {}

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: lambda: getattr(self, f"_{method}")(*args))

    def _load_folder(self, folder: str, version: int) -> WeightStamp:
        return self._hold("", folder, version)

    def _load_adapter(self, name: str, version: int, config: str, weights: bytes) -> WeightStamp:
        return self._hold(name, config + weights.decode(), version)

    def _hold(self, name: str, what: str, version: int) -> WeightStamp:
        self.held[name] = WeightStamp(version, what)
        return self.held[name]

    def _weight_stamp(self, adapter: str = "") -> WeightStamp | None:
        return self.held.get(adapter)


def opponent_of(monkeypatch: pytest.MonkeyPatch, adapter: str = "") -> Opponent:
    def gather(references: dict[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
        return {name: call() for name, call in references.items()}

    monkeypatch.setattr(fleet, "gather", gather)
    monkeypatch.setattr(opponents, "gather", gather)
    monkeypatch.setattr(fleet, "end", lambda engine: None)
    engines = Fleet("the frozen assessor", lambda index: Engine(), 2, start_timeout_s=5, equip_timeout_s=5)
    player: Any = SimpleNamespace(name="")
    return Opponent(Role.ASSESSOR, player, engines, 5, adapter=adapter)


def lose_first(opponent: Opponent) -> Engine:
    seat = opponent.engines._seats[0]
    opponent.engines.lost(seat, seat.engine, " was struck")
    opponent.engines.wait_whole()
    return seat.engine


def test_the_model_that_engines_start_with_needs_no_loading(monkeypatch):
    opponent = opponent_of(monkeypatch)
    assert lose_first(opponent).held == {}
    opponent.check_engines()


def test_a_new_engine_becomes_the_member_that_plays(monkeypatch, tmp_path):
    opponent = opponent_of(monkeypatch)
    for step in (3, 4):
        opponent.become(Member(f"step_{step}", step, str(tmp_path / str(step)), step), "assessor")
    assert lose_first(opponent).held == {"": WeightStamp(4, str(tmp_path / "4" / "assessor"))}
    opponent.check_engines()


def test_an_adapter_too(monkeypatch, tmp_path):
    opponent = opponent_of(monkeypatch, adapter="frozen-assessor")
    (tmp_path / opponents.ADAPTER_CONFIG).write_text("{}")
    (tmp_path / opponents.ADAPTER_WEIGHTS).write_bytes(b"w")
    opponent.load(str(tmp_path), 2)
    assert lose_first(opponent).held == {"frozen-assessor": WeightStamp(2, "{}w")}


def test_a_folder_that_has_changed_meanwhile_is_noticed(monkeypatch, tmp_path):
    opponent = opponent_of(monkeypatch, adapter="frozen-assessor")
    (tmp_path / opponents.ADAPTER_CONFIG).write_text("{}")
    (tmp_path / opponents.ADAPTER_WEIGHTS).write_bytes(b"w")
    opponent.load(str(tmp_path), 2)
    (tmp_path / opponents.ADAPTER_WEIGHTS).write_bytes(b"x")
    with pytest.raises(RunError, match=r"the frozen assessor engine 0 was struck.*the others had read"):
        lose_first(opponent)
