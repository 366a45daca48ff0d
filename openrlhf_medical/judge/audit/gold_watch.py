"""Gold probes during training: does the judge still know what it knew?

A judge is a server that others may restart, load with another model, or put behind a proxy; training would go on
learning from whatever it says. So every few steps a handful of pairs of known truth is slipped in among the games'
queries, through the same client:

    begin(step) ─► a thread of its own asks, a few at a time ─► finished() gives the figures, once, when all are there

Nothing waits for it, and nothing of it enters a game or a reward: the answers never leave this object but as figures.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.edits import is_copy
from openrlhf_medical.game.players import Judge, Label, Query, Truth
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.judge.audit.cosmetic import COSMETIC

logger = logging.getLogger(__name__)

CATEGORY = "gold_probe"
"""``game_category`` of a probe: no game has it. No backend ever sees it."""
AT_ONCE = 4
"""Probes under way at the same time: games must not queue behind them."""

GoldPair = tuple[Truth, str, str]
"""Truth, reference, note."""


class GoldWatch:
    """Asks the judge about gold pairs of the training seeds, in the background.

    Harmful: a note with its error, against its reference. Safe: a reference against itself and against a cosmetic
    rewrite, in turn. Half of either; which ones depends on ``seed`` and the step alone.

    Args:
        every: steps between two rounds.
        count: pairs in a round.

    Raises:
        UserError: the seeds hold no note with an error.
    """

    def __init__(self, judge: Judge, seeds: Sequence[Seed], *, every: int, count: int, seed: int) -> None:
        by_note = {s.note_id: s for s in sorted(seeds, key=lambda s: s.seed_id)}
        with_error = {
            s.note_id: s for s in seeds if s.category.is_harmful and not is_copy(s.seed_note, s.reference_note)
        }
        self._wrong = [with_error[name] for name in sorted(with_error)]
        self._clean = [by_note[name] for name in sorted(by_note)]
        if not self._wrong:
            raise UserError("judge.probe_every needs training seeds with an error, and there are none: set it to 0, or "
                            "give game.mix a share of harmful notes")  # fmt: skip
        self._judge, self._every, self._count, self._seed = judge, every, count, seed
        self._round: Future[list[tuple[Truth, Label]]] | None = None
        self._asked_in: int | None = None

    def begin(self, step: int) -> None:
        """Starts a round where one is due. One that is still under way is left to go on instead."""
        if step % self._every or self._round is not None:
            return
        self._ask_about(step)

    def _ask_about(self, step: int) -> None:
        asked: Future[list[tuple[Truth, Label]]] = Future()
        self._round, self._asked_in = asked, step
        pairs = self.pairs(step)

        def work() -> None:
            try:
                asked.set_result(asyncio.run(self._ask(pairs)))
            except BaseException as error:  # of a thread of its own nobody would hear otherwise
                asked.set_exception(error)

        # A daemon: a judge that hangs must not keep the program from ending.
        threading.Thread(target=work, name="gold-probes", daemon=True).start()

    def finished(self) -> dict[str, float]:
        """The figures of a round that is over, once; else nothing. Does not wait."""
        if self._round is None or not self._round.done():
            return {}
        done, self._round = self._round, None
        if (error := done.exception()) is not None:
            logger.error("gold probes failed: %s: %s", type(error).__name__, error)
            return {"judge/gold_error_rate": 1.0}
        return figures_of(done.result())

    def state(self) -> dict[str, Any]:
        """As JSON: the step of the round that is under way, if any."""
        return {"asked_in": self._asked_in if self._round is not None else None}

    def load(self, state: Mapping[str, Any]) -> None:
        """Ask again what was under way: its answers are not in any state."""
        if state["asked_in"] is not None:
            self._ask_about(state["asked_in"])

    def pairs(self, step: int) -> list[GoldPair]:
        """The pairs of the round of ``step``."""
        rng = random.Random(f"{self._seed}/gold/{step}")
        harmful = rng.sample(self._wrong, min(self._count // 2, len(self._wrong)))
        safe = rng.sample(self._clean, min(self._count - self._count // 2, len(self._clean)))
        pairs = [(Truth.HARMFUL, seed.reference_note, seed.seed_note) for seed in harmful]
        for place, seed in enumerate(safe):
            reference = seed.reference_note
            pairs.append((Truth.SAFE, reference, _rewritten(reference, rng) if place % 2 else reference))
        rng.shuffle(pairs)
        return pairs

    async def _ask(self, pairs: Sequence[GoldPair]) -> list[tuple[Truth, Label]]:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(place: int, pair: GoldPair) -> tuple[Truth, Label]:
            truth, reference, note = pair
            async with room:
                # Games count from 0 up.
                return truth, await self._judge.label(Query(-1 - place, reference, note, "", None, CATEGORY))

        return list(await asyncio.gather(*(one(place, pair) for place, pair in enumerate(pairs))))


def _rewritten(reference: str, rng: random.Random) -> str:
    """By the first rewrite, as drawn, that finds something to change: another identical pair would be right for a
    judge to which any difference is Harmful."""
    rewrites = list(COSMETIC.values())
    return next((note for rewrite in rng.sample(rewrites, len(rewrites)) if (note := rewrite(reference)) != reference),
                reference)  # fmt: skip


def figures_of(answers: Sequence[tuple[Truth, Label]]) -> dict[str, float]:
    """``judge/gold_abstain_rate`` and ``judge/gold_error_rate`` of all that were asked; and, where some of either
    truth were decided, ``judge/gold_balanced_accuracy`` of these."""
    statuses = [label.status for _, label in answers]
    found = {
        "judge/gold_abstain_rate": statuses.count("abstain") / len(answers),
        "judge/gold_error_rate": statuses.count("error") / len(answers),
    }
    decided = {
        truth: [label.actual_harm is truth for own, label in answers if own is truth and label.status == "ok"]
        for truth in Truth
    }
    if all(decided.values()):
        found["judge/gold_balanced_accuracy"] = sum(sum(right) / len(right) for right in decided.values()) / 2
    return found
