"""One step's games at any size, in simulated time: who waits for whom, at given service times.

    games ─► controller ─► attacker's engine ─► controller ─┬─► assessor's engine ─► controller ─► next game
             (one thread)  (least busy one)                 └─► judge (in order) ──┘

The same schedule as ``MedicalDialogueGameManager``'s pipelined one with one assessment a note, without its objects: a
million games take about half a minute. The controller is one thread that starts and ends turns in the order in which
they come; engines are ``simulated_engine.Batch``; the judge labels in order at the rate of all its replicas.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simulated_engine import Batch, Rates

from openrlhf_medical.layout import TURNS_OF_ENGINE


@dataclass(frozen=True, slots=True)
class Service:
    """What each part takes. Tokens/s and prompt tokens/s of one engine; seconds of the controller's thread for a turn,
    (``turn_s``, and ``pick_s`` more for every engine there is to choose from) and for what a game costs besides
    (``game_s``); labels a second of one judge and how many judges; bytes of a reply and of the weights, bytes/s of the
    link between driver, learner and engines, seconds that an engine takes to load what has arrived."""

    rates: Rates
    prefill_per_s: float
    turn_s: float
    pick_s: float
    game_s: float
    label_per_s: float
    judges: int
    reply_bytes: float
    weight_bytes: float
    link_bytes_per_s: float
    reload_s: float
    controller_bytes: float
    """That one game holds in the controller's memory until it has been learned from."""


@dataclass(frozen=True, slots=True)
class GameWork:
    """Tokens of one game: (prompt to be read, reply) of each turn. ``attacker`` is None where the note is passed on as
    it is, and then no label is asked for, either; ``assessor`` after a forfeit. One of the two is there."""

    attacker: tuple[int, int] | None
    assessor: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step takes. ``needs``: seconds that each part would take if all others took none; the largest is what
    limits the step, and ``slack_s`` is what is lost to waiting for each other."""

    games: int
    engines: int
    play_s: float
    sync_s: float
    needs: dict[str, float]
    controller_gb: float

    @property
    def seconds(self) -> float:
        return self.play_s + self.sync_s

    @property
    def limit(self) -> str:
        return max(self.needs, key=lambda part: self.needs[part])

    @property
    def games_per_s(self) -> float:
        return self.games / self.seconds


def draw_games(count: int, lengths: dict[str, Sequence[int]], prompts: dict[str, int], seed: int = 0) -> list[GameWork]:
    """The default mix: in every second game the attacker writes. ``lengths``: replies to draw from, by role;
    ``prompts``: tokens of each role's prompt that are not in the prefix cache."""
    rng = random.Random(seed)
    attacks = rng.choices(lengths["attacker"], k=count)
    assessments = rng.choices(lengths["assessor"], k=count)
    return [
        GameWork((prompts["attacker"], a) if i % 2 else None, (prompts["assessor"], b))
        for i, (a, b) in enumerate(zip(attacks, assessments, strict=True))
    ]


def play_step(games: Sequence[GameWork], engines: int, service: Service) -> Step:
    """A step with one pool of engines for both roles (``roles.policy shared``), and its weight sync."""
    played = _Play(games, engines, service)
    return Step(len(games), engines, played.run(), sync_s(engines, service), needs_of(games, engines, service),
                len(games) * service.controller_bytes / 1e9)  # fmt: skip


def sync_s(engines: int, service: Service) -> float:
    """A broadcast whose pieces travel on while the next arrive takes as long as one copy, however many receive it; then
    all load at once."""
    return service.weight_bytes / service.link_bytes_per_s + service.reload_s


def needs_of(games: Sequence[GameWork], engines: int, service: Service) -> dict[str, float]:
    """Seconds that each part needs for these games by itself. ``longest game``: no engine makes one reply faster."""
    rates = service.rates
    read = rates.full / service.prefill_per_s
    writing = [game.attacker for game in games if game.attacker is not None]
    turns = [*writing, *(game.assessor for game in games if game.assessor is not None)]
    work = sum(prompt * read + reply for prompt, reply in turns)
    tail = max(
        sum(prompt / service.prefill_per_s + reply / rates.each(1) for prompt, reply in _turns(game)) for game in games
    )
    return {
        "engines": work / (engines * rates.full),
        "longest game": tail,
        "controller": len(turns) * (service.turn_s + engines * service.pick_s) + len(games) * service.game_s,
        "judge": len(writing) / (service.judges * service.label_per_s),
        "network": len(turns) * service.reply_bytes / service.link_bytes_per_s + sync_s(engines, service),
    }


