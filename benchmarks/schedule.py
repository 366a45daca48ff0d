"""The schedule alone: what pipelining is worth, and what the game manager itself costs.

    python benchmarks/schedule.py [--runs N] [--quick]

The manager, players and fleets are those that ``train`` makes; only the engines behind them are simulated, at fixed
rates (``simulated_engine``), on a clock that jumps (``virtual_time``): minutes of play are exact and take a second.
Reply lengths are as in ``lengths``; both schedules play the same ones.

  pipelined against lockstep   one step of ``MAIN``, separate engine pools; one run is one draw of lengths
  manager alone                scripted players that answer at once, all games in flight together, real time
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import lengths
from judge_load import CHANGED, NOTE
from measure import RESULTS, Result, Row, compare, parser
from simulated_engine import Engine, Rates
from virtual_time import run

from openrlhf_medical.game.cot import STOP, reply_form
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Prompt, Query, Reply, Role, Truth, TurnKey
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.layout import TURNS_OF_ENGINE

VERDICT = "Harmful\nSentence: She has no known drug allergies.\nCorrection: She is allergic to penicillin."
THOUGHTS = "The note names a drug, a dose and an organism; I compare each with the findings, one after the other. " * 4
JUDGE_S = 0.1
"""A label takes about this long under load (judge.py: p99 at half load)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """``seeds`` a step, ``attacks`` on each, ``engines`` of each role's pool. Of ``rates`` only how they compare with
    each other and with the number of games matters."""

    seeds: int
    attacks: int
    engines: int
    rates: Rates
    reply_lengths: lengths.Lengths
    edit: str = "note"


GPU = Rates(slots=TURNS_OF_ENGINE, alone=100.0, full=4000.0)
"""Of the shape that an 8B model has on one GPU: a batch of up to 40 takes no longer a step than one sequence."""

MAIN = Setting(seeds=128, attacks=8, engines=2, rates=GPU, reply_lengths=lengths.real())
"""128 seeds (rollout.batch_size of configs/selfplay_8b_multinode.yaml) with groups of eight attacks, as group
estimators want them: 1,024 games on four engines, which is as many turns as keep them full (TURNS_OF_ENGINE)."""

DRAWS = 3
"""Draws of all lengths in one run: a few very long replies decide how long a step takes."""


# --- what is simulated -----------------------------------------------------------------------------------


class Characters:
    """A tokenizer whose tokens nobody counts: the lengths of replies are drawn."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return messages[0]["content"]

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [0]}


def _engine(role: Role, setting: Setting, draw: int) -> Engine:
    answer = (CHANGED[0] if setting.edit == "note" else "3: She has asthma.") if role is Role.ATTACKER else VERDICT
    reply = Reply(f"{THOUGHTS}</think> <answer> {answer} {STOP}", player=role.value)

    def play(prompt_ids: list[int], sampling: dict[str, Any]) -> tuple[Reply, float]:
        return reply, _tokens(setting, role, draw, sampling["seed"])

    return Engine(setting.rates, play)


def _tokens(setting: Setting, role: Role, draw: int, turn: int) -> int:
    return setting.reply_lengths.draw(role, setting.edit, random.Random(f"{draw}/{turn}"))


def _rules(setting: Setting) -> GameRules:
    return GameRules(edit=setting.edit, attacks_per_seed=setting.attacks)


class SteadyJudge:
    async def label(self, query: Query) -> Label:
        await asyncio.sleep(JUDGE_S)
        return Label("ok", Truth.HARMFUL, error_present=True)


def seeds(count: int) -> list[Seed]:
    """The default mix: a quarter of each category, in turn. Vanilla notes cost the attacker no turn."""
    kinds = list(Category)
    return [Seed(f"s{i}", kinds[i % 4], f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(count)]


def play_seconds(schedule: str, setting: Setting, draw: int) -> float:
    """Virtual seconds of one step's games, played as ``train`` plays them."""
    from openrlhf_medical.rollout.engine_player import EnginePlayer, Sampling  # these two import Ray
    from openrlhf_medical.rollout.fleet import Fleet

    sampling = Sampling(seed=draw, deterministic=True)  # a seed for each turn: its length is drawn from it

    def player(role: Role) -> EnginePlayer:
        fleet = Fleet(role.value, lambda index: _engine(role, setting, draw), setting.engines,
                      start_timeout_s=0, equip_timeout_s=0)  # fmt: skip
        return EnginePlayer(fleet, Characters(), sampling, max_model_len=4096, timeout_s=1e9, name=role.value)

    manager = MedicalDialogueGameManager(
        player(Role.ATTACKER),
        player(Role.ASSESSOR),
        SteadyJudge(),
        _rules(setting),
        max_concurrent=TURNS_OF_ENGINE * setting.engines * 2,
        schedule=schedule,
    )  # fmt: skip  (max_concurrent: layout.turns_at_once)
    games, seconds = run(manager.play(seeds(setting.seeds), step=draw))
    bad = [game for game in games if game.status.value != "ok"]
    if bad:
        raise RuntimeError(f"{len(bad)} games were not played: {bad[0].reason}")
    return seconds


