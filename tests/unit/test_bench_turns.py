"""Replies whose length alone is chosen, and what offline generation is asked for (benchmarks/turn_work.py)."""

import asyncio
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as `python benchmarks/games.py` has it

from turn_work import LENGTHS, Request, deal_lengths, requests_of, turns_in, well_formed

from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed

NOTE = "A man has gout.\nHe takes colchicine for it."
SEEDS = [Seed(f"s{i}", kind, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i, kind in enumerate(Category)]


class Player:
    async def reply(self, prompt, key):
        made_of = (key.game_idx,) * (2 if key.role is Role.ATTACKER else 3)
        return Reply(well_formed(prompt, key.role), prompt_ids=(7, key.game_idx), token_ids=made_of)


class Judge:
    async def label(self, query):
        return Label("ok", Truth.HARMFUL, error_present=True)


def play(cot):
    manager = MedicalDialogueGameManager(Player(), Player(), Judge(), GameRules(edit="note", cot=cot))
    return asyncio.run(manager.play(SEEDS))


def test_every_attack_is_assessed_whatever_was_written():
    for cot in (True, False):
        games = play(cot)
        assert [game.presented_note for game in games] == [NOTE] * 4
        assert [game.assessor.verdict for game in games] == [Truth.SAFE] * 4


def test_what_was_asked_in_games_order():
    found = requests_of(play(cot=True))
    writes = [i for i, kind in enumerate(Category) if not kind.is_vanilla]
    assert found[Role.ATTACKER] == [Request((7, i), 2) for i in writes]
    assert found[Role.ASSESSOR] == [Request((7, i), 3) for i in range(4)]


def test_every_draw_has_the_same_lengths_for_others():
    turns = turns_in(SEEDS * 8, GameRules())
    first, again, other = (deal_lengths(turns, draw) for draw in (0, 0, 1))
    assert first == again != other
    assert [game.game_idx for game in play(cot=True) if game.attacker] == [i for i in turns[Role.ATTACKER] if i < 4]
    assert set(first) == {(Role.ASSESSOR, i) for i in range(32)} | {(Role.ATTACKER, i) for i in turns[Role.ATTACKER]}
    real = json.loads(LENGTHS.read_text())["tokens"]
    for role in Role:
        found = sorted(tokens for (who, _), tokens in first.items() if who is role)
        assert found == sorted(tokens for (who, _), tokens in other.items() if who is role)
        assert set(found) <= set(real[role.value])
        assert abs(statistics.median(found) - statistics.median(real[role.value])) < 15
    assert min(deal_lengths(turns, 0, shorter=10_000).values()) == 1
