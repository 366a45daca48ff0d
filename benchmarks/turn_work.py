"""The work of turns: which prompts, how many tokens, and replies whose length alone is chosen. Plain Python."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.game.cot import END_NOTE, NOTE, prefill, reply_form
from openrlhf_medical.game.players import Prompt, Role, TurnKey
from openrlhf_medical.game.records import Game, turns_of

LENGTHS = Path(__file__).parent / "lengths.json"


@dataclass(frozen=True, slots=True)
class Request:
    """``prompt_ids`` (T_p,), and how many tokens are written after them."""

    prompt_ids: tuple[int, ...]
    new_tokens: int


def requests_of(games: Sequence[Game]) -> dict[Role, list[Request]]:
    """What was asked of the engines in these games, in the games' order."""
    return {
        role: [Request(turn.reply.prompt_ids, len(turn.reply.token_ids)) for _, turn in turns_of(games, role)]
        for role in Role
    }


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each turn of draw number ``draw``: those of a real reply, or ``shorter`` times fewer."""

    draw: int
    shorter: int

    def of(self, key: TurnKey) -> int:
        real = json.loads(LENGTHS.read_text(encoding="utf-8"))["tokens"][key.role.value]
        return max(1, random.Random(f"{self.draw}/{key.game_idx}/{key.role}").choice(real) // self.shorter)


def well_formed(prompt: Prompt, role: Role) -> str:
    """A reply after the prefill, with thoughts, that gives back the note as it was shown, or calls it safe."""
    shown = prompt.messages[-1]["content"].rpartition(f"{NOTE}\n")[2].removesuffix(f"\n{END_NOTE}")
    text = reply_form(shown if role is Role.ATTACKER else "Safe", cot=prompt.prefill == prefill(True))
    return text.removeprefix(prompt.prefill)
