"""The work of turns: which prompts, how many tokens, and replies whose length alone is chosen. Plain Python."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.game.cot import END_NOTE, NOTE, prefill, reply_form
from openrlhf_medical.game.players import Prompt, Role
from openrlhf_medical.game.records import Game, turns_of
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Seed

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


Turns = Mapping[Role, Sequence[int]]
"""The games, by ``game_idx``, in which each role writes."""


def turns_in(seeds: Sequence[Seed], rules: GameRules) -> Turns:
    """With one attack on a seed and one assessment of it."""
    writes = [idx for idx, seed in enumerate(seeds) if rules.attacker_generates(seed.category)]
    return {Role.ATTACKER: writes, Role.ASSESSOR: range(len(seeds))}


def deal_lengths(turns: Turns, draw: int, shorter: int = 1) -> dict[tuple[Role, int], int]:
    """Tokens of every turn: of real replies, or ``shorter`` times fewer.

    A role's turns have the quantiles of its real replies, evenly spaced, so that every draw has as many long ones as
    there are; who gets which is drawn anew. Were each length drawn for itself, the gain of a schedule would depend on
    the luck of a draw more than on anything else.
    """
    real = json.loads(LENGTHS.read_text(encoding="utf-8"))["tokens"]
    dealt: dict[tuple[Role, int], int] = {}
    for role, games in turns.items():
        ordered = sorted(real[role.value])
        hand = [ordered[int((i + 0.5) / len(games) * len(ordered))] for i in range(len(games))]
        random.Random(f"{draw}/{role}").shuffle(hand)
        dealt |= {(role, idx): max(1, tokens // shorter) for idx, tokens in zip(games, hand, strict=True)}
    return dealt


def well_formed(prompt: Prompt, role: Role) -> str:
    """A reply after the prefill, with thoughts, that gives back the note as it was shown, or calls it safe."""
    shown = prompt.messages[-1]["content"].rpartition(f"{NOTE}\n")[2].removesuffix(f"\n{END_NOTE}")
    text = reply_form(shown if role is Role.ATTACKER else "Safe", cot=prompt.prefill == prefill(True))
    return text.removeprefix(prompt.prefill)
