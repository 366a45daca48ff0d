"""Fleets with scripted engines: who plays, what a death costs, and when a run ends. No Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from openrlhf_medical.errors import RunError, StuckError, WorkerDied
from openrlhf_medical.rollout import fleet
from openrlhf_medical.rollout.fleet import MAX_DEATHS, Fleet, Fleets


class Dead(ActorDiedError):
    def __str__(self) -> str:
        return "The actor died.\n\tpid: 7\nThe actor is dead because its worker process has died. It was struck."


class Engine:
    """``replies(n)`` gives, or raises, the answer to its n-th turn."""

    def __init__(self, index: int, life: int, replies: Callable[[int], Any]) -> None:
        self.index, self.life, self.turns, self.replies = index, life, 0, replies
        self.holds: list[str] = []
        self.dead = False

    async def reply(self) -> Any:
        self.turns += 1
        return self.replies(self.turns)

    def __getattr__(self, name: str) -> Any:
        if name == "weight_stamp":
            return type("Method", (), {"remote": lambda _, *args: self})()
        raise AttributeError(name)


class Yard:
    """Starts engines, and remembers all of them: ``lives[i]`` of engine i."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replies: Callable[[Engine, int], Any], count: int = 2) -> None:
        self.lives: list[list[Engine]] = [[] for _ in range(count)]
        self.replies, self.ended, self.told = replies, [], []
        self.hold = threading.Event()
        self.hold.set()
        monkeypatch.setattr(fleet, "end", self.ended.append)
        monkeypatch.setattr(fleet, "gather", self.gather)
        self.fleet = Fleet("shared", self.start, count, start_timeout_s=10, equip_timeout_s=10)
        self.fleet.tell = self.told.append

    def start(self, index: int) -> Engine:
        engine = Engine(index, len(self.lives[index]), lambda n: self.replies(engine, n))
        self.lives[index].append(engine)
        return engine

    def gather(self, references: dict[str, Engine], timeout_s: float, doing: str) -> dict[str, Any]:
        assert self.hold.wait(20)
        for name, engine in references.items():
            if engine.dead:
                raise WorkerDied(f"{doing}: {name} died: it was struck", (name,))
        return {name: (engine.index, engine.life) for name, engine in references.items()}

    def play(self, turns: int) -> list[Any]:
        async def everything() -> list[Any]:
            one = [self.fleet.turn(lambda engine: engine.reply(), f"turn {i}", 20) for i in range(turns)]
            return await asyncio.gather(*one, return_exceptions=True)

        return asyncio.run(everything())


def names(engine: Engine, turn: int) -> str:
    return f"{engine.index}.{engine.life}"


def dies_once(engine: Engine, turn: int) -> str:
    """Engine 0 dies in each turn of its first life."""
    if engine.index == 0 and engine.life == 0:
        raise Dead()
    return names(engine, turn)


def test_turns_go_to_the_least_busy(monkeypatch) -> None:
    yard = Yard(monkeypatch, names)
    assert sorted(yard.play(6)) == ["0.0"] * 3 + ["1.0"] * 3
    assert yard.fleet.finish_step() == {"supervision/engine_restarts": 0, "supervision/lost_s": 0,
                                        "supervision/turns_replayed": 0}  # fmt: skip


def test_what_a_dead_engine_was_playing_is_played_by_others_meanwhile(monkeypatch) -> None:
    yard = Yard(monkeypatch, dies_once)
    yard.hold.clear()  # no replacement comes up before the turns are over
    assert yard.play(6) == ["1.0"] * 6
    yard.hold.set()
    yard.fleet.wait_whole()
    assert [engine.life for engine in yard.fleet] == [1, 0] and yard.ended == [yard.lives[0][0]]
    figures = yard.fleet.finish_step()
    assert figures["supervision/engine_restarts"] == 1 and figures["supervision/turns_replayed"] == 3
    assert figures["supervision/lost_s"] > 0 and not any(yard.fleet.finish_step().values())
    [told] = yard.told
    assert told.startswith("shared engine 0 died while playing: It was struck. It was replaced in "), told