def least_seconds(setting: Setting, draw: int) -> float:
    """No schedule is faster: either pool's work at its full rate, or the longest game by itself."""
    from openrlhf_medical.rollout.engine_player import turn_seed

    rules, work, longest = _rules(setting), dict.fromkeys(Role, 0.0), 0.0
    for game, seed in enumerate(s for s in seeds(setting.seeds) for _ in range(setting.attacks)):
        roles = [Role.ASSESSOR] if not rules.attacker_generates(seed.category) else list(Role)
        tokens = [_tokens(setting, role, draw, turn_seed(draw, TurnKey(draw, game, role))) for role in roles]
        for role, count in zip(roles, tokens, strict=True):
            work[role] += count
        longest = max(longest, sum(tokens) / setting.rates.alone)
    per_s = setting.engines * setting.rates.each(setting.rates.slots) * setting.rates.slots
    return max(longest, *(tokens / per_s for tokens in work.values()))


def both(setting: Setting, draws: int) -> tuple[list[float], list[float]]:
    """(pipelined, lockstep) seconds of each draw."""
    pipelined, lockstep = (
        [play_seconds(schedule, setting, draw) for draw in range(draws)] for schedule in ("pipelined", "lockstep")
    )
    return pipelined, lockstep


def sensitivity(draws: int) -> list[dict[str, Any]]:
    """The same where one thing is different: so that the ratio in the table is not taken for a constant."""
    few, long = replace(MAIN, attacks=1), MAIN.reply_lengths
    settings = {
        "as in the table": MAIN,
        "128 games": few,
        "128 games, 4 + 4 engines": replace(few, engines=4),
        "4 + 4 engines": replace(MAIN, engines=4),
        "1 + 1 engines": replace(MAIN, engines=1),
        "32 slots an engine": replace(MAIN, rates=replace(GPU, slots=32)),
        "no engine slower when full": replace(MAIN, rates=replace(GPU, full=GPU.alone * GPU.slots)),
        "thoughts half as spread": replace(MAIN, reply_lengths=replace(long, log_sd=long.log_sd / 2)),
        "28 % of replies never end": replace(MAIN, reply_lengths=lengths.with_loops()),
        "game.edit sentence": replace(MAIN, edit="sentence"),
    }
    rows = []
    for name, setting in settings.items():
        ours, other = both(setting, draws)
        least = [least_seconds(setting, draw) for draw in range(draws)]
        ratio, over = (statistics.median(a) / statistics.median(b) for a, b in ((other, ours), (ours, least)))
        rows.append({"what": name, "ratio": ratio, "over_the_least": over, **asdict(setting)})
        print(f"  {name}: {ratio:.2f} times faster than lockstep, {over:.2f} times the least possible")
    return rows


# --- the manager alone -----------------------------------------------------------------------------------


