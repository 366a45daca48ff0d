"""Held-out games of a policy that learns against one that never changes: figures that move with the policy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.rollout.fleet import Fleet
from openrlhf_medical.rollout.opponents import Opponent


@dataclass(frozen=True, slots=True)
class FrozenMatch:
    """``frozen``: the role that the start plays; the other one is measured. ``start``: where the engines hold the
    start of one role at a time, what loads this role's ``folder``; else None."""

    frozen: Role
    manager: MedicalDialogueGameManager
    start: Opponent | None
    folder: str
    engines: Fleet
    """Of the start."""

    @property
    def measured(self) -> Role:
        return Role.ASSESSOR if self.frozen is Role.ATTACKER else Role.ATTACKER

    def prepare(self) -> None:
        """Have the engines hold the start."""
        if self.start is not None:
            self.start.load(self.folder, version=0)

    def seeds(self, held_out: Sequence[Seed]) -> list[Seed]:
        """For an attacker, those on which it writes: the others would only measure the frozen assessor."""
        writes = self.manager.rules.attacker_generates
        return [seed for seed in held_out if self.measured is Role.ASSESSOR or writes(seed.category)]

    def figures(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Of a match's metrics, those of the role that is measured: ``eval/frozen_attacker/assessor/accuracy``."""
        own = f"/{self.measured}/"
        return {f"eval/frozen_{self.frozen}/{name}": value for name, value in metrics.items() if own in f"/{name}"}
