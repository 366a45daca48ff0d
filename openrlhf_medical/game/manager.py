"""Plays games: each on its own, as fast as its players and the judge allow.

    seed ──► attacker ──► presented note ──┬──► assessment 0 ──► judge ──┐
                                           ├──► assessment 1 ────────────┼──► rewards ──► B games
                                           └──► …                        ┘

The unit of work is the attack: one presented note, its B assessments and its one label. There is no
barrier between attacks: ``max_concurrent`` games are in flight, and the next attack starts when any
ends. Nothing here waits by the clock; a player and a judge keep their own deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Judge, Label, Player, Query, Role, TurnKey
from openrlhf_medical.game.prompts import assessor_prompt, attacker_prompt, check_seed
from openrlhf_medical.game.records import Game, Turn
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.game.turns import UNASSESSABLE, data_label, read_assessment, read_attack, unassessable_note

OnGame = Callable[[Game], None]


class MedicalDialogueGameManager:
    """Plays the game of ``rules`` between two players under a judge."""

    def __init__(
        self, attacker: Player, assessor: Player, judge: Judge, rules: GameRules, max_concurrent: int = 256
    ) -> None:
        """``max_concurrent``: games in flight at once; an attack counts as its B games.

        Raises:
            UserError: ``max_concurrent`` is below 1.
        """
        if max_concurrent < 1:
            raise UserError(f"max_concurrent is {max_concurrent}; allowed: at least 1")
        self.attacker = attacker
        self.assessor = assessor
        self.judge = judge
        self.rules = rules
        self.max_concurrent = max_concurrent

    async def play(self, seeds: Sequence[Seed], *, step: int = 0, on_game: OnGame | None = None) -> list[Game]:
        """Play A · B games on each seed, and return them all in the order of ``game_idx``.

        ``on_game`` gets each game as soon as it is finished, in any order; what it raises ends the call.
        A player or a judge that raises costs only its own game: that one has status ``error`` and trains
        nobody. Cancelling the call cancels every turn in flight.
        """
        rules = self.rules
        games: list[Game | None] = [None] * (len(seeds) * rules.attacks_per_seed * rules.assessments_per_note)
        attacks = self._attacks(seeds, step)

        async def work() -> None:
            # All workers draw from one iterator: no queue, and only what is in flight takes memory.
            for attack in attacks:
                await self._play_attack(attack)
                for game in score(attack, rules):
                    games[game.game_idx] = game
                    if on_game is not None:
                        on_game(game)

        at_once = max(1, self.max_concurrent // rules.assessments_per_note)
        await _run_all([work() for _ in range(min(at_once, len(seeds) * rules.attacks_per_seed))])
        return [game for game in games if game is not None]

    def _attacks(self, seeds: Sequence[Seed], step: int) -> Iterator[Attack]:
        for seed_idx, seed in enumerate(seeds):
            for attack_idx in range(self.rules.attacks_per_seed):
                yield Attack(step, seed_idx, attack_idx, seed, [None] * self.rules.assessments_per_note)

    def _key(self, attack: Attack, role: Role, assessment_idx: int = 0) -> TurnKey:
        return TurnKey(attack.step, attack.game_idx(self.rules, assessment_idx), role)

    async def _play_attack(self, attack: Attack) -> None:
        """Fill in what happens on one presented note. Raises only CancelledError."""
        try:
            await self._present(attack)
            if attack.presented_note is not None:
                await self._assess_and_judge(attack, attack.presented_note)
        except Exception as error:  # one failing game never fails the others
            attack.error = _describe(error)

    async def _present(self, attack: Attack) -> None:
        """The attacker's turn, or the seed note as it is, or blanked."""
        seed, rules = attack.seed, self.rules
        check_seed(seed)  # for seeds that no loader has checked
        blanked = unassessable_note(seed, rules, step=attack.step, seed_idx=attack.seed_idx)
        if blanked is not None:
            attack.presented_note, attack.label = blanked, UNASSESSABLE
            return
        if rules.attacker_generates(seed.category):
            reply = await self.attacker.reply(attacker_prompt(seed, rules), self._key(attack, Role.ATTACKER))
            attack.attacker, attack.presented_note = read_attack(seed, reply, rules)
        else:
            attack.presented_note = seed.seed_note
        if attack.presented_note is not None:
            attack.label = data_label(seed.category, attack.presented_note, seed.seed_note)

    async def _assess_and_judge(self, attack: Attack, note: str) -> None:
        """B assessments at once, and one judge call as soon as assessment 0 is there.

        The judge decides blind what is true; the assessment only travels along, and always being the
        first one, not the fastest, keeps what is sent the same in every run.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._assess(attack, note, b)) for b in range(len(attack.assessors))]
            first = await tasks[0]
            # Where assessment 0 failed, see whether there is any before the judge is troubled.
            if attack.label is None and (first or any([await task for task in tasks[1:]])):
                attack.label = await self._ask_judge(attack, note, first)
        for task in tasks:
            task.result()  # raises CancelledError for a turn that was cancelled from outside

    async def _assess(self, attack: Attack, note: str, assessment_idx: int) -> Turn | None:
        prompt = assessor_prompt(note, cot=self.rules.cot, may_refuse=self.rules.unassessable_share > 0)
        try:
            reply = await self.assessor.reply(prompt, self._key(attack, Role.ASSESSOR, assessment_idx))
            turn = read_assessment(reply, cot=self.rules.cot)
        except Exception as error:
            attack.errors[assessment_idx] = _describe(error)
            return None
        attack.assessors[assessment_idx] = turn
        return turn

    async def _ask_judge(self, attack: Attack, note: str, first: Turn | None) -> Label:
        seed = attack.seed
        query = Query(
            game_idx=attack.game_idx(self.rules),
            original_note=seed.reference_note,
            medical_note=note,
            assessment=(first.answer or "") if first else "",
            error_type=seed.error_type,
            game_category=seed.category.value,
        )
        try:
            return await self.judge.label(query)
        except Exception as error:  # against its contract, but no reason to lose the turns
            return Label("error", None, reason=_describe(error))


async def _run_all(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or cancel all and wait for them when one raises or the caller is cancelled."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