def _turns(game: GameWork) -> Iterator[tuple[int, int]]:
    if game.attacker is not None:
        yield game.attacker
    if game.assessor is not None:
        yield game.assessor


_DISPATCH, _ENGINE, _FINISHED = range(3)


class _Play:
    """Events in order of time. A turn is (game, is it the assessor's)."""

    def __init__(self, games: Sequence[GameWork], engines: int, service: Service) -> None:
        self._games, self._service = games, service
        self._engines = [Batch(service.rates) for _ in range(engines)]
        self._due: list[float | None] = [None] * engines  # when each engine is to be looked at next
        self._least = [(0, i) for i in range(engines)]  # a heap of (turns, engine); stale ones are passed over
        self._read = service.rates.full / service.prefill_per_s  # tokens of work for a token of prompt
        self._turn_s = service.turn_s + engines * service.pick_s
        self._free_at = self._judge_free_at = 0.0
        self._labelled_at: dict[int, float] = {}
        self._events: list[tuple[float, int, int, int, bool]] = []
        self._ties = itertools.count()
        self._next = iter(range(len(games)))

    def run(self) -> float:
        for _ in range(min(len(self._games), TURNS_OF_ENGINE * len(self._engines))):
            self._begin(0.0)
        now = 0.0
        while self._events:
            now, _, kind, which, assessing = heapq.heappop(self._events)
            if kind == _DISPATCH:
                self._dispatch(now, which, assessing)
            elif kind == _FINISHED:
                self._begin(now)
            elif self._due[which] == now:  # else it has been looked at since
                self._end_turn(now, which)
        return now

    def _begin(self, now: float) -> None:
        game = next(self._next, None)
        if game is not None:
            start = self._controlled(now, self._turn_s / 2)
            self._at(start, _DISPATCH, game, self._games[game].attacker is None)

    def _dispatch(self, now: float, game: int, assessing: bool) -> None:
        work = self._games[game].assessor if assessing else self._games[game].attacker
        assert work is not None
        engine = self._least_busy()
        batch = self._engines[engine]
        batch.add(now, (game, assessing), work[0] * self._read + work[1], next(self._ties))
        heapq.heappush(self._least, (len(batch), engine))
        self._look_at(engine)

    def _least_busy(self) -> int:
        while True:
            turns, engine = heapq.heappop(self._least)
            if turns == len(self._engines[engine]):
                return engine

    def _end_turn(self, now: float, engine: int) -> None:
        batch = self._engines[engine]
        game, assessing = batch.pop(now)  # type: ignore[misc]  # as ``_dispatch`` put it in
        heapq.heappush(self._least, (len(batch), engine))
        self._due[engine] = None
        self._look_at(engine)
        if assessing or self._games[game].assessor is None:
            done = self._controlled(now, self._turn_s / 2 + self._service.game_s)
            self._at(max(done, self._labelled_at.pop(game, 0.0)), _FINISHED, game, True)
            return
        begins = self._controlled(now, self._turn_s)  # this turn's end and the next one's start
        took = 1 / (self._service.judges * self._service.label_per_s)
        self._judge_free_at = self._labelled_at[game] = max(self._judge_free_at, begins) + took
        self._at(begins, _DISPATCH, game, True)

    def _controlled(self, now: float, seconds: float) -> float:
        """When the controller is done with what comes to it now."""
        self._free_at = max(self._free_at, now) + seconds
        return self._free_at

    def _look_at(self, engine: int) -> None:
        due = self._engines[engine].next_done()
        if due is not None and due != self._due[engine]:
            self._due[engine] = due
            self._at(due, _ENGINE, engine, False)

    def _at(self, when: float, kind: int, which: int, assessing: bool) -> None:
        heapq.heappush(self._events, (when, next(self._ties), kind, which, assessing))
