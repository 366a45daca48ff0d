"""What a turn costs the controller's one thread: prompt, tokenizer, fleet, Ray call, and reading the reply.

A real fleet of Ray actors that answer at once, played by the real manager and players: CPU seconds of this process,
all of its threads, for Ray's own do part of the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import schedule
from judge_load import CHANGED

from openrlhf_medical.game.cot import STOP
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Reply, Role
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.layout import TURNS_OF_ENGINE

MODELS = ("models/smollm2-135m", "models/tiny")
TOKENS = 300
"""Of a reply: about what ``lengths`` has."""


def measured(game_ms: float, games: int = 2000) -> dict[str, tuple[float, str]]:
    """``turn-ms`` and ``pick-us`` of scale.py's service times. ``game_ms``: of the manager without any of this."""
    play(200)  # to warm up: connections, the actors' imports
    turns = 1.5 * games  # the default mix: in every second game the attacker writes
    turn_ms = (1000 * play(games) - games * game_ms) / turns
    return {
        "turn-ms": (
            turn_ms,
            f"measured: CPU time of {turns:,.0f} turns on Ray actors, real tokenizer, less the manager's",
        ),
        "pick-us": (1e6 * _pick_s(512) / 512, "measured: choosing the least busy of 512 engines, an engine"),
    }


def play(games: int) -> float:
    """CPU seconds of this process for so many games, all but the engines' and the judge's own."""
    from transformers import AutoTokenizer

    from openrlhf_medical.rollout.engine_player import EnginePlayer, Sampling

    folder = next((name for name in MODELS if Path(name).is_dir()), None)
    if folder is None:
        raise SystemExit(f"none of {', '.join(MODELS)} is there: ./launch/setup.sh, or --turn-ms and --quick")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with _fleets() as fleets:
        attacker, assessor = (
            EnginePlayer(fleets[role], tokenizer, Sampling(), max_model_len=8192, timeout_s=600.0, name=role.value)
            for role in Role
        )
        manager = MedicalDialogueGameManager(
            attacker, assessor, schedule.SteadyJudge(), GameRules(), max_concurrent=2 * TURNS_OF_ENGINE
        )
        asyncio.run(manager.play(schedule.seeds(8)))
        began = time.process_time()
        played = asyncio.run(manager.play(schedule.seeds(games)))
        seconds = time.process_time() - began
    if any(game.status.value != "ok" for game in played):
        raise RuntimeError("games were not played to their end")
    return seconds


@contextmanager
def _fleets() -> Iterator[dict[Role, Any]]:
    import ray

    from openrlhf_medical.cluster import session
    from openrlhf_medical.rollout.fleet import Fleet

    with session(0):
        engine = ray.remote(_Instant)

        def start(role: Role) -> Any:
            return engine.options(num_cpus=0, max_concurrency=4096).remote(role.value)

        yield {
            role: Fleet(role.value, lambda index, role=role: start(role), 1, start_timeout_s=60, equip_timeout_s=60)
            for role in Role
        }


class _Instant:
    """An engine that has the whole reply at once; as long as real ones, for its bytes travel."""

    def __init__(self, role: str) -> None:
        answer = CHANGED[0] if role == Role.ATTACKER else schedule.VERDICT
        self._text = f"{schedule.THOUGHTS}</think> <answer> {answer} {STOP}"

    async def reply(self, prompt_ids: list[int], sampling: dict[str, Any], adapter: str = "") -> Reply:
        made = tuple(range(1000, 1000 + TOKENS))
        return Reply(self._text, prompt_ids=tuple(prompt_ids), token_ids=made, logprobs=tuple(-i / 7 for i in made))


def _pick_s(engines: int, picks: int = 2000) -> float:
    """CPU seconds of choosing one of so many engines."""
    from openrlhf_medical.rollout.fleet import Fleet

    fleet = Fleet("many", lambda index: None, engines, start_timeout_s=0, equip_timeout_s=0)

    async def pick() -> None:
        for _ in range(picks):
            await fleet._least_busy()

    began = time.process_time()
    asyncio.run(pick())
    return (time.process_time() - began) / picks