class Scripted:
    """Answers at once, but only when every game has begun: so all ``games`` are in flight together."""

    def __init__(self, games: int, tokens: int = 0) -> None:
        self._tokens, self._missing = tokens, games
        self._all_there = asyncio.Event()
        self._numbers = itertools.count(1000)

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        self._missing -= 1
        if self._missing <= 0:
            self._all_there.set()
        await self._all_there.wait()
        # Each attack a text of its own, as real ones are.
        answer = VERDICT if key.role is Role.ASSESSOR else NOTE.replace("54", str(next(self._numbers)))
        text = reply_form(answer, cot=True, thoughts=THOUGHTS).removeprefix("<think>")
        made = tuple(1000 + i for i in range(self._tokens))
        return Reply(text, token_ids=made, prompt_ids=made * 2, logprobs=tuple(-i / 7 for i in made), player="scripted")

    async def label(self, query: Query) -> Label:
        await asyncio.sleep(0)
        row = {"game_idx": query.game_idx, "status": "ok", "actual_harm": "Harmful", "error_present": True}
        row |= {"error_detected": None, "note_valid": True, "judge_reasoning": "a drug differs from the reference"}
        return Label("ok", Truth.HARMFUL, error_present=True, extra=row)


def manager_seconds(games: int) -> float:
    """CPU seconds of this process: another program on the machine is no fault of the manager's."""
    own = seeds(games)
    gc.collect()
    began = time.process_time()
    _play_scripted(own)
    return time.process_time() - began


def manager_bytes(games: int, tokens: int = 0) -> int:
    """The most that was held at any time, replies included, seeds not."""
    own = seeds(games)
    gc.collect()
    tracemalloc.start()
    try:
        _play_scripted(own, tokens)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _play_scripted(own: Sequence[Seed], tokens: int = 0) -> None:
    player = Scripted(len(own), tokens)
    manager = MedicalDialogueGameManager(player, player, player, GameRules(), max_concurrent=len(own))
    played = asyncio.run(asyncio.wait_for(manager.play(own), 600))
    if any(game.status.value != "ok" for game in played):
        raise RuntimeError("games were not played to their end")


def manager_rows(games: int, runs: int) -> tuple[list[Row], dict[str, Any]]:
    few = games // 10
    manager_seconds(few)  # to warm up
    seconds = [manager_seconds(games) for _ in range(runs)]
    kb = {count: manager_bytes(count) / count / 1000 for count in (few, games)}
    with_tokens = manager_bytes(few, tokens=150) / few / 1000
    each = [1000 * s / games for s in seconds]
    name = f"game manager alone, scripted players, {games:,} games at once"
    spread = (min(each), max(each))
    rows = [
        Row(f"{name}: CPU time a game", statistics.median(each), 0.3, "lower", "ms", spread),
        Row(f"{name}: peak memory a game", kb[games], 20, "lower", "kB", note="tracemalloc; replies without token ids"),
        Row(f"{name}: memory a game against {few:,} games", kb[games] / kb[few], 1.1, "lower"),
    ]
    return rows, {"ms_a_game": each, "kb_a_game": kb, "kb_a_game_with_450_tokens_a_turn": with_tokens}


def main() -> None:
    options = parser(__doc__).parse_args()
    runs = 1 if options.quick else options.runs
    games = 500 if options.quick else 10_000
    draws = 1 if options.quick else DRAWS * runs
    ours, other = both(MAIN, draws)
    what = "pipelined schedule against lockstep, separate engine pools, simulated engines"
    row = compare(what, ours, other, 1.6, "higher",
                  note="1,024 games a step, 2 + 2 engines; 1.5 to 1.8 in other settings (notes below)")  # fmt: skip
    rows, samples = manager_rows(games, runs)
    samples |= {"pipelined_s": ours, "lockstep_s": other, "sensitivity": sensitivity(draws)}
    samples["setting"] = asdict(MAIN)
    Result("schedule", [row, *rows], samples).report(None if options.quick else RESULTS)


if __name__ == "__main__":
    main()
