"""Plays games, on either of two schedules. The same replies give the same games on both.

``pipelined`` (default): no barrier, nobody waits for a slower game. The unit of work is the attack, one
presented note with its B assessments and its one label; the next attack starts when any ends.

    seed ──► attacker ──► presented note ──┬──► judge ────────┐
                                           ├──► assessment 0 ─┼──► rewards ──► B games
                                           └──► …             ┘

``lockstep``: all attacks, then all assessments, then all labels, each phase as one batch. It costs the
wait for the slowest at every barrier, and gives the judge full batches where it shares a GPU with the
players or is paid by the batch.

    all seeds ──► all attackers ──┃──► all assessors ──┃──► all labels in one burst ──► rewards ──► games

Player turns in flight are limited by ``max_concurrent``. Nothing here waits by the clock; a player and a
judge keep their own deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Judge, Label, Player, Query, Role, TurnKey
from openrlhf_medical.game.prompts import assessor_prompt_of, attacker_prompt, check_seed
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score, unjudged_attacks
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.game.turns import UNASSESSABLE, data_label, read_assessment, read_attack, unassessable_note

OnGame = Callable[[Game], None]

SCHEDULES = ("pipelined", "lockstep")

_Item = TypeVar("_Item")


class MedicalDialogueGameManager:
    """Plays the game of ``rules`` between two players under a judge."""

    def __init__(
        self,
        attacker: Player,
        assessor: Player,
        judge: Judge,
        rules: GameRules,
        max_concurrent: int = 256,
        *,
        schedule: str = "pipelined",
    ) -> None:
        """``max_concurrent``: player turns in flight at once; ``pipelined`` never splits an attack, which
        counts as its B games. ``schedule``: pipelined or lockstep (see the module).

        Raises:
            UserError: ``max_concurrent`` is below 1, or there is no such schedule.
        """
        if max_concurrent < 1:
            raise UserError(f"max_concurrent is {max_concurrent}; allowed: at least 1")
        if schedule not in SCHEDULES:
            raise UserError(f"rollout.schedule is {schedule!r}; allowed: {' or '.join(SCHEDULES)}")
        self.attacker = attacker
        self.assessor = assessor
        self.judge = judge
        self.rules = rules
        self.max_concurrent = max_concurrent
        self._run = self._pipelined if schedule == "pipelined" else self._lockstep

    async def play(self, seeds: Sequence[Seed], *, step: int = 0, on_game: OnGame | None = None) -> list[Game]:
        """Play A · B games on each seed, and return them all in the order of ``game_idx``.

        ``on_game`` gets each game once, as soon as it is finished, in any order; what it raises ends the
        call. A player or a judge that raises costs only its own game: that one has status ``error`` and
        trains nobody. Cancelling the call cancels every turn in flight.
        """
        games: list[Game] = []

        def finish(attack: Attack) -> None:
            for game in score(attack, self.rules):
                games.append(game)
                if on_game is not None:
                    on_game(game)

        await self._run(self._attacks(seeds, step), finish)
        return sorted(games, key=lambda game: game.game_idx)

    async def judge_again(self, games: Sequence[Game]) -> list[Game]:
        """The games of one ``play`` call, with new labels for those that the judge failed. Their turns stay as
        they are; nobody plays again. In the order of ``game_idx``."""
        attacks = unjudged_attacks(games)
        judged = {game.game_idx: game for game in games}

        async def judge(attack: Attack) -> None:
            await self._judge(attack)
            judged.update((game.game_idx, game) for game in score(attack, self.rules))

        await _for_each(attacks, judge, at_once=len(attacks))
        return [judged[idx] for idx in sorted(judged)]

    async def _pipelined(self, attacks: Iterable[Attack], finish: Callable[[Attack], None]) -> None:
        async def play(attack: Attack) -> None:
            await self._present(attack)
            await self._assess_and_judge(attack)
            finish(attack)

        await _for_each(attacks, play, at_once=max(1, self.max_concurrent // self.rules.assessments_per_note))

    async def _lockstep(self, attacks: Iterable[Attack], finish: Callable[[Attack], None]) -> None:
        everything = list(attacks)

        async def assess(place: tuple[Attack, int]) -> None:
            await self._assess(*place)

        async def judge(attack: Attack) -> None:
            await self._judge(attack)
            finish(attack)

        await _for_each(everything, self._present, at_once=self.max_concurrent)
        places = ((attack, b) for attack in everything for b in range(len(attack.assessors)))
        await _for_each(places, assess, at_once=self.max_concurrent)
        # Not limited: the judge's client makes batches, and can fill them only with what it has been given.
        await _for_each(everything, judge, at_once=len(everything))

    def _attacks(self, seeds: Sequence[Seed], step: int) -> Iterator[Attack]:
        """Those in which the attacker writes come first: they take two turns, one after the other, and whoever begins
        late with them is who all others wait for in the end."""
        for writes in (True, False):
            for seed_idx, seed in enumerate(seeds):
                if self.rules.attacker_generates(seed.category) is writes:
                    for attack_idx in range(self.rules.attacks_per_seed):
                        yield Attack(step, seed_idx, attack_idx, seed, [None] * self.rules.assessments_per_note)

    def _key(self, attack: Attack, role: Role, assessment_idx: int = 0) -> TurnKey:
        return TurnKey(attack.step, attack.game_idx(self.rules, assessment_idx), role)

    async def _present(self, attack: Attack) -> None:
        """The attacker's turn, or the seed note as it is, or blanked."""
        try:
            check_seed(attack.seed)  # for seeds that no loader has checked
            blanked = unassessable_note(attack.seed, self.rules, step=attack.step, seed_idx=attack.seed_idx)
            if blanked is not None:
                attack.presented_note, attack.label = blanked, UNASSESSABLE
            else:
                await self._attack(attack)
        except Exception as error:  # one failing game never fails the others
            attack.error = _describe(error)

    async def _attack(self, attack: Attack) -> None:
        seed, rules = attack.seed, self.rules
        if rules.attacker_generates(seed.category):
            reply = await self.attacker.reply(attacker_prompt(seed, rules), self._key(attack, Role.ATTACKER))
            attack.attacker, attack.presented_note = read_attack(seed, reply, rules)
        else:
            attack.presented_note = seed.seed_note
        if attack.presented_note is not None:
            attack.label = data_label(seed.category, attack.presented_note, seed.seed_note)

    async def _assess_and_judge(self, attack: Attack) -> None:
        """B assessments and the label at once: a judge that is no slower than the assessor costs no time."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._assess(attack, b)) for b in range(len(attack.assessors))]
            await self._judge(attack)
        for task in tasks:
            task.result()  # raises CancelledError for a turn that was cancelled from outside

    async def _assess(self, attack: Attack, assessment_idx: int) -> None:
        note = attack.presented_note
        if note is None:  # a forfeit, or the attacker failed
            return
        try:
            prompt = assessor_prompt_of(note, self.rules)
            reply = await self.assessor.reply(prompt, self._key(attack, Role.ASSESSOR, assessment_idx))
            attack.assessors[assessment_idx] = read_assessment(reply, cot=self.rules.cot)
        except Exception as error:
            attack.errors[assessment_idx] = _describe(error)

    async def _judge(self, attack: Attack) -> None:
        """Ask for the label, unless the data gave it.

        The judge decides blind what is true, so it is asked without the assessment, while that is still being
        written; what the label says of it is added to each game (``records.label_for``).
        """
        note, seed = attack.presented_note, attack.seed
        if note is None or attack.label is not None:
            return
        query = Query(
            game_idx=attack.game_idx(self.rules),
            original_note=seed.reference_note,
            medical_note=note,
            assessment="",
            error_type=seed.error_type,
            game_category=seed.category.value,
        )
        try:
            attack.label = await self.judge.label(query)
        except Exception as error:  # against its contract, but no reason to lose the turns
            attack.label = Label("error", None, reason=_describe(error))


async def _for_each(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]], *, at_once: int) -> None:
    """``work`` on every item, ``at_once`` at a time: to the end, or cancel all and wait for them when one
    raises or the caller is cancelled."""
    left = iter(items)

    async def worker(first: _Item) -> None:
        # All workers draw from one iterator: no queue, and only what is in flight takes memory.
        for item in chain([first], left):
            await work(item)

    tasks = [asyncio.ensure_future(worker(first)) for first in islice(left, at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
