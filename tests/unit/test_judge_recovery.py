"""What training does when the judge fails in many games: by rule, and against a judge that goes and comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from faulty_judge import FaultyJudge, good, status
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.errors import RunError
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Prompt, Reply, Role, Truth, TurnKey
from openrlhf_medical.game.records import Game, GameStatus
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.recovery import Decision, Recovery, TooManyFailed, decide
from openrlhf_medical.judge.transport import Health

NOTE = "A man has gout. He takes colchicine for it."
SEEDS = [Seed(f"s{i}", Category.ADVERSARIAL_BENIGN, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(10)]


class Player:
    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        answer = NOTE.replace("colchicine", "warfarin") if key.role is Role.ATTACKER else "Harmful"
        return Reply(f"t </think> <answer>{answer}</answer>")


class Judge:
    """Fails where ``fails`` says so."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.fails = fails

    async def label(self, query) -> Label:
        if self.fails(query.game_idx):
            return Label("error", None, reason=f"down for {query.game_idx}")
        return Label("ok", Truth.HARMFUL, error_present=True)


def games_of(judge, players=None) -> list[Game]:
    player = players or Player()
    return asyncio.run(MedicalDialogueGameManager(player, player, judge, GameRules()).play(SEEDS))


PLAYED = games_of(Judge(lambda idx: False))
UNJUDGED = games_of(Judge(lambda idx: True))
BROKEN = [replace(game, assessor=None, label=None, status=GameStatus.ERROR, reason="engine died") for game in PLAYED]


# --- the rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unjudged", "broken", "limit", "decision"),
    [
        (0, 0, 0.0, Decision.GO_ON),
        (2, 0, 0.2, Decision.GO_ON),
        (3, 0, 0.2, Decision.JUDGE_AGAIN),
        (1, 0, 0.0, Decision.JUDGE_AGAIN),
        (10, 0, 1.0, Decision.GO_ON),
        (2, 1, 0.2, Decision.JUDGE_AGAIN),  # together too many, and the judge may help
        (0, 3, 0.2, Decision.GIVE_UP),
        (7, 3, 0.2, Decision.GIVE_UP),  # no judge can help
    ],
)
def test_the_decision(unjudged: int, broken: int, limit: float, decision: Decision) -> None:
    games = UNJUDGED[:unjudged] + BROKEN[unjudged : unjudged + broken] + PLAYED[unjudged + broken :]
    assert decide(games, limit) is decision


def test_an_abstention_and_a_forfeit_are_no_failures() -> None:
    games = [replace(game, status=status) for game in PLAYED for status in (GameStatus.ABSTAIN, GameStatus.FORFEIT)]
    assert decide(games, 0.0) is Decision.GO_ON
    assert decide([], 0.0) is Decision.GO_ON


# --- waiting, on a clock of the test's own --------------------------------------------------------------


class World:
    """Time passes only by sleeping; a judge that is not healthy until ``ready_at``, and then gives labels to all
    but ``fails`` games."""

    def __init__(self, ready_at: float, fails: Sequence[int] = ()) -> None:
        self.now, self.ready_at, self.fails = 0.0, ready_at, list(fails)
        self.told: list[str] = []
        self.asked_at: list[float] = []

    def health(self) -> dict[str, Health]:
        ready = self.now >= self.ready_at
        return {"http://a": Health(ready, "m" if ready else "HTTP 503 loading"), "http://b": Health(False, "refused")}

    def last_words(self) -> dict[str, str]:
        return {"http://a": "", "http://b": "ReadTimeout"}

    def judge_again(self, games: Sequence[Game]) -> list[Game]:
        self.asked_at.append(self.now)
        fails = self.fails.pop(0) if self.fails else 0
        return [UNJUDGED[i] if i < fails else PLAYED[i] for i in range(len(games))]

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def recovery(self, timeout_s: float = 600, limit: float = 0.2) -> Recovery:
        return Recovery(self, self.judge_again, max_failed_fraction=limit, timeout_s=timeout_s, tell=self.told.append,
                        clock=lambda: self.now, sleep=self.sleep)  # fmt: skip


