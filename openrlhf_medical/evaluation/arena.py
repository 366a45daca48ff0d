"""An arena: every attacker against every assessor, on the same seeds, pair by pair.

    pairs left ─► play one pair ─► settle with the judge ─► append its games ─► next
                                                              games.jsonl, read again by a resumed arena

A pair's games are written when all of them are played: what a killed arena leaves of a pair is played again, and
finished pairs are not. ``plan.json`` holds what all that is there was played with; other weights under an old name,
other seeds or other rules are refused, for a matrix of two kinds of games compares nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.evaluation.arena_result import outcome_of
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.judge.recovery import TooManyFailed

Pair = tuple[str | None, str]
"""(attacker, assessor); None for the assessor alone, on notes that nobody rewrites."""


class Progress(Protocol):
    def progress(self, doing: str, done: int, total: int, seconds: float, figure: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Field:
    """Who plays whom on what. ``alone``: seeds whose notes are passed on as they are, once for each assessor."""

    attackers: tuple[str, ...]
    assessors: tuple[str, ...]
    seeds: tuple[Seed, ...]
    alone: tuple[Seed, ...] = ()

    def pairs(self) -> list[Pair]:
        """Assessor by assessor, the attackers to and fro, so that one side changes at a time."""
        found: list[Pair] = []
        for i, assessor in enumerate(self.assessors):
            found += [(None, assessor)] if self.alone else []
            found += [(attacker, assessor) for attacker in self.attackers[:: -1 if i % 2 else 1]]
        return found

    def seeds_of(self, pair: Pair) -> tuple[Seed, ...]:
        return self.alone if pair[0] is None else self.seeds


class GamesFile:
    """The games of finished pairs, one a line.

    Args:
        size_of: games of a finished pair. Pairs with another number, and a last line without an end, are left over
            from an arena that was killed; they are taken out.
    """

    def __init__(self, path: Path, size_of: Callable[[Pair], int]):
        self.path, self.size_of = path, size_of
        self.rows: list[dict[str, Any]] = self._read()
        counted = Counter(self._pair(row) for row in self.rows)
        self.finished = {pair for pair, count in counted.items() if count == size_of(pair)}
        if len(self.finished) < len(counted) or self._cut:
            self.rows = [row for row in self.rows if self._pair(row) in self.finished]
            self._rewrite()

    def _read(self) -> list[dict[str, Any]]:
        self._cut = False
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        self._cut = lines[-1] != ""
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(f"{self.path}, line {number}: not JSON. Take that line out, and its pair is played "
                                "again; or give another --output") from None  # fmt: skip
        return rows

    @staticmethod
    def _pair(row: Mapping[str, Any]) -> Pair:
        attacker, assessor = row["pair"]
        return attacker, assessor

    def _rewrite(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(map(_line, self.rows)), encoding="utf-8")
        partial.rename(self.path)

    def add(self, pair: Pair, games: Sequence[Game]) -> None:
        rows = [_row(game) | {"pair": list(pair), "outcome": outcome_of(game)} for game in games]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))
        self.rows += rows
        self.finished.add(pair)


def _row(game: Game) -> dict[str, Any]:
    """A game's line, without versions: here they would count who sat on those engines before."""
    row = game.to_json()
    for role in Role:
        if row[role.value] is not None:
            del row[role.value]["policy_version"]
    return row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def play_all(
    field: Field,
    games: GamesFile,
    manager_of: Callable[[str | None, str], MedicalDialogueGameManager],
    settle: Callable[[MedicalDialogueGameManager, list[Game]], list[Game]],
    view: Progress,
    *,
    step: int = 0,
) -> None:
    """Play the pairs that are not finished.

    Args:
        manager_of: brings a pair to the board; called once for each pair, in ``field.pairs()`` order.
        settle: has the judge asked again where it failed too often; may raise TooManyFailed.
        step: in the turns' keys. The same for all pairs: with ``run.deterministic``, what an attacker writes on a
            seed is then the same against every assessor.

    Raises:
        RunError: a pair cannot be finished. Finished ones are kept.
    """
    left = [pair for pair in field.pairs() if pair not in games.finished]
    total, done, began = sum(map(games.size_of, left)), 0, time.monotonic()
    for pair in left:
        manager = manager_of(*pair)
        doing = f"{pair[0]} against {pair[1]}" if pair[0] else f"{pair[1]} alone"

        def tell(game: Game, doing: str = doing) -> None:
            nonlocal done
            done += 1
            view.progress("games", done, total, time.monotonic() - began, doing)

        seeds = field.seeds_of(pair)
        try:
            played = settle(manager, asyncio.run(manager.play(seeds, step=step, on_game=tell)))
        except TooManyFailed as error:
            raise RunError(f"{doing}: {error}; finished pairs are in {games.path}: the same command goes on "
                           "with this one") from None  # fmt: skip
        games.add(pair, played)


def seeds_print(seeds: Sequence[Seed]) -> str:
    text = json.dumps([seed.to_json() for seed in seeds], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def keep_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Write ``plan.json``, or check that what is there was played alike. Players may come and go; a name stands for
    the same weights.

    Args:
        plan: ``{"players": {"role/name": fingerprint}, setting: value, …}``.

    Raises:
        UserError: naming what differs.
    """
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"players": {}}
    advice = "give another --output, or move that folder away"
    if path.exists():
        for key in sorted((old.keys() | plan.keys()) - {"players"}):
            if old.get(key) != plan.get(key):
                raise UserError(f"{path.parent} was played with {key} {json.dumps(old.get(key))}, and now it is "
                                f"{json.dumps(plan.get(key))}: {advice}")  # fmt: skip
        for name, weights in plan["players"].items():
            if old["players"].get(name, weights) != weights:
                raise UserError(f"{name} has other weights than when it played in {path.parent}: give it another name, "
                                f"or {advice}")  # fmt: skip
    elif (path.parent / "games.jsonl").exists():
        raise UserError(f"{path.parent} has games of something else: {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    merged = {**plan, "players": {**old["players"], **plan["players"]}}
    partial.write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)
