"""Simulated time, engines at fixed rates, and the scale model, against schedules worked out by hand."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as `python benchmarks/schedule.py` has it

import lengths  # noqa: E402
import scale_check  # noqa: E402
import schedule  # noqa: E402
import virtual_time  # noqa: E402
from scale_model import GameWork, Service, draw_games, needs_of, play_step  # noqa: E402
from simulated_engine import Batch, Engine, Rates  # noqa: E402

from openrlhf_medical.game.manager import MedicalDialogueGameManager  # noqa: E402
from openrlhf_medical.game.players import Label, Reply, Role, Truth  # noqa: E402
from openrlhf_medical.game.rules import GameRules  # noqa: E402

# --- the clock ----------------------------------------------------------------------------------------------


def test_an_hour_passes_at_once_and_in_order():
    seen = []

    async def work():
        async def wait(seconds):
            await asyncio.sleep(seconds)
            seen.append((seconds, asyncio.get_running_loop().time()))

        await asyncio.gather(wait(3600), wait(0.5), wait(7))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1000), 400)
        return "done"

    assert virtual_time.run(work()) == ("done", 4000.0)
    assert seen == [(0.5, 0.5), (7, 7.0), (3600, 3600.0)]


def test_waiting_for_nothing_is_told():
    async def work():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing is left"):
        virtual_time.run(work())


# --- engines ------------------------------------------------------------------------------------------------


def test_a_batch_shares_the_engine():
    """10 tokens/s alone, 15 in all. Two of 30 and 60 tokens: 7.5 each until 4 s, then the longer one has 30 left and
    gets 10: 7 s."""
    batch = Batch(Rates(slots=2, alone=10, full=15))
    batch.add(0.0, "short", 30, 0)
    batch.add(0.0, "long", 60, 1)
    batch.add(0.0, "waits", 10, 2)  # both places are taken
    assert batch.next_done() == 4.0 and batch.pop(4.0) == "short"
    # 'waits' has taken its place: 7.5 each; 10 tokens are 4/3 s.
    assert batch.next_done() == pytest.approx(4 + 10 / 7.5) and batch.pop(4 + 10 / 7.5) == "waits"
    assert batch.next_done() == pytest.approx(4 + 10 / 7.5 + 20 / 10) and batch.pop(batch.next_done()) == "long"
    assert batch.next_done() is None and batch.busy_s == pytest.approx(4 + 10 / 7.5 + 2)


class OnEngine:
    """A player whose replies take the tokens that its script says, on one engine."""

    def __init__(self, tokens, answer, rates):
        self._tokens = tokens
        reply = Reply(f"t </think> <answer>{answer}</answer>")
        self._engine = Engine(rates, lambda ids, sampling: (reply, sampling["tokens"]))

    async def reply(self, prompt, key):
        return await self._engine.reply.remote([0], {"tokens": self._tokens[key.game_idx]})


class QuickJudge:
    async def label(self, query):
        return Label("ok", Truth.HARMFUL, error_present=True)


@pytest.mark.parametrize(("name", "seconds"), [("pipelined", 13.0), ("lockstep", 20.0)])
def test_a_schedule_by_hand(name, seconds):
    """One token a second, no matter how many at once. Of the seeds in turn (two vanilla ones, with nothing to write)
    attackers take 10 s (game 1) and 2 s (game 3), assessors 1, 3, 4 and 10 s.
    Lockstep: 10 + 10; pipelined: game 1 ends at 10 + 3, game 3 at 2 + 10."""
    rates = Rates(slots=8, alone=1, full=100)
    attacker = OnEngine({1: 10, 3: 2}, schedule.CHANGED[0], rates)
    assessor = OnEngine({0: 1, 1: 3, 2: 4, 3: 10}, "Harmful", rates)
    manager = MedicalDialogueGameManager(attacker, assessor, QuickJudge(), GameRules(), schedule=name)
    games, took = virtual_time.run(manager.play(schedule.seeds(4)))
    assert took == seconds
    assert all(game.status.value == "ok" for game in games)


def test_both_schedules_play_the_same_lengths_and_none_is_faster_than_possible():
    setting = replace(schedule.MAIN, seeds=16, attacks=2, engines=1)
    for draw in range(3):
        pipelined, lockstep = (schedule.play_seconds(name, setting, draw) for name in ("pipelined", "lockstep"))
        assert schedule.least_seconds(setting, draw) <= pipelined + 1e-9 <= lockstep
        assert pipelined == schedule.play_seconds("pipelined", setting, draw)  # exact


# --- lengths ------------------------------------------------------------------------------------------------


def test_lengths_are_those_of_the_file_and_of_the_form():
    real, rng = lengths.real(), random.Random(0)
    thoughts = sorted(real.draw(Role.ASSESSOR, "note", rng) - lengths.VERDICT for _ in range(4001))
    assert thoughts[2000] == pytest.approx(real.median, rel=0.1)
    notes = sorted(lengths.Lengths(1, 0).draw(Role.ATTACKER, "note", rng) - 1 for _ in range(4001))
    assert notes[2000] == pytest.approx(182, rel=0.05) and notes[3800] == pytest.approx(324, rel=0.1)  # MEDEC
    assert max(real.draw(Role.ATTACKER, "note", rng) for _ in range(4001)) == lengths.MOST
    looping = lengths.with_loops()
    assert looping.loops == pytest.approx(27 / 96)
    cut = sum(looping.draw(Role.ASSESSOR, "note", rng) == lengths.MOST for _ in range(4000)) / 4000
    assert cut == pytest.approx(27 / 96 * 1.0 + 0.01, abs=0.03)


# --- the scale model ----------------------------------------------------------------------------------------

FREE = Service(
    rates=Rates(slots=256, alone=10, full=40), prefill_per_s=1e12, turn_s=0, pick_s=0, game_s=0, label_per_s=1e12,
    judges=1, reply_bytes=0, weight_bytes=0, link_bytes_per_s=1, reload_s=0, controller_bytes=1000,
)  # fmt: skip


def test_one_game_by_hand():
    """Attacker: 20 prompt tokens at 20/s and 50 at 10/s. Reading is work for the whole engine, so 20 prompt tokens are
    40 of its tokens, at 10/s alone: 4 s. Then 5 s; the assessor's 30 are 3 s, its label takes 4 s; a turn costs the
    controller 0.5 s, half of it before and half after. 0.25 + 9 + 0.5 + max(3 + 0.25, 4) = 13.75 s."""
    service = replace(FREE, prefill_per_s=20, turn_s=0.5, label_per_s=0.25)
    step = play_step([GameWork((20, 50), (0, 30))], 1, service)
    assert step.play_s == pytest.approx(13.75)


def test_sync_and_needs_by_hand():
    service = replace(FREE, turn_s=0.1, pick_s=0.01, game_s=0.2, label_per_s=2, judges=2, reply_bytes=10,
                      weight_bytes=600, link_bytes_per_s=100, reload_s=1.5)  # fmt: skip
    games = [GameWork((0, 50), (0, 30)), GameWork(None, (0, 20)), GameWork((0, 60), None)]
    needs = needs_of(games, 2, service)
    assert needs == pytest.approx({
        "engines": 160 / 80, "longest game": 8.0, "controller": 4 * 0.12 + 3 * 0.2, "judge": 2 / 4,
        "network": 4 * 10 / 100 + 6 + 1.5,
    })  # fmt: skip
    step = play_step(games, 2, service)
    assert step.sync_s == 7.5 and step.limit == "longest game" and step.controller_gb == pytest.approx(3e-6)


def test_more_of_anything_is_never_slower_and_no_step_beats_what_its_parts_need():
    work = draw_games(400, {"attacker": [50, 300, 900], "assessor": [20, 200, 700]}, {"attacker": 50, "assessor": 50})
    service = replace(FREE, prefill_per_s=500, turn_s=0.02, pick_s=1e-4, game_s=0.01, label_per_s=10)
    by_engines = [play_step(work, engines, service) for engines in (1, 2, 4, 16)]
    seconds = [step.play_s for step in by_engines]
    assert seconds == sorted(seconds, reverse=True)
    for step in by_engines:
        own = max(need for part, need in step.needs.items() if part != "network")
        assert step.play_s >= own * (1 - 1e-9)
    judged = [play_step(work, 4, replace(service, judges=n)).play_s for n in (1, 2, 8)]
    assert judged == sorted(judged, reverse=True)
    fewer = [play_step(work[:n], 4, service).play_s for n in (100, 200, 400)]
    assert fewer == sorted(fewer)


@pytest.mark.parametrize(("change", "limit"), [
    ({}, "engines"), ({"turn_s": 1.0}, "controller"), ({"label_per_s": 0.1}, "judge"),
    ({"weight_bytes": 1e4}, "network"),
])  # fmt: skip
def test_what_is_made_slow_is_what_limits(change, limit):
    work = draw_games(400, {"attacker": [100], "assessor": [100]}, {"attacker": 0, "assessor": 0})
    step = play_step(work, 4, replace(FREE, **change))
    assert step.limit == limit
    assert step.seconds == pytest.approx(step.needs[limit], rel=0.2)


def test_every_second_game_is_attacked():
    games = draw_games(10, {"attacker": [5], "assessor": [7]}, {"attacker": 1, "assessor": 2})
    assert [game.attacker for game in games] == [None, (1, 5)] * 5
    assert {game.assessor for game in games} == {(2, 7)}


def test_rates_that_made_the_seconds_are_found_again(tmp_path):
    """A made-up run whose seconds the model itself gave: fitted on two batches, the others are predicted."""
    rng, true = random.Random(1), Rates(256, 30, 200)

    def batch(name, games):
        turns = [((50, rng.randrange(20, 160)), (60, rng.randrange(20, 160))) for _ in range(games)]
        played = scale_check.Played(name, 0.0, turns)
        return replace(played, seconds=scale_check.predict(played, 1, true))

    batches = [batch("a", 3), batch("b", 20), batch("c", 4), batch("d", 16)]
    rates = scale_check.fit(batches[:2], 1)
    assert rates.alone == pytest.approx(30, rel=0.1) and rates.full == pytest.approx(200, rel=0.1)
    for each in batches[2:]:
        assert scale_check.predict(each, 1, rates) == pytest.approx(each.seconds, rel=0.15)
    cold = [replace(batch("x", 9), seconds=500.0)]  # is left out, and spoils nothing
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps({"engines": 1, "batches": [asdict(each) for each in cold + batches]}))
    checked = scale_check.check(kept, warm_up=1)
    assert checked.measured_s[0] == 500.0 and checked.worst < 1.15
    assert "| x (left out) | 9 | 500.0 |" in checked.markdown()
    with pytest.raises(ValueError, match="5 batches"):
        scale_check.check(kept, warm_up=4)


def test_a_run_directory_is_read(tmp_path):
    def row(step, thinking):
        return {"step": step, "seed_note": "n" * 400, "presented_note": "p" * 800,
                "attacker": None, "assessor": {"thinking": "x" * thinking, "answer": None}}  # fmt: skip

    def line(step, prefix=""):
        return {"step": step, f"{prefix}time/games_s": 10.0, f"{prefix}throughput/tokens_per_s": 30.0}

    (tmp_path / "config.yaml").write_text("run: {steps: 2}\nvllm: {num_engines: 1}\n")
    rows = [row(-1, 80), row(-1, 180), row(0, 80), row(-2, 80), row(1, 80), row(2, 80)]
    (tmp_path / "games.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    lines = [line(-1, "eval/"), line(0), line(1, "eval/"), line(1), line(2, "eval/")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    engines, batches = scale_check.read_run(tmp_path)
    assert engines == 1
    assert [(b.name, len(b.turns)) for b in batches] == [
        ("held-out games after -1", 2), ("step 0", 1), ("held-out games after 1", 1), ("step 1", 1),
        ("held-out games after 2", 1),
    ]  # fmt: skip
    assert batches[0].turns == [(None, (200, 100)), (None, (200, 200))]  # 300 tokens, shared out 100 : 200 letters