def test_few_failures_are_let_be() -> None:
    world, games = World(0), UNJUDGED[:2] + PLAYED[2:]
    assert world.recovery().settle(games) is games
    assert (world.now, world.told, world.asked_at) == (0, [], [])


def test_games_are_judged_again_once_the_judge_is_back() -> None:
    world = World(ready_at=100)
    assert world.recovery().settle(UNJUDGED) == PLAYED
    assert 100 <= world.now <= 131 and len(world.asked_at) == 1
    paused, back = world.told
    assert "10 of 10 games failed, 10 of them for want of a label" in paused and "up to 600 s" in paused
    assert "http://a: HTTP 503 loading; http://b: refused" in paused
    assert "the judge is back" in back


def test_a_judge_that_is_ready_and_fails_is_asked_less_and_less_often() -> None:
    world = World(0, fails=[10] * 99)
    with pytest.raises(TooManyFailed) as error:
        world.recovery().settle(UNJUDGED)
    assert world.now == 600 and len(world.asked_at) < 30
    assert len(world.told) == 1
    assert "did not come back within 600 s" in str(error.value) and "down for 0" in str(error.value)
    assert "http://a: says that it is ready" in str(error.value)


def test_it_is_enough_that_few_failures_are_left() -> None:
    world = World(0, fails=[5, 2])
    games = world.recovery().settle(UNJUDGED)
    assert [game.status for game in games].count(GameStatus.ERROR) == 2 and len(world.asked_at) == 2


@pytest.mark.parametrize("timeout_s", [0, 50])
def test_the_time_to_wait_is_limited(timeout_s: float) -> None:
    world = World(ready_at=1e9)
    with pytest.raises(RunError, match="http://a: HTTP 503 loading; http://b: refused"):
        world.recovery(timeout_s=timeout_s).settle(UNJUDGED)
    assert world.now == timeout_s and world.asked_at == []


def test_nobody_waits_for_a_judge_when_players_fail() -> None:
    world = World(0)
    with pytest.raises(TooManyFailed, match="first failure: engine died"):
        world.recovery().settle(BROKEN[:5] + UNJUDGED[5:])
    assert world.now == 0


@given(st.floats(0, 1000), st.lists(st.integers(0, 10), max_size=40), st.floats(0, 1000), st.floats(0, 1))
def test_it_always_ends_in_time_and_never_invents(ready_at: float, fails: list[int], timeout_s: float, limit: float):
    world = World(ready_at, fails)
    try:
        games = world.recovery(timeout_s, limit).settle(UNJUDGED)
    except TooManyFailed:
        assert world.now >= timeout_s
    else:
        assert decide(games, limit) is Decision.GO_ON
        assert all(game in (PLAYED[i], UNJUDGED[i]) for i, game in enumerate(games))
    assert world.now <= timeout_s + 1e-6


# --- over real sockets ----------------------------------------------------------------------------------


def test_a_step_outlives_its_judge() -> None:
    with FaultyJudge(status(500)) as judge, JudgeClient([judge.url], timeout_s=0.5) as client:
        player = Player()
        manager = MedicalDialogueGameManager(player, player, client, GameRules())
        games = asyncio.run(manager.play(SEEDS))
        assert {game.status for game in games} == {GameStatus.ERROR}

        told: list[str] = []

        def tell(sentence: str) -> None:
            if not told:  # the pause begins: the judge is restarted, and works
                judge.stop()
                judge.handler = good
                threading.Timer(1.0, judge.start).start()
            told.append(sentence)

        recovery = Recovery(client, lambda games: asyncio.run(manager.judge_again(games)), max_failed_fraction=0.2,
                            timeout_s=120, tell=tell)  # fmt: skip
        settled = recovery.settle(games)
    assert {game.status for game in settled} == {GameStatus.OK}
    assert all(game.assessor.trained and game.attacker.trained for game in settled)
    assert all("500" in game.judge_failures[0] for game in settled)
    assert len(told) == 2
