"""A slow judge costs no time: every wait for a label lies within the players' own, and beside all others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from faulty_judge import FaultyJudge, good, slow
from judge_storm import check, queries, storm

from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Prompt, Reply, Role, TurnKey
from openrlhf_medical.game.records import GameStatus
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.client import JudgeClient

NOTE = "A man has gout. He takes colchicine for it."
GAMES = 60
JUDGE_S = 1.0


class Engine:
    """Takes its time for a reply, as drawn for each turn; many at once."""

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        draw = random.Random(f"{key.role} {key.game_idx}").random()
        attacks = key.role is Role.ATTACKER
        await asyncio.sleep(0.4 * draw if attacks else JUDGE_S + 0.1 + 0.3 * draw)
        answer = f"{NOTE} He is {key.game_idx} years old." if attacks else "Harmful"
        return Reply(f"t </think> <answer>{answer}</answer>")


def step_s(judge: FaultyJudge) -> float:
    seeds = [Seed(f"s{i}", Category.ADVERSARIAL_BENIGN, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(GAMES)]
    with JudgeClient([judge.url], batch_size=16) as client:
        manager = MedicalDialogueGameManager(Engine(), Engine(), client, GameRules())
        start = time.monotonic()
        games = asyncio.run(manager.play(seeds))
        taken = time.monotonic() - start
    assert {game.status for game in games} == {GameStatus.OK}
    return taken


def test_a_judge_that_is_quicker_than_the_assessor_costs_no_time() -> None:
    """The issue's bound is 10 %; the rest is for busy machines. Asked after the assessor it would be 55 %."""
    with FaultyJudge(good) as instant, FaultyJudge(slow(JUDGE_S)) as late:
        fast, slowed = step_s(instant), step_s(late)
    assert slowed < 1.1 * fast + 0.4, (fast, slowed)


def test_all_requests_are_under_way_at_once() -> None:
    """The judge answers nobody before all have asked."""
    all_here = threading.Barrier(GAMES)

    def when_all_are_here(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        all_here.wait(timeout=60)
        good(judge, http, body)

    asked = queries(GAMES, seed=0, abstain=False)
    with FaultyJudge(when_all_are_here) as judge, JudgeClient([judge.url], batch_size=1, timeout_s=60) as client:
        assert check(asked, storm(client, asked)) == {"ok": GAMES}
    assert judge.asked == GAMES


def test_no_more_requests_are_under_way_than_allowed() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def counted(judge: FaultyJudge, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        good(judge, http, body)

    asked = queries(40, seed=0)
    with FaultyJudge(counted) as judge, JudgeClient([judge.url], batch_size=1, max_requests=3) as client:
        check(asked, storm(client, asked))
    assert most[0] == 3