def test_where_there_is_no_other_turns_wait_for_the_replacement_and_what_it_has_to_hold(monkeypatch) -> None:
    yard = Yard(monkeypatch, dies_once, count=1)

    def equip(engine: Engine, name: str) -> None:
        assert name == "shared engine 0" and engine not in list(yard.fleet), "it plays before it has its weights"
        time.sleep(0.3)
        engine.holds.append("weights")

    yard.fleet.equip_with(equip)
    yard.fleet.equip_with(lambda engine, name: engine.holds.append("an opponent's adapter"))
    assert yard.play(4) == ["0.1"] * 4
    assert [engine.holds for engine in yard.fleet] == [["weights", "an opponent's adapter"]]
    assert yard.fleet.finish_step()["supervision/lost_s"] >= 0.3


def test_the_process_behind_an_engine_counts_and_a_failed_turn_does_not(monkeypatch) -> None:
    gone = RayTaskError("reply", "File …\nvllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue",
                        ValueError("lost"))  # fmt: skip

    def replies(engine: Engine, turn: int) -> str:
        if engine.index == 0 and engine.life == 0:
            raise gone
        if engine.index == 1:
            raise RayTaskError("reply", "ValueError: too long", ValueError("too long"))
        return names(engine, turn)

    yard = Yard(monkeypatch, replies)
    outcome = yard.play(2)
    assert sum(isinstance(one, RayTaskError) for one in outcome) >= 1
    yard.fleet.wait_whole()
    assert [engine.life for engine in yard.fleet] == [1, 0]


def test_an_engine_that_dies_again_and_again_ends_the_run(monkeypatch) -> None:
    def always(engine: Engine, turn: int) -> str:
        raise Dead()

    yard = Yard(monkeypatch, always, count=1)
    outcome = yard.play(3)
    assert all(isinstance(one, WorkerDied) for one in outcome), outcome
    assert len(yard.lives[0]) == MAX_DEATHS and len(yard.ended) == MAX_DEATHS
    fleets = Fleets([yard.fleet, yard.fleet], yard.told.append)
    for use in (fleets.check, yard.fleet.wait_whole, lambda: yard.fleet.stamps(timeout_s=1)):
        with pytest.raises(RunError, match="shared engine 0 died while playing: It was struck; it is death 3 within"):
            use()


def test_deaths_are_counted_within_a_step(monkeypatch) -> None:
    yard = Yard(monkeypatch, lambda engine, turn: names(engine, turn), count=1)
    fleets = Fleets([yard.fleet], yard.told.append)
    for step in range(2 * MAX_DEATHS):
        yard.lives[0][-1].dead = True
        assert yard.fleet.stamps(timeout_s=1) == {"shared engine 0": (0, step + 1)}
        assert fleets.finish_step()["supervision/engine_restarts"] == 1
    assert len(yard.told) == 2 * MAX_DEATHS and "was found dead" in yard.told[0]


def test_a_replacement_that_dies_is_a_death_and_one_that_gets_no_weights_ends_the_run(monkeypatch) -> None:
    yard = Yard(monkeypatch, dies_once, count=1)

    def struck(engine: Engine, name: str) -> None:
        if engine.life == 1:
            raise WorkerDied("receiving weights: died", (name,))

    yard.fleet.equip_with(struck)
    assert yard.play(1) == ["0.2"]
    assert yard.lives[0][1] in yard.ended

    other = Yard(monkeypatch, dies_once, count=1)

    def stuck(engine: Engine, name: str) -> None:
        raise StuckError("sending weights: no answer from shared policy rank 0")

    other.fleet.equip_with(stuck)
    [error] = other.play(1)
    assert isinstance(error, RunError) and "no answer from shared policy rank 0" in str(error)
    assert "shared engine 0 died while playing" in str(error) and other.lives[0][1] in other.ended


def test_nobody_waits_for_a_fleet_that_is_closed(monkeypatch) -> None:
    yard = Yard(monkeypatch, dies_once, count=1)
    yard.hold.clear()
    threading.Timer(0.5, yard.fleet.stop).start()
    began = time.monotonic()
    [error] = yard.play(1)
    assert isinstance(error, RunError) and time.monotonic() - began < 10
    yard.hold.set()
    deadline = time.monotonic() + 10
    while yard.lives[0][-1] not in yard.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert yard.lives[0][-1] in yard.ended, "a replacement that came too late is ended too"
