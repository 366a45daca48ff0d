"""Replies whose length alone is chosen, and what offline generation is asked for (benchmarks/turn_work.py)."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as `python benchmarks/games.py` has it

from turn_work import Lengths, Request, requests_of, well_formed

from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Reply, Role, Truth, TurnKey
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


def test_lengths_are_equal_for_equal_turns_and_never_none():
    keys = [TurnKey(0, i, role) for i in range(64) for role in Role]
    drawn, again, other = ([Lengths(draw, 3).of(key) for key in keys] for draw in (0, 0, 1))
    assert drawn == again != other
    assert min(Lengths(0, 10_000).of(key) for key in keys) == 1
