"""When the judge fails in too many games: pause, wait for it, have the games judged again, or give up.

games ─► few failed ──────────────────────────────────────────────────────► go on
    └──► many, for want of a label ─► wait until a replica is ready ─► judge again ─► (decide anew)
    └──► many, for other reasons, or the time to wait is over ─► TooManyFailed: checkpoint, exit
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

from openrlhf_medical.errors import RunError
from openrlhf_medical.game.records import Game, GameStatus
from openrlhf_medical.judge.transport import Health

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two looks at a judge that fails. A judge may say that it is ready and fail all the same."""


class TooManyFailed(RunError):
    """The run cannot go on; the message says why, and what each replica said last."""


class Decision(Enum):
    GO_ON = auto()
    JUDGE_AGAIN = auto()
    GIVE_UP = auto()


def decide(games: Sequence[Game], max_failed_fraction: float) -> Decision:
    """What to do about these games' failures. An abstention is none, nor is a forfeit.

    Waiting for the judge is of use only where players alone did not fail too often.
    """
    allowed = max_failed_fraction * len(games)
    failed = [game for game in games if game.status is GameStatus.ERROR]
    if len(failed) <= allowed:
        return Decision.GO_ON
    by_players = [game for game in failed if not wants_label(game)]
    return Decision.GIVE_UP if len(by_players) > allowed else Decision.JUDGE_AGAIN


def wants_label(game: Game) -> bool:
    """Both players did their part, and the judge did not."""
    judge_failed = game.label is not None and game.label.status == "error"
    return game.status is GameStatus.ERROR and game.assessor is not None and judge_failed


class Replicated(Protocol):
    """What is needed of the judge's client."""

    def health(self) -> dict[str, Health]: ...

    def last_words(self) -> dict[str, str]: ...


class Recovery:
    """Brings a step's games through a judge that fails for a while.

    Args:
        judge_again: new labels for the games that have none (``MedicalDialogueGameManager.judge_again``).
        max_failed_fraction: share of failed games with which a step may go on.
        timeout_s: how long to wait for the judge, from the first failure of a step on; 0 gives up at once.
        tell: called with one sentence when a wait begins, and when it ends well.
    """

    def __init__(
        self,
        judge: Replicated,
        judge_again: Callable[[Sequence[Game]], list[Game]],
        *,
        max_failed_fraction: float,
        timeout_s: float,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._judge, self._judge_again, self._tell = judge, judge_again, tell
        self._limit, self._timeout_s = max_failed_fraction, timeout_s
        self._clock, self._sleep = clock, sleep

    def settle(self, games: list[Game]) -> list[Game]:
        """The games, labelled as far as the limit asks for. Blocks while the judge is waited for.

        Raises:
            TooManyFailed: more than the limit failed, and no wait can help or helped.
        """
        began, pause_s = self._clock(), FIRST_PAUSE_S
        while (decision := decide(games, self._limit)) is not Decision.GO_ON:
            if decision is Decision.GIVE_UP:
                raise TooManyFailed(f"{self._count(games)}; the first failure: {_first(games, judge=False)}")
            left_s = began + self._timeout_s - self._clock()
            if left_s <= 0:
                raise TooManyFailed(
                    f"{self._count(games)}, and the judge did not come back within {self._timeout_s:g} s "
                    f"(judge.recovery_timeout_s): {self._said()}; the first game's reason: {_first(games, judge=True)}"
                )
            if pause_s == FIRST_PAUSE_S:
                self._tell(
                    f"{self._count(games)}: training pauses for up to {self._timeout_s:g} s "
                    f"(judge.recovery_timeout_s) until the judge is back ({self._said()})"
                )
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if any(each.ready for each in self._judge.health().values()):
                games = self._judge_again(games)
        if pause_s > FIRST_PAUSE_S:
            self._tell(f"the judge is back after {self._clock() - began:.0f} s: training goes on")
        return games

    def _count(self, games: Sequence[Game]) -> str:
        failed = [game for game in games if game.status is GameStatus.ERROR]
        return (
            f"{len(failed)} of {len(games)} games failed, {sum(map(wants_label, failed))} of them for want of a label, "
            f"more than judge.max_failed_fraction ({self._limit:g}) allows"
        )

    def _said(self) -> str:
        """Each replica, and what it said last: now where it is not ready, else to the request that failed."""
        words, said = self._judge.last_words(), []
        for url, health in self._judge.health().items():
            said.append(f"{url}: {(words.get(url) or 'says that it is ready') if health.ready else health.said}")
        return "; ".join(said)


def _first(games: Sequence[Game], *, judge: bool) -> str:
    return next(game.reason for game in games if game.status is GameStatus.ERROR and wants_label(game) is judge)
