"""The engines of one pool: who plays the next turn, and what happens when an engine dies.

    turn ──► least busy engine ──► reply
                   │ dies
                   ├──► its turns are played again, by the others or by the replacement
                   └──► replacement on the same bundle: up ─► weights ─► stamp verified ─► plays

A reply belongs to one engine and is taken whole or not at all, so a turn that is played again is counted once.
With a seed per turn it also has the same tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from openrlhf_medical.cluster import gather, whereabouts, why_dead
from openrlhf_medical.errors import RunError, StuckError, WorkerDied

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Deaths of one engine within one step. What kills an engine again and again will not stop doing so."""

PATIENCE_POLL_S = 0.1

Equip = Callable[[Any, str], None]
"""Gives a new engine (and says its name) what it needs before it may play; raises if it does not hold that then."""


@dataclass(slots=True)
class _Seat:
    """A place for an engine. ``up``: it may play."""

    name: str
    engine: Any
    running: int = 0
    deaths: int = 0
    up: bool = True


class Fleet:
    """Thread-safe; ``turn`` is for event loops, everything else blocks.

    ``start(i)`` starts engine ``i``, at the beginning and again after a death. A replacement has
    ``start_timeout_s`` to come up and ``equip_timeout_s`` to get what it needs. One that cannot be had, or dies too
    often, ends the run: every later call raises that error.
    """

    def __init__(
        self,
        title: str,
        start: Callable[[int], Any],
        count: int,
        *,
        start_timeout_s: float,
        equip_timeout_s: float,
    ):
        self.title = title
        self.tell: Callable[[str], None] = logger.warning
        self._start, self._start_timeout_s, self._equip_timeout_s = start, start_timeout_s, equip_timeout_s
        self._seats = [_Seat(f"{title} engine {i}", start(i)) for i in range(count)]
        self._equipment: list[Equip] = []
        self._changed = threading.Condition()
        self._failure: RunError | None = None
        self._restarts, self._lost_s, self._replayed = 0, 0.0, 0

    @classmethod
    def none(cls) -> Fleet:
        """Of workers that play no games."""
        return cls("nobody", lambda index: None, 0, start_timeout_s=0, equip_timeout_s=0)

    def __iter__(self) -> Iterator[Any]:
        return iter([seat.engine for seat in self._seats])

    def __len__(self) -> int:
        return len(self._seats)

    def named(self) -> dict[str, Any]:
        """The engines of now, by what they are called in messages."""
        return {seat.name: seat.engine for seat in self._seats}

    def equip_with(self, equip: Equip) -> None:
        self._equipment.append(equip)

    # ── Playing ──

    async def turn(self, call: Callable[[Any], Any], what: str, timeout_s: float) -> Any:
        """The answer to ``call(engine)``, a remote call, of the least busy engine; of another one if that dies.

        Raises:
            TimeoutError: no answer in ``timeout_s``, named ``what``: costs a game. RunError: no engine is left.
        """
        while True:
            seat, engine = await self._least_busy()
            reference = call(engine)
            try:
                return await asyncio.wait_for(reference, timeout_s)
            except TimeoutError as error:
                ray.cancel(reference, recursive=False)
                raise TimeoutError(
                    f"{seat.name}{whereabouts(reference)} gave no reply to {what} in {timeout_s:g} s"
                ) from error
            except Exception as error:
                if not died(error):
                    raise
                self._replayed += 1
                self.lost(seat, engine, f"{whereabouts(reference, error)} died while playing: {why_dead(error)}")
            finally:
                seat.running -= 1

    async def _least_busy(self) -> tuple[_Seat, Any]:
        while True:
            with self._changed:
                self.check()
                up = [seat for seat in self._seats if seat.up]
                if up:
                    seat = min(up, key=lambda seat: seat.running)
                    seat.running += 1
                    return seat, seat.engine
            await asyncio.sleep(PATIENCE_POLL_S)

    # ── Asking ──

    def stamps(self, adapter: str = "", *, timeout_s: float) -> dict[str, Any]:
        """What every engine says that it holds; those that are found dead are replaced first."""
        while True:
            self.wait_whole()
            asked = {seat.name: (seat, seat.engine, seat.engine.weight_stamp.remote(adapter)) for seat in self._seats}
            held: dict[str, Any] = {}
            for name, (seat, engine, reference) in asked.items():
                try:
                    held |= gather({name: reference}, timeout_s, "asking engines for their version")
                except Exception as error:
                    if not died(error):
                        raise
                    self.lost(seat, engine, f"{whereabouts(reference, error)} was found dead: {why_dead(error)}")
            if len(held) == len(self._seats):
                return held

    def wait_whole(self) -> None:
        """Until every replacement that is under way plays, or raises why it never will."""
        limit_s = MAX_DEATHS * (self._start_timeout_s + self._equip_timeout_s)
        with self._changed:
            whole = self._changed.wait_for(lambda: self._failure or all(s.up for s in self._seats), limit_s)
            self.check()
            if not whole:
                raise StuckError(f"replacing engines of {self.title}: not done within {limit_s:g} s")

    def check(self) -> None:
        """Raises the error that ended this fleet."""
        if self._failure is not None:
            raise self._failure

    # ── Replacing ──

    def lost(self, seat: _Seat, engine: Any, how: str) -> None:
        """Begin to replace ``engine``. Many turns tell of one death: only the first counts."""
        with self._changed:
            if self._failure is not None or not seat.up or seat.engine is not engine:
                return
            seat.up = False
        threading.Thread(target=self._replaced, args=(seat, how), name=f"replace {seat.name}", daemon=True).start()

    def _replaced(self, seat: _Seat, how: str) -> None:
        """A thread of its own. Whatever goes wrong here, nobody must wait for ever."""
        try:
            self._replace(seat, how)
        except Exception as error:
            self._give_up(RunError(f"{seat.name}{how}; replacing it failed: {type(error).__name__}: {error}"))

    def _replace(self, seat: _Seat, how: str) -> None:
        began = time.monotonic()
        while True:
            seat.deaths += 1
            end(seat.engine)
            if seat.deaths >= MAX_DEATHS:
                return self._give_up(WorkerDied(f"{seat.name}{how}; it is death {seat.deaths} within a step", ()))
            try:
                engine = self._equipped(seat)
                break
            except WorkerDied as error:
                if error.names != (seat.name,):
                    raise
                how = f" died again as a replacement: {error}"
        seconds = time.monotonic() - began
        with self._changed:
            if self._failure is not None:  # nobody will play with it
                return end(engine)
            seat.engine, seat.up = engine, True
            self._restarts += 1
            self._lost_s += seconds
            self._changed.notify_all()
        self.tell(f"{seat.name}{how}. It was replaced in {seconds:.1f} s, and its turns are played again")

    def _equipped(self, seat: _Seat) -> Any:
        """A new engine that holds what it has to. WorkerDied names it, or whom equipping needs."""
        engine = self._start(self._seats.index(seat))
        try:
            gather({seat.name: engine.weight_stamp.remote()}, self._start_timeout_s, "starting a replacement")
            for equip in self._equipment:
                equip(engine, seat.name)
        except BaseException:
            end(engine)
            raise
        return engine

    def _give_up(self, failure: RunError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    # ── What it cost, and the end ──

    def finish_step(self) -> dict[str, float]:
        """``supervision/…`` since the last call: engines replaced, seconds that each of them was missing (added up),
        turns played again. Deaths are counted anew from here."""
        with self._changed:
            found = {"engine_restarts": float(self._restarts), "lost_s": self._lost_s,
                     "turns_replayed": float(self._replayed)}  # fmt: skip
            self._restarts, self._lost_s, self._replayed = 0, 0.0, 0
            for seat in self._seats:
                seat.deaths = 0
        return {f"supervision/{name}": value for name, value in found.items()}

    def close(self) -> None:
        """Whoever waits for an engine waits no longer, and nobody is replaced from now on."""
        self._give_up(RunError("the run ends"))

    def stop(self) -> None:
        """Close, and end the engines."""
        self.close()
        for engine in self:
            end(engine)


class Fleets:
    """All fleets of a run, each once however many players share it."""

    def __init__(self, fleets: Iterable[Fleet], tell: Callable[[str], None]):
        self._fleets = list({id(fleet): fleet for fleet in fleets}.values())
        for fleet in self._fleets:
            fleet.tell = tell

    def check(self) -> None:
        """Raises RunError where a fleet is lost: its players' games have failed, and all later ones would."""
        for fleet in self._fleets:
            fleet.check()

    def finish_step(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for found in [fleet.finish_step() for fleet in self._fleets]:
            total = {name: total.get(name, 0.0) + value for name, value in found.items()}
        return total

    def close(self) -> None:
        for fleet in self._fleets:
            fleet.close()


def died(error: BaseException) -> bool:
    """Whether the engine is gone: its actor, or vLLM's engine process behind it, whose error only a process that has
    imported vLLM knows by its class."""
    vllm_gone = isinstance(error, RayTaskError) and "EngineDeadError" in str(error)
    return isinstance(error, RayActorError | WorkerDied) or vllm_gone


def end(engine: Any) -> None:
    ray.kill(engine)
