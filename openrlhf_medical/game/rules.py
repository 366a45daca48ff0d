"""The rules of a run: every switch under ``game.`` that changes what is played or what it earns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.rewards import RewardTable, reward_table
from openrlhf_medical.game.seeds import Category

_CHOICES = {
    "vanilla_turn": ("passthrough", "generate"),
    "benign_goal": ("inject", "disguise"),
    "edit": ("note", "sentence"),
    "ties": ("drop",),
}


@dataclass(frozen=True, slots=True)
class GameRules:
    """How games are played.

    ``vanilla_turn``        passthrough: the seed note is presented as it is; generate: the attacker copies it
    ``benign_goal``         adversarial_benign: inject one error, or disguise (reword, keep it correct)
    ``edit``                adversarial turns write the whole note, or one sentence that is spliced in; a
                            vanilla turn that generates always writes the whole note
    ``cot``                 hidden chain of thought
    ``localise``            the assessor is asked for the wrong sentence and its correction, too
    ``attacks_per_seed``    A, attackers on the same seed
    ``assessments_per_note`` B, assessors on the same presented note
    ``unassessable_share``  share of seeds, in [0, 1), whose note is blanked or cut before it is presented
    ``length_ratio``        allowed (characters of the attacker's note) / (characters of the seed note)
    ``ties``                drop: a game without a label trains nobody
    ``rewards``             zero_sum, general_sum or general_sum_all_one (see ``rewards.COEFFICIENTS``)
    ``reward_overrides``    {role: {component: coefficient}}
    ``trained_roles``       roles whose turns are marked as trained, those of frozen players apart; the others play on
    ``seed``                decides which notes become unassessable

    Raises:
        UserError: on construction, for a value that is not allowed.
    """

    vanilla_turn: Literal["passthrough", "generate"] = "passthrough"
    benign_goal: Literal["inject", "disguise"] = "inject"
    edit: Literal["note", "sentence"] = "note"
    cot: bool = True
    localise: bool = True
    attacks_per_seed: int = 1
    assessments_per_note: int = 1
    unassessable_share: float = 0.0
    length_ratio: tuple[float, float] = (0.5, 2.0)
    ties: Literal["drop"] = "drop"
    rewards: str = "zero_sum"
    reward_overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trained_roles: frozenset[Role] = frozenset(Role)
    seed: int = 0
    table: RewardTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            _require(getattr(self, name) in allowed, f"game.{name}", getattr(self, name), " or ".join(allowed))
        for name in ("attacks_per_seed", "assessments_per_note"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and value >= 1, f"game.{name}", value, "a whole number of at least 1")
        share = self.unassessable_share
        _require(0.0 <= share < 1.0, "game.unassessable_share", share, "a number from 0 to below 1")
        low, high = self.length_ratio
        _require(
            0.0 < low <= 1.0 <= high and math.isfinite(high),
            "game.length_ratio",
            self.length_ratio,
            "[low, high] with 0 < low <= 1 <= high, so that a copy of the seed note is always allowed",
        )
        object.__setattr__(self, "table", reward_table(self.rewards, self.reward_overrides))

    def attacker_generates(self, category: Category) -> bool:
        """Whether the attacker has a turn in games of this category (unassessable notes aside)."""
        return not category.is_vanilla or self.vanilla_turn == "generate"

    def edits_sentence(self, category: Category) -> bool:
        """Whether the attacker's answer is one sentence, ``k: new sentence``, and not a whole note."""
        return self.edit == "sentence" and not category.is_vanilla


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise UserError(f"{key} is {value!r}; allowed: {allowed}")
